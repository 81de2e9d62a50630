"""``kata verify``: is a result as the holder of the instructor's key wrote it?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkata.cli.common import FAILED, fail, prog, shown

if TYPE_CHECKING:
    from collections.abc import Iterable


def verify(
    files: Annotated[list[Path], typer.Argument(help="Cards, records, grades: any file of a run.", metavar="FILE...")],
    signatures: Annotated[
        Path | None,
        typer.Option(help="Default: the nearest signatures.jsonl beside the file or above it.", metavar="FILE"),
    ] = None,
) -> None:
    """Verify results against their signatures, with the key of KATA_SIGNING_KEY (or KATA_SIGNING_KEY_FILE).

    Exit status: 0 all are as they were signed; 1 one is not, or was never signed; 2 wrong usage.
    """
    from llmkata.grading.signature import FILE, KEY, KEY_FILE, KeyFault, key_of, signatures_for, verify_file

    try:
        key = key_of(os.environ)
    except KeyFault as error:
        fail(str(error))
    if key is None:
        fail(f"neither {KEY} nor {KEY_FILE} is set", f"{KEY_FILE}=key.txt {prog()} verify {files[0]}")
    good = True
    for path in files:
        where = signatures or signatures_for(path)
        if not path.is_file():
            fail(f"{shown(path)} is not a file")
        if where is None:
            typer.echo(f"✗ {shown(path)}: no {FILE} beside it or above it")
            good = False
            continue
        try:
            finding = verify_file(path, where, key)
        except OSError as error:
            fail(str(error))
        when = f", {finding.signed_at}" if finding.good else ""
        told = "".join(
            f", {name.removeprefix('GITHUB_').lower()} {value}" for name, value in (finding.context or {}).items()
        )
        typer.echo(f"{'✓' if finding.good else '✗'} {shown(path)}: {finding.said}{when}{told}")
        good = good and finding.good
    if not good:
        raise typer.Exit(FAILED)


def sign_results(folder: Path, files: Iterable[Path]) -> None:
    """Sign files of a run where a key is set, and say so; stops with a message where the key is of no use."""
    from llmkata.grading.signature import KeyFault, key_of, sign_files

    try:
        key = key_of(os.environ)
    except KeyFault as error:
        fail(str(error))
    if key is not None:
        typer.echo(f"{'signatures:':<12}{shown(sign_files(folder, files, key))}")
