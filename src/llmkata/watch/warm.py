"""The process that judges: warm (torch and the checks are imported), asked over a pipe, one run at a time.

``python -m llmkata.watch.warm COURSE EXERCISE fork`` says ``W`` when it is warm. A request is a line of JSON on standard
input, see :class:`Request`; what it says is one line each on what was its standard output::

    P <process id>      the process that judges this request (kill it to end the run; SIGUSR1 asks it where it is)
    L <frames>          where it is in the learner's file, innermost last
    O <id, text>        what was printed during a check, before its C
    C <CheckRecord>     a check is judged
    R <ExerciseRecord>  the whole verdict
    E <how it ended>    always the last: an exit status, negative for a signal

Where processes can fork, each run is a fork: it starts in milliseconds, and a crash costs nothing. Libraries that a run
had to import (matplotlib, an optimizer's), and those of the exercise's files (see :mod:`.ready`), are imported here when
it has ended, so that the next run has them. Elsewhere (Windows, macOS) the process serves one request and ends; whoever
asks has another one warm.
"""

from __future__ import annotations

import base64
import gc
import linecache
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from llmkata.forks import bring_in, new_libraries
from llmkata.garbage import uncollected
from llmkata.records import CheckRecord, Evidence, ExerciseRecord, State, encode
from llmkata.threads import one_thread

from .ready import Ready

#: CPU time of one run; whoever waits gives it up earlier.
CPU_SECONDS = 90
#: Most characters kept of what is printed during a check.
_PRINTED = 4000


class Request(msgspec.Struct):
    """What is to be judged: a source, against the visible checks or those of ``checks``, a file given as text."""

    #: Base64 of the submission; "" for the file of the exercise as it is.
    source: str = ""
    #: Source of a check file in place of the exercise's own.
    checks: str = ""
    #: Run the checks whose name holds this text.
    only: str = ""
    hidden: bool = False
    #: Seed of the inputs; None for the public one.
    seed: int | None = None
    #: Ids of checks to be run after the others.
    last: list[str] = []


def broken(exercise: Any, state: State, cause: str) -> ExerciseRecord:
    """A record of a run that came to no verdict."""
    return ExerciseRecord(learner="you", exercise=exercise.id, state=state, cause=cause, evidence=Evidence(cause))


def main(root: str, ident: str, how: str) -> None:
    """Until standard input ends; ``how`` is "fork", or "once" for one request."""
    out, requests = os.dup(1), os.fdopen(os.dup(0), "rb")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(null, fd)
    with uncollected():
        course, exercise, cause = _warmed(root, ident)
    if not cause:
        from llmkata.grading.runner import with_collected

        def serve(collected: Any) -> None:
            _serve(_Judging(course, exercise, collected, out), requests, null, how)

        cause = with_collected(exercise, serve)
    if cause:
        _say(out, b"R", encode(broken(exercise, State.infrastructure, cause)))
        _say(out, b"E", b"0")


def _serve(judging: _Judging, requests: Any, null: int, how: str) -> None:
    """Answer requests, within pytest's loop: the checks are collected, and each run is spared it."""
    out, exercise = judging.out, judging.exercise
    gc.collect()
    gc.freeze()
    _say(out, b"W", b"")
    ready = Ready(exercise)
    if how == "once":
        ready.next()
    for line in requests:
        request = msgspec.json.decode(line, type=Request)
        if how == "once":
            _say(out, b"P", str(os.getpid()).encode())
            _say(out, b"R", encode(judging.record(request)))
            _say(out, b"E", b"0")
            return
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setsid()  # whatever the learner's code starts dies with it
            _limit()
            _tell_where_when_asked(exercise, out)
            requests.close()
            os.dup2(null, 2)
            known = len(sys.modules)
            _say(out, b"P", str(os.getpid()).encode())
            _say(out, b"R", encode(judging.record(request)))
            os.write(write, "\n".join(new_libraries(known)).encode()[:_PIPE])
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        _say(out, b"E", str(os.waitstatus_to_exitcode(status)).encode())
        os.close(write)
        bring_in(os.read(read, _PIPE).decode().split("\n") if status == 0 and _readable(read) else [])
        os.close(read)
        ready.next()


#: Bytes that a pipe holds without a reader.
_PIPE = 1 << 16


def _readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


def _tell_where_when_asked(exercise: Any, out: int) -> None:
    def answer(_: int, frame: Any) -> None:
        lines = []
        while frame is not None:
            if frame.f_code.co_filename == str(exercise.stub):
                text = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
                lines.append(f"{exercise.stub.name}:{frame.f_lineno} in {frame.f_code.co_name}: {text}")
            frame = frame.f_back
        _say(out, b"L", msgspec.json.encode(lines[:8][::-1]))

    signal.signal(signal.SIGUSR1, answer)


def _no_terminal(*_: Any, **__: Any) -> None:
    raise RuntimeError("breakpoint() needs a terminal, and this process has none. With the environment active: "
                       "pytest --pdb exercises/..., or take the breakpoint out; print() is shown here")


def _limit() -> None:
    """A run that nobody is left to end (the loop was killed) ends all the same."""
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))


def _warmed(root: str, ident: str) -> tuple[Any, Any, str]:
    """-> (course, exercise, "" or why nothing can be judged); what every run needs is in memory, and computed."""
    one_thread()
    os.environ.setdefault("MPLBACKEND", "Agg")
    from llmkata.course import load_course

    course = load_course(Path(root))
    exercise = course.exercise(ident)
    import torch

    import llmkata.bench.recorded
    import llmkata.inside.session  # noqa: F401 - both are needed by every run
    from llmkata.authoring.stub import StubError, pristine_stub
    from llmkata.grading.provenance import grader_hash

    torch.set_num_threads(1)
    grader_hash(exercise)
    try:
        pristine_stub(exercise)  # cut once, not in each run
    except StubError as e:
        return course, exercise, str(e)
    return course, exercise, ""


@dataclass(frozen=True)
class _Judging:
    """What judges requests, check by check told on ``out``."""

    course: Any
    exercise: Any
    #: All checks of the exercise (``grading.runner.Collected``).
    collected: Any
    out: int

    def record(self, request: Request) -> ExerciseRecord:
        """The verdict on a request."""
        from llmkata.grading.runner import grade_one
        from llmkata.grading.source import Unreadable, python_source, syntax_fault

        exercise, heard = self.exercise, 0

        def say_check(record: CheckRecord) -> None:
            nonlocal heard
            printed = sys.stdout.getvalue()[heard:]  # the runner collects it
            heard += len(printed)
            if printed and record.visibility == "visible":
                _say(self.out, b"O", msgspec.json.encode((record.id, printed[-_PRINTED:])))
            _say(self.out, b"C", encode(record))

        sys.breakpointhook = _no_terminal
        try:
            source = base64.b64decode(request.source) if request.source else exercise.stub.read_bytes()
        except OSError as e:
            return broken(exercise, State.missing, f"{exercise.stub} cannot be read: {e.strerror}")
        try:
            source, _ = python_source(source)
        except Unreadable as e:
            return broken(exercise, State.unreadable, str(e))
        if (fault := syntax_fault(source, exercise.stub.name)) is not None:
            return msgspec.structs.replace(broken(exercise, State.unreadable, fault.cause), evidence=fault.evidence)
        others = request.checks or request.only
        try:
            return grade_one(self.course, exercise, source, file=str(exercise.stub), transport="loopback",
                             visible_only=not request.hidden, only=request.only or None, seed=request.seed,
                             on_check=say_check, checks=request.checks, last=request.last,
                             collected=None if others else self.collected)
        except BaseException as e:  # noqa: BLE001 - there must be an answer
            return broken(exercise, State.infrastructure, f"The checks could not run: {type(e).__name__}: {e}")


def _say(fd: int, kind: bytes, data: bytes) -> None:
    rest = memoryview(kind + b" " + data + b"\n")
    while rest:
        rest = rest[os.write(fd, rest):]


if __name__ == "__main__":
    main(*sys.argv[1:])
