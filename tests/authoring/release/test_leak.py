"""The leak check finds a planted leak of each kind, in each place, and nothing in a release as it is."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import pytest

from llmkata.authoring.release import contents as release_contents
from llmkata.authoring.release.leak import find_leaks
from llmkata.course import load_course

ANSWER = "    e = (x - x.amax(dim=-1, keepdim=True)).exp()\n"
FEEDBACK = "exercises/module1/scale/feedback.json"


def zipped(name: str, text: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(name, text)
    return out.getvalue()


@pytest.fixture
def files(toy: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A release of the toy; its wheel is made elsewhere."""
    wheel = zipped("llmkata/a.py", "import torch\ne = 1\n")
    monkeypatch.setattr(release_contents, "_wheel", lambda: ("llmkata-0.0-py3-none-any.whl", wheel))
    return release_contents.contents(load_course(toy))


def kinds(files: dict[str, bytes], toy: Path) -> set[tuple[str, str]]:
    return {(leak.path, leak.kind) for leak in find_leaks(files, load_course(toy))}


def test_nothing_leaks(files: dict[str, bytes], toy: Path) -> None:
    assert kinds(files, toy) == set()


@pytest.mark.parametrize("hidden", ["graders/module1/scale/test_correctness.py", "reference/module1/scale.py", "solutions/module1/scale.py"])
def test_a_hidden_file(files: dict[str, bytes], toy: Path, hidden: str) -> None:
    data = (toy / hidden).read_bytes()
    assert (hidden, "hidden file") in kinds(files | {hidden: data}, toy)
    # under another name, with other line ends, packed
    assert ("docs/a.txt", "hidden file") in kinds(files | {"docs/a.txt": data.replace(b"\n", b"\r\n")}, toy)
    packed = kinds(files | {"docs/a.zip": zipped("b.py", data.decode())}, toy)
    assert ("docs/a.zip!b.py", "hidden file") in packed


def test_any_file_in_a_hidden_folder(files: dict[str, bytes], toy: Path) -> None:
    assert ("graders/new.txt", "hidden file") in kinds(files | {"graders/new.txt": b"x"}, toy)


@pytest.mark.parametrize("name", ["docs/notes.md", "exercises/module1/scale/scale.py", "course.yaml", "kata"])
def test_a_line_of_a_marked_region(files: dict[str, bytes], toy: Path, name: str) -> None:
    told = find_leaks(files | {name: files.get(name, b"") + b"\n" + ANSWER.strip().encode() + b"\n"}, load_course(toy))
    assert [(leak.path, leak.kind) for leak in told] == [(name, "line of an answer")]
    assert "solutions/module1/scale.py:13" in told[0].what


def test_a_line_in_another_layout_or_in_a_document(files: dict[str, bytes], toy: Path) -> None:
    spread = ANSWER.replace("    e = (x", "\t\te   =  (x").encode()
    assert ("docs/a.md", "line of an answer") in kinds(files | {"docs/a.md": spread}, toy)
    notebook = json.dumps({"cells": [{"source": ["import torch\n", ANSWER, "x\n"]}]}).encode()
    assert ("docs/a.ipynb", "line of an answer") in kinds(files | {"docs/a.ipynb": notebook}, toy)
    text = json.dumps({"hint": f"Try\n{ANSWER}"}).encode()
    assert ("docs/a.json", "line of an answer") in kinds(files | {"docs/a.json": text}, toy)


def test_a_trivial_line_is_none(files: dict[str, bytes], toy: Path) -> None:
    assert kinds(files | {"docs/a.md": b"    if x.dim() == 0:\n    return e / e\n"}, toy) == set()


def test_the_header_of_a_block_says_less_than_a_statement(files: dict[str, bytes], toy: Path) -> None:
    path = toy / "reference/module1/scale.py"
    headers = ["for row, column in zip(rows, values):", "for row, column in zip(scores.softmax(-1), values.mT):"]
    body = "".join(f"    {header}\n        pass\n" for header in headers)
    path.write_text(path.read_text() + f"\n\ndef f(rows, scores, values):\n{body}")
    planted = "\n".join(headers).encode()
    leaks = find_leaks(files | {"docs/a.md": planted}, load_course(toy))
    assert [(leak.line, leak.kind) for leak in leaks] == [(2, "line of an answer")]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("reference/module1/scale.py", "return x.double().softmax(-1).to(x.dtype)"),
        ("graders/module1/scale/alternatives/logarithms.py", "return (x - torch.logsumexp(x, -1, keepdim=True)).exp()"),
        ("graders/module1/scale/misconceptions.py", "return (softmax(scores) @ values + softmax(scores) @ values) / 2"),
    ],
)
def test_a_line_of_another_answer(files: dict[str, bytes], toy: Path, file: str, line: str) -> None:
    assert line in (toy / file).read_text()
    told = find_leaks(files | {"docs/a.md": line.encode()}, load_course(toy))
    assert [(leak.kind, file in leak.what) for leak in told] == [("line of an answer", True)]


def test_a_passage_of_a_hidden_check(files: dict[str, bytes], toy: Path) -> None:
    source = (toy / "graders/module1/scale/test_budgets.py").read_text()
    passage = source[source.index("    scores, values =") :]
    assert ("docs/a.md", "passage") in kinds(files | {"docs/a.md": passage.encode()}, toy)
    # One line of it is common property, two are a coincidence.
    assert kinds(files | {"docs/a.md": "\n".join(passage.splitlines()[:2]).encode()}, toy) == set()


def test_what_visible_checks_share_with_hidden_ones_is_public(files: dict[str, bytes], toy: Path) -> None:
    """Checks of both sides may begin alike; whatever stands in a visible one is no secret."""
    hidden, visible = toy / "graders/module1/scale/test_correctness.py", toy / "exercises/module1/scale/test_scale.py"
    shared = "\n\ndef longer_helper(first, second):\n    third = first + second + 1\n    return third * first * second\n"
    hidden.write_text(hidden.read_text() + shared)
    assert ("docs/a.md", "passage") in kinds(files | {"docs/a.md": shared.encode()}, toy)
    visible.write_text(visible.read_text() + shared)
    name = "exercises/module1/scale/test_scale.py"
    assert kinds(files | {name: visible.read_bytes()}, toy) == set()


def test_an_answer_in_the_wheel(files: dict[str, bytes], toy: Path) -> None:
    wheel = next(name for name in files if name.startswith("vendor/"))
    solution = (toy / "solutions/module1/scale.py").read_text()
    region = solution[solution.index("    if x.dim()") : solution.index("    # END SOLUTION")]
    planted = kinds(files | {wheel: zipped("llmkata/a.py", f"def f(x):\n{region}")}, toy)
    assert (f"{wheel}!llmkata/a.py", "passage") in planted
    assert kinds(files | {wheel: zipped("llmkata/a.py", ANSWER)}, toy) == set()  # a phrase of Python is no passage


def test_an_expected_value(files: dict[str, bytes], toy: Path) -> None:
    path = toy / "graders/module1/scale/test_correctness.py"
    path.write_text(path.read_text() + "\n\nWANT = [0.731058578, 0.25]\n")
    assert ("README.md", "expected value") in kinds(files | {"README.md": b"softmax gives 0.731058578 here"}, toy)
    assert kinds(files | {"README.md": b"0.25 and 10.731058578"}, toy) == set()


def test_a_name_beyond_the_public_list(files: dict[str, bytes], toy: Path) -> None:
    told = json.loads(files[FEEDBACK])
    told["checks"] = [c for c in told["checks"] if "test_large_numbers" not in c["id"]]
    told["mistakes"] = [m for m in told["mistakes"] if m["name"] != "wrong_axis"]
    shorter = files | {FEEDBACK: json.dumps(told).encode()}
    assert kinds(shorter, toy) == set()
    planted = b"Your code must pass test_large_numbers and is not wrong_axis."
    leaks = find_leaks(shorter | {"docs/a.md": planted}, load_course(toy))
    assert [leak.what.split(",")[0] for leak in leaks] == ["test_large_numbers", "wrong_axis"]
    assert kinds(files | {"docs/a.md": planted}, toy) == set()  # both are public by feedback.json


def test_answers_to_a_hidden_check(files: dict[str, bytes], toy: Path) -> None:
    told = json.loads(files[FEEDBACK])
    told["mistakes"][0]["answers"]["test_correctness.py::test_mix"] = [["00", "AA=="]]
    assert (FEEDBACK, "hidden name") in kinds(files | {FEEDBACK: json.dumps(told).encode()}, toy)
