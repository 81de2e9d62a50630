"""The same submissions graded by others: nbgrader, otter-grader, a pytest process each. All three assertions come from
``peers/test_attention.py``."""

from __future__ import annotations

import ast
import csv
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

from .classes import ATTENTION
from .harness import SMALL, Harness, MeasureError, Spent, environ

ASSERTIONS = Path(__file__).parent / "peers" / "test_attention.py"
OTTER = "otter-grader==7.0.0"


def assertions() -> dict[str, str]:
    """Name of each check -> its body."""
    tree = ast.parse(ASSERTIONS.read_text("utf-8"))
    found = {
        node.name: "\n".join(map(ast.unparse, node.body)) for node in tree.body if isinstance(node, ast.FunctionDef)
    }
    if len(found) != 3:
        raise MeasureError(f"{ASSERTIONS} holds {len(found)} checks, not 3")
    return found


_IMPORTS = "import torch\nfrom torch.nn import functional"


class Nbgrader:
    """A course of nbgrader with one assignment: ``nbgrader autograde`` grades all that is handed in."""

    name = "nbgrader autograde"

    def __init__(self, harness: Harness) -> None:
        self.harness, self.folder = harness, harness.folder("nbgrader")
        solution = (SMALL / "solutions" / f"{ATTENTION}.py").read_text("utf-8")
        cells = [
            _cell(solution.replace("from __future__ import annotations\n", ""), "answer", solution=True),
            _cell(_IMPORTS, "imports", grade=True, points=0),
        ]
        cells += [_cell(body, name, grade=True, points=1) for name, body in assertions().items()]
        _write(self.folder / "source/attention/attention.ipynb", cells)
        (self.folder / "nbgrader_config.py").write_text(
            "c = get_config()\nc.CourseDirectory.course_id = 'bench'\nc.ClearSolutions.enforce_metadata = False\n"
        )
        self._command("generate_assignment", "attention")

    def hand_in(self, learner: str, source: str) -> None:
        """Put a learner's notebook where it is collected: the released one with the answer in its cell."""
        book = nbformat.read(self.folder / "release/attention/attention.ipynb", 4)
        book.cells[0].source = source.replace("from __future__ import annotations\n", "")
        path = self.folder / "submitted" / learner / "attention/attention.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(book, path)

    def grade(self) -> Spent:
        """Grade everything that was handed in, in one command, as its users do."""
        return self._command("autograde", "attention")

    def points(self) -> list[float]:
        """Points by learner, in their order."""
        self._command("export")
        with (self.folder / "grades.csv").open() as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["student_id"])
        return [float(row["score"]) for row in rows]

    def _command(self, *words: str) -> Spent:
        return self.harness.run([sys.executable, "-m", "nbgrader", *words], cwd=self.folder)


class Otter:
    """An assignment of otter-grader: ``otter run`` grades one notebook. It lives in an environment of its own, which
    looks into this one for what it lacks (torch)."""

    name = "otter run"

    def __init__(self, harness: Harness, program: Path) -> None:
        self.harness, self.program, self.folder = harness, program, harness.folder("otter")
        tests = self.folder / "tests"
        tests.mkdir()
        for name, body in assertions().items():
            inner = "\n".join(f"    {line}" for line in body.splitlines())
            (tests / f"{name}.py").write_text(
                f"OK_FORMAT = False\n\n{_IMPORTS}\nfrom otter.test_files import test_case\n\nname = {name!r}\npoints = 1\n\n"
                f"@test_case()\ndef {name}(attention):\n{inner}\n"
            )
        self._zip = self.folder / "autograder.zip"
        self._command("generate", "-t", tests, "-o", self._zip, "--no-requirements", "--no-environment", "--no-config")

    def grade(self, learner: str, source: str) -> tuple[Spent, float]:
        """Grade one notebook -> (what it took, points)."""
        book, out = self.folder / f"{learner}.ipynb", self.folder / learner
        out.mkdir()
        cells = [new_code_cell(source.replace("from __future__ import annotations\n", ""))]
        _write(book, cells)
        spent = self._command("run", "-a", self._zip, "-o", out, "--no-logo", book)
        tests = json.loads((out / "results.json").read_bytes())["tests"]
        return spent, sum(float(t.get("score", 0)) for t in tests)

    def _command(self, *words: Any) -> Spent:
        return self.harness.run([self.program, *words], cwd=self.folder, PATH=f"{self.program.parent}:/usr/bin:/bin")


def otter_program(harness: Harness) -> tuple[Path | None, str]:
    """(the command ``otter``, "") or (None, why there is none); the environment is made at first use and kept."""
    home = harness.root / ".kata" / "bench" / OTTER.replace("==", "-")
    program, done = home / "bin" / "otter", home / "complete"
    if done.is_file() and program.is_file():
        return program, ""
    harness.say(f"making an environment for {OTTER} in {home} (not timed; minutes)")
    shutil.rmtree(home, ignore_errors=True)
    try:
        venv.create(home, with_pip=True)
        made = subprocess.run(
            [home / "bin" / "python", "-m", "pip", "install", "--quiet", OTTER],
            env=environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"no environment for {OTTER}: {error}"
    if made.returncode or not program.is_file():
        last = [line for line in made.stderr.splitlines() if line.startswith("ERROR")] or made.stderr.splitlines()
        return None, f"{OTTER} could not be installed: {' '.join(last[-1:])}"
    # Its own packages come first; torch and what torch needs come from here.
    site = next(home.glob("lib/python*/site-packages"))
    (site / "course.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done.touch()
    return program, ""


class Plain:
    """One pytest process for each submission, in a folder with ``attention.py`` and the three assertions."""

    name = "pytest process"

    def __init__(self, harness: Harness) -> None:
        self.harness, self.folder = harness, harness.folder("plain")

    def grade(self, learner: str, source: str) -> tuple[Spent, float]:
        """Grade one file -> (what it took, points)."""
        folder = self.folder / learner
        folder.mkdir()
        (folder / "attention.py").write_text(source, "utf-8")
        shutil.copyfile(ASSERTIONS, folder / ASSERTIONS.name)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ASSERTIONS.name]
        # Without the plugins that happen to be installed: they would be held against it.
        spent = self.harness.run(command, cwd=folder, status=(0, 1), PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
        passed = re.search(r"(\d+) passed", spent.output)
        return spent, float(passed[1]) if passed else 0.0


def _cell(source: str, name: str, *, solution: bool = False, grade: bool = False, points: int = 0) -> Any:
    """A code cell as nbgrader marks it."""
    marks = {
        "schema_version": 3,
        "grade_id": name,
        "solution": solution,
        "grade": grade,
        "locked": not solution,
        "task": False,
    }
    return new_code_cell(source, metadata={"nbgrader": marks | ({"points": points} if grade else {})})


def _write(path: Path, cells: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), path)
