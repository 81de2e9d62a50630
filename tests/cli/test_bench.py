"""``kata bench``: lists, refuses, runs one at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(monkeypatch):
    """``kata`` is called in the clone, whose folder is importable no longer than the test lasts."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_without_a_name_they_are_listed(kata, here):
    done = kata("bench")
    assert done.status == 0
    assert [line.split()[0] for line in done.out.splitlines()] == [
        "throughput", "overhead", "scale", "latency", "cluster", "stability"]  # fmt: skip


def test_a_release_has_none(kata, toy):
    done = kata("bench", "scale")
    assert done.status == 2 and "they come with a clone of llmkata, not with a release" in done.err


@pytest.mark.parametrize(
    ("words", "said"),
    [(("speed",), "no benchmark is called 'speed'; there are throughput,"), (("scale", "--quick", "--save"), "worth keeping"),
     (("scale", "--page"), "it measures nothing")],
)  # fmt: skip
def test_wrong_usage(kata, here, words, said):
    done = kata("bench", *words)
    assert done.status == 2 and said in done.err


@pytest.mark.skipif(sys.platform != "linux", reason="benchmarks read /proc")
def test_quick(kata, here):
    """The shape of what a run gives; what it measures at this size means nothing."""
    done = kata("bench", "scale", "--quick", "--json")
    assert done.status == 0, done.err
    document = json.loads(done.out)
    assert document["benchmark"] == "scale" and document["quick"] is True
    assert [run["count"] for run in document["samples"]["runs"]] == [4, 8]
    assert {"pace", "growth_mb", "descriptors", "left", "template_percent"} <= document.keys()
    assert {"cores", "cpu", "versions", "load", "commit"} <= document["machine"].keys()
