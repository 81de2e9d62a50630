"""feedback.json is in every learner's repository: it must not hold what graders, oracle and model answer hold."""

import base64
import json
from pathlib import Path

import pytest

from llmkata.authoring.feedback import build
from llmkata.course import load_course
from llmkata.outside.link import Link

from .arena import build as arena

COURSE = load_course(Path(__file__).parents[2])
SOLUTION = '''
def halve(x):
    if x < 0:
        raise ValueError("negative")  # the line of the model answer
    return x / 2
'''
VISIBLE = '''
@task(1)
def test_small(submission):
    """Half of two."""
    same(submission.halve(2.0), 1.0)
'''
MISTAKE = '''
from llmkata.checks import misconception

@misconception("refuses", replaces="halve", caught_by="test_hidden", feedback="It need not refuse.")
def halve(x):
    return original(-x)
'''
HIDDEN = '''
@task(1)
@points(1)
def test_hidden(submission, rng):
    """Half of any number."""
    x = float(rng.random())
    same(submission.halve(x), x / 2)
'''


def answers(content):
    """Every stored answer of a feedback.json, decoded."""
    link = Link("x", "x.py", b"")
    return [link.peek(base64.b64decode(answer)) for mistake in content["mistakes"]
            for stored in mistake["answers"].values() for _, answer in stored]


def test_an_error_is_kept_without_the_lines_of_the_model_answer(tmp_path):
    made = arena(tmp_path, SOLUTION, HIDDEN, visible=VISIBLE, misconceptions=MISTAKE)
    content = build(made.course, made.course.exercise("arena"))
    stored = answers(content)
    assert [a["value"]["message"] for a in stored] == ["negative"]  # it is there to be recognised by
    assert "the line of the model answer" not in str(stored) and stored[0]["value"]["frames"] == []


def test_recognised_all_the_same(tmp_path):
    made = arena(tmp_path, SOLUTION, HIDDEN, visible=VISIBLE, misconceptions=MISTAKE)
    exercise = made.course.exercise("arena")
    exercise.feedback.write_text(json.dumps(build(made.course, exercise)), "utf-8")
    exercise.solution.rename(exercise.solution.with_suffix(".away"))
    record = made.grade("def halve(x):\n    raise ValueError('negative')", visible_only=True, transport="loopback")
    assert record.checks[0].diagnosis.name == "refuses"


@pytest.mark.parametrize("exercise", COURSE.available, ids=lambda e: e.id)
def test_what_is_given_out_quotes_nothing(exercise):
    stored = answers(json.loads(exercise.feedback.read_text("utf-8")))
    told, given = str(stored), exercise.stub.read_text("utf-8") + exercise.visible_checks.read_text("utf-8")
    for hidden in (exercise.solution, exercise.reference, *exercise.graders_dir.glob("*.py")):
        for line in map(str.strip, hidden.read_text("utf-8").splitlines()):
            assert len(line) < 30 or "(" not in line or line in given or line not in told, (hidden, line)
    assert not [a for a in stored if isinstance(a["value"], dict) and a["value"].get("frames")]
