"""What a learner waits for: from save to verdict in ``kata watch``, and a cold pytest of one exercise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Self

from .harness import Harness, MeasureError, environ
from .report import Row, ratio

WATCHED = "module2/self_attention"
#: Bar of a cold pytest over the imports that it cannot do without, where no figure is drawn, and where one is.
_PLAIN, _FIGURE = 1.5, 2.0
COLD = {
    "module0/matrix_calculus": _PLAIN, "module2/transformer_encoder": _PLAIN, "module2/multi_head_attention": _FIGURE,
    "module2/normalization": _FIGURE, WATCHED: _FIGURE,
}  # fmt: skip
SIZES = {"full": {"saves": 40, "rounds": 5, "cold": list(COLD)}, "quick": {"saves": 2, "rounds": 1, "cold": [WATCHED]}}
VERDICT_BAR = 500
_IMPORTS = "import torch, pytest"
#: Seconds after which a verdict will not come any more, and between a verdict and the next save.
_PATIENCE, _PAUSE = 120.0, 0.3
_FOLDERS = ("exercises", "solutions", "reference", "graders", "components")


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """In a copy of the course that has the model answers in place of the stubs: the learner's files stay as they are."""
    course = _copy(harness)
    with _Watch(course) as watch:
        harness.say(f"kata watch {WATCHED}: warming up")
        watch.verdict()
        harness.say(f"{sizes['saves']} saves, a right answer and a wrong one in turn")
        saves = [watch.save(right=i % 2 == 1) for i in range(sizes["saves"])]
    cold: dict[str, list[dict[str, float]]] = {name: [] for name in ("imports", *sizes["cold"])}
    for i in range(sizes["rounds"] + 1):
        # Round 0 is not counted: Python and pytest compile what they meet for the first time, and keep it.
        harness.say(f"cold starts, round {i} of {sizes['rounds']}")
        for name, runs in cold.items():
            command = ["-c", _IMPORTS] if name == "imports" else ["-m", "pytest", f"exercises/{name}"]
            spent = harness.run([sys.executable, *command], cwd=course)
            if name != "imports" and not re.search(r"\d+ passed|checks pass", spent.output):
                raise MeasureError(f"pytest exercises/{name} passed nothing:\n{spent.output[-2000:]}")
            if i:
                runs.append(spent.times)
    return {"saves": saves, "cold": cold}


def _copy(harness: Harness) -> Path:
    course = harness.folder("course")
    for name in _FOLDERS:
        shutil.copytree(harness.root / name, course / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("course.yaml", "pyproject.toml"):
        shutil.copyfile(harness.root / name, course / name)
    for name in COLD:
        shutil.copyfile(course / "solutions" / f"{name}.py", _stub(course, name))
    return course


def _stub(course: Path, exercise: str) -> Path:
    return course / "exercises" / exercise / f"{exercise.rpartition('/')[2]}.py"


class _Watch:
    """``kata watch`` without a terminal: it prints ``checking...`` when it sees a save, and the verdict in one piece."""

    def __init__(self, course: Path) -> None:
        self.file, self._said, self._new = _stub(course, WATCHED), "", threading.Condition()
        self._right = self.file.read_text("utf-8")
        self._count, self._at = 0, 0.0
        command = [sys.executable, "-m", "llmkata.cli.main", "--course", str(course), "watch", WATCHED]
        self._process = subprocess.Popen(
            command,
            cwd=course,
            env=environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def _read(self) -> None:
        while chunk := os.read(self._process.stdout.fileno(), 1 << 16):
            with self._new:
                self._at = time.perf_counter()
                self._said += chunk.decode("utf-8", "replace")
                self._new.notify()

    def verdict(self) -> tuple[float, str]:
        """Wait for a verdict after a ``checking...`` -> (when it was there, its text); what was said is forgotten."""
        with self._new:
            # The bar of tasks is the last line of a verdict.
            if not self._new.wait_for(lambda: self._verdict() is not None, _PATIENCE):
                raise MeasureError(f"no verdict within {_PATIENCE:g} s; kata watch said:\n{self._said[-3000:]}")
            text, self._said = self._verdict(), ""
            return self._at, text

    def _verdict(self) -> str | None:
        text = self._said.rpartition("checking...")[2] if "checking..." in self._said else ""
        return text if re.search(r"\d+/\d+ tasks", text) else None

    def save(self, *, right: bool) -> float:
        """Save as an editor does, by replacing the file -> milliseconds until the verdict, which must be the right one."""
        time.sleep(_PAUSE)
        self._count += 1
        # The output that a missing scale gives, from the same code.
        wrong = "\n_scaled = attention\n\n\ndef attention(q, *more, **kw):\n    return _scaled(2 * q, *more, **kw)\n"
        partial = self.file.with_name("saved.tmp")
        partial.write_text(f"{self._right}{'' if right else wrong}\n# {self._count}\n", "utf-8")
        began = time.perf_counter()
        partial.replace(self.file)
        at, text = self.verdict()
        if ("✗" in text) == right:
            raise MeasureError(f"a {'right' if right else 'wrong'} answer was judged:\n{text}")
        return round(1e3 * (at - began), 1)


def cold_ratio(samples: dict[str, Any], name: str, clock: str) -> float | None:
    """Median over rounds of a cold pytest of ``name`` over the imports in the same round."""
    rounds = zip(samples["cold"][name], samples["cold"]["imports"], strict=True)
    return median(ratio(run[clock], base[clock]) for run, base in rounds)


def judge(samples: dict[str, Any]) -> list[Row]:
    """Medians; what a person waits for is the wall clock."""
    saves = samples["saves"]
    rows = [
        Row("watch_ms", f"save to verdict, {WATCHED}, median of {len(saves)}", median(saves), "ms", at_most=VERDICT_BAR,
            note="right and wrong answers in turn; a wrong one is shown at its first failing check on a terminal, earlier"),
        Row("watch_p90_ms", "save to verdict, 90th percentile", quantiles(saves, n=10)[-1], "ms"),
    ]  # fmt: skip
    for name in samples["cold"]:
        if name != "imports":
            slug = name.rpartition("/")[2]
            rows.append(
                Row(
                    f"cold_{slug}",
                    f"cold pytest of {name} / python -c '{_IMPORTS}', wall",
                    cold_ratio(samples, name, "wall"),
                    "times",
                    at_most=COLD[name],
                )
            )
            rows.append(Row(f"cold_{slug}_cpu", f"the same of {name}, CPU", cold_ratio(samples, name, "cpu"), "times"))
    imports = [run["wall"] for run in samples["cold"]["imports"]]
    return [*rows, Row("imports_seconds", f"python -c '{_IMPORTS}', wall", median(imports), "s")]


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Seconds from each save to its verdict, and of a cold pytest of each exercise, with their bars."""
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.plot(range(1, len(samples["saves"]) + 1), samples["saves"], "o", markersize=4, color="#1b7837", label="a save")
    left.axhline(median(samples["saves"]), color="#1b7837", linewidth=1, label="median")
    left.axhline(VERDICT_BAR, color="#b2182b", linestyle="--", label=f"bar {VERDICT_BAR} ms (median)")
    left.set_ylim(bottom=0)
    left.set_xlabel("save")
    left.set_ylabel("milliseconds to the verdict")
    left.set_title(f"kata watch {WATCHED}", fontsize=10)
    left.legend(fontsize=8)
    names = [name for name in samples["cold"] if name != "imports"]
    places = range(len(names))
    bars = right.barh(places, [cold_ratio(samples, name, "wall") for name in names], color="#1b7837")
    right.bar_label(bars, fmt="%.2f", padding=3)
    for place, name in enumerate(names):
        right.plot(
            [COLD[name]] * 2,
            [place - 0.45, place + 0.45],
            color="#b2182b",
            linestyle="--",
            label="bar" if place == 0 else None,
        )
    right.set_yticks(places, [name.rpartition("/")[2] for name in names], fontsize=8)
    right.set_xlabel(f"wall time over python -c '{_IMPORTS}'", fontsize=9)
    right.set_title("cold pytest of one exercise", fontsize=10)
    right.margins(x=0.2)
    right.legend(fontsize=8, loc="lower right")
