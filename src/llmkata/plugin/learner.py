"""Plain ``pytest exercises/...``: visible checks on the learner's own files, a short scorecard at the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmkata.course import load_course
from llmkata.course.launcher import launcher
from llmkata.outside.remote import RemoteError
from llmkata.records import NOT_STARTED, CheckRecord, Outcome

from .core import KataPlugin
from .imported import Unimportable, Waiting, import_fault, import_text, tells_of_import
from .leaving import Leaving, Left
from .postmortem import PostMortem
from .runs import ExerciseRun, Setting


class LearnerPlugin(KataPlugin):
    """KataPlugin over loopback for a course folder, with the summary in pytest's own terminal."""

    def __init__(self, root: Path, seed: int = 0) -> None:
        self._root = root
        self._course = load_course(root)
        self._found: dict[str, ExerciseRun] = {}
        #: Exercise id -> records, as the reports brought them (from other processes too, under pytest-xdist).
        self._records: dict[str, list[CheckRecord]] = {}
        #: Exercise id -> its checks of this run. Where the file cannot be imported, the first tells why.
        self._collected: dict[str, list[str]] = {}
        #: Exercise id -> what importing its file raised.
        self._faults: dict[str, RemoteError | None] = {}
        self._debugging = False
        super().__init__(self._run_of, seed)

    def pytest_configure(self, config: Any) -> None:
        """A debugger is left at once, and with ``--pdb`` it opens in the learner's frame."""
        super().pytest_configure(config)
        config.pluginmanager.register(Leaving(), "kata-leaving")
        self._debugging = config.getoption("usepdb", False)
        if self._debugging:
            config.pluginmanager.register(PostMortem(self._link_of), "kata-postmortem")

    def _link_of(self, item: Any) -> Any:
        check = self._checks.get(item.nodeid)
        return check.run.link if check is not None else None

    def pytest_collection_finish(self, session: Any) -> None:
        """Note what is run, the same in every process of pytest-xdist."""
        for item in session.items:
            if item.nodeid in self._checks:
                self._collected.setdefault(self._checks[item.nodeid].run.exercise.id, []).append(item.nodeid)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> None:
        """Checks of a file that cannot be imported are not run; one of them says why."""
        super().pytest_runtest_setup(item)
        check = self._checks.get(item.nodeid)
        if check is not None:
            check.run.link.returned = None
            ident = check.run.exercise.id
            if ident not in self._faults:
                self._faults[ident] = import_fault(check.run.link)
            if (fault := self._faults[ident]) is not None:
                raise Unimportable(fault) if self._collected[ident][0] == item.nodeid else Waiting(check.run.link.label)

    def _run_of(self, path: Path) -> ExerciseRun | None:
        try:
            parts = path.resolve().relative_to(self._root.resolve()).parts
        except ValueError:
            return None
        if len(parts) < 4 or parts[0] not in ("exercises", "graders"):
            return None
        ident = "/".join(parts[1:3])
        if ident not in self._found:
            exercise = self._course.exercise(ident)
            run = ExerciseRun(exercise, Setting(), exercise.stub.read_bytes(), str(exercise.stub))
            run.link.passing = (KeyboardInterrupt, Left)
            run.link.keeps_frames = self._debugging
            self._found[ident] = run
        return self._found[ident]

    def _dress(self, report: Any, record: CheckRecord, error: BaseException | None) -> None:
        super()._dress(report, record, error)
        if isinstance(error, Unimportable):
            ident = report.kata[0]
            report.when = "call"  # else pytest speaks of an error in the set-up of a check
            report.longrepr = import_text(error, self._course.exercise(ident).stub.name, len(self._collected[ident]) - 1)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Keep the record that came with a report."""
        if hasattr(report, "kata"):
            ident, text = report.kata
            self._records.setdefault(ident, []).append(msgspec.json.decode(text, type=CheckRecord))

    def pytest_sessionfinish(self, session: Any = None, exitstatus: int = 0) -> None:
        """An untouched stub is no success: skipped checks alone do not exit with 0."""
        super().pytest_sessionfinish()
        records = [r for found in self._records.values() for r in found]
        open_ = any(r.outcome is not Outcome.passed for r in records if not r.excused)
        if session is not None and exitstatus == 0 and open_:
            session.exitstatus = 1
        manager = session.config.pluginmanager if session is not None else None
        if manager is not None and "hypothesis" not in sys.modules and manager.has_plugin("hypothesispytest"):
            # It would import Hypothesis to find that it has nothing to say.
            manager.unregister(name="hypothesispytest")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """One line per task, and the next step."""
        t = terminalreporter
        for ident, records in self._records.items():
            exercise = self._course.exercise(ident)
            t.section(f"{exercise.number} {exercise.title}")
            judged = [r for r in records if not r.excused]
            if judged and all(r.not_started for r in judged):
                t.write_line(f"  not started. Open {exercise.stub.relative_to(self._root)}; the brief is "
                             f"{exercise.brief.relative_to(self._root)}.")
                continue
            if any(map(tells_of_import, records)):
                t.write_line(f"  {exercise.stub.relative_to(self._root).as_posix()} does not import.")
                continue
            for task in exercise.tasks:
                mine = [r for r in records if r.task == task.number]
                if mine:
                    mark, state = _task_state(mine)
                    t.write_line(f"  {mark} task {task.number}  {task.title} ({task.tier}): {state}")
            wrong = next((r for r in judged if r.outcome is not Outcome.passed and not r.not_started), None)
            if wrong is not None:
                name = wrong.id.rpartition("::")[2]
                t.write_line(f"  A hint for task {wrong.task}: {launcher()} hint {exercise.id}")
                t.write_line(f"  Only {name}: pytest {exercise.visible_checks.relative_to(self._root).as_posix()}::{name}")
            t.write_line(f"  All checks, hidden ones too: {launcher()} check {exercise.id}")


def _task_state(records: list[CheckRecord]) -> tuple[str, str]:
    """Mark and words for a task. Checks that this machine cannot run (no GPU) stand in nobody's way."""
    judged = [r for r in records if not r.excused]
    skipped = f", {len(records) - len(judged)} cannot run here" if len(judged) < len(records) else ""
    if not judged:
        return "[-]", "cannot be checked here"
    if all(r.not_started for r in judged):
        return "[ ]", NOT_STARTED + skipped
    passed = sum(r.outcome is Outcome.passed for r in judged)
    return ("[x]", "done" + skipped) if passed == len(judged) else ("[~]", f"{passed}/{len(judged)} checks{skipped}")


def learner_plugin(root: Path) -> LearnerPlugin:
    """The plugin for a course folder."""
    return LearnerPlugin(root)
