"""Notebooks are parsed in another process, in the sandbox."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from llmkata.grading import apart, notebook
from llmkata.grading.apart import Parsed, parse_notebook


def cells(*sources: str) -> bytes:
    return json.dumps({"nbformat": 4, "cells": [{"cell_type": "code", "source": s} for s in sources]}).encode()


def test_the_code_comes_out(monkeypatch):
    """And nothing of the notebook is decoded in this process."""
    monkeypatch.setattr(notebook, "_decode", lambda data: pytest.fail("decoded here"))
    assert parse_notebook(cells("%time\nx = 1", "y = 2")) == Parsed(
        "# cell 1\npass\nx = 1\n\n\n# cell 2\ny = 2\n", ["notebook: dropped 1 magic line (%time)"])


@pytest.mark.parametrize(("data", "said"), [
    (b"", "JSON"), (b'{"x":' * 200_000, "nested too deeply"), (cells("x = '\ud800'"), "not valid JSON"),
    (b'{"nbformat": 4, "cells": [' + b'{"cell_type": "code", "source": "x"},' * 300_000 + b'{}]}', "cells, more than")])
def test_what_cannot_be_read_says_why(data, said):
    assert said in parse_notebook(data).fault


@pytest.mark.parametrize("stdout", [b"", b"no json", b'{"text": 5}', b'{"text": "' + b"x" * (17 << 20) + b'"}'])
def test_a_parser_that_was_taken_over_says_nothing_but_text(stdout, monkeypatch):
    monkeypatch.setattr(apart.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout, b""))
    assert "too much time or memory" in parse_notebook(b"").fault


def test_one_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(apart, "_SECONDS", 0.01)
    assert "too much time" in parse_notebook(cells("x = 1")).fault


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")
def test_it_is_sandboxed(tmp_path):
    """The parser replaced by one that looks around: no file of ours, no process, no network."""
    program = f"""
import sys
from llmkata.grading import apart, notebook
def look(data):
    said = []
    for act in (lambda: open({str(tmp_path / 'secret')!r}).read(), __import__("os").fork,
                lambda: __import__("socket").socket()):
        try:
            act()
            said.append("done")
        except OSError:
            said.append("refused")
    return " ".join(said), []
notebook.notebook_source = look
apart.main(sys.argv[1])
"""
    (tmp_path / "secret").write_text("x")
    (tmp_path / "scratch").mkdir()
    run = subprocess.run([sys.executable, "-I", "-c", program, str(tmp_path / "scratch")], input=b"", capture_output=True,
                         check=True)
    assert json.loads(run.stdout)["text"] == "refused refused refused"
