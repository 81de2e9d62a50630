"""Frames: a fixed header (magic, kind, sequence number, length) and a body, over two file descriptors.

The sequence number ties an answer to its request: an answer that comes twice, late or for another request is
a :class:`WireError`, never a result.
"""

from __future__ import annotations

import os
import select
import stat
import struct
import time
from enum import IntEnum
from typing import Protocol

from .limits import Limits, WireError

_HEADER = struct.Struct("<4sBQI")
_MAGIC = b"KAT1"
_SMALL = 1 << 14


class Kind(IntEnum):
    """What a frame is."""

    hello = 1
    request = 2
    result = 3
    error = 4
    callback = 5
    callback_result = 6
    callback_error = 7


class Closed(Exception):
    """The other side closed the channel."""


class Late(Exception):
    """Nothing came before the deadline."""


class Patience(Protocol):
    """Says how long to wait."""

    def left(self) -> float:
        """Seconds to wait before asking again; 0 when there is no time left."""


class Until:
    """Patience until a moment of ``time.monotonic()``."""

    def __init__(self, seconds_from_now: float) -> None:
        self._end = time.monotonic() + seconds_from_now

    def left(self) -> float:
        """Seconds left, 0 at the end."""
        return max(0.0, self._end - time.monotonic())


class Channel:
    """A pair of descriptors carrying frames. Without ``patience`` it waits for ever."""

    def __init__(self, read_fd: int, write_fd: int, limits: Limits) -> None:
        self.read_fd, self.write_fd, self.limits = read_fd, write_fd, limits
        # What a descriptor that is ready takes at once without blocking: a blocking write to somebody who does not
        # read would outlive our patience.
        self._piece = 1 << 16 if stat.S_ISSOCK(os.fstat(write_fd).st_mode) else select.PIPE_BUF

    def send(self, kind: Kind, seq: int, body: bytes | bytearray, patience: Patience | None = None) -> None:
        """Write one frame. Raises Closed, Late, or WireError when the body exceeds 4 GiB."""
        if len(body) > 0xFFFFFFFF:
            raise WireError(f"message of {len(body)} bytes does not fit a frame")
        header = _HEADER.pack(_MAGIC, kind, seq, len(body))
        # Most messages are small: one call to the system for both.
        parts = (header + body,) if len(body) < _SMALL else (header, body)
        for part in map(memoryview, parts):
            while part:
                if patience is not None:
                    _wait(self.write_fd, True, patience)
                try:
                    part = part[os.write(self.write_fd, part[: self._piece] if patience is not None else part):]
                except OSError as e:
                    raise Closed(str(e)) from None

    def receive(self, patience: Patience | None = None) -> tuple[Kind, int, bytearray]:
        """Read one frame -> (kind, sequence number, body). Raises Closed, Late, WireError."""
        magic, kind, seq, length = _HEADER.unpack(self._read(_HEADER.size, patience))
        if magic != _MAGIC:
            raise WireError("the stream does not hold a frame here")
        try:
            kind = Kind(kind)
        except ValueError:
            raise WireError(f"unknown frame kind {kind}") from None
        if length > self.limits.max_frame:
            raise WireError(f"message of {length} bytes exceeds the limit of {self.limits.max_frame}")
        return kind, seq, self._read(length, patience)

    def pending(self) -> bool:
        """Whether something can be read now: an answer nobody asked for. Raises Closed where the other side has gone."""
        poll = select.poll()
        poll.register(self.read_fd, select.POLLIN)
        ready = poll.poll(0)
        if ready and ready[0][1] & select.POLLHUP:
            raise Closed("end of stream")
        return bool(ready)

    def _read(self, n: int, patience: Patience | None) -> bytearray:
        # Grown as bytes arrive: a lying length costs the sender, not us.
        buffer = bytearray()
        while len(buffer) < n:
            if patience is not None:
                _wait(self.read_fd, False, patience)
            try:
                chunk = os.read(self.read_fd, min(n - len(buffer), 1 << 20))
            except OSError as e:
                raise Closed(str(e)) from None
            if not chunk:
                raise Closed("end of stream")
            buffer += chunk
        return buffer

    def close(self) -> None:
        """Close both descriptors."""
        for fd in {self.read_fd, self.write_fd}:
            try:
                os.close(fd)
            except OSError:
                pass


def _wait(fd: int, write: bool, patience: Patience) -> None:
    poll = select.poll()
    poll.register(fd, select.POLLOUT if write else select.POLLIN)
    while (left := patience.left()) > 0:
        if poll.poll(left * 1000):
            return
    raise Late("deadline passed")
