"""The bench's process: sandboxed like a worker's, without learner code and without secrets, one program a request."""

from __future__ import annotations

import os
from typing import Any

from llmkata.inside.worker import enter_sandbox
from llmkata.wire import TRUSTED, Closed, Kind, decode, encode

from .recorded import run_recorded


def serve(read_fd: int, write_fd: int, policy: dict[str, Any]) -> None:
    """Enter the sandbox, say hello, answer {"program", "inputs", "measure"} until the channel closes."""
    channel = enter_sandbox(policy, read_fd, write_fd)
    try:
        while True:
            _, seq, body = channel.receive()
            request = decode(body, limits=TRUSTED)
            try:
                answer = encode(run_recorded(request["program"], request["inputs"], request["measure"]))
                kind = Kind.result
            except Exception as e:  # noqa: BLE001 - the program is untrusted; whatever it broke is its refusal
                answer, kind = encode(str(e) or type(e).__name__), Kind.error
            channel.send(kind, seq, answer)
    except Closed:
        os._exit(0)
