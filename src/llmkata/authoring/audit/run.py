"""An audit from beginning to end: which trials are needed, and what their results say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmkata.checks.misconceptions import Misconception
from llmkata.grading.provenance import tree_hash

from .answers import answer_trials, judge_answers, time_trials
from .contract import judge_contract
from .mistakes import judge_mistakes, missed, mistake_trials, mistakes
from .mutants import judge_mutants, mutant_trials
from .mutation.engine import Mutant
from .pool import perform
from .report import Audit, Figures
from .stability import judge_stability, stability_trials
from .trial import Result, Trial


class Plan(msgspec.Struct):
    """What is run for one exercise, fixed when the audit begins."""

    exercise: Any
    #: Hash of all its files: an audit of files that change meanwhile says nothing.
    state: str
    answers: list[Trial]
    known: list[Misconception]
    mistakes: list[Trial]
    mutants: list[Mutant] = []
    mutated: list[Trial] = []
    stability: list[Trial] = []

    @property
    def trials(self) -> list[Trial]:
        return [*self.answers, *self.mistakes, *self.mutated, *self.stability]


def audit_exercises(course: Any, exercises: Sequence[Any], *, quick: bool, workers: int,
                    progress: Callable[[int], Callable[[Trial], None]]) -> list[Audit]:
    """Audit each exercise. ``progress(total)`` is asked once for a function that is called with each trial done."""
    audits = {e.id: Audit(Figures(e.id)) for e in exercises}
    plans = [_plan(e, quick) for e in exercises if _complete(e, audits[e.id])]
    trials = [t for plan in plans for t in plan.trials]
    results = perform(course, trials, workers=workers, progress=progress(len(trials)))
    again = [t for plan in plans for t in time_trials(plan.answers[0], results[plan.answers[0]])]
    results |= perform(course, again, workers=1, progress=lambda trial: None)
    for plan in plans:
        _judge(plan, results, quick, audits[plan.exercise.id])
    return list(audits.values())


def _plan(exercise: Any, quick: bool) -> Plan:
    known = mistakes(exercise)
    plan = Plan(exercise, _state(exercise), answer_trials(exercise, quick), known,
                mistake_trials(exercise, known, quick))
    if not quick:
        plan.mutants, plan.mutated = mutant_trials(exercise)
        plan.stability = stability_trials(plan.answers[0])
    return plan


def _judge(plan: Plan, results: dict[Trial, Result], quick: bool, audit: Audit) -> None:
    judge_answers(plan.answers, results, audit)
    judge_mistakes(plan.known, plan.mistakes, results, quick, audit)
    if not quick:
        judge_mutants(plan.exercise, plan.mutants, plan.mutated, results, audit)
        alone = [t for t in plan.answers if t.alone and t.what == plan.answers[0].what]
        judge_stability(plan.answers[0], [*plan.stability, *alone], results, audit)
    judge_contract(plan.exercise, missed(plan.mistakes, results), quick, audit)
    if _state(plan.exercise) != plan.state:
        audit.fault("files", plan.exercise.id, "its files changed while they were audited; run the audit again")


def _state(exercise: Any) -> str:
    return tree_hash(exercise.folder, exercise.solution, exercise.reference, exercise.graders_dir)


def _complete(exercise: Any, audit: Audit) -> bool:
    """Whether the files are there without which nothing can be run."""
    needed = [exercise.brief, exercise.stub, exercise.visible_checks, exercise.solution, exercise.reference,
              exercise.graders_dir / "test_correctness.py", exercise.graders_dir / "misconceptions.py"]
    missing = [p for p in needed if not p.is_file()]
    for path in missing:
        audit.fault("files", path.relative_to(exercise.root).as_posix(), "is missing")
    return not missing
