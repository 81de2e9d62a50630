"""``kata cluster --local 2`` as somebody would start it, and submissions for it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed")

from llmkata.course import load_course

from ..grading.two import write_course


class Running:
    """A cluster of two workers, started from a terminal."""

    def __init__(self, process: subprocess.Popen[str], address: str, folder: Path) -> None:
        self.process, self.address, self.folder = process, address, folder

    def family(self) -> list[psutil.Process]:
        """Every process that it has brought about and that still runs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def interrupt(self) -> tuple[int, list[psutil.Process]]:
        """Ctrl-C -> (exit status, what is left of the family after it has ended)."""
        family = self.family()
        self.process.send_signal(signal.SIGINT)
        status = self.process.wait(60)
        return status, psutil.wait_procs(family, timeout=60)[1]


@contextmanager
def started(workers: int) -> Iterator[Running]:
    # Not pytest's folder: with root, learners' code runs as somebody who may not enter there.
    folder = Path(tempfile.mkdtemp(prefix="kata-cluster-"))
    folder.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-m", "llmkata.cli.main", "cluster", "--local", str(workers)], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}, cwd=folder,
    )  # fmt: skip
    try:
        address = re.search(r"tcp://\S+", process.stdout.readline()).group()
        yield Running(process, address, folder)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Running]:
    with started(2) as running:
        yield running


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """Two small exercises. The same for the module, so that workers stay warm."""
    return load_course(write_course(tmp_path_factory.mktemp("two")))
