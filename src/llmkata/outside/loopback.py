"""The submission in this process, for the learner's own eyes: no worker, nothing isolated."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from llmkata.wire import TRUSTED, Decoder, Kind

from .link import Link
from .remote import RemoteError


class LoopbackLink(Link):
    """The submission runs in this process: breakpoints and prints work, nothing is isolated. For the learner only.

    There is no deadline either: a loop without end is the learner's to interrupt.
    """

    transport = "loopback"
    #: Exceptions that end the run and are none of the submission's: Ctrl-C, a debugger that was left.
    passing: tuple[type[BaseException], ...] = ()
    #: Whether the frame of the submission that returned last is kept in ``returned``, for a debugger.
    keeps_frames = False
    returned: FrameType | None = None

    def _start(self) -> None:
        from llmkata.inside.session import Session

        self._session = Session(self._from_session, None)

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytearray]:
        with self._watched() if self.keeps_frames else contextlib.nullcontext():
            answer = self._session.answer(request)
        if isinstance(self._session.last_error, self.passing):
            raise self._session.last_error
        return answer

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        def note(frame: FrameType, event: str, _: Any) -> None:
            if event == "return" and frame.f_code.co_filename == self.filename:
                self.returned = frame  # the outermost comes last

        before = sys.getprofile()
        sys.setprofile(note)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _from_session(self, ident: int, args: tuple, kwargs: dict) -> Any:
        kind, body = self._serve_callback(self._session.encode({"id": ident, "args": args, "kwargs": kwargs}),
                                          contextlib.nullcontext())
        return self._session.objects.settle_callback(
            Decoder(body, self._session.objects, TRUSTED).value(), kind is Kind.callback_error, kwargs)

    def _listener(self) -> Any:
        return socket.create_server(("127.0.0.1", 0))

    def _remote_error(self, e: Any) -> RemoteError:
        error = super()._remote_error(e)
        # The learner's own traceback, for pdb and for reading on.
        error.__cause__ = self._session.last_error
        return error
