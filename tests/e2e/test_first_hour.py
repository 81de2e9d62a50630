"""The first hour, with the set-up done beforehand: a clone and a released repository, to the first check that passes."""

from __future__ import annotations

import json
import site
import subprocess
import sys
import zipfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import pytest

from .first_hour import ROOT, cast, first_hour, readme_of, released


def installed(folder: Path) -> None:
    """What ``./kata`` sets up, out of the libraries that run this test: no network, a second instead of minutes."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / ".venv")], check=True)
    loader = SourceFileLoader("kata_of_the_clone", str(folder / "kata"))
    launcher = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(launcher)
    packages = next((folder / ".venv").glob("lib/python*/site-packages"))
    for wheel in launcher.vendored():
        zipfile.ZipFile(wheel).extractall(packages)
    own = [] if launcher.vendored() else [str(folder / "src")]
    (packages / "these.pth").write_text("\n".join([*own, *site.getsitepackages()]) + "\n")
    Path(launcher.STAMP).write_text(launcher.expected_stamp())


@pytest.mark.parametrize("edition", ["clone", "released"])
def test_every_step_was_on_the_screen(edition: str, tmp_path: Path) -> None:
    address, before = ROOT, ""
    if edition == "released":
        address, before = released(tmp_path / "handed-out"), "git clone ADDRESS llmkata\ncd llmkata\n"
        assert not any((address / name).exists() for name in ("graders", "solutions", "reference"))
    hour = first_hour(address, readme_of(address) + before, tmp_path, prepare=installed)
    did = [step.did for step in hour.steps[1:]]
    assert [words.split()[0] for words in did] == ["git", "cd", "./kata", "./kata", "save", "key", "save", "key"]
    assert "llmkata.checks" not in hour.seen and "Traceback" not in hour.seen
    head, *events = map(json.loads, cast(hour, tmp_path).splitlines())
    assert not any(str(tmp_path) in text for _, _, text in events)
    assert head["version"] == 2 and all(kind == "o" for _, kind, _ in events)
    assert [at for at, _, _ in events] == sorted(at for at, _, _ in events)


def test_what_nobody_said_cannot_be_typed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="nobody said: git clone"):
        first_hour(ROOT, "A README that does not tell how to begin.", tmp_path)
