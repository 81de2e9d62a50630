"""``kata watch``: the loop. Judges on save, shows the first failing check, answers single keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, fail, prog, state_dir

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.watch.loop import Watch


def watch(
    context: typer.Context,
    exercise: Annotated[str | None, typer.Argument(help="Default: the one to work on next.", metavar="[EXERCISE]")] = None,
    poll: Annotated[bool, typer.Option("--poll", help="Look for saves instead of being told: network mounts, WSL.")] = False,
) -> None:
    """Rerun the current exercise on every save.

    Keys: h hint, n next exercise, l list, c check everything (hidden checks too), r reset to the stub, s solution (once
    all visible checks pass), q quit. Without a terminal it prints each verdict and takes no keys.
    """
    from llmkata.cli.own import next_exercise, own_records
    from llmkata.reports.terminal import console
    from llmkata.watch.loop import Watch

    course = course_of(context)
    found = exercise_of(course, exercise) if exercise else next_exercise(course, own_records(course))
    if found is None:
        fail("everything that is available is mastered", f"{prog()} watch EXERCISE")
    loop = Watch(course, found, actions=_ACTIONS, console=console(), poll=poll)
    loop.run()


def _hint(w: Watch) -> str | None:
    from llmkata.cli.hints import remember_level

    failing = w.failing()
    if failing is None:
        return "No check fails."
    if not failing.hints:
        return "This check has no hint; the brief may help."
    w.hints = min(w.hints + 1, len(failing.hints))
    remember_level(state_dir(w.course), w.exercise.id, failing.id.rpartition("::")[2], w.hints)
    return None


def _next(w: Watch) -> str | None:
    available = list(w.course.available)
    w.turn_to(available[(available.index(w.exercise) + 1) % len(available)])
    return None


def _list(w: Watch) -> str:
    from llmkata.cli.own import own_records
    from llmkata.gradebook import standing

    records = own_records(w.course)
    return "\n".join(f"{'>' if e is w.exercise else ' '} {e.number} {e.title}: {standing(records.get(e.id)).value}"
                     for e in w.course.available)


def _check(w: Watch) -> str:
    """All checks, in the sandboxed process an instructor uses; the verdict is recorded."""
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "llmkata.cli.main", "check", w.exercise.id], capture_output=True,
                          text=True, cwd=w.course.root)
    return done.stdout + done.stderr


def _reset(w: Watch) -> str:
    from llmkata.cli.reset import reset_exercise

    w.console.print("Put the stub back? Your file is kept as a dated copy. y/n")
    if not _yes():
        return "Nothing was changed."
    return f"Your file is now {reset_exercise(w.exercise)}."


def _yes() -> bool:
    import sys

    from llmkata.watch.keys import read_key

    return sys.stdin.isatty() and read_key(sys.stdin.fileno()) == "y"


def _solution(w: Watch) -> str:
    from llmkata.records import State
    from llmkata.watch.judge import first_failure

    if not w.exercise.solution.exists():
        return "This edition comes without solutions."
    passed = w.record is not None and w.record.state is State.graded and first_failure(w.record) is None
    if not passed:
        return f"The solution opens once all visible checks pass; or: {prog()} give-up {w.exercise.id}"
    return f"For comparison: {w.exercise.solution}"


def _quit(w: Watch) -> None:
    w.over = True


_ACTIONS = {"h": _hint, "n": _next, "l": _list, "c": _check, "r": _reset, "s": _solution, "q": _quit}
