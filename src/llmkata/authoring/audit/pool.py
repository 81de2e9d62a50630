"""All trials, in forks of one warm process; each result is kept as it arrives."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from llmkata.forks import with_libraries, without_libraries
from llmkata.inside.pages import MANY, collapse
from llmkata.threads import one_thread

from .store import Store
from .trial import Result, Trial

#: Seconds by the clock after which a fork is given up, beyond ten times the exercise's own limit a run.
_PATIENCE = 120.0
#: Computes as long as the process that started it is there, whose id it is given.
_LOAD = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10000))"


@dataclass
class _Fork:
    trial: Trial
    pid: int
    pipe: int
    until: float
    said: bytearray = field(default_factory=bytearray)


def perform(course: Any, trials: Sequence[Trial], *, workers: int, progress: Callable[[Trial], None],
            ) -> dict[Trial, Result]:
    """Results of all trials: kept ones at once, the rest exercise by exercise, ``workers`` at a time."""
    store, results = Store(course), {}
    waiting: dict[str, list[Trial]] = {}
    for trial in dict.fromkeys(trials):
        kept = store.get(trial)
        if kept is None:
            waiting.setdefault(trial.exercise, []).append(trial)
        else:
            results[trial] = kept
            progress(trial)
    for exercise, todo in waiting.items():
        for trial, result in _forked(course, course.exercise(exercise), todo, workers):
            store.put(trial, result)
            results[trial] = result
            progress(trial)
    return results


def _forked(course: Any, exercise: Any, trials: list[Trial], workers: int) -> Iterator[tuple[Trial, Result]]:
    ours = _warm(exercise, any(t.diagnosing or t.forced for t in trials))
    if len(trials) >= MANY:
        collapse()
    # The longest first: the last ones then leave no core idle.
    waiting = sorted(trials, key=lambda t: (t.stop, bool(t.only), not t.alone), reverse=True)
    running: dict[int, _Fork] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                fork = _start(course, exercise, waiting.pop(), ours)
                running[fork.pipe] = fork
            ready, _, _ = select.select(list(running), [], [], 1.0)
            for pipe in ready:
                chunk = os.read(pipe, 1 << 20)
                running[pipe].said += chunk
                if not chunk:
                    fork = running.pop(pipe)
                    yield fork.trial, _finished(fork)
            for fork in [f for f in running.values() if time.monotonic() > f.until]:
                os.kill(fork.pid, signal.SIGKILL)
    finally:
        for fork in running.values():
            os.kill(fork.pid, signal.SIGKILL)
            os.waitpid(fork.pid, 0)
            os.close(fork.pipe)
        for link in ours.values():
            link.close()


def _warm(exercise: Any, diagnosing: bool) -> dict[Any, Any]:
    """Import what graders import, start the templates, open the known mistakes: once, before the first fork."""
    one_thread()
    import torch

    from llmkata.outside.process import template
    from llmkata.plugin.runs import load_module

    from .judge import collected, open_mistakes

    torch.set_num_threads(1)
    for profile in dict.fromkeys(["base", exercise.profile]):
        template(profile)
    with contextlib.suppress(RuntimeError):  # graders that cannot be imported are told by each trial
        collected(exercise)
    with contextlib.suppress(Exception):  # likewise
        load_module(exercise.reference)
    ours = open_mistakes(exercise) if diagnosing and exercise.solution.exists() else {}
    for profile in dict.fromkeys(["base", exercise.profile]):
        template(profile).wait_ready()
    # What is there now stays: forks need not walk (and so copy) it when they collect garbage.
    gc.collect()
    gc.freeze()
    return ours


def _start(course: Any, exercise: Any, trial: Trial, ours: dict[Any, Any]) -> _Fork:
    from llmkata.outside.process import forked

    read, write = os.pipe()

    def serve() -> None:
        os.close(read)
        known = len(sys.modules)
        data = memoryview(with_libraries(msgspec.json.encode(_judged(course, trial, ours)), known))
        while data:
            data = data[os.write(write, data):]

    pid = forked(serve)
    os.close(write)
    until = time.monotonic() + _PATIENCE + 10 * (trial.wall_seconds or exercise.wall) * (10 if trial.alone else 1)
    return _Fork(trial, pid, read, until)


def _judged(course: Any, trial: Trial, ours: dict[Any, Any]) -> Result:
    try:
        if trial.hash_seed is not None:
            return _apart(course.root, trial)
        from .judge import judge

        with _busy(trial.load):
            return judge(course, trial, ours)
    except BaseException as e:  # noqa: BLE001
        return Result(problem=f"the grader failed: {type(e).__name__}: {e}", fault=True)


def _apart(root: Path, trial: Trial) -> Result:
    """The trial in a fresh interpreter with another PYTHONHASHSEED."""
    environment = dict(os.environ, PYTHONHASHSEED=str(trial.hash_seed))
    asked = msgspec.json.encode((str(root), msgspec.structs.replace(trial, hash_seed=None)))
    done = subprocess.run([sys.executable, "-m", "llmkata.authoring.audit.apart"], input=asked, env=environment,
                          capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace")[-1500:]
        return Result(problem=f"a fresh interpreter could not judge it: {said}", fault=True)
    return msgspec.json.decode(done.stdout, type=Result)


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    """Keep ``count`` processes computing meanwhile, and no longer than this one lives, however it ends."""
    busy = [subprocess.Popen([sys.executable, "-I", "-S", "-c", _LOAD, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _finished(fork: _Fork) -> Result:
    os.close(fork.pipe)
    _, status = os.waitpid(fork.pid, 0)
    if status == 0 and fork.said:
        return msgspec.json.decode(without_libraries(bytes(fork.said)), type=Result)
    how = f"was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without a result"
    return Result(problem=f"the process that judged this {how}", fault=True)
