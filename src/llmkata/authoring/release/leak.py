"""The leak check: nothing of graders, references and solutions is in the files a learner gets.

Five kinds of leak: a hidden file, whole, under whatever name; a line of an answer (a marked region, a body of the
reference, an alternative, a wrong implementation); a passage, that is a few lines in a row, of an answer or a hidden
check; a number that a hidden file expects; a name of a hidden check or mistake that no feedback.json makes public, or
answers to a hidden check. What stubs and visible checks say themselves is public. In the framework's wheel, which shares
a phrase of Python with any code, an answer must be there as a passage.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmkata.authoring.stub import cut_stub, regions
from llmkata.checks.misconceptions import load

#: Folders of a course that no learner gets.
HIDDEN = ("graders", "reference", "solutions")
#: Shorter lines say too little to be an answer, headers of blocks (``for head in model.heads:``) even when they are
#: longer; runs of that many lines are a passage of a check.
_LINE, _HEADER, _RUN = 30, 45, 3
_BLOCKS = ("for ", "while ", "with ", "if ", "elif ")
#: Digits from which on a number is a result rather than a round constant.
_DIGITS = 8
_NUMBER = re.compile(r"(?<![\w.])\d+\.\d+(?:[eE][-+]?\d+)?")


@dataclass(frozen=True, order=True)
class Leak:
    """Something hidden in a released file: where, of which kind, what."""

    path: str
    line: int
    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}{f':{self.line}' if self.line else ''}: {self.kind}: {self.what}"


@dataclass
class Secrets:
    """What must not be found, by kind; values say where it comes from."""

    files: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    passages: dict[tuple[str, ...], str] = field(default_factory=dict)
    numbers: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    #: exercise id -> ids of its visible checks.
    visible: dict[str, set[str]] = field(default_factory=dict)


def find_leaks(files: Mapping[str, bytes], course: Any) -> list[Leak]:
    """Leaks in the files of a release (path -> bytes; archives are looked into)."""
    hidden = secrets(course, files)
    found: list[Leak] = []
    for path, data in files.items():
        for inner, content in _opened(path, data):
            found += _in_file(inner, content, hidden)
    return sorted(set(found))


def secrets(course: Any, files: Mapping[str, bytes]) -> Secrets:
    """What is hidden in a course. ``files`` tells which names are public."""
    hidden = Secrets()
    root: Path = course.root
    public_lines: set[str] = set()
    public_passages: set[tuple[str, ...]] = set()
    public_names = set().union(*(_public_names(files, e) for e in course.exercises))
    for folder in HIDDEN:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.stat().st_size > 40:
                hidden.files[_digest(path.read_bytes())] = path.relative_to(root).as_posix()
    for exercise in course.exercises:
        if exercise.solution.is_file():
            stub = cut_stub(exercise.solution.read_text("utf-8"))
            public_lines |= {_flat(line) for line in stub.splitlines()}
            public_passages |= set(_passages(_code_lines(stub)))
            if exercise.visible_checks.is_file():
                public_passages |= set(_passages(_code_lines(exercise.visible_checks.read_text("utf-8"))))
            hidden.visible[exercise.id] = _test_ids(exercise.visible_checks)
            _of_exercise(exercise, public_names, hidden)
    for line in public_lines & hidden.lines.keys():
        del hidden.lines[line]
    for passage in public_passages & hidden.passages.keys():
        del hidden.passages[passage]
    text = "\n".join(public_lines)
    hidden.numbers = {n: where for n, where in hidden.numbers.items() if n not in text}
    return hidden


def _of_exercise(exercise: Any, public: set[str], hidden: Secrets) -> None:
    root = exercise.root
    solution = exercise.solution.read_text("utf-8")
    where = exercise.solution.relative_to(root).as_posix()
    lines = solution.splitlines()
    for region in regions(solution):
        _add_lines(lines[region.first : region.last - 1], f"{where}:{region.first}", hidden)
    answers = [exercise.reference, exercise.graders_dir / "misconceptions.py",
               *sorted((exercise.graders_dir / "alternatives").glob("*.py"))]
    for path in answers:
        if path.is_file():
            _add_lines(_bodies(path), path.relative_to(root).as_posix(), hidden)
    for path in (exercise.reference, *sorted(exercise.graders_dir.glob("test_*.py"))):
        if path.is_file():
            text, origin = path.read_text("utf-8"), path.relative_to(root).as_posix()
            hidden.numbers |= {n: origin for n in _NUMBER.findall(text) if len(n.strip("0").replace(".", "")) >= _DIGITS}
            for passage in _passages(_code_lines(text)):
                hidden.passages.setdefault(passage, origin)
    names = {i.split("::")[1]: "a hidden check" for p in exercise.graders_dir.glob("test_*.py") for i in _test_ids(p)}
    names |= {m.name: "a known mistake" for m in load(exercise.graders_dir / "misconceptions.py")}
    hidden.names |= {n: f"{what} of {exercise.id}" for n, what in names.items() if n not in public and "_" in n}


def _add_lines(lines: list[str], where: str, hidden: Secrets) -> None:
    for line in lines:
        flat = _flat(line)
        least = _HEADER if flat.endswith(":") and flat.startswith(_BLOCKS) else _LINE
        if len(flat) >= least and not flat.startswith(("import ", "from ")):
            hidden.lines.setdefault(flat, where)
    for passage in _passages(_code_lines("\n".join(lines))):
        hidden.passages.setdefault(passage, where)


def _bodies(path: Path) -> list[str]:
    """Lines of the functions of a file, without signatures and docstrings."""
    source = path.read_text("utf-8")
    lines, kept = source.splitlines(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            for statement in body:
                kept |= set(range(statement.lineno - 1, statement.end_lineno))
    return [lines[i] for i in sorted(kept)]


def _public_names(files: Mapping[str, bytes], exercise: Any) -> set[str]:
    """Names that feedback.json tells: checks with hints, mistakes that visible checks show."""
    path = exercise.feedback.relative_to(exercise.root).as_posix()
    told = json.loads(files[path]) if path in files else {"checks": [], "mistakes": []}
    public = {c["id"].split("::")[1].split("[")[0] for c in told["checks"]} | {m["name"] for m in told["mistakes"]}
    return public | {i.split("::")[1] for i in _test_ids(exercise.visible_checks)}


def _test_ids(path: Path) -> set[str]:
    if not path.is_file():
        return set()
    tree = ast.parse(path.read_text("utf-8"))
    return {f"{path.name}::{n.name}" for n in tree.body if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


# Looking


def _in_file(path: str, data: bytes, hidden: Secrets) -> Iterator[Leak]:
    parts = path.split("/")
    if parts[0] in HIDDEN:
        yield Leak(path, 0, "hidden file", f"lies under {parts[0]}/")
    if _digest(data) in hidden.files:
        yield Leak(path, 0, "hidden file", f"is a copy of {hidden.files[_digest(data)]}")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return
    if path.endswith((".json", ".ipynb")):
        yield from _in_json(path, text, hidden)
    yield from _in_text(path, text, hidden)


def _in_json(path: str, text: str, hidden: Secrets) -> Iterator[Leak]:
    """A document's texts are read as lines of their own; a feedback.json answers visible checks only."""
    try:
        document = json.loads(text)
    except ValueError:
        return
    for string in _strings(document):
        if "\n" in string:
            for leak in _in_text(path, string, hidden):
                yield Leak(path, 0, leak.kind, leak.what)
    if isinstance(document, dict) and isinstance(document.get("mistakes"), list):
        visible = hidden.visible.get(document.get("exercise", ""), set())
        for mistake in document["mistakes"]:
            for check in mistake.get("answers", {}):
                if check.split("[")[0] not in visible:
                    yield Leak(path, 0, "hidden name", f"answers to {check}, which is no visible check")


def _in_text(path: str, text: str, hidden: Secrets) -> Iterator[Leak]:
    for number, line in enumerate(text.splitlines(), 1):
        where = hidden.lines.get(_flat(line))
        if where is not None and "!" not in path:
            yield Leak(path, number, "line of an answer", f"{_flat(line)[:60]!r} of {where}")
        for literal in _NUMBER.findall(line):
            if literal in hidden.numbers:
                yield Leak(path, number, "expected value", f"{literal} of {hidden.numbers[literal]}")
        for word in re.findall(r"\w+", line):
            if word in hidden.names:
                yield Leak(path, number, "hidden name", f"{word}, {hidden.names[word]}")
    for passage in _passages(_code_lines(text)):
        if passage in hidden.passages:
            yield Leak(path, 0, "passage", f"{passage[0][:60]!r} ff. of {hidden.passages[passage]}")


def _opened(path: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The file, and what it holds where it is an archive."""
    yield path, data
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                if not name.endswith("/"):
                    for inner, content in _opened(name, archive.read(name)):
                        yield f"{path}!{inner}", content


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
        if value and all(isinstance(item, str) for item in value):
            yield "".join(value)  # cells of notebooks are lists of lines


def _flat(line: str) -> str:
    return " ".join(line.split())


def _code_lines(text: str) -> list[str]:
    """The lines that say something, flat, without imports and decorators (which checks share)."""
    flat = [_flat(line) for line in text.splitlines()]
    return [line for line in flat if len(line) >= 12 and not line.startswith(("import ", "from ", "@", "#"))]


def _passages(lines: list[str]) -> Iterator[tuple[str, ...]]:
    for i in range(len(lines) - _RUN + 1):
        yield tuple(lines[i : i + _RUN])


def _digest(data: bytes) -> str:
    return hashlib.sha256(data.replace(b"\r\n", b"\n").strip()).hexdigest()
