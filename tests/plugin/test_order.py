"""What runs, in which order, what hangs on what, and with which seed."""

from __future__ import annotations

import pytest

from llmkata.records import Outcome, State

from .conftest import by_name

CHAIN = '''
@hidden
def test_a(submission): same(submission.f(1), 2)

@hidden
@needs("test_a")
def test_b(submission): same(submission.f(2), 3)

@hidden
@needs("test_b")
def test_c(submission): same(submission.f(3), 4)

@hidden
def test_d(submission): same(submission.f(4), 5)
'''
RIGHT, WRONG = "def f(x): return x + 1", "def f(x): return x + (x != 1)"


def outcomes(record):
    return {name: c.outcome.value for name, c in by_name(record).items()}


def test_what_needs_a_failed_check_is_not_judged_and_earns_nothing(made):
    record = made(CHAIN).grade(WRONG, transport="loopback")
    assert outcomes(record) == {"test_a": "failed", "test_b": "not judged", "test_c": "not judged", "test_d": "passed"}
    assert (record.points, record.max_points) == (1, 4)
    assert by_name(record)["test_c"].cause == "needs test_b, which did not pass"


def test_a_gate_stops_everything_after_it(made):
    record = made(CHAIN.replace("@hidden\ndef test_a", "@hidden\n@gate\ndef test_a")).grade(WRONG, transport="loopback")
    assert set(outcomes(record).values()) == {"failed", "not judged"} and record.max_points == 4
    assert by_name(record)["test_d"].cause == "needs test_a, which did not pass"


def test_what_the_host_cannot_give_costs_nothing_at_second_hand_either(made):
    record = made(CHAIN.replace("def test_a(submission): ", "def test_a(submission):\n    raise NotJudged('no device')\n    ")).grade(
        RIGHT, transport="loopback")
    assert outcomes(record) == {"test_a": "not judged", "test_b": "not judged", "test_c": "not judged", "test_d": "passed"}
    assert (record.points, record.max_points) == (1, 1)
    assert by_name(record)["test_b"].cause == "needs test_a, which could not be judged"


def test_parametrised_checks(made):
    course = made('''
        @hidden
        @pytest.mark.parametrize("n", [1, 2])
        def test_a(submission, n): same(submission.f(n), n + 1)

        @hidden
        @needs("test_a")
        def test_b(submission): same(1, 1)
    ''')
    assert course.grade(RIGHT, transport="loopback").points == 3
    record = course.grade("def f(x): return 2", transport="loopback")
    assert outcomes(record) == {"test_a[1]": "passed", "test_a[2]": "failed", "test_b": "not judged"}


def test_visible_then_correctness_then_budgets(made):
    one = "@hidden\ndef test_{}(submission): same(1, 1)"
    record = made(one.format("z"), budgets=one.format("a"), visible="@task(1)\ndef test_m(submission): same(1, 1)").grade(
        RIGHT, transport="loopback")
    assert [c.id for c in record.checks] == [f"test_{record.exercise.split('/')[1]}.py::test_m", "test_correctness.py::test_z", "test_budgets.py::test_a"]
    assert [(c.visibility, c.kind, c.max_points) for c in record.checks] == [
        ("visible", "correctness", 0), ("hidden", "correctness", 1), ("hidden", "budget", 1)]


@pytest.mark.parametrize(("only", "run"), [
    ("test_d", ["test_d"]), ("::test_b", ["test_a", "test_b"]), ("::test_c", ["test_a", "test_b", "test_c"]),
    ("correctness", ["test_a", "test_b", "test_c", "test_d"]), ("", ["test_a", "test_b", "test_c", "test_d"])])
def test_only_some_and_what_they_need(made, only, run):
    assert list(outcomes(made(CHAIN).grade(RIGHT, transport="loopback", only=only))) == run


def test_only_takes_the_gates_along(made):
    gated = CHAIN.replace("@hidden\ndef test_a", "@hidden\n@gate\ndef test_a")
    assert list(outcomes(made(gated).grade(RIGHT, transport="loopback", only="test_d"))) == ["test_a", "test_d"]


def test_nothing_of_that_name(made):
    record = made(CHAIN).grade(RIGHT, transport="loopback", only="test_x")
    assert record.state is State.infrastructure and "No check is called 'test_x'" in record.cause


def test_visible_checks_alone(made):
    course = made(CHAIN, visible="@task(1)\ndef test_m(submission): same(submission.f(1), 2)")
    record = course.grade(RIGHT, transport="loopback", visible_only=True)
    assert list(outcomes(record)) == ["test_m"] and record.max_points == 0


SEEDED = '''
@hidden
def test_a(submission, seed, rng, torch_rng):
    check(False, f"{seed} {rng.random()} {torch.rand(1, generator=torch_rng).item()} {submission.draw()}")

@hidden
def test_b(submission, seed):
    check(False, f"{seed}")
'''


def test_the_same_seed_gives_the_same_everything(made):
    course, source = made(SEEDED), "import torch\ndef draw(): return torch.rand(1).item()"
    causes = {}
    for seed in (0, 0, 5):
        for transport in ("loopback", "worker"):
            checks = by_name(course.grade(source, transport=transport, seed=seed))
            causes.setdefault((seed, "a"), set()).add(checks["test_a"].cause)
            causes.setdefault((seed, "b"), set()).add(checks["test_b"].cause)
    assert all(len(found) == 1 for found in causes.values())
    assert len({next(iter(c)) for c in causes.values()}) == 4


def test_state_of_an_earlier_check_is_not_reset_but_a_dead_worker_is_replaced(made):
    course = made('''
        @hidden
        def test_a(submission): same(submission.count(), 1)

        @hidden
        def test_b(submission): submission.die()

        @hidden
        def test_c(submission): same(submission.count(), 1)
    ''')
    record = course.grade("import os\nn = 0\ndef count():\n    global n\n    n += 1\n    return n\ndef die(): os._exit(3)")
    assert outcomes(record) == {"test_a": "passed", "test_b": "failed", "test_c": "passed"}


def test_the_limit_once(made):
    """After its first deadline a function is not run again, by no check and in no worker."""
    course = made(CHAIN.replace('@needs("test_a")\n', "").replace('@needs("test_b")\n', ""), budgets='''
        @hidden
        def test_peak(budget): budget.require("b", budget.peak_bytes(lambda s: s.f(1)), at_most=1e9)
    ''')
    record = course.grade("def f(x):\n    while True: pass")
    causes = [c.cause for c in record.checks]
    assert "did not finish within 2 s" in causes[0] and all("is not run again" in c for c in causes[1:]) and len(causes) == 5
    assert record.cpu_seconds < 8 and record.max_points == 5


def test_every_check_is_told_as_it_comes(made):
    seen = []
    record = made(CHAIN).grade(RIGHT, transport="loopback", on_check=seen.append)
    assert seen == record.checks


def test_the_record_says_what_it_hangs_on(made):
    record = made(CHAIN).grade(RIGHT, seed=3)
    p = record.provenance
    assert p.seed == 3 and p.transport == "worker" and "close_range" in p.layers and {"python", "torch", "numpy"} <= set(p.versions)
    assert record.key and record.submission_sha and record.graded_at and record.seconds > 0
    assert all(c.seconds > 0 or c.outcome is Outcome.not_judged for c in record.checks)


def test_options_of_the_environment_have_no_say(made, monkeypatch):
    monkeypatch.setenv("PYTEST_ADDOPTS", "--collect-only")
    monkeypatch.setenv("PYTEST_PLUGINS", "nowhere.at.all")
    assert made(CHAIN).grade(RIGHT, transport="loopback").points == 4
    import os

    assert os.environ["PYTEST_ADDOPTS"] == "--collect-only" and "PYTEST_DISABLE_PLUGIN_AUTOLOAD" not in os.environ
