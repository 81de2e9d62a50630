"""Attacks by their number in the catalogue of section 3: each with an honest submission that passes in the same setting,
and, where a defence can be taken away, the same attack going through without it."""

from __future__ import annotations

import sys

import pytest

from llmkata.records import Outcome, State

from ..toy.harness import grade

#: Code of hostile submissions: the channel to the judge, and the object that answers requests.
INSIDE = '''
def _channel():
    import os, stat
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                return fd
        except OSError:
            pass

def _session():
    import gc
    from llmkata.inside.session import Session
    return next(o for o in gc.get_objects() if type(o) is Session)

def _frame(kind, seq, value):
    from llmkata.wire import encode
    from llmkata.wire.frames import _HEADER, _MAGIC
    body = encode({"value": value})
    return _HEADER.pack(_MAGIC, kind, seq, len(body)) + body
'''


def pytest_collection_modifyitems(items):
    for item in items:
        if sys.platform != "linux" and "adversarial" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason="the sandbox is Linux's"))


@pytest.fixture(scope="session")
def honest():
    """The record of an honest solution in the sandboxed worker."""
    record = grade()
    assert record.state is State.graded and record.points == record.max_points == 21
    return record


@pytest.fixture
def earns_nothing():
    """Asserts that a check was failed: neither passed nor taken out of what can be earned."""
    def check(record, name):
        found = [c for c in record.checks if c.id.split("::")[1] == name]
        assert found, f"{record.state}: {record.cause}"
        assert found[0].outcome is Outcome.failed, (found[0].outcome, found[0].cause)
        assert found[0].points == 0 < found[0].max_points and found[0].cause
        return found[0]
    return check
