"""One exercise of one submission: run its checks in this process, the learner's code in a worker, and make the record."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from llmkata.authoring.stub import is_stub
from llmkata.records import CheckRecord, Evidence, ExerciseRecord, Outcome, Provenance, State

from .provenance import grader_hash, result_key


def grade_one(course: Any, exercise: Any, source: bytes, *, learner: str = "you", file: str = "",
              only: str | None = None, isolation: str = "sandbox", seed: int | None = None, transport: str = "worker",
              on_check: Callable[[CheckRecord], None] | None = None, visible_only: bool = False,
              diagnosing: bool = True, disable: tuple[str, ...] = (), mistake: Any = None,
              checks: str = "", last: Collection[str] = (), collected: Collected | None = None) -> ExerciseRecord:
    """Grade ``source`` (UTF-8 Python) -> its record. Never raises for anything the submission does.

    ``only``: run checks whose id holds this text, and what they need. ``isolation``: "sandbox" or "process".
    ``transport``: "worker" (sandboxed process) or "loopback" (this process; for the learner's own eyes).
    ``disable``: sandbox layers to leave out, for negative controls. ``mistake``: a Misconception put into ``source``
    (the model answer) after it is imported, for the audit. ``checks``: source of a check file to run in place of those
    of the exercise (the cells of a notebook). ``last``: ids of checks that are run after the others (slow ones).
    ``collected``: all checks of the exercise, where they are collected already; ``only`` and ``checks`` are for others.
    """
    from llmkata.plugin.core import KataPlugin, interpreter
    from llmkata.plugin.runs import ExerciseRun, Setting

    started, cpu = time.monotonic(), time.process_time()
    seed = 0 if seed is None else seed
    record = ExerciseRecord(
        learner=learner, exercise=exercise.id, state=State.graded, files=[file] if file else [],
        submission_sha=hashlib.sha256(source).hexdigest(), key=result_key(course, exercise, source, seed, isolation),
        graded_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"))
    if is_stub(exercise, source):
        record.state = State.not_started
        record.cause = "The file is the stub as it was given out."
        return record
    setting = Setting(transport, seed, isolation, disable, request_seconds=float(course.limits.call),
                      limits=course.limits)
    filename = str(exercise.stub) if transport == "loopback" else f"{exercise.slug}.py"
    run = ExerciseRun(exercise, setting, source, filename, mistake=mistake,
                      oracles=collected.oracles if collected is not None else None)
    try:
        if _importable(run, record):
            if collected is not None:
                problem = collected.run(run, seed, on_check=on_check, visible_only=visible_only, last=last)
            else:
                plugin = KataPlugin(lambda path: run, seed, only=only, on_record=on_check, diagnosing=diagnosing,
                                    last=last)
                with _files(exercise, visible_only, checks) as files:
                    problem = run_pytest(files, exercise.root, plugin)
            problem = problem or run.broken  # half a record would count for more than it is worth
            if problem:
                record.state, record.cause = State.infrastructure, problem
            elif not run.records:
                record.state = State.infrastructure
                record.cause = f"No check is called {only!r}." if only else "No check was collected."
        record.checks = run.records
        record.provenance = Provenance(
            grader_hash=grader_hash(exercise), seed=seed, transport=transport, layers=list(run.link.layers),
            versions=interpreter(), machine=f"{platform.system()} {platform.machine()}")
    finally:
        run.close()
    if _nothing_tried(record):
        record.state, record.cause = State.not_started, "Every task of the file is still as it was given out."
    record.seconds = round(time.monotonic() - started, 3)
    record.cpu_seconds = round(time.process_time() - cpu + run.cpu_seconds, 3)
    return record


class Collected:
    """The checks of one exercise, collected once, to be run in forks of this process: starting pytest and collecting
    takes longer than most checks do."""

    def __init__(self, plugin: Any, items: list[Any]) -> None:
        from llmkata.plugin.oracles import Oracles

        self._plugin, self._items = plugin, items
        self.oracles = Oracles()
        for item in items:
            item.location  # noqa: B018 - pytest looks it up in the source, once

    def ids(self) -> list[str]:
        """Ids of the checks (hidden and visible)."""
        return [check.id for check in self._plugin.checks()]

    def run(self, run: Any, seed: int, *, on_check: Callable[[CheckRecord], None] | None = None, visible_only: bool = False,
            last: Collection[str] = ()) -> str:
        """Run all checks on the submission of ``run`` -> "" or what kept them from running."""
        self._plugin.put(run, seed, on_record=on_check, last=last)
        items = self._plugin.in_order(self._items, visible_only=visible_only)
        with _quiet():
            try:
                for item, following in zip(items, [*items[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            except BaseException as e:  # noqa: BLE001 - pytest's own loop would tell it in the same way
                return f"The grader could not run: {type(e).__name__}: {e}"
        return ""


def with_collected(exercise: Any, body: Callable[[Collected], None]) -> str:
    """Collect all checks of an exercise and call ``body`` with them -> "" or why they cannot be collected; ``body`` is
    not called then."""
    from llmkata.plugin.core import KataPlugin
    from llmkata.plugin.runs import ExerciseRun, Setting

    run = ExerciseRun(exercise, Setting(), b"", exercise.slug)
    plugin = KataPlugin(lambda path: run, 0)
    shown = sys.stdout, sys.stderr
    raised: list[BaseException] = []

    def held(items: list[Any]) -> None:
        try:
            with contextlib.redirect_stdout(shown[0]), contextlib.redirect_stderr(shown[1]):
                body(Collected(plugin, items))
        except BaseException as e:  # noqa: BLE001 - raised again below: it is not pytest's to tell
            raised.append(e)

    problem = run_pytest(check_files(exercise, False), exercise.root, plugin, instead=held)
    if raised:
        raise raised[0]
    return problem


def collect(exercise: Any) -> list[str]:
    """Import the graders of an exercise without running them -> ids of its checks (hidden and visible).

    Raises RuntimeError with what pytest says where they cannot be collected.
    """
    found: list[str] = []
    problem = with_collected(exercise, lambda collected: found.extend(collected.ids()))
    if problem:
        raise RuntimeError(problem)
    return found


def check_files(exercise: Any, visible_only: bool) -> list[Path]:
    """The check files of an exercise, visible ones first."""
    hidden = [] if visible_only else sorted(exercise.graders_dir.glob("test_*.py"))
    return [p for p in (exercise.visible_checks, *hidden) if p.exists()]


@contextlib.contextmanager
def _files(exercise: Any, visible_only: bool, checks: str) -> Iterator[list[Path]]:
    if not checks:
        yield check_files(exercise, visible_only)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / exercise.visible_checks.name  # the ids, and the seeds with them, are those of the file
        path.write_text(checks, "utf-8")
        yield [path]


def _importable(run: Any, record: ExerciseRecord) -> bool:
    """Import the submission once; what goes wrong there is told once, not by every check."""
    from llmkata.outside.process import TemplateFailed
    from llmkata.outside.remote import RemoteError, WorkerGone
    from llmkata.plugin.imported import import_failure

    try:
        run.link.open()
        return True
    except RemoteError as e:
        record.state = State.unreadable
        record.cause, record.evidence = import_failure(e)
    except WorkerGone as e:
        record.state = State.unreadable
        record.cause = f"Importing the file fails. {e.cause}"
        record.evidence = Evidence(record.cause)
    except TemplateFailed as e:
        record.state, record.cause = State.infrastructure, str(e)
    return False


def _nothing_tried(record: ExerciseRecord) -> bool:
    """A stub with cosmetic edits: every check that was judged met "task n"."""
    judged = [c for c in record.checks if c.outcome is not Outcome.not_judged]
    return bool(judged) and all(c.not_started for c in judged)


def run_pytest(files: list[Path], root: Path, plugin: Any, *more: str,
               instead: Callable[[list[Any]], None] | None = None) -> str:
    """Run pytest on ``files`` with only our plugin -> "" or what kept it from running. ``instead`` is called with what was
    collected in place of running it."""
    import pytest

    class Faults:
        """Collects what pytest would print of itself."""

        def __init__(self) -> None:
            self.said: list[str] = []

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                self.said.append(str(report.longrepr)[-1500:])

        def pytest_collection_finish(self, session: Any) -> None:
            session.config.option.tbstyle = "no"  # nobody reads how a check failed in pytest's words; it takes 0.1 s

        def pytest_internalerror(self, excrepr: Any) -> None:
            self.said.append(str(excrepr)[-3000:])

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session: Any) -> bool | None:
            if instead is None:
                return None
            if not session.testsfailed:
                instead(session.items)
            return True

    faults = Faults()
    _forget_other_courses(root)
    arguments = [*map(str, files), "--rootdir", str(root), "--confcutdir", str(root), "-c", os.devnull, "--noconftest", "--import-mode=importlib",
                 "--assert=plain", "--capture=no", "-p", "no:cacheprovider", "-p", "no:terminal", "-p", "no:tmpdir",
                 "-p", "no:warnings", "-p", "no:logging", "-p", "no:faulthandler",
                 # Collects all of torch's garbage several times at the end of every run.
                 "-p", "no:unraisableexception", "-p", "no:threadexception", *more]
    with _no_foreign_plugins(), _quiet() as printed:
        status = pytest.main(arguments, plugins=[faults, _Named(plugin)])
    if faults.said or status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED,
                                     pytest.ExitCode.NO_TESTS_COLLECTED):
        return f"The grader could not run: {' '.join(faults.said) or printed.getvalue()[-1500:] or status}"
    return ""


def _forget_other_courses(root: Path) -> None:
    """pytest names check modules by their path within the course: those of another course would be taken for ours."""
    for name, module in list(sys.modules.items()):
        if name.startswith(("exercises.", "graders.")):
            file = getattr(module, "__file__", None)
            if file and not Path(file).is_relative_to(root):
                del sys.modules[name]


class _Named:
    """Registers the plugin under its name, before others are asked."""

    def __init__(self, plugin: Any) -> None:
        self._plugin = plugin

    def pytest_configure(self, config: Any) -> None:
        config.pluginmanager.register(self._plugin, "kata")


@contextlib.contextmanager
def _no_foreign_plugins() -> Iterator[None]:
    """Plugins installed on the machine, and options set in the environment, have no say in grading."""
    saved = {name: os.environ.pop(name, None) for name in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        yield
    finally:
        del os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"]
        os.environ.update({k: v for k, v in saved.items() if v is not None})


@contextlib.contextmanager
def _quiet() -> Iterator[io.StringIO]:
    out = io.StringIO()
    with contextlib.redirect_stderr(out), contextlib.redirect_stdout(out):
        yield out
