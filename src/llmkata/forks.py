"""What forks of a warm process import is imported by the process itself afterwards: the next fork has it already."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Collection, Iterable


def new_libraries(known: Collection[str]) -> list[str]:
    """Modules imported since ``known`` were all, parents first: those of installed libraries and of this program, never
    a learner's or a grader's."""
    installed = [place for place in sys.path if place.endswith(("site-packages", "dist-packages"))]
    places = tuple({os.path.join(place, "") for place in (sys.prefix, sys.base_prefix, *installed)})

    def belongs(name: str) -> bool:
        file = getattr(sys.modules.get(name), "__file__", None) or ""
        return name.startswith("llmkata.") or file.startswith(places)

    return sorted(filter(belongs, set(sys.modules) - set(known)), key=lambda name: name.count("."))


def with_libraries(said: bytes, known: Collection[str]) -> bytes:
    """What a fork has to say, one line of JSON, and the libraries it imported since ``known`` were all."""
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
