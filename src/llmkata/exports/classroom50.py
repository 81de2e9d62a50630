"""Classroom 50's ``result.json``, schema ``classroom50/result/v1``.

Its runner tells who, what and where in the environment, runs the autograder in the checkout, reads the file it leaves
there and stamps owner, kind of assignment and times itself.
"""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .formats import ExportError
from .items import Item
from .layout import folder_of, number

if TYPE_CHECKING:
    from llmkata.grading.csvfile import Row

    from .people import People
    from .results import Results

SCHEMA = "classroom50/result/v1"
#: What the runner sets; ``REVIEW_URL`` may be missing, then it is ``COMMIT_URL``.
REQUIRED = ("CLASSROOM", "ASSIGNMENT", "SUBMISSION_TAG", "COMMIT_URL", "RELEASE_URL")


@dataclass(frozen=True)
class Submission:
    """Which submission a result is of, as the runner tells it."""

    classroom: str
    assignment: str
    #: ``submit/<UTC>-<sha>``
    tag: str
    commit: str
    release: str
    review: str


def submission_of(environment: Mapping[str, str]) -> Submission | None:
    """The submission that the environment names, or None where this is not a run of Classroom 50.

    Raises ValueError where it is one (``SUBMISSION_TAG`` is set) and a variable is missing.
    """
    if not environment.get("SUBMISSION_TAG"):
        return None
    missing = [name for name in REQUIRED if not environment.get(name)]
    if missing:
        raise ValueError(f"SUBMISSION_TAG is set, so Classroom 50 is at work, but {', '.join(missing)} is not set")
    values = [environment[name] for name in REQUIRED]
    return Submission(*values, review=environment.get("REVIEW_URL") or environment["COMMIT_URL"])


def result_document(
    lines: Sequence[Item], submission: Submission, *, at: datetime.datetime | None = None
) -> dict[str, Any]:
    """The object of ``result.json``, from the lines of one learner. Lines worth nothing are left out: they would read
    as tests that nobody can fail. ``at``: when it was graded (by default now).
    """
    at = (at or datetime.datetime.now(datetime.UTC)).astimezone(datetime.UTC)
    counted = [item for item in lines if item.max_score or item.score]
    return {
        "schema": SCHEMA,
        "classroom": submission.classroom,
        "assignment": submission.assignment,
        "submission": submission.tag,
        "commit": submission.commit,
        "release": submission.release,
        "review": submission.review,
        "datetime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "score": number(sum(item.score for item in counted)),
        "max-score": number(sum(item.max_score for item in counted)),
        "tests": [
            {
                "test-name": item.name,
                "passed": item.score >= item.max_score,
                "score": number(item.score),
                "max-score": number(item.max_score),
            }
            for item in counted
        ],
    }


def to_json(document: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/result.json`` for each learner whose submission is known: from the list of people, which has columns
    classroom, assignment, submission, commit, release and review, or for a single learner from the environment.

    Raises ExportError where neither tells.
    """
    by_row = people.matched(view.cards) if people else {}
    if people and not people.has("classroom", "assignment", "submission", "commit", "release"):
        raise ExportError(f"{people.path}:1: needs columns classroom, assignment, submission, commit, release (and review)")
    for learner in view.cards:
        if people and learner not in by_row:
            continue
        submission = _of_row(by_row[learner]) if people else _of_environment(len(view.cards))
        document = result_document(view.lines(learner), submission, at=_graded_at(view, learner))
        yield f"{folder_of(learner)}/result.json", to_json(document).encode()


def _of_row(row: Row) -> Submission:
    values = [row.get(name) for name in ("classroom", "assignment", "submission", "commit", "release")]
    return Submission(*values, review=row.get("review") or row.get("commit"))


def _of_environment(learners: int) -> Submission:
    try:
        submission = submission_of(os.environ) if learners == 1 else None
    except ValueError as error:
        raise ExportError(str(error)) from None
    if submission is None:
        raise ExportError(
            "Classroom 50 wants to know which commit was graded: give a CSV file as --people with columns learner, "
            "classroom, assignment, submission, commit, release, review; or set the variables of its runner and --learner"
        )
    return submission


def _graded_at(view: Results, learner: str) -> datetime.datetime | None:
    try:
        at = datetime.datetime.fromisoformat(view.cards[learner].graded_at)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=datetime.UTC)
