"""Single keys from a terminal, and the terminal given back as it was."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def keys() -> Iterator[int | None]:
    """The descriptor to read keys from, unbuffered and unechoed; None where there is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    try:
        import termios
        import tty
    except ImportError:  # Windows: the loop runs, keys do not
        yield None
        return
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def read_key(fd: int) -> str:
    """One key; escape sequences (arrows) are swallowed and give ""; the end of input gives "q"."""
    data = os.read(fd, 32)
    if not data:
        return "q"
    return "" if data[:1] == b"\x1b" else data[:1].decode("ascii", "ignore").lower()
