"""What every benchmark works with: a scratch folder, commands that are measured, a way to say how far it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: One thread each, no network, and nothing of the person who runs it.
_SET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": "0",
    "NO_COLOR": "1",
    "COLUMNS": "120",
}
#: The course of one exercise with three assertions.
SMALL = Path(__file__).parent / "course"
_METER = Path(__file__).parent / "meter.py"
#: Seconds between two looks at how far a command is.
_TELL = 15.0


class MeasureError(RuntimeError):
    """A command of a benchmark did not do what is measured; holds what it printed."""


@dataclass(frozen=True)
class Spent:
    """What a command took with everything it started: seconds of the clock and of processors, and what was seen."""

    wall: float
    cpu: float
    #: Processes that were still there when it had ended.
    left: int
    samples: list[dict[str, Any]]
    output: str

    @property
    def times(self) -> dict[str, float]:
        """Both clocks, as they go into samples."""
        return {"wall": round(self.wall, 4), "cpu": round(self.cpu, 4)}


class Harness:
    """One run of a benchmark. ``root`` is the course's folder; ``scratch`` goes when the run ends."""

    def __init__(self, root: Path, scratch: Path) -> None:
        self.root, self.scratch = root, scratch
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """Tell on standard error what is done next."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def folder(self, name: str) -> Path:
        """A new empty folder in ``scratch``."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.scratch))

    def start(
        self, command: Sequence[str | Path], *, cwd: Path | None = None, records: Path | None = None, **environment: str
    ) -> Running:
        """Start a command under the meter."""
        folder = self.folder("run")
        output = (folder / "output").open("wb")
        meter = [sys.executable, "-I", "-S", str(_METER), str(folder / "result"), str(records or "")]
        with output:
            process = subprocess.Popen(
                [*meter, *map(str, command)],
                cwd=cwd or self.scratch,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environ(**environment),
                start_new_session=True,
            )
        return Running(process, folder, command, self.say)

    def run(self, command: Sequence[str | Path], *, status: tuple[int, ...] = (0,), **how: Any) -> Spent:
        """Run a command to its end. Raises MeasureError where its exit status is none of ``status``."""
        return self.start(command, **how).wait(status)

    def kata(self, *words: str | Path, course: Path | None = None) -> list[str]:
        """The command line ``kata --course COURSE WORDS``."""
        return [sys.executable, "-m", "llmkata.cli.main", "--course", str(course or self.root), *map(str, words)]


class Running:
    """A command that was started."""

    def __init__(
        self, process: subprocess.Popen, folder: Path, command: Sequence[str | Path], say: Callable[[str], None]
    ) -> None:
        self._process, self._folder, self._command, self._say = process, folder, command, say

    def said(self) -> str:
        """What it has printed so far."""
        return (self._folder / "output").read_text("utf-8", "replace")

    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """End it, with everything that it started."""
        self._process.terminate()
        self._process.wait()

    def wait(self, status: tuple[int, ...] = (0,)) -> Spent:
        """What it took. Raises MeasureError where its exit status is none of ``status``."""
        told = ""
        try:
            while True:
                try:
                    self._process.wait(_TELL)
                    break
                except subprocess.TimeoutExpired:
                    last = next(iter(self.said().splitlines()[-1:]), "")
                    if last != told:
                        self._say(f"  {last}")
                    told = last
        finally:
            self.stop()
        output = self.said()
        try:
            said = json.loads((self._folder / "result").read_bytes())
        except OSError:
            raise MeasureError(f"{' '.join(map(str, self._command))} was not measured:\n{output[-3000:]}") from None
        if said["status"] not in status:
            raise MeasureError(
                f"{' '.join(map(str, self._command))} ended with status {said['status']}:\n{output[-3000:]}"
            )
        return Spent(said["wall"], said["cpu"], said["left"], said["samples"], output)


def environ(**more: str) -> dict[str, str]:
    """The environment of every command that is measured: none of whoever measures, and what Python and pytest compile is
    kept, as on anybody's machine."""
    ours = ("KATA_", "PYTEST_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    scripts = str(Path(sys.executable).parent)
    return kept | _SET | {"PATH": f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}"} | more
