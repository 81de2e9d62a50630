"""The one reader of CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkata.grading.csvfile import TableError, column, read_table


def read(folder: Path, text: str | bytes, *needs: str):
    path = folder / "list.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_table(path, "id,name", needs)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("sign", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_spreadsheets_write(tmp_path: Path, mark: str, sign: str, end: str) -> None:
    lines = ["", sign.join(["ID", " Extension_Days ", "Full  Name", ""]), f"u1{sign} 2 {sign}\"Lee{sign} Ann\"{sign}x{sign}{sign}", sign, "u2", ""]
    table = read(tmp_path, mark + end.join(lines), "id", "extension days")
    assert table.header == ("ID", "Extension_Days", "Full  Name", "") and table.columns == ("id", "extension days", "full name", "")
    one, two = table.rows
    assert (one.line, two.line) == (3, 5), "empty lines are nobody, and the first line may be empty"
    assert one.cells == {"id": "u1", "extension days": "2", "full name": f"Lee{sign} Ann"}
    assert (two.get("id"), two.get("extension days"), two.get("name", "id")) == ("u2", "", "u2")
    assert table.has("id", "full name") and not table.has("name")
    assert column(" Extension_Days  3") == "extension days 3"


def test_a_quoted_cell_may_span_lines(tmp_path: Path) -> None:
    table = read(tmp_path, 'id,note\n1,"two\nlines"\n2,x\n')
    assert [row.line for row in table.rows] == [2, 4] and table.rows[0].get("note") == "two\nlines"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "list.csv: is empty; its first line names the columns, as id,name"),
        (" \n,\n", "list.csv: is empty"),
        ("name,x\n", "list.csv:1: no column id; the columns are name, x"),
        ("id,name,Name\n", "list.csv:1: column 'name' stands there twice"),
        ("id,name,id\nu1,a,b,c\n", "list.csv:1: column 'id' stands there twice\nWHERElist.csv:2: 4 cells for 3 columns"),
        ("id\nu1\nu2,Ann\n", "list.csv:3: 2 cells for 1 columns"),
        (b"id\n\xff\xfe\n", "list.csv: is not UTF-8; save it as CSV in UTF-8"),
        ('id\nu1\n"open\n', "list.csv:3: is not CSV: "),
    ],
)
def test_faults_say_where(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(TableError) as caught:
        read(tmp_path, text, "id")
    assert said.replace("WHERE", f"{tmp_path}/") in str(caught.value)


def test_no_file_and_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TableError, match="No such file"):
        read_table(tmp_path / "none.csv", "id")
    with pytest.raises(TableError, match="Is a directory"):
        read_table(tmp_path, "id")
    monkeypatch.setattr("llmkata.grading.csvfile.MAX_BYTES", 10)
    assert read(tmp_path, "id\n1234567").rows
    with pytest.raises(TableError, match="is it the right file"):
        read(tmp_path, "id\n12345678")
