"""A failed check in the terminal: what, where, why, and the next step; never a page of traceback."""

from __future__ import annotations

from llmkata.records import CheckRecord


def failure_text(record: CheckRecord) -> str:
    """Plain text of a failed check: the named mistake first, then the smallest failing case."""
    lines = [f"task {record.task}: {record.title}"]
    if record.diagnosis is not None:
        lines.append(f"  {record.diagnosis.feedback}")
    lines.append(f"  {record.cause}")
    e = record.evidence
    if e is not None:
        lines += [f"    {label:9s}{text}" for label, text in
                  (("call", e.call), ("expected", e.expected), ("got", e.got), ("index", e.index)) if text]
        lines += [f"    {frame}" for frame in e.frames]
    for m in record.measures:
        if not m.ok:
            lines.append(f"    {m.name}: {m.value:.6g} {m.unit}"
                         + (f", at most {m.at_most:.6g}" if m.at_most is not None else "")
                         + (f", at least {m.at_least:.6g}" if m.at_least is not None else ""))
            lines += [f"      line {s.line}: {s.label} {s.value:.6g}" for s in m.spots[:3] if s.line]
    return "\n".join(_printable(line) for line in lines)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
