"""The folder of a run, had by one command at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from llmkata.cli.common import fail, shown

if TYPE_CHECKING:
    from llmkata.gradebook.hold import Holder


@contextmanager
def hold(folder: Path, command: str, step: str = "", *, patience: float = 0.0) -> Iterator[None]:
    """Have the folder for a ``with`` block; stops with a message where another run has it. Every command that writes
    records, gradebook or pages goes through here.

    Args:
        command: this command as others are told of it; no seed in it.
        step: the command to try instead.
        patience: seconds to wait for another run before giving up.
    """
    from llmkata.gradebook.hold import FolderInUse, held

    def tell(holder: Holder) -> None:
        typer.echo(f"an earlier run did not come to its end: {holder}. What it graded is kept.", err=True)

    with ExitStack() as stack:
        try:
            stack.enter_context(held(folder, command, patience=patience, left_behind=tell))
        except FolderInUse as error:
            fail(str(error), step or command)
        except OSError as error:
            fail(f"cannot write to {shown(folder)}: {error.strerror or error}")
        yield
