"""Single keys from a terminal, and the terminal given back as it was."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys(press: Callable[[str], None]) -> Iterator[None]:
    """Calls ``press`` (from a thread) with each key, unbuffered and unechoed; the end of input is the key ``q``."""
    if os.name == "nt":
        _in_thread(_windows_keys, press)
        yield
        return
    import termios
    import tty

    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        _in_thread(_terminal_keys, press)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)


def _in_thread(read: Callable[[Callable[[str], None]], None], press: Callable[[str], None]) -> None:
    threading.Thread(target=read, args=(press,), daemon=True).start()


def _terminal_keys(press: Callable[[str], None]) -> None:
    fd = sys.stdin.fileno()
    while True:
        try:
            data = os.read(fd, 32)
        except OSError:  # the terminal is gone
            data = b""
        if not data:
            press("q")
            return
        if data[:1] != b"\x1b":  # arrows and the like
            press(data[:1].decode("ascii", "ignore").lower())


def _windows_keys(press: Callable[[str], None]) -> None:
    import msvcrt

    while True:
        key = msvcrt.getwch()
        if key in ("\x00", "\xe0"):  # the first half of an arrow or a function key
            msvcrt.getwch()
        elif key == "\x03":
            press("q")
            return
        else:
            press(key.lower())
