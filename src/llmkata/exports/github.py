"""The result that ``classroom-resources/autograding-grading-reporter`` reads: a step output, base64 of one JSON object.

Source: the reporter's README and ``src/main.js``: it decodes ``<ID>_RESULTS``, adds up ``tests[].score`` against
``max_score``, and fails the job where ``status`` is ``fail`` or ``error``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from .items import FailOn, Item, merged, verdict
from .layout import folder_of, number

if TYPE_CHECKING:
    from .people import People
    from .results import Results

VERSION = 1
#: Linux passes a process no environment variable above 128 KiB, and the reporter gets the result as one.
MOST_ENCODED = 120_000
#: Characters of a text.
_MOST_TEXT = 600


def reporter_document(
    lines: Sequence[Item], *, fail_on: FailOn = "core", most_text: int = _MOST_TEXT
) -> dict[str, Any]:
    """The object, from the lines of one learner. Scores are whole numbers where they are whole."""
    return {
        "version": VERSION,
        "status": verdict(lines, fail_on),
        "max_score": number(sum(item.max_score for item in lines)),
        "tests": [_test(item, most_text) for item in lines],
    }


def failed_document(message: str) -> dict[str, Any]:
    """The object where nothing could be graded at all."""
    return {"version": VERSION, "status": "error", "message": message[:_MOST_TEXT], "max_score": 0, "tests": []}


def to_json(document: dict[str, Any]) -> str:
    """The object as people read it."""
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def step_output(lines: Sequence[Item], *, fail_on: FailOn = "core") -> str:
    """The value of the step's output ``result``: standard base64, no line breaks, at most ``MOST_ENCODED`` characters.

    Where checks one by one would be too many, messages are cut, then tasks are told, then exercises; the scores add up
    to the same. Raises ValueError where that is not enough (some 500 exercises).
    """
    by_task, by_exercise = merged(lines, by_task=True), merged(lines, by_task=False)
    for told in (lines, by_task, by_exercise):
        for most_text in (_MOST_TEXT, 160, 0):
            document = reporter_document(told, fail_on=fail_on, most_text=most_text)
            encoded = encode(document | {"status": verdict(lines, fail_on)})
            if len(encoded) <= MOST_ENCODED:
                return encoded
    raise ValueError(f"{len(by_exercise)} exercises are too many for one result: name fewer")


def encode(document: dict[str, Any]) -> str:
    """Base64 of the object."""
    return base64.b64encode(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()).decode("ascii")


def _test(item: Item, most_text: int) -> dict[str, Any]:
    test = {
        "name": item.name[:_MOST_TEXT],
        "status": item.status,
        "message": item.message[:most_text],
        "test_code": item.command,
        "filename": item.file,
        "line_no": item.line,
        "duration": round(item.seconds, 3),
        "score": number(item.score),
    }
    return test | ({"task_id": item.task} if item.task else {})


def files(view: Results, people: People | None) -> Iterator[tuple[str, bytes]]:
    """``NAME/result.json``, and ``NAME/result.txt`` with the base64 that a step gives out as ``result``."""
    fail_on = view.course.policy.ci.fail_on
    for learner in view.cards:
        lines = view.lines(learner)
        yield f"{folder_of(learner)}/result.json", to_json(reporter_document(lines, fail_on=fail_on)).encode()
        yield f"{folder_of(learner)}/result.txt", step_output(lines, fail_on=fail_on).encode()
