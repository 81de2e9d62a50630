"""A running check: the context that ``same``, ``check`` and budgets write to."""

from __future__ import annotations

import pytest

from llmkata.checks import context
from llmkata.checks.context import CheckContext


@pytest.fixture
def running():
    """The context of a check of its own; the one before is put back."""
    before = context.current()
    yield context.enter(CheckContext(None, 12345))
    context.enter(before)
