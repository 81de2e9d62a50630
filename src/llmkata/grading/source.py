"""Bytes handed in -> Python source that can be graded, or the reason it cannot, in the learner's words.

Nothing here runs a line of the submission. Decoding allows only codecs that cost linear time; compiling, which can be
made to take very long or to crash, is done in a child process with a deadline.
"""

from __future__ import annotations

import codecs
import inspect
import json
import re
import subprocess
import sys
from dataclasses import dataclass

from llmkata.grading.apart import parse_notebook
from llmkata.records import Evidence

#: Largest Python source that is graded, in bytes.
MAX_SOURCE = 1 << 20
#: Seconds the compiler may take for the files it is given at once.
COMPILE_SECONDS = 10.0

_COOKIE = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)", re.ASCII)
#: Python accepts any text codec in a PEP 263 cookie; some (punycode, utf-7, unicode_escape) are slow or change meaning.
_CODECS = re.compile(
    r"ascii|utf-8|iso8859-\d+|cp125\d|cp437|cp850|mac-roman|koi8-[ru]|gbk|gb2312|gb18030|big5|shift_jis|euc_(jp|kr)"
)
_SAVE = "Save the file as UTF-8 (VS Code: the encoding in the status bar, 'Save with Encoding') and hand it in again."


def _compiler_says(text):
    """None, or [type of the error, message, line, column]. Its source is sent to a child process: it uses nothing around it."""
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, "<submission>", "exec", dont_inherit=True)
    except SyntaxError as e:
        return [type(e).__name__, str(e.msg), e.lineno or 0, e.offset or 0]
    except (RecursionError, MemoryError):
        return ["SyntaxError", "too deeply nested for the Python compiler", 0, 0]
    except ValueError as e:
        return ["SyntaxError", str(e), 0, 0]
    return None


_IN_CHILD = "import json, sys\njson.dump([_compiler_says(text) for text in json.load(sys.stdin)], sys.stdout)\n"


class Unreadable(ValueError):
    """Bytes that are not gradable Python; the message is the cause a learner reads, with the next step."""


@dataclass(frozen=True)
class SyntaxFault:
    """Why a source does not compile: a one-sentence cause and the line with a caret."""

    cause: str
    evidence: Evidence


def python_source(data: bytes, *, notebook: bool = False) -> tuple[bytes, list[str]]:
    """Source of a handed-in file as UTF-8 without byte order mark, and remarks.

    Args:
        data: the file as it is.
        notebook: whether it is an ``.ipynb``.

    Raises:
        Unreadable: another encoding, NUL bytes, too large, or a notebook no code can be taken from.
    """
    if notebook:
        parsed = parse_notebook(data)
        if parsed.fault:
            raise Unreadable(f"The notebook cannot be read: {parsed.fault}.")
        return parsed.text.encode("utf-8"), parsed.notes
    if len(data) > MAX_SOURCE:
        raise Unreadable(
            f"The file has {len(data) / 2**20:.1f} MiB; at most {MAX_SOURCE >> 20} MiB of Python is graded. "
            "Take data out of the source and hand it in again."
        )
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
        raise Unreadable(f"The file is encoded as UTF-16 or UTF-32, which Python does not read. {_SAVE}")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise Unreadable(f"The file holds NUL bytes (first on line {line}): it is UTF-16 or not a text file. {_SAVE}")
    body = data.removeprefix(codecs.BOM_UTF8)
    codec = _declared_codec(body)
    if codec != "utf-8" and body is data:
        return _from_codec(body, codec)
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise Unreadable(
            f"The file is not UTF-8: byte 0x{body[error.start]:02x} on line {line} (it looks like Latin-1 or "
            f"Windows-1252). {_SAVE}"
        ) from error
    return (body if codec == "utf-8" else _with_utf8_cookie(body)), []


def syntax_faults(sources: list[bytes], names: list[str]) -> list[SyntaxFault | None]:
    """What the Python compiler says of each source (UTF-8, as :func:`python_source` returns it); None where it
    compiles. Runs in one child process; if that is late or dies, once more for each file alone.
    """
    if not sources:
        return []
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", inspect.getsource(_compiler_says) + _IN_CHILD],
            input=json.dumps([s.decode("utf-8") for s in sources]).encode(),
            capture_output=True,
            timeout=COMPILE_SECONDS,
            check=True,
        )
        found = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError, ValueError) as error:
        if len(sources) > 1:
            return [syntax_faults([s], [n])[0] for s, n in zip(sources, names, strict=True)]
        late = isinstance(error, subprocess.TimeoutExpired)
        what = f"takes more than {COMPILE_SECONDS:.0f} s to compile" if late else "makes the Python compiler crash"
        return [
            SyntaxFault(f"The file {what}. Simplify its largest expression.", Evidence(summary=f"{names[0]} {what}"))
        ]
    return [fault and _fault(fault, s, n) for fault, s, n in zip(found, sources, names, strict=True)]


def syntax_fault(source: bytes, name: str) -> SyntaxFault | None:
    """As :func:`syntax_faults`, compiled in this process: for one that is to run the source anyway."""
    fault = _compiler_says(source.decode("utf-8"))
    return fault and _fault(fault, source, name)


def _fault(fault: list, source: bytes, name: str) -> SyntaxFault:
    kind, message, line, offset = fault
    lines = source.decode("utf-8").splitlines()
    message = message[:200]
    if not 1 <= line <= len(lines):
        summary = f"{kind}: {message}"
        return SyntaxFault(f"Python cannot read the file: {message}.", Evidence(summary=summary, frames=[name]))
    shown, column = _window(lines[line - 1], offset)
    return SyntaxFault(
        f"Python cannot read line {line}: {message}. Until it is mended nothing in the file can be judged.",
        Evidence(
            summary=f"{kind} on line {line}: {message}",
            got=f"{shown}\n{' ' * (column - 1)}^" if column else shown,
            index=f"line {line}, column {offset}" if offset else f"line {line}",
            frames=[f"{name}:{line}: {shown.strip()}"],
        ),
    )


def _window(line: str, offset: int, width: int = 100) -> tuple[str, int]:
    """The part of a long line around a 1-based offset, control characters as blanks, and the offset within it."""
    clean = "".join(c if c.isprintable() else " " for c in line)
    start = max(0, offset - width // 2) if len(clean) > width else 0
    return clean[start : start + width], max(0, min(offset - start, width + 1))


def _declared_codec(data: bytes) -> str:
    """Name of the codec a PEP 263 cookie in the first two lines declares, ``utf-8`` where none does."""
    for number, line in enumerate(data.split(b"\n", 2)[:2]):
        match = _COOKIE.match(line)
        if match:
            name = match[1].decode("ascii")
            try:
                return codecs.lookup(name).name
            except LookupError:
                raise Unreadable(
                    f"Line {number + 1} declares the encoding {name!r}, which does not exist. {_SAVE}"
                ) from None
        if line.strip() and not line.lstrip().startswith(b"#"):
            break
    return "utf-8"


def _from_codec(data: bytes, codec: str) -> tuple[bytes, list[str]]:
    if not _CODECS.fullmatch(codec):
        raise Unreadable(f"The file declares the encoding {codec!r}, which is not accepted. {_SAVE}")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        what = f"byte 0x{data[error.start]:02x} on line {line} is not of it"
        raise Unreadable(f"The file declares the encoding {codec!r}, but {what}. {_SAVE}") from error
    return _with_utf8_cookie(text.encode("utf-8")), [f"read as {codec}, as its coding line declares"]


def _with_utf8_cookie(data: bytes) -> bytes:
    """The same source with its coding line saying utf-8 (lines keep their numbers)."""
    lines = data.split(b"\n", 2)
    for number, line in enumerate(lines[:2]):
        match = _COOKIE.match(line)
        if match:
            lines[number] = line[: match.start(1)] + b"utf-8" + line[match.end(1) :]
            break
    return b"\n".join(lines)
