"""Runs one benchmark: collects, judges, keeps."""

from __future__ import annotations

import datetime
import importlib
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from .harness import Harness
from .machine import facts
from .report import document, to_json

RESULTS = Path(__file__).parent / "results"
#: Load average for each core from which on clocks tell little.
BUSY = 0.25


def module(name: str) -> ModuleType:
    """The module of a benchmark."""
    return importlib.import_module(f"benchmarks.{name}")


def run(name: str, root: Path, *, quick: bool = False, save: bool = False) -> dict[str, Any]:
    """Measure -> the document. ``save`` writes it to ``results/<name>.json``.

    Raises MeasureError where a command that was to be measured did something else.
    """
    found = module(name)
    machine, began = facts(root), time.monotonic()
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with tempfile.TemporaryDirectory(prefix=f"kata-bench-{name}-") as scratch:
        sizes = found.SIZES["quick" if quick else "full"]
        harness = Harness(root, Path(scratch))
        if machine["load"] > BUSY * machine["cores"] and not quick:
            harness.say(f"load {machine['load']} on {machine['cores']} cores: this machine has other things to do")
        samples = found.collect(sizes, harness)
    made = document(
        name,
        found.judge(samples),
        samples,
        quick=quick,
        started=started,
        seconds=round(time.monotonic() - began, 1),
        machine=machine,
        sizes=sizes,
    )
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(to_json(made) + "\n", "utf-8")
    return made
