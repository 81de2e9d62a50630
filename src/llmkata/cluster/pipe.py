"""Messages over a pipe between two trusted processes: eight bytes of length, then as many."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

_PREFIX = 8
#: Seconds between two looks at whether the other side is still there.
_LOOK = 1.0


class Gone(ConnectionError):
    """The other side has closed the pipe, or is dead."""


def send(fd: int, message: bytes) -> None:
    """Raises Gone where nobody reads any more."""
    data = memoryview(len(message).to_bytes(_PREFIX, "big") + message)
    try:
        while data:
            data = data[os.write(fd, data) :]
    except BrokenPipeError:
        raise Gone("nobody reads the pipe") from None


def receive(fd: int, *, seconds: float | None = None, alive: Callable[[], bool] = lambda: True) -> bytes:
    """The next message.

    Args:
        seconds: how long to wait for it to begin.
        alive: asked now and then; False ends the wait, although a child of the other side may hold the pipe open.

    Raises:
        Gone: the pipe was closed, or ``alive`` says no.
        TimeoutError: nothing came in ``seconds``.
    """
    until = None if seconds is None else time.monotonic() + seconds
    length = int.from_bytes(_exactly(fd, _PREFIX, until, alive), "big")
    return _exactly(fd, length, None, alive)


def hung_up(fd: int) -> bool:
    """Whether the other side has closed its end; what it wrote before may still be there to read."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _exactly(fd: int, count: int, until: float | None, alive: Callable[[], bool]) -> bytes:
    data = bytearray()
    while len(data) < count:
        if not select.select([fd], [], [], _LOOK)[0]:
            if not alive():
                raise Gone("the other side is dead")
            if until is not None and not data and time.monotonic() > until:
                raise TimeoutError("nothing was said")
            continue
        chunk = os.read(fd, min(count - len(data), 1 << 20))
        if not chunk:
            raise Gone("the other side has closed the pipe")
        data += chunk
    return bytes(data)
