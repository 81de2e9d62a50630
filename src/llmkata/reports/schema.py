"""The JSON Schema of a scorecard, made from its structures.

``python -m llmkata.reports.schema > docs/scorecard.schema.json`` after a change of :mod:`.view` or of the records.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from .view import SCHEMA, Scorecard


def json_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of ``llmkata/scorecard/v1``."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": SCHEMA,
        "description": "The scorecard of one learner, as written by llmkata.",
    } | msgspec.json.schema(Scorecard)


def as_text() -> str:
    """The schema as it stands in the file."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(as_text(), end="")
