"""F14: fill the disk, or its table of files."""

import pytest

from llmkata.records import Outcome

from ..toy.harness import grade, named
from .acts import passes, right_only_if

BYTES = '''
import os
for name in "ab":
    with open(name, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, 40 << 20)
'''
FILES = '''
import os
for i in range(5000):
    os.mkdir(str(i))
'''


@pytest.mark.parametrize("act", [BYTES, FILES])
def test_scratch_has_a_size(act, earns_nothing):
    record = grade(right_only_if(act), only="test_magic")
    if "mountns" not in record.provenance.layers:
        pytest.skip("no mount namespace on this host")
    earns_nothing(record, "test_magic")


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_the_mount_namespace_it_has_none():
    once = "import os\nif os.path.exists('b'):\n    return True\n" + BYTES
    assert passes(right_only_if(once), disable=("mountns",))
