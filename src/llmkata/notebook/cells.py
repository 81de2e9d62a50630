"""Cells of a notebook (nbformat 4.5) with the metadata of nbgrader (schema 3).

Source: https://nbgrader.readthedocs.io, "The cell metadata".
"""

from __future__ import annotations

import json
import re
from typing import Any

Cell = dict[str, Any]


def markdown(name: str, text: str) -> Cell:
    """A given text."""
    return {"cell_type": "markdown", "id": ident(name), "metadata": _nbgrader(name, locked=True),
            "source": _lines(text.strip("\n"))}  # fmt: skip


def code(name: str, text: str, *, locked: bool = False, solution: bool = False, points: float | None = None) -> Cell:
    """A cell of code: given (``locked``), for the learner to fill in (``solution``), or graded (``points``)."""
    metadata = _nbgrader(name, locked=locked, solution=solution, points=points)
    return {"cell_type": "code", "id": ident(name), "metadata": metadata, "execution_count": None, "outputs": [],
            "source": _lines(text)}  # fmt: skip


def document(cells: list[Cell], exercise: str) -> str:
    """The notebook as JSON."""
    return json.dumps({
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "llmkata": {"exercise": exercise},
        },
        "nbformat": 4, "nbformat_minor": 5,
    }, indent=1, ensure_ascii=False) + "\n"  # fmt: skip


def ident(name: str) -> str:
    """An id for nbformat (at most 64 of A-Z a-z 0-9 - _) and for nbgrader."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)[:64]


def unique(name: str, used: set[str]) -> str:
    """The id of a cell of the learner's file; ``name-2`` where an earlier cell defines it too (overloads)."""
    found, number = f"stub-{name}", 1
    while found in used:
        number += 1
        found = f"stub-{name}-{number}"
    used.add(found)
    return found


def _nbgrader(name: str, *, locked: bool = False, solution: bool = False, points: float | None = None) -> dict[str, Any]:
    grade = points is not None
    return {"nbgrader": {"grade": grade, "grade_id": ident(name), "locked": locked, **({"points": points} if grade else {}),
                         "schema_version": 3, "solution": solution, "task": False}}  # fmt: skip


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
