"""Ten times the class: does a submission take longer, does the coordinator grow, is anything left behind?"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from typing import Any

from .classes import ATTENTION, answers, hand_in, points_of, records_of, require_points
from .harness import SMALL, Harness
from .report import Row, ratio

SIZES = {"full": {"few": 200, "many": 2000, "workers": 2}, "quick": {"few": 4, "many": 8, "workers": 2}}
TIME_BAR, MEMORY_BAR, TEMPLATE_BAR = 1.10, 50, 10
_MB = 1e6


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """Both classes under the meter, which looks at the command while it grades."""
    runs = []
    for count in (sizes["few"], sizes["many"]):
        harness.say(f"kata grade: {count} submissions on {sizes['workers']} workers")
        folder, work = harness.folder("kata"), answers(count)
        hand_in(folder / "class", {ATTENTION: [source for source, _ in work]})
        command = harness.kata(
            "grade", folder / "class", "--out", folder / "report", "--workers", str(sizes["workers"]), course=SMALL
        )
        spent = harness.run(command, records=folder / "report" / "records.jsonl")
        records = sorted(records_of(folder / "report", count), key=lambda record: record["learner"])
        require_points("kata grade", [points_of(record) for record in records], [points for _, points in work])
        runs.append({"count": count, **spent.times, "left": spent.left, "seen": spent.samples})
    return {"workers": sizes["workers"], "runs": runs}


def pace(run: dict[str, Any]) -> float | None:
    """Seconds of a submission while grading is under way, from the first record that was seen to the last."""
    seen = [s for s in run["seen"] if s["records"]]
    last = next((s for s in seen if s["records"] == seen[-1]["records"]), None)
    if last is None or last["records"] == seen[0]["records"]:
        return None
    return (last["at"] - seen[0]["at"]) / (last["records"] - seen[0]["records"])


def grading(run: dict[str, Any], begin: int) -> list[dict[str, Any]]:
    """What was seen from ``begin`` records on until the last but one look at grading: after it pages are written."""
    return [s for s in run["seen"] if begin <= s["records"] < run["count"]]


def growth(run: dict[str, Any], begin: int) -> float | None:
    """By how many MB the coordinator grew from the moment ``begin`` records were there, at most."""
    seen = [s["resident"] for s in grading(run, begin)]
    return (max(seen) - seen[0]) / _MB if seen else None


def more_descriptors(run: dict[str, Any], begin: int) -> float | None:
    """Descriptors of the coordinator in the last tenth of grading beyond those around ``begin`` records (medians)."""
    seen = [s["descriptors"] for s in grading(run, begin) if s["descriptors"] is not None]
    part = max(len(seen) // 10, 1)
    return median(seen[-part:]) - median(seen[:part]) if seen else None


def template_growth(run: dict[str, Any], begin: int) -> float | None:
    """Percent by which private memory of templates grew from ``begin`` records on, the worst; one that was replaced
    is compared with what it replaced."""
    seen = [list(s["templates"].values()) for s in grading(run, begin) if s["templates"]]
    if not seen:
        return None
    largest = [max(sizes) for sizes in seen]
    return 100 * (max(largest[-max(len(largest) // 10, 1) :]) / largest[0] - 1)


def judge(samples: dict[str, Any]) -> list[Row]:
    few, many = samples["runs"]
    begin = few["count"]
    hidden = "not visible to this user" if all(s["descriptors"] is None for s in many["seen"]) else ""
    peaks = [max((s["peak"] for s in run["seen"]), default=None) for run in (few, many)]
    return [
        Row("pace", f"time of a submission, {many['count']} / {few['count']}, while grading", ratio(pace(many), pace(few)),
            "times", at_most=TIME_BAR),
        Row("few_ms", f"wall time of a submission, {few['count']}", _ms(pace(few)), "ms"),
        Row("many_ms", f"wall time of a submission, {many['count']}", _ms(pace(many)), "ms"),
        Row("whole_ms", f"the same of {many['count']}, start-up and pages included", 1e3 * many["wall"] / many["count"], "ms"),
        Row("growth_mb", f"coordinator: growth from {begin} records to {many['count']}", growth(many, begin), "MB",
            at_most=MEMORY_BAR),
        Row("peak_growth_mb", f"whole command, pages included: peak of {many['count']} over that of {begin}",
            None if None in peaks else (peaks[1] - peaks[0]) / _MB, "MB", at_most=MEMORY_BAR),
        Row("descriptors", "descriptors more at the end than at the beginning", more_descriptors(many, begin), "",
            at_most=0, note=hidden),
        Row("left", "processes left behind, both runs", few["left"] + many["left"], "", at_most=0),
        Row("template_percent", f"templates: growth after {many['count']} submissions", template_growth(many, begin), "%",
            at_most=TEMPLATE_BAR),
    ]  # fmt: skip


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Pace over the run; memory of coordinator and templates over the number of records."""
    few, many = samples["runs"]
    seen = [s for s in many["seen"] if s["records"]]
    left, right = figure.subplots(1, 2)
    # Ten looks a point: at four looks a second a single one sees a handful of submissions.
    points = seen[:: max(len(seen) // 40, 1)]
    rates = [
        (b["records"], 1e3 * (b["at"] - a["at"]) / (b["records"] - a["records"]))
        for a, b in pairwise(points)
        if b["records"] > a["records"]
    ]
    left.plot(*zip(*rates, strict=True), color="#1b7837", label="submissions in turn")
    if (first := pace(few)) is not None:
        left.axhline(
            1e3 * TIME_BAR * first, color="#b2182b", linestyle="--", label=f"bar: {TIME_BAR} × pace of {few['count']}"
        )
    left.set_xlabel("submissions graded")
    left.set_ylabel("milliseconds a submission")
    left.set_ylim(0, 1.15 * left.get_ylim()[1])
    right.plot([s["records"] for s in seen], [s["resident"] / _MB for s in seen], color="#1b7837", label="coordinator")
    templates = [(s["records"], max(s["templates"].values()) / _MB) for s in seen if s["templates"]]
    if templates:
        right.plot(*zip(*templates, strict=True), color="#2166ac", label="template (private)")
    start = next((s["resident"] for s in seen if s["records"] >= few["count"]), None)
    if start is not None:
        right.axhline(
            start / _MB + MEMORY_BAR,
            color="#b2182b",
            linestyle="--",
            label=f"bar: {MEMORY_BAR} MB more than at {few['count']}",
        )
    right.set_xlabel("submissions graded")
    right.set_ylabel("MB")
    right.set_ylim(0, 1.15 * right.get_ylim()[1])
    for axes in (left, right):
        axes.legend(fontsize=8)
