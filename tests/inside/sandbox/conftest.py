"""Runs a function in a sandboxed process and says what became of it."""

from __future__ import annotations

import ctypes
import json
import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llmkata.inside.sandbox import Entered, Policy, enter

NOBODY = 65534
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def pytest_collection_modifyitems(items):
    for item in items:
        if sys.platform != "linux" and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="the sandbox's layers are Linux's"))


@dataclass
class Trial:
    """What a function did inside: its value, or the error it met, and how its process ended."""

    entered: Entered
    value: Any = None
    error: str | None = None
    status: int | None = None

    @property
    def killed_by(self) -> int | None:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None


class Ground:
    """A directory with a scratch folder and a file that no policy mentions, for one user."""

    def __init__(self, user: str) -> None:
        self.user = user
        self.path = Path(tempfile.mkdtemp(prefix="kata-test-"))
        self.path.chmod(0o755)
        self.scratch = self.path / "scratch"
        self.scratch.mkdir(mode=0o700)
        self.secret = self.path / "secret.txt"
        self.secret.write_text("expected: 42")
        # Open to everybody: only the sandbox stands between the learner's code and the file.
        self.secret.chmod(0o666)
        if user == "nobody":
            os.chown(self.scratch, NOBODY, NOBODY)
            os.chown(self.path, NOBODY, NOBODY)

    def start(self, act: Callable, *args: Any, before: Callable[[], None] | None = None, keep: tuple[int, ...] = (),
              **policy: Any) -> tuple[int, socket.socket]:
        """Fork a process that enters and runs ``act(*args)`` -> (pid, our end of its channel)."""
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid:
            theirs.close()
            return pid, ours
        try:
            if self.user == "nobody":
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # dumpable, as a process started by that user would be
            if before is not None:
                before()
            entered = enter(Policy.from_dict({
                "scratch": str(self.scratch), "memory_bytes": 256 * 2**20, "cpu_seconds": 20,
                **policy, "keep_fds": [theirs.fileno(), 2, *keep],
            }))
            stands = [entered.layers, entered.missing, entered.pid, entered.server_fd]
            theirs.sendall(json.dumps(stands).encode() + b"\n")
            try:
                said = {"value": act(*args)}
            except BaseException as error:  # noqa: BLE001 - what the act met, whatever it is, is the result
                said = {"error": f"{type(error).__name__}: {error}"}
            theirs.sendall(json.dumps(said).encode() + b"\n")
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - the child must not return into pytest
            os.write(2, f"the trial failed: {error!r}\n".encode())
        finally:
            os._exit(99)

    def run(self, act: Callable, *args: Any, **options: Any) -> Trial:
        """Run ``act(*args)`` inside to its end, at most 30 s."""
        pid, channel = self.start(act, *args, **options)
        text, deadline = b"", time.monotonic() + 30
        while select.select([channel], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = channel.recv(1 << 16)
            if not part:
                break
            text += part
        else:
            os.kill(pid, signal.SIGKILL)
        channel.close()
        _, status = os.waitpid(pid, 0)
        lines = text.decode().splitlines()
        assert lines, f"nothing was said before the process ended ({status})"
        layers, missing, inner, server = json.loads(lines[0])
        trial = Trial(Entered(layers, missing, inner, server), status=status)
        if len(lines) > 1:
            said = json.loads(lines[1])
            trial.value, trial.error = said.get("value"), said.get("error")
        return trial


@pytest.fixture(params=["root", "nobody"] if AS_ROOT else ["self"])
def ground(request):
    """A `Ground`, once for each user this host lets us be."""
    ground = Ground(request.param)
    yield ground
    shutil.rmtree(ground.path, ignore_errors=True)


@pytest.fixture
def libraries(ground):
    """Skips the test where the interpreter lies in a place that `ground.user` cannot reach (root's home)."""
    if ground.user == "nobody":
        for path in Path(os.__file__).parents:
            if not path.stat().st_mode & 0o001:
                pytest.skip(f"the interpreter is out of reach for other users: {path}")


@pytest.fixture
def needs(ground):
    """``needs("userns", ...)`` skips the test where this host does not offer a layer to this user."""
    def check(*layers: str) -> None:
        entered = ground.run(lambda: None).entered
        if absent := [name for name in layers if not entered.has(name)]:
            pytest.skip("; ".join(f"{name}: {entered.missing[name]}" for name in absent))
    return check
