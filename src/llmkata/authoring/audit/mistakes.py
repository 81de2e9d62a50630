"""Known mistakes: each is rejected by the check its entry names, clearly, and told by its own name."""

from __future__ import annotations

from typing import Any

from llmkata.checks.misconceptions import Misconception, load
from llmkata.records import Outcome

from .report import Audit
from .trial import Result, Seen, Trial, bare

#: Least error/tolerance by which a mistake must be off.
APART = 5.0


def mistakes(exercise: Any) -> list[Misconception]:
    """The entries of ``misconceptions.py``."""
    return load(exercise.graders_dir / "misconceptions.py")


def mistake_trials(exercise: Any, known: list[Misconception], quick: bool) -> list[Trial]:
    """Each mistake in the model answer, against the check it names; in the full audit against all."""
    source = exercise.solution.read_text("utf-8")
    return [Trial(exercise.id, f"misconception {m.name}", source, mistake=m.name, only=(m.caught_by,) if quick else (),
                  diagnosing=True) for m in known]


def judge_mistakes(known: list[Misconception], trials: list[Trial], results: dict[Trial, Result], quick: bool,
                   audit: Audit) -> None:
    """Figures and faults of the known mistakes; ``trials`` as :func:`mistake_trials` made them of ``known``."""
    if not known:
        audit.fault("misconceptions", "misconceptions.py", "there are none")
    audit.figures.misconceptions.total = len(known)
    family = {m.name: m.equivalent_to or m.name for m in known}
    for m, trial in zip(known, trials, strict=True):
        if m.equivalent_to and m.equivalent_to not in family:
            audit.fault("misconceptions", _where(m), f"equivalent_to names {m.equivalent_to}, which does not exist")
        result = results[trial]
        caught = result.check(m.caught_by)
        why = _not_rejected(m, result, caught)
        audit.figures.misconceptions.rejected += not why
        if why:
            audit.fault("misconceptions", _where(m), why)
            continue
        if family.get(caught.named) == family[m.name]:
            audit.figures.misconceptions.named += 1
        else:
            said = f"as {caught.named}" if caught.named else "by no name"
            audit.fault("misconceptions", _where(m), f"{caught.name} rejects it but diagnoses it {said}: {caught.cause}")
    if not quick:
        _confusion(known, family, confusion(known, trials, results), audit)


def _where(m: Misconception) -> str:
    return f"misconceptions.py:{m.line} {m.name}"


def _not_rejected(m: Misconception, result: Result, caught: Seen | None) -> str:
    """Why a mistake does not count as rejected by the check that its entry names, or ""."""
    if result.problem:
        return result.problem
    if caught is None:
        return f"caught_by names {m.caught_by}, which does not exist"
    if caught.passed:
        return f"{m.caught_by} does not reject it"
    if caught.outcome is not Outcome.failed:
        return f"{m.caught_by} did not judge it: {caught.cause}"
    if m.matches and not caught.budget:
        return f"it is to be told by {m.matches}, but {m.caught_by} fails on its answers: {caught.cause}"
    if caught.ratio is not None and caught.ratio < APART:
        return f"{m.caught_by} rejects it by only {caught.ratio:.3g} of the tolerance; at least {APART:g}"
    return ""


def confusion(known: list[Misconception], trials: list[Trial], results: dict[Trial, Result],
              ) -> dict[str, dict[str, list[str]]]:
    """mistake -> name given ("" for none) -> the checks that gave it, over all checks that failed."""
    table: dict[str, dict[str, list[str]]] = {}
    for m, trial in zip(known, trials, strict=True):
        row = table.setdefault(m.name, {})
        for check in results[trial].checks:
            if check.outcome is Outcome.failed:
                row.setdefault(check.named, []).append(check.name)
    return table


def missed(trials: list[Trial], results: dict[Trial, Result]) -> set[str]:
    """The checks that some mistake failed by missing a budget."""
    return {bare(c.name) for t in trials for c in results[t].checks if c.budget}


def _confusion(known: list[Misconception], family: dict[str, str], table: dict[str, dict[str, list[str]]],
               audit: Audit) -> None:
    for m in known:
        for name, checks in table[m.name].items():
            if name and family[name] != family[m.name]:
                audit.fault("misconceptions", _where(m), f"{', '.join(checks)} diagnoses it as {name}")
