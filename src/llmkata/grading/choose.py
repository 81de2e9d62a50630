"""The files of one learner -> a submission for each exercise: which file is meant, and whether it can be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from llmkata.authoring.stub import is_stub
from llmkata.course import Course, Exercise
from llmkata.records import State

from .folder import Entry, listed, owner, printable, rank, read_bytes, released, shipped, similar_names, stands_for
from .source import Unreadable, python_source, syntax_faults
from .submission import Submission

#: Files of one name that are opened in one learner's folder, best place first.
_MOST_CANDIDATES = 8
#: Files and bytes handed at most to one process that compiles them: starting it takes as long as 20 KB of them. Where it is
#: late or dies each file has a process of its own.
_COMPILED_AT_ONCE, _COMPILED_BYTES = 200, 1 << 20


def chosen_from(entries: Sequence[Entry], learner: str, course: Course, notes: Sequence[str] = ()) -> list[Submission]:
    """A submission for each available exercise, not compiled yet; ``notes`` are told with each."""
    chosen: list[tuple[Exercise, Submission, list[Entry]]] = []
    used: set[Entry] = set()
    for exercise in course.available:
        submission = Submission(learner, exercise.id, notes=list(notes))
        candidates = [e for e in entries if stands_for(e, exercise)]
        submission = _choose(candidates, exercise, submission, course)
        used.update(candidates)
        chosen.append((exercise, submission, candidates))
    exercises = {e.id: e for e in course.exercises}
    used.update(e for e in entries if shipped(e, exercises))
    used |= released(entries)
    needed = {entry.parts[:n] for entry in used for n in range(1, len(entry.parts))}
    ignored = [e for e in entries if e not in used and e.kind != "folder"]
    owners = {e: owner(e, exercises) for e in ignored}
    done = []
    for exercise, submission, candidates in chosen:
        # What lies in another exercise's folder is told there.
        names = listed([e for e in ignored if owners[e] in (None, exercise.id)], needed)
        names += [c.label for c in candidates[:_MOST_CANDIDATES] if c.shown != submission.file]
        if submission.state is State.missing:
            submission = replace(submission, cause=_missing(exercise, ignored))
        done.append(replace(submission, ignored=names))
    return done


def _choose(candidates: list[Entry], exercise: Exercise, submission: Submission, course: Course) -> Submission:
    files = sorted((c for c in candidates if c.kind == "file"), key=lambda c: rank(c, exercise))[:_MOST_CANDIDATES]
    if not files:
        if candidates:
            entry = candidates[0]
            kind = "a folder" if entry.kind in ("folder", "not entered") else entry.kind
            cause = f"{entry.parts[-1]} is {kind}, not a file, and was not opened. Hand in the file itself."
            return replace(submission, file=entry.shown, cause=cause)
        return submission
    python = [f for f in files if f.parts[-1].endswith(".py")]
    reads = [(f, read_entry(f, replace(submission, file=f.shown), course)) for f in python or files]
    if python and len(python) < len(files):
        other = next(f for f in files if f not in python)
        submission = replace(
            submission, notes=[*submission.notes, f"{other.shown} was not used: {python[0].shown} comes first"]
        )
    if len(reads) > 1:
        return _prefer(reads, exercise, submission)
    entry, read = reads[0]
    return replace(read, notes=[*submission.notes, *[n for n in read.notes if n not in submission.notes]])


def _prefer(reads: list[tuple[Entry, Submission]], exercise: Exercise, submission: Submission) -> Submission:
    """One of several files for an exercise: not the untouched stub, then by place; two left over are nobody's guess."""
    worked = [(e, r) for e, r in reads if r.source is None or not is_stub(exercise, r.source)] or reads
    best = min(rank(e, exercise) for e, _ in worked)
    left = [(e, r) for e, r in worked if rank(e, exercise) == best]
    if len({r.source for _, r in left}) > 1:
        names = " and ".join(e.shown for e, _ in left[:3])
        cause = f"More than one file may be the answer: {names}. Hand in one of them, as {exercise.id}.py."
        return replace(submission, file=left[0][0].shown, cause=cause)
    chosen = left[0][1]
    others = ", ".join(e.shown for e, _ in reads if e.shown != chosen.file)
    return replace(chosen, notes=[*submission.notes, *chosen.notes, f"{chosen.file} was used, not {others}"])


def read_entry(entry: Entry, submission: Submission, course: Course) -> Submission:
    """The submission with what the file holds, or why it cannot be read."""
    limit = course.limits.submission * 1024
    try:
        data = read_bytes(entry.path, limit + 1)
    except OSError as error:
        return replace(submission, cause=f"The file cannot be opened ({error.strerror or error}). Hand it in again.")
    if len(data) > limit:
        cause = f"The file is larger than {limit >> 10:,} KiB. Take data and outputs out of it and hand it in again."
        return replace(submission, cause=cause)
    try:
        source, notes = python_source(data, notebook=entry.parts[-1].endswith(".ipynb"))
    except Unreadable as error:
        return replace(submission, cause=str(error))
    return replace(submission, source=source, notes=[*submission.notes, *map(printable, notes)])


def compiled(submissions: list[Submission]) -> list[Submission]:
    """The submissions, those that the Python compiler refuses made unreadable."""
    done = list(submissions)
    for batch in _batches(done):
        faults = syntax_faults([done[i].source for i in batch], [done[i].file.rpartition("/")[2] for i in batch])
        for i, fault in zip(batch, faults, strict=True):
            if fault is not None:
                done[i] = replace(done[i], source=None, cause=fault.cause, evidence=fault.evidence)
    return done


def _batches(submissions: list[Submission]) -> Iterator[list[int]]:
    """Places of those that have a source, so many at a time as one process compiles."""
    batch: list[int] = []
    size = 0
    for i, submission in enumerate(submissions):
        if submission.source is None:
            continue
        if batch and (len(batch) == _COMPILED_AT_ONCE or size + len(submission.source) > _COMPILED_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(i)
        size += len(submission.source)
    if batch:
        yield batch


def _missing(exercise: Exercise, ignored: list[Entry]) -> str:
    absent = f"No {exercise.slug}.py was handed in"
    for entry in similar_names(exercise, ignored):
        return f"{absent}, but {entry.shown}: is that it? Rename it to {exercise.slug}.py and hand it in again."
    return f"{absent}."
