"""The learner's process: enter the sandbox, say hello, answer requests until the channel closes."""

from __future__ import annotations

import os
import sys
from typing import Any

from llmkata.wire import TRUSTED, Channel, Closed, Kind, decode, encode

from .capture import Capture
from .sandbox import Policy, default_read_paths, enter
from .session import Session


def serve(read_fd: int, write_fd: int, policy: dict[str, Any]) -> None:
    """Never returns. ``policy`` is the plain form of ``sandbox.Policy``; the descriptors are the channel."""
    entered = enter(sandbox_policy(policy, read_fd, write_fd))
    channel = Channel(read_fd, write_fd, TRUSTED)
    capture = Capture()
    session = Session(lambda ident, args, kwargs: _call_back(channel, session, ident, args, kwargs), capture)
    channel.send(Kind.hello, 0, encode({"layers": list(entered.layers), "missing": dict(entered.missing)}))
    try:
        while True:
            kind, seq, body = channel.receive()
            if kind is not Kind.request:
                os._exit(3)
            session.seq = seq
            kind, body = session.answer(body)
            channel.send(kind, seq, body)
    except Closed:
        os._exit(0)


def sandbox_policy(policy: dict[str, Any], *channel: int) -> Policy:
    """The policy of a process: what it was told, the channel kept, the interpreter and its libraries readable."""
    plain = {k: v for k, v in policy.items() if k != "role"}
    return Policy.from_dict(plain | {"keep_fds": sorted(set(channel)),
                                     "read_paths": [*default_read_paths(), *plain.get("read_paths", ())]})


def _call_back(channel: Channel, session: Session, ident: int, args: tuple, kwargs: dict) -> Any:
    channel.send(Kind.callback, session.seq, session.encode({"id": ident, "args": args, "kwargs": kwargs}))
    kind, _, body = channel.receive()
    return session.objects.settle_callback(decode(body, session.objects, TRUSTED), kind is Kind.callback_error, kwargs)


def main() -> None:
    """A spawned worker (no fork server): the channel is stdin/stdout, duplicated and hidden before any import."""
    read_fd, write_fd = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    first = Channel(read_fd, write_fd, TRUSTED).receive()[2]
    serve(read_fd, write_fd, decode(first, limits=TRUSTED))


if __name__ == "__main__":
    sys.exit(main())
