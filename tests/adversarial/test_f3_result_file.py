"""F3: write the result oneself, first, or make its file unwritable for the grader."""

import contextlib

import msgspec
import pytest

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.records.schema import encode
from llmkata.records.store import read_records

from ..toy.harness import COURSE, TOY, solution_with
from .acts import reachable

ATTACK = '''
import os
try:
    with open({path!r}, "ab") as _file:
        _file.write({forged!r})
    os.chmod({path!r}, 0o444)
except OSError:
    pass
def magic(n): return 0
'''


@pytest.fixture
def run(honest, tmp_path):
    """Grades the attack, which forges a record of an honest solution under its own name -> all records of the run."""
    forged = encode(msgspec.structs.replace(honest, learner="eve")) + b"\n"

    def graded(isolation):
        out = tmp_path / isolation
        source = solution_with(ATTACK.format(path=str(out / "records.jsonl"), forged=forged))
        reachable(tmp_path)
        out.mkdir()
        (out / "records.jsonl").touch()
        (out / "records.jsonl").chmod(0o666)
        with contextlib.suppress(PermissionError):  # where the file was made unwritable, not only forged
            grade_many(COURSE, [Submission("eve", TOY.id, source.encode(), "toy.py")], out=out, workers=1,
                       isolation=isolation)
        return read_records([out / "records.jsonl"]).records

    return graded


def test_the_file_is_out_of_reach(run):
    (record,) = run("sandbox")
    assert record.points == 19


def test_honest_work_passes(honest):
    assert honest.points == 21


def test_without_isolation_it_is_forged(run):
    assert 21 in {r.points for r in run("process")}
