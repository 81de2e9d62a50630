"""The same verdict and the same counts on every run: other hash seeds, a busy machine, each check alone, other orders."""

from __future__ import annotations

import msgspec

from .report import Audit
from .trial import Result, Seen, Trial, bare

#: Busy processes beside the run, more than a core each on machines that learners and classes have.
_LOAD = 4
_HASH_SEEDS = (1, 2)


def stability_trials(hidden: Trial) -> list[Trial]:
    """Hidden grading of the model answer (``hidden``, as it was run first) in other circumstances."""
    again = msgspec.structs.replace
    return [again(hidden, attempt=100), again(hidden, load=_LOAD),
            *(again(hidden, hash_seed=seed) for seed in _HASH_SEEDS)]


def judge_stability(hidden: Trial, others: list[Trial], results: dict[Trial, Result], audit: Audit) -> None:
    """Verdicts and exact counts of ``others`` are those of ``hidden``."""
    first = {bare(c.name): c for c in results[hidden].checks}
    for trial in others:
        for check in results[trial].checks:
            before = first.get(bare(check.name))
            if before is not None:
                _compare(before, check, _how(trial), audit)
        if results[trial].problem:
            audit.fault("stability", _how(trial), results[trial].problem)


def _compare(before: Seen, now: Seen, how: str, audit: Audit) -> None:
    if before.outcome != now.outcome:
        audit.figures.flips += 1
        audit.fault("stability", now.name, f"{before.outcome.value}, but {now.outcome.value} {how}: {now.cause or before.cause}")
        return
    counted = {n.name: n.value for n in before.numbers if n.exact}
    for number in now.numbers:
        if number.exact and counted.get(number.name, number.value) != number.value:
            audit.figures.flips += 1
            audit.fault("stability", now.name, f"{number.name} was {counted[number.name]!r}, but is {number.value!r} {how}")


def _how(trial: Trial) -> str:
    if trial.hash_seed is not None:
        return f"with PYTHONHASHSEED={trial.hash_seed}"
    if trial.load:
        return f"beside {trial.load} busy processes"
    return "alone" if trial.alone else "on another run"
