"""A folder of submissions -> what each learner handed in for each exercise.

One folder or archive (.zip, .tar.gz) per learner. Within it a file is found as
``exercises/module2/self_attention/self_attention.py``, ``module2/self_attention.py``, or by its name alone where only
one such file is there; ``.ipynb`` stands for ``.py``.
Everything found is hostile: links are not followed, only plain files of the names asked for are opened, sizes, depth
and number of entries are bounded, and no learner's folder can stop the intake of another's.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from llmkata.authoring.stub import is_stub
from llmkata.course import Course, Exercise
from llmkata.grading import archive
from llmkata.grading.folder import (
    Entry,
    by_name,
    cut,
    is_junk,
    listed,
    owner,
    printable,
    rank,
    read_bytes,
    shipped,
    similar_names,
    stands_for,
    walk,
)
from llmkata.grading.source import Unreadable, python_source, syntax_faults
from llmkata.records import Evidence, ExerciseRecord, State

#: Files of one name that are opened in one learner's folder, best place first.
_MOST_CANDIDATES = 8
#: Files handed to one process that compiles them: starting it takes as long as some ten files.
_COMPILED_AT_ONCE = 50


class IntakeError(ValueError):
    """The folder of submissions itself cannot be used; the message says why and what to give instead."""


@dataclass(frozen=True)
class Submission:
    """What one learner handed in for one exercise. Texts are plain: control characters are escaped."""

    learner: str
    exercise_id: str
    #: The Python source in UTF-8 without byte order mark; None where there is nothing to grade (see ``state``).
    source: bytes | None = None
    #: Path within the learner's folder, "" where no file was found.
    file: str = ""
    #: ISO 8601 with offset, "" where unknown. File times are the learner's to set, so they are not used.
    submitted_at: str = ""
    #: Entries of the learner's folder that play no part, with the reason where it is not plain.
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Why there is nothing to grade, one or two sentences with the next step; "" where there is a source.
    cause: str = ""
    #: The line the Python compiler refuses.
    evidence: Evidence | None = None

    @property
    def state(self) -> State | None:
        """``missing`` or ``unreadable``; None where ``source`` can be graded."""
        if self.source is not None:
            return None
        return State.unreadable if self.file else State.missing

    def record(self) -> ExerciseRecord:
        """The record of a submission that cannot be graded. Raises ``ValueError`` for one that can."""
        if self.state is None:
            raise ValueError(f"{self.file} of {self.learner} is there to be graded")
        return self.signed(ExerciseRecord(self.learner, self.exercise_id, self.state, cause=self.cause,
                                          evidence=self.evidence))

    def signed(self, record: ExerciseRecord) -> ExerciseRecord:
        """``record``, which now says whose it is, when it was handed in, and what became of the files."""
        record.learner, record.submitted_at = self.learner, self.submitted_at
        record.files = [self.file] if self.file else []
        record.ignored, record.notes = self.ignored, [*self.notes, *record.notes]
        return record


def read_submissions(folder: Path | str, course: Course) -> list[Submission]:
    """Every available exercise of every learner under ``folder``, learners and exercises in order.

    A learner who handed in nothing has a ``missing`` submission for each exercise. Never raises for one learner.

    Raises:
        IntakeError: ``folder`` is not a folder, holds no learner, or is one learner's own folder.
    """
    folder = Path(folder)
    return _compiled([s for learner in _learners(folder, course) for s in _handed_in(learner, course)])


def strays(folder: Path | str) -> list[str]:
    """Entries beside the learners' folders, which no learner answers to: loose files, links, an archive beside the
    folder of the same name."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=by_name)
    learners = {e.name for e in _of_learners(found)}
    return [printable(e.name) for e in found if e.name not in learners and not is_junk(e.name)]


def read_learner(folder: Path, course: Course) -> list[Submission]:
    """The submissions of the learner whose folder or archive this is, one for each available exercise. Never raises."""
    return _compiled(_handed_in(folder, course))


def _handed_in(folder: Path, course: Course) -> list[Submission]:
    """What :func:`read_learner` returns, not compiled yet."""
    packed = archive.is_archive(folder.name) and not folder.is_dir()
    learner = printable(archive.stem(folder.name) if packed else folder.name)
    try:
        if not packed:
            return _read_learner(folder, learner, course)
        with tempfile.TemporaryDirectory(prefix="kata-archive-") as unpacked:
            left_out = archive.unpack(folder, Path(unpacked))
            read = _read_learner(Path(unpacked), learner, course)
        return [replace(s, ignored=cut([*s.ignored, *left_out])) for s in read]
    except archive.ArchiveError as error:
        cause = f"{printable(folder.name)}: {error}."
        return [Submission(learner, e.id, file=printable(folder.name), cause=cause) for e in course.available]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        cause = f"The folder cannot be read ({type(error).__name__}: {printable(str(error))[:200]}). Hand it in again."
        return [Submission(learner, e.id, file=learner, cause=cause) for e in course.available]


def read_file(path: Path | str, exercise: Exercise, course: Course, *, learner: str = "you") -> Submission:
    """One file, named by the person who asks, as the submission for ``exercise``. Links are followed. Never raises."""
    path = Path(path)
    entry = Entry(path.resolve(), (path.name,), "file")
    read = _read(entry, Submission(learner, exercise.id, file=entry.shown), course)
    return _compiled([read])[0]


def _is_learner(entry: os.DirEntry) -> bool:
    return entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", "__")) and not entry.is_symlink()


def _of_learners(entries: list[os.DirEntry]) -> list[os.DirEntry]:
    """Of what lies in the folder of a class, the folders and archives of learners; a folder comes before an archive."""
    folders = [e for e in entries if _is_learner(e)]
    taken = {e.name for e in folders}
    packed = []
    for e in entries:
        if archive.is_archive(e.name) and not e.name.startswith(".") and e.is_file(follow_symlinks=False):
            if archive.stem(e.name) not in taken:
                packed.append(e)
            taken.add(archive.stem(e.name))
    return sorted([*folders, *packed], key=by_name)


def _learners(folder: Path, course: Course) -> list[Path]:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise IntakeError(f"{folder} {what}; give a folder that holds one folder per learner")
    with os.scandir(folder) as entries:
        found = sorted(entries, key=by_name)
    names = {e.name for e in found}
    modules = {f"module{m.number}" for m in course.modules}
    if names & (modules | {"exercises"}) or any(
        f"{e.slug}{s}" in names for e in course.exercises for s in (".py", ".ipynb")
    ):
        raise IntakeError(
            f"{folder} looks like the folder of one learner; give the folder above, which holds one folder per learner"
        )
    learners = [Path(e.path) for e in _of_learners(found)]
    if not learners:
        raise IntakeError(f"{folder} holds no folder; give a folder that holds one folder (or archive) per learner")
    return learners


def _read_learner(folder: Path, learner: str, course: Course) -> list[Submission]:
    entries, notes = walk(folder)
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
    reads = [(f, _read(f, replace(submission, file=f.shown), course)) for f in python or files]
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


def _read(entry: Entry, submission: Submission, course: Course) -> Submission:
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


def _compiled(submissions: list[Submission]) -> list[Submission]:
    """The submissions, those that the Python compiler refuses made unreadable."""
    done = list(submissions)
    ready = [i for i, s in enumerate(done) if s.source is not None]
    for first in range(0, len(ready), _COMPILED_AT_ONCE):
        batch = ready[first : first + _COMPILED_AT_ONCE]
        faults = syntax_faults([done[i].source for i in batch], [done[i].file.rpartition("/")[2] for i in batch])
        for i, fault in zip(batch, faults, strict=True):
            if fault is not None:
                done[i] = replace(done[i], source=None, cause=fault.cause, evidence=fault.evidence)
    return done


def _missing(exercise: Exercise, ignored: list[Entry]) -> str:
    absent = f"No {exercise.slug}.py was handed in"
    for entry in similar_names(exercise, ignored):
        return f"{absent}, but {entry.shown}: is that it? Rename it to {exercise.slug}.py and hand it in again."
    return f"{absent}."
