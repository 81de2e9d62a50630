"""What an audit says: the figures of an exercise, and each thing that is not as it must be."""

from __future__ import annotations

import msgspec


class Mistakes(msgspec.Struct):
    rejected: int = 0
    named: int = 0
    total: int = 0


class Alternatives(msgspec.Struct):
    passed: int = 0
    total: int = 0
    #: How many were given the name of a mistake, after a failure forced on them too.
    named: int = 0


class Mutants(msgspec.Struct):
    killed: int = 0
    survived: int = 0
    equivalent: int = 0
    total: int = 0


class Figures(msgspec.Struct):
    """One exercise in ``kata audit --json``."""

    exercise: str
    #: Share of the points that the model answer and the stub earn (of several runs: the least, the most).
    solution: float = 0.0
    stub: float = 0.0
    misconceptions: Mistakes = msgspec.field(default_factory=Mistakes)
    alternatives: Alternatives = msgspec.field(default_factory=Alternatives)
    mutants: Mutants = msgspec.field(default_factory=Mutants)
    #: Largest error/tolerance of the model answer and the alternatives.
    headroom: float = 0.0
    #: Checks that correct code did not pass, over all runs.
    false_alarms: int = 0
    #: Checks whose verdict or count changed between runs that must agree.
    flips: int = 0
    #: CPU seconds of hidden grading of the model answer.
    seconds: float = 0.0


class Fault(msgspec.Struct, frozen=True, order=True):
    """One thing to put right: which bar, where (file and line, a check, a name), what."""

    bar: str
    where: str
    what: str


class Audit(msgspec.Struct):
    """An exercise's figures and faults; clean where there are none."""

    figures: Figures
    faults: list[Fault] = []
    #: Worth knowing, no fault: what cannot run on this machine, the raw mutation score.
    notes: list[str] = []
    #: Mutants that no hidden check notices: ``file:line function: change``.
    survivors: list[str] = []

    def fault(self, bar: str, where: str, what: str) -> None:
        self.faults.append(Fault(bar, where, what))

    @property
    def clean(self) -> bool:
        return not self.faults


def to_text(audit: Audit, quick: bool) -> str:
    """A paragraph for the terminal: figures first, then every fault."""
    f = audit.figures
    a, m, x = f.alternatives, f.misconceptions, f.mutants
    rows = [
        ("solution", f"{100 * f.solution:.4g} % of the points, stub {100 * f.stub:.4g} %"),
        ("alternatives", f"{a.passed} of {a.total} pass, {a.named} named"),
        ("misconceptions", f"{m.rejected} of {m.total} rejected, {m.named} named"),
        ("headroom", f"{f.headroom:.3g} of the tolerance at most (limit 0.2)"),
        ("hidden grading", f"{f.seconds:.2f} s of CPU (limit 5 s)"),
    ]
    if not quick:
        open_ = x.total - x.equivalent
        score = f", {100 * x.killed / open_:.1f} % of the rest killed" if open_ else ""
        counts = f"{x.killed} of {x.total} killed, {x.survived} survived, {x.equivalent} declared equivalent"
        rows += [("mutants", counts + score), ("stability", f"{f.false_alarms} false alarms, {f.flips} flips")]
    lines = [f"{f.exercise}: {'clean' if audit.clean else f'{len(audit.faults)} faults'}"]
    lines += [f"  {name:15s} {text}" for name, text in rows]
    lines += [f"  note: {note}" for note in audit.notes]
    if audit.survivors:
        lines += ["  survivors:", *(f"    {text}" for text in audit.survivors)]
    bar = ""
    for fault in sorted(audit.faults):
        if fault.bar != bar:
            bar = fault.bar
            lines.append(f"  NOT CLEAN: {bar}")
        lines.append(f"    {fault.where}: {fault.what}")
    return "\n".join(lines)


_COLUMNS = ("exercise", "solution", "stub", "alternatives", "mistakes rejected", "named", "mutants killed", "declared", "headroom",
            "false alarms", "flips", "CPU s")


_LEGEND = ("Made by `./kata audit [EXERCISE...] --page docs/audit.md`; every exercise of the table was audited in full, and rows of "
           "those that are not named stay as they were. Solution and stub: share of the points. Mutants killed: of those not "
           "declared equivalent. Headroom: largest error/tolerance of correct code, at most 0.2. CPU: hidden grading of the "
           "solution, at most 5 s.")


def to_page(audits: list[Audit], exercises: list[str], before: str = "") -> str:
    """``docs/audit.md``: the figures of full audits as a table, what survived, what is not clean, and which of the course's
    ``exercises`` were not audited in full. What the page said ``before`` of those that were not audited now stays."""
    rows, told = _said(before)
    for audit in audits:
        f = audit.figures
        m, a, x = f.misconceptions, f.alternatives, f.mutants
        cells = [f.exercise, f"{f.solution:.4g}", f"{f.stub:.4g}", f"{a.passed} of {a.total}", f"{m.rejected} of {m.total}",
                 f"{m.named}", f"{x.killed} of {x.total - x.equivalent}", f"{x.equivalent}", f"{f.headroom:.3f}",
                 f"{f.false_alarms}", f"{f.flips}", f"{f.seconds:.2f}"]
        rows[f.exercise] = f"| {' | '.join(cells)} |"
        told[f.exercise] = [f"- not clean: {fault.where}: {fault.what}" for fault in sorted(audit.faults)]
        told[f.exercise] += [f"- survives: `{text}`" for text in audit.survivors]
    lines = ["# The graders, graded", "", _LEGEND, "", f"| {' | '.join(_COLUMNS)} |", f"|{'---|' * len(_COLUMNS)}"]
    lines += [rows[name] for name in exercises if name in rows]
    if left_out := [name for name in exercises if name not in rows]:
        lines += ["", f"Not audited in full: {', '.join(left_out)}."]
    for name in exercises:
        if name in rows and told.get(name):
            lines += ["", f"## {name}", "", *told[name]]
    return "\n".join(lines) + "\n"


def _said(page: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The row of each exercise of a page, and what stands below the table of it."""
    table, *sections = page.split("\n## ")
    rows = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("| module")}
    told = {lines[0]: [line for line in lines[1:] if line] for lines in map(str.splitlines, sections)}
    return rows, told


def to_json(audits: list[Audit]) -> str:
    """One array with an object per exercise."""
    return msgspec.json.encode([a.figures for a in audits]).decode()
