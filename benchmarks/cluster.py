"""Two against one: shards in two processes, and two workers of a Dask cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .classes import ATTENTION, answers, copies, hand_in, points_of, records_of, require_points
from .harness import SMALL, Harness, MeasureError
from .report import Row, ratio
from .scale import pace

#: The cheapest to grade of the course, so the one that start-up weighs most in.
REAL = "module0/matrix_calculus"
SIZES = {
    "full": {"count": 400, "warm": 4, "dask": True, "exercises": [REAL, ATTENTION]},
    "quick": {"count": 4, "warm": 2, "dask": False, "exercises": [ATTENTION]},
}
BAR = 1.8
_PATIENCE = 120.0


@dataclass(frozen=True)
class Batch:
    """A class that hands in one exercise. ``points``: what each must get, None: all that there are."""

    course: Path
    folder: Path
    points: list[float | None]


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """One process with one worker, then two such at once; one Dask worker, then two. The same class each time."""
    missing = ""
    if not sizes["dask"]:
        missing = "Dask is left out of a quick run"
    elif find_spec("distributed") is None:
        missing = "Dask's distributed is not installed: pip install 'llmkata[cluster]'"
    classes = {}
    for exercise in sizes["exercises"]:
        batch, few = (_batch(harness, exercise, sizes[count]) for count in ("count", "warm"))
        shards, dask = [], []
        for of in (1, 2):
            harness.say(f"{exercise}: {of} shard{'s' * (of > 1)} of {sizes['count']} submissions, one worker each")
            shards.append(_shards(harness, batch, of))
        for workers in () if missing else (1, 2):
            with _cluster(harness, batch.course, workers) as address:
                harness.say(f"{exercise}: {workers} Dask worker{'s' * (workers > 1)}, warm, {sizes['count']} submissions")
                _on_cluster(harness, few, address)
                dask.append(_on_cluster(harness, batch, address))
        classes[exercise] = {"shards": shards, "dask": dask}
    return {"count": sizes["count"], "classes": classes, "dask_missing": missing}


def _batch(harness: Harness, exercise: str, count: int) -> Batch:
    if exercise == ATTENTION:
        course, work = SMALL, answers(count)
    else:
        course, answer = harness.root, (harness.root / "solutions" / f"{exercise}.py").read_text("utf-8")
        work = [(source, None) for source in copies(answer, count)]
    folder = hand_in(harness.folder("class"), {exercise: [source for source, _ in work]})
    return Batch(course, folder, [points for _, points in work])


def _shards(harness: Harness, batch: Batch, of: int) -> dict[str, Any]:
    began, running, outs = time.monotonic(), [], []
    try:
        for which in range(1, of + 1):
            outs.append(harness.folder("shard") / "report")
            command = harness.kata(
                "grade", batch.folder, "--out", outs[-1], "--workers", "1", "--shard", f"{which}/{of}", course=batch.course
            )
            running.append(harness.start(command, records=outs[-1] / "records.jsonl"))
        spent = [each.wait() for each in running]
    finally:
        for each in running:
            each.stop()
    # The clock of this process: the shards start together, and the last one decides.
    wall = time.monotonic() - began
    records = [records_of(out, len(range(which, len(batch.points), of))) for which, out in enumerate(outs)]
    _require("kata grade --shard", [r for part in records for r in part], batch.points)
    paces = [pace({"seen": each.samples}) for each in spent]
    return {"of": of, "wall": round(wall, 3), "cpu": round(sum(s.cpu for s in spent), 3), "paces": paces}


@contextmanager
def _cluster(harness: Harness, course: Path, workers: int) -> Iterator[str]:
    """A Dask cluster on this machine: its scheduler's address."""
    running = harness.start(harness.kata("cluster", "--local", str(workers), course=course), PYTHONUNBUFFERED="1")
    try:
        until = time.monotonic() + _PATIENCE
        while not (found := re.search(r"tcp://[\w.:]+\d", running.said())):
            if running.ended() or time.monotonic() > until:
                raise MeasureError(f"kata cluster --local {workers} did not start:\n{running.said()[-2000:]}")
            time.sleep(0.1)
        yield found[0]
    finally:
        running.stop()


def _on_cluster(harness: Harness, batch: Batch, address: str) -> dict[str, Any]:
    out = harness.folder("dask") / "report"
    command = harness.kata("grade", batch.folder, "--out", out, "--scheduler", address, course=batch.course)
    spent = harness.run(command, records=out / "records.jsonl")
    records = records_of(out, len(batch.points))
    _require("kata grade --scheduler", records, batch.points)
    return {"wall": round(spent.wall, 3), "paces": [pace({"seen": spent.samples})]}


def _require(who: str, records: list[dict[str, Any]], points: list[float | None]) -> None:
    ordered = sorted(records, key=lambda record: record["learner"])
    wanted = [
        sum(check["max_points"] for check in record["checks"]) if right is None else right
        for record, right in zip(ordered, points, strict=True)
    ]
    require_points(who, [points_of(record) for record in ordered], wanted)


def rate(run: dict[str, Any]) -> float | None:
    """Submissions a second while grading is under way, all parts together."""
    return sum(1 / each for each in run["paces"]) if all(run["paces"]) else None


def judge(samples: dict[str, Any]) -> list[Row]:
    """Speed-ups of the whole command; while grading is under way, start-up left out, beside."""
    rows = []
    for exercise, runs in samples["classes"].items():
        small = exercise == ATTENTION
        before, what = ("small_", "three assertions") if small else ("", exercise)
        note = "start-up counts for as much as grading: told, without a bar" if small else ""
        for kind, name in (("shards", "two shards / one"), ("dask", "two Dask workers / one")):
            missing = samples["dask_missing"] if kind == "dask" else ""
            one, two = runs[kind] or (None, None)
            rows += [
                Row(f"{before}{kind}", f"speed-up, {name}, whole command, {samples['count']} submissions, {what}",
                    ratio(one["wall"], two["wall"]) if one else None, "times", at_least=None if small else BAR,
                    note=missing or note),
                Row(f"{before}{kind}_grading", f"speed-up, {name}, while grading, {what}",
                    ratio(rate(two), rate(one)) if one else None, "times", note=missing),
                Row(f"{before}{kind}_seconds", f"wall time with one, {name.split(' / ')[0].removeprefix('two ')}, {what}",
                    one["wall"] if one else None, "s", note=missing),
            ]  # fmt: skip
    return rows


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Wall time with one and with two, and the time that the bar allows two."""
    every = figure.subplots(1, len(samples["classes"]), squeeze=False)[0]
    for axes, (exercise, runs) in zip(every, samples["classes"].items(), strict=True):
        shown = [(name, *runs[key]) for key, name in (("shards", "shards"), ("dask", "Dask workers")) if runs[key]]
        for place, (_, one, two) in enumerate(shown):
            bars = axes.bar(
                [place - 0.2, place + 0.2], [one["wall"], two["wall"]], width=0.36, color=["#556677", "#1b7837"]
            )
            told = [f"1: {one['wall']:.0f} s", f"2: {two['wall']:.0f} s"]
            axes.bar_label(bars, told, label_type="center", fontsize=8, color="white")
            if exercise != ATTENTION:
                axes.plot(
                    [place, place + 0.4],
                    [one["wall"] / BAR] * 2,
                    color="#b2182b",
                    linestyle="--",
                    label=f"bar: time of one / {BAR}" if place == 0 else None,
                )
        axes.set_title("three assertions" if exercise == ATTENTION else exercise, fontsize=9)
        axes.set_xticks(range(len(shown)), [name for name, *_ in shown])
        axes.set_ylabel(f"seconds for {samples['count']} submissions")
        axes.margins(y=0.15)
        if exercise != ATTENTION:
            axes.legend(fontsize=8)
