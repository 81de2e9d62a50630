"""Benchmarks: what follows from samples, with samples made up; commands that were measured, with commands that cost nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="benchmarks read /proc")


@pytest.fixture(autouse=True)
def _importable(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


def times(wall: float, cpu: float, **more) -> dict:
    return {"wall": wall, "cpu": cpu, **more}


def seen(
    at: float, records: int, resident: float = 100e6, descriptors: int | None = 9, template: float = 200e6
) -> dict:
    return {
        "at": at,
        "records": records,
        "resident": resident,
        "peak": resident,
        "descriptors": descriptors,
        "templates": {"7": template},
    }


def paced(count: int, seconds: float, **more) -> dict:
    """A run of ``count`` that was looked at after each record."""
    looks = [seen(5 + seconds * n, n) for n in range(count + 1)]
    return {"count": count, "wall": 5 + count * seconds, "cpu": 5.0, "left": 0, "seen": looks, **more}


SAMPLES = {
    # 10 s once, 50 ms a submission: 30 s for 400; 20 notebooks in 60 s.
    "throughput": {"kata": [times(14, 11, count=100), times(29, 23, count=400), times(31, 25, count=400), times(16, 13, count=100)],
                   "nbgrader": times(160, 80, count=20), "process": [times(3, 2), times(5, 4)], "otter": [times(6, 5)],
                   "otter_missing": "", "workers": 2},
    "overhead": {"exercise": "module2/x", "warm": [times(3, 3, count=2), times(9, 12, count=8), times(3, 5, count=2), times(9, 8, count=8)],
                 "graded": [times(6, 8, count=2), times(9, 14.6, count=8)],
                 "small": [times(6, 5, count=20), times(9, 9, count=100)]},
    "scale": {"workers": 2, "runs": [paced(20, 0.1), paced(200, 0.105)]},
    "latency": {"saves": [400.0, 300.0, 450.0, 9000.0, 350.0],
                "cold": {"imports": [times(2, 1), times(4, 2)], "module2/self_attention": [times(3, 2), times(10, 4)]}},
    "cluster": {"count": 40, "dask_missing": "there is none", "classes": {
        "module0/x": {"dask": [], "shards": [{"of": 1, "wall": 20.0, "cpu": 20.0, "paces": [0.4]},
                                             {"of": 2, "wall": 10.0, "cpu": 21.0, "paces": [0.4, 0.5]}]},
        "module2/attention": {"dask": [], "shards": [{"of": 1, "wall": 6.0, "cpu": 6.0, "paces": [0.1]},
                                                     {"of": 2, "wall": 5.0, "cpu": 9.0, "paces": [0.1, 0.1]}]}}},
    "stability": {
        "counted": ["m/x"], "clock_load": 4,
        "counts": [{"exercise": "m/x", "hash_seed": s, "load": 0, "verdicts": {"t": "passed"}, "numbers": {"t: f": "0x1p+3"}}
                   for s in (1, 2)],
        "clocks": {"m/y": {"threshold": {"t": 3.5}, "naive": [{"check": "t", "outcome": "failed", "ratio": 2.0}],
                           "honest": [{"check": "t", "outcome": "passed", "ratio": 7.0},
                                      {"check": "t", "outcome": "not judged", "ratio": None}]}},
        "simulated": [{"side": side, "spread": 0.1, "runs": 100, "wrong": 1, "inconclusive": 0, "pairs": 7.0}
                      for side in (1, -1)]},
}  # fmt: skip


def rows(name: str, samples: dict | None = None) -> dict:
    from benchmarks.run import module

    return {row.key: row for row in module(name).judge(samples or SAMPLES[name])}


def changed(name: str, change) -> dict:
    samples = json.loads(json.dumps(SAMPLES[name]))
    change(samples)
    return rows(name, samples)


def test_throughput():
    got = rows("throughput")
    assert got["vs_nbgrader"].measured == pytest.approx(8 / (30 / 400)) and got["vs_nbgrader"].verdict == "PASS"
    assert got["vs_process"].measured == pytest.approx(4 / (30 / 400))
    assert got["vs_otter"].measured == pytest.approx(80) and got["vs_otter"].verdict == "told"
    assert got["marginal_wall_ms"].measured == pytest.approx(50) and got["once_wall_seconds"].measured == pytest.approx(
        10
    )
    assert got["vs_nbgrader_marginal"].measured == pytest.approx(160)
    assert got["vs_nbgrader_cpu"].measured == pytest.approx(4 / (24 / 400))
    without = changed("throughput", lambda s: s.update(otter=None, otter_missing="no registry"))
    assert without["vs_otter"].measured is None and without["vs_otter"].note == "no registry"
    assert without["vs_otter"].verdict == "not measured"
    slow = changed("throughput", lambda s: s["kata"][1].update(wall=70.0))
    assert slow["vs_nbgrader"].verdict == "miss"


def test_overhead():
    got = rows("overhead")
    assert got["overhead"].measured == pytest.approx(1.1) and got["overhead"].verdict == "PASS"
    assert got["fixed_cpu_ms"].measured == pytest.approx(50) and got["fixed_cpu_ms"].verdict == "miss"


def test_scale():
    got = rows("scale")
    assert got["pace"].measured == pytest.approx(1.05)
    assert {row.key for row in got.values() if row.verdict == "miss"} == set()

    def worse(samples):
        run = samples["runs"][1]
        run["left"] = 1
        for look in run["seen"]:
            if look["records"] > 150:
                look.update(resident=160e6, peak=160e6, descriptors=12, templates={"8": 230e6})

    bad = changed("scale", worse)
    assert {row.key for row in bad.values() if row.verdict == "miss"} == {
        "growth_mb", "peak_growth_mb", "descriptors", "left", "template_percent"}  # fmt: skip
    assert bad["growth_mb"].measured == pytest.approx(60) and bad["template_percent"].measured == pytest.approx(15)
    blind = changed("scale", lambda s: [look.update(descriptors=None) for run in s["runs"] for look in run["seen"]])
    assert blind["descriptors"].verdict == "not measured" and blind["descriptors"].note


def test_latency():
    got = rows("latency")
    assert got["watch_ms"].measured == 400 and got["watch_ms"].verdict == "PASS"
    # Round by round: 3 / 2 and 10 / 4.
    assert got["cold_self_attention"].measured == pytest.approx(2.0) and got["cold_self_attention"].verdict == "PASS"


def test_commands_are_measured_as_on_anybodys_machine(monkeypatch):
    from benchmarks.harness import environ

    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in environ() and environ()["SOMETHING_ELSE"] == "1"


def test_cluster():
    got = rows("cluster")
    assert got["shards"].measured == 2.0 and got["shards"].verdict == "PASS"
    assert got["shards_grading"].measured == pytest.approx((1 / 0.4 + 1 / 0.5) * 0.4)
    assert got["dask"].verdict == "not measured" and got["dask"].note == "there is none"
    assert got["small_shards"].measured == pytest.approx(1.2) and got["small_shards"].verdict == "told"
    slow = changed("cluster", lambda s: s["classes"]["module0/x"]["shards"][1].update(wall=11.5))
    assert slow["shards"].verdict == "miss"


def test_stability():
    got = rows("stability")
    assert not [row for row in got.values() if row.verdict == "miss"]
    assert got["clock_inconclusive"].measured == 1 and got["honest_y"].measured == 7.0
    assert got["error_rate"].measured == pytest.approx(0.01)
    other = changed("stability", lambda s: s["counts"][1]["numbers"].update({"t: f": "0x1.0000000000001p+3"}))
    assert other["counts_changed"].verdict == "miss" and "m/x t: f" in other["counts_changed"].note
    none = changed("stability", lambda s: [run.update(numbers={}) for run in s["counts"]])
    assert none["counts"].verdict == "miss"  # nothing was compared
    fooled = changed("stability", lambda s: s["clocks"]["m/y"]["naive"][0].update(outcome="passed"))
    assert fooled["clock_changed"].measured == 1 and fooled["clock_changed"].verdict == "miss"


def test_the_simulated_test_is_that_of_budgets_and_can_err(monkeypatch):
    from benchmarks.stability import at_most_with_confidence, simulate
    from llmkata.checks import budgets

    sure = simulate(1, 0.05, 30)
    assert (sure["wrong"], sure["inconclusive"]) == (0, 0) and sure["pairs"] >= 6
    monkeypatch.setattr(budgets, "_sequential", lambda ratios, threshold, noise: False)
    assert simulate(1, 0.05, 30)["wrong"] == 30
    assert at_most_with_confidence(0, 30_000) == pytest.approx(1e-4, rel=0.01)


def test_clocks_alone_are_kept():
    from benchmarks.stability import _clocks_of, in_turn

    text = (
        "from x import needs\n@task(1)\n@needs('test_b')\ndef test_a(budget):\n    budget.cpu_ratio('a')\n"
        "def test_b(): ...\ndef helper(): ...\n"
    )
    kept = _clocks_of(text)
    assert "test_a" in kept and "helper" in kept and "test_b" not in kept and "@task(1)" in kept
    assert in_turn(4, 2) == ["honest", "honest", "naive", "honest", "honest", "naive"]
    assert in_turn(2, 0) == ["honest"] * 2


def test_assertions_are_three_and_the_wrong_answer_is_wrong():
    from benchmarks.classes import answers
    from benchmarks.others import assertions

    assert list(assertions()) == ["test_output", "test_rows_sum_to_one", "test_causal"]
    graders = (ROOT / "benchmarks/course/graders/module2/attention/test_correctness.py").read_text("utf-8")
    assert [name for name in assertions() if f"def {name}(" in graders] == list(assertions())
    work = answers(8)
    assert [points for _, points in work] == [3, 3, 3, 2] * 2 and len({source for source, _ in work}) == 8
    for source, points in work[2:4]:
        names: dict = {}
        exec(source, names)  # noqa: S102 - our own model answer
        earned = 0
        for body in assertions().values():
            try:
                exec(f"import torch\nfrom torch.nn import functional\n{body}", names)  # noqa: S102
                earned += 1
            except AssertionError:
                pass
        assert earned == points


def test_points_that_differ_stop_the_run():
    from benchmarks.classes import require_points
    from benchmarks.harness import MeasureError

    require_points("it", [3.0, 2], [3, 2])
    with pytest.raises(MeasureError, match=r"it gave \[3\], not \[2\]"):
        require_points("it", [3], [2])


def test_the_small_course_is_in_step():
    from benchmarks.harness import SMALL
    from llmkata.authoring.stub import cut_stub
    from llmkata.course import load_course

    exercise = load_course(SMALL).exercise("attention")
    assert cut_stub(exercise.solution.read_text("utf-8")) == exercise.stub.read_text("utf-8")


def test_the_meter_counts_grandchildren_and_what_is_left(tmp_path):
    from benchmarks.harness import Harness, MeasureError

    harness = Harness(ROOT, tmp_path)
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {burn!r}])"
    spent = harness.run([sys.executable, "-S", "-c", inner])
    assert spent.cpu > 0.2 and spent.left == 0
    daemon = "import subprocess; print(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)"
    spent = harness.run([sys.executable, "-S", "-c", daemon])
    assert spent.left == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(spent.output), 0)
    with pytest.raises(MeasureError, match="status 3"):
        harness.run([sys.executable, "-S", "-c", "raise SystemExit(3)"])


def test_the_meter_looks(tmp_path):
    from benchmarks.meter import _Lines, _look

    lines = _Lines(str(tmp_path / "records.jsonl"))
    assert lines.count() == 0
    (tmp_path / "records.jsonl").write_text("a\nb\n")
    assert lines.count() == 2
    # As a template and a worker of it: the worker has the template's command line and is its child.
    forks = "import os, time; pid = os.fork(); pid and print(pid, flush=True); time.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", forks, "llmkata.inside.template"], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        worker = process.stdout.readline().decode().strip()
        look = _look(os.getpid(), 1.0, 2)
    finally:
        os.killpg(process.pid, 9)
        process.wait()
    # Other tests of this process may keep templates of their own.
    assert worker not in look["templates"] and look["templates"][str(process.pid)] > 1e5
    assert look["resident"] > 1e6 and look["peak"] >= look["resident"] and look["descriptors"] > 2


def test_a_document_has_its_figures_and_its_page(tmp_path):
    from benchmarks import NAMES
    from benchmarks.machine import facts
    from benchmarks.page import draw, render
    from benchmarks.report import document, rows_of
    from benchmarks.run import module

    documents = []
    for name in NAMES:
        found = module(name).judge(SAMPLES[name])
        made = document(name, found, SAMPLES[name], quick=False, started="2026-01-01T00:00:00+00:00", seconds=1.0,
                        machine=facts(ROOT), sizes=module(name).SIZES["full"])  # fmt: skip
        made = json.loads(json.dumps(made))
        assert rows_of(made) == found and all(made[row.key] == row.measured for row in found)
        draw(made, tmp_path / f"{name}.svg")
        first = (tmp_path / f"{name}.svg").read_bytes()
        draw(made, tmp_path / f"{name}.svg")
        assert (tmp_path / f"{name}.svg").read_bytes() == first and len(first) > 5000
        documents.append(made)
    page = render(documents)
    for name in NAMES:
        assert f"## {name}\n" in page and f"img/benchmarks/{name}.svg" in page
    assert "| nbgrader autograde / kata grade, wall [1] | 107 times | at least 100 times | **PASS** |" in page
    assert "Not measured yet" not in page and "Not measured yet" in render(documents[:2])


def test_the_page_is_written_from_what_is_kept(tmp_path, monkeypatch):
    from benchmarks import page
    from benchmarks.harness import MeasureError
    from benchmarks.report import document, to_json
    from benchmarks.run import module

    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    with pytest.raises(MeasureError, match="no figures are kept"):
        page.write(tmp_path)
    machine = {
        "cores": 2,
        "cpu": "x",
        "memory_gib": 4,
        "load": 0.1,
        "system": "s",
        "python": "3",
        "versions": {},
        "commit": "c",
    }
    rows = module("cluster").judge(SAMPLES["cluster"])
    made = document(
        "cluster", rows, SAMPLES["cluster"], quick=False, started="2026-01-01", seconds=1.0, machine=machine, sizes={}
    )
    (tmp_path / "results").mkdir()
    (tmp_path / "results/cluster.json").write_text(to_json(made))
    written = page.write(tmp_path)
    assert "| 2 times | at least 1.8 times | **PASS** |" in written.read_text("utf-8")
    assert [path.name for path in (tmp_path / "docs" / page.PLOTS).iterdir()] == ["cluster.svg"]


def test_the_page_is_in_step_with_the_results():
    from benchmarks import NAMES
    from benchmarks.page import render
    from benchmarks.run import RESULTS

    kept = [json.loads(path.read_bytes()) for name in NAMES if (path := RESULTS / f"{name}.json").is_file()]
    page = ROOT / "docs/benchmarks.md"
    assert page.is_file() == bool(kept)
    if kept:
        assert page.read_text("utf-8") == render(kept)
        assert not any(document["quick"] for document in kept)
