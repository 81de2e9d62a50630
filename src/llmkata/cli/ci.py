"""``kata ci``: what was begun, judged in continuous integration, and told where the runner looks for it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, PASSED, UNUSABLE, YOU, course_of, exercise_of, fail, prog, shown, state_dir
from llmkata.cli.hidden import has_hidden
from llmkata.cli.hold import hold
from llmkata.cli.options import Isolation, IsolationOption
from llmkata.cli.told import Run, tell

if TYPE_CHECKING:
    from llmkata.course import Exercise
    from llmkata.grading.allowance import Answer
    from llmkata.grading.intake import Submission
    from llmkata.records import ExerciseRecord, RecordFile


#: Seconds to wait for another run on the same ledger of attempts.
_PATIENCE = 900.0


class FailOn(StrEnum):
    """What makes a run a failure."""

    core = "core"
    any = "any"
    never = "never"


def ci(
    context: typer.Context,
    exercises: Annotated[
        list[str] | None, typer.Argument(help="What counts here; default: all exercises.", metavar="[EXERCISE]...")
    ] = None,
    fail_on: Annotated[
        FailOn | None, typer.Option(help="What fails the run; default: policy.ci.fail_on of course.yaml, else core.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Records, summary and results go here; default .kata/ci.", metavar="DIR")
    ] = None,
    work: Annotated[
        Path | None, typer.Option(help="A learner's folder or archive, in place of the exercises here.", metavar="DIR")
    ] = None,
    learner: Annotated[str, typer.Option(help="Whose work it is.", metavar="NAME")] = YOU,
    isolation: IsolationOption = Isolation.sandbox,
) -> None:
    """Judge what was begun, as in continuous integration: visible checks, and the hidden ones where they are present.

    Under GitHub Actions: a job summary, remarks beside the lines that failed, and the step output 'result' for the
    autograding reporter. Where Classroom 50 runs it, its result.json. A task that was not begun fails nothing.

    Exit status: 0 by the policy nothing failed; 1 something did; 2 it could not be judged, or wrong usage.
    """
    course = course_of(context)
    chosen = [exercise_of(course, name) for name in exercises] if exercises else list(course.available)
    folder = out or state_dir(course) / "ci"
    run = Run(course, learner, chosen)
    policy = fail_on.value if fail_on else course.policy.ci.fail_on
    # Two at a time would both count the attempts before either has written its own.
    with hold(folder, f"{prog()} ci --out {shown(folder)}", patience=_PATIENCE):
        _judge(run, _submissions(run, work), folder, isolation)
        status = tell(run, folder, policy)
    raise typer.Exit({"pass": PASSED, "fail": FAILED, "error": UNUSABLE}[status])


def _submissions(run: Run, work: Path | None) -> list[Submission]:
    """The files of the chosen exercises that are no stub any more."""
    from llmkata.authoring.release.deliver import given_out
    from llmkata.authoring.stub import is_stub
    from llmkata.exports.items import stub_path
    from llmkata.grading.intake import read_file, read_learner

    if work is None:
        begun = [e for e in run.exercises if e.stub.is_file() and not given_out(run.course.root, stub_path(e))]
        read = [read_file(e.stub, e, run.course, learner=run.learner) for e in begun]
    else:
        if not work.exists():
            fail(f"{shown(work)} does not exist", f"{prog()} ci --work LEARNER_DIR --learner NAME")
        chosen = {e.id for e in run.exercises}
        read = [s for s in read_learner(work, run.course) if s.exercise_id in chosen and s.file]
    return [s for s in read if s.source is None or not is_stub(run.course.exercise(s.exercise_id), s.source)]


def _judge(run: Run, submissions: list[Submission], folder: Path, isolation: Isolation) -> None:
    """Fill ``run.records``; what is new is appended to ``folder/records.jsonl``, the ledger of attempts."""
    from llmkata.cli.check import judge
    from llmkata.cli.progress import Progress
    from llmkata.forks import CAN_FORK
    from llmkata.grading.isolation import TooLittleIsolation, require
    from llmkata.records import RecordFile, State

    ledger = RecordFile(folder / "records.jsonl")
    if CAN_FORK and any(has_hidden(run.course.exercise(s.exercise_id)) for s in submissions):
        try:
            require(run.course, isolation.value)
        except TooLittleIsolation as error:
            fail(str(error))
    with Progress("exercises judged", len(submissions)) as progress:
        for read in submissions:
            exercise = run.course.exercise(read.exercise_id)
            run.sources[exercise.id] = (read.source or b"").decode("utf-8", "replace")
            answer = _asked(run, ledger, read, exercise)
            if answer is not None and not answer.allowed:
                run.records.append(_standing(run, ledger, exercise, answer))
                progress()
                continue
            record = judge(run.course, exercise, read, isolation=isolation)
            record.learner = run.learner
            progress()
            if record.state is State.not_started:  # a stub with other comments
                continue
            if answer is not None:
                record.notes.append(f"Attempt {answer.used} of {_limit(run)}; {answer.total} in all.")
            ledger.append(record)
            run.records.append(record)


def _asked(run: Run, ledger: RecordFile, read: Submission, exercise: Exercise) -> Answer | None:
    """Whether hidden checks may be asked; None where they are not there, or may be asked without end."""
    import hashlib

    from llmkata.grading.allowance import Allowance, ask

    policy = run.course.policy.ci
    if policy.attempts is None or read.source is None or not has_hidden(exercise):
        return None
    return ask(
        Allowance(policy.attempts, policy.hours),
        ledger.read().records,
        learner=run.learner,
        exercise=exercise.id,
        submission_sha=hashlib.sha256(read.source).hexdigest(),
    )


def _standing(run: Run, ledger: RecordFile, exercise: Exercise, answer: Answer) -> ExerciseRecord:
    """The result that stands where all attempts are used up, with a note that says so."""
    from llmkata.grading.allowance import is_attempt
    from llmkata.records import latest

    record = latest(filter(is_attempt, ledger.read().records))[run.learner, exercise.id]
    record.notes.append(
        f"Not judged again: the attempts allowed ({_limit(run)}) are used up. This is the result of "
        f"{record.graded_at}; the next attempt is judged from {answer.next_at:%Y-%m-%d %H:%M} UTC on."
    )
    return record


def _limit(run: Run) -> str:
    policy = run.course.policy.ci
    return f"{policy.attempts} within {policy.hours:g} h"
