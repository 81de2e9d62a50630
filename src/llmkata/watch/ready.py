"""Makes the warm process ready for what the exercise will do: libraries its files import, and what those compute once in
a process (a fork that computes it takes it along when it ends).
"""

from __future__ import annotations

import ast
import contextlib
import gc
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmkata.forks import bring_in


class Ready:
    """Of one process. ``exercise``: what its files import is imported, wherever in them it stands."""

    def __init__(self, exercise: Any) -> None:
        self._exercise: Any | None = exercise
        self._filled: set[str] = set()

    def next(self) -> None:
        """Do what is left to be done, before the next run."""
        first, self._exercise = self._exercise, None
        if first is not None:
            bring_in(name for file in (first.visible_checks, first.stub) for name in imports(file))
            with contextlib.suppress(Exception):  # a courtesy, like those below
                _known_mistakes(first)
        left = [name for name in _CACHES if name in sys.modules and name not in self._filled]
        for name in left:
            self._filled.add(name)
            with contextlib.suppress(Exception):
                _CACHES[name]()
        if left or first is not None:
            gc.collect()
            gc.freeze()


def _known_mistakes(exercise: Any) -> None:
    """Where the course has its answers, a wrong one is compared with them: they are read and compiled."""
    if not exercise.solution.exists():
        return
    from llmkata.plugin.runs import ExerciseRun, Setting

    run = ExerciseRun(exercise, Setting("loopback"), b"", exercise.slug)
    with contextlib.closing(run):
        for mistake in [None, *run.misconceptions[:1]]:
            run.ours(mistake).open()


def imports(file: Path) -> Iterator[str]:
    """The modules of installed packages that a file imports, in functions and probes too; none where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from filter(_installed, (alias.name for alias in node.names))
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level and _installed(node.module):
            yield node.module


def _installed(name: str) -> bool:
    """Whether a module belongs to an installed package: a file beside the learner's is theirs."""
    with contextlib.suppress(Exception):
        spec = importlib.util.find_spec(name.partition(".")[0])
        return spec is not None and any(place in str(spec.origin) for place in ("site-packages", "dist-packages"))
    return False


def _matplotlib() -> None:
    """Fonts, the parser of formulas, the metrics of what stands at an axis."""
    from matplotlib.figure import Figure

    figure = Figure()
    axes = figure.subplots()
    axes.loglog([1e-3, 1.0, 1e3], [1e-3, 1.0, 1e3], label="$x^{-1}$")
    axes.set(title="Title", xlabel="x", ylabel="y")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")


def _transformers() -> None:
    """The renamings of weights, a thousand regular expressions: needed to save or load any model."""
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("gpt2")


_CACHES: dict[str, Callable[[], None]] = {
    "matplotlib.figure": _matplotlib, "transformers.conversion_mapping": _transformers,
}
