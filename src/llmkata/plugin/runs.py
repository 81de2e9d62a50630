"""One exercise of one submission, as checks need it: its link, fresh workers, the oracle, the known mistakes."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from llmkata.checks.budgets import Budget
from llmkata.checks.misconceptions import Misconception, load
from llmkata.outside.bench import Bench, BenchRefused
from llmkata.outside.link import REQUEST_SECONDS, Link
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.worker import WorkerLink
from llmkata.records import CheckRecord

from .oracles import Oracles


@dataclass(frozen=True)
class Setting:
    """How submissions are run: over which transport, with which seed, in which sandbox."""

    transport: str = "loopback"
    seed: int = 0
    isolation: str = "sandbox"
    #: Sandbox layers switched off, for negative controls.
    disable: tuple[str, ...] = ()
    request_seconds: float = REQUEST_SECONDS
    #: The course's limits (memory, cpu, output), see ``course.Limits``.
    limits: Any = None


class LocalBench:
    """The bench of the loopback transport: recorded programs run in this process, as everything does there."""

    def run(self, program: bytes, inputs: dict[str, Any], measure: list[str]) -> dict[str, Any]:
        """As ``Bench.run``."""
        from llmkata.bench.recorded import run_recorded

        try:
            return run_recorded(program, inputs, measure)
        except ValueError as e:
            raise BenchRefused(str(e)) from None

    def close(self) -> None:
        """Nothing to end."""


@dataclass
class ExerciseRun:
    """Links and oracles of one exercise. ``source`` is the submission, ``filename`` what its frames are called."""

    exercise: Any
    setting: Setting
    source: bytes
    filename: str
    records: list[CheckRecord] = field(default_factory=list)
    #: A known mistake put into the submission (audit, feedback.json).
    mistake: Misconception | None = None
    #: What oracles said of other submissions; None: each is asked anew.
    oracles: Oracles | None = None

    def __post_init__(self) -> None:
        self.link = _patched(self._make(self.source, self.filename, self.exercise.slug), self.mistake)
        local = self.setting.transport == "loopback"
        self.bench = LocalBench() if local else Bench({"isolation": self.setting.isolation}, self.exercise.profile)
        #: A second worker of the submission, for budgets: it lasts as long as the first.
        self.measured = self.fresh()
        #: Names of the checks seen so far that everything later hangs on.
        self.gates: set[str] = set()
        #: Why no worker could be had any more, "" while all is well.
        self.broken = ""
        #: Names of the checks that could not be judged through no fault of the submission.
        self.excused: set[str] = set()
        self._ours: dict[str | None, Link] = {}
        self._misconceptions: list[Misconception] | None = None

    def _make(self, source: bytes, filename: str, name: str) -> Link:
        args = (name, filename, source, self._forbid())
        if self.setting.transport == "loopback":
            return LoopbackLink(*args, request_seconds=self.setting.request_seconds)
        link = WorkerLink(*args, profile=self.exercise.profile, policy=self.policy(),
                          wall_seconds=float(self.exercise.wall), request_seconds=self.setting.request_seconds)
        if self.setting.limits:
            link.print_cap = self.setting.limits.output << 10
        return link

    def policy(self) -> dict[str, Any]:
        """The plain sandbox policy of this exercise's workers."""
        grants = self.exercise.grants
        limits = self.setting.limits
        components = [str(self.exercise.root / "components" / name) for name in self.exercise.components]
        return {
            "isolation": self.setting.isolation,
            "disable": list(self.setting.disable),
            "memory_bytes": int(grants.get("memory", limits.memory if limits else 1024)) << 20,
            "cpu_seconds": int(grants.get("cpu", limits.cpu if limits else 60)),
            "grants": {name: grants[name] for name in ("threads", "processes", "exec", "loopback", "server")
                       if name in grants},
            "read_paths": components,
            **({"output": limits.output << 10} if limits else {}),
        }

    def _forbid(self) -> dict[str, Any] | None:
        path = self.exercise.graders_dir / "forbid.py"
        return load_module(path).FORBID.plain() if path.exists() else None

    def fresh(self) -> Link:
        """A link to a fresh worker (or module) of the submission; the caller closes it."""
        link = _patched(self._make(self.source, self.filename, self.exercise.slug), self.mistake)
        link.spent, link.wall = self.link.spent, self.link.wall
        return link

    def other(self, what: str) -> Link:
        """A link to a fresh worker of a file of ours: "reference", or a path relative to the grader folder."""
        path = self.exercise.reference if what == "reference" else self.exercise.graders_dir / what
        return self._make(path.read_bytes(), path.name, f"ours_{path.stem}")

    def ours(self, misconception: Misconception | None) -> Link:
        """The model answer with one known mistake in it (or none), in this process; kept for the next diagnosis."""
        key = misconception.name if misconception else None
        if key not in self._ours:
            name = f"{self.exercise.slug}__{key or 'right'}"
            # One file name for all: the file is compiled once.
            link = LoopbackLink(name, f"{self.exercise.slug}__ours.py", self.exercise.solution.read_bytes(), self._forbid())
            self._ours[key] = _patched(link, misconception)
        return self._ours[key]

    def ours_measured(self, misconception: Misconception | None = None) -> Link:
        """A fresh link to the model answer, with one known mistake in it or none, run as submissions are."""
        name = self.exercise.slug if self.setting.transport == "worker" else f"{self.exercise.slug}__measured"
        file = f"{misconception.name if misconception else self.exercise.slug}.py"
        return _patched(self._make(self.exercise.solution.read_bytes(), file, name), misconception)

    @property
    def misconceptions(self) -> list[Misconception]:
        """Known mistakes of the exercise; empty where the model answer is not at hand (released repository)."""
        if self._misconceptions is None:
            at_hand = self.exercise.solution.exists()
            self._misconceptions = load(self.exercise.graders_dir / "misconceptions.py") if at_hand else []
        return self._misconceptions

    def budget(self, seed: int, link: Link | None = None) -> Budget:
        """The fixture ``budget`` for the submission, or for the implementation behind another link."""
        if link is None:
            return Budget(self.measured, self.fresh, self.other, self.bench, seed)

        def fresh_wrong() -> Link:
            copy = self._make(link.source, link.filename, link.name)
            copy.patch = link.patch
            return copy

        return Budget(fresh_wrong(), fresh_wrong, self.other, self.bench, seed)

    def reference(self) -> ModuleType:
        """The oracle module."""
        module = load_module(self.exercise.reference)
        return self.oracles.of(module) if self.oracles is not None else module

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of the workers of the submission and of the bench, as far as they have ended."""
        return sum(getattr(x, "cpu_seconds", 0.0) for x in (self.link, self.measured, self.bench))

    def close(self) -> None:
        """End all workers."""
        self.link.close()
        self.measured.close()
        self.bench.close()
        for link in self._ours.values():
            link.close()


def _patched(link: Link, misconception: Misconception | None) -> Link:
    if misconception is not None:
        link.patch = {"source": misconception.source, "filename": f"<{misconception.name}>", "bind": misconception.bind}
    return link


_modules: dict[Path, ModuleType] = {}


def load_module(path: Path) -> ModuleType:
    """A module of the course by its file (references, forbid.py); loaded once per process."""
    if path not in _modules:
        # The whole path: two courses in one process have exercises of the same name.
        name = "_".join(("kata", *path.resolve().with_suffix("").parts[1:])).replace(".", "_")
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        _modules[path] = module
    return _modules[path]
