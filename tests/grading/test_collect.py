"""Repositories of a class: cloned, brought up to date, and nothing in them run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from llmkata.grading.collect import Repository, _environment, collect, read_list
from llmkata.grading.csvfile import TableError

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.invalid", "-c", "protocol.file.allow=always")
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def push(folder: Path, **files: str) -> str:
    """A commit with these files; its hash."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / ".git").exists():
        git(folder, "init", "-q", "-b", "work")
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "work")
    return git(folder, "rev-parse", "HEAD")


def test_clones_and_brings_up_to_date(tmp_path: Path) -> None:
    first = push(tmp_path / "ann", a="1")
    listed = [Repository("ann", str(tmp_path / "ann"))]
    [done] = collect(listed, tmp_path / "out")
    assert (done.commit, done.fault) == (first, "")
    assert (tmp_path / "out/ann/a.py").read_text() == "1"
    (tmp_path / "out/ann/a.py").write_text("edited here")
    second = push(tmp_path / "ann", a="2")
    assert collect(listed, tmp_path / "out")[0].commit == second
    assert (tmp_path / "out/ann/a.py").read_text() == "2"
    assert git(tmp_path / "out/ann", "log", "--format=%H").split() == [second, first]


def test_history_that_was_rewritten_is_taken_as_it_is(tmp_path: Path) -> None:
    push(tmp_path / "ann", a="1")
    listed = [Repository("ann", str(tmp_path / "ann"))]
    collect(listed, tmp_path / "out")
    git(tmp_path / "ann", "commit", "-q", "--amend", "-m", "other")
    assert collect(listed, tmp_path / "out")[0].commit == git(tmp_path / "ann", "rev-parse", "HEAD")


def test_one_that_fails_stops_no_other_and_keeps_its_last_clone(tmp_path: Path) -> None:
    commit = push(tmp_path / "ann", a="1")
    push(tmp_path / "bob", a="2")
    listed = [
        Repository("eve", str(tmp_path / "none")),
        Repository("ann", str(tmp_path / "ann")),
        Repository("bob", str(tmp_path / "bob")),
    ]
    done = {o.learner: o for o in collect(listed, tmp_path / "out")}
    assert done["eve"].fault.startswith("fatal:")
    assert list((tmp_path / "out/eve").iterdir()) == [], "nothing handed in, and no repository without a commit"
    assert done["ann"].commit == commit
    shutil.rmtree(tmp_path / "bob")
    done = {o.learner: o for o in collect(listed, tmp_path / "out")}
    assert done["bob"].fault
    assert (tmp_path / "out/bob/a.py").read_text() == "2"


def test_nothing_of_a_repository_is_run(tmp_path: Path) -> None:
    flag = tmp_path / "ran"
    place = tmp_path / "ann"
    push(place, a="1")
    (place / ".gitattributes").write_text("*.py filter=evil\n")
    (place / ".gitmodules").write_text(f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c "touch {flag}"\n')
    (place / "link").symlink_to("/etc/passwd")
    hook = place / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {flag}\n")
    hook.chmod(0o755)
    push(place, a="2")
    [done] = collect([Repository("ann", str(place))], tmp_path / "out")
    assert not done.fault
    assert not flag.exists()
    assert not (tmp_path / "out/ann/link").is_symlink()
    assert not (tmp_path / "out/ann/.git/hooks").exists()
    bad = collect([Repository("eve", f'ext::sh -c "touch {flag}"')], tmp_path / "out")
    assert bad[0].fault
    assert not flag.exists()


def test_a_token_goes_to_its_server_alone_and_is_not_written(tmp_path: Path) -> None:
    environment = _environment("t0ken", "https://git.example.invalid/")
    pairs = {
        environment[f"GIT_CONFIG_KEY_{n}"]: environment[f"GIT_CONFIG_VALUE_{n}"]
        for n in range(int(environment["GIT_CONFIG_COUNT"]))
    }
    [header] = [name for name in pairs if name.endswith("extraHeader")]
    assert header == "http.https://git.example.invalid/.extraHeader"
    assert not any("http." in str(v) for v in _environment("", "https://x").values())
    push(tmp_path / "ann", a="1")
    collect([Repository("ann", str(tmp_path / "ann"))], tmp_path / "out", token="t0ken")
    told = (tmp_path / "out/ann/.git/config").read_text()
    assert "t0ken" not in told
    assert "Authorization" not in told


def test_the_list(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text(
        "\ufeffname,id,repository\nAnn,ann,org/ann-work\nBob,bob,\nCy,cy,https://example.invalid/cy.git\n", "utf-8"
    )
    assert read_list(path, "https://git.example.invalid/") == [
        Repository("ann", "https://git.example.invalid/org/ann-work.git"),
        Repository("cy", "https://example.invalid/cy.git"),
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,repo\n", "list.csv:1: no column id; the columns are name, repo\n"),
        ("", "list.csv: is empty; its first line names the columns, as id,repository"),
        ("id,repository\n../eve,o/r\n", "list.csv:2: id: '../eve'"),
        ("id,repository\n.git,o/r\n", "id: '.git'"),
        ("id,repository\nann,o/r\nAnn,o/s\n", "list.csv:3: id: 'Ann' stands here twice"),
        ("id,repository\nann,--upload-pack=x\n", "is no address"),
    ],
)
def test_a_list_that_cannot_be_used_says_where(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(TableError) as told:
        read_list(path)
    assert said in str(told.value)
