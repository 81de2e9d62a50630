"""The first hour of a new learner, by a script that types only what the screen said.

    python tests/e2e/first_hour.py [--released] [--cast FILE] [--pictures DIR]

It clones the course (``--released``: what ``./kata release`` makes of it), and goes on until a check passes. A line may be
typed, a file opened and a key pressed only if the screen, or the README that one reads before cloning, had it word for
word. What the learner brings along is in ``ATTEMPTS``: a first try that is wrong, and what one makes of the message.
``--cast`` records the terminal in asciinema's format, version 2.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __package__:
    from .terminal import Terminal
else:
    sys.path.insert(0, str(Path(__file__).parent))
    from terminal import Terminal

ROOT = Path(__file__).resolve().parents[2]
ROWS, COLUMNS = 34, 100
#: What is tried for the first task of 0.1, one after the other.
ATTEMPTS = (
    "    return np.broadcast_shapes(sa, sb)",
    """\
    try:
        return np.broadcast_shapes(sa, sb)
    except ValueError:
        raise ValueError(f"cannot broadcast {sa} and {sb}") from None""",
)
_ESCAPES = re.compile(r"\x1b\]8;[^\x1b]*\x1b\\|\x1b\[[0-9;?]*[A-Za-z]")
_PROMPT = "$ "


@dataclass
class Step:
    """Something done, and the seconds until the screen had answered."""

    did: str
    seconds: float


@dataclass
class Hour:
    """A learner at a terminal."""

    terminal: Terminal
    #: All that was on the screen so far, and the README before it.
    seen: str
    steps: list[Step] = field(default_factory=list)
    #: (seconds since the start, what the terminal wrote).
    events: list[tuple[float, str]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def type(self, line: str, *, until: str, seconds: float = 900) -> re.Match[str]:
        """Type a line that was seen, and wait for ``until`` (a pattern) -> its match on what is new."""
        assert line in self.seen, f"nobody said: {line}"
        return self._wait(line, lambda: self.terminal.press(line + "\r"), until, seconds)

    def press(self, key: str, word: str, *, until: str) -> re.Match[str]:
        """Press a key that the screen offers as ``word``."""
        assert f"{key} {word}" in self.seen, f"nobody said: {key} {word}"
        return self._wait(f"key {key}", lambda: self.terminal.press(key), until, 60)

    def save(self, path: Path, text: str, did: str, *, until: str) -> re.Match[str]:
        """Save a file in an editor beside the terminal."""
        return self._wait(did, lambda: path.write_text(text, "utf-8"), until, 120)

    def open(self, folder: Path, shown: str) -> Path:
        """The file of a path that was seen."""
        assert shown in self.seen, f"nobody named {shown}"
        return folder / shown

    def _wait(self, did: str, do: Callable[[], None], until: str, seconds: float) -> re.Match[str]:
        before, start = len(self.terminal.output), time.monotonic()
        do()
        while True:
            length = len(self.terminal.output)
            self.terminal._read(0.1)
            if len(self.terminal.output) > length:
                new = self.terminal.output[length:].decode("utf-8", "replace")
                self.events.append((time.monotonic() - self.began, new))
            said = _ESCAPES.sub("", self.terminal.output[before:].decode("utf-8", "replace")).replace("\r", "")
            if match := re.search(until, said):
                break
            assert time.monotonic() - start < seconds, f"{did}: no {until!r} in:\n{said[-3000:]}"
        self.seen += said
        self.steps.append(Step(did, time.monotonic() - start))
        return match


def first_hour(address: Path, readme: str, home: Path, *, name: str = "llmkata",
               prepare: Callable[[Path], None] = lambda folder: None, picture: Callable[[str, str], None] = lambda *_: None) -> Hour:
    """From ``git clone`` to the first check that passes. ``prepare`` may do something to the fresh clone (untimed);
    ``picture`` is given frames of the screen by name."""
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "VIRTUAL_ENV")}
    env |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", "PS1": _PROMPT, "HOME": str(home), "GIT_CONFIG_NOSYSTEM": "1"}
    there = home / f"{name}.git"
    there.symlink_to(address, target_is_directory=True)
    terminal = Terminal(["bash", "--norc", "--noprofile"], home, env, ROWS, COLUMNS)
    hour = Hour(terminal, readme.replace("ADDRESS", there.name))
    try:
        hour._wait("a terminal", lambda: None, re.escape(_PROMPT), 30)
        hour.type(f"git clone {there.name} {name}", until=rf"Cloning into[\s\S]*\n{re.escape(_PROMPT)}")
        hour.type(f"cd {name}", until=rf"\n{re.escape(_PROMPT)}")
        folder = home / name
        prepare(folder)
        said = hour.type("./kata start", until=rf"Next: [\s\S]*stuck[^\n]*\n{re.escape(_PROMPT)}")
        brief, file, loop = (re.search(rf"\n  {verb} +(\S.*?)  ", said[0])[1] for verb in ("read", "edit", "loop"))
        picture("board", terminal.output.decode("utf-8", "replace"))
        assert "1." in hour.open(folder, brief).read_text("utf-8")
        stub = hour.open(folder, file)
        text = stub.read_text("utf-8")
        hour.type(loop, until="Nothing written yet[^$]*begin with task 1")
        first = re.search(r'^ *raise NotImplementedError\("task 1:.*"\)$', text, re.MULTILINE)[0]
        hour.save(stub, text.replace(first, ATTEMPTS[0]), f"save {file}, wrong", until="✗ Task 1: [^$]*expected[^$]*h opens hint 1")
        hour.press("h", "hint", until="hint 1: ")
        picture("watch", terminal.output.decode("utf-8", "replace"))
        hour.save(stub, text.replace(first, ATTEMPTS[1]), f"save {file}, right", until=r"[1-9]\d* of \d+ checks pass")
        picture("passed", terminal.output.decode("utf-8", "replace"))
        hour.press("q", "quit", until=rf"tasks[^\n]*\nGo on with [^\n]*\n{re.escape(_PROMPT)}")
    finally:
        terminal.close()
    return hour


def cast(hour: Hour, home: Path) -> str:
    """The recording, asciinema's format version 2; pauses are shown shortened. Links lead to the files of ``home``, which is
    nobody's folder: they are told as if it were the learner's.
    """
    head = {"version": 2, "width": COLUMNS, "height": ROWS, "idle_time_limit": 1.5, "title": "The first hour",
            "env": {"TERM": "xterm-256color", "SHELL": "bash"}}
    return "\n".join([json.dumps(head), *(json.dumps([round(at, 3), "o", text.replace(str(home), "/home/learner")]) for at, text in hour.events)]) + "\n"


def readme_of(root: Path) -> str:
    """What is read before cloning."""
    return (root / "README.md").read_text("utf-8")


def released(into: Path) -> Path:
    """A repository as an instructor hands it out."""
    made = subprocess.run([sys.executable, "-m", "llmkata.cli.main", "release", str(into)], cwd=ROOT, check=False,
                          capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    git = ["git", "-c", "user.name=Instructor", "-c", "user.email=instructor@example.org", "-C", str(into)]
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "The course")):
        subprocess.run([*git, *words], check=True)
    return into


def _draw(folder: Path) -> Callable[[str, str], None]:
    import io

    from rich.console import Console
    from rich.terminal_theme import DIMMED_MONOKAI
    from rich.text import Text

    def picture(name: str, output: str) -> None:
        frame = output.rsplit("\x1b[H", 1)[-1] if "\x1b[?1049h" in output else "\n".join(output.splitlines()[-ROWS:])
        screen = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
        screen.print(Text.from_ansi("\n".join(line.rstrip() for line in frame.splitlines())))
        svg = screen.export_svg(title="llmkata", theme=DIMMED_MONOKAI)
        (folder / f"{name}.svg").write_text(re.sub(r"@font-face \{[^}]*\}", "", svg), "utf-8")

    return picture


def main() -> None:
    """Run it and print the steps with their times."""
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument("--released", action="store_true", help="in a repository made by ./kata release")
    options.add_argument("--cast", type=Path, metavar="FILE", help="record the terminal")
    options.add_argument("--pictures", type=Path, metavar="DIR", help="write SVG pictures of the screen")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        address = released(home / "handed-out") if given.released else ROOT
        readme = readme_of(address) + "\ngit clone ADDRESS llmkata\ncd llmkata\n" * given.released
        hour = first_hour(address, readme, home, picture=_draw(given.pictures) if given.pictures else lambda *_: None)
        for step in hour.steps[1:]:
            print(f"{step.seconds:8.1f} s  {step.did}")
        print(f"{sum(step.seconds for step in hour.steps[1:]):8.1f} s  in all", flush=True)
        if given.cast:
            given.cast.write_text(cast(hour, home), "utf-8")


if __name__ == "__main__":
    main()
