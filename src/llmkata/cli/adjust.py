"""``kata adjust``: points given or taken by hand."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from llmkata.cli.class_run import REPORT, ExerciseArgument, InOption, LearnerArgument, open_class
from llmkata.cli.common import fail, prog

_SIGNED = re.compile(r"[+-]\d{1,6}(\.\d{1,4})?")


def adjust(
    context: typer.Context,
    learner: LearnerArgument,
    exercise: ExerciseArgument,
    points: Annotated[str, typer.Option(help="+3 or -1.5: on top of what the checks give.", metavar="±N")],
    reason: Annotated[str, typer.Option(help="Why; it stands on the card and in the log.", metavar="TEXT")],
    folder: InOption = REPORT,
) -> None:
    """Give a learner points by hand, or take some.

    They survive regrading, come after what lateness costs, and are shown as given by hand, with the reason. Several
    add up. 'kata log --action adjust' lists them, 'kata undo' takes one back.
    """
    from llmkata.gradebook.changes import Action, Change, now, who

    again = f'{prog()} adjust {learner} {exercise} --points +3 --reason "..."'
    if not _SIGNED.fullmatch(points.strip()) or not float(points):
        fail(f"--points {points}: write what is added or taken, with its sign, as +3 or -1.5", again)
    if not reason.strip(" ."):
        fail("--reason must say why: the learner reads it", again)
    run = open_class(context, folder)
    chosen, name = run.exercise(exercise), run.learner(learner)
    run.record(name, chosen)
    run.change(Change(
        0, now(), who(), Action.adjust, chosen.id, learner=name, points=float(points), of=run.worth(chosen),
        text=reason.strip(),
    ))  # fmt: skip
