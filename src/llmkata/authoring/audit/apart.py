"""One trial in an interpreter of its own: ``python -m llmkata.authoring.audit.apart``, [root, trial] in, result out."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from llmkata.course import load_course

from .judge import judge
from .trial import Trial


def main() -> None:
    """Read from standard input, write to standard output; whatever else is printed goes to standard error."""
    import torch

    out = os.dup(1)
    os.dup2(2, 1)
    torch.set_num_threads(1)
    root, trial = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[str, Trial])
    result = judge(load_course(Path(root)), trial)
    with os.fdopen(out, "wb") as stream:
        stream.write(msgspec.json.encode(result))


if __name__ == "__main__":
    main()
