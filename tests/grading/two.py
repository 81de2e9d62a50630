"""A course of two exercises in a folder of its own, and a class that hands both in."""

from __future__ import annotations

from pathlib import Path

COURSE = """\
schema: llmkata/course/v1
title: Two
policy:
  isolation: sandbox
  seed_env: TWO_SEED
  weights: {core: 1, stretch: 1}
  feedback: {visible: counterexample, hidden: diagnosis}
limits: {wall: 20, call: 5, cpu: 20, memory: 256, output: 64, submission: 4096}
modules:
  - number: 1
    title: Two
    objective: Two exercises.
    exercises:
"""
ENTRY = """\
      - number: "1.{n}"
        slug: {slug}
        title: {title}
        mission: Hold.
        difficulty: 1
        hours: {{core: 1, total: 1}}
        status: available
        tasks: [{{number: 1, tier: core, title: "Everything"}}]
"""
CHECK = '''\
from llmkata.checks import points, same, task

@task(1)
@points({points})
def test_right(submission):
    """The number is right."""
    same(submission.work(3), {want})
'''
SOLUTION = """\
def work(n):
    # BEGIN SOLUTION task 1: everything
    return {answer}
    # END SOLUTION
"""
#: Source of an answer to each exercise that is right, and of one that is not.
RIGHT = {"double": "def work(n):\n    return 2 * n\n", "square": "def work(n):\n    return n * n\n"}
WRONG = "def work(n):\n    return 2 * n + n % 2\n"


def write_course(root: Path) -> Path:
    """The course, in ``root``."""
    (root / "course.yaml").parent.mkdir(parents=True, exist_ok=True)
    (root / "course.yaml").write_text(COURSE + "".join(
        ENTRY.format(n=n, slug=slug, title=slug.title()) for n, slug in enumerate(RIGHT, 1)))
    for slug, source in RIGHT.items():
        answer = source.split("return ")[1].strip()
        files = {
            f"exercises/module1/{slug}/README.md": f"# {slug}\n",
            f"exercises/module1/{slug}/{slug}.py": 'def work(n):\n    raise NotImplementedError("task 1: everything")\n',
            f"exercises/module1/{slug}/test_{slug}.py": "",
            f"solutions/module1/{slug}.py": SOLUTION.format(answer=answer),
            f"reference/module1/{slug}.py": source,
            f"graders/module1/{slug}/test_correctness.py": CHECK.format(points=4, want={"double": 6, "square": 9}[slug]),
        }
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def hand_in(folder: Path, learner: str, **sources: str) -> None:
    """``hand_in(class, "ann", double=..., square=...)``."""
    for slug, source in sources.items():
        path = folder / learner / "module1" / f"{slug}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
