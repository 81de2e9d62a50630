"""Learners' repositories, cloned or brought up to date from a list; nothing in them is run.

git runs with a configuration of our own: no hooks, no filters, no submodules, no links, no other transport than the
one of the address. A token goes to the server of the addresses that need it, through the environment, and is written
nowhere.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from . import git
from .csvfile import TableError, read_table

#: What a token is read from, and the server of addresses written ``owner/name``.
TOKEN, SERVER = "SUBMISSIONS_TOKEN", "GITHUB_SERVER_URL"
_DEFAULT_SERVER = "https://github.com"
#: Seconds that one repository may take.
PATIENCE = 300.0
_COLUMNS = ("id", "repository")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]{0,99}")
_SHORT = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Repository:
    """Where the work of one learner is."""

    learner: str
    url: str


@dataclass(frozen=True)
class Outcome:
    """What became of one repository: its commit, or why there is none (in one line)."""

    learner: str
    commit: str = ""
    fault: str = ""


def read_list(path: Path, server: str = _DEFAULT_SERVER) -> list[Repository]:
    """A CSV with at least the columns ``id`` and ``repository`` (``owner/name``, an address, or a folder); other columns
    are for others. Lines without a repository are left out.

    Raises:
        TableError: not such a file, or faults in it: an id that is no name for a folder or stands twice, a repository
            that is no address.
    """
    table = read_table(path, ",".join(_COLUMNS), _COLUMNS)
    found: dict[str, Repository] = {}
    first: dict[str, int] = {}
    faults = []
    for row in table.rows:
        learner, where = (row.get(name) for name in _COLUMNS)
        if not where:
            continue
        before = first.setdefault(learner.casefold(), row.line)
        if not _NAME.fullmatch(learner):
            faults.append(table.fault(row.line, f"id: {learner!r} does not do as the name of a folder"))
        elif before != row.line:
            faults.append(table.fault(row.line, f"id: {learner!r} stands here twice (first in line {before})"))
        if where.startswith("-"):
            faults.append(table.fault(row.line, f"repository: {where!r} is no address"))
        url = f"{server.rstrip('/')}/{where.removesuffix('.git')}.git" if _SHORT.fullmatch(where) else where
        found[learner.casefold()] = Repository(learner, url)
    if faults:
        raise TableError("\n".join(faults))
    return list(found.values())


def collect(
    repositories: Iterable[Repository],
    folder: Path,
    *,
    token: str = "",
    server: str = _DEFAULT_SERVER,
    told: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Clone each repository to ``folder/LEARNER``, or bring it up to date there; one that fails stops no other.

    A learner whose repository cannot be had keeps the last clone, or gets an empty folder, which grading shows as
    nothing handed in.
    """
    environment = _environment(token, server)
    outcomes = []
    for repository in repositories:
        target = folder / repository.learner
        target.mkdir(parents=True, exist_ok=True)
        new = not (target / ".git").exists()
        outcome = _one(repository, target, environment)
        if new and outcome.fault:
            # What was begun there would read as a repository to which its owner committed nothing.
            shutil.rmtree(target / ".git", ignore_errors=True)
        outcomes.append(outcome)
        told(outcome)
    return outcomes


def _one(repository: Repository, target: Path, environment: Mapping[str, str]) -> Outcome:
    try:
        if not (target / ".git").is_dir():
            _git(target, environment, "init", "--quiet", "--template=")
        # Everything that was ever pushed, whatever the branch is called; what was there before and is gone stays.
        _git(
            target,
            environment,
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-recurse-submodules",
            "--",
            repository.url,
            "+HEAD:refs/remotes/origin/HEAD",
            "+refs/heads/*:refs/remotes/origin/*",
        )
        _git(target, environment, "checkout", "--quiet", "--force", "--detach", "refs/remotes/origin/HEAD")
        return Outcome(repository.learner, _git(target, environment, "rev-parse", "HEAD"))
    except subprocess.TimeoutExpired:
        return Outcome(repository.learner, fault=f"git took more than {PATIENCE:g} s")
    except subprocess.CalledProcessError as error:
        lines = [text for text in str(error.stderr).splitlines() if text.strip()]
        said = next(
            (t for t in lines if t.startswith(("fatal:", "error:", "remote:"))), lines[0] if lines else "git failed"
        )
        return Outcome(repository.learner, fault="".join(c if c.isprintable() else "?" for c in said)[:300])


def _git(folder: Path, environment: Mapping[str, str], *words: str) -> str:
    done = subprocess.run(
        ["git", *words],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout.strip()


def _environment(token: str, server: str) -> dict[str, str]:
    """Nothing of the machine's git configuration, and the settings of this module's docstring."""
    settings = {
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "core.symlinks": "false",
        "core.attributesFile": os.devnull,
        "submodule.recurse": "false",
        "protocol.ext.allow": "never",
        "safe.directory": "*",
        "gc.auto": "0",
        "advice.detachedHead": "false",
    }
    if token:
        secret = base64.b64encode(f"x-access-token:{token}".encode()).decode()
        settings[f"http.{server.rstrip('/')}/.extraHeader"] = f"Authorization: Basic {secret}"
    numbered = {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_LFS_SKIP_SMUDGE": "1"}
    for number, (name, value) in enumerate(settings.items()):
        numbered |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return git.environment(("HOME", "SSH_AUTH_SOCK", "https_proxy", "HTTPS_PROXY")) | numbered
