"""What grading adds to the checks: the processor time of hidden grading against that of its checks, run warm in one
process, and what a submission costs whose checks cost next to nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .classes import ATTENTION, copies, hand_in, records_of
from .harness import SMALL, Harness, Spent
from .report import Row, ratio, slope_of

SIZES = {
    "full": {
        "exercise": "module2/self_attention",
        "rounds": 2,
        # Of a class as small as the smaller one the first submission is judged twice already, and forks judge several.
        "few": 8,
        "many": 24,
        "small_few": 20,
        "small_many": 100,
        "small": False,
    },
    "quick": {"exercise": ATTENTION, "rounds": 1, "few": 1, "many": 3, "small_few": 1, "small_many": 3, "small": True},
}
RATIO_BAR, FIXED_BAR, FIXED_GOAL = 1.15, 40, 25


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """Every figure is a slope between a small and a large number, so that start-up drops out; one worker on one core, which
    is what each has where all cores grade: a second, idle core is woken for each request, and its caches are cold. What is
    compared is run in turn, in several rounds: the speed of a machine changes from minute to minute."""
    with _one_core():
        return _measured(sizes, harness)


@contextmanager
def _one_core() -> Iterator[None]:
    """Commands that are started meanwhile stay on one core, the last one there is: interrupts like the first."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _measured(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    course = SMALL if sizes["small"] else harness.root
    warm, graded, small = [], [], []
    for _ in range(sizes["rounds"]):
        for count in (sizes["few"], sizes["many"]):
            harness.say(f"{sizes['exercise']}: {count} times warm in one process")
            command = [sys.executable, "-m", "benchmarks.warm", course, sizes["exercise"], str(count)]
            warm.append({"count": count, **harness.run(command, cwd=harness.root).times})
            harness.say(f"{sizes['exercise']}: kata grade, {count} submissions")
            graded.append({"count": count, **_grade(harness, course, sizes["exercise"], count).times})
        for count in (sizes["small_few"], sizes["small_many"]):
            harness.say(f"three assertions: kata grade, {count} submissions")
            small.append({"count": count, **_grade(harness, SMALL, ATTENTION, count).times})
    return {"exercise": sizes["exercise"], "warm": warm, "graded": graded, "small": small}


def _grade(harness: Harness, course: Any, exercise: str, count: int) -> Spent:
    folder = harness.folder("kata")
    source = (course / "solutions" / f"{exercise}.py").read_text("utf-8")
    hand_in(folder / "class", {exercise: copies(source, count)})
    # The whole class as one shard: records alone, no pages.
    words = ["--out", folder / "report", "--workers", "1", "--shard", "1/1"]
    spent = harness.run(harness.kata("grade", folder / "class", *words, course=course))
    records_of(folder / "report", count)
    return spent


def judge(samples: dict[str, Any]) -> list[Row]:
    warm, graded, small = (slope_of(samples[name], "cpu") for name in ("warm", "graded", "small"))
    return [
        Row("overhead", f"hidden grading of {samples['exercise']} / its checks warm in one process, CPU",
            ratio(graded, warm), "times", at_most=RATIO_BAR, note="both on one core; records alone, no pages; the bench that replays budgets is counted on both sides"),
        Row("graded_cpu_seconds", "CPU of hidden grading, a submission", graded, "s"),
        Row("warm_cpu_seconds", "CPU of its checks, warm", warm, "s"),
        Row("added_cpu_ms", "CPU added to a submission", 1e3 * (graded - warm), "ms"),
        Row("fixed_cpu_ms", "CPU of a submission with three assertions", 1e3 * small, "ms", at_most=FIXED_BAR,
            note=f"goal {FIXED_GOAL} ms; the assertions themselves take less than 1 ms"),
        Row("fixed_wall_ms", "wall time of a submission with three assertions, one worker",
            1e3 * slope_of(samples["small"], "wall"), "ms"),
    ]  # fmt: skip


def plot(samples: dict[str, Any], figure: Any) -> None:
    """What hidden grading costs beside its checks, and a submission of three assertions, each with its bar."""
    warm, graded, small = (slope_of(samples[name], "cpu") for name in ("warm", "graded", "small"))
    left, right = figure.subplots(1, 2)
    bars = left.bar(["checks, warm\nin one process", "hidden\ngrading"], [warm, graded], color=["#556677", "#1b7837"])
    left.bar_label(bars, fmt="%.2f s", label_type="center", color="white")
    left.axhline(RATIO_BAR * warm, color="#b2182b", linestyle="--", label=f"{RATIO_BAR} × the checks")
    left.set_ylabel("CPU seconds a submission")
    left.set_title(samples["exercise"], fontsize=10)
    bars = right.bar(["kata grade"], [1e3 * small], color="#1b7837", width=0.4)
    right.bar_label(bars, fmt="%.0f ms", label_type="center", color="white")
    right.axhline(FIXED_BAR, color="#b2182b", linestyle="--", label=f"bar {FIXED_BAR} ms")
    right.axhline(FIXED_GOAL, color="#2166ac", linestyle=":", label=f"goal {FIXED_GOAL} ms")
    right.set_xlim(-1, 1)
    right.set_ylabel("CPU milliseconds a submission")
    right.set_title("three assertions", fontsize=10)
    for axes in (left, right):
        axes.margins(y=0.25)
        axes.legend(fontsize=8)
