"""400 submissions of one small exercise, start-up included, against others who grade the same with the same assertions."""

from __future__ import annotations

from statistics import mean
from typing import Any

from .classes import ATTENTION, answers, hand_in, points_of, records_of, require_points
from .harness import SMALL, Harness
from .others import OTTER, Nbgrader, Otter, Plain, otter_program
from .report import Row, mean_of, ratio, slope_of

SIZES = {
    "full": {"few": 100, "many": 400, "others": 20, "workers": 2, "otter": True},
    "quick": {"few": 2, "many": 4, "others": 2, "workers": 2, "otter": False},
}
NBGRADER_BAR, PROCESS_BAR = 100, 40


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """llmkata's large runs stand around that of nbgrader, and its small ones around everything: the speed of a machine
    changes from minute to minute."""
    work = answers(sizes["others"])
    kata = [_kata(harness, sizes["few"], sizes["workers"])]
    kata.append(_kata(harness, sizes["many"], sizes["workers"]))
    nbgrader, learners = Nbgrader(harness), [f"learner{i:04}" for i in range(len(work))]
    for learner, (source, _) in zip(learners, work, strict=True):
        nbgrader.hand_in(learner, source)
    harness.say(f"nbgrader autograde: {len(work)} notebooks")
    in_one = nbgrader.grade()
    require_points(nbgrader.name, nbgrader.points(), [points for _, points in work])
    kata.append(_kata(harness, sizes["many"], sizes["workers"]))
    program, missing = otter_program(harness) if sizes["otter"] else (None, f"{OTTER} is left out of a quick run")
    if program is None:
        harness.say(missing)
    one_by_one = [Plain(harness), *([Otter(harness, program)] if program else [])]
    times: dict[str, list[dict[str, float]]] = {other.name: [] for other in one_by_one}
    for learner, (source, points) in zip(learners, work, strict=True):
        for other in one_by_one:
            harness.say(f"{other.name}: {learner}")
            spent, got = other.grade(learner, source)
            require_points(other.name, [got], [points])
            times[other.name].append(spent.times)
    kata.append(_kata(harness, sizes["few"], sizes["workers"]))
    return {
        "kata": kata,
        "nbgrader": {"count": len(work), **in_one.times},
        "process": times[Plain.name],
        "otter": times.get(Otter.name),
        "otter_missing": missing,
        "workers": sizes["workers"],
    }


def _kata(harness: Harness, count: int, workers: int) -> dict[str, float]:
    harness.say(f"kata grade: {count} submissions on {workers} workers")
    folder, work = harness.folder("kata"), answers(count)
    hand_in(folder / "class", {ATTENTION: [source for source, _ in work]})
    command = harness.kata(
        "grade", folder / "class", "--out", folder / "report", "--workers", str(workers), course=SMALL
    )
    spent = harness.run(command)
    records = sorted(records_of(folder / "report", count), key=lambda record: record["learner"])
    require_points("kata grade", [points_of(record) for record in records], [points for _, points in work])
    return {"count": count, **spent.times}


def summary(samples: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """For each clock: seconds of a submission by each grader; of llmkata all in, at the margin, and what is paid once."""
    found = {}
    for clock in ("wall", "cpu"):
        runs = samples["kata"]
        count = max(run["count"] for run in runs)
        whole, margin = mean_of(runs, count, clock), slope_of(runs, clock)
        nbgrader = samples["nbgrader"]
        found[clock] = {
            "kata": whole / count, "margin": margin, "once": whole - margin * count,
            "nbgrader": nbgrader[clock] / nbgrader["count"],
            "process": mean(run[clock] for run in samples["process"]),
            "otter": mean(run[clock] for run in samples["otter"]) if samples["otter"] else None,
        }  # fmt: skip
    return found


def judge(samples: dict[str, Any]) -> list[Row]:
    """The ratios are of the time that a person waits; those of processor time, where two workers help nobody, beside."""
    found = summary(samples)
    wall, cpu = found["wall"], found["cpu"]
    count = max(run["count"] for run in samples["kata"])
    waits = f"{count} submissions on {samples['workers']} workers with start-up, against the others one after another"
    rows = []
    for other, bar in (("nbgrader", NBGRADER_BAR), ("otter", None), ("process", PROCESS_BAR)):
        missing = (samples["otter_missing"] or OTTER) if other == "otter" else ""
        name = {"nbgrader": "nbgrader autograde", "otter": "otter run", "process": "a pytest process each"}[other]
        rows += [
            Row(f"vs_{other}", f"{name} / kata grade, wall", ratio(wall[other], wall["kata"]), "times", at_least=bar,
                note=missing or (waits if other == "nbgrader" else "")),
            Row(f"vs_{other}_cpu", f"{name} / kata grade, CPU", ratio(cpu[other], cpu["kata"]), "times", note=missing),
            Row(f"vs_{other}_marginal", f"{name} / one more submission, wall", ratio(wall[other], wall["margin"]), "times",
                note=missing),
        ]  # fmt: skip
    for other, name in (("nbgrader", "nbgrader autograde"), ("otter", "otter run"), ("process", "pytest process")):
        seconds = cpu[other]
        rows.append(Row(f"{other}_cpu_seconds", f"CPU of a submission: {name}", seconds, "s"))
    rows += [
        Row("kata_cpu_ms", f"CPU of a submission: kata grade, {count} in all", 1e3 * cpu["kata"], "ms"),
        Row("marginal_wall_ms", "wall time of one more submission", 1e3 * wall["margin"], "ms"),
        Row("marginal_cpu_ms", "CPU of one more submission", 1e3 * cpu["margin"], "ms"),
        Row("once_wall_seconds", "wall time paid once (start-up, pages)", wall["once"], "s"),
        Row("once_cpu_seconds", "CPU paid once", cpu["once"], "s"),
    ]
    return rows


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Seconds for the whole class by each grader, on a logarithmic axis, and where the bars lie."""
    wall = summary(samples)["wall"]
    count = max(run["count"] for run in samples["kata"])
    names = {
        "nbgrader": "nbgrader autograde",
        "otter": "otter run",
        "process": "a pytest process each",
        "kata": "kata grade",
    }
    shown = {name: count * wall[key] for key, name in names.items() if wall[key] is not None}
    axes = figure.subplots()
    bars = axes.barh(list(shown), list(shown.values()), color=["#8899aa"] * (len(shown) - 1) + ["#1b7837"])
    axes.bar_label(bars, [f"{value:,.0f} s" for value in shown.values()], padding=4)
    for bar, other, style in ((NBGRADER_BAR, "nbgrader", "--"), (PROCESS_BAR, "process", ":")):
        limit = count * wall[other] / bar
        axes.axvline(limit, color="#b2182b", linestyle=style, label=f"bar: {names[other]} / {bar} ({limit:,.0f} s)")
    axes.legend(fontsize=8, loc="upper right")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel(f"seconds for {count} submissions (others: {samples['nbgrader']['count']}, scaled)")
