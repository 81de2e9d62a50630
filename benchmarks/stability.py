"""The same counts and the same verdicts, whatever the hash seed and however busy the machine."""

from __future__ import annotations

import ast
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from .classes import ATTENTION, copies, hand_in, records_of
from .harness import SMALL, Harness, MeasureError
from .report import Row

COUNTED = ["module0/matrix_calculus", "module2/self_attention", "module6/kv_cache"]
#: The slowest answer that a clock must tell from a right one: exercise -> name of a known mistake.
NAIVE = {"module1/custom_tokenizer_training": "all_pairs_recounted"}
SIZES = {
    "full": {"runs": 5, "counted": COUNTED, "hash_seeds": [1, 2], "load": 2, "clock_runs": 200, "naive_runs": 60,
             "clock_load": 4, "clock_workers": 8, "simulated": 10_000, "spreads": [0.05, 0.1, 0.2]},
    "quick": {"runs": 2, "counted": [ATTENTION], "hash_seeds": [1, 2], "load": 1, "clock_runs": 0, "naive_runs": 0,
              "clock_load": 1, "clock_workers": 2, "simulated": 20, "spreads": [0.1]},
}  # fmt: skip
#: Where a count was taken whose value may not differ by a bit; a clock and a high-water mark may.
_EXACT = ("replayed", "handed in", "self-reported")
#: Computes for as long as the process lives that started it.
_BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10000))"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep ``count`` processes computing meanwhile."""
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen([sys.executable, "-I", "-S", "-c", _BUSY, str(os.getpid())])
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def collect(sizes: dict[str, Any], harness: Harness) -> dict[str, Any]:
    """Counts, then clocks, then the test that reads them, on numbers made up."""
    counts = []
    for load in (0, sizes["load"]):
        for seed in sizes["hash_seeds"]:
            harness.say(
                f"counts of {len(sizes['counted'])} exercises, {sizes['runs']} runs, PYTHONHASHSEED={seed}, {load} busy processes"
            )
            counts += _counts(harness, sizes, seed, load)
    clocks = {}
    if sizes["clock_runs"]:
        for exercise in timed_exercises(harness.root):
            clocks[exercise] = _clock(harness, exercise, sizes)
    harness.say("simulating the sequential test")
    simulated = [simulate(side, spread, sizes["simulated"]) for spread in sizes["spreads"] for side in (1, -1)]
    return {"counted": sizes["counted"], "counts": counts, "clocks": clocks, "simulated": simulated,
            "clock_load": sizes["clock_load"]}  # fmt: skip


# Counts


def _counts(harness: Harness, sizes: dict[str, Any], seed: int, load: int) -> list[dict[str, Any]]:
    """One entry for each run of each exercise: every exact number by check and name, as its hexadecimal."""
    course = SMALL if sizes["counted"] == [ATTENTION] else harness.root
    folder = harness.folder("counts")
    work = {
        name: copies((course / "solutions" / f"{name}.py").read_text("utf-8"), sizes["runs"])
        for name in sizes["counted"]
    }
    hand_in(folder / "class", work)
    with busy(load):
        command = harness.kata("grade", folder / "class", "--out", folder / "report", "--workers", "2", course=course)
        harness.run(command, PYTHONHASHSEED=str(seed))
    records = records_of(folder / "report", len(work) * sizes["runs"])
    return [{"exercise": record["exercise"], "hash_seed": seed, "load": load, "verdicts": _verdicts(record),
             "numbers": _numbers(record)} for record in records]  # fmt: skip


def _verdicts(record: dict[str, Any]) -> dict[str, str]:
    return {check["id"]: check["outcome"] for check in record["checks"]}


def _numbers(record: dict[str, Any]) -> dict[str, str]:
    """A trust that is left out of a record is the schema's first, replayed."""
    return {
        f"{check['id']}: {m['name']}": float(m["value"]).hex()
        for check in record["checks"]
        for m in check.get("measures", ())
        if m.get("trust", "replayed") in _EXACT
    }


def differing(counts: list[dict[str, Any]], what: str) -> list[str]:
    """Names of the ``numbers`` or ``verdicts`` that are not the same in every run of their exercise."""
    values: dict[str, set[str | None]] = {}
    for exercise in dict.fromkeys(run["exercise"] for run in counts):
        runs = [run[what] for run in counts if run["exercise"] == exercise]
        for name in {name for run in runs for name in run}:
            values[f"{exercise} {name}"] = {run.get(name) for run in runs}
    return sorted(name for name, seen in values.items() if len(seen) > 1)


# Clocks


def timed_exercises(root: Path) -> list[str]:
    """The exercises that have a budget of processor time."""
    from llmkata.course import load_course

    return [
        e.id
        for e in load_course(root).available
        if any("budget.cpu_ratio(" in path.read_text("utf-8") for path in e.graders_dir.glob("test_*.py"))
    ]


def _clock(harness: Harness, exercise: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """Ratios and verdicts of the model answer and of the naive one, in turn, beside busy processes."""
    solution = (harness.root / "solutions" / f"{exercise}.py").read_text("utf-8")
    naive = _naive(harness.root, exercise, solution)
    order = in_turn(sizes["clock_runs"], sizes["naive_runs"] if naive else 0)
    sources = [f"{solution if who == 'honest' else naive}\n# {i}\n" for i, who in enumerate(order)]
    harness.say(
        f"cpu_ratio of {exercise}: {len(order)} runs, {sizes['clock_workers']} at a time, beside "
        f"{sizes['clock_load']} busy processes"
    )
    course, folder = only_clocks(harness, exercise), harness.folder("clock")
    hand_in(folder / "class", {exercise: sources})
    with busy(sizes["clock_load"]):
        harness.run(
            harness.kata(
                "grade",
                folder / "class",
                "--out",
                folder / "report",
                "--workers",
                str(sizes["clock_workers"]),
                course=course,
            ),
            status=(0, 1),
        )
    found: dict[str, Any] = {"honest": [], "naive": [], "threshold": {}}
    for record in records_of(folder / "report", len(order)):
        who = order[int(record["learner"].removeprefix("learner"))]
        for check in record["checks"]:
            measure = next(iter(check.get("measures", ())), None)
            found[who].append(
                {"check": check["id"], "outcome": check["outcome"], "ratio": measure and measure["value"]}
            )
            if measure:
                found["threshold"][check["id"]] = measure["at_least"]
    return found


def in_turn(honest: int, naive: int) -> list[str]:
    """``honest`` and ``naive`` as often as said, the fewer ones spread evenly."""
    total = honest + naive
    return ["naive" if (i + 1) * naive // total > i * naive // total else "honest" for i in range(total)]


def only_clocks(harness: Harness, exercise: str) -> Path:
    """A course of the one exercise, without any check but those that compare processor time."""
    import yaml

    course, (module, slug) = harness.folder("course"), exercise.split("/")
    for name in (f"solutions/{exercise}.py", f"reference/{exercise}.py", f"exercises/{exercise}/README.md"):
        (course / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(harness.root / name, course / name)
    empty = '"""Left out: only processor time is compared here."""\n'
    (course / f"exercises/{exercise}/test_{slug}.py").write_text(empty)
    graders = course / "graders" / exercise
    graders.mkdir(parents=True)
    (graders / "test_correctness.py").write_text(empty)
    for path in (harness.root / "graders" / exercise).glob("*.py"):
        if "budget.cpu_ratio(" in (text := path.read_text("utf-8")):
            (graders / path.name).write_text(_clocks_of(text), "utf-8")
    data = yaml.safe_load((harness.root / "course.yaml").read_text("utf-8"))
    for each in (e for m in data["modules"] for e in m["exercises"]):
        if (each["slug"], each["number"].split(".")[0]) != (slug, module.removeprefix("module")):
            each["status"] = "planned"
        else:
            for component in each.get("components", ()):
                shutil.copytree(harness.root / "components" / component, course / "components" / component)
    (course / "course.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), "utf-8")
    return course


def _clocks_of(text: str) -> str:
    """The file without the checks that read no clock; those that do need nothing before them any more."""
    tree, kept = ast.parse(text), []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            if ".cpu_ratio(" not in ast.unparse(node):
                continue
            node.decorator_list = [d for d in node.decorator_list if not ast.unparse(d).startswith("needs(")]
        kept.append(node)
    return ast.unparse(ast.Module(kept, [])) + "\n"


def _naive(root: Path, exercise: str, solution: str) -> str | None:
    """The model answer with the known mistake of :data:`NAIVE` in it."""
    from llmkata.checks.misconceptions import load

    name = NAIVE.get(exercise)
    if name is None:
        return None
    found = next((m for m in load(root / "graders" / exercise / "misconceptions.py") if m.name == name), None)
    if found is None or len(found.replaces) != 1 or "." in found.replaces[0]:
        raise MeasureError(f"{exercise} has no mistake {name!r} that replaces one function")
    target = found.replaces[0]
    mistake = found.source.replace("from __future__ import annotations\n", "")
    return f"{solution}\n\noriginal = {target}\n{mistake}\n{target} = {found.bind[target]}\n"


# The sequential test


def simulate(side: int, spread: float, runs: int) -> dict[str, Any]:
    """The test of ``budget.cpu_ratio`` on pairs whose true ratio is 15 % above (``side`` 1) or below (-1) its threshold;
    ``spread``: standard deviation of the logarithm of one time. Errors, inconclusive runs, pairs used."""
    import numpy as np

    from llmkata.checks import budgets

    rng = np.random.default_rng([side + 1, int(1000 * spread), runs])
    wrong = open_ = 0
    pairs = []
    for _ in range(runs):
        ours, theirs = rng.normal(0, spread, (2, budgets._MAX_PAIRS))
        ratios = list(side * budgets._DELTA + ours - theirs)
        verdict = None
        for n in range(1, budgets._MAX_PAIRS + 1):
            noise = math.sqrt(2) * float(np.std(ours[:n], ddof=1)) if n > 1 else math.inf
            verdict = budgets._sequential(ratios[:n], 0.0, noise)
            if verdict is not None:
                break
        pairs.append(n)
        open_ += verdict is None
        wrong += verdict is not None and verdict != (side > 0)
    return {"side": side, "spread": spread, "runs": runs, "wrong": wrong, "inconclusive": open_,
            "pairs": float(np.mean(pairs))}  # fmt: skip


def at_most_with_confidence(wrong: int, runs: int) -> float:
    """Upper end of the one-sided 95 % interval (Clopper and Pearson) of a rate."""
    from scipy.stats import beta

    return 1.0 if wrong == runs else float(beta.ppf(0.95, wrong + 1, runs - wrong))


# Figures


def judge(samples: dict[str, Any]) -> list[Row]:
    """Changed verdicts are those that contradict what an answer is; what stays inconclusive costs no points."""
    counts, clocks = samples["counts"], samples["clocks"]
    numbers = {(run["exercise"], name) for run in counts for name in run["numbers"]}
    changed, other = differing(counts, "numbers"), differing(counts, "verdicts")
    rows = [
        Row("counts_changed", f"counts that differ in any of {len(counts)} gradings", len(changed), "", at_most=0,
            note=", ".join(changed[:5])),
        Row("verdicts_changed", "verdicts that differ in any of them", len(other), "", at_most=0, note=", ".join(other[:5])),
        Row("counts", "counts that were compared", len(numbers), "", at_least=1),
    ]  # fmt: skip
    runs = [run for clock in clocks.values() for run in (*clock["honest"], *clock["naive"])]
    wrong = [run for clock in clocks.values() for who, right in (("honest", "passed"), ("naive", "failed"))
             for run in clock[who] if run["outcome"] not in (right, "not judged")]  # fmt: skip
    none = "" if runs else "left out of a quick run"
    rows += [
        Row("clock_changed", f"verdicts by the clock that are wrong, of {len(runs)} beside {samples['clock_load']} busy processes",
            len(wrong) if runs else None, "", at_most=0, note=none),
        Row("clock_inconclusive", "of them inconclusive, which costs no points",
            sum(run["outcome"] == "not judged" for run in runs) if runs else None, "", note=none),
    ]  # fmt: skip
    for exercise, clock in clocks.items():
        for who in ("honest", "naive"):
            if ratios := [run["ratio"] for run in clock[who] if run["ratio"] is not None]:
                limits = ", ".join(f"{value:g}" for value in clock["threshold"].values())
                rows.append(Row(f"{who}_{exercise.rpartition('/')[2]}", f"{exercise}: ratio of the {_WHO[who]}, median",
                                median(ratios), "times",
                                note=f"{min(ratios):.2f} to {max(ratios):.2f}; threshold {limits}"))  # fmt: skip
    total, errors = (sum(run[key] for run in samples["simulated"]) for key in ("runs", "wrong"))
    return [
        *rows,
        Row("error_rate", f"sequential test: wrong verdicts of {total:,} simulated, 15 % from the threshold", errors / total, "",
            note=f"with 95 % confidence at most {at_most_with_confidence(errors, total):.2g}; aimed at 1e-4"),
        Row("simulated_inconclusive", "of them inconclusive", sum(run["inconclusive"] for run in samples["simulated"]) / total, ""),
    ]  # fmt: skip


_WHO = {"honest": "model answer", "naive": "naive answer"}


def plot(samples: dict[str, Any], figure: Any) -> None:
    """Ratios of honest and naive answers against the threshold; errors of the simulated test by spread."""
    clocks = samples["clocks"]
    panels = figure.subplots(1, len(clocks) + 1, squeeze=False)[0]
    for axes, (exercise, clock) in zip(panels, clocks.items(), strict=False):
        for who, colour in (("honest", "#1b7837"), ("naive", "#762a83")):
            if ratios := [run["ratio"] for run in clock[who] if run["ratio"] is not None]:
                axes.hist(ratios, bins=20, color=colour, alpha=0.8, label=_WHO[who])
        for threshold in clock["threshold"].values():
            axes.axvline(threshold, color="#b2182b", linestyle="--", label=f"threshold {threshold:g}")
        axes.set_xlabel("CPU of the baseline / of the answer (median of a run)", fontsize=9)
        axes.set_ylabel("runs")
        axes.set_title(exercise, fontsize=10)
        axes.legend(fontsize=8)
    axes = panels[-1]
    for side, name, colour in ((1, "15 % above", "#1b7837"), (-1, "15 % below", "#762a83")):
        runs = [run for run in samples["simulated"] if run["side"] == side]
        bound = [at_most_with_confidence(run["wrong"], run["runs"]) for run in runs]
        axes.plot([100 * run["spread"] for run in runs], bound, "o-", color=colour, label=f"{name} the threshold")
    axes.axhline(1e-4, color="#2166ac", linestyle=":", label="aimed at")
    axes.set_yscale("log")
    axes.set_xlabel("spread of one time (%)")
    axes.set_ylabel("error rate, upper 95 % bound")
    axes.set_title("sequential test, simulated", fontsize=10)
    axes.legend(fontsize=8)
