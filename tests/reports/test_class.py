"""The class page, grades.csv and the report folder."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmkata.gradebook import Gradebook
from llmkata.records import ExerciseRecord, Measure, RecordFile, State, latest
from llmkata.records.pairs import Pair, Side
from llmkata.reports import classpage, grades, pages
from llmkata.reports.site import write_card, write_report
from llmkata.reports.text import slug

from . import factory
from .factory import (
    ATTACK,
    HOSTILE_NAMES,
    KV_CACHE,
    MATRIX_CALCULUS,
    check,
    class_of,
    course,
    hostile,
    in_progress,
    mastered,
    record,
    showcase,
    unreadable,
)
from .pagecheck import Node, check_page, shape


def book_of(records: list[ExerciseRecord], tmp_path: Path) -> Gradebook:
    file = RecordFile(tmp_path / "run.jsonl")
    file.append(*records)
    book = Gradebook.open()
    book.rebuild([file.path])
    return book


def page_of(records: list[ExerciseRecord], tmp_path: Path, links: dict[str, str] | None = None) -> Node:
    return check_page(classpage.to_html(course(), book_of(records, tmp_path), links or {}))


def rows_of(table: Node) -> list[list[str]]:
    return [
        [c.attrs.get("aria-label") or c.text() for c in row.children if isinstance(c, Node)]
        for row in table.all("tbody")[0].all("tr")
    ]


def section(page: Node, title: str) -> Node:
    found = [s for s in page.all("section") if s.all("h2")[0].text() == title]
    assert found, title
    return found[0]


def test_the_heat_map_is_learners_by_exercises(tmp_path: Path) -> None:
    page = page_of([*showcase("Zoë"), mastered("ada"), record("bob", KV_CACHE, State.missing)], tmp_path)
    (heat,) = page.all("table", "heat")
    assert [th.text() for th in heat.all("thead")[0].all("th")] == [
        "Learner",
        "Total",
        "Matrix Calculus 0.1",
        "Self-Attention Mechanism 2.1",
        "KV-Cache Implementation 6.1",
    ]
    assert rows_of(heat) == [
        ["ada", "25 %", "mastered 100", "not started", "not started"],
        ["bob", "0 %", "not started", "not started", "missing"],
        ["Zoë", "36.6 %", "mastered 100", "in progress 47", "unreadable"],
    ]


def test_every_sortable_cell_has_its_key(tmp_path: Path) -> None:
    page = page_of(class_of(16), tmp_path)
    tables = page.all("table", "sortable")
    assert len(tables) == 4
    for table in tables:
        heads = table.all("thead")[0].all("th")
        sortable = [i for i, th in enumerate(heads) if th.all("button")]
        assert sortable
        assert sum(th.attrs.get("aria-sort") in ("ascending", "descending") for th in heads) == 1
        assert all("aria-sort" in heads[i].attrs for i in sortable)
        for row in table.all("tbody")[0].all("tr"):
            cells = [c for c in row.children if isinstance(c, Node)]
            for i in sortable:
                key = cells[i].attrs["data-key"]
                assert key is not None
                if "num" in (heads[i].attrs.get("class") or ""):
                    float(key)


def test_the_first_order_is_the_one_that_is_announced(tmp_path: Path) -> None:
    for table in page_of(class_of(16), tmp_path).all("table", "sortable"):
        heads = table.all("thead")[0].all("th")
        ((at, order),) = [
            (i, th.attrs["aria-sort"])
            for i, th in enumerate(heads)
            if th.attrs.get("aria-sort") in ("ascending", "descending")
        ]
        keys = [
            [c for c in row.children if isinstance(c, Node)][at].attrs["data-key"]
            for row in table.all("tbody")[0].all("tr")
        ]
        values = [float(k) for k in keys] if "num" in (heads[at].attrs.get("class") or "") else keys
        assert values == sorted(values, reverse=order == "descending")


def test_an_exact_count_is_no_budget_near_its_limit(tmp_path: Path) -> None:
    def with_calls(learner: str, at_least: float | None) -> ExerciseRecord:
        measure = Measure("GEMM calls", 16, "calls", at_most=16, at_least=at_least)
        budget = factory.check("test_calls", 1, file="test_budgets.py", kind="budget", measures=[measure])
        return record(learner, checks=[budget])

    near = page_of([with_calls("ada", None)], tmp_path / "near")
    assert "GEMM calls" in section(near, "Budgets near the limit").text()
    exact = page_of([with_calls("ada", 16)], tmp_path / "exact")
    assert "GEMM calls" not in exact.text()


def test_checks_without_points_are_not_among_the_hardest(tmp_path: Path) -> None:
    failed = factory.Outcome.failed
    page = page_of([record("ada", checks=[factory.check("test_a", 1, failed, 0), factory.check("test_b", 1, failed)])],
                   tmp_path)  # fmt: skip
    assert [row[0] for row in rows_of(section(page, "Hardest checks"))] == ["B. test_b"]


def test_who_has_not_begun_is_counted_apart(tmp_path: Path) -> None:
    def of(learner: str, cause: str) -> object:
        return record(learner, checks=[factory.check("test_a", 1, factory.Outcome.failed, cause=cause)])

    page = page_of([of("ada", "It differs."), of("bob", "not started: task 1: add")], tmp_path)
    [row] = rows_of(section(page, "Hardest checks"))
    assert row[2] == "0 % (0 of 1; 1 not started)"


def test_hardest_checks_misconceptions_and_faults(tmp_path: Path) -> None:
    fault = record("cyd", KV_CACHE, State.infrastructure, cause="Out of memory on the host.")
    page = page_of([in_progress("ada"), in_progress("bob"), fault, unreadable("dan")], tmp_path)
    hardest = rows_of(section(page, "Hardest checks"))
    assert [row[2] for row in hardest] == ["0 % (0 of 2)"] * 3
    (found,) = rows_of(section(page, "Misconceptions"))
    assert found[0] == "2"
    assert found[1].startswith("scale_by_d Your output is exactly")
    assert found[3] == "Names ada bob"
    assert rows_of(section(page, "Faults of the grader")) == [["cyd", "6.1", "Out of memory on the host."]]
    (doubt,) = rows_of(section(page, "Checks not judged"))
    assert (doubt[0], doubt[3]) == ("2", "Names ada bob"), "one row for all who share a cause"
    facts = [div.text() for div in page.all("dl", "facts")[0].all("div")]
    assert "not judged 1" in facts, "single checks are not counted as exercises"
    assert rows_of(section(page, "Unreadable submissions"))[0][0] == "dan"
    cyd = next(row for row in rows_of(page.all("table", "heat")[0]) if row[0] == "cyd")
    assert cyd == ["cyd", "0 %", "not started", "not started", "not judged"]


def test_budgets_near_the_limit_come_first(tmp_path: Path) -> None:
    def with_budgets(learner: str, close: float, far: float) -> ExerciseRecord:
        return record(
            learner,
            checks=[
                check(
                    "test_b",
                    1,
                    measures=[
                        Measure("close", close, "FLOP", at_most=100, ok=close <= 100),
                        Measure("far", far, "FLOP", at_most=100, ok=far <= 100),
                        Measure("easy", 10, "FLOP", at_most=100),
                    ],
                )
            ],
        )

    page = page_of([with_budgets("ada", 95, 500), with_budgets("bob", 99, 10), with_budgets("cyd", 104, 20)], tmp_path)
    rows = rows_of(section(page, "Budgets near the limit"))
    assert [(row[0].split()[0], row[3], row[4]) for row in rows] == [("close", "3 \u2068ada\u2069, \u2068bob\u2069, \u2068cyd\u2069", "1"), ("far", "0", "1")]
    strip = section(page, "Budgets near the limit").all("svg")[0]
    assert [c.attrs["class"] for c in strip.all("circle")] == ["ok", "ok", "over"]


def test_learners_at_one_place_are_one_dot(tmp_path: Path) -> None:
    def of(i: int) -> ExerciseRecord:
        value = 95.0 if i < 20 else 120.0
        measure = Measure("close", value, "FLOP", at_most=100, ok=value <= 100)
        return record(f"l{i:02}", checks=[check("test_b", 1, measures=[measure])])

    strip = section(page_of([of(i) for i in range(22)], tmp_path), "Budgets near the limit").all("svg")[0]
    within, beyond = strip.all("circle")
    assert strip.attrs["aria-label"].startswith("22 measured, 20 near the limit, 2 failed")
    assert float(within.attrs["r"]) > float(beyond.attrs["r"]) > 4.5
    assert within.text().startswith("l00: 95 FLOP; l01") and within.text().endswith("and 8 more")


def test_the_time_line_counts_submissions_by_day(tmp_path: Path) -> None:
    def at(learner: str, moment: str) -> ExerciseRecord:
        made = mastered(learner)
        made.submitted_at = moment
        return made

    days = [at("ada", "2026-03-01T10:00:00Z"), at("bob", "2026-03-02T01:00:00+02:00"), at("cyd", "2026-03-09T00:00:00Z")]
    page = page_of([*days, at("dan", ""), record("eve", state=State.missing)], tmp_path / "a")
    line = section(page, "Time line")
    assert line.all("svg")[0].attrs["aria-label"] == "1 Mar: 2, 9 Mar: 1"
    assert "of 1 more no time is known" in line.text()
    assert "Time line" not in page_of([at("ada", "")], tmp_path / "b").text()


def test_similar_submissions_are_told_to_staff_only(tmp_path: Path) -> None:
    records = [mastered("ada"), mastered("SECRET"), mastered("cyd")]
    pair = Pair(MATRIX_CALCULUS, Side("ada", 0.91, [(3, 9), (12, 12)]), Side("SECRET", 0.5, [(40, 47)]))
    with book_of(records, tmp_path) as book:
        report = write_report(tmp_path / "some", course(), records, book, pairs=[pair])
        none = write_report(tmp_path / "none", course(), records, book, pairs=[])
        unknown = write_report(tmp_path / "unknown", course(), records, book)
    found = section(check_page(report.index.read_text(encoding="utf-8")), "Similar submissions")
    assert rows_of(found) == [["91 %", "0.1", "ada 91 % of it: lines 3–9, 12", "SECRET 50 % of it: lines 40–47"]]
    for learner, card in report.cards.items():
        for path in (card, card.with_suffix(".md"), card.with_suffix(".json")):
            assert learner == "SECRET" or "SECRET" not in path.read_text(encoding="utf-8")
            assert "imilar" not in path.read_text(encoding="utf-8")
    assert "No two submissions" in none.index.read_text(encoding="utf-8")
    assert "Similar submissions" not in unknown.index.read_text(encoding="utf-8"), "nobody looked"


def test_flags_and_printed_output_are_for_staff_only(tmp_path: Path) -> None:
    flagged = record("ada", checks=[check("test_a", 1, flags=["Too good to be true."], staff_output="SECRET INPUT")])
    with book_of([flagged], tmp_path) as book:
        report = write_report(tmp_path / "report", course(), [flagged], book)
    index = check_page(report.index.read_text(encoding="utf-8"))
    assert "Too good to be true. What the code printed SECRET INPUT" in section(index, "Worth a look").text()
    for path in (tmp_path / "report" / "learners").iterdir():
        assert "SECRET" not in path.read_text(encoding="utf-8")
        assert "Too good" not in path.read_text(encoding="utf-8")


def test_an_empty_class_has_a_page(tmp_path: Path) -> None:
    with Gradebook.open() as book:
        report = write_report(tmp_path, course(), [], book)
    page = check_page(report.index.read_text(encoding="utf-8"))
    assert "Nobody has been graded yet" in page.text()
    assert page.all("table") == []
    assert report.cards == {}


def test_hostile_texts_change_no_markup(tmp_path: Path) -> None:
    def links(name: str) -> dict[str, str]:
        return {name: f"learners/{slug(name)}.html"}

    def tame(source: ExerciseRecord) -> ExerciseRecord:
        import msgspec

        attack = msgspec.json.encode(ATTACK).decode()[1:-1]
        return msgspec.json.decode(
            msgspec.json.encode(source).decode().replace(attack, "harmless"), type=ExerciseRecord
        )

    (tmp_path / "tame").mkdir()
    harmless = shape(page_of([tame(hostile("ada"))], tmp_path / "tame", links("ada")))
    for i, name in enumerate([n for n in HOSTILE_NAMES if n]):
        folder = tmp_path / str(i)
        folder.mkdir()
        assert shape(page_of([hostile(name)], folder, links(name))) == harmless, name


def test_the_check_above_fails_without_escaping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = pages.html().overlay(autoescape=False)
    monkeypatch.setattr(pages, "html", lambda: env)
    with pytest.raises(AssertionError):
        page_of([hostile("<b>")], tmp_path)


def test_grades_csv_is_one_line_per_learner(tmp_path: Path) -> None:
    fault = record("cyd", KV_CACHE, State.infrastructure)
    text = grades.to_csv(course(), book_of([*showcase("ada"), fault], tmp_path).entries())
    header, ada, cyd = csv.reader(io.StringIO(text))
    fields = ("state", "points", "max_points", "deduction_percent", "percent", "late", "by_hand", "by_hand_reason")
    assert header[:12] == ["learner", "name", "section", "total_percent", *(f"{MATRIX_CALCULUS} {field}" for field in fields)]
    assert "transformer_encoder" not in text, "planned exercises are not counted"
    assert ada[:4] == ["ada", "", "", "36.63"]
    assert ada[4:12] == ["mastered", "20.0", "20.0", "", "100.0", "", "", ""]
    assert ada[12:20] == ["in progress", "20.0", "43.0", "", "46.51", "", "", ""]
    assert ada[20:] == ["unreadable", "0.0", "", "", "0.0", "", "", ""]
    assert cyd == ["cyd", "", "", "0.0", *["not started", "0", "", "", "0", "", "", ""] * 2, "not judged", *[""] * 7]


def test_names_and_sections_of_a_roster(tmp_path: Path) -> None:
    book = book_of([*showcase("ada"), *showcase("bob")], tmp_path)
    people = {"ada": ("=Ada()", "Section <A>")}
    _, ada, bob = csv.reader(io.StringIO(grades.to_csv(course(), book.entries(), people)))
    assert (ada[:3], bob[:3]) == (["ada", "'=Ada()", "Section <A>"], ["bob", "", ""])
    page = check_page(classpage.to_html(course(), book, {}, people=people))
    heads = [th for th in page.all("table", "heat")[0].all("th") if th.attrs.get("scope") == "row"]
    assert [th.attrs["data-key"] for th in heads] == ["ada =ada(), section <a>", "bob"]


def test_who_handed_in_nothing_stands_there_with_the_reason(tmp_path: Path) -> None:
    cause = "Nothing of this learner was among the submissions."
    nothing = [record("zed", e, State.missing, cause=cause) for e in (KV_CACHE, MATRIX_CALCULUS)]
    page = classpage.to_html(course(), book_of([*showcase("ada"), *nothing], tmp_path), {})
    section = page.split('id="absent-title"')[1].split("</section>")[0]
    assert "zed" in section
    assert cause in section
    assert "ada" not in section
    part = [record("bob", KV_CACHE, State.missing, cause=cause), mastered("bob")]
    assert "absent-title" not in classpage.to_html(course(), book_of(part, tmp_path / "other"), {})


def test_no_cell_of_grades_csv_is_a_formula(tmp_path: Path) -> None:
    text = grades.to_csv(course(), book_of([hostile(name) for name in HOSTILE_NAMES], tmp_path).entries())
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 1 + len(HOSTILE_NAMES)
    for row in rows:
        assert len(row) == len(rows[0])
        assert all(cell[:1] not in set("=+-@\t\r") for cell in row)
    assert "'=cmd()" in {row[0] for row in rows}


def test_the_folder_holds_a_card_per_learner_that_the_page_links_to(tmp_path: Path) -> None:
    records = [hostile(name) for name in HOSTILE_NAMES]
    with book_of(records, tmp_path) as book:
        report = write_report(tmp_path / "out", course(), records, book)
    assert set(report.cards) == set(HOSTILE_NAMES)
    assert len(set(report.cards.values())) == len(HOSTILE_NAMES)
    page = check_page(report.index.read_text(encoding="utf-8"))
    links = {a.attrs["href"] for a in page.all("table", "heat")[0].all("a")}
    assert {(tmp_path / "out" / link).resolve() for link in links} == {path.resolve() for path in report.cards.values()}
    assert {p.parent for p in tmp_path.rglob("*.html")} == {tmp_path / "out", tmp_path / "out" / "learners"}, (
        "nothing is written elsewhere"
    )
    for path in report.cards.values():
        check_page(path.read_text(encoding="utf-8"))
        json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        assert path.with_suffix(".md").exists()
    assert not [p for p in (tmp_path / "out").rglob("*.tmp")]


def test_of_several_records_the_one_that_stands_is_shown(tmp_path: Path) -> None:
    old = record("ada", MATRIX_CALCULUS, State.missing, graded_at="2026-03-01T00:00:00Z")
    records = [mastered("ada"), old]
    with book_of(records, tmp_path) as book:
        report = write_report(tmp_path / "out", course(), latest(records).values(), book)
    assert json.loads(report.cards["ada"].with_suffix(".json").read_text())["exercises"][0]["standing"] == "mastered"
    assert ",mastered,20.0," in report.grades.read_text()


def test_the_same_records_make_the_same_files(tmp_path: Path) -> None:
    records = class_of(6)
    made = []
    for name in ("a", "b"):
        with book_of(records, tmp_path / name) as book:
            write_report(tmp_path / name / "out", course(), records, book)
        made.append(
            {
                p.relative_to(tmp_path / name): p.read_bytes()
                for p in (tmp_path / name / "out").rglob("*")
                if p.is_file()
            }
        )
    assert made[0] == made[1]


def test_a_card_that_cannot_be_made_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_card(tmp_path, "ada", [mastered("ada")], course())
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_card(tmp_path, "ada", [in_progress("ada")], course())
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*"))


def test_five_hundred_learners_have_a_page_in_seconds(tmp_path: Path) -> None:
    records = class_of(500)
    with book_of(records, tmp_path) as book:
        start = time.process_time()
        html = classpage.to_html(course(), book, {r.learner: f"learners/{slug(r.learner)}.html" for r in records})
        spent = time.process_time() - start
    assert len(rows_of(check_page(html).all("table", "heat")[0])) == 500
    assert spent < 5
    assert len(html) < 2_000_000


def test_reports_never_import_torch() -> None:
    code = (
        "import sys, llmkata.records, llmkata.gradebook.book, llmkata.reports.site, llmkata.reports.terminal\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules, 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_standings_cost_no_database() -> None:
    code = "import sys, llmkata.gradebook, llmkata.reports.terminal\nassert 'sqlalchemy' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
