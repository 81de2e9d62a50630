"""Templates and workers as the trusted side holds them: started, timed, measured from outside, killed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import psutil

from llmkata.inside.sandbox.privileges import close_to_others
from llmkata.wire import UNTRUSTED, Channel, Closed, Kind, Late, Until, decode, encode

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
    # Checkpoints load in this thread: threads are a grant.
    "HF_DEACTIVATE_ASYNC_LOAD": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Freed blocks go back at once: a template is no larger than what it imports (its workers: inside/allocator.py).
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
}

#: Set by some hosts because their BLAS needs it.
_PASSED_ON = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "SYSTEMROOT")


def _environment(config_dir: str) -> dict[str, str]:
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return _ENVIRONMENT | passed | {"MPLCONFIGDIR": config_dir}


class TemplateFailed(RuntimeError):
    """A template or a worker of it did not start; the message holds what it printed."""


def _tail(stderr: IO[bytes]) -> str:
    if stderr.closed:
        return ""
    stderr.seek(0)
    text = stderr.read()[-4000:].decode("utf-8", "replace").strip()
    return f":\n{text}" if text else ""


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
        with theirs:
            try:
                return self._ask({"op": "fork", "policy": policy}, (theirs.fileno(),))["pid"], ours
            except TemplateFailed:
                ours.close()
                raise

    def reap(self, pid: int) -> dict[str, Any]:
        """Wait for a forked worker that was killed or ended -> {"status": wait status, "cpu": seconds}."""
        try:
            return self._ask({"op": "reap", "pid": pid})
        except TemplateFailed:
            return {"status": None, "cpu": 0.0}

    def branch(self) -> Template:
        """Another control socket to the same interpreter, for a child process about to be forked."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, self._lock:
            self.wait_ready()
            try:
                socket.send_fds(self._control, [b'{"op": "attach"}'], [theirs.fileno()])
            except OSError:
                ours.close()
                raise TemplateFailed(f"the template of profile {self.profile!r} ended{self.said()}") from None
        return Template(self.profile, ours, self.config_dir, True)

    def ended(self) -> bool:
        """Whether the interpreter is known to be gone."""
        return False

    def grown(self) -> bool:
        """Whether it holds so much more than at first that a fresh one is due."""
        return False

    def close(self) -> None:
        """Give up this control socket."""
        self._control.close()


class StartedTemplate(Template):
    """A template that this process started, and ends."""

    def __init__(self, profile: str) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(profile, ours, tempfile.mkdtemp(prefix="kata-mpl-"), False)
        # Workers of a grading root become somebody else, who must be able to read it.
        os.chmod(self.config_dir, 0o755)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        #: Resident bytes once it was warm.
        self._at_first: int | None = None
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "llmkata.inside.template", str(theirs.fileno()), profile],
            pass_fds=[theirs.fileno()], env=_environment(self.config_dir), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=self._stderr, cwd="/", start_new_session=True,
        )
        theirs.close()

    def ended(self) -> bool:
        return self._process.poll() is not None

    def grown(self) -> bool:
        if not self._ready:
            return False
        try:
            resident = psutil.Process(self._process.pid).memory_info().rss
        except psutil.Error:  # it is gone, which ``ended`` tells
            return False
        if self._at_first is None:
            self._at_first = resident
        return resident > self._at_first + _GROWTH_BYTES

    def retire(self) -> None:
        """Have it end once the branches that there are and its workers have."""
        with contextlib.suppress(TemplateFailed):
            self._ask({"op": "retire"})

    def said(self) -> str:
        return _tail(self._stderr)

    def close(self) -> None:
        super().close()
        self._process.kill()
        self._process.wait()
        self._stderr.close()
        shutil.rmtree(self.config_dir, ignore_errors=True)


_templates: dict[str, Template] = {}
#: Templates that were replaced and still have workers.
_retired: list[StartedTemplate] = []
#: A template that holds so much more than at first is replaced: forks copy what it holds.
_GROWTH_BYTES = 256 << 20


def template(profile: str) -> Template:
    """The template of ``profile`` of this process, started on first use and again where it ended or has grown."""
    if profile in _templates and _templates[profile].ended():
        _templates.pop(profile).close()
    elif profile in _templates and _templates[profile].grown():
        _retired.append(_templates.pop(profile))
        _retired[-1].retire()
    for old in [t for t in _retired if t.ended()]:
        _retired.remove(old)
        old.close()
    if profile not in _templates:
        if not (_templates or _retired):
            atexit.register(close_templates)
            # Whoever has templates judges: its memory holds oracles and seeds.
            close_to_others(True)
        _templates[profile] = StartedTemplate(profile)
    return _templates[profile]


def forked(serve: Callable[[], None]) -> int:
    """Fork a child that has branches of this process's templates, runs ``serve`` and ends -> its pid. Its exit status is 0
    where ``serve`` returned."""
    branches = {profile: template(profile).branch() for profile in list(_templates)}
    pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            # The control sockets there were are the parent's.
            _templates.clear()
            _retired.clear()
            _templates.update(branches)
            serve()
            status = 0
        os._exit(status)
    for branch in branches.values():
        branch.close()
    return pid


def any_ended() -> bool:
    """Whether a template that this process started is gone."""
    return any(t.ended() for t in _templates.values())


def close_templates() -> None:
    """Close all templates of this process."""
    for t in (*_templates.values(), *_retired):
        t.close()
    _templates.clear()
    _retired.clear()


class Process:
    """One worker, measured and killed from outside: forked from a template, or spawned where forking is unsafe."""

    #: Whether ``memory`` and ``reset_peak`` are to be had.
    tells_peak = sys.platform == "linux"

    def __init__(self, profile: str, policy: dict[str, Any], hello_seconds: float = 60.0) -> None:
        self._scratch = tempfile.mkdtemp(prefix="kata-")
        self.ended: dict[str, Any] | None = None
        self._schedule: int | None = None
        #: Readable once the outermost process has ended; None where no kernel tells.
        self._watch: int | None = None
        #: The listening socket of the ``server`` grant, inside the worker's own network.
        self.listener: socket.socket | None = None
        try:
            self._launch(profile, dict(policy, scratch=self._scratch))
        except TemplateFailed:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        try:
            if policy.get("grants", {}).get("server"):
                self.listener = self._receive_listener()
            _, _, body = self.channel.receive(Until(hello_seconds))
        except (Closed, Late, TimeoutError):
            said = self._said()
            self.kill()
            raise TemplateFailed(f"a worker did not start{said}") from None
        hello = decode(body, limits=UNTRUSTED)
        self.layers: list[str] = hello["layers"]
        self.missing: dict[str, str] = hello["missing"]
        #: The process that runs the learner's code (with a pid namespace, the child of ``pid``).
        self.inner_pid: int = hello["pid"]

    def _launch(self, profile: str, policy: dict[str, Any]) -> None:
        self._template = template(profile)
        policy["read_paths"] = [*policy.get("read_paths", ()), self._template.config_dir]
        self.pid, self._socket = self._template.fork(policy)
        with contextlib.suppress(OSError):  # Linux before 5.3
            self._watch = os.pidfd_open(self.pid)
        self.channel = Channel(self._socket.fileno(), self._socket.fileno(), UNTRUSTED)

    def _said(self) -> str:
        return self._template.said()

    def _receive_listener(self) -> socket.socket | None:
        self._socket.settimeout(30)
        _, fds, _, _ = socket.recv_fds(self._socket, 1, 1)
        self._socket.settimeout(None)
        return socket.socket(fileno=fds[0]) if fds else None

    def cpu_seconds(self) -> float:
        """CPU time of the worker so far (all its threads), from the kernel's accounting, in seconds."""
        return time.clock_gettime(~self.inner_pid << 3 | 2)

    def queued_seconds(self) -> float:
        """Seconds for which the worker was ready to run and the machine busy with others; 0 where no kernel tells."""
        try:
            if self._schedule is None:  # asked twice for each request, so it stays open
                self._schedule = os.open(f"/proc/{self.inner_pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
            return int(os.pread(self._schedule, 100, 0).split()[1]) / 1e9
        except (OSError, IndexError):
            return 0.0

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

    def kill(self, *, wait_seconds: float = 0.0) -> dict[str, Any]:
        """Kill the whole tree and return {"status": wait status, "cpu": seconds}; later calls return the same.

        ``wait_seconds``: how long a process that closed its channel may take to end by itself, so that the status
        tells how it ended.
        """
        if self.ended is None:
            # The inner process first: the outer one then ends as it did, with its CPU time. While the outer one runs,
            # the inner one is not reaped, so its number is nobody else's.
            for pid, seconds in ((None, wait_seconds), (getattr(self, "inner_pid", self.pid), 1.0), (self.pid, 1.0)):
                if pid is not None and not self._is_over():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self._is_over(seconds)
            self.ended = self._reap()
            self._hang_up()
            if self.listener is not None:
                self.listener.close()
            for fd in (self._schedule, self._watch):
                if fd is not None:
                    os.close(fd)
            self._schedule = self._watch = None
            shutil.rmtree(self._scratch, ignore_errors=True)
        return self.ended

    def _is_over(self, seconds: float = 0.0) -> bool:
        """Whether the process has ended, or does within ``seconds``."""
        if self._watch is not None:
            poll = select.poll()
            poll.register(self._watch, select.POLLIN)
            return bool(poll.poll(seconds * 1000))
        until = time.monotonic() + seconds
        while not (over := self._is_zombie()) and time.monotonic() < until:
            time.sleep(0.002)
        return over

    def _is_zombie(self) -> bool:
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            return True

    def _reap(self) -> dict[str, Any]:
        return self._template.reap(self.pid)

    def _hang_up(self) -> None:
        self._socket.close()


class SpawnedProcess(Process):
    """The same worker without a template: a fresh interpreter whose channel is its stdin and stdout (seconds, not
    milliseconds). For systems where a process that holds torch cannot be forked safely."""

    def _launch(self, profile: str, policy: dict[str, Any]) -> None:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "llmkata.inside.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._stderr, env=_environment(self._scratch), cwd="/", start_new_session=True)
        self.pid = self._process.pid
        self.channel = Channel(self._process.stdout.fileno(), self._process.stdin.fileno(), UNTRUSTED)
        with contextlib.suppress(Closed):  # it ended at once: waiting for its word will tell
            self.channel.send(Kind.request, 0, encode(policy))

    def _receive_listener(self) -> socket.socket | None:
        return None

    def _said(self) -> str:
        return _tail(self._stderr)

    def cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self.inner_pid).cpu_times()
        except psutil.Error as e:
            raise ProcessLookupError(str(e)) from None
        return times.user + times.system

    def _is_zombie(self) -> bool:
        return self._process.poll() is not None

    def _reap(self) -> dict[str, Any]:
        code = self._process.wait()
        return {"status": -code if code < 0 else code << 8, "cpu": 0.0}

    def _hang_up(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._stderr.close()


def start_process(profile: str, policy: dict[str, Any]) -> Process:
    """A worker in the way this system allows."""
    return Process(profile, policy) if sys.platform == "linux" else SpawnedProcess(profile, policy)
