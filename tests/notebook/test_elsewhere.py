"""The notebook where nothing of the course is: its first cell fetches and installs it, as on Colab."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from llmkata.authoring.feedback import build
from llmkata.authoring.release.contents import contents
from llmkata.authoring.release.deliver import deliver
from llmkata.course import load_course
from llmkata.notebook.write import notebook

from .test_notebook import TOY, by_id, code, failed, said

WRONG = "def softmax(x):\n    e = (x - x.amax(-1, keepdim=True)).exp()\n    return e / e.sum(-1, keepdim=True) / 2"
RIGHT = WRONG.removesuffix(" / 2")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the libraries of this one and without llmkata -> the folder of its kernel for Jupyter."""
    home = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "venv", home / "env"], check=True)
    libraries = home / "libraries"
    libraries.mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.lower().startswith(("llmkata", "_llmkata", "pip")) and entry.suffix != ".pth":
            (libraries / entry.name).symlink_to(entry)
    packages = next((home / "env").rglob("site-packages"))
    for entry in packages.glob("setuptools*"):  # what venv brings along before Python 3.12, too old for torch
        shutil.rmtree(entry)
    (packages / "libraries.pth").write_text(f"{libraries}\n")
    python = next(p for p in (home / "env/bin/python", home / "env/Scripts/python.exe") if p.exists())
    spec = home / "jupyter/kernels/clean/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                                "display_name": "clean", "language": "python",
                                "env": {"PIP_NO_INDEX": "1", "PYTHONPATH": "", "KATA_COURSE": ""}}))
    found = subprocess.run([python, "-c", "import torch, llmkata"], capture_output=True, text=True, check=False, cwd=home)
    assert "No module named 'llmkata'" in found.stderr  # the control: the libraries are there, the framework is not
    return home / "jupyter"


@pytest.fixture
def handed_out(tmp_path: Path) -> Path:
    """A repository as an instructor hands it out."""
    shutil.copytree(TOY, tmp_path / "course", ignore=shutil.ignore_patterns("__pycache__", "conftest.py", "harness.py"))
    course = load_course(tmp_path / "course")
    toy = course.exercise("toy")
    toy.feedback.write_text(json.dumps(build(course, toy)), "utf-8")
    root = tmp_path / "handed-out"
    deliver(contents(course), root, course.title)
    git = ["git", "-C", str(root), "-c", "user.name=I", "-c", "user.email=i@example.org"]
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "The course")):
        subprocess.run([*git, *words], check=True)
    return root


def written(root: Path, repository: str) -> nbformat.NotebookNode:
    exercise = load_course(root).exercise("toy")
    return nbformat.reads(notebook(exercise, exercise.stub.read_text("utf-8"), repository), 4)


def executed(book: nbformat.NotebookNode, folder: Path, kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(kernel))
    NotebookClient(book, timeout=300, kernel_name="clean", allow_errors=True,
                   resources={"metadata": {"path": str(folder)}}).execute()


def test_beside_the_course_another_kernel_is_told_which_to_choose(handed_out, kernel, monkeypatch):
    """Before the tests that install llmkata into the environment of the kernel."""
    book = written(handed_out, "https://example.org/never-asked")
    book.cells = [setup] = [by_id(book, "set-up")]
    executed(book, handed_out / "exercises/module1/toy", kernel, monkeypatch)
    assert failed(setup) and f"Choose the Python in {handed_out / '.venv'} as the kernel" in said(setup)
    assert not (handed_out / "exercises/module1/toy/course").exists()


def test_in_a_clean_folder(handed_out, kernel, tmp_path, monkeypatch):
    """Without an address, with a wrong one, with the right one: cloned, installed from its wheel, judged."""
    clean = tmp_path / "content"
    clean.mkdir()
    book = written(handed_out, "")
    setup, shared, check = by_id(book, "set-up"), by_id(book, "checks-shared"), by_id(book, "check-test_two_numbers")
    elsewhere = code(setup.source.replace('REPOSITORY = ""', f'REPOSITORY = "{tmp_path / "nowhere"}"'))
    right = code(setup.source.replace('REPOSITORY = ""', f'REPOSITORY = "{handed_out}"'))
    stub = [c for c in book.cells if c.id.startswith("stub-")]
    wrong, hint, again = code(check.source), code("%kata hint"), code(check.source)
    book.cells = [setup, elsewhere, right, *stub, shared, code(WRONG), wrong, hint, code(RIGHT), again, by_id(book, "check-all")]
    executed(book, clean, kernel, monkeypatch)
    assert failed(setup) and "Set REPOSITORY, above, to the address of your course's repository" in said(setup)
    assert failed(elsewhere) and "nowhere cannot be cloned" in said(elsewhere)
    assert not failed(right) and "1.1 Toy operations: task 1" in said(right), said(right)
    assert not any(map(failed, stub))
    assert failed(wrong) and "✗ The softmax of two equal numbers is one half for each." in said(wrong), said(wrong)
    assert "Hint 1 of 2: Which dimension is summed over?" in said(hint)
    assert not failed(again) and said(again).strip() == "passed"
    assert "1/1 checks" in said(book.cells[-1])
    assert (clean / "course/.kata/hints.json").is_file()


def test_the_address_is_that_of_the_clone_without_what_is_secret_in_it(tmp_path):
    root = tmp_path / "clone"
    shutil.copytree(TOY, root, ignore=shutil.ignore_patterns("__pycache__"))

    def address() -> str:
        out = root / "toy.ipynb"
        done = subprocess.run([sys.executable, "-m", "llmkata.cli.main", "notebook", "toy", "--force", "--out", str(out)],
                              cwd=root, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "200"})
        line = by_id(nbformat.read(out, 4), "set-up").source.splitlines()[1]
        assert ("Colab: clones" in done.stdout) == (line != 'REPOSITORY = ""')
        return line

    assert address() == 'REPOSITORY = ""'
    subprocess.run(["git", "init", "-q", root], check=True)
    for origin, told in (("https://ann:TOKEN@git.example.org/c/course.git", "https://git.example.org/c/course.git"),
                         ("git@git.example.org:c/course.git", ""), ('https://h/x";import os', "")):
        subprocess.run(["git", "-C", root, "config", "remote.origin.url", origin], check=True)
        assert address() == f'REPOSITORY = "{told}"'
