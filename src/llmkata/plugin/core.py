"""The pytest plugin: fixtures, order, verdicts. One object; what it learns is a list of CheckRecord per exercise."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmkata.checks import context, feedback
from llmkata.checks.budgets import BudgetExceeded, NotJudged
from llmkata.checks.compare import GraderFault
from llmkata.checks.diagnose import choose, diagnose
from llmkata.checks.marks import MARKS
from llmkata.checks.misconceptions import Misconception
from llmkata.checks.server import Server
from llmkata.outside.link import storable
from llmkata.outside.process import TemplateFailed
from llmkata.outside.remote import WorkerGone
from llmkata.outside.submission import Submission
from llmkata.records import CheckRecord, Diagnosis, Outcome, encode

from .imported import Unimportable, Waiting
from .runs import ExerciseRun
from .verdict import is_not_started, verdict, with_symptom

_PRINT_CAP = 2000


@dataclass
class _Check:
    """What an item says about itself."""

    run: ExerciseRun
    id: str
    name: str
    title: str
    task: int
    tier: str
    points: float
    visible: bool
    kind: str
    gate: bool
    needs: tuple[str, ...]
    hints: list[str]

    @property
    def base(self) -> str:
        """The name of the test function: without the case of a parametrised one."""
        return self.name.split("[")[0]


class KataPlugin:
    """``find(path)`` gives the ExerciseRun a check file belongs to (None: not a check file).

    ``only`` limits the run to checks whose name holds it. Checks of the ids in ``last`` come after the others. ``on_record`` is called after each check.
    """

    def __init__(self, find: Callable[[Path], ExerciseRun | None], seed: int, *, only: str | None = None,
                 on_record: Callable[[CheckRecord], None] | None = None, diagnosing: bool = True,
                 last: Collection[str] = ()) -> None:
        self._find, self._run_seed, self._only, self._on_record = find, seed, only, on_record
        self._last = _bases(last)
        self._diagnosing = diagnosing
        self._checks: dict[str, _Check] = {}
        #: The one that runs; fixtures ask here, since pytest makes an object of some size for each ``request``.
        self._check: _Check | None = None
        self._context: context.CheckContext | None = None
        self._error: BaseException | None = None
        self._started = 0.0
        self.runs: dict[str, ExerciseRun] = {}

    # -- collection ------------------------------------------------------------------------------------------------

    def pytest_configure(self, config: Any) -> None:
        """Register the marks."""
        for name, text in MARKS.items():
            config.addinivalue_line("markers", f"{name}: {text}")

    def pytest_collection_modifyitems(self, config: Any, items: list[Any]) -> None:
        """Read marks; visible checks first, then correctness, then budgets; deselect what ``only`` leaves out."""
        foreign, read = [], []
        for item in items:
            run = self._find(item.path)
            if run is None:
                foreign.append(item)
            else:
                read.append((item, self._read(item, run)))
        for item, check in self._selected(read):
            self.runs[check.run.exercise.id] = check.run
            self._checks[item.nodeid] = check
        items[:] = sorted([i for i in items if i in foreign or i.nodeid in self._checks], key=self._order)

    def _selected(self, read: list[tuple[Any, _Check]]) -> list[tuple[Any, _Check]]:
        """The checks whose id holds ``only``, the gates, and what they need."""
        if not self._only:
            return read
        wanted = {check.base for _, check in read if self._only in check.id}
        wanted |= {check.base for _, check in read if check.gate} if wanted else set()
        while more := {name for _, check in read if check.base in wanted for name in check.needs} - wanted:
            wanted |= more
        return [(item, check) for item, check in read if check.base in wanted]

    def checks(self) -> list[_Check]:
        """The checks that were collected."""
        return list(self._checks.values())

    def put(self, run: ExerciseRun, seed: int, *, on_record: Callable[[CheckRecord], None] | None = None,
            last: Collection[str] = ()) -> None:
        """From now on the checks that were collected are put to ``run``: they are collected once for many submissions."""
        self._run_seed, self._on_record, self._last = seed, on_record, _bases(last)
        self.runs = {run.exercise.id: run}
        for check in self._checks.values():
            check.run = run

    def in_order(self, items: list[Any], *, visible_only: bool) -> list[Any]:
        """Those of ``items`` that are to be run, as they are to be run."""
        chosen = [i for i in items if not visible_only or i.nodeid not in self._checks or self._checks[i.nodeid].visible]
        return sorted(chosen, key=self._order)

    def _order(self, item: Any) -> tuple:
        check = self._checks.get(item.nodeid)
        if check is None:
            return (0,)
        late = not self._last.isdisjoint((check.base, *check.needs))
        return (1, check.run.exercise.id, not check.visible, late, check.kind == "budget")

    def _read(self, item: Any, run: ExerciseRun) -> _Check:
        marks = {m.name: m for m in item.iter_markers()}
        visible = "graders" not in item.path.parts
        number = marks["kata_task"].args[0] if "kata_task" in marks else 0
        tiers = {t.number: t.tier for t in run.exercise.tasks}
        if number not in tiers:
            raise pytest.UsageError(f"{item.nodeid}: @task({number}) is not a task of {run.exercise.id} in course.yaml "
                                    f"(it has {sorted(tiers)})")
        points = 0.0 if visible else float(marks["kata_points"].args[0]) if "kata_points" in marks else 0.0
        if not visible and not points:
            raise pytest.UsageError(f"{item.nodeid}: a hidden check needs @points(n)")
        doc = " ".join((item.obj.__doc__ or item.name.removeprefix("test_").replace("_", " ")).split())
        return _Check(run, f"{item.path.name}::{item.name}", item.name, doc, number, tiers[number], points, visible,
                      "budget" if "budget" in item.path.name else "correctness", "kata_gate" in marks,
                      tuple(marks["kata_needs"].args) if "kata_needs" in marks else (),
                      [" ".join(h.split()) for h in (marks["kata_hint"].args if "kata_hint" in marks else ())])

    # -- running ---------------------------------------------------------------------------------------------------

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: Any) -> None:
        """A fresh context before any fixture; checks that hang on a failed one are not run."""
        check = self._checks.get(item.nodeid)
        if check is None:
            return
        self._check, self._started = check, time.monotonic()
        seed = context.seed_for(self._run_seed, f"{check.run.exercise.id}/{check.id}")
        self._context = context.enter(context.CheckContext(None, seed))
        failed = [r.id.split("::")[1].split("[")[0] for r in check.run.records if r.outcome is not Outcome.passed]
        for name in failed:
            if name in check.needs or name in check.run.gates:
                raise _Blocked(name, name not in check.run.excused)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Any:
        """Turn what was raised into a record, and the report into what the learner should read."""
        outcome = yield
        check = self._checks.get(item.nodeid)
        if check is None or call.when == "teardown" or (call.when == "setup" and call.excinfo is None):
            return
        report = outcome.get_result()
        error = call.excinfo.value if call.excinfo is not None else None
        if isinstance(error, _GoneAtStart):
            error = error.gone
        if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
            return
        record = self._record(item, check, error)
        check.run.records.append(record)
        # Text: reports travel from the workers of pytest-xdist.
        report.kata = (check.run.exercise.id, encode(record).decode())
        self._dress(report, record, error)
        if self._on_record is not None:
            self._on_record(record)

    def _record(self, item: Any, check: _Check, error: BaseException | None) -> CheckRecord:
        ctx, link = self._context, self._context.link
        if isinstance(error, _Blocked):
            v_outcome, cause, evidence, judged = Outcome.not_judged, str(error), None, error.counts
        elif isinstance(error, Waiting):
            v_outcome, cause, evidence, judged = Outcome.not_judged, str(error), None, True
        elif isinstance(error, Unimportable):
            v_outcome, cause, evidence, judged = Outcome.failed, error.cause, error.evidence, True
        elif isinstance(error, pytest.skip.Exception):
            v_outcome, cause, evidence, judged = Outcome.not_judged, str(error), None, False
        else:
            excuses = isinstance(error, GraderFault) and self._fault_is_ours(item, check)
            v = verdict(error, ctx.links, ctx.compared, excuses)
            v_outcome, cause, evidence, judged = v.outcome, v.cause, v.evidence, v.judged
        if isinstance(error, TemplateFailed):
            check.run.broken = str(error)
        diagnosis = None
        answered = link is not None and not isinstance(error, (WorkerGone, Unimportable)) and not is_not_started(error)
        if v_outcome is Outcome.failed and self._diagnosing and answered:
            diagnosis = self._diagnose(item, check, error)
            if diagnosis is None:
                cause = with_symptom(cause, error)
        printed = storable("".join(link.printed), _PRINT_CAP) if link is not None and not check.visible else ""
        if isinstance(error, WorkerGone) and error.kind == "protocol" and not any(r.flags for r in check.run.records):
            ctx.flags.append(f"{error.cause} Code that only does its exercise cannot do that: read the file.")
        if check.gate:
            check.run.gates.add(check.base)
        if not judged:
            check.run.excused.add(check.base)
        return CheckRecord(
            id=check.id, title=check.title, task=check.task, tier=check.tier,
            max_points=check.points if judged else 0.0,
            points=check.points if v_outcome is Outcome.passed else 0.0,
            outcome=v_outcome, visibility="visible" if check.visible else "hidden", kind=check.kind, cause=cause,
            evidence=evidence, diagnosis=diagnosis, hints=check.hints, measures=ctx.measures,
            seconds=round(time.monotonic() - self._started, 4),
            headroom=round(ctx.headroom, 6) if v_outcome is Outcome.passed else None, staff_output=printed, flags=list(ctx.flags))

    def _diagnose(self, item: Any, check: _Check, error: BaseException | None) -> Diagnosis | None:
        try:
            if isinstance(error, BudgetExceeded):
                return self._by_measure(item, check, error)
            if not check.run.misconceptions:
                return feedback.diagnose(self._context.link, check.id, check.run.exercise.feedback)
            return diagnose(self._context.link, check.run.misconceptions, check.run.ours)
        except (Exception, WorkerGone) as e:  # noqa: BLE001 - a courtesy; its failure must not change a verdict
            self._context.flags.append(f"the diagnosis failed: {type(e).__name__}: {e}"[:300])
            return None
        finally:
            context.enter(self._context)

    def _by_measure(self, item: Any, check: _Check, error: BudgetExceeded) -> Diagnosis | None:
        """A mistake whose answers are right is recognised by what it costs: the same budget, missed by as much."""
        return choose([
            m for m in check.run.misconceptions
            if m.matches and m.caught_by.split("[")[0] == check.base and self._costs_as_much(item, check, m, error)])

    def _costs_as_much(self, item: Any, check: _Check, m: Misconception, error: BudgetExceeded) -> bool:
        theirs = self._put_to(item, check, check.run.ours_measured(m))
        if not isinstance(theirs, BudgetExceeded):
            return False  # it passes, or fails in another way: not this mistake
        scale = max(abs(error.measure.value), 1e-12)
        return theirs.measure.name == error.measure.name and abs(theirs.measure.value - error.measure.value) <= 0.05 * scale

    def _fault_is_ours(self, item: Any, check: _Check) -> bool:
        """Whether the model answer meets the fault, too. If not, it was an answer of the submission's that brought it
        about, and what is not judged costs nothing: anybody could have a check dropped."""
        try:
            return not check.run.exercise.solution.exists() or self._put_to(item, check, check.run.ours_measured()) is not None
        finally:
            context.enter(self._context)

    def _put_to(self, item: Any, check: _Check, link: Any) -> BaseException | None:
        """What the check raises when it is put to the implementation behind another link, which is closed after it."""
        seed = self._context.seed
        context.enter(context.CheckContext(link, seed))
        budget = check.run.budget(seed, link)
        try:
            link.begin_check(seed)
            given = {"submission": lambda: Submission(link), "rng": lambda: np.random.default_rng(seed),
                     "torch_rng": lambda: torch_generator(seed), "budget": lambda: budget}
            item.obj(**{name: given[name]() if name in given else item.funcargs[name]
                        for name in item._fixtureinfo.argnames})
        except BaseException as e:  # noqa: BLE001 - whatever it is, the caller judges it
            return e
        finally:
            budget.close()
            link.close()
        return None

    def _dress(self, report: Any, record: CheckRecord, error: BaseException | None) -> None:
        """What plain pytest shows: our sentences instead of the grader's traceback; a stub is not a failure."""
        from .text import failure_text

        if record.outcome is Outcome.passed:
            report.outcome = "passed"
        elif record.outcome is Outcome.not_judged or is_not_started(error):
            report.outcome = "skipped"
            report.longrepr = (str(report.location[0]), report.location[1] or 0, record.cause)
        else:
            report.outcome, report.longrepr = "failed", failure_text(record)
        report.wasxfail = False
        del report.wasxfail

    # -- fixtures --------------------------------------------------------------------------------------------------

    @pytest.fixture
    def seed(self) -> int:
        """The seed of this check (63 bits)."""
        return self._context.seed

    @pytest.fixture
    def submission(self) -> Submission:
        """The learner's module, freshly seeded."""
        run = self._check.run
        self._context.link = run.link
        try:
            run.link.begin_check(self._context.seed)
        except WorkerGone as gone:
            raise _GoneAtStart(gone) from None
        lacking = [why for name, why in run.link.missing.items() if name.startswith("grant:")]
        if lacking:
            raise NotJudged(f"needs what this host cannot give: {'; '.join(lacking)}")
        return Submission(run.link)

    @pytest.fixture
    def server(self, submission: Submission) -> Any:
        """An HTTP server of the check, see ``checks.server``."""
        server = Server(submission._link)
        yield server
        server.stop()

    @pytest.fixture
    def reference(self) -> Any:
        """The oracle module, in this process."""
        return self._check.run.reference()

    @pytest.fixture
    def rng(self) -> np.random.Generator:
        """A NumPy generator seeded for this check."""
        return np.random.default_rng(self._context.seed)

    @pytest.fixture
    def torch_rng(self) -> Any:
        """A torch generator seeded for this check."""
        return torch_generator(self._context.seed)

    @pytest.fixture
    def budget(self) -> Any:
        """Budgets of this check, measured in a worker beside that of the checks."""
        return self._check.run.budget(self._context.seed)

    def pytest_sessionfinish(self) -> None:
        """End all workers."""
        for run in self.runs.values():
            run.close()


def _bases(idents: Collection[str]) -> set[str]:
    """The names of the test functions of some checks."""
    return {ident.rpartition("::")[2].split("[")[0] for ident in idents}


class _GoneAtStart(Exception):
    """Carries a WorkerGone out of a fixture. pytest does not expect a BaseException there: every later use of the fixture
    would fail, and with it every check, for a reason that looks like ours."""

    def __init__(self, gone: WorkerGone) -> None:
        super().__init__(gone.cause)
        self.gone = gone


class _Blocked(Exception):
    """A check that cannot be judged because another one did not pass. Its points count where the other's do: what a
    host cannot give costs nothing, not even at second hand."""

    def __init__(self, name: str, counts: bool) -> None:
        super().__init__(f"needs {name}, which did not pass" if counts else f"needs {name}, which could not be judged")
        self.counts = counts


def torch_generator(seed: int) -> Any:
    """A torch generator with that seed."""
    import torch

    return torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def interpreter() -> dict[str, str]:
    """Versions that a verdict hangs on."""
    import torch

    return {"python": ".".join(map(str, sys.version_info[:3])), "torch": str(torch.__version__), "numpy": str(np.__version__)}
