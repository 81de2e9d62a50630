"""An audit from beginning to end: which trials are needed, and what their results say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmkata.checks.misconceptions import Misconception
from llmkata.grading.provenance import tree_hash

from .answers import answer_trials, judge_answers, time_trials
from .contract import judge_contract
from .mistakes import judge_mistakes, mistake_trials, mistakes
from .pool import perform
from .report import Audit, Figures
from .trial import Result, Trial


class Plan(msgspec.Struct):
    """What is run for one exercise, fixed when the audit begins."""

    exercise: Any
    #: Hash of all its files: an audit of files that change meanwhile says nothing.
    state: str
    answers: list[Trial]
    known: list[Misconception]
    mistakes: list[Trial]

    @property
    def trials(self) -> list[Trial]:
        return [*self.answers, *self.mistakes]


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
    return Plan(exercise, _state(exercise), answer_trials(exercise, quick), known,
                mistake_trials(exercise, known, quick))


def _judge(plan: Plan, results: dict[Trial, Result], quick: bool, audit: Audit) -> None:
    judge_answers(plan.answers, results, audit)
    judge_mistakes(plan.known, plan.mistakes, results, quick, audit)
    judge_contract(plan.exercise, audit)
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
