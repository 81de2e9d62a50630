"""``kata new``: the entry in course.yaml, and files that the audit takes as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkata.authoring.audit.contract import judge_contract
from llmkata.authoring.audit.report import Audit, Figures
from llmkata.authoring.scaffold.entry import CannotEdit, with_entry
from llmkata.course import load_course

PLANNED = """\
      # A comment that stays.
      - number: "1.7"
        slug: angles
        title: Angles
        mission: Measure them.   # so
        difficulty: 2
        hours: {core: 1, total: 2}
        status: planned   # not yet
"""
NEXT = """
  - number: 2
    title: Empty
    objective: Nothing yet.
    exercises:
      - {number: "2.1", slug: flat, title: F, mission: F., difficulty: 1, hours: {core: 1, total: 2}, status: planned}
"""


def lines_added(before: str, after: str) -> list[str]:
    old = before.splitlines()
    new = after.splitlines()
    for line in old:
        assert line in new, f"{line!r} is gone"
    return [line for line in new if line not in old]


def test_a_new_entry_at_the_end_of_its_module(toy: Path, kata) -> None:
    path = toy / "course.yaml"
    path.write_text(path.read_text() + "\n  # The next module.\n" + NEXT.strip("\n") + "\n")
    before = path.read_text()
    assert kata("--course", toy, "new", "module1/unit_rows", "--title", "Rows of 'length' 1").status == 0
    after = path.read_text()
    added = lines_added(before, after)
    assert added[0] == '      - number: "1.2"'
    assert after.index("unit_rows") < after.index("# The next module.")
    course = load_course(toy)
    made = course.exercise("unit_rows")
    assert (made.number, made.title, made.status, [t.tier for t in made.tasks]) == (
        "1.2", "Rows of 'length' 1", "available", ["core", "stretch"])  # fmt: skip


def test_a_planned_exercise_becomes_available(toy: Path, kata) -> None:
    path = toy / "course.yaml"
    path.write_text(path.read_text() + PLANNED + NEXT)
    before = path.read_text()
    assert kata("--course", toy, "new", "module1/angles").status == 0
    after = path.read_text()
    assert "status: available   # not yet" in after
    assert "mission: Measure them.   # so" in after
    assert [line.strip() for line in after.splitlines() if line not in before.splitlines()] == [
        "status: available   # not yet", '- {number: 1, tier: core, title: "Rows of length 1"}',
        '- {number: 2, tier: stretch, title: "Similarities"}']  # fmt: skip
    assert load_course(toy).exercise("angles").number == "1.7"
    assert (toy / "exercises/module1/angles/README.md").read_text().startswith("# 1.7 Angles\n")


def test_what_is_written_keeps_every_promise(toy: Path, kata) -> None:
    kata("--course", toy, "new", "module1/unit_rows")
    exercise = load_course(toy).exercise("unit_rows")
    audit = Audit(Figures(exercise.id))
    judge_contract(exercise, {"test_flops"}, False, audit)
    assert audit.faults == []


def test_the_audit_takes_it_as_it_is(toy: Path, kata) -> None:
    kata("--course", toy, "new", "module1/unit_rows")
    done = kata("--course", toy, "audit", "--quick", "unit_rows")
    assert done.status == 0, done.out
    assert "misconceptions  4 of 4 rejected, 4 named" in done.out


@pytest.mark.parametrize("name", ["unit_rows", "module1", "module1/Unit", "module1/../x", "module1/1st", "modul1/a"])
def test_a_name_that_is_none(toy: Path, kata, name: str) -> None:
    before = (toy / "course.yaml").read_text()
    assert kata("--course", toy, "new", name).status == 2
    assert (toy / "course.yaml").read_text() == before


def test_nothing_is_overwritten(toy: Path, kata) -> None:
    before = (toy / "course.yaml").read_text()
    existing = kata("--course", toy, "new", "module1/scale")
    assert existing.status == 2
    assert "1.1 scale is already available" in existing.err
    (toy / "reference/module1/unit_rows.py").write_text("mine\n")
    done = kata("--course", toy, "new", "module1/unit_rows")
    assert done.status == 2
    assert "reference/module1/unit_rows.py is already there" in done.err
    assert (toy / "course.yaml").read_text() == before
    assert (toy / "reference/module1/unit_rows.py").read_text() == "mine\n"
    assert not (toy / "solutions/module1/unit_rows.py").exists()


def test_a_module_that_does_not_exist(toy: Path, kata) -> None:
    done = kata("--course", toy, "new", "module7/unit_rows")
    assert done.status == 2
    assert "no module 7" in done.err


def test_a_list_that_is_no_block_is_left_to_its_author(toy: Path) -> None:
    source = (toy / "course.yaml").read_text() + NEXT
    with pytest.raises(CannotEdit) as caught:
        with_entry(source, 2, "flat_rows", "Flat rows")
    assert 'number: "2.2"' in caught.value.text
    with pytest.raises(CannotEdit):
        with_entry(source, 2, "flat", "Flat")
