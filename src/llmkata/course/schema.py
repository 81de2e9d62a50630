"""What ``course.yaml`` may say: its keys, their types, and the closed lists."""

from __future__ import annotations

from re import fullmatch
from typing import Any

import yaml

from .faults import did_you_mean
from .grading import GRADING
from .nodes import BAD, REQUIRED, Reader, boolean, choice, entries, integer, listing, located, mapping, number, text

SCHEMA = "llmkata/course/v1"
FEEDBACK_LEVELS = ("outcome", "hint", "diagnosis", "counterexample")


def _environment(reader: Reader, node: yaml.Node, field: str) -> Any:
    pairs = entries(reader, node, field)
    if pairs is BAD:
        return BAD
    values = {}
    for key, (key_node, value_node) in pairs.items():
        if not fullmatch(r"[A-Za-z_]\w*", key):
            reader.fault(key_node, field, f'"{key}" is no name of an environment variable')
        values[key] = text(reader, value_node, f"{field}.{key}")
    return values


#: The closed list of grants: what a sandbox may be opened for.
GRANTS = {
    "threads": integer(1), "processes": integer(1), "exec": choice("python"), "loopback": boolean, "server": boolean,
    "env": _environment, "memory": integer(1), "cpu": number(0), "wall": number(0),
}


def _grants(reader: Reader, node: yaml.Node, field: str) -> Any:
    pairs = entries(reader, node, field)
    if pairs is BAD:
        return BAD
    values = {}
    for key, (key_node, value_node) in pairs.items():
        if key not in GRANTS:
            reader.fault(key_node, field, f'unknown grant "{key}"{did_you_mean(key, GRANTS)}')
        else:
            values[key] = GRANTS[key](reader, value_node, f"{field}.{key}")
    return values


_HOURS = mapping({"core": (number(0), REQUIRED), "total": (number(0), REQUIRED)})
_TASK = mapping({
    "number": (integer(1), REQUIRED), "title": (text, REQUIRED), "tier": (choice("core", "stretch"), REQUIRED),
})
_CRITERION = mapping({"name": (text, REQUIRED), "points": (number(0), REQUIRED), "about": (text, "")})

_EXERCISE = mapping({
    "number": (located(text), REQUIRED), "slug": (located(text), REQUIRED), "title": (text, REQUIRED),
    "mission": (text, REQUIRED), "difficulty": (integer(1, 5), REQUIRED), "hours": (located(_HOURS), REQUIRED),
    "prerequisites": (listing(located(text)), ()), "weight": (number(0), 1.0),
    "profile": (choice("base", "optim", "matplotlib", "transformers", "text", "numba"), "base"), "grants": (_grants, {}),
    "components": (listing(located(text)), ()), "status": (located(choice("available", "planned")), REQUIRED),
    "tasks": (listing(located(_TASK)), ()), "rubric": (listing(located(_CRITERION)), ()),
})
_MODULE = mapping({
    "number": (located(integer(0)), REQUIRED), "title": (text, REQUIRED), "objective": (text, REQUIRED),
    "exercises": (listing(_EXERCISE), REQUIRED),
})
_CI = mapping({
    "fail_on": (choice("core", "any", "never"), "core"), "attempts": (integer(1), None), "hours": (number(0), 24.0),
})
_FEEDBACK = mapping({
    **{key: (choice(*FEEDBACK_LEVELS), REQUIRED) for key in ("visible", "hidden")},
    "show_hidden": (choice("always", "after_deadline", "never"), "always"),
})
_PERCENT = number(0, 100, open_end=False)
_HINTS = mapping({"price": (_PERCENT, REQUIRED), "free": (integer(0), 0), "at_most": (_PERCENT, 100.0)})
_POLICY = mapping({
    "isolation": (choice("process", "sandbox"), REQUIRED), "seed_env": (text, REQUIRED),
    "feedback": (_FEEDBACK, REQUIRED),
    "weights": (mapping({key: (number(0, open_end=False), REQUIRED) for key in ("core", "stretch")}), REQUIRED),
    "ci": (_CI, {}), "grading": (GRADING, {}), "hints": (_HINTS, {}),
})
_LIMITS = mapping({
    "wall": (number(0), REQUIRED), "call": (number(0), REQUIRED), "cpu": (number(0), REQUIRED),
    "memory": (integer(1), REQUIRED), "output": (integer(1), REQUIRED), "submission": (integer(1), REQUIRED),
})
COURSE = mapping({
    "schema": (choice(SCHEMA), REQUIRED), "title": (text, REQUIRED), "policy": (_POLICY, REQUIRED),
    "limits": (_LIMITS, REQUIRED), "modules": (listing(_MODULE), REQUIRED),
})
