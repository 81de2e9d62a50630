"""The stub cutter: what is cut, what is kept, and what is refused with a line number."""

from __future__ import annotations

import ast
import subprocess
import sys
import textwrap

import pytest

from llmkata.authoring.stub import StubError, cut_stub, is_untouched, main, regions, solved_exercises

SOLUTION = textwrap.dedent('''\
    """Scaled dot-product attention."""

    import torch

    # BEGIN HIDDEN
    import math
    # END HIDDEN


    def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Weights of q (B, T, D) over k (B, S, D)."""
        if q.shape[-1] != k.shape[-1]:
            raise ValueError("q and k differ in their last axis")
        # BEGIN SOLUTION task 1: scores
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        # END SOLUTION
        for _ in range(1):
            # BEGIN SOLUTION task 2: the "softmax", over keys
            scores = scores.softmax(-1)
            # END SOLUTION
        return scores


    # BEGIN HIDDEN
    def helper() -> int:
        return 1


    # END HIDDEN
    class Attention(torch.nn.Module):
        """A module."""

        def __init__(self, width: int) -> None:
            super().__init__()
            # BEGIN SOLUTION task 3: projections
            self.proj = torch.nn.Linear(width, width)
            # END SOLUTION

        # BEGIN HIDDEN
        def extra(self) -> None:
            pass

        # END HIDDEN
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(B, T, D) -> (B, T, D)."""
            # BEGIN SOLUTION task 3: projections
            return self.proj(x)
            # END SOLUTION
    ''')

STUB = textwrap.dedent('''\
    """Scaled dot-product attention."""

    import torch


    def attention(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """Weights of q (B, T, D) over k (B, S, D)."""
        if q.shape[-1] != k.shape[-1]:
            raise ValueError("q and k differ in their last axis")
        raise NotImplementedError("task 1: scores")
        for _ in range(1):
            raise NotImplementedError("task 2: the \\"softmax\\", over keys")
        return scores


    class Attention(torch.nn.Module):
        """A module."""

        def __init__(self, width: int) -> None:
            super().__init__()
            raise NotImplementedError("task 3: projections")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(B, T, D) -> (B, T, D)."""
            raise NotImplementedError("task 3: projections")
    ''')


def test_cuts_every_region_and_keeps_the_rest() -> None:
    assert cut_stub(SOLUTION) == STUB
    ast.parse(STUB)


def test_source_without_regions_is_kept() -> None:
    assert cut_stub(STUB) == STUB


def test_windows_line_endings_give_the_same_stub() -> None:
    assert cut_stub(SOLUTION.replace("\n", "\r\n")) == STUB


def test_markers_inside_strings_are_text() -> None:
    source = 'TEXT = """\n# BEGIN SOLUTION\n"""\n'
    assert regions(source) == []
    assert cut_stub(source) == source


@pytest.mark.parametrize(
    ("source", "line", "message"),
    [
        ("def f():\n    # BEGIN SOLUTION task 1: x\n    return 1\n", 2, "never closed"),
        ("def f():\n    return 1\n    # END SOLUTION\n", 3, "without a BEGIN"),
        (
            "def f():\n    # BEGIN SOLUTION task 1: x\n    # BEGIN HIDDEN\n    return 1\n",
            3,
            "inside the SOLUTION region",
        ),
        ("def f():\n    # BEGIN HIDDEN\n    # END SOLUTION\n    return 1\n", 3, "closes the HIDDEN region"),
        ("def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n", 2, "name the task"),
        ("def f():\n    # BEGIN SOLUTION task 1:\n    return 1\n    # END SOLUTION\n", 2, "name the task"),
        ("def f():\n    x = 1  # BEGIN SOLUTION task 1: x\n    # END SOLUTION\n", 2, "line of its own"),
        ("x = 1\n# BEGIN SOLUTION task 1: x\ny = 2\n# END SOLUTION\n", 2, "outside of a function"),
        ("class A:\n    # BEGIN SOLUTION task 1: x\n    y = 2\n    # END SOLUTION\n", 2, "outside of a function"),
        ("def f():\n    # BEGIN HIDDEN\n    return 1\n    # END HIDDEN\n\n\nx = 1\n", 7, "not be valid Python"),
        ("def f():\n    '''\n", 2, "not valid Python"),
        ("def f():\n  if 1:\n      x\n    y\n", 4, "not valid Python"),
    ],
)
def test_refuses_with_the_line(source: str, line: int, message: str) -> None:
    with pytest.raises(StubError, match=message) as caught:
        cut_stub(source)
    assert caught.value.line == line
    assert str(caught.value).startswith(f"line {line}: ")


def test_untouched_ignores_comments_layout_and_quotes() -> None:
    assert is_untouched(STUB, STUB)
    reformatted = STUB.replace(
        'raise NotImplementedError("task 1: scores")', "raise NotImplementedError(\n  'task 1: scores',\n)"
    )
    reformatted = reformatted.replace("import torch\n", "import torch  # mine\n\n\n")
    reformatted = reformatted.replace('"""A module."""', '"""A module.   \n    """')
    assert reformatted != STUB
    assert is_untouched(STUB, reformatted)


@pytest.mark.parametrize("change", ["return scores + 0", "return scores\n    pass", "return scores ("])
def test_any_other_change_is_work(change: str) -> None:
    assert not is_untouched(STUB, STUB.replace("return scores", change))


@pytest.mark.parametrize("source", ["x\0", "a" + ".b" * 200_000, "1" + "+1" * 200_000, "not " * 200_000 + "1"])
def test_hostile_source_is_not_the_stub(source: str) -> None:
    assert not is_untouched(STUB, source)


def test_command_writes_then_finds_drift(tmp_path, capsys) -> None:
    for name in ("module2/self_attention", "module10/agent"):
        path = tmp_path / "solutions" / f"{name}.py"
        path.parent.mkdir(parents=True)
        path.write_text(SOLUTION)
    assert solved_exercises(tmp_path) == ["module2/self_attention", "module10/agent"]
    root = ["--root", str(tmp_path)]
    assert main(["--all", "--check", *root]) == 1
    stub = tmp_path / "exercises/module2/self_attention/self_attention.py"
    assert not stub.exists()
    assert main(["module2/self_attention", *root]) == 0
    assert stub.read_text() == STUB
    assert main(["module2/self_attention", "--check", *root]) == 0
    stub.write_text(STUB.replace("return scores", "return 0"))
    capsys.readouterr()
    assert main(["module2/self_attention", "--check", *root]) == 1
    shown = capsys.readouterr()
    assert "-    return 0\n" in shown.out and "+    return scores\n" in shown.out
    assert "kata sync module2/self_attention" in shown.err


def test_command_names_what_is_wrong(tmp_path, capsys) -> None:
    bad = tmp_path / "solutions/module2/bad.py"
    bad.parent.mkdir(parents=True)
    bad.write_text("# BEGIN HIDDEN\n")
    assert main(["module2/bad", "--root", str(tmp_path)]) == 2
    assert "solutions/module2/bad.py: line 1:" in capsys.readouterr().err
    assert main(["module2/none", "--root", str(tmp_path)]) == 2
    assert "module2/none: there is no" in capsys.readouterr().err


def test_runs_as_a_module(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llmkata.authoring.stub", "--root", str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "name exercises, or give --all" in done.stderr
