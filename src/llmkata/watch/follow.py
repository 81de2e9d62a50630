"""Says ``s`` on stdout whenever a file was saved. A process of its own: the loop forks, and must have no threads."""

from __future__ import annotations

import sys
from pathlib import Path


def follow(path: Path, poll: bool) -> None:
    """Until stdout is closed. Editors replace files, so the folder is watched and the file's stamp compared."""
    from watchfiles import watch

    last = _stamp(path)
    for _ in watch(path.parent, force_polling=poll or None, recursive=False, step=30, debounce=80, rust_timeout=1000,
                   yield_on_timeout=True, raise_interrupt=False):
        now = _stamp(path)
        if now != last:
            last = now
            sys.stdout.write("s")
            sys.stdout.flush()


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
        return status.st_mtime_ns, status.st_size
    except OSError:
        return None


if __name__ == "__main__":
    try:
        follow(Path(sys.argv[1]), sys.argv[2] == "poll")
    except (KeyboardInterrupt, BrokenPipeError):
        pass
