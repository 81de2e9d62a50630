"""Leaving a debugger that a check opened: ``q``, Ctrl-D and Ctrl-C at its prompt end the run at once.

pytest ends a run by an ``Exception``, which Hypothesis takes for a failing example and goes on to the next one, and which
the ``except Exception`` of a learner keeps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import pytest


class Left(BaseException):
    """The debugger was left in the middle of a check. Outside the check it is pytest's own exit."""


class Leaving:
    """A plugin beside the learner's."""

    def __init__(self) -> None:
        self._in_check = False

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self) -> Generator[None, object, object]:
        """The file of the learner is imported here."""
        return (yield from self._ending())

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """The check itself."""
        return (yield from self._ending())

    def _ending(self) -> Generator[None, object, object]:
        self._in_check = True
        try:
            return (yield)
        except Left:
            pytest.exit("Quitting debugger")
        finally:
            self._in_check = False

    def pytest_enter_pdb(self, pdb: Any) -> None:
        """Have every way out of this debugger lead out of the run."""
        leave = functools.partial(self._leave, pdb)
        for command in ("q", "quit", "exit", "EOF"):
            setattr(pdb, f"do_{command}", leave)
        pdb.cmdloop = _interruptible(pdb.cmdloop, leave)

    def _leave(self, pdb: Any, line: str = "") -> NoReturn:
        """``line``: what stood after the command."""
        pdb.set_quit()
        if self._in_check:
            raise Left
        pytest.exit("Quitting debugger")


def _interruptible(loop: Callable[..., None], leave: Callable[[], NoReturn]) -> Callable[..., None]:
    """``loop``, which Ctrl-C at the prompt leaves; a command that it interrupts is pdb's own business."""

    @functools.wraps(loop)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            loop(*args, **kwargs)
        except KeyboardInterrupt:
            leave()

    return run
