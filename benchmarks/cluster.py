"""Two against one: shards in two processes, and two workers of a Dask cluster."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .classes import ATTENTION, answers, hand_in, points_of, records_of, require_points
from .harness import SMALL, Harness, MeasureError
from .report import Row, ratio
from .scale import pace

SIZES = {"full": {"count": 400, "warm": 4, "dask": True}, "quick": {"count": 4, "warm": 2, "dask": False}}
BAR = 1.8
_PATIENCE = 120.0


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """One process with one worker, then two such at once; one Dask worker, then two. The same class each time."""
    work = answers(sizes["count"])
    folder = hand_in(harness.folder("class"), {ATTENTION: [source for source, _ in work]})
    shards = []
    for of in (1, 2):
        harness.say(f"{of} shard{'s' * (of > 1)} of {len(work)} submissions, one worker each")
        shards.append(_shards(harness, folder, [points for _, points in work], of))
    dask, missing = [], ""
    if not sizes["dask"]:
        missing = "Dask is left out of a quick run"
    elif find_spec("distributed") is None:
        missing = "Dask's distributed is not installed: pip install 'llmkata[cluster]'"
    else:
        few = hand_in(harness.folder("few"), {ATTENTION: [source for source, _ in answers(sizes["warm"])]})
        for workers in (1, 2):
            with _cluster(harness, workers) as address:
                harness.say(f"{workers} Dask worker{'s' * (workers > 1)}: warming up, then {len(work)} submissions")
                _on_cluster(harness, few, [points for _, points in answers(sizes["warm"])], address)
                dask.append(_on_cluster(harness, folder, [points for _, points in work], address))
    return {"count": len(work), "shards": shards, "dask": dask, "dask_missing": missing}


def _shards(harness: Harness, folder: Path, points: list[int], of: int) -> dict[str, Any]:
    began, running, outs = time.monotonic(), [], []
    try:
        for which in range(1, of + 1):
            outs.append(harness.folder("shard") / "report")
            command = harness.kata(
                "grade", folder, "--out", outs[-1], "--workers", "1", "--shard", f"{which}/{of}", course=SMALL
            )
            running.append(harness.start(command, records=outs[-1] / "records.jsonl"))
        spent = [each.wait() for each in running]
    finally:
        for each in running:
            each.stop()
    # The clock of this process: the shards start together, and the last one decides.
    wall = time.monotonic() - began
    records = [records_of(out, len(range(which, len(points), of))) for which, out in enumerate(outs)]
    _require("kata grade --shard", [r for part in records for r in part], points)
    paces = [pace({"seen": each.samples}) for each in spent]
    return {"of": of, "wall": round(wall, 3), "cpu": round(sum(s.cpu for s in spent), 3), "paces": paces}


@contextmanager
def _cluster(harness: Harness, workers: int) -> Iterator[str]:
    """A Dask cluster on this machine: its scheduler's address."""
    running = harness.start(harness.kata("cluster", "--local", str(workers), course=SMALL), PYTHONUNBUFFERED="1")
    try:
        until = time.monotonic() + _PATIENCE
        while not (found := re.search(r"tcp://[\w.:]+\d", running.said())):
            if running.ended() or time.monotonic() > until:
                raise MeasureError(f"kata cluster --local {workers} did not start:\n{running.said()[-2000:]}")
            time.sleep(0.1)
        yield found[0]
    finally:
        running.stop()


def _on_cluster(harness: Harness, folder: Path, points: list[int], address: str) -> dict[str, Any]:
    out = harness.folder("dask") / "report"
    spent = harness.run(
        harness.kata("grade", folder, "--out", out, "--scheduler", address, course=SMALL), records=out / "records.jsonl"
    )
    records = records_of(out, len(points))
    _require("kata grade --scheduler", records, points)
    return {"wall": round(spent.wall, 3), "paces": [pace({"seen": spent.samples})]}


def _require(who: str, records: list[dict[str, Any]], points: list[int]) -> None:
    ordered = sorted(records, key=lambda record: record["learner"])
    require_points(who, [points_of(record) for record in ordered], points)


def rate(run: dict[str, Any]) -> float | None:
    """Submissions a second while grading is under way, all parts together."""
    return sum(1 / each for each in run["paces"]) if all(run["paces"]) else None


def judge(samples: dict[str, Any]) -> list[Row]:
    """Speed-ups of the whole command; while grading is under way, start-up left out, beside."""
    rows = []
    for key, name in (("shards", "two shards / one"), ("dask", "two Dask workers / one")):
        runs, missing = samples[key], samples["dask_missing"] if key == "dask" else ""
        one, two = runs or (None, None)
        rows += [
            Row(key, f"speed-up, {name}, whole command, {samples['count']} submissions",
                ratio(one["wall"], two["wall"]) if one else None, "times", at_least=BAR, note=missing),
            Row(f"{key}_grading", f"speed-up, {name}, while grading", ratio(rate(two), rate(one)) if one else None, "times",
                note=missing),
            Row(f"{key}_seconds", f"wall time with one, {name.split(' / ')[0].removeprefix('two ')}",
                one["wall"] if one else None, "s", note=missing),
        ]  # fmt: skip
    return rows


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Wall time with one and with two, and the time that the bar allows two."""
    axes = figure.subplots()
    shown = [(name, *samples[key]) for key, name in (("shards", "shards"), ("dask", "Dask workers")) if samples[key]]
    for place, (_, one, two) in enumerate(shown):
        bars = axes.bar(
            [place - 0.2, place + 0.2], [one["wall"], two["wall"]], width=0.36, color=["#8899aa", "#1b7837"]
        )
        axes.bar_label(bars, [f"1: {one['wall']:.0f} s", f"2: {two['wall']:.0f} s"], padding=3)
        axes.plot(
            [place, place + 0.4],
            [one["wall"] / BAR] * 2,
            color="#b2182b",
            linestyle="--",
            label=f"bar: time of one / {BAR}" if place == 0 else None,
        )
    axes.set_xticks(range(len(shown)), [name for name, *_ in shown])
    axes.set_ylabel(f"seconds for {samples['count']} submissions")
    axes.margins(y=0.15)
    axes.legend(fontsize=8)
