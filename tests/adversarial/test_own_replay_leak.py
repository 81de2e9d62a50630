"""kata replay writes down an input that a check failed on: where there are no hidden checks, never one of theirs."""

import shutil

import pytest
import torch

from ..toy.harness import ROOT, SOLUTION

WRONG = SOLUTION + "\n\ndef magic(n):\n    return 5\n\ndef softmax(x):\n    return x\n"


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """``repository(released)``: the toy course with a wrong answer in it, as learners have it."""
    from typer.testing import CliRunner

    from llmkata.cli.main import app

    def make(released):
        root = tmp_path / ("released" if released else "clone")
        left_out = ["__pycache__", "conftest.py", "harness.py"] + (["graders", "solutions", "reference"] if released else [])
        shutil.copytree(ROOT, root, ignore=shutil.ignore_patterns(*left_out))
        (root / "exercises/module1/toy/toy.py").write_text(WRONG, "utf-8")
        if released:
            kept = root / ".kata-stubs/module1/toy.py"
            kept.parent.mkdir(parents=True)
            shutil.copy(ROOT / "exercises/module1/toy/toy.py", kept)
        monkeypatch.chdir(root)
        return root, lambda *words: CliRunner().invoke(app, ["--course", str(root), *words])

    return make


def test_a_released_repository_replays_visible_checks_alone(repository):
    root, kata = repository(True)
    refused = kata("replay", "toy", "test_magic")
    assert refused.exit_code and "has no check 'test_magic'" in str(refused.exception)
    assert not (root / ".kata/replay").exists()
    assert kata("replay", "toy", "test_two_numbers", "--seed", "7").exit_code == 0
    written = torch.load(next((root / ".kata/replay").glob("*.pt")), weights_only=True)
    assert written["args"][0].tolist() == [0.0, 0.0]


def test_where_graders_are_they_are_replayed(repository):
    root, kata = repository(False)
    assert kata("replay", "toy", "test_softmax_sums_to_one", "--seed", "7").exit_code == 0
    assert torch.load(next((root / ".kata/replay").glob("*.pt")), weights_only=True)["args"][0].shape == (3, 5)
