"""Does this host offer what the course's policy asks for? Asked once, before anything is graded."""

from __future__ import annotations

from typing import Any

#: What hidden grading needs at least under ``policy.isolation: sandbox``: one of each group.
_NEEDED = {"descriptors": ("close_range",), "files": ("landlock", "mountns"), "system calls": ("seccomp",)}


class TooLittleIsolation(RuntimeError):
    """The host cannot isolate submissions as the course asks; the message says what is missing and what to do."""


def require(course: Any, isolation: str) -> None:
    """Raise TooLittleIsolation when ``isolation`` on this host is below the course's minimum.

    ``isolation="process"`` is the instructor's explicit word and is not questioned.
    """
    if isolation == "process" or course.policy.isolation == "process":
        return
    from llmkata.outside.process import start_process

    process = start_process("base", {"isolation": isolation})
    try:
        layers, missing = set(process.layers), process.missing
    finally:
        process.kill()
    lacking = {what: names for what, names in _NEEDED.items() if not layers & set(names)}
    if lacking:
        reasons = "; ".join(f"{what}: " + ", ".join(f"{n} ({missing.get(n, 'not there')})" for n in names)
                            for what, names in lacking.items())
        raise TooLittleIsolation(f"this host cannot keep submissions away from the graders ({reasons}); see "
                                 "'./kata doctor', or grade with --isolation=process if you trust every submission")
