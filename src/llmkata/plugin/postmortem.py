"""``pytest --pdb`` on an exercise: the debugger opens in the learner's own frame, where it raised or as it returned.

What lies between a check and the file it asks (links, encoders, comparisons) is left out: one ``up`` from the learner's
function stands the check.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

import pytest

from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import RemoteError

from .imported import Unimportable


class PostMortem:
    """A plugin beside the learner's: ``link_of(item)`` is the link of a check, None for a test that is none."""

    def __init__(self, link_of: Callable[[Any], LoopbackLink | None]) -> None:
        self._link_of = link_of
        self._where = ""

    @pytest.hookimpl(hookwrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """Give the debugger the frames that are worth a look; without one it is not opened."""
        outcome = yield
        link = self._link_of(item)
        if link is None or call.excinfo is None:
            return
        self._where = ""
        if not outcome.get_result().failed:
            call.excinfo = None  # not begun, or not judged: nothing went wrong here
            return
        error = call.excinfo.value
        places = list(_places(call.excinfo.tb, str(item.path)))
        raised = _raised(error)
        if raised is not None:
            own = list(_places(raised.__traceback__, link.filename))
            how = f"where it raised {type(raised).__name__}"
        else:
            own = [(link.returned, link.returned.f_lasti, link.returned.f_lineno)] if link.returned is not None else []
            how = "as it returned"
        if not (places := places + own):
            call.excinfo = None
            return
        traceback = None
        for place in reversed(places):
            traceback = TracebackType(traceback, *place)
        call.excinfo = pytest.ExceptionInfo.from_exc_info((type(error), error.with_traceback(traceback), traceback))
        if own:
            frame, _, line = own[-1]
            above = "; u goes up to the check" if len(places) > len(own) else ""
            self._where = f"In {frame.f_code.co_name}, {link.label}:{line}, {how}{above}. p NAME: a value, q: quit."
        else:
            self._where = "In the check. p NAME: a value, q: quit."

    def pytest_enter_pdb(self, config: Any) -> None:
        """Say where one is."""
        if self._where:
            config.get_terminal_writer().line(self._where)
            self._where = ""


def _places(traceback: TracebackType | None, file: str) -> Iterator[tuple[FrameType, int, int]]:
    """(frame, instruction, line) of the entries that lie in ``file``, innermost last."""
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            yield traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno
        traceback = traceback.tb_next


def _raised(error: BaseException | None) -> BaseException | None:
    """The learner's exception that ``error`` is about, if it is about one."""
    while error is not None:
        if isinstance(error, (RemoteError, Unimportable)):
            return error.__cause__
        error = error.__cause__
    return None
