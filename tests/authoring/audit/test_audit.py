"""The audit for real, on the toy course as it is and on copies in which one thing is spoiled."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import psutil

from llmkata.authoring.audit.answers import answer_trials
from llmkata.authoring.audit.mutants import judge_mutants, mutant_trials
from llmkata.authoring.audit.pool import perform
from llmkata.authoring.audit.report import Audit, Figures
from llmkata.authoring.audit.stability import judge_stability
from llmkata.authoring.audit.trial import Result, Trial
from llmkata.course import load_course

from ..conftest import edit

GRADERS = "graders/module1/scale"
CORRECTNESS = f"{GRADERS}/test_correctness.py"
MATCHES = "    same(submission.softmax(case), reference.softmax(case), atol=1e-9, rtol=0)\n"


def run(root: Path, *trials: Trial) -> list[Result]:
    results = perform(load_course(root), trials, workers=2, progress=lambda trial: None)
    return [results[t] for t in trials]


def trial(root: Path, **fields: object) -> Trial:
    """The model answer's hidden grading, with other fields."""
    return msgspec.structs.replace(answer_trials(load_course(root).exercise("scale"), True)[0], **fields)


def test_a_clean_exercise(toy: Path, kata) -> None:
    done = kata("--course", toy, "audit", "--quick", "--json")
    figures = msgspec.json.decode(done.out)
    assert done.status == 0, done.err
    assert len(figures) == 1
    seconds, headroom = figures[0].pop("seconds"), figures[0].pop("headroom")
    assert 0 < seconds <= 5
    assert 0 < headroom <= 0.2
    assert figures[0] == {
        "exercise": "module1/scale", "solution": 1.0, "stub": 0.0,
        "misconceptions": {"rejected": 3, "named": 3, "total": 3},
        "alternatives": {"passed": 2, "total": 2, "named": 0},
        "mutants": {"killed": 0, "survived": 0, "equivalent": 0, "total": 0}, "false_alarms": 0, "flips": 0,
    }  # fmt: skip


def test_a_spoiled_exercise(toy: Path, kata) -> None:
    """A check that compares too little lets a mistake pass; an alternative is wrong; the stub keeps an answer."""
    edit(toy / CORRECTNESS, MATCHES, "    same(submission.softmax(case).shape, reference.softmax(case).shape)\n")
    edit(toy / f"{GRADERS}/alternatives/library.py", "no softmax of shape ()", "no softmax")
    edit(toy / "solutions/module1/scale.py", "    # BEGIN SOLUTION task 2: one product\n    return",
         "    if scores is not None:\n        return softmax(scores) @ values\n    # BEGIN SOLUTION task 2: one product\n    return")
    edit(toy / "solutions/module1/scale.py", "    # BEGIN SOLUTION task 1: exponentials",
         "    if x.dim():\n        return x.softmax(-1)\n    # BEGIN SOLUTION task 1: exponentials")
    kata("--course", toy, "sync")
    done = kata("--course", toy, "audit", "--quick")
    assert done.status == 1
    assert "module1/scale: " in done.out
    assert "misconceptions.py:10 wrong_axis: test_softmax_matches does not reject it" in done.out
    assert "alternatives/library: test_scalars_are_refused failed: The ValueError must say 'shape ()'." in done.out
    assert "the stub earns 40 points" in done.out
    assert "1 of 2 pass" in done.out


def test_wrong_usage(toy: Path, kata) -> None:
    assert kata("--course", toy, "audit", "module9/nothing").status == 2
    assert kata("--course", toy, "audit", "--workers", "0").status == 2
    assert kata("--course", toy, "audit", "--quick", "--page", toy / "page.md").status == 2
    assert not (toy / "page.md").exists()


def test_survivors_of_a_check_that_compares_too_little(toy: Path) -> None:
    edit(toy / CORRECTNESS, MATCHES, "    same(submission.softmax(case).sum(-1), reference.softmax(case).sum(-1))\n")
    edit(toy / CORRECTNESS, "want = torch.autograd.grad(", "same(0, 0)\n    return\n    want = torch.autograd.grad(")
    exercise = load_course(toy).exercise("scale")
    found, trials = mutant_trials(exercise)
    chosen = [i for i, m in enumerate(found) if m.operator in ("detached", "error", "comparison")]
    results = dict(zip([trials[i] for i in (*chosen, -1)], run(toy, *(trials[i] for i in (*chosen, -1))), strict=True))
    audit = Audit(Figures(exercise.id))
    judge_mutants(exercise, [found[i] for i in chosen], [trials[i] for i in (*chosen, -1)], results, audit)
    assert audit.figures.mutants.killed == 2  # the error and the guard are still checked
    assert [s.partition(": ")[2] for s in audit.survivors] == [
        "softmax(scores) @ values -> softmax(scores).detach() @ values",
        "softmax(scores) @ values -> softmax(scores) @ values.detach()",
    ]
    assert audit.survivors[0].startswith("solutions/module1/scale.py:24 mix: ")
    assert not audit.clean


def test_a_check_that_leans_on_an_earlier_one(toy: Path) -> None:
    path = toy / CORRECTNESS
    edit(path, MATCHES, MATCHES + "    SEEN.append(1)\n")
    edit(path, "@st.composite", "SEEN = []\n\n\n@st.composite")
    edit(path, '    """Large numbers', '    check(SEEN, "It leans on an earlier check.")\n    """Large numbers')
    edit(path, "import expect_error", "import check, expect_error")
    grading, alone = run(toy, trial(toy), trial(toy, alone=True))
    assert grading.clean
    assert [c.name for c in alone.lost] == ["test_large_numbers"]
    audit = Audit(Figures("module1/scale"))
    judge_stability(trial(toy), [trial(toy, alone=True)], {trial(toy): grading, trial(toy, alone=True): alone}, audit)
    assert audit.figures.flips == 1
    assert "passed, but failed alone: It leans on an earlier check." in audit.faults[0].what


def test_a_check_that_its_mark_skips_may_stand_alone(toy: Path) -> None:
    edit(toy / CORRECTNESS, '@task(2)\n@points(10)\n@needs("test_softmax_matches")\n@hint("Rows',
         '@pytest.mark.skipif(True, reason="no such device")\n@task(2)\n@points(10)\n@needs("test_softmax_matches")\n@hint("Rows')
    edit(toy / CORRECTNESS, "import torch\n", "import pytest\nimport torch\n")
    (alone,) = run(toy, trial(toy, alone=True))
    assert alone.clean, alone.problem
    assert [c.name for c in alone.checks if c.excused] == ["test_mix"]


def test_other_orders_are_other_orders(toy: Path) -> None:
    names = [[c.name for c in result.checks] for result in run(toy, *(trial(toy, shuffle=s) for s in (1, 2)), trial(toy))]
    assert len({tuple(n) for n in names}) == 3
    assert len({frozenset(n) for n in names}) == 1


def test_a_wrong_answer_that_passes_is_named_when_a_failure_is_forced(toy: Path) -> None:
    """So the silence about alternatives means something."""
    edit(toy / CORRECTNESS, MATCHES, MATCHES.replace("1e-9", "9.0"))
    wrong = load_course(toy).exercise("scale").solution.read_text().replace("dim=-1", "dim=0")
    forced = {"forced": True, "diagnosing": False, "only": ("test_softmax_matches",)}
    right_result, wrong_result = run(toy, trial(toy, **forced), trial(toy, source=wrong, **forced))
    assert right_result.clean
    assert right_result.checks[0].named == ""
    assert wrong_result.clean
    assert wrong_result.checks[0].named == "wrong_axis"


def test_counts_are_equal_with_another_hash_seed(toy: Path) -> None:
    here, there = run(toy, trial(toy), trial(toy, hash_seed=1))
    assert there.clean
    numbers = [[n for c in r.checks for n in c.numbers] for r in (here, there)]
    assert numbers[0] == numbers[1]
    assert [(n.name, n.value, n.exact) for n in numbers[0]] == [("FLOPs of a mix", 1024.0, True)]


def test_the_largest_error_is_kept_not_that_of_the_smallest_case(toy: Path) -> None:
    """Hypothesis shrinks towards small inputs, where an error may hide in the tolerance."""
    shifted = trial(toy).source.replace("return e / e.sum(dim=-1, keepdim=True)",
                                        "return e / e.sum(dim=-1, keepdim=True) + 4e-9 * x.abs().sum()")
    (result,) = run(toy, trial(toy, source=shifted, only=("test_softmax_matches",)))
    assert result.checks[0].outcome.value == "failed"
    assert result.checks[0].ratio > 5


def test_the_load_ends_with_the_process_that_asked_for_it() -> None:
    """An audit that is killed leaves nothing computing behind."""
    code = """if True:
        import os, signal, psutil
        from llmkata.authoring.audit.pool import _busy
        with _busy(2):
            print(*(p.pid for p in psutil.Process().children()), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    started = [int(pid) for pid in killed.stdout.split()]
    assert len(started) == 2, killed.stderr
    until = time.monotonic() + 20
    while any(map(psutil.pid_exists, started)) and time.monotonic() < until:
        time.sleep(0.05)
    assert [pid for pid in started if psutil.pid_exists(pid)] == []


def test_a_source_that_cannot_be_imported(toy: Path) -> None:
    (result,) = run(toy, trial(toy, source="import torch\n1 / 0\n"))
    assert result.problem.startswith("it cannot be imported at line 2: ")
    assert not result.fault


def test_a_grader_that_cannot_be_imported(toy: Path) -> None:
    edit(toy / CORRECTNESS, "import torch\n", "import torch\n1 / 0\n")
    (result,) = run(toy, trial(toy))
    assert result.fault
    assert "ZeroDivisionError" in result.problem
