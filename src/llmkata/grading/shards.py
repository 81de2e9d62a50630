"""A run in parts on several machines, and the parts put together: the records are those of one run."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from llmkata.places import RECORDS
from llmkata.records import ExerciseRecord, RecordFile, encode, read_records

from .sources import SOURCES
from .submission import Submission


def part(submissions: Iterable[Submission], which: int, of: int) -> list[Submission]:
    """Part ``which`` (from 1) of ``of``: the same on every machine that reads the same class, and of every exercise as
    many in each, since exercises differ in what they cost."""
    ordered = sorted(submissions, key=lambda s: (s.exercise_id, s.learner, s.submitted_at, s.file))
    return ordered[which - 1::of]


def merge(target: Path, parts: Sequence[Path]) -> tuple[int, list[str]]:
    """Add the records and sources of ``parts`` to ``target`` -> (records added, what could not be read).

    A record that is there already is not added twice, so merging again does no harm. Raises ``OSError`` for a part
    without records.
    """
    target.mkdir(parents=True, exist_ok=True)
    file = RecordFile(target / RECORDS)
    there = {encode(record) for record in file.read().records}
    added: list[ExerciseRecord] = []
    faults = []
    for folder in parts:
        reading = read_records([folder / RECORDS])
        faults += map(str, reading.faults)
        for record in reading.records:
            data = encode(record)
            if data not in there:
                there.add(data)
                added.append(record)
        _copy_sources(folder / SOURCES, target / SOURCES)
    # Parts end when they end; a run in one piece would have written them in the order of grading.
    added.sort(key=lambda r: r.graded_at)
    file.append(*added)
    return len(added), faults


def _copy_sources(source: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    for path in sorted(source.glob("*.py")) if source.is_dir() else ():
        if not (target / path.name).exists():
            shutil.copyfile(path, target / path.name)
