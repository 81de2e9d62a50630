"""The feedback policy: how much of a failed check its reader may see.

``outcome`` < ``hint`` < ``diagnosis`` < ``counterexample``. Hidden and visible checks have a level each; staff read
everything. What the learner's code printed, and flags, are for staff at every level.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmkata.records import CheckRecord, Outcome

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
