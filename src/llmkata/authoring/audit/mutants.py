"""Mutants of the model answer: the hidden checks notice each, but for a few that are declared to be as good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from .mutation.engine import Mutant, mutants
from .report import Audit
from .trial import Result, Trial

#: Share of the mutants that may be declared equivalent, and share of the rest that must be killed.
EQUIVALENT, KILLED = 0.10, 0.95
#: Limits of a mutant: CPU seconds of one request, seconds of all. Small, because some never end.
_REQUEST_SECONDS, _WALL_SECONDS = 2.0, 30.0

#: What notices a mutant that cannot be imported.
IMPORT = "the import"


class Equivalent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``mutants.yaml``. ``nth`` picks one of several equal changes in a function (1, 2, ...)."""

    where: str
    change: str
    reason: str
    nth: int = 0

    def holds(self, place: tuple[str, str, int]) -> bool:
        where, change, number = place
        return (where, change) == (self.where, self.change) and self.nth in (0, number)


def mutant_trials(exercise: Any) -> tuple[list[Mutant], list[Trial]]:
    """The mutants, and a trial for each; the last trial is of the model answer as it is, under the same limits."""
    source = exercise.solution.read_text("utf-8")
    found = mutants(source)
    common = {"checks": "hidden", "stop": True, "request_seconds": _REQUEST_SECONDS, "wall_seconds": _WALL_SECONDS}
    trials = [Trial(exercise.id, f"mutant {m.line} {m.change}", m.source, first=m.task, **common) for m in found]
    return found, [*trials, Trial(exercise.id, "solution", source, **common)]


def judge_mutants(exercise: Any, found: list[Mutant], trials: list[Trial], results: dict[Trial, Result],
                  audit: Audit) -> None:
    """Figures and faults of the mutants."""
    control = results[trials[-1]]
    if not control.clean:
        why = control.problem or f"{control.lost[0].name}: {control.lost[0].cause}"
        audit.fault("mutants", "solution", f"the model answer itself is rejected under the limits of mutants: {why}")
        return
    figures = audit.figures.mutants
    figures.total = len(found)
    entries = _declared(exercise, audit)
    used: set[Equivalent] = set()
    solution = exercise.solution.relative_to(exercise.root).as_posix()
    for mutant, place, trial in zip(found, _places(found), trials, strict=False):
        declared = next((e for e in entries if e.holds(place)), None)
        killed_by = killer(results[trial])
        if declared is not None:
            used.add(declared)
            figures.equivalent += 1
            if killed_by:
                audit.fault("mutants", f"{solution}:{mutant.line}",
                            f"{mutant.change}: declared equivalent, but {killed_by} kills it")
        elif killed_by:
            figures.killed += 1
        else:
            figures.survived += 1
            nth = f" (nth: {place[2]})" if _repeated(place, _places(found)) else ""
            audit.survivors.append(f"{solution}:{mutant.line} {mutant.where}: {mutant.change}{nth}{_unjudged(results[trial])}")
    for entry in entries:
        if entry not in used:
            audit.fault("mutants", "mutants.yaml", f"no mutant is {entry.where}: {entry.change}")
    _bars(audit)


def _bars(audit: Audit) -> None:
    f = audit.figures.mutants
    if f.total:
        audit.notes.append(f"raw mutation score {100 * f.killed / f.total:.1f} % of {f.total}")
    if f.equivalent > EQUIVALENT * f.total:
        audit.fault("mutants", "mutants.yaml", f"declares {f.equivalent} of {f.total} equivalent; at most "
                                               f"{100 * EQUIVALENT:g} % may be")
    open_ = f.total - f.equivalent
    if f.killed < KILLED * open_:
        audit.fault("mutants", f"{f.survived} survivors", f"{100 * f.killed / open_:.1f} % of the mutants are killed; at "
                                                          f"least {100 * KILLED:g} % must be")


def killer(result: Result) -> str:
    """What noticed a mutant, "" where nothing did. A check that could not judge it has not noticed it."""
    if result.problem and not result.fault:
        return IMPORT
    return next((c.name for c in result.checks if c.outcome.value == "failed"), "")


def _unjudged(result: Result) -> str:
    faults = [f"{c.name} ({c.cause})" for c in result.checks if c.fault]
    faults += [result.problem] if result.fault else []
    return f" [not judged: {'; '.join(faults)[:300]}]" if faults else ""


def _places(found: list[Mutant]) -> list[tuple[str, str, int]]:
    """(function, change, how manieth of its kind in the function) of each mutant."""
    count: dict[tuple[str, str], int] = {}
    places = []
    for m in found:
        count[m.where, m.change] = count.get((m.where, m.change), 0) + 1
        places.append((m.where, m.change, count[m.where, m.change]))
    return places


def _repeated(place: tuple[str, str, int], places: list[tuple[str, str, int]]) -> bool:
    return sum(p[:2] == place[:2] for p in places) > 1


def _declared(exercise: Any, audit: Audit) -> list[Equivalent]:
    path: Path = exercise.graders_dir / "mutants.yaml"
    if not path.exists():
        return []
    try:
        entries = msgspec.convert(yaml.safe_load(path.read_text("utf-8")) or [], list[Equivalent])
    except (yaml.YAMLError, msgspec.ValidationError) as e:
        audit.fault("mutants", "mutants.yaml", f"cannot be read: {e}")
        return []
    for entry in entries:
        if len(entry.reason.split()) < 4:
            audit.fault("mutants", "mutants.yaml", f"{entry.where}: {entry.change} needs a reason why nobody can tell")
    return entries
