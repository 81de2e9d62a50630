"""What a run of ``kata ci`` came to, told: reports, job summary, annotations, results for other systems, signatures."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmkata.cli.common import fail
from llmkata.cli.hidden import has_hidden, maxima

if TYPE_CHECKING:
    from llmkata.course import Course, Exercise
    from llmkata.exports.items import Item
    from llmkata.records import ExerciseRecord
    from llmkata.reports.view import Scorecard


@dataclass
class Run:
    """What one call judged."""

    course: Course
    learner: str
    exercises: list[Exercise]
    records: list[ExerciseRecord] = field(default_factory=list)
    #: Exercise id -> text of the learner's file.
    sources: dict[str, str] = field(default_factory=dict)


def tell(run: Run, folder: Path, policy: str) -> str:
    """Print the reports, write what others read, and return what the result comes to."""
    from llmkata.cli.signed import sign_results
    from llmkata.exports import github
    from llmkata.exports.items import items, verdict
    from llmkata.reports.summary import to_summary
    from llmkata.reports.view import scorecard

    course = run.course.narrowed({e.id for e in run.exercises})
    lines = items(run.records, course, run.learner, maxima=maxima(run.exercises, run.records), sources=run.sources)
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

    unit = "points" if any(has_hidden(e) for e in run.exercises) else "tasks pass their visible checks"
    what = {"pass": "Nothing that counts failed", "fail": "Something failed", "error": "Something could not be judged"}[
        status
    ]
    begun = len(run.records)
    return f"{what}. {begun} of {len(run.exercises)} exercises begun; {points(scored)} of {points(most)} {unit}."


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
