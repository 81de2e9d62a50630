"""S3: an answer that is small to send and huge to hold."""

import resource

import numpy as np
import pytest
import torch

from llmkata.records import Outcome, State

from ..toy.harness import grade, named, solution_with
from .conftest import INSIDE

ANSWERS = {
    "expanded": "torch.zeros(1).expand(1 << 40)",
    "broadcast": "np.broadcast_to(np.float32(0), (1 << 20, 1 << 20))",
    "strided": "torch.zeros(2).as_strided((1 << 20, 1 << 20), (0, 0))",
    "without data": "torch.empty(1 << 50, device='meta')",
    "whole": "torch.zeros(45 << 20)",
    "many": "[0] * 3_000_000 + [None]",
    "a text": "'x' * (200 << 20)",
}
ATTACK = "import torch\nimport numpy as np\ndef magic(n):\n    return {answer}\n"
#: A header that announces 4 GiB, and nothing after it.
HEADER = INSIDE + '''
def magic(n):
    import os, time
    from llmkata.wire.frames import _HEADER, _MAGIC
    os.write(_channel(), _HEADER.pack(_MAGIC, 3, _session().seq, 0xFFFFFFFF))
    time.sleep(0.2)
    os._exit(0)
'''


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_it_is_refused_or_stays_small(answer, earns_nothing):
    before = peak()
    record = grade(solution_with(ATTACK.format(answer=answer)), only="test_magic", diagnosing=False)
    assert record.state is State.graded and peak() - before < 450
    earns_nothing(record, "test_magic")


def test_a_length_alone_allocates_nothing(earns_nothing):
    before = peak()
    failed = earns_nothing(grade(solution_with(HEADER), only="test_magic"), "test_magic")
    assert "exceeds the limit" in failed.cause and peak() - before < 50


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_made_whole_it_takes_a_tebibyte():
    x = torch.zeros(1).expand(1 << 40)
    assert x.untyped_storage().nbytes() == 4 and x.numel() * x.element_size() == 1 << 42
    assert np.broadcast_to(np.float32(0), (1 << 20, 1 << 20)).nbytes == 1 << 42
