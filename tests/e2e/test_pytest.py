"""Plain pytest on the visible checks: collected quickly and cleanly, spread over processes, summed up by task."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from .conftest import TOY, environment

SKIPPED = '''

@task(4)
@pytest.mark.skipif(True, reason="no GPU here")
def test_on_a_gpu(submission):
    """On a GPU too."""
'''


def pytest(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "exercises/module1", *words], cwd=root, capture_output=True,
                          text=True, check=False, env=environment(OMP_NUM_THREADS="1"))


def test_summary_over_two_processes(clone):
    """A check that cannot run here makes no task look begun, and keeps no task from being done."""
    checks = clone / "exercises/module1/toy/test_toy.py"
    checks.write_text("import pytest\n" + checks.read_text("utf-8") + SKIPPED, "utf-8")
    stub = pytest(clone)
    assert stub.returncode == 1 and "not started. Open exercises/module1/toy/toy.py" in stub.stdout, stub.stdout
    (clone / "exercises/module1/toy/toy.py").write_text((TOY / "solutions/module1/toy.py").read_text("utf-8"), "utf-8")
    done = pytest(clone, "-n", "2")
    assert done.returncode == 0, done.stdout
    for line in ("[x] task 1", "[x] task 3", "[-] task 4  Sums of rows in little memory (stretch): cannot be checked here"):
        assert line in done.stdout, done.stdout
    assert done.stdout.count("1.1 Toy operations") == 1


def test_collect_only_and_one_check_that_fails(clone):
    found = pytest(clone, "--collect-only")
    assert found.returncode == 0 and "2 tests collected" in found.stdout and "Toy operations" not in found.stdout
    halved = (TOY / "solutions/module1/toy.py").read_text("utf-8").replace("keepdim=True)\n    # END", "keepdim=True) / 2\n    # END")
    (clone / "exercises/module1/toy/toy.py").write_text(halved, "utf-8")
    one = pytest(clone, "-k", "two_numbers", "-x")
    assert one.returncode == 1 and "1 failed, 1 deselected" in one.stdout
    assert "task 1: The softmax of two equal numbers" in one.stdout
    assert "Traceback" not in one.stdout and "def test_" not in one.stdout
