"""P9: kill what grades, so that the failure looks like ours."""

from llmkata.grading.executor import grade_many
from llmkata.grading.intake import Submission
from llmkata.records import Outcome, State

from ..toy.harness import COURSE, SOLUTION, TOY, grade, named, solution_with

ATTACK = solution_with('''
def magic(n):
    import os
    for pid in (os.getppid(), -1):
        try:
            os.kill(pid, 9)
        except OSError:
            pass
    return 0
''')
#: Without a pid namespace its parent is the template, the warm interpreter of all workers.
PARENT = ATTACK.replace("(os.getppid(), -1)", "(os.getppid(),)")


def test_nothing_can_be_killed(earns_nothing):
    record = grade(ATTACK)
    earns_nothing(record, "test_magic")
    assert record.state is State.graded and record.points == 19 and record.max_points == 21


def test_honest_work_passes(honest):
    assert named(honest, "test_magic").outcome is Outcome.passed


def test_without_isolation_the_template_dies_and_nobody_gains(tmp_path):
    """The attacker's record counts for nothing; the next submission finds a new template."""
    submissions = [Submission(learner, TOY.id, source.encode(), "toy.py") for learner, source in (
        ("killer", PARENT), ("honest", SOLUTION))]
    killer, honest = grade_many(COURSE, submissions, out=tmp_path, workers=1, isolation="process")
    assert killer.state is State.infrastructure and "ended" in killer.cause
    assert honest.state is State.graded and honest.points == 21
