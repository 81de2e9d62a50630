"""The submission in this process, for the learner's own eyes: no worker, nothing isolated."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from llmkata.wire import TRUSTED, Decoder, Kind

from .link import Link
from .remote import RemoteError


class LoopbackLink(Link):
    """The submission runs in this process: breakpoints and prints work, nothing is isolated. For the learner only.

    There is no deadline either: a loop without end is the learner's to interrupt.
    """

    transport = "loopback"

    def _start(self) -> None:
        from llmkata.inside.session import Session

        self._session = Session(self._from_session, None)

    def _exchange(self, request: bytes | bytearray) -> tuple[Kind, bytearray]:
        return self._session.answer(request)

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
