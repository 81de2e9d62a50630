"""``kata sync``."""

from __future__ import annotations

SOLUTION = """\
def add(x):
    # BEGIN SOLUTION task 1: add
    return sum(x)
    # END SOLUTION
"""


def test_stubs_are_cut_and_drift_is_found(toy, kata, hidden) -> None:
    (toy / "solutions/module0/sums.py").write_text(SOLUTION)
    assert kata("sync", "0.1", "--check").status == 0
    (toy / "solutions/module0/sums.py").write_text(SOLUTION.replace("task 1: add", "task 1: add up"))
    found = kata("sync", "0.1", "--check")
    assert found.status == 1 and '+    raise NotImplementedError("task 1: add up")' in found.out
    assert kata("sync", "module0/sums").status == 0
    assert "add up" in (toy / "exercises/module0/sums/sums.py").read_text()
    (toy / "solutions/module0/sums.py").write_text("# END HIDDEN\n")
    broken = kata("sync")
    assert broken.status == 2 and "solutions/module0/sums.py: line 1: END HIDDEN without" in broken.err
