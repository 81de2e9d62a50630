"""Says ``s`` on stdout whenever one of some files of a folder was saved. A process of its own, which ends with whoever
started it: what watches files may hang on a network mount, and the loop must not.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path


def follow(paths: list[Path], poll: bool) -> None:
    """For ever. Editors replace files, so the folder is watched and the stamps of the files are compared.

    What changes within 10 ms is one save: the learner waits for the verdict, and a save in two pieces is judged again.
    """
    from watchfiles import watch

    last = list(map(stamp, paths))
    for _ in watch(paths[0].parent, force_polling=poll or None, recursive=False, step=10, debounce=40, rust_timeout=1000,
                   yield_on_timeout=True, raise_interrupt=False):
        now = list(map(stamp, paths))
        if now != last:
            last = now
            sys.stdout.write("s")
            sys.stdout.flush()


def stamp(path: Path) -> tuple[int, int] | None:
    """Time and size of a file, which a save changes; None where there is none."""
    try:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    except OSError:
        return None


def _end_with_the_loop() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_loop, daemon=True).start()
    follow(list(map(Path, sys.argv[2:])), sys.argv[1] == "poll")
