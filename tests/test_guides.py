"""Every ``./kata`` command in the guides exists, with the options that the guides give it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from llmkata.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
GUIDES = ("README.md", "docs/instructor.md", "docs/learner.md")
LAUNCHER = {"test"}  # commands of the launcher alone


def _texts(markdown: str) -> list[str]:
    """Commands from ``./kata`` on: lines of code blocks, and what stands between backticks in prose."""
    found, block = [], False
    for line in markdown.splitlines():
        if line.lstrip().startswith("```"):
            block = not block
            continue
        for span in [line] if block else re.findall(r"`([^`]+)`", line):
            found += [part for part in re.split(r"(?=\./kata\b)", span)[1:]]
    return found


def _words(text: str) -> list[str]:
    """The words after ``./kata`` up to a comment, an operator of the shell, or a gap that sets off an explanation."""
    lexer = shlex.shlex(re.split(r"\s{3,}", text)[0], posix=True, punctuation_chars=";|&<>")
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if word[0] in ";|&<>":
                break
            words.append(word)
    except ValueError:  # the quote that ends a command wrapped for another shell: sbatch --wrap '...'
        words = re.split(r"[;|&<>']", text)[0].split()
    return words[1:]


def _faults(text: str) -> list[str]:
    """What a command of a guide names that the command line does not have."""
    words, group = _words(text), typer.main.get_command(app)
    while words and words[0].startswith("-"):  # options before the command; each takes a value
        option = words.pop(0)
        if option == "--wheels":
            words.pop(0)
        elif option not in {name for p in group.params for name in p.opts} | {"--help", "-h"}:
            return [f"no option {option}"]
        elif words:
            words.pop(0)
    if not words or words[0] in LAUNCHER:
        return []
    name = words[0].rstrip(",.:)")
    if name not in group.commands:
        return [f"no command {name}"]
    scope = group.commands[name]
    known = {o for p in scope.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    given = [word.split("=")[0].rstrip(",.:)") for word in words[1:] if re.match(r"--?[a-z]", word)]
    return [f"{name} has no option {option}" for option in given if option not in known]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_exists(guide: str) -> None:
    texts = _texts((ROOT / guide).read_text(encoding="utf-8"))
    assert len(texts) > 8
    assert {text: faults for text in texts if (faults := _faults(text))} == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Run `./kata grad submissions/`.", "no command grad"),
        ("```\n./kata grade x --rooster class.csv   # a typo\n```", "grade has no option --rooster"),
        ("```\n./kata next; ./kata open 2.1 --edt\n```", "open has no option --edt"),
        ("```\nsbatch --wrap './kata grade x --shrad 1/8'\n```", "grade has no option --shrad"),
    ],
)
def test_what_does_not_exist_is_found(text: str, fault: str) -> None:
    assert [found for command in _texts(text) for found in _faults(command)] == [fault]
