"""Each bar of the audit on results made by hand: the clean ones pass, one thing spoiled is told."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from llmkata.authoring.audit.answers import answer_trials, judge_answers, time_trials
from llmkata.authoring.audit.judge import _near_limit
from llmkata.authoring.audit.mistakes import judge_mistakes, missed, mistake_trials, mistakes
from llmkata.authoring.audit.mutants import judge_mutants, mutant_trials
from llmkata.authoring.audit.report import Audit, Figures, to_json, to_page, to_text
from llmkata.authoring.audit.stability import judge_stability, stability_trials
from llmkata.authoring.audit.trial import Number, Result, Seen, Trial
from llmkata.course import load_course
from llmkata.records import Measure, Outcome

COURSE = load_course(Path(__file__).parents[1] / "toy")
EXERCISE = COURSE.exercise("scale")


def passed(name: str = "test_a", **more: object) -> Seen:
    return Seen(name, Outcome.passed, points=10, max_points=10, headroom=0.1, **more)


def failed(name: str = "test_a", **more: object) -> Seen:
    return Seen(name, Outcome.failed, max_points=10, cause="output differs", **more)


def audit() -> Audit:
    return Audit(Figures(EXERCISE.id))


def told(a: Audit) -> str:
    return to_text(a, quick=False)


# Correct code


@pytest.fixture
def answers() -> tuple[list[Trial], dict[Trial, Result]]:
    trials = answer_trials(EXERCISE, quick=False)
    results = {t: Result([passed(), passed("test_b")], cpu_seconds=2.0) for t in trials}
    results[trials[-1]] = Result([failed(), failed("test_b")])
    return trials, results


def judged(answers: tuple[list[Trial], dict[Trial, Result]]) -> Audit:
    a = audit()
    judge_answers(*answers, a)
    return a


def test_correct_code_is_clean(answers) -> None:
    a = judged(answers)
    assert a.clean, told(a)
    f = a.figures
    assert (f.solution, f.stub, f.headroom, f.false_alarms, f.seconds) == (1.0, 0.0, 0.1, 0, 2.0)
    assert (f.alternatives.passed, f.alternatives.total, f.alternatives.named) == (2, 2, 0)


def test_the_full_audit_runs_20_seeds_random_orders_and_each_check_alone(answers) -> None:
    mine = [t for t in answers[0] if t.what == "alternatives/library"]
    assert {t.seed for t in mine} == set(range(20))
    assert sum(t.alone for t in mine) == 1
    assert sum(t.shuffle is not None for t in mine) == 19
    assert len(answer_trials(EXERCISE, quick=True)) == 3 * 2 + 1


def test_a_false_alarm_of_one_seed(answers) -> None:
    trials, results = answers
    bad = next(t for t in trials if t.what == "alternatives/library" and t.seed == 7)
    results[bad] = Result([passed(), failed("test_b")])
    a = judged(answers)
    assert not a.clean
    assert a.figures.false_alarms == 1
    assert a.figures.alternatives.passed == 1
    assert "alternatives/library: test_b failed: output differs (seed 7, order 7)" in told(a)


def test_a_solution_that_loses_points(answers) -> None:
    trials, results = answers
    results[trials[0]] = Result([passed(), failed("test_b")], cpu_seconds=1.0)
    a = judged(answers)
    assert a.figures.solution == 0.5
    assert not a.clean


def test_a_grader_that_fails_is_no_pass(answers) -> None:
    trials, results = answers
    results[trials[0]] = Result([passed(), Seen("test_b", Outcome.not_judged, cause="The grader failed: x", fault=True)])
    a = judged(answers)
    assert a.figures.solution == 1.0  # nothing was lost ...
    assert "test_b not judged: The grader failed" in told(a)  # ... and yet it is told


def test_a_check_that_cannot_run_here_is_a_note(answers) -> None:
    trials, results = answers
    results[trials[0]].checks.append(Seen("test_gpu", Outcome.not_judged, cause="no CUDA device"))
    a = judged(answers)
    assert a.clean
    assert "test_gpu cannot run here: no CUDA device" in a.notes


def test_headroom(answers) -> None:
    trials, results = answers
    results[trials[3]].checks[0].headroom = 0.21
    a = judged(answers)
    assert a.figures.headroom == 0.21
    assert "test_a comes to 0.21 of its tolerance; at most 0.2" in told(a)


def test_a_named_alternative(answers) -> None:
    trials, results = answers
    bad = next(t for t in trials if t.what == "alternatives/library" and t.forced)
    results[bad].checks[0].named = "wrong_axis"
    a = judged(answers)
    assert a.figures.alternatives.named == 1
    assert "test_a names the mistake wrong_axis in correct code" in told(a)


def test_a_stub_that_earns_points(answers) -> None:
    trials, results = answers
    results[trials[-1]] = Result([passed(), failed("test_b")])
    a = judged(answers)
    assert a.figures.stub == 0.5
    assert "test_a: the stub earns 10 points" in told(a)


def test_time_is_the_least_of_several_runs(answers) -> None:
    trials, results = answers
    results[trials[0]].cpu_seconds = 6.0
    assert "takes 6.00 s of CPU; at most 5 s" in told(judged(answers))
    again = time_trials(trials[0], results[trials[0]])
    assert len(again) == 2
    results |= {t: Result([passed()], cpu_seconds=4.0) for t in again}
    a = judged(answers)
    assert a.clean, told(a)
    assert time_trials(trials[0], Result(cpu_seconds=4.9)) == []


def test_too_few_alternatives(answers) -> None:
    trials, results = answers
    a = audit()
    judge_answers([t for t in trials if t.what != "alternatives/library"], results, a)
    assert "there are 1 alternatives; at least 2 are needed" in told(a)


# Known mistakes


def mistaken(quick: bool = False, **by_name: list[Seen]) -> Audit:
    known = mistakes(EXERCISE)
    trials = mistake_trials(EXERCISE, known, quick)
    right = {"wrong_axis": "test_softmax_matches", "unshifted": "test_large_numbers"}
    results = {}
    for m, trial in zip(known, trials, strict=True):
        checks = [failed(right[m.name], ratio=1e6, named=m.name)] if m.name in right else [
            failed("test_mix_flops", budget=True, named=m.name)]
        results[trial] = Result(by_name.get(m.name, checks))
    a = audit()
    judge_mistakes(known, trials, results, quick, a)
    return a


def test_mistakes_that_are_rejected_and_named() -> None:
    a = mistaken()
    assert a.clean, told(a)
    assert (a.figures.misconceptions.rejected, a.figures.misconceptions.named, a.figures.misconceptions.total) == (3, 3, 3)


@pytest.mark.parametrize(
    ("checks", "rejected", "named", "text"),
    [
        ([passed("test_softmax_matches")], 2, 2, "test_softmax_matches does not reject it"),
        ([failed("test_other", ratio=9.0, named="wrong_axis")], 2, 2, "caught_by names test_softmax_matches, which does not exist"),
        ([failed("test_softmax_matches", ratio=4.9, named="wrong_axis")], 2, 2, "by only 4.9 of the tolerance; at least 5"),
        ([Seen("test_softmax_matches", Outcome.not_judged, cause="The grader failed", fault=True)], 2, 2, "did not judge it"),
        ([failed("test_softmax_matches", ratio=9.0)], 3, 2, "diagnoses it by no name"),
        ([failed("test_softmax_matches", ratio=9.0, named="unshifted")], 3, 2, "diagnoses it as unshifted"),
    ],
)
def test_mistakes_that_are_not(checks: list[Seen], rejected: int, named: int, text: str) -> None:
    a = mistaken(quick=True, wrong_axis=checks)
    assert (a.figures.misconceptions.rejected, a.figures.misconceptions.named) == (rejected, named)
    assert text in told(a)


def test_one_to_be_told_by_cost_must_have_right_answers() -> None:
    a = mistaken(product_twice=[failed("test_mix_flops", ratio=9.0, named="product_twice")])
    assert "it is to be told by flops, but test_mix_flops fails on its answers" in told(a)


def test_confusion_over_all_checks() -> None:
    right = failed("test_softmax_matches", ratio=1e6, named="wrong_axis")
    a = mistaken(wrong_axis=[right, failed("test_mix", named="unshifted"), failed("test_c")])
    assert a.figures.misconceptions.named == 3
    assert "test_mix diagnoses it as unshifted" in told(a)


def test_missed_budgets() -> None:
    trial = Trial("m/e", "misconception x", "")
    seen = [failed("test_b[1]", budget=True), failed("test_c", ratio=3.0), passed("test_d")]
    assert missed([trial], {trial: Result(seen)}) == {"test_b"}


# Mutants


def mutated(tmp_path: Path, alive: int, declared: str = "", control: Result | None = None) -> Audit:
    """The toy's mutants, the first ``alive`` of which are killed by nothing."""
    course = load_course(Path(__file__).parents[1] / "toy")
    exercise = msgspec.structs.replace(course.exercise("scale"), root=tmp_path)
    for path in (exercise.solution, exercise.graders_dir / "mutants.yaml"):
        path.parent.mkdir(parents=True, exist_ok=True)
    exercise.solution.write_text(EXERCISE.solution.read_text())
    if declared:
        (exercise.graders_dir / "mutants.yaml").write_text(declared)
    found, trials = mutant_trials(exercise)
    results = {t: Result([passed()] if i < alive else [failed()]) for i, t in enumerate(trials[:-1])}
    results[trials[-1]] = control or Result([passed()])
    a = audit()
    judge_mutants(exercise, found, trials, results, a)
    assert len(found) > 20
    return a


def test_all_mutants_killed(tmp_path: Path) -> None:
    a = mutated(tmp_path, alive=0)
    assert a.clean, told(a)
    assert a.figures.mutants.killed == a.figures.mutants.total
    assert "100.0 % of the rest killed" in told(a)


def test_survivors_are_listed_with_file_line_and_change(tmp_path: Path) -> None:
    a = mutated(tmp_path, alive=1)
    assert a.clean  # 1 of 27 is within 5 %
    assert len(a.survivors) == 1
    assert a.survivors[0].startswith("solutions/module1/scale.py:14 softmax: if x.dim() == 0:")
    assert a.survivors[0] in told(a)
    assert "2 survivors: " in told(mutated(tmp_path, alive=2))


DECLARED = """\
- where: mix
  change: "softmax(scores) @ values -> softmax(scores) @ values.detach()"
  reason: nobody asks for the gradient of the values
"""


def test_declared_equivalents(tmp_path: Path) -> None:
    killed = mutated(tmp_path, alive=0, declared=DECLARED)
    assert "declared equivalent, but test_a kills it" in told(killed)
    unknown = mutated(tmp_path, alive=0, declared=DECLARED.replace("where: mix", "where: nix"))
    assert "no mutant is nix:" in told(unknown)
    bare = mutated(tmp_path, alive=0, declared=DECLARED.replace("nobody asks for the gradient of the values", "equal"))
    assert "needs a reason why nobody can tell" in told(bare)
    wrong = mutated(tmp_path, alive=0, declared="- {where: mix, why: x}")
    assert "mutants.yaml: cannot be read" in told(wrong)


def test_equivalents_are_at_most_a_tenth(tmp_path: Path) -> None:
    found, _ = mutant_trials(EXERCISE)
    entries = [{"where": m.where, "change": m.change, "reason": "because it is a test of the audit"} for m in found[:4]]
    a = mutated(tmp_path, alive=4, declared=json.dumps(entries))
    assert a.figures.mutants.equivalent >= 4
    assert f"of {len(found)} equivalent; at most 10 % may be" in told(a)


def test_the_model_answer_must_live_under_the_limits_of_mutants(tmp_path: Path) -> None:
    a = mutated(tmp_path, alive=0, control=Result([failed()]))
    assert "the model answer itself is rejected under the limits of mutants" in told(a)


def test_a_mutant_that_no_check_judges_survives(tmp_path: Path) -> None:
    a = mutated(tmp_path, alive=0)
    fault = Result([Seen("test_a", Outcome.not_judged, cause="The grader failed: x", fault=True)])
    found, trials = mutant_trials(EXERCISE)
    results = dict.fromkeys(trials[:-1], fault) | {trials[-1]: Result([passed()])}
    a = audit()
    judge_mutants(EXERCISE, found, trials, results, a)
    assert a.figures.mutants.killed == 0
    assert "[not judged: test_a (The grader failed: x)]" in a.survivors[0]


# Stability


def steadied(**spoiled: Result) -> Audit:
    hidden = Trial("m/e", "solution", "", checks="hidden")
    trials = stability_trials(hidden)
    plain = Result([passed(numbers=[Number("FLOPs", 8.0, True), Number("bytes", 3.0, False)])])
    results = dict.fromkeys([hidden, *trials], plain)
    for how, result in spoiled.items():
        results[next(t for t in trials if (t.load if how == "load" else t.hash_seed == 1))] = result
    a = audit()
    judge_stability(hidden, trials, results, a)
    return a


def test_the_same_verdicts_and_counts() -> None:
    assert steadied().clean
    # What is weighed, not counted, may differ.
    assert steadied(hash=Result([passed(numbers=[Number("bytes", 4.0, False)])])).clean


def test_a_flip_under_load() -> None:
    a = steadied(load=Result([failed()]))
    assert a.figures.flips == 1
    assert "test_a: passed, but failed beside 4 busy processes: output differs" in told(a)


def test_a_count_that_moves() -> None:
    a = steadied(hash=Result([passed(numbers=[Number("FLOPs", 8.000001, True)])]))
    assert a.figures.flips == 1
    assert "FLOPs was 8.0, but is 8.000001 with PYTHONHASHSEED=1" in told(a)


# Views


def test_the_page_tells_figures_survivors_and_faults() -> None:
    a = audit()
    a.figures.mutants.killed, a.figures.mutants.total = 26, 27
    a.survivors.append("solutions/module1/scale.py:14 softmax: a + b -> a")
    a.fault("stub", "test_a", "the stub earns 10 points")
    page = to_page([a], ["module1/scale", "module1/other"])
    assert "Not audited in full: module1/other." in page
    assert "Not audited" not in to_page([a], ["module1/scale"])
    assert "| module1/scale | 0 | 0 | 0 of 0 | 0 of 0 | 0 | 26 of 27 |" in page
    assert "- survives: `solutions/module1/scale.py:14 softmax: a + b -> a`" in page
    assert "- not clean: test_a: the stub earns 10 points" in page


def test_what_a_page_says_of_others_stays_in_the_order_of_the_course() -> None:
    first, second, again = audit(), audit(), audit()
    second.figures.exercise = "module1/other"
    for a, survivor in ((first, "first: a -> b"), (second, "second: a -> b")):
        a.figures.mutants.total = 3
        a.survivors.append(survivor)
    order = ["module1/other", "module1/scale"]
    page = to_page([second], order, to_page([first], order))
    assert page == to_page([first, second], order)
    assert page.index("module1/other |") < page.index("module1/scale |") and "Not audited" not in page
    # What is audited anew replaces what was said of it.
    assert "first" not in to_page([again], order, page) and "second: a -> b" in to_page([again], order, page)
    assert "module1/gone" not in to_page([again], order, page.replace("module1/other", "module1/gone"))


def test_json_has_the_promised_keys() -> None:
    objects = msgspec.json.decode(to_json([audit()]))
    assert list(objects[0]) == ["exercise", "solution", "stub", "misconceptions", "alternatives", "mutants", "headroom",
                                "false_alarms", "flips", "seconds"]
    assert list(objects[0]["misconceptions"]) == ["rejected", "named", "total"]
    assert list(objects[0]["alternatives"]) == ["passed", "total", "named"]
    assert list(objects[0]["mutants"]) == ["killed", "survived", "equivalent", "total"]


# Forced failures


@pytest.mark.parametrize(
    ("value", "at_most", "at_least", "near"),
    [(100.0, 101.0, None, True), (100.0, 120.0, None, False), (100.0, None, 99.0, True), (100.0, None, 50.0, False),
     (100.0, 101.0, 99.0, True), (100.0, None, None, False)],
)  # fmt: skip
def test_what_misses_a_limit_could_cost_as_much(value: float, at_most: float, at_least: float, near: bool) -> None:
    """A mistake is told by a cost within 5 %: where correct code is further from the limit, it cannot be."""
    assert _near_limit(Measure("FLOPs", value, "FLOP", at_most, at_least)) is near
