"""The learner's process: enter the sandbox, say hello, answer requests until the channel closes."""

from __future__ import annotations

import importlib
import os
import socket
import sys
from typing import Any

from llmkata.wire import TRUSTED, Channel, Closed, Kind, decode, encode

from .capture import Capture
from .sandbox import Policy, enter
from .session import Session


def serve(read_fd: int, write_fd: int, policy: dict[str, Any]) -> None:
    """Never returns. ``policy`` is the plain form of ``sandbox.Policy``, and ``output``: the characters kept of what is
    printed during one request. The descriptors are the channel."""
    capture = Capture(policy["output"]) if "output" in policy else Capture()
    channel = enter_sandbox(policy, read_fd, write_fd)
    session = Session(lambda ident, args, kwargs: _call_back(channel, session, ident, args, kwargs), capture)
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


def enter_sandbox(policy: dict[str, Any], read_fd: int, write_fd: int) -> Channel:
    """Enter, pass out the listening socket of the ``server`` grant if there is one, say hello -> the channel."""
    plain = {k: v for k, v in policy.items() if k not in ("role", "output")}
    entered = enter(Policy.from_dict(plain | {"keep_fds": sorted({read_fd, write_fd})}))
    channel = Channel(read_fd, write_fd, TRUSTED)
    if policy.get("grants", {}).get("server"):
        with socket.socket(fileno=os.dup(write_fd)) as s:
            socket.send_fds(s, [b"L"], [] if entered.server_fd is None else [entered.server_fd])
        if entered.server_fd is not None:
            os.close(entered.server_fd)
    channel.send(Kind.hello, 0, encode({"layers": list(entered.layers), "missing": dict(entered.missing),
                                        "pid": entered.pid}))
    return channel


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
    policy = decode(Channel(read_fd, write_fd, TRUSTED).receive()[2], limits=TRUSTED)
    importlib.import_module(policy.get("role", __name__)).serve(read_fd, write_fd, policy)


if __name__ == "__main__":
    sys.exit(main())
