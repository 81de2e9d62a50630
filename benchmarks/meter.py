"""Runs a command and says what it took, with everything it started: ``python -I -S meter.py RESULT RECORDS COMMAND...``.

A process of its own because of how processor time is told: of children that were waited for. This one adopts what the
command leaves behind (PR_SET_CHILD_SUBREAPER), so that nothing is missed, and counts it. Standard library alone: it
must weigh nothing beside what it measures. Linux.

With RECORDS (a path; "" for none) it looks at the command four times a second: how many records are written, resident
memory and descriptors of the command's process, private memory of its templates.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SECONDS = 0.25
#: Seconds that a command has to end when it is told to.
_GRACE = 30.0
#: How a template is recognised; its workers are forks of it and have the same command line.
_TEMPLATE = b"llmkata.inside.template"


def main(result: str, records: str, *command: str) -> None:
    """Write ``{"wall": s, "cpu": s, "status": n, "left": processes left behind, "peak": B, "samples": [...]}``."""
    libc = ctypes.CDLL(None, use_errno=True)
    # Whatever was started ends with whoever measures.
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) or libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    samples = []
    began = time.monotonic()
    process = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_end(process)))
    progress = _Lines(records)
    while True:
        try:
            process.wait(_SECONDS if records else None)
            break
        except subprocess.TimeoutExpired:
            samples.append(_look(process.pid, time.monotonic() - began, progress.count()))
    wall = time.monotonic() - began
    left = _reap()
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = {
        "wall": wall,
        "cpu": usage.ru_utime + usage.ru_stime,
        "status": process.returncode,
        "left": left,
        "samples": [s for s in samples if s is not None],
    }
    Path(result).write_text(json.dumps(said))


def _end(process: subprocess.Popen) -> int:
    """Take everything down that was started; the command may first do so by itself."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
    _reap()
    return 1


def _reap() -> int:
    """Kill and wait for what is still there -> how many were alive."""
    alive = 0
    # A process that is just ending is not left behind.
    until = time.monotonic() + 2.0
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return alive
        if pid == 0 and time.monotonic() < until:
            time.sleep(0.01)
        elif pid == 0:
            for child in _children(os.getpid()):
                alive += 1
                os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


class _Lines:
    """Counts the lines of a file that grows."""

    def __init__(self, path: str) -> None:
        self.path, self.lines, self.read = path, 0, 0

    def count(self) -> int:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.read)
                new = file.read()
        except OSError:
            return self.lines
        self.read += len(new)
        self.lines += new.count(b"\n")
        return self.lines


def _look(pid: int, at: float, records: int) -> dict | None:
    """Seconds, records, resident bytes (now, and at most so far) and descriptors of the command; bytes of templates.
    What this user may not see of a process is None."""
    status = _status(pid)
    if "VmRSS" not in status:
        return None
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        descriptors = None
    return {
        "at": at,
        "records": records,
        "resident": status["VmRSS"],
        "peak": status["VmHWM"],
        "descriptors": descriptors,
        "templates": _templates(pid),
    }


def _templates(pid: int) -> dict[str, int]:
    """Process id -> bytes that are its own, of every template below ``pid``."""
    found, parents = {}, [pid]
    while parents:
        for child in _children(parents.pop()):
            try:
                is_template = _TEMPLATE in Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if is_template:
                if "RssAnon" in (status := _status(child)):
                    found[str(child)] = status["RssAnon"]
            else:
                parents.append(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        return [
            int(n)
            for task in os.listdir(f"/proc/{pid}/task")
            for n in Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        ]
    except OSError:
        return []


def _status(pid: int) -> dict[str, int]:
    """Sizes of /proc/<pid>/status in bytes."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in lines)
        if value.endswith("kB")
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
