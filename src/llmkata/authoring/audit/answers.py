"""Correct code passes, nothing else earns points: model answer, alternatives, stub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from .report import Audit
from .trial import Result, Trial

SEEDS = 20
#: Largest error/tolerance that correct code may show.
HEADROOM = 0.2
#: CPU seconds that hidden grading of the model answer may take.
SECONDS = 5.0
#: How often grading that took longer is timed again: another program may have held the core's caches.
_RETRIES = 2
#: A line that makes the stub another file than the one given out, so that its checks are run at all.
_TOUCH = "\n_touched = True\n"


def alternatives(exercise: Any) -> list[Path]:
    """Correct solutions in another style."""
    return sorted((exercise.graders_dir / "alternatives").glob("*.py"))


def answer_trials(exercise: Any, quick: bool) -> list[Trial]:
    """Seed 0 in the order of grading; the full audit adds each check alone, other seeds in random orders, and for the
    alternatives a failure forced on each check, after which no mistake may be named."""
    files = [(_SOLUTION, exercise.solution), *((f"alternatives/{p.stem}", p) for p in alternatives(exercise))]
    trials = []
    for what, path in files:
        trials += [_trial(exercise, what, path, checks=side, diagnosing=what != _SOLUTION) for side in ("hidden", "visible")]
        if not quick:
            trials += [_trial(exercise, what, path, forced=True)] if what != _SOLUTION else []
            trials += [_trial(exercise, what, path, alone=True)]
            trials += [_trial(exercise, what, path, seed=s, shuffle=s) for s in range(1, SEEDS)]
    return [*trials, stub_trial(exercise)]


_SOLUTION = "solution"


def _trial(exercise: Any, what: str, path: Path, **more: Any) -> Trial:
    return Trial(exercise.id, what, path.read_text("utf-8"), **more)


def stub_trial(exercise: Any) -> Trial:
    """The stub with a line that does nothing."""
    return Trial(exercise.id, "stub", exercise.stub.read_text("utf-8") + _TOUCH)


def time_trials(first: Trial, result: Result) -> list[Trial]:
    """Hidden grading of the model answer (``first``) again, where it took too long."""
    if result.cpu_seconds <= SECONDS:
        return []
    return [msgspec.structs.replace(first, attempt=n) for n in range(1, _RETRIES + 1)]


def judge_answers(trials: list[Trial], results: dict[Trial, Result], audit: Audit) -> None:
    """Figures and faults of model answer, alternatives and stub; ``trials`` as :func:`answer_trials` made them."""
    figures = audit.figures
    figures.stub = results[trials[-1]].points
    _stub(results[trials[-1]], audit)
    by_file: dict[str, list[Trial]] = {}
    for trial in trials[:-1]:
        by_file.setdefault(trial.what, []).append(trial)
    for what, mine in by_file.items():
        clean = _judge_file(what, mine, results, audit)
        named = {c.named: (c.name, t) for t in mine for c in results[t].checks if c.named}
        if what == _SOLUTION:
            figures.solution = min(results[t].points for t in mine if t.checks != "visible")
        else:
            figures.alternatives.passed += clean
            figures.alternatives.named += bool(named)
            for name, (check, _) in named.items():
                audit.fault("alternatives", what, f"{check} names the mistake {name} in correct code")
    figures.alternatives.total = len(by_file) - 1
    if len(by_file) < 3:
        audit.fault("alternatives", "alternatives/", f"there are {len(by_file) - 1} alternatives; at least 2 are needed")
    _time(trials[0], results, audit)


def _judge_file(what: str, trials: list[Trial], results: dict[Trial, Result], audit: Audit) -> bool:
    """Whether all runs of one correct file are as they must be; what is not is told once, with the runs it shows in."""
    found: dict[tuple[str, str], list[str]] = {}
    worst: dict[str, float] = {}
    for trial in trials:
        result, how = results[trial], _how(trial)
        if result.problem:
            found.setdefault(("correct code", result.problem), []).append(how)
        for check in result.lost:
            audit.figures.false_alarms += 1
            found.setdefault(("correct code", f"{check.name} {check.outcome.value}: {check.cause}"), []).append(how)
        for check in result.checks:
            note = f"{check.name} cannot run here: {check.cause}"
            if check.excused and note not in audit.notes:
                audit.notes.append(note)
            worst[check.name] = max(worst.get(check.name, 0.0), check.headroom or 0.0)
    for name, headroom in worst.items():
        audit.figures.headroom = max(audit.figures.headroom, headroom)
        if headroom > HEADROOM:
            audit.fault("headroom", what, f"{name} comes to {headroom:.3g} of its tolerance; at most {HEADROOM}")
    for (bar, text), runs in found.items():
        audit.fault(bar, what, f"{text} ({runs[0]}{f' and {len(runs) - 1} other runs' if len(runs) > 1 else ''})")
    return all(results[t].clean for t in trials)


def _how(trial: Trial) -> str:
    if trial.alone:
        return "each check alone"
    return f"seed {trial.seed}" + ("" if trial.shuffle is None else f", order {trial.shuffle}")


def _stub(result: Result, audit: Audit) -> None:
    if result.problem:
        audit.fault("stub", "stub", result.problem)
    for check in result.checks:
        if check.points:
            audit.fault("stub", check.name, f"the stub earns {check.points:g} points")


def _time(first: Trial, results: dict[Trial, Result], audit: Audit) -> None:
    times = [r.cpu_seconds for t, r in results.items() if msgspec.structs.replace(t, attempt=0) == first]
    audit.figures.seconds = min(times)
    if audit.figures.seconds > SECONDS:
        audit.fault("time", "hidden grading", f"takes {audit.figures.seconds:.2f} s of CPU; at most {SECONDS:g} s")
