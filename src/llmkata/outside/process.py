"""Templates and workers as the trusted side holds them: started, timed, measured from outside, killed."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from llmkata.wire import UNTRUSTED, Channel, Until, decode

#: Environment of every process that runs learner code: nothing of the grader's own, one thread, no network look-ups.
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "MPLBACKEND": "Agg",
    "KINETO_LOG_LEVEL": "99",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Freed blocks go back at once: the high-water mark read from outside is the program's, not the allocator's.
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

#: Set by some hosts because their BLAS needs it.
_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "SYSTEMROOT")


class TemplateFailed(RuntimeError):
    """A template did not start; the message holds what it printed."""


class Template:
    """A warm interpreter of one profile, reached over a control socket of its own."""

    def __init__(self, profile: str, control: socket.socket, config_dir: str, ready: bool) -> None:
        self.profile = profile
        #: The prepared matplotlib configuration; workers read it.
        self.config_dir = config_dir
        self._control, self._ready = control, ready
        self._lock = threading.Lock()

    def _ask(self, request: dict[str, Any], fds: tuple[int, ...] = ()) -> dict[str, Any]:
        with self._lock:
            self.wait_ready()
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], fds)
                answer = self._control.recv(1 << 16)
            except OSError:
                answer = b""
        if not answer:
            raise TemplateFailed(f"the template of profile {self.profile!r} ended{self.said()}")
        return json.loads(answer)

    def wait_ready(self) -> None:
        """Block until its imports are done. Raises TemplateFailed with what it printed."""
        if not self._ready:
            if not self._control.recv(1 << 16):
                raise TemplateFailed(f"the template of profile {self.profile!r} did not start{self.said()}")
            self._ready = True

    def said(self) -> str:
        """What the template wrote to stderr, where this process started it."""
        return ""

    def fork(self, policy: dict[str, Any]) -> tuple[int, socket.socket]:
        """Fork a worker -> (pid of its outermost process, our end of its channel)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            return self._ask({"op": "fork", "policy": policy}, (theirs.fileno(),))["pid"], ours
        finally:
            theirs.close()

    def reap(self, pid: int) -> dict[str, Any]:
        """Wait for a forked worker that was killed or ended -> {"status": wait status, "cpu": seconds}."""
        try:
            return self._ask({"op": "reap", "pid": pid})
        except TemplateFailed:
            return {"status": None, "cpu": 0.0}

    def branch(self) -> Template:
        """Another control socket to the same interpreter, for a child process about to be forked."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._lock:
            self.wait_ready()
            socket.send_fds(self._control, [b'{"op": "attach"}'], [theirs.fileno()])
        theirs.close()
        return Template(self.profile, ours, self.config_dir, True)

    def close(self) -> None:
        """Give up this control socket."""
        self._control.close()


class StartedTemplate(Template):
    """A template that this process started, and ends."""

    def __init__(self, profile: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(profile, ours, tempfile.mkdtemp(prefix="kata-mpl-"), False)
        environment = dict(_ENVIRONMENT, MPLCONFIGDIR=self.config_dir)
        environment |= {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        self._stderr = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "llmkata.inside.template", str(theirs.fileno()), profile],
            pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._stderr, cwd="/", start_new_session=True,
        )
        theirs.close()

    def said(self) -> str:
        self._stderr.seek(0)
        return ":\n" + self._stderr.read()[-4000:].decode("utf-8", "replace")

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()
        shutil.rmtree(self.config_dir, ignore_errors=True)


_templates: dict[str, Template] = {}


def template(profile: str) -> Template:
    """The template of ``profile`` of this process, started on first use."""
    if profile not in _templates:
        if not _templates:
            atexit.register(close_templates)
        _templates[profile] = StartedTemplate(profile)
    return _templates[profile]


def branches() -> dict[str, Template]:
    """A branch of every template of this process; made before a fork, adopted in the child."""
    return {profile: t.branch() for profile, t in _templates.items()}


def adopt(inherited: dict[str, Template]) -> None:
    """In a forked child: use these branches; the parent's own control sockets stay the parent's."""
    _templates.clear()
    _templates.update(inherited)


def close_templates() -> None:
    """Close all templates of this process."""
    for t in _templates.values():
        t.close()
    _templates.clear()


class Process:
    """One worker: forked from a template, measured and killed from outside."""

    def __init__(self, profile: str, policy: dict[str, Any], hello_seconds: float = 60.0) -> None:
        self._template = template(profile)
        self._scratch = tempfile.mkdtemp(prefix="kata-")
        # The worker may run as another user of its own namespace; the folder holds nothing but its scratch.
        os.chmod(self._scratch, 0o700)
        policy = dict(policy, scratch=self._scratch,
                      read_paths=[*policy.get("read_paths", ()), self._template.config_dir])
        self.pid, self._socket = self._template.fork(policy)
        self.channel = Channel(self._socket.fileno(), self._socket.fileno(), UNTRUSTED)
        self.ended: dict[str, Any] | None = None
        _, _, body = self.channel.receive(Until(hello_seconds))
        hello = decode(body, limits=UNTRUSTED)
        self.layers: list[str] = hello["layers"]
        self.missing: dict[str, str] = hello["missing"]
        self.inner_pid = self._innermost()

    @property
    def scratch(self) -> Path:
        """The folder the worker may write to, as seen here."""
        return Path(self._scratch)

    def _innermost(self) -> int:
        """The process that runs the learner's code: the last of the chain of only children (pid namespace)."""
        pid = self.pid
        while True:
            try:
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            except OSError:
                return pid
            if len(children) != 1:
                return pid
            pid = int(children[0])

    def cpu_seconds(self) -> float:
        """CPU time of the worker so far (all its threads), from the kernel's accounting, in seconds."""
        return time.clock_gettime(~self.inner_pid << 3 | 2)

    def reset_peak(self) -> None:
        """Set the high-water mark of resident memory back to the current level."""
        Path(f"/proc/{self.inner_pid}/clear_refs").write_text("5")

    def memory(self) -> tuple[int, int]:
        """-> (resident bytes now, high-water mark in bytes)."""
        values = {}
        for line in Path(f"/proc/{self.inner_pid}/status").read_text().splitlines():
            if line.startswith(("VmRSS", "VmHWM")):
                name, number, _ = line.split()
                values[name] = int(number) * 1024
        return values["VmRSS:"], values["VmHWM:"]

    def kill(self) -> dict[str, Any]:
        """Kill the whole tree and return {"status", "cpu"}; later calls return the same."""
        if self.ended is None:
            for pid in {self.inner_pid if hasattr(self, "inner_pid") else self.pid, self.pid}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.ended = self._template.reap(self.pid)
            self._socket.close()
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self.ended
