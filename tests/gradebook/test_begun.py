"""Which exercises a class has come to."""

from __future__ import annotations

from llmkata.gradebook.begun import begun, spoilt
from llmkata.records import ExerciseRecord, State

from ..reports.factory import KV_CACHE, MATRIX_CALCULUS, SELF_ATTENTION

EXERCISES = (MATRIX_CALCULUS, SELF_ATTENTION, KV_CACHE)


def work(learner: str, *states: State, cause: str = "") -> list[ExerciseRecord]:
    """One record for each of ``EXERCISES``."""
    return [ExerciseRecord(learner, name, state, cause=cause) for name, state in zip(EXERCISES, states, strict=True)]


def test_a_file_as_it_was_given_out_begins_nothing() -> None:
    ada = work("ada", State.graded, State.not_started, State.missing)
    bob = work("bob", State.not_started, State.not_started, State.not_started)
    assert begun([*ada, *bob]) == {MATRIX_CALCULUS}
    cyd = work("cyd", State.not_started, State.infrastructure, State.unreadable)
    assert begun([*ada, *bob, *cyd]) == set(EXERCISES), "what the grader failed on, and a file with a fault, was begun"


def test_where_nobody_began_anything_there_is_still_a_page() -> None:
    assert begun(work("ada", State.not_started, State.not_started, State.missing)) == {MATRIX_CALCULUS, SELF_ATTENTION}
    assert begun(work("ada", State.missing, State.missing, State.missing)) == set(EXERCISES)
    assert begun([]) == set()


def test_a_work_that_cannot_be_read_says_nothing_of_its_exercises() -> None:
    broken = work("dee", *[State.unreadable] * 3, cause="dee.zip: the archive is damaged.")
    assert spoilt(broken) == {"dee": "dee.zip: the archive is damaged."}
    assert begun([*broken, *work("ada", State.graded, State.not_started, State.not_started)]) == {MATRIX_CALCULUS}
    assert begun(broken) == set(EXERCISES), "its learner is on the page all the same"
    ada = work("ada", State.not_started, State.unreadable, State.missing, cause="Line 3 is no Python.")
    assert not spoilt(ada) and begun(ada) == {SELF_ATTENTION}


def test_files_with_faults_of_their_own_are_begun() -> None:
    several = [
        ExerciseRecord("ada", name, State.unreadable, cause=f"Line {n}: invalid syntax")
        for n, name in enumerate(EXERCISES)
    ]
    assert not spoilt(several) and begun(several) == set(EXERCISES)
    assert not spoilt(several[:1]), "one exercise alone tells nothing of the work as a whole"
