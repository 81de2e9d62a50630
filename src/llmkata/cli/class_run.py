"""The folder of a run as commands that change something by hand see it: records, log, grades before and after."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, fail, prog, shown
from llmkata.cli.report import RECORDS, changes_of, log_of, records_of, roster_of

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.gradebook.changes import Change
    from llmkata.gradebook.moves import Grades
    from llmkata.grading.roster import Roster
    from llmkata.records import ExerciseRecord

InOption = Annotated[Path, typer.Option("--in", help="The --out folder of a 'kata grade'.", metavar="DIR")]
LearnerArgument = Annotated[str, typer.Argument(help="Id, or name or address of the roster.", metavar="LEARNER")]
ExerciseArgument = Annotated[str, typer.Argument(help="For example module2/self_attention, or 2.1.", metavar="EXERCISE")]
REPORT = Path("report")


@dataclass
class ClassRun:
    """A graded class. ``course`` holds the roster's extensions and counts what somebody began."""

    course: Course
    folder: Path
    roster: Roster | None
    records: list[ExerciseRecord]
    changes: list[Change]

    @cached_property
    def now(self) -> Grades:
        """What counts, frozen grades as they were frozen."""
        return self.grades(self.changes)

    @cached_property
    def live(self) -> Grades:
        """What would count if nothing were frozen."""
        return self.grades(self.changes, frozen=False)

    def grades(self, changes: Sequence[Change], *, frozen: bool = True) -> Grades:
        """The grades under these changes."""
        from llmkata.gradebook.in_force import with_changes
        from llmkata.gradebook.moves import grades_of

        return grades_of(with_changes(self.course, changes, frozen=frozen), self.records)

    def planned(self, *changes: Change, frozen: bool = True) -> Grades:
        """The grades as they would be after these changes, too."""
        import msgspec

        last = max((change.number for change in self.changes), default=0)
        numbered = [msgspec.structs.replace(c, number=last + n) for n, c in enumerate(changes, start=1)]
        return self.grades([*self.changes, *numbered], frozen=frozen)

    def exercise(self, name: str) -> Exercise:
        """The exercise of that name; stops where nobody began it, since it counts nowhere."""
        exercise = self.course.exercise(name)
        if not exercise.available:
            fail(f"nobody began {exercise.number} {exercise.title}: it counts nowhere", f"{prog()} report {shown(self.folder)}")
        return exercise

    def learner(self, name: str) -> str:
        """The learner of that id, name or address; stops with the nearest where there is none."""
        return learner_of(name, {learner for learner, _ in self.now.records}, self.roster, self.folder)

    def record(self, learner: str, exercise: Exercise) -> ExerciseRecord:
        """The record that counts; stops where there is none."""
        record = self.live.records.get((learner, exercise.id))
        if record is None:
            fail(f"{learner} has no record of {exercise.number} {exercise.title}", f"{prog()} grade submissions/ --out {shown(self.folder)}")
        return record

    def worth(self, exercise: Exercise) -> float:
        """Points to be had in an exercise, as its records or else its graders tell."""
        from llmkata.cli.hidden import maxima

        most = max((r.max_points for (_, name), r in self.live.records.items() if name == exercise.id), default=0.0)
        return most or maxima([exercise], self.records).get(exercise.id, 0.0)

    def change(self, *changes: Change) -> None:
        """Write changes into the log and tell what they move, and what waits because it is frozen."""
        from llmkata.cli.moved import tell_changes

        now, live = self.now, self.live
        tell_changes(self, self.add(*changes), now, live)

    def add(self, *changes: Change) -> list[Change]:
        """Write changes into the log. They get their numbers there."""
        from llmkata.gradebook.changes import ChangeError

        try:
            made = log_of(self.folder).append(*changes)
        except ChangeError as error:
            fail(str(error))
        except OSError as error:
            fail(f"cannot write to {shown(self.folder)}: {error.strerror or error}")
        self.changes = changes_of(self.folder)
        for known in ("now", "live"):
            self.__dict__.pop(known, None)
        return made


def learner_of(name: str, known: Collection[str], roster: Roster | None, folder: Path) -> str:
    """Which of ``known`` somebody means by an id, a name or an address of the roster; stops with the nearest where that is
    nobody, or several.
    """
    if name in known:
        return name
    folded = name.casefold().strip()
    people = [p for p in roster.people if p.id in known] if roster else []
    found = {learner for learner in known if learner.casefold() == folded}
    found = found or {p.id for p in people if folded in (p.name.casefold(), p.email.casefold())}
    if len(found) == 1:
        return found.pop()
    near = sorted(found) or sorted({p.id for p in people if folded and folded in p.name.casefold()})[:3]
    near = near or get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    called = {p.id: f"{p.id} ({p.name})" if p.name else p.id for p in people}
    meant = f"; did you mean {' or '.join(called.get(learner, learner) for learner in near)}?" if near else ""
    fail(f"{shown(folder)}: {name!r} {'means several' if found else 'is nobody there'}{meant}")


def open_class(context: typer.Context, folder: Path) -> ClassRun:
    """The class in the folder of a run; stops where there is none."""
    from llmkata.gradebook.begun import begun
    from llmkata.grading.roster import enrolled

    course = course_of(context)
    if not (folder / RECORDS).is_file():
        fail(f"{shown(folder)} holds no {RECORDS}", f"{prog()} grade submissions/ --out {shown(folder)}")
    records = records_of(folder)
    if not records:
        fail(f"{shown(folder / RECORDS)} holds no record that can be read", f"{prog()} report {shown(folder)}")
    roster = roster_of(course, folder)
    course = enrolled(course.narrowed(begun(records)), roster)
    return ClassRun(course, folder, roster, records, changes_of(folder))
