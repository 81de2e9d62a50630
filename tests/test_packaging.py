"""The project's own files agree: lock, pyproject, launcher, licence, continuous integration."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: Default builds of torch bring these, pinned by torch itself; CPU builds do not.
ACCELERATOR = re.compile(r"(nvidia|cuda)-.*|triton.*")


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(text: str) -> dict[str, Requirement]:
    """Canonical name -> requirement; ValueError for a line that does not pin exactly one version, or repeats a name."""
    found: dict[str, Requirement] = {}
    for line in lines_of(text):
        requirement = Requirement(line)
        exact = [s for s in requirement.specifier
                 if s.operator == "==" and "*" not in s.version and not Version(s.version).local]
        name = canonicalize_name(requirement.name)
        if requirement.url or len(exact) != 1 or len(requirement.specifier) != 1 or name in found:
            raise ValueError(f"not one exact pin: {line}")
        found[name] = requirement
    return found


def version_of(pin: Requirement) -> Version:
    return Version(next(iter(pin.specifier)).version)


def unmet(wanted: list[str], locked: dict[str, Requirement]) -> list[str]:
    """The requirements of ``wanted`` that the lock does not meet."""
    missing = []
    for requirement in map(Requirement, wanted):
        pin = locked.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(version_of(pin), prereleases=True):
            missing.append(str(requirement))
    return missing


LOCK = pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))


def declared() -> list[str]:
    project = PYPROJECT["project"]
    extras = [line for group in project["optional-dependencies"].values() for line in group]
    # hatchling builds the editable installation with the help of editables, and nothing else may be fetched for it
    return [*project["dependencies"], *extras, *PYPROJECT["build-system"]["requires"], "editables"]


@pytest.mark.parametrize("line", ["numpy>=2", "numpy", "numpy==2.*", "torch==2.13.0+cpu", "numpy==2.4.6\nNumPy==2.4.5"])
def test_loose_pins_are_refused(line):
    with pytest.raises(ValueError, match="not one exact pin"):
        pins(line)


def test_lock_is_sorted_and_names_no_place():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lines = lines_of(text)
    assert lines == sorted(lines, key=str.lower)
    assert "://" not in text and "--" not in "".join(lines)


def test_lock_meets_pyproject():
    assert unmet(declared(), LOCK) == []


def test_unmet_requirements_are_seen():
    assert unmet(["torch<2", "numpy>=2.0", "not-there"], LOCK) == ["torch<2", "not-there"]


def test_lock_is_what_is_installed_and_closed():
    """Each pin that applies here is installed in that version, and what it requires is pinned too."""
    environment = {**default_environment(), "extra": ""}
    for name, pin in LOCK.items():
        if pin.marker and not pin.marker.evaluate(environment):
            continue
        distribution = importlib.metadata.distribution(name)
        installed = Version(distribution.version)
        assert Version(installed.public) == version_of(pin), f"{name} {installed} is installed, {pin} is locked"
        wanted = [line for line in distribution.requires or []
                  if (requirement := Requirement(line)).marker is None or requirement.marker.evaluate(environment)]
        open_ = [line for line in unmet(wanted, LOCK)
                 if not ACCELERATOR.fullmatch(canonicalize_name(Requirement(line).name))]
        assert open_ == [], f"{name} requires what the lock does not hold"


def test_python_versions_agree():
    loader = SourceFileLoader("kata_launcher", str(ROOT / "kata"))
    launcher = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(launcher)
    assert PYPROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    assert launcher.SUPPORTED == ((3, 11), (3, 12), (3, 13))
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    matrix = workflow["jobs"]["tests"]["strategy"]["matrix"]["python"]
    assert matrix == [f"{major}.{minor}" for major, minor in launcher.SUPPORTED]


def test_workflow_runs_what_everybody_runs():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads the key `on` as true
    assert workflow["permissions"] == {"contents": "read"}
    steps = workflow["jobs"]["tests"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert all(re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"]) for step in steps if "uses" in step)


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_ci_script_is_valid_and_fails_with_the_suite(tmp_path):
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK)
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci/run").write_bytes(script.read_bytes())
    for status in (0, 5):
        kata = tmp_path / "kata"
        kata.write_text(f'#!/bin/sh\necho "called: $*"\nexit {status}\n')
        kata.chmod(0o755)
        done = subprocess.run(["bash", str(tmp_path / ".ci/run")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (status, "called: test\n"), done.stderr


def test_launcher_is_executable():
    assert os.access(ROOT / "kata", os.X_OK)
    assert (ROOT / "kata").read_text(encoding="utf-8").startswith("#!/usr/bin/env python3\n")


def test_licence():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("MIT License") and "llmkata authors" in text
    assert PYPROJECT["project"]["license"] == "MIT" and PYPROJECT["project"]["license-files"] == ["LICENSE"]
