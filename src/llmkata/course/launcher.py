"""How ``kata`` is called from here, so that a command on a screen can be pasted."""

from __future__ import annotations

import os
from pathlib import Path


def launcher() -> str:
    """``./kata`` in the course's folder, ``../../kata`` below it, on Windows ``.\\kata`` and ``..\\..\\kata`` (``kata.cmd``,
    which lies beside it); ``kata`` where no launcher lies upwards.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "kata").is_file() and (folder / "course.yaml").is_file():
            way = Path(os.path.relpath(folder / "kata", here)).as_posix()
            way = way if "/" in way else f"./{way}"
            return way.replace("/", "\\") if os.name == "nt" else way
    return "kata"
