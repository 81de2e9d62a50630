"""The environment in which git is run on learners' repositories: nothing of the machine's or the person's configuration."""

from __future__ import annotations

import os
from collections.abc import Iterable

_KEPT = ("PATH", "SystemRoot", "TMPDIR", "TEMP")


def environment(also: Iterable[str] = ()) -> dict[str, str]:
    """Variables for git: what it needs to run, ``also`` those of this process, no configuration but the repository's."""
    kept = {name: os.environ[name] for name in (*_KEPT, *also) if name in os.environ}
    return kept | {
        "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C",
    }  # fmt: skip
