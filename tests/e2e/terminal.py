"""A program in a pseudo-terminal: keys in, what stands on the screen out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from pathlib import Path

#: Ctrl-C.
INTERRUPT = "\x03"
_HOME = b"\x1b[H"
_ESCAPES = re.compile(r"\x1b\]8;[^\x1b]*\x1b\\|\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Starts ``command`` in a terminal of ``rows`` and ``columns``; everything it wrote is in ``output``."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str], rows: int = 34, columns: int = 110) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self._set_size(rows, columns)
        self.before = termios.tcgetattr(slave)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=cwd, env=env,
                                        start_new_session=True, preexec_fn=_take_charge)  # noqa: PLW1509
        self.output = b""

    def resize(self, rows: int, columns: int) -> None:
        """As a window does that is pulled at."""
        self._set_size(rows, columns)
        self.process.send_signal(signal.SIGWINCH)

    def press(self, key: str) -> None:
        """Type."""
        if key == INTERRUPT:
            self._wait_till_it_reads()
        os.write(self.master, key.encode())

    def _wait_till_it_reads(self, seconds: float = 60) -> None:
        """Python misses an interrupt between readline's prompt and its ``select``, where a busy machine may hold it."""
        stat, deadline, asleep = Path(f"/proc/{self.process.pid}/stat"), time.monotonic() + seconds, 0
        while asleep < 5:
            # Where a system does not tell, a moment must do.
            sleeps = not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "S"
            asleep = asleep + 1 if sleeps else 0
            assert time.monotonic() < deadline, f"does not wait for a key:\n{self.screen}"
            time.sleep(0.05)

    @property
    def screen(self) -> str:
        """The last full frame, without escape sequences."""
        return _ESCAPES.sub("", self.output.rsplit(_HOME, 1)[-1].decode("utf-8", "replace"))

    def wait_for(self, *texts: str, seconds: float = 90) -> str:
        """The screen, once it holds all ``texts``; fails after ``seconds``, which a busy machine may need."""
        deadline = time.monotonic() + seconds
        while not all(text in self.screen for text in texts):
            assert time.monotonic() < deadline and self._read(0.5), f"no {texts} in:\n{self.screen}"
        return self.screen

    def wait(self, seconds: float = 30) -> int:
        """The exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            self._read(0.05)
            assert time.monotonic() < deadline, f"still running:\n{self.screen}"
        while self._read(0.05, closing=True):
            pass
        return self.process.returncode

    def close(self) -> None:
        """End the program, if it is still there."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)

    def _set_size(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self, seconds: float, *, closing: bool = False) -> bool:
        """Whether the program may say more."""
        ready, _, _ = select.select([self.master], [], [], seconds)
        if ready:
            self.output += os.read(self.master, 1 << 16)
        return bool(ready) if closing else self.process.poll() is None


def _take_charge() -> None:
    """Make the terminal the one that this process answers to: Ctrl-C interrupts it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
