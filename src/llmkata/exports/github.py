"""The result that ``classroom-resources/autograding-grading-reporter`` reads: base64 of one JSON object, as a step output.

Source: the reporter's README and ``src/main.js``: it decodes ``<ID>_RESULTS``, adds up ``tests[].score`` against
``max_score``, and fails the job where ``status`` is ``fail`` or ``error``.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from .items import FailOn, Item, verdict

VERSION = 1
#: Linux passes a process no environment variable above 128 KiB, and the reporter gets the result as one.
MOST_ENCODED = 120_000
#: Characters of a text, and what it is cut to where all of it would be too much.
_MOST_TEXT = 600
_CUTS = (200, 80, 0)


def reporter_document(lines: Sequence[Item], *, fail_on: FailOn = "core") -> dict[str, Any]:
    """The object, from the lines of one learner. Scores are whole numbers where they are whole."""
    return {
        "version": VERSION,
        "status": verdict(lines, fail_on),
        "max_score": _number(sum(item.max_score for item in lines)),
        "tests": [_test(item) for item in lines],
    }


def failed_document(message: str) -> dict[str, Any]:
    """The object where nothing could be graded at all."""
    return {"version": VERSION, "status": "error", "message": message[:_MOST_TEXT], "max_score": 0, "tests": []}


def to_json(document: dict[str, Any]) -> str:
    """The object as people read it."""
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def step_output(document: dict[str, Any]) -> str:
    """The value of the step's output ``result``: standard base64, no line breaks, at most ``MOST_ENCODED`` characters.

    Messages are shortened where that is needed; scores and states are whole. Raises ValueError where that is not enough.
    """
    encoded = _encoded(document)
    for most in _CUTS:
        if len(encoded) <= MOST_ENCODED:
            return encoded
        tests = [test | {"name": test["name"][: most or 40], "message": test["message"][:most]} for test in document["tests"]]
        if not most:
            tests = [test | {"test_code": ""} for test in tests]
        encoded = _encoded(document | {"tests": tests})
    if len(encoded) > MOST_ENCODED:
        raise ValueError(f"{len(document['tests'])} tests are too many for one result: name fewer exercises")
    return encoded


def _encoded(document: dict[str, Any]) -> str:
    return base64.b64encode(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()).decode("ascii")


def _test(item: Item) -> dict[str, Any]:
    test = {
        "name": item.name[:_MOST_TEXT], "status": item.status, "message": item.message[:_MOST_TEXT],
        "test_code": item.command, "filename": item.file, "line_no": item.line,
        "duration": round(item.seconds, 3), "score": _number(item.score),
    }
    return test | ({"task_id": item.task} if item.task else {})


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 6)
