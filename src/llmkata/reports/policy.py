"""The feedback policy: how much of a failed check its reader may see, and when hidden checks are told one by one.

``outcome`` < ``hint`` < ``diagnosis`` < ``counterexample``. Hidden and visible checks have a level each; staff read
everything. What the learner's code printed, and flags, are for staff at every level.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from llmkata.policy import due
from llmkata.records import CheckRecord, Outcome

if TYPE_CHECKING:
    from llmkata.course import Course

Level = Literal["outcome", "hint", "diagnosis", "counterexample"]
Audience = Literal["learner", "staff"]
LEVELS: tuple[Level, ...] = ("outcome", "hint", "diagnosis", "counterexample")


def allowed(check: CheckRecord, level: Level, audience: Audience) -> CheckRecord:
    """The part of a check that its reader may see at this level. Raises ``ValueError`` for an unknown level.

    Outcome, points, title and why a check was not judged are always told.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown feedback level {level!r}: one of {', '.join(LEVELS)}")
    if audience == "staff":
        return check
    reach = LEVELS.index(level)
    failed = check.outcome is Outcome.failed
    return msgspec.structs.replace(
        check,
        cause=check.cause if reach >= 2 or not failed else WITHHELD,
        hints=check.hints if reach >= 1 and check.outcome is not Outcome.passed else [],
        measures=check.measures if reach >= 1 else [],
        diagnosis=check.diagnosis if reach >= 2 else None,
        evidence=check.evidence if reach >= 3 else None,
        staff_output="",
        flags=[],
    )


#: The reason a reader gets where the policy withholds the true one.
WITHHELD = "This check did not pass. The feedback policy of this course tells no more about it."


def withheld(course: Course, module: int, learner: str, now: datetime) -> str:
    """Why a learner is not told of single hidden checks of a module; "" where they are."""
    when = course.policy.feedback.show_hidden
    if when == "always":
        return ""
    if when == "never":
        return "told together in this course"
    deadline = due(course.policy.grading, module, learner)
    if deadline is None or now > deadline:
        return ""
    return f"told one by one after {deadline:%Y-%m-%d %H:%M %Z}"


def in_one(checks: Sequence[CheckRecord], task: int, why: str) -> list[CheckRecord]:
    """The checks of a task with its hidden ones put together into one, which says no more than what they came to;
    unchanged where ``why`` is empty.
    """
    hidden = [check for check in checks if check.visibility != "visible"]
    if not why or not hidden:
        return list(checks)
    counts = [check for check in hidden if not check.excused] or hidden
    outcomes = {check.outcome for check in counts}
    outcome = next((o for o in (Outcome.failed, Outcome.not_judged) if o in outcomes), Outcome.passed)
    failed = [check for check in counts if check.outcome is Outcome.failed]
    untouched = bool(failed) and all(check.not_started for check in failed)
    told = next(check.cause for check in counts if check.outcome is outcome)
    passed = sum(check.outcome is Outcome.passed for check in counts)
    number = f"{len(hidden)} hidden check{'s' if len(hidden) != 1 else ''}"
    together = CheckRecord(
        id=f"hidden::task_{task}", title=f"{number} of this task, {why}.", task=task, tier=hidden[0].tier,
        max_points=sum(check.max_points for check in hidden), points=sum(check.points for check in hidden),
        outcome=outcome,
        cause="" if outcome is Outcome.passed else told if untouched or outcome is Outcome.not_judged
        else f"{passed} of {len(counts)} passed.",
    )  # fmt: skip
    return [*(check for check in checks if check.visibility == "visible"), together]
