"""Classroom 50's ``result.json``, schema ``classroom50/result/v1``.

Its runner tells who, what and where in the environment, runs the autograder in the checkout, reads the file it leaves
there and stamps owner, kind of assignment and times itself.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .items import Item

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
    counted = [item for item in lines if item.max_score]
    return {
        "schema": SCHEMA,
        "classroom": submission.classroom,
        "assignment": submission.assignment,
        "submission": submission.tag,
        "commit": submission.commit,
        "release": submission.release,
        "review": submission.review,
        "datetime": at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "score": _number(sum(item.score for item in counted)),
        "max-score": _number(sum(item.max_score for item in counted)),
        "tests": [
            {
                "test-name": item.name,
                "passed": item.score >= item.max_score,
                "score": _number(item.score),
                "max-score": _number(item.max_score),
            }
            for item in counted
        ],
    }


def to_json(document: dict[str, Any]) -> str:
    """The file's text."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 6)
