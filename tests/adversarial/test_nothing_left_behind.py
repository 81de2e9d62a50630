"""After a run nothing is left: no process, file, mount, shared memory, socket or descriptor, whatever was tried."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil
import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.outside import process

from ..toy.harness import COURSE, SOLUTION, TOY, grade, link_to, solution_with

LITTER = solution_with('''
import os, socket, tempfile
def _try(act, *args):
    try:
        return act(*args)
    except Exception:
        return None

_places = (".", "/tmp", "/dev/shm", "/var/tmp", tempfile.gettempdir())
_kept = [_try(open, place + "/kata-litter", "w") for place in _places]
_kept += [_try(socket.socket, family) for family in (socket.AF_UNIX, socket.AF_INET)]
_kept += [_try(os.open, "kept", os.O_CREAT | os.O_RDWR), _try(os.mkfifo, "pipe")]
_kept += [_try(os.memfd_create, "m"), _try(os.pipe)]
def magic(n):
    for _ in range(3):
        _try(os.fork)
    _try(os.setsid)
    return 0
''')
GONE = solution_with("import os\ndef magic(n):\n    open('x', 'w').write('x')\n    os._exit(1)")
UNREADABLE = "import os\nopen('x', 'w').write('x')\nraise SystemExit"


def left() -> dict[str, set[str]]:
    """What there is of each kind, by name. Processes are our descendants; sockets are told by what they are open as; of
    files, what lies where this run's temporary files go, and litter."""
    ours = tempfile.gettempdir()
    files = {f"{folder}/{name}" for folder in (ours, "/tmp", "/dev/shm", "/var/tmp") if os.path.isdir(folder)
             for name in os.listdir(folder) if folder == ours or name == "kata-litter"}
    descriptors = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            descriptors.add(f"{fd.name} {os.readlink(fd)}")
        except OSError:  # the one that lists them
            pass
    return {"processes": {f"{p.pid} {p.name()}" for p in psutil.Process().children(recursive=True)}, "files": files,
            "mounts": set(Path("/proc/self/mountinfo").read_text().splitlines()), "descriptors": descriptors,
            "shared memory": segments()}


def segments() -> set[str]:
    """Segments of shared memory by their ids, but for those of a database that other tests have running."""
    found = set()
    for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
        _, ident, _, _, creator, *_ = line.split()
        try:
            ours = psutil.Process(int(creator)).name() != "postgres"
        except psutil.NoSuchProcess:
            ours = True
        if ours:
            found.add(ident)
    return found


def added(before: dict[str, set[str]], after: dict[str, set[str]]) -> dict[str, set[str]]:
    return {kind: more for kind in before if (more := after[kind] - before[kind])}


@pytest.fixture
def mine(honest, monkeypatch):
    """A place for the temporary files of this run alone. The template of this process is there before, and stays."""
    folder = tempfile.mkdtemp(prefix="left-")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    yield
    shutil.rmtree(folder)


@pytest.mark.parametrize("source", [SOLUTION, LITTER, GONE, UNREADABLE], ids=["honest", "litter", "gone", "unreadable"])
@pytest.mark.usefixtures("mine")
def test_after_one_submission(source):
    before = left()
    grade(source)
    assert added(before, left()) == {}


@pytest.mark.usefixtures("mine")
def test_after_a_run_with_forked_judges(tmp_path):
    before = left()
    submissions = [Submission(str(i), TOY.id, s.encode(), "toy.py") for i, s in enumerate((SOLUTION, LITTER, GONE))]
    own, process._templates = process._templates, {}
    try:
        grade_many(COURSE, submissions, out=tmp_path, workers=2)
        process.close_templates()
    finally:
        process._templates = own
    assert added(before, left()) == {}


@pytest.mark.usefixtures("mine")
def test_what_is_left_is_seen():
    """The control: a worker that nobody ends is a process, a descriptor and a folder more."""
    before = left()
    link = link_to("def f(): return 1")
    link.open()
    found = added(before, left())
    link.close()
    assert {"processes", "descriptors", "files"} <= set(found)
