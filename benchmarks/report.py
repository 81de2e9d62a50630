"""Figures against their bars: rows, the JSON document, the table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

SCHEMA = "llmkata/bench/v1"


@dataclass(frozen=True)
class Row:
    """A figure. ``measured`` is None where it could not be taken; ``note`` then says why."""

    key: str
    what: str
    measured: float | None
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``PASS``, ``miss``, ``not measured``; or ``told`` for a figure without a bar."""
        if self.measured is None:
            return "not measured"
        if self.at_least is None and self.at_most is None:
            return "told"
        low = self.at_least is not None and self.measured < self.at_least
        high = self.at_most is not None and self.measured > self.at_most
        return "miss" if low or high else "PASS"

    @property
    def bar(self) -> str:
        """``at least 100 times``."""
        bounds = [
            f"{word} {number(limit)} {self.unit}".rstrip()
            for word, limit in (("at least", self.at_least), ("at most", self.at_most))
            if limit is not None
        ]
        return " and ".join(bounds)


def ratio(a: float | None, b: float | None) -> float | None:
    """a / b; None where either is missing, or b is not positive (a slope that drowned in noise)."""
    return None if a is None or b is None or b <= 0 else a / b


def mean_of(runs: list[dict[str, float]], count: float, clock: str) -> float:
    """Seconds of the runs of so many, on average."""
    return mean(run[clock] for run in runs if run["count"] == count)


def slope_of(runs: list[dict[str, float]], clock: str) -> float:
    """Seconds that one more takes, from runs of two counts: what is paid once drops out."""
    few, many = min(run["count"] for run in runs), max(run["count"] for run in runs)
    return (mean_of(runs, many, clock) - mean_of(runs, few, clock)) / (many - few)


def number(value: float) -> str:
    """Four digits at most: ``0.1234``, ``12.3``, ``1234``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def document(name: str, rows: list[Row], samples: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """One JSON document: each figure under its key, the rows with bars and verdicts, what they were taken from."""
    return {
        "schema": SCHEMA, "benchmark": name, **facts, **{row.key: row.measured for row in rows},
        "rows": [asdict(row) | {"verdict": row.verdict} for row in rows], "samples": samples,
    }  # fmt: skip


def rows_of(document: dict[str, Any]) -> list[Row]:
    """The inverse of :func:`document`, of its rows."""
    return [Row(**{key: value for key, value in row.items() if key != "verdict"}) for row in document["rows"]]


def to_json(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False)


def show(document: dict[str, Any]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        title=f"{document['benchmark']}{' (quick: a rehearsal, no measurement)' * document['quick']}",
        title_justify="left",
    )
    for heading in ("Figure", "Measured", "Bar", "Verdict"):
        table.add_column(heading, overflow="fold")
    notes = []
    for row in rows_of(document):
        measured = "-" if row.measured is None else f"{number(row.measured)} {row.unit}".rstrip()
        style = {"PASS": "green", "miss": "bold red"}.get(row.verdict, "dim")
        verdict = "-" if document["quick"] else f"[{style}]{row.verdict}[/]"
        table.add_row(escape(row.what), measured, row.bar, verdict)
        notes += [f"{row.what}: {row.note}"] * bool(row.note)
    console = Console()
    console.print(table)
    for note in notes:
        console.print(escape(note), highlight=False)
    machine = document["machine"]
    console.print(
        f"{machine['cores']} cores of {machine['cpu']}, load {machine['load']} at the start, "
        f"{document['seconds']:.0f} s in all",
        highlight=False,
    )
