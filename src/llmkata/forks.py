"""Forks of a warm process: where they may be made; and what they import is imported by the process itself afterwards, so
that the next one has it already."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import os
import sys
from collections.abc import Iterable

#: Whether this process may be forked. On macOS a fork of one that has used its system libraries may crash.
CAN_FORK = hasattr(os, "fork") and sys.platform != "darwin"


def new_libraries(known: int) -> list[str]:
    """Modules imported since there were ``known`` of them (``len(sys.modules)``), parents first: those of installed
    libraries and of this program, never a learner's or a grader's."""
    installed = [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    places = tuple({os.path.join(place, "") for place in (sys.prefix, sys.base_prefix, *installed)})

    def belongs(name: str) -> bool:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        return name.startswith("llmkata.") or file.startswith(places)

    # The last ones: to look at all the others would copy every page that one of their names is on.
    new = list(itertools.islice(reversed(sys.modules), max(0, len(sys.modules) - known)))
    return sorted(filter(belongs, new), key=lambda name: name.count("."))


def with_libraries(said: bytes, known: int) -> bytes:
    """What a fork has to say, one line of JSON, and the libraries it imported since there were ``known`` modules."""
    return b"\n".join([said, *(name.encode() for name in new_libraries(known))])


def without_libraries(data: bytes) -> bytes:
    """What the fork said, once the libraries that it imported are imported here (see :func:`with_libraries`)."""
    said, *names = data.split(b"\n")
    bring_in(name.decode() for name in names)
    return said


def bring_in(names: Iterable[str]) -> None:
    """Import what a fork imported, and keep the garbage collector off all that is there now: walking copies pages."""
    missing = [name for name in names if name and name not in sys.modules]
    if not missing:
        return
    for name in missing:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
