"""Write a release into a folder, new or of an earlier release: what a learner edited stays as it is."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llmkata

from .leak import HIDDEN

#: What the last release wrote: path -> digest. It tells a learner's edit from an older version of ours.
MANIFEST = ".kata-release.json"
_SCHEMA = "llmkata/release/v1"


class Occupied(Exception):
    """The folder holds files that no release wrote."""


@dataclass
class Delivery:
    """What was done, by path."""

    written: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    #: Edited since the last release: left as they are.
    kept: list[str] = field(default_factory=list)


def deliver(files: Mapping[str, bytes], folder: Path, title: str) -> Delivery:
    """Bring ``folder`` to ``files``. Raises Occupied for a folder that is neither empty nor of a release."""
    before = _manifest(folder)
    done, manifest = Delivery(), {}
    for name, data in files.items():
        path = folder / name
        ours = before.get(name)
        if path.exists() and ours != _digest(path.read_bytes()) and _digest(path.read_bytes()) != _digest(data):
            done.kept.append(name)
            manifest[name] = ours or ""
            continue
        manifest[name] = _digest(data)
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            done.written.append(name)
        if name == "kata":
            path.chmod(0o755)
    for name in sorted(before.keys() - files.keys()):
        path = folder / name
        if path.exists() and _digest(path.read_bytes()) == before[name]:
            path.unlink()
            done.removed.append(name)
        elif path.exists():
            done.kept.append(name)
    text = json.dumps({"schema": _SCHEMA, "course": title, "framework": llmkata.__version__, "files": manifest}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")
    return done


def given_out(folder: Path, name: str) -> bool:
    """Whether a file of a learner's repository is as the release wrote it; False where ``folder`` is none."""
    path = folder / name
    try:
        return (folder / MANIFEST).is_file() and _manifest(folder).get(name) == _digest(path.read_bytes())
    except (Occupied, OSError):
        return False


def hidden_in_history(folder: Path) -> list[str]:
    """Hidden files in any commit of the folder's repository: a file that was removed is still handed out with it."""
    if not (folder / ".git").exists():
        return []
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-C", str(folder), "log", "--all",
               "--pretty=", "--name-only", "--diff-filter=A", "--no-ext-diff"]
    environment = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return sorted({line for line in done.stdout.splitlines() if line.split("/")[0] in HIDDEN})


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if path.is_file():
        try:
            told = json.loads(path.read_text("utf-8"))
            if told["schema"] == _SCHEMA:
                return dict(told["files"])
        except (ValueError, KeyError, TypeError):
            pass
        raise Occupied(f"{path} is not a manifest of a release")
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted(p.name for p in folder.iterdir() if p.name != ".git")
    if others:
        raise Occupied(f"{folder} holds {', '.join(others[:4])}{' ...' if len(others) > 4 else ''} and no earlier release")
    return {}


def _digest(data: bytes) -> str:
    """Of the text, whatever a checkout did to its line ends."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()
