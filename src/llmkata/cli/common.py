"""What every command needs: the course, the state folder, and one way to say what is wrong."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise

#: Exit statuses, the same for every command.
PASSED, FAILED, UNUSABLE = 0, 1, 2
#: Name under which a person's own work is recorded.
YOU = "you"


class UsageFault(Exception):
    """Something the person at the keyboard can put right; ``step`` is the command to try next."""

    def __init__(self, message: str, step: str = "") -> None:
        super().__init__(message)
        self.step = step


def fail(message: str, step: str = "") -> NoReturn:
    """Stop with ``message`` and the next command, exit status 2."""
    raise UsageFault(message, step)


def course_of(context: typer.Context) -> Course:
    """The course of ``--course``, else of the nearest folder upwards, else the one this package lies in."""
    from llmkata.course import load_course

    given = context.find_root().params.get("course")
    return load_course(given if given is not None else _nearest_root())


def exercise_of(course: Course, name: str | None) -> Exercise:
    """The exercise of that name, or the one to work on next; stops with a message where it is unknown or only planned."""
    if name is None:
        from llmkata.cli.own import next_exercise
        from llmkata.cli.verify import own_verified

        known = own_verified(course, lambda text: typer.echo(text, err=True))
        exercise = next_exercise(course, known.records, known.broken)
        if exercise is None:
            fail("everything that is available is mastered: name an exercise", f"{prog()} list")
        return exercise
    exercise = course.exercise(name)
    if not exercise.available:
        fail(f"{exercise.number} {exercise.title} ({exercise.id}) is planned: it is not written yet", f"{prog()} start")
    return exercise


def state_dir(course: Course) -> Path:
    """``.kata`` of the course: hints opened, records of one's own checks."""
    return course.root / ".kata"


def prog() -> str:
    """How this program is called here, for commands that can be pasted."""
    from llmkata.course.launcher import launcher

    return launcher()


def again() -> str:
    """The command as it was given, to be run again once a file is mended."""
    return shlex.join([prog(), *sys.argv[1:]])


def shown(path: Path) -> str:
    """A path as short as it can be pasted: relative to the current folder where it lies in it."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return str(path)


def _nearest_root() -> Path:
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "course.yaml").is_file():
            return folder
    shipped = Path(__file__).resolve().parents[3]
    if (shipped / "course.yaml").is_file():
        return shipped
    fail(f"no course.yaml in {here} or above it", "cd into the course's folder, or kata --course PATH ...")
