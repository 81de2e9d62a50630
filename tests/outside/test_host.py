"""What the host is said to offer agrees with what a process that enters finds."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llmkata.cli.doctor import doctor
from llmkata.inside.sandbox import LAYERS
from llmkata.outside import host
from llmkata.outside.host import LayerStatus, probe_host


@pytest.fixture
def answer(monkeypatch):
    """Stands in for the trial's answer: a host that offers less than this one."""
    def set_answer(stdout="", stderr="", returncode=0):
        monkeypatch.setattr(host.subprocess, "run",
                            lambda *a, **k: subprocess.CompletedProcess(a, returncode, stdout, stderr))
    return set_answer


def by_name(rows: list[LayerStatus]) -> dict[str, LayerStatus]:
    return {row.name: row for row in rows}


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox's layers are Linux's")
def test_the_trial_is_a_real_one():
    rows = by_name(probe_host())
    assert set(LAYERS) <= set(rows)
    trial = json.loads(subprocess.run([sys.executable, "-I", "-m", "llmkata.inside.sandbox"],
                                      capture_output=True, text=True, check=True).stdout)
    assert {name for name in LAYERS if rows[name].available} == set(trial["layers"])
    assert rows["close_range"].available and rows["rlimit"].available


def test_every_layer_says_what_it_stops_and_how_to_get_it(answer):
    answer(json.dumps({"layers": [], "missing": {name: "why not" for name in LAYERS}}))
    rows = by_name(probe_host())
    assert set(LAYERS) <= set(rows)
    for row in rows.values():
        assert not row.available and row.stops and row.why_missing and row.how_to_get


def test_a_host_without_user_namespaces(answer):
    refused = dict.fromkeys(("userns", "netns", "ipcns", "pidns", "mountns"), "[Errno 1] Operation not permitted")
    layers = [name for name in LAYERS if name not in refused]
    answer(json.dumps({"layers": layers, "missing": {**refused, "grant:loopback": "needs netns",
                                                     "landlock:signals": "this kernel has Landlock ABI 5"}}))
    rows = by_name(probe_host())
    assert rows["landlock"].available and not rows["netns"].available
    assert "max_user_namespaces" in rows["userns"].how_to_get
    assert rows["grant:exec"].available and not rows["grant:loopback"].available
    assert rows["grant:loopback"].why_missing == "needs netns"
    assert not rows["landlock:signals"].available


def test_a_trial_that_fails_leaves_nothing_standing(answer):
    answer(stderr="Illegal instruction", returncode=-4)
    rows = [row for row in probe_host() if row.name in LAYERS]
    assert {(row.available, row.why_missing) for row in rows} == {(False, "Illegal instruction")}


def test_a_trial_that_hangs_leaves_nothing_standing():
    rows = probe_host(timeout=0.001)
    assert not any(row.available for row in rows) and "did not end" in rows[0].why_missing


def test_doctor_as_json(capsys):
    status = doctor(json=True)
    said = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in said["sandbox"]} >= set(LAYERS)
    assert said["libraries"]["torch"]
    assert status == (0 if all(row["available"] for row in said["sandbox"]) else 1)


def test_doctor_names_what_is_missing_and_what_to_do(answer, capsys):
    answer(json.dumps({"layers": [n for n in LAYERS if n != "landlock"], "missing": {"landlock": "not supported"}}))
    assert doctor() == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "landlock: not supported" in text and "lsm=landlock" in text


def test_the_bundle_holds_the_report_and_nobody(answer, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KATA_TEST_TOKEN", "s3cret-of-the-environment")
    answer(json.dumps({"layers": list(LAYERS), "missing": {}}))
    assert doctor(json=True, bundle=True) == 0
    said = capsys.readouterr()
    assert "kata-doctor.zip" in said.err
    with zipfile.ZipFile(tmp_path / "kata-doctor.zip") as file:
        texts = {name: file.read(name).decode() for name in file.namelist()}
    assert json.loads(texts["doctor.json"]) == json.loads(said.out)
    assert "Seccomp" in texts["kernel.json"] or sys.platform != "linux"
    assert "pytest==" in texts["packages.txt"]
    for private in ("s3cret-of-the-environment", f'"{socket.gethostname()}"', str(Path.home()), str(tmp_path)):
        assert not any(private in text for text in texts.values()), private


def test_doctor_is_content_where_all_stands(answer, capsys):
    answer(json.dumps({"layers": list(LAYERS), "missing": {}}))
    assert doctor() == 0
    assert "do not stand" not in capsys.readouterr().out
