"""The stub is cut from the solution: one source of truth for what a learner is given.

Regions of a solution that the stub loses stand between comment lines of their own::

    # BEGIN SOLUTION task 1: scores, mask, softmax, weighted sum
    ...                                   -> raise NotImplementedError("task 1: scores, mask, softmax, weighted sum")
    # END SOLUTION

    # BEGIN HIDDEN
    ...                                   -> removed without replacement (helpers and imports of the answer)
    # END HIDDEN

Everything else - docstrings, annotations, given code - is kept character for character. Run as
``python -m llmkata.authoring.stub EXERCISE... | --all [--check]``.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import functools
import inspect
import io
import json
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARKER = re.compile(r"#+\s*(BEGIN|END)\s+(SOLUTION|HIDDEN)\b\s*(.*?)\s*$")
_TASK = re.compile(r"task\s+(\d+)\s*:\s*(\S.*)$")


class StubError(ValueError):
    """A solution whose regions cannot be cut; the message begins with the line number."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(f"line {line}: {message}")
        self.line = line


@dataclass(frozen=True)
class Region:
    """One marked region. Lines are 1-based and include the marker lines."""

    kind: str  # "SOLUTION" | "HIDDEN"
    first: int
    last: int
    indent: str
    #: ``task 1: scores, mask`` for a solution region, empty for a hidden one.
    text: str


def regions(source: str) -> list[Region]:
    """The marked regions of a solution, in order.

    Markers inside strings are text, not markers. Raises :class:`StubError` for markers that are unbalanced, nested,
    share a line with code, or name no task.
    """
    found: list[Region] = []
    opened: tuple[str, int, str, str] | None = None
    for line, column, comment, alone in _comments(source):
        match = _MARKER.match(comment)
        if match is None:
            continue
        edge, kind, rest = match.groups()
        if not alone:
            raise StubError(line, f"'{comment}' shares its line with code; give the marker a line of its own")
        if edge == "BEGIN":
            if opened is not None:
                raise StubError(line, f"BEGIN {kind} inside the {opened[0]} region opened at line {opened[1]}")
            opened = (kind, line, " " * column, _task_text(line, kind, rest))
        elif opened is None:
            raise StubError(line, f"END {kind} without a BEGIN {kind} before it")
        elif opened[0] != kind:
            raise StubError(line, f"END {kind} closes the {opened[0]} region opened at line {opened[1]}")
        else:
            found.append(Region(kind, opened[1], line, opened[2], opened[3]))
            opened = None
    if opened is not None:
        raise StubError(opened[1], f"BEGIN {opened[0]} is never closed; add '# END {opened[0]}'")
    return found


def cut_stub(source: str) -> str:
    """The stub of a solution: each SOLUTION region becomes one ``raise NotImplementedError("task N: ...")`` at the
    region's indentation, each HIDDEN region goes.

    Args:
        source: text of ``solutions/moduleN/<slug>.py``.

    Raises:
        StubError: markers that do not balance, a region outside of a function (its ``raise`` would run on import), or
            a cut that leaves invalid Python; with the line of the solution.
    """
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    marked = regions("\n".join(lines))
    kept: list[str] = []
    origin: list[int] = []  # line of the solution behind each kept line
    raises: dict[int, Region] = {}  # line of the stub -> region
    position = 1
    for region in marked:
        for number in range(position, region.first):
            kept.append(lines[number - 1])
            origin.append(number)
        position = region.last + 1
        if region.kind == "SOLUTION":
            kept.append(f"{region.indent}raise NotImplementedError({json.dumps(region.text, ensure_ascii=False)})")
            origin.append(region.first)
            raises[len(kept)] = region
        else:
            position = _skip_doubled_blanks(kept, lines, position)
    for number in range(position, len(lines) + 1):
        kept.append(lines[number - 1])
        origin.append(number)
    stub = "\n".join(kept).rstrip("\n") + "\n"
    _require_importable(stub, raises, origin)
    return stub


def pristine_stub(exercise: Any) -> str | None:
    """The stub as it is given out: cut from the solution, or the copy that a release holds (:func:`copy_of_stub`). None
    where neither is there. The file in ``exercises/`` is the learner's to change and tells nothing.
    """
    if exercise.solution.is_file():
        return _cut(exercise.solution.read_text(encoding="utf-8"))
    kept = exercise.root / copy_of_stub(exercise)
    return kept.read_text(encoding="utf-8") if kept.is_file() else None


def copy_of_stub(exercise: Any) -> str:
    """Where a learner's repository, which has no solutions, holds the stub as it was given out: a path below its root. The
    folder begins with a dot, so that editors and pytest take none of it for code to work on.
    """
    return f".kata-stubs/module{exercise.module}/{exercise.slug}.py"


@functools.lru_cache(maxsize=64)
def _cut(solution: str) -> str:
    """``cut_stub`` once per solution: a class is compared with it submission by submission."""
    return cut_stub(solution)


@functools.lru_cache(maxsize=64)
def _tree(stub: str) -> ast.Module:
    return ast.parse(stub)


def is_stub(exercise: Any, source: bytes) -> bool:
    """Whether a submission is the stub as it is given out."""
    stub = pristine_stub(exercise)
    return stub is not None and is_untouched(stub, source.decode("utf-8", "replace"))


def is_untouched(stub_source: str, submission_source: str) -> bool:
    """Whether a submission is the stub as shipped: equal syntax trees, so comments, blank lines and a formatter's
    quotes do not count as work. Docstrings are compared with their indentation and trailing blanks removed.
    """
    # What a stub raises stands in it, whatever a formatter did.
    if "NotImplementedError" in stub_source and "NotImplementedError" not in submission_source:
        return False
    # The compiler can be made to take quadratic time; nothing this much longer than the stub is the stub.
    if len(submission_source) > 2 * len(stub_source) + 50_000:
        return False
    try:
        return _same_tree(_tree(stub_source), ast.parse(submission_source))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _same_tree(a: Any, b: Any) -> bool:
    """Whether two syntax trees are equal but for the layout of docstrings. Ends at the first difference: most submissions
    differ from their stub, and soon."""
    if type(a) is not type(b):
        return False
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same_tree, a, b))
    if not isinstance(a, ast.AST):
        return a == b
    if isinstance(a, ast.Expr) and isinstance(a.value, ast.Constant) and isinstance(a.value.value, str):
        other = b.value.value if isinstance(b.value, ast.Constant) else None
        return isinstance(other, str) and _unindented(a.value.value) == _unindented(other)
    return all(_same_tree(getattr(a, name, None), getattr(b, name, None)) for name in a._fields)


def _unindented(docstring: str) -> str:
    return inspect.cleandoc("\n".join(line.rstrip() for line in docstring.splitlines()))


def _comments(source: str) -> Iterator[tuple[int, int, str, bool]]:
    """(line, column, text, stands alone on its line) of each comment."""
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                yield line, column, token.string, not token.line[:column].strip()
    except (SyntaxError, tokenize.TokenError) as error:
        # tokenize.TokenError carries (message, (line, column)); SyntaxError (IndentationError) has lineno.
        line = getattr(error, "lineno", None) or error.args[1][0]
        raise StubError(line, f"the solution is not valid Python: {error.args[0]}") from error


def _task_text(line: int, kind: str, rest: str) -> str:
    if kind == "HIDDEN":
        return ""
    match = _TASK.match(rest)
    if match is None:
        raise StubError(line, "name the task and what is to be written: '# BEGIN SOLUTION task 2: what to write'")
    return f"task {int(match[1])}: {match[2]}"


def _skip_doubled_blanks(kept: list[str], lines: list[str], position: int) -> int:
    """Where to go on after a removed region so that the blank lines around it do not add up."""
    before = 0
    while before < len(kept) and not kept[-1 - before].strip():
        before += 1
    if not kept:
        before = len(lines)  # the file must not begin with blank lines
    while before and position <= len(lines) and not lines[position - 1].strip():
        before -= 1
        position += 1
    return position


def _require_importable(stub: str, raises: dict[int, Region], origin: list[int]) -> None:
    try:
        tree = ast.parse(stub)
        compile(tree, "<stub>", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = origin[min(error.lineno or 1, len(origin)) - 1]
        raise StubError(line, f"the stub would not be valid Python: {error.msg}") from error
    inside = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inside.update(n.lineno for n in ast.walk(node) if isinstance(n, ast.Raise))
    for line, region in raises.items():
        if line not in inside:
            raise StubError(
                region.first,
                "a SOLUTION region outside of a function would raise when the stub is imported; put it inside the "
                "functions or methods it stands for, or take the lines out with '# BEGIN HIDDEN'",
            )


def stub_path(root: Path, exercise: str) -> Path:
    """``exercises/moduleN/<slug>/<slug>.py`` of the exercise ``moduleN/<slug>``."""
    return root / "exercises" / exercise / f"{exercise.rpartition('/')[2]}.py"


def solution_path(root: Path, exercise: str) -> Path:
    """``solutions/moduleN/<slug>.py`` of the exercise ``moduleN/<slug>``."""
    return root / "solutions" / f"{exercise}.py"


def solved_exercises(root: Path) -> list[str]:
    """Ids of all exercises that have a solution under ``root``, sorted by module number."""
    found = [f"{p.parent.name}/{p.stem}" for p in (root / "solutions").glob("module*/*.py") if p.stem != "__init__"]
    return sorted(found, key=lambda e: (int(re.sub(r"\D", "", e.partition("/")[0]) or 0), e))


def sync(root: Path, exercise: str, *, check: bool = False) -> str:
    """Write the stub of one exercise, or with ``check`` only compare. Returns the unified diff from the stub on disk
    to the stub as cut, empty where they agree.

    Raises:
        StubError: the solution cannot be cut.
        FileNotFoundError: there is no solution of that name.
    """
    target = stub_path(root, exercise)
    wanted = cut_stub(solution_path(root, exercise).read_text(encoding="utf-8"))
    present = target.read_text(encoding="utf-8") if target.exists() else ""
    if not check and present != wanted:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(wanted, encoding="utf-8", newline="\n")
    name = target.relative_to(root).as_posix()
    diff = difflib.unified_diff(
        present.splitlines(keepends=True), wanted.splitlines(keepends=True), f"{name} (on disk)", f"{name} (as cut)"
    )
    return "".join(diff)


def sync_all(root: Path, exercises: list[str], *, check: bool) -> int:
    """:func:`sync` over several exercises, with a line for each stub that changed. Returns the exit status: 0 in
    step, 1 drift found by ``check``, 2 a solution that cannot be cut.
    """
    status = 0
    for exercise in exercises:
        try:
            diff = sync(root, exercise, check=check)
        except FileNotFoundError as error:
            print(f"{exercise}: there is no {error.filename}", file=sys.stderr)
            status = 2
        except StubError as error:
            print(f"{solution_path(root, exercise).relative_to(root).as_posix()}: {error}", file=sys.stderr)
            status = 2
        else:
            if diff and check:
                sys.stdout.write(diff)
                print(
                    f"{exercise}: the stub is out of step with its solution; run: kata sync {exercise}", file=sys.stderr
                )
                status = max(status, 1)
            elif diff:
                print(f"{exercise}: stub written")
    return status


def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m llmkata.authoring.stub", description="Cut stubs from solutions.")
    parser.add_argument("exercises", nargs="*", metavar="EXERCISE", help="for example module2/self_attention")
    parser.add_argument("--all", action="store_true", help="every exercise that has a solution")
    parser.add_argument("--check", action="store_true", help="write nothing; report drift with a diff, exit 1")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="folder that holds solutions/ and exercises/")
    given = parser.parse_args(argv)
    if bool(given.exercises) == given.all:
        parser.error("name exercises, or give --all")
    root = given.root.resolve()
    return sync_all(root, solved_exercises(root) if given.all else given.exercises, check=given.check)


if __name__ == "__main__":
    sys.exit(main())
