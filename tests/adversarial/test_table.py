"""Rows, suite and the table in docs/security.md agree."""

from . import table


def test_the_page_is_in_step_with_rows_and_suite():
    groups, attacks = table.load()
    assert table.faults(groups, attacks) == []
    page = table.PAGE.read_text("utf-8")
    assert table.written(page, table.table(groups, attacks)) == page, "python tests/adversarial/table.py"


def test_a_row_without_its_test_is_found(tmp_path):
    groups, attacks = table.load()
    defended = next(a for a in attacks if a.verdict == "defended")
    (tmp_path / "test_f99_x.py").write_text("def test_x(): pass\n")
    (tmp_path / defended.tests[0]).write_text("def helper(): pass\n")
    rows = [defended._replace(tests=()), defended, defended._replace(verdict="open"), defended._replace(why="")]
    found = table.faults(groups, rows, tmp_path)
    for said in ("not those of the catalogue", "no test_", "open, but there is", "but why?", "test_f99_x.py"):
        assert any(said in line for line in found), said
    assert sum("has a test" in line for line in found) == 3
