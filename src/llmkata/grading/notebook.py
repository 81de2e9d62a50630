"""A notebook handed in place of a .py file: its code cells, in order, as one Python source.

A notebook is hostile JSON. It is decoded into the three fields needed, so nothing else of it is ever built, and
nesting, cells and text are bounded. What IPython would run and Python cannot (magics, shell lines, help lines) is
dropped and told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

#: Largest number of cells and of characters of code taken from one notebook.
MAX_CELLS = 5_000
MAX_CODE = 1 << 20

#: Cell magics whose body IPython runs in the learner's own namespace; only the magic line goes.
_TRANSPARENT = frozenset({"time", "capture", "prun", "memit", "mprun"})

_MAGIC = re.compile(r"\s*[%!?]")
_FUTURE = re.compile(r"from\s+__future__\s+import\s+([\w\s,]+)$")
_ASSIGNED_MAGIC = re.compile(r"[\w\])]\s*=\s*[%!]\s*\w")
#: A string left open at the end of its line is taken whole, so that scanning a line takes linear time.
_LEXEME = re.compile(
    r"""(?P<triple>'{3}|"{3})|(?P<string>'(?:\\.|[^'\\])*(?:'|\\?$)|"(?:\\.|[^"\\])*(?:"|\\?$))"""
    r"""|(?P<comment>\#.*)|(?P<open>[(\[{])|(?P<close>[)\]}])"""
)


class NotebookError(ValueError):
    """A notebook no source can be taken from; the message says what it is and what to do."""


class _Cell(msgspec.Struct):
    cell_type: str = ""
    source: str | list[str] = ""


class _Language(msgspec.Struct):
    name: str = ""


class _Metadata(msgspec.Struct):
    language_info: _Language | None = None


class _Notebook(msgspec.Struct):
    nbformat: int
    cells: list[_Cell] | None = None
    metadata: _Metadata | None = None


def notebook_source(data: bytes) -> tuple[str, list[str]]:
    """The Python source of a notebook and remarks on what was dropped.

    Each code cell is preceded by a comment ``# cell 3`` (counted over all cells, from 1), so a line of the source can
    be found in the notebook. Imports from ``__future__`` stand first, wherever they stood: IPython takes them anywhere.

    Args:
        data: the bytes of an ``.ipynb`` file, nbformat 4 or later.

    Raises:
        NotebookError: not JSON, not a notebook, an old format, another language, or too large.
    """
    notebook = _decode(data)
    if notebook.nbformat < 4 or notebook.cells is None:
        raise NotebookError("notebook format before 4; open it in Jupyter and save it again")
    language = notebook.metadata and notebook.metadata.language_info
    if language and language.name and language.name.lower() not in ("python", "ipython"):
        raise NotebookError(f"a notebook for {language.name[:40]!r}, not for Python")
    if len(notebook.cells) > MAX_CELLS:
        raise NotebookError(f"{len(notebook.cells):,} cells, more than {MAX_CELLS:,}; hand in a .py file")
    parts: list[str] = []
    dropped: list[str] = []
    futures: dict[str, None] = {}
    size = 0
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type != "code":
            continue
        text = cell.source if isinstance(cell.source, str) else "".join(cell.source)
        size += len(text)
        if size > MAX_CODE:
            raise NotebookError(f"more than {MAX_CODE >> 20} MiB of code; hand in a .py file")
        code, magics = strip_magics(text.replace("\r\n", "\n").replace("\r", "\n"))
        dropped += magics
        code, found = _without_futures(code)
        futures |= dict.fromkeys(found)
        if code.strip():
            parts.append(f"# cell {number}\n{code.rstrip()}\n")
    if not parts:
        raise NotebookError("no code cell holds Python; write the answer in code cells")
    if futures:
        parts.insert(0, f"from __future__ import {', '.join(futures)}\n")
    return "\n\n".join(parts), [_remark(dropped)] if dropped else []


def strip_magics(cell: str) -> tuple[str, list[str]]:
    """(Python of a code cell with ``pass`` where a magic stood, the magic lines). Only a line that begins a statement
    can be one: a ``%`` that begins a continuation line is an operator, inside a string it is text.
    """
    first = cell.lstrip()
    if first.startswith("%%"):
        line, _, body = first.partition("\n")
        if _TRANSPARENT.intersection(line[2:].split()[:1]):
            code, inner = strip_magics(body)
            return code, [line.strip(), *inner]
        return "", [line.strip()]
    kept: list[str] = []
    magics: list[str] = []
    for line, code, begins in _logical_lines(cell):
        if begins and (_MAGIC.match(code) or code.rstrip().endswith("?") or _ASSIGNED_MAGIC.search(code)):
            magics.append(line.strip())
            kept.append(line[: len(line) - len(line.lstrip())] + "pass")
        else:
            kept.append(line)
    return "\n".join(kept), magics


def _without_futures(code: str) -> tuple[str, list[str]]:
    """(the code with ``pass`` where names were imported from ``__future__``, these names)."""
    kept: list[str] = []
    names: list[str] = []
    for line, plain, begins in _logical_lines(code):
        match = _FUTURE.match(plain.rstrip()) if begins else None
        if match:
            names += [name.strip() for name in match[1].split(",") if name.strip()]
        kept.append("pass" if match else line)
    return "\n".join(kept), names


def _decode(data: bytes) -> _Notebook:
    try:
        return msgspec.json.decode(data.removeprefix(b"\xef\xbb\xbf"), type=_Notebook)
    except msgspec.ValidationError as error:
        raise NotebookError(f"not a Jupyter notebook ({error}); save it again from Jupyter") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else "not valid JSON in UTF-8"
        raise NotebookError(f"{reason}; save the notebook again from Jupyter") from error


def _logical_lines(cell: str) -> Iterator[tuple[str, str, bool]]:
    """(line, the line with strings emptied and comments removed, whether a statement may begin on it)."""
    quote = ""  # the triple quote that is open
    depth = 0
    continued = False
    for line in cell.split("\n"):
        begins = not quote and depth == 0 and not continued
        if begins and _MAGIC.match(line):
            yield line, line, True  # a shell line has its own quoting; do not look inside
            continue
        code: list[str] = []
        position = 0
        comment = False
        while position < len(line):
            if quote:
                position = _closing(line, quote, position)
                if position < 0:
                    break
                quote = ""
                continue
            match = _LEXEME.search(line, position)
            code.append(line[position : match.start() if match else len(line)])
            if match is None:
                break
            position = match.end()
            if match.lastgroup == "triple":
                quote = match[0]
            elif match.lastgroup == "comment":
                comment = True
                break
            elif match.lastgroup == "open":
                depth += 1
            elif match.lastgroup == "close":
                depth = max(0, depth - 1)
            code.append("''" if match.lastgroup in ("triple", "string") else match[0])
        continued = not quote and not comment and line.endswith("\\")
        yield line, "".join(code), begins


def _closing(line: str, quote: str, position: int) -> int:
    """Index after the closing triple quote, or -1; a backslash escapes the character after it."""
    while position < len(line):
        if line[position] == "\\":
            position += 2
        elif line.startswith(quote, position):
            return position + 3
        else:
            position += 1
    return -1


def _remark(magics: list[str]) -> str:
    shown = ", ".join(m if len(m) <= 40 else m[:39] + "…" for m in magics[:5])
    more = f", and {len(magics) - 5} more" if len(magics) > 5 else ""
    return f"notebook: dropped {len(magics)} magic line{'s' if len(magics) > 1 else ''} ({shown}{more})"
