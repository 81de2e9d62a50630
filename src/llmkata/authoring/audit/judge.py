"""Run one trial in this process: the learner's side in a worker as ever, with an eye on more than the verdict."""

from __future__ import annotations

import contextlib
import math
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from llmkata.checks import strategies
from llmkata.checks.budgets import BudgetExceeded
from llmkata.checks.compare import Mismatch
from llmkata.checks.misconceptions import Misconception, load
from llmkata.grading.runner import check_files, run_pytest
from llmkata.outside.process import Process, TemplateFailed
from llmkata.outside.remote import RemoteError, WorkerGone
from llmkata.plugin.core import KataPlugin
from llmkata.plugin.runs import ExerciseRun, Setting
from llmkata.plugin.verdict import is_fault
from llmkata.records import CheckRecord, Measure, Outcome, Trust

from .trial import Number, Result, Seen, Trial, bare

#: Counted, not clocked or weighed: the same on every run.
_EXACT = {Trust.replayed, Trust.handed_in, Trust.self_reported}
#: pytest's search for exceptions in finalizers collects garbage twice over all that is imported: 1 s a run.
_OPTIONS = ("-p", "no:unraisableexception")


def judge(course: Any, trial: Trial, ours: dict[Any, Any] | None = None) -> Result:
    """Run ``trial``. ``ours``: links to the known mistakes that are already open (see :func:`open_mistakes`)."""
    exercise = course.exercise(trial.exercise)
    if trial.wall_seconds:
        exercise = msgspec.structs.replace(exercise, wall=trial.wall_seconds)
    if trial.stop:
        strategies._SHRINK_RUNS = 0  # in this fork: nobody reads the case, so no smaller one is looked for
    result = Result()
    with _cpu_of_workers() as workers:
        began = time.process_time()
        for names in _runs(course, exercise, trial):
            _judge(course, exercise, trial, names, ours or {}, result)
            if result.problem:
                break
            if trial.alone:
                forget(exercise)
        result.cpu_seconds = round(time.process_time() - began + sum(workers), 3)
    return result


def open_mistakes(exercise: Any) -> dict[Any, Any]:
    """Links to the model answer and to each known mistake in it, imported here so that forks share them."""
    run = ExerciseRun(exercise, Setting(), exercise.solution.read_bytes(), exercise.slug)
    links = {None: run.ours(None)}
    for m in load(exercise.graders_dir / "misconceptions.py"):
        links[m.name] = run.ours(m)
    for link in links.values():
        with contextlib.suppress(Exception):  # one that cannot be opened is told where it is used
            link.open()
    return links


def _runs(course: Any, exercise: Any, trial: Trial) -> list[tuple[str, ...]]:
    if not trial.alone:
        return [trial.only]
    return [(name,) for name in trial.only or dict.fromkeys(bare(c.id) for c in collected(exercise, trial.checks))]


def collected(exercise: Any, side: str = "all") -> list[Any]:
    """The checks of an exercise, as its graders declare them. Raises RuntimeError where they cannot be imported."""
    run = ExerciseRun(exercise, Setting(), b"", exercise.slug)
    plugin = KataPlugin(lambda path: run, 0)
    problem = run_pytest(files(exercise, side), exercise.root, plugin, "--collect-only")
    if problem:
        forget(exercise)
        raise RuntimeError(problem)
    return plugin.checks()


def forget(exercise: Any) -> None:
    """Let the check files be imported anew: pytest keeps modules by name, with what an earlier run left in them, and
    keeps one whose import failed halfway as if it were whole."""
    own = {str(path) for path in files(exercise, "all")}
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in own:
            del sys.modules[name]


def files(exercise: Any, side: str) -> list[Any]:
    """Check files of one side: ``hidden``, ``visible`` or ``all``."""
    found = check_files(exercise, side == "visible")
    return [p for p in found if side != "hidden" or p != exercise.visible_checks]


def _judge(course: Any, exercise: Any, trial: Trial, names: tuple[str, ...], ours: dict, result: Result) -> None:
    setting = Setting("worker", trial.seed, request_seconds=trial.request_seconds or float(course.limits.call),
                      limits=course.limits)
    mistake = _mistake(exercise, trial.mistake)
    run = ExerciseRun(exercise, setting, trial.source.encode(), f"{exercise.slug}.py", mistake=mistake)
    run._ours = dict(ours)
    try:
        run.link.open()
        plugin = _Observer(run, trial, names)
        problem = run_pytest(files(exercise, trial.checks), exercise.root, plugin, *_OPTIONS, *(["-x"] * trial.stop))
        result.checks += plugin.seen
        if problem:
            result.problem, result.fault = problem, True
        elif not plugin.seen:
            result.problem, result.fault = f"no check is called {' or '.join(names) or 'anything'}", True
    except RemoteError as e:
        line = f" at line {e.frames[-1][0]}" if e.frames else ""
        result.problem = f"it cannot be imported{line}: {e}"
    except WorkerGone as e:
        result.problem = f"it cannot be imported: {e.cause}"
    except TemplateFailed as e:
        result.problem, result.fault = str(e), True
    finally:
        run._ours = {}  # the links that were handed in stay open
        run.close()


def _mistake(exercise: Any, name: str) -> Misconception | None:
    if not name:
        return None
    return next(m for m in load(exercise.graders_dir / "misconceptions.py") if m.name == name)


class _Observer(KataPlugin):
    """The plugin that grades, with what an audit wants to know besides: ratios, forced diagnoses, other orders."""

    def __init__(self, run: ExerciseRun, trial: Trial, names: tuple[str, ...]) -> None:
        super().__init__(lambda path: run, trial.seed, diagnosing=trial.diagnosing)
        self._trial, self._names = trial, {bare(n) for n in names}
        self.seen: list[Seen] = []
        self._ratio = 0.0

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        super().pytest_collection_modifyitems(config, items)
        if self._names:
            items[:] = [i for i in items if bare(i.name) in self._names]
        if self._trial.shuffle is not None:
            random.Random(self._trial.shuffle).shuffle(items)
        if self._trial.first:
            items.sort(key=lambda i: self._checks[i.nodeid].task != self._trial.first)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> Iterator[None]:
        """Around all others: a check that its mark skips has a context of its own, too, and needs it when it is alone."""
        self._ratio = 0.0
        super().pytest_runtest_setup(item)
        return (yield)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: Any) -> Iterator[None]:
        """Remember the largest error of all failing cases: the smallest case need not have the largest error."""
        with _mismatches(self._note):
            yield

    def _note(self, error: Mismatch) -> None:
        self._ratio = max(self._ratio, error.ratio)

    def _record(self, item: Any, check: Any, error: BaseException | None) -> CheckRecord:
        record = super()._record(item, check, error)
        named = record.diagnosis.name if record.diagnosis else ""
        if self._trial.forced and record.outcome is Outcome.passed:
            named = self._forced(item, check, record)
        fault = is_fault(record)
        failed = record.outcome is Outcome.failed
        budget = isinstance(error, BudgetExceeded)
        self.seen.append(Seen(
            name=check.name, outcome=record.outcome, points=record.points, max_points=record.max_points,
            cause=record.cause, fault=fault, headroom=record.headroom, budget=budget, named=named,
            ratio=(self._ratio if isinstance(error, Mismatch) else math.inf) if failed and not budget else None,
            numbers=[Number(m.name, m.value, m.trust in _EXACT) for m in record.measures]))
        return record

    def _forced(self, item: Any, check: Any, record: CheckRecord) -> str:
        """The name that would be given had this check failed on what was answered and measured."""
        failures: list[Mismatch] = [Mismatch("forced")]
        failures += [BudgetExceeded("forced", measure) for measure in record.measures if _near_limit(measure)]
        for failure in failures:
            diagnosis = self._diagnose(item, check, failure)
            if diagnosis is not None:
                return diagnosis.name
        return ""


def _near_limit(measure: Measure) -> bool:
    """Whether something that misses the limit could cost as much (to 5 %) as this, which keeps it."""
    over = measure.at_most is not None and measure.at_most <= 1.06 * measure.value
    return over or measure.at_least is not None and measure.value <= 1.06 * measure.at_least


@contextlib.contextmanager
def _mismatches(note: Any) -> Iterator[None]:
    """``note`` is called with every Mismatch that is made meanwhile, those that Hypothesis swallows too."""
    original = Mismatch.__init__

    def noted(self: Mismatch, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        note(self)

    Mismatch.__init__ = noted
    try:
        yield
    finally:
        Mismatch.__init__ = original


@contextlib.contextmanager
def _cpu_of_workers() -> Iterator[list[float]]:
    """CPU seconds of each worker and bench that ended meanwhile, as the kernel counted them."""
    original, spent = Process.kill, []

    def counted(self: Process, *args: Any, **kwargs: Any) -> dict[str, Any]:
        fresh = self.ended is None
        ended = original(self, *args, **kwargs)
        if fresh:
            spent.append(ended["cpu"] or 0.0)
        return ended

    Process.kill = counted
    try:
        yield spent
    finally:
        Process.kill = original
