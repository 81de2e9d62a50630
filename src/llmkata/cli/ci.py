"""``kata ci``: what was begun, judged in continuous integration, and told where the runner looks for it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, PASSED, UNUSABLE, YOU, course_of, exercise_of, fail, prog, shown, state_dir
from llmkata.cli.options import Isolation, IsolationOption

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.exports.items import Item
    from llmkata.grading.allowance import Answer
    from llmkata.grading.intake import Submission
    from llmkata.records import ExerciseRecord, RecordFile
    from llmkata.reports.view import Scorecard


class FailOn(StrEnum):
    """What makes a run a failure."""

    core = "core"
    any = "any"
    never = "never"


@dataclass
class Run:
    """What one call judged."""

    course: Course
    learner: str
    exercises: list[Exercise]
    records: list[ExerciseRecord] = field(default_factory=list)
    #: Exercise id -> text of the learner's file.
    sources: dict[str, str] = field(default_factory=dict)


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
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(course, learner, chosen)
    _judge(run, _submissions(run, work), folder, isolation)
    policy = fail_on.value if fail_on else course.policy.ci.fail_on
    raise typer.Exit({"pass": PASSED, "fail": FAILED, "error": UNUSABLE}[_tell(run, folder, policy)])


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
    from llmkata.grading.isolation import TooLittleIsolation, require
    from llmkata.records import RecordFile, State
    from llmkata.watch.warm import CAN_FORK

    ledger = RecordFile(folder / "records.jsonl")
    if CAN_FORK and any(_has_hidden(run.course.exercise(s.exercise_id)) for s in submissions):
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
    if policy.attempts is None or read.source is None or not _has_hidden(exercise):
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
        f"Not judged again: the attempts allowed ({_limit(run)}) are used up. This is the result of {record.graded_at}; "
        f"the next attempt is judged from {answer.next_at:%Y-%m-%d %H:%M} UTC on."
    )
    return record


def _limit(run: Run) -> str:
    policy = run.course.policy.ci
    return f"{policy.attempts} within {policy.hours:g} h"


def _tell(run: Run, folder: Path, policy: str) -> str:
    """Print the reports, write what others read, and return what the result comes to."""
    from llmkata.cli.signed import sign_results
    from llmkata.exports import github
    from llmkata.exports.items import items, verdict
    from llmkata.reports.summary import to_summary
    from llmkata.reports.view import scorecard

    course = run.course.narrowed({e.id for e in run.exercises})
    lines = items(run.records, course, run.learner, maxima=_maxima(run), sources=run.sources)
    status = verdict(lines, policy)
    headline = _headline(run, lines, status)
    card = scorecard(run.learner, run.records, course)
    summary = to_summary(card, headline)
    _write(folder / "summary.md", summary)
    _write(folder / "result.json", github.to_json(github.reporter_document(lines, fail_on=policy)))
    _print_reports(run)
    _for_the_runner(run, card, summary, github.step_output(lines, fail_on=policy), status)
    _for_classroom50(lines)
    sign_results(
        folder, [folder / name for name in ("summary.md", "result.json", "records.jsonl") if (folder / name).exists()]
    )
    typer.echo(headline)
    return status


def _print_reports(run: Run) -> None:
    """The report of each exercise; under Actions in a group each, with commands switched off in what it holds."""
    import io

    from llmkata.reports.actions import inert
    from llmkata.reports.terminal import check_report, console

    for record in run.records:
        exercise = run.course.exercise(record.exercise)
        told = io.StringIO()
        console(told).print(check_report(record, run.course, source=exercise.stub))
        if _in_actions():
            typer.echo(f"::group::{exercise.number} {exercise.title}\n{inert(told.getvalue())}::endgroup::")
        else:
            typer.echo(told.getvalue())


def _for_the_runner(run: Run, card: Scorecard, summary: str, result: str, status: str) -> None:
    from llmkata.exports.remarks import remarks
    from llmkata.reports.actions import annotations, capped

    if _in_actions():
        typer.echo("\n".join(annotations(remarks(card, run.course, run.sources))))
    _append("GITHUB_STEP_SUMMARY", capped(summary))
    _append("GITHUB_OUTPUT", f"result={result}\nstatus={status}\n")


def _for_classroom50(lines: list[Item]) -> None:
    from llmkata.exports import classroom50

    try:
        submission = classroom50.submission_of(os.environ)
    except ValueError as error:
        fail(str(error))
    if submission is not None:
        _write(Path("result.json"), classroom50.to_json(classroom50.result_document(lines, submission)))


def _headline(run: Run, lines: list[Item], status: str) -> str:
    """One sentence for people, without a word of the submission."""
    if not run.records:
        return "Nothing was begun yet: nothing to judge."
    scored, most = sum(i.score for i in lines), sum(i.max_score for i in lines)
    from llmkata.reports.text import points

    unit = "points" if any(_has_hidden(e) for e in run.exercises) else "tasks pass their visible checks"
    what = {"pass": "Nothing that counts failed", "fail": "Something failed", "error": "Something could not be judged"}[
        status
    ]
    begun = len(run.records)
    return f"{what}. {begun} of {len(run.exercises)} exercises begun; {points(scored)} of {points(most)} {unit}."


def _maxima(run: Run) -> dict[str, float]:
    """What exercises that were not graded are worth, where hidden checks decide."""
    graded = {r.exercise for r in run.records if r.max_points}
    missing = [e for e in run.exercises if e.id not in graded and _has_hidden(e)]
    if not missing:
        return {}
    from llmkata.grading.worth import worth

    try:
        return {e.id: worth(e) for e in missing}
    except RuntimeError as error:
        fail(f"the hidden checks cannot be collected: {error}", f"{prog()} lint")


def _has_hidden(exercise: Exercise) -> bool:
    return exercise.graders_dir.is_dir()


def _in_actions() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def _append(variable: str, text: str) -> None:
    """Add to the file that a variable of the runner names; nothing where it is not set."""
    path = os.environ.get(variable)
    if not path:
        return
    try:
        with open(path, "a", encoding="utf-8", newline="\n") as file:
            file.write(text)
    except OSError as error:
        fail(f"{variable}: {error}")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
