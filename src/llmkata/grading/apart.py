"""Hostile files are parsed in a process of their own, sandboxed where the host can: not in the one that judges or that
takes in a class. Its answer is text, read as such."""

from __future__ import annotations

import subprocess
import sys
import tempfile

import msgspec

#: Bytes of memory and seconds of a parser, and the bytes it may answer with.
_MEMORY = 512 << 20
_SECONDS = 30.0
_MOST = 16 << 20


class Parsed(msgspec.Struct):
    """What came of it: text and remarks, or why it cannot be read."""

    text: str = ""
    notes: list[str] = []
    fault: str = ""


def parse_notebook(data: bytes) -> Parsed:
    """The Python of a notebook (see ``notebook.notebook_source``), taken out of it in another process."""
    with tempfile.TemporaryDirectory(prefix="kata-parse-") as scratch:
        try:
            done = subprocess.run([sys.executable, "-I", "-m", "llmkata.grading.apart", scratch], input=data,
                                  capture_output=True, timeout=_SECONDS, check=True)
            if len(done.stdout) <= _MOST:
                return msgspec.json.decode(done.stdout, type=Parsed)
        except (subprocess.SubprocessError, msgspec.DecodeError, UnicodeDecodeError):
            pass
    return Parsed(fault="reading it takes too much time or memory; save it again from Jupyter, or hand in a .py file")


def main(scratch: str) -> None:
    """In the child: enter the sandbox, read a notebook from stdin, answer on stdout."""
    from llmkata.grading.notebook import NotebookError, notebook_source

    msgspec.json.encode(Parsed())  # whatever it imports, it imports now
    if sys.platform == "linux":
        from llmkata.inside.sandbox import Policy, enter

        enter(Policy.from_dict({"scratch": scratch, "keep_fds": [0, 1], "memory_bytes": _MEMORY,
                                "cpu_seconds": int(_SECONDS)}))
    try:
        answer = Parsed(*notebook_source(sys.stdin.buffer.read()))
    except NotebookError as error:
        answer = Parsed(fault=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(answer))


if __name__ == "__main__":
    main(sys.argv[1])
