"""Work spread over forks: in order, with its errors, and not where it does not pay."""

from __future__ import annotations

import os

import pytest

from llmkata.forks import CAN_FORK
from llmkata.reports import spread as module
from llmkata.reports.spread import MANY, spread

forking = pytest.mark.skipif(not CAN_FORK or not hasattr(os, "sched_getaffinity"), reason="nothing is forked there")


@pytest.fixture
def cores(monkeypatch):
    """How many there are, whatever this machine has."""
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)


def where(name: str) -> tuple[str, int]:
    return name, os.getpid()


@forking
def test_many_are_spread_and_come_back_in_order(cores):
    names = [f"l{n}" for n in range(3 * MANY)]
    found = spread(where, names)
    assert [name for name, _ in found] == names
    assert os.getpid() not in {pid for _, pid in found} and len({pid for _, pid in found}) <= 2


def test_few_are_done_here(cores):
    assert {pid for _, pid in spread(where, [f"l{n}" for n in range(MANY - 1)])} == {os.getpid()}
    assert spread(where, []) == []


def test_one_core_is_not_shared(monkeypatch):
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda pid: {0}, raising=False)
    assert {pid for _, pid in spread(where, [f"l{n}" for n in range(MANY)])} == {os.getpid()}


@forking
def test_what_goes_wrong_in_a_fork_is_raised_here(cores):
    def broken(name: str) -> str:
        if name == "l7":
            raise OSError(28, "No space left on device")
        return name

    with pytest.raises(OSError, match="No space left"):
        spread(broken, [f"l{n}" for n in range(MANY)])
    assert spread(str.upper, [f"l{n}" for n in range(MANY)])[:2] == ["L0", "L1"], "the next one is not concerned"
