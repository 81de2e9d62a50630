"""``results.json`` of an exercism test runner, version 3 (tests belong to tasks), a file for each exercise.

Source: exercism.org/docs/building/tooling/test-runners/interface.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .layout import folder_of, to_json
from .wording import explained

if TYPE_CHECKING:
    from .items import Item
    from .people import People
    from .results import Results

VERSION = 3
#: What exercism shows of a text at most, in characters and in bytes.
MOST_OUTPUT, MOST_MESSAGE = 500, 65_535


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/moduleN/SLUG/results.json`` for each learner and exercise."""
    for learner in view.cards:
        for exercise in view.exercises:
            yield f"{folder_of(learner)}/{exercise.id}/results.json", to_json(document(view.lines(learner, exercise)))


def document(lines: list[Item]) -> dict[str, Any]:
    """The object of one exercise. ``error`` means that no test ran at all; then ``message`` says why."""
    tests = [line for line in lines if line.check]
    judged = [line for line in tests if line.status != "error"]
    if not judged:
        why = "\n".join(dict.fromkeys(line.message or line.name for line in lines)) or "There is nothing to judge."
        return {"version": VERSION, "status": "error", "message": _cut(why, MOST_MESSAGE // 4), "tests": None}
    status = "pass" if all(line.status == "pass" for line in tests) else "fail"
    return {"version": VERSION, "status": status, "message": None, "tests": [_test(line) for line in tests]}


def _test(line: Item) -> dict[str, Any]:
    assert line.check is not None
    test: dict[str, Any] = {"name": line.name, "status": line.status, "test_code": line.command}
    if line.task:
        test["task_id"] = line.task
    told = explained(line)
    if line.status != "pass":
        test["message"] = _cut(told, MOST_MESSAGE // 4)
    elif told:
        # What a passed check has to say are its budgets.
        test["output"] = _cut(told, MOST_OUTPUT)
    return test


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
