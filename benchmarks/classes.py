"""Classes to be graded, made up: each submission differs from the others by a last line, so that none is graded once
for two learners."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .harness import SMALL, MeasureError

ATTENTION = "module2/attention"
#: Points of the three assertions that the answer in SMALL gets, and with the wrong scale.
RIGHT, WRONG = 3, 2


def answers(count: int) -> list[tuple[str, int]]:
    """(source, points it must get) of the exercise in SMALL: every fourth divides by d, not by its root."""
    right = (SMALL / "solutions" / f"{ATTENTION}.py").read_text("utf-8")
    wrong = right.replace("math.sqrt(q.shape[-1])", "q.shape[-1]")
    if wrong == right:
        raise MeasureError("the model answer no longer holds the scale that wrong answers change")
    return [(f"{wrong if i % 4 == 3 else right}# {i}\n", WRONG if i % 4 == 3 else RIGHT) for i in range(count)]


def hand_in(folder: Path, work: dict[str, Iterable[str]]) -> Path:
    """A class: exercise id -> a source for each learner."""
    for exercise, sources in work.items():
        for i, source in enumerate(sources):
            path = folder / f"learner{i:04}" / f"{exercise}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, "utf-8")
    return folder


def copies(source: str, count: int) -> list[str]:
    """``count`` sources of equal meaning."""
    return [f"{source}\n# {i}\n" for i in range(count)]


def records_of(folder: Path, count: int) -> list[dict[str, Any]]:
    """The records of a run of ``count`` submissions. Raises MeasureError where one was not graded: its time would be that
    of something else."""
    with (folder / "records.jsonl").open("rb") as file:
        found = [json.loads(line) for line in file]
    # Exercises that the course has and nobody was to hand in.
    records = [record for record in found if record["state"] != "missing"]
    for record in records:
        if record["state"] != "graded":
            raise MeasureError(f"{record['learner']} {record['exercise']}: {record['state']}: {record['cause']}")
    if len(records) != count:
        raise MeasureError(f"{len(records)} submissions were graded, not {count}")
    return records


def points_of(record: dict[str, Any]) -> float:
    """The points that a record gives."""
    return sum(check["points"] for check in record["checks"])


def require_points(who: str, got: list[float], wanted: list[float]) -> None:
    """Raises MeasureError where ``who`` did not give the points wanted: what was timed is then no grading."""
    if list(got) != list(wanted):
        raise MeasureError(f"{who} gave {got}, not {wanted}")
