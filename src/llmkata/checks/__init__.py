"""What graders and visible checks import."""

from llmkata.outside.probe import probe
from llmkata.outside.remote import MissingName, RemoteError

from . import strategies as sk
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
