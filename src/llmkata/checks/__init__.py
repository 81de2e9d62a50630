"""What graders and visible checks import."""

from typing import Any

from llmkata.outside.probe import probe
from llmkata.outside.remote import MissingName, RemoteError

from .budgets import BudgetExceeded, NotJudged
from .compare import GraderFault, Mismatch, check, same
from .errors import expect_error
from .forbid import Forbid
from .marks import gate, hint, needs, points, task
from .misconceptions import misconception

#: Raised when a change breaks graders (docs/design.md, "The grader API").
API_VERSION = 1

__all__ = [
    "API_VERSION", "BudgetExceeded", "Forbid", "GraderFault", "Mismatch", "MissingName", "NotJudged", "RemoteError", "check",
    "expect_error", "gate", "hint", "misconception", "needs", "points", "probe", "same", "sk", "task",
]


def __getattr__(name: str) -> Any:
    # Hypothesis takes a quarter of a second to import, and most visible checks draw nothing.
    if name != "sk":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import strategies

    globals()["sk"] = strategies
    return strategies
