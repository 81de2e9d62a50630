"""Passed, failed, not judged: what leads to which, with its cause, and that no answer leads to the third."""

from __future__ import annotations

import pytest

from llmkata.records import CheckRecord, Evidence, Outcome, State, Trust, decode, encode

from .conftest import by_name

#: A check, a submission, what becomes of it, and words of the cause. ``counts``: whether its points can be earned.
CASES = {
    "right": ("same(submission.f(1), 2)", "def f(x): return x + 1", Outcome.passed, "", True),
    "wrong": ("same(submission.f(1), 2)", "def f(x): return x", Outcome.failed, "not what it should be", True),
    "raises": ("same(submission.f(1), 2)", "\ndef f(x): return 1 / 0", Outcome.failed, "raised ZeroDivisionError at line 2: division", True),
    "raises without words": ("submission.f(1)", "def f(x): raise ValueError", Outcome.failed, "raised ValueError at line 1.", True),
    "missing": ("submission.f(1)", "def g(x): return x", Outcome.failed, "does not define `f`.", True),
    "a stub": ("submission.f(1)", "def f(x): raise NotImplementedError('task 1: all')", Outcome.failed, "not started: task 1: all", True),
    "not implemented": ("submission.f(1)", "def f(x): raise NotImplementedError('later')", Outcome.failed, "raised NotImplementedError", True),
    "dies": ("submission.f(1)", "import os\ndef f(x): os._exit(0)", Outcome.failed, "ended by itself", True),
    "None where a pair is due": ("a, b = submission.f(1)\n    same(a, 1)", "def f(x): return None", Outcome.failed, "does not have the promised form", True),
    "an object where a number is due": ("check(submission.f(1) > 0, 'positive')", "class T: pass\ndef f(x): return T()", Outcome.failed, "promised form", True),
    "nothing to loop over": ("for x in submission.f(1): same(x, 1)", "def f(x): return []", Outcome.failed, "nothing that could be compared", True),
    "deep": ("same(submission.g(submission.f(1)), 1)", "def g(x): return 0\ndef f(x):\n    for _ in range(47): x = [x]\n    return x",
             Outcome.failed, "not what", True),
    "large integers": ("same(submission.f(1), torch.tensor([1]))", "import torch\ndef f(x): return torch.tensor([2**60])", Outcome.failed, "beyond", True),
    "NaN": ("got = submission.f(1)\n    same(got, got * 1)", "def f(x): return float('nan')", Outcome.failed, "NaN", True),
    "an integer that cannot be shown": ("same(submission.g(submission.f(1)), 3)", "def g(x): return 0\ndef f(x): return 10**2400", Outcome.failed, "not what", True),
    "text that cannot be stored": ("submission.f(1)", "def f(x): raise ValueError('\\ud800 surrogate')", Outcome.failed, "surrogate", True),
    "a name that cannot be stored": ("check(submission.f(1) == 3, 'no: ' + str(submission.f(1)))", "def f(x): return '\\udfff'", Outcome.failed, "no:", True),
    "a flood of words": ("submission.f(1)", "def f(x): raise ValueError('x' * 10**6)", Outcome.failed, "xxx", True),
    "no grader": ("same(1, 1)", "def f(x): return x", Outcome.passed, "", True),
    "the oracle is NaN": ("same(submission.f(1), float('nan'))", "def f(x): return x", Outcome.not_judged, "holds NaN", False),
    "the grader says so": ("raise NotJudged('no such device')", "def f(x): return x", Outcome.not_judged, "no such device", False),
    "skipped by the grader": ("pytest.skip('no CUDA')", "def f(x): return x", Outcome.not_judged, "no CUDA", False),
    "the grader compares nothing": ("pass", "def f(x): return x", Outcome.not_judged, "compared nothing", False),
    "the grader breaks": ("1 / 0", "def f(x): return x", Outcome.not_judged, "grader failed: ZeroDivisionError", False),
    "the grader sends a thing": ("submission.f(object())", "def f(x): return x", Outcome.not_judged, "cannot cross", False),
    "a fault said aloud": ("submission.f(1)\n    raise GraderFault('oops')", "def f(x): return x", Outcome.not_judged, "oops", False),
}


@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of_it(made, name):
    check, source, outcome, words, counts = CASES[name]
    course = made(f"@hidden\ndef test_it(submission, budget):\n    '''It holds.'''\n    {check}\n\n\n"
                  "@hidden\ndef test_after(submission):\n    same(1, 1)\n")
    transports = ["loopback"] if name not in ("dies", "deep") else []
    for transport in [*transports, "worker"] if name in ("wrong", "raises") else transports or ["worker"]:
        record = course.grade(source, transport=transport)
        assert record.state in (State.graded, State.not_started), record.cause
        it = by_name(record)["test_it"]
        assert (it.outcome, it.max_points) == (outcome, 1 if counts else 0), it.cause
        assert words in it.cause and bool(it.cause) == (outcome is not Outcome.passed) and len(it.cause) < 5000
        assert it.points == (outcome is Outcome.passed) and it.title == "It holds." and it.task == 1 and it.tier == "core"
        assert by_name(record)["test_after"].outcome is Outcome.passed
        again = decode(encode(record))
        assert [c.id for c in again.checks] == [c.id for c in record.checks]


def test_evidence_is_the_smallest_case_in_words(made):
    course = made("@hidden\ndef test_it(submission):\n    same(submission.f(torch.zeros(2), 3, k=[1]), torch.ones(2))")
    it = course.grade("def f(x, n, k):\n    return x", transport="loopback").checks[0]
    assert it.evidence.call == "f(tensor (2,) float32 [0., 0.], 3, k=[1])"
    assert "0" in it.evidence.got and "1" in it.evidence.expected and it.evidence.index == "(0,)"
    frames = course.grade("def g():\n    raise KeyError('k')\ndef f(x, n, k):\n    return g()", transport="loopback").checks[0].evidence.frames
    assert [f.split(":")[1].split(" ")[0] for f in frames] == ["4", "2"] and "in g: raise KeyError('k')" in frames[-1]


def test_an_error_of_the_wrong_type_is_shown_where_it_was_raised(made):
    course = made("@hidden\ndef test_it(submission):\n    '''It refuses.'''\n"
                  "    with expect_error(ValueError, 'odd'):\n        submission.f(1)\n")
    for raised in ("KeyError('odd')", "ValueError('even')"):
        (check,) = course.grade(f"def f(x):\n    raise {raised}", transport="loopback").checks
        assert check.outcome is Outcome.failed and [f.split(":")[1].split(" ")[0] for f in check.evidence.frames] == ["2"]
    (returned,) = course.grade("def f(x): return x", transport="loopback").checks
    assert returned.outcome is Outcome.failed and returned.evidence.frames == []


def test_the_call_that_never_returned_is_shown(made):
    course = made("@hidden\ndef test_it(submission):\n    submission.f(1)\n    submission.f(2)")
    it = course.grade("import os\ndef f(x):\n    if x == 2: os._exit(0)\n    return x").checks[0]
    assert it.evidence.call == "f(2)"


BUDGET = '''
@hidden
def test_replayed(submission, budget):
    x = torch.randn(2, 2, generator=torch.Generator().manual_seed(1))
    run = budget.replay(lambda s, x: s.f(x), x, expect=lambda x: x @ x)
    budget.require("FLOPs", run.flops, at_most=16)


@hidden
def test_measured(budget):
    peak = budget.peak_bytes(lambda s: s.h())
    budget.require("bytes", peak, at_most=1 << 20, unit="B")
'''
EVASIONS = {
    "nothing returned": "def f(x): return None\ndef h(): return 1",
    "an object returned": "class T: pass\ndef f(x): return T()\ndef h(): return T()",
    "gone after the answer": '''
        import gc, os, signal
        from llmkata.inside.session import Session
        session = next(o for o in gc.get_objects() if type(o) is Session)
        execute = session._execute
        def leave(request):
            signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            return execute(request)
        session._execute = leave
        def f(x): raise SystemExit
        def h():
            import numpy as np
            return float(np.ones(1 << 18).sum())
    ''',
    "a reading of another kind": '''
        import gc
        from llmkata.inside.session import Session
        session = next(o for o in gc.get_objects() if type(o) is Session)
        execute = session._execute
        def lie(request):
            execute(request)
            return {"reading": [session]}
        session._execute = lie
        def f(x): return [[x]]
        def h():
            import numpy as np
            return float(np.ones(1 << 18).sum())
    ''',
    "dead at once": "import os\ndef f(x): os._exit(1)\ndef h(): os._exit(1)",
}


@pytest.mark.parametrize("name", EVASIONS)
def test_no_answer_takes_a_budget_out_of_the_count(made, name):
    """Checks that ask fresh workers alone are judged like the others."""
    record = made(budgets=BUDGET).grade(EVASIONS[name])
    checks = by_name(record)
    assert record.max_points == 2 and checks["test_replayed"].outcome is Outcome.failed, record
    assert checks["test_measured"].outcome in (Outcome.failed, Outcome.passed) and checks["test_measured"].max_points == 1
    if name in ("a reading of another kind", "gone after the answer"):
        assert checks["test_measured"].outcome is Outcome.failed, checks["test_measured"]
    assert not [c for c in record.checks if c.outcome is Outcome.not_judged]


def test_honest_budgets(made):
    record = made(budgets=BUDGET).grade("def f(x): return x @ x\ndef h(): return 1")
    assert record.points == 2
    trust = {c.id.split("::")[1]: c.measures[0].trust for c in record.checks}
    assert trust == {"test_replayed": Trust.replayed, "test_measured": Trust.outside}


def test_prints_of_hidden_checks_are_for_staff(made):
    course = made("@hidden\ndef test_it(submission):\n    same(submission.f(1), 1)",
                  visible="@task(1)\ndef test_seen(submission):\n    same(submission.f(1), 1)")
    checks = by_name(course.grade("def f(x):\n    print('secret', x, '\\ud800')\n    return x"))
    assert checks["test_it"].staff_output.startswith("secret 1") and checks["test_seen"].staff_output == ""
    encode(checks["test_it"])


def test_bans(made):
    files = {"graders/module1/SLUG/forbid.py": "from llmkata.checks import Forbid\nFORBID = Forbid(functions={'torch.exp': 'Sum the series.'})"}
    course = made("@hidden\ndef test_it(submission):\n    same(submission.f(torch.zeros(1)), torch.ones(1))", files=files)
    for source in ("import torch\ndef f(x): return torch.exp(x)", "def f(x):\n    try:\n        return x.exp()\n    except BaseException:\n        return x + 1"):
        it = course.grade(source, transport="loopback").checks[0]
        assert it.outcome is Outcome.failed and it.cause == "torch.exp is not allowed in this exercise. Sum the series."
    assert course.grade("def f(x): return x + 1", transport="loopback").points == 1


@pytest.mark.parametrize(("source", "words"), [
    ("def f(x:\n", "SyntaxError"), ("import nowhere", "at line 1"), ("raise SystemExit(0)", "SystemExit"), ("import os\nos._exit(0)", "ended by itself"),
    ("x = '\ud800'", "fails")])
def test_what_cannot_be_imported_is_told_once(made, source, words):
    record = made("@hidden\ndef test_it(submission):\n    same(1, 1)").grade(source)
    assert record.state is State.unreadable and words in record.cause and record.checks == [] and record.evidence.summary
    decode(encode(record))


def test_an_endless_import(made):
    record = made("@hidden\ndef test_it(submission):\n    same(1, 1)").grade("while True: pass")
    assert record.state is State.unreadable and "did not finish" in record.cause


def test_a_grader_that_cannot_be_collected_is_no_ones_grade(made):
    for checks in ("def broken(:", "@task(9)\n@points(1)\ndef test_it(submission): pass", "@task(1)\ndef test_it(submission): pass"):
        record = made(checks).grade("def f(x): return x", transport="loopback")
        assert record.state is State.infrastructure and "grader could not run" in record.cause and record.max_points == 0


def test_checks_with_measures_are_stored(made):
    record = CheckRecord("a::b", "t", 1, "core", 1, 0, Outcome.failed, cause="c", evidence=Evidence("s", frames=["f"]))
    assert record.evidence.frames == ["f"]


def test_oracles_of_two_courses_are_two_modules(tmp_path):
    import sys

    from llmkata.plugin.runs import load_module

    paths = [tmp_path / name / "reference" / "module1" / "toy.py" for name in ("one", "other.2")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(f"place = {str(path)!r}\n")
    oracles = [load_module(path) for path in paths]
    try:
        assert [sys.modules[o.__name__].place for o in oracles] == list(map(str, paths))
    finally:
        for oracle in oracles:
            del sys.modules[oracle.__name__]
