"""Hidden grading of the model answer, again and again in one warm process: ``python -m benchmarks.warm COURSE EXERCISE RUNS``.

What the checks themselves cost: no worker, no sandbox, no fork, no start. Only what budgets replay runs in the bench, a
process of its own, as it does in grading.
"""

from __future__ import annotations

import sys
from pathlib import Path

from llmkata.threads import one_thread


def main(root: str, ident: str, runs: int) -> None:
    """One run to warm up, then ``runs`` more. Raises SystemExit where a check fails: it would cost something else."""
    one_thread()
    import torch

    from llmkata.course import load_course
    from llmkata.grading.runner import grade_one
    from llmkata.outside.process import close_templates
    from llmkata.records import Outcome

    torch.set_num_threads(1)
    course = load_course(Path(root))
    exercise = course.exercise(ident)
    source = exercise.solution.read_bytes()
    for i in range(runs + 1):
        record = grade_one(course, exercise, source + b"\n# %d\n" % i, transport="loopback")
        lost = [f"{c.id}: {c.cause}" for c in record.checks if c.outcome is not Outcome.passed and not c.excused]
        if lost or not record.checks:
            raise SystemExit(f"{record.state}: {record.cause} {lost}")
    close_templates()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
