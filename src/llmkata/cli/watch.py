"""``kata watch``: the loop. Judges on save, shows the first failing check, answers single keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import course_of, exercise_of, prog, shown, state_dir
from llmkata.cli.options import OptionalExercise

if TYPE_CHECKING:
    from llmkata.watch.loop import Watch


def watch(
    context: typer.Context,
    exercise: OptionalExercise = None,
    poll: Annotated[bool, typer.Option("--poll", help="Look for saves instead of being told: network mounts, WSL.")] = False,
) -> None:
    """Rerun the current exercise on every save.

    Keys: h hint, n next exercise, l list, c check everything (hidden checks too), r reset to the stub, s solution (once
    all visible checks pass), q quit. Without a terminal it prints each verdict and takes no keys.
    """
    from llmkata.reports.terminal import console
    from llmkata.watch.loop import Watch

    course = course_of(context)
    found = exercise_of(course, exercise)
    loop = Watch(course, found, actions=_ACTIONS, console=console(), poll=poll)
    loop.run()


#: Exercises listed before and after the current one, at most; lines of the screen that are not for the list.
_AROUND, _OTHER_LINES = 8, 9


def _hint(w: Watch) -> str | None:
    from llmkata.cli.hints import offer, opened_levels

    failing = w.failing()
    if failing is None:
        return "No check has failed."
    if not failing.hints:
        return "This check has no hint; the brief may help."
    name, level = failing.id.rpartition("::")[2], min(w.opened.get(failing.id, 0) + 1, len(failing.hints))
    opened = opened_levels(state_dir(w.course)).get(w.exercise.id, {})
    price = offer(w.course.policy.hints, opened, name, level)
    if not price:
        return _open_hint(w, failing.id, level)
    w.asking = lambda key: _open_hint(w, failing.id, level) if key == "y" else "It stays closed."
    return f"{price} Open it? y/n"


def _open_hint(w: Watch, ident: str, level: int) -> None:
    from llmkata.cli.hints import remember_level

    w.opened[ident] = level
    remember_level(state_dir(w.course), w.exercise.id, ident.rpartition("::")[2], level)


def _next(w: Watch) -> str | None:
    available = list(w.course.available)
    w.turn_to(available[(available.index(w.exercise) + 1) % len(available)])
    return None


def _list(w: Watch) -> str:
    from llmkata.cli.board import sign_of
    from llmkata.cli.verify import own_verified

    known, lines = own_verified(w.course), []
    here = list(w.course.available).index(w.exercise)
    around = max(1, min(_AROUND, (w.console.height - _OTHER_LINES) // 2))
    for e in w.course.available[max(here - around, 0) : here + around + 1]:
        where = known.where(e)
        lines.append(f"{'>' if e is w.exercise else ' '} {sign_of(where)[0]} {e.number:>4} {e.title}: {where}")
    return "\n".join([*lines, f"All of them: {prog()} list"])


def _check(w: Watch) -> str:
    """All checks, in the sandboxed process an instructor uses; the verdict is recorded."""
    import sys

    w.errand([sys.executable, "-m", "llmkata.cli.main", "check", w.exercise.id, "--json"], lambda *said: _checked(w, *said))
    return "checking everything, as an instructor does..."


def _checked(w: Watch, out: bytes, err: bytes) -> None:
    import msgspec

    from llmkata.records import decode
    from llmkata.reports.policy import allowed

    try:
        record = decode(out)
    except msgspec.DecodeError:  # a message in place of a record
        w.note = err.decode("utf-8", "replace")
        return
    level = w.course.policy.feedback.hidden
    record.checks = [c if c.visibility == "visible" else allowed(c, level, "learner") for c in record.checks]
    points = f", {record.points:.4g} of {record.max_points:.4g} points" if record.max_points else ""
    w.show(record, f"checks, hidden ones too{points},")
    w.note = f"All checks were run{points}; recorded. The next save runs the visible ones again."


def _reset(w: Watch) -> str:
    from llmkata.cli.reset import reset_exercise

    def answered(key: str) -> str:
        return f"Your file is now {shown(reset_exercise(w.exercise))}." if key == "y" else "Nothing was changed."

    w.asking = answered
    return "Put the stub back? Your file is kept as a dated copy. y/n"


def _solution(w: Watch) -> str:
    from llmkata.records import State
    from llmkata.watch.judge import first_failure

    if not w.exercise.solution.exists():
        return "This edition comes without solutions."
    passed = w.record is not None and w.record.state is State.graded and first_failure(w.record) is None
    if not passed:
        return f"The solution opens once all visible checks pass; or: {prog()} give-up {w.exercise.id}"
    return f"For comparison: {shown(w.exercise.solution)}"


def _quit(w: Watch) -> None:
    w.over = True


_ACTIONS = {"h": _hint, "n": _next, "l": _list, "c": _check, "r": _reset, "s": _solution, "q": _quit}
