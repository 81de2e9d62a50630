"""``docs/benchmarks.md`` and its plots, from the results that were kept. Nothing is measured here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import NAMES
from .harness import MeasureError
from .report import number, rows_of
from .run import RESULTS, module

PLOTS = "img/benchmarks"
_HEAD = """\
# How fast it is

Made by `./kata bench --page` from `benchmarks/results/`; do not edit. To measure again, on a machine with nothing else
to do: `./kata bench NAME --save` for each of {names}, then `./kata bench --page`. `--quick` only shows that they run.

A figure without a bar is told for what it is. Where two clocks are given, *wall* is what a person waits for, *CPU* the
processor time of a command with everything that it started. What is compared was measured in one run.
"""


def write(root: Path) -> Path:
    """Write the page and the plots of all results -> the page. Raises MeasureError where there are none."""
    documents = [json.loads(path.read_bytes()) for name in NAMES if (path := RESULTS / f"{name}.json").is_file()]
    if not documents:
        raise MeasureError(f"no figures are kept in {RESULTS}: ./kata bench NAME --save measures and keeps some")
    page = root / "docs" / "benchmarks.md"
    (root / "docs" / PLOTS).mkdir(parents=True, exist_ok=True)
    for document in documents:
        draw(document, root / "docs" / PLOTS / f"{document['benchmark']}.svg")
    page.write_text(render(documents), "utf-8")
    return page


def render(documents: list[dict[str, Any]]) -> str:
    """The page as Markdown."""
    parts = [_HEAD.format(names=", ".join(f"`{name}`" for name in NAMES))]
    by_name = {document["benchmark"]: document for document in documents}
    for name, (what, minutes) in NAMES.items():
        parts.append(f"## {name}\n\n{' '.join(module(name).__doc__.split())}\n")
        if name in by_name:
            parts.append(_section(by_name[name]))
        else:
            parts.append(f"Not measured yet: {what} ({minutes} min).\n")
    return "\n".join(parts)


def _section(document: dict[str, Any]) -> str:
    name, machine = document["benchmark"], document["machine"]
    lines = ["| Figure | Measured | Bar | Verdict |", "|---|---:|---|---|"]
    notes = []
    for row in rows_of(document):
        measured = "" if row.measured is None else f"{number(row.measured)} {row.unit}".rstrip()
        mark = f" [{len(notes) + 1}]" if row.note else ""
        notes += [f"[{len(notes) + 1}] {row.note}."] if row.note else []
        verdict = f"**{row.verdict}**" if row.verdict in ("PASS", "miss") else row.verdict
        lines.append(f"| {_cell(row.what)}{mark} | {measured} | {row.bar} | {verdict} |")
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    facts = (
        f"Measured {document['started'][:10]} in {document['seconds']:.0f} s at commit `{machine['commit']}` on "
        f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, load {machine['load']} at the start; "
        f"{machine['system']}, Python {machine['python']}, {versions}. Sizes: "
        + ", ".join(f"{key} {_size(value)}" for key, value in document["sizes"].items()) + "."
    )  # fmt: skip
    table = "\n".join(lines)
    told = "  \n".join(_cell(note) for note in notes)
    shown = f"{name}: {' '.join(module(name).plot.__doc__.split())}"
    return f"{table}\n\n{told}\n\n![{shown}]({PLOTS}/{name}.svg)\n\n{facts}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _size(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def draw(document: dict[str, Any], path: Path) -> None:
    """The plot of one result as SVG; the same bytes for the same result."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(
        {"svg.hashsalt": "llmkata", "font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = pyplot.figure(figsize=(9, 3.6), layout="constrained")
        try:
            module(document["benchmark"]).plot(document["samples"], figure)
            figure.savefig(path, format="svg", metadata={"Date": None})
        finally:
            pyplot.close(figure)
