"""Budgets: counts taken where the learner's code was not, limits, and every way not to be counted."""

from __future__ import annotations

import math
import sys
import textwrap

import numpy as np
import pytest
import torch

from llmkata.checks import BudgetExceeded, GraderFault, Mismatch, NotJudged, budgets
from llmkata.checks.budgets import Budget, Metric, quantity
from llmkata.outside.bench import Bench
from llmkata.outside.loopback import LoopbackLink
from llmkata.outside.remote import RemoteError
from llmkata.outside.submission import Submission
from llmkata.outside.worker import WorkerLink
from llmkata.records import Spot, Trust

pytestmark = [pytest.mark.usefixtures("running"),
              pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")]
HEAD = "import numpy as np\nimport torch\n"


@pytest.fixture(scope="module")
def bench():
    bench = Bench()
    yield bench
    bench.close()


@pytest.fixture
def budget(bench):
    """``budget(source, baseline=..., transport=...)``"""
    made: list[Budget] = []

    def make(source: str, baseline: str = "", transport: str = "worker", forbid=None) -> Budget:
        def link(name: str, text: str):
            kind = WorkerLink if transport == "worker" else LoopbackLink
            return kind(name, f"{name}.py", (HEAD + textwrap.dedent(text)).encode(), forbid)

        made.append(Budget(link("learner", source), lambda: link("learner", source), lambda what: link("ours", baseline), bench,
                           seed=7))
        return made[-1]

    yield make
    for one in made:
        one.close()


X, W = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)), torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
PRODUCT = 2 * 4 * 8 * 3


def product(s, x, w):
    return s.f(x, w)


def oracle(x, w):
    return x @ w


# ---- replay -------------------------------------------------------------------------------------------------------


def test_counts_are_exact(budget, running):
    run = budget("def f(x, w):\n    y = x @ w\n    return y + 1").replay(product, X, W, expect=lambda x, w: x @ w + 1)
    assert (run.flops, run.matmul_calls, run.pointwise) == (PRODUCT, 1, 12)
    assert run.allocated_bytes == run.peak_bytes == 2 * 48 and run.flops.trust is Trust.replayed
    assert run.flops.spots == [Spot("mm", PRODUCT, 4)]  # the learner's line
    assert running.compared == 1


@pytest.mark.parametrize("source", [
    "def f(x, w): return torch.einsum('nk,km->nm', x, w)", "def f(x, w): return torch.stack([row @ w for row in x])",
    "def f(x, w): return torch.nn.functional.linear(x, w.t())", "def f(x, w): return torch.addmm(torch.zeros(3), x, w)",
    "def f(x, w): return x.matmul(w)", "def f(x, w): return torch.bmm(x[None], w[None])[0]"])
def test_other_ways_to_multiply_cost_the_same(budget, source):
    assert budget(source).replay(product, X, W, expect=oracle).flops == PRODUCT


def test_inputs_and_answers_may_nest(budget):
    source = "def f(state, ids):\n    return {'y': state['w'][0][ids], 'more': (state['b'] * 2, [ids])}"
    state, ids = {"w": [torch.arange(10.0).reshape(5, 2)], "b": torch.ones(2)}, torch.tensor([0, 3])
    run = budget(source).replay(lambda s, state, ids: s.f(state, ids), state, ids, expect=lambda state, ids: {
        "y": state["w"][0][ids], "more": (state["b"] * 2, [ids])})
    assert run.pointwise >= 2


def test_segments(budget):
    def scenario(s, x, w):
        with s.segment("first"):
            a = s.f(x, w)
        with s.segment("second"):
            s.f(x, w)
            b = s.f(x, w)
        return a, b

    run = budget("def f(x, w): return x @ w").replay(scenario, X, W, expect=lambda x, w: (x @ w, x @ w))
    assert (run["first"].flops, run["second"].flops, run.flops) == (PRODUCT, 2 * PRODUCT, 3 * PRODUCT)
    with pytest.raises(GraderFault, match="no segment 'third'"):
        run["third"]


def test_objects_and_gradients_inside_a_scenario(budget):
    source = '''
        class Net(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(torch.empty(8, 3))
            def forward(self, x): return x @ self.w
    '''

    def scenario(s, x, w):
        net = s.Net()
        net.load_state_dict({"w": w})
        y, (dx,), by_name = s.vjp(net, (x,), cotangents=torch.ones(4, 3), parameters=True)
        return y, dx, by_name["w"]

    run = budget(source).replay(scenario, X, W, expect=lambda x, w: (
        x @ w, torch.ones(4, 3) @ w.t(), x.t() @ torch.ones(4, 3)))
    assert run.flops == 3 * PRODUCT  # forward, and the gradients of both factors


def test_views_of_inputs_arrive_as_views(budget):
    run = budget("def f(x, w): return x.t() @ w").replay(lambda s, x, w: s.f(x.t(), w), X, W, expect=oracle)
    assert run.flops == PRODUCT
    b = budget("def f(x, w): return x @ w")
    b.replay(lambda s, x, w: [s.f(x[1:], w[:, :2]), s.f(x.clone(), w)], X, W, expect=lambda x, w: [x[1:] @ w[:, :2], x @ w])


DETOURS = {
    "NumPy": "def f(x, w): return torch.from_numpy(x.numpy() @ w.numpy())",
    "lists": "def f(x, w): return torch.tensor([[sum(a * b for a, b in zip(r, c)) for c in w.t().tolist()] for r in x.tolist()])",
    "numbers": "def f(x, w): return torch.full((4, 3), (x[0] * w[:, 0]).sum().item())",
    "modes": "from torch.utils._python_dispatch import _disable_current_modes\ndef f(x, w):\n"
             "    with _disable_current_modes():\n        y = x @ w\n    return y * 1",
    "dispatch": "def f(x, w):\n    with torch._C._DisableTorchDispatch():\n        y = x @ w\n    return y * 1",
    "memory": "import ctypes\ndef f(x, w):\n    a = (ctypes.c_float * 32).from_address(x.data_ptr())\n"
              "    b = (ctypes.c_float * 24).from_address(w.data_ptr())\n"
              "    return torch.tensor([[sum(a[8 * i + k] * b[3 * k + j] for k in range(8)) for j in range(3)] for i in range(4)])",
}


@pytest.mark.parametrize("name", DETOURS)
def test_work_that_was_not_seen_is_not_there(budget, name):
    """All give the right answer on what they are recorded with."""
    link = LoopbackLink(f"detour_{name}", "d.py", (HEAD + DETOURS[name]).encode())
    assert name == "numbers" or torch.allclose(link.call(None, "f", (X, W), {}), X @ W, atol=1e-5)
    with pytest.raises(Mismatch, match="do not compute the answer|cannot be counted"):
        budget(DETOURS[name]).replay(product, X, W, expect=oracle)


def test_on_constant_inputs_a_count_is_the_learners_word(budget):
    """There, an answer from elsewhere cannot be told from one that was computed."""
    ones = torch.ones(4, 8), torch.ones(8, 3)
    run = budget("def f(x, w): return torch.full((4, 3), 8.0)").replay(product, *ones, expect=oracle)
    assert run.flops == 0 and run.flops.trust is Trust.self_reported
    assert budget("def f(x, w): return x @ w").replay(product, X, ones[1], expect=oracle).flops.trust is Trust.replayed
    assert budget("def f(x, w): return x @ w").replay(product, X, W, expect=None).flops.trust is Trust.self_reported


def test_threads_are_a_grant(budget):
    source = "import threading\ndef f(x, w):\n    out = []\n    t = threading.Thread(target=lambda: out.append(x @ w))\n" \
             "    t.start(); t.join()\n    return out[0] * 1"
    with pytest.raises((Mismatch, RemoteError)):
        budget(source).replay(product, X, W, expect=oracle)


def test_wrong_answers(budget):
    with pytest.raises(Mismatch, match="do not compute the answer") as e:
        budget("def f(x, w): return x @ w + 1").replay(product, X, W, expect=oracle)
    assert e.value.index and e.value.expected and e.value.got


ODD = {
    "None": "def f(x, w): return None", "an object": "class T: pass\ndef f(x, w): return T()",
    "a number": "def f(x, w): return 3.0", "an object inside": "class T: pass\ndef f(x, w): return [T(), x]",
    "NumPy": "def f(x, w): return (x @ w).numpy()", "half": "def f(x, w): return (x @ w).half()",
    "other shape": "def f(x, w): return (x @ w)[0]",
}


@pytest.mark.parametrize("name", ODD)
def test_answers_of_an_odd_form_are_failures(budget, name):
    with pytest.raises(Mismatch):
        budget(ODD[name]).replay(product, torch.rand(4, 8), torch.rand(8, 3), expect=oracle)


def test_containers_that_are_near_enough(budget):
    source = "import collections\ndef f(x, w): return collections.OrderedDict(a=x @ w, b=collections.deque([x + 1]), c={'k': w}.values())"
    run = budget(source).replay(product, X, W, expect=lambda x, w: {"a": x @ w, "b": [x + 1], "c": [w]})
    assert run.flops == PRODUCT


HIJACK = '''
import gc
from llmkata.inside.session import Session
session = next(o for o in gc.get_objects() if type(o) is Session)
honest = session._program
'''


@pytest.mark.parametrize("program", ["lambda r: b'junk'", "lambda r: {'version': 1}", "lambda r: [session]", "lambda r: None",
                                     "lambda r: session.encode({'version': 1, 'refused': None, 'storages': [], 'operators': [],"
                                     " 'views': [], 'events': []})"])
def test_programs_that_are_none(budget, program):
    with pytest.raises(Mismatch, match="cannot be counted"):
        budget(f"{HIJACK}session._program = {program}\ndef f(x, w): return x @ w").replay(product, X, W, expect=oracle)


def test_a_program_that_claims_another_order(budget, running):
    """Segments moved so that the cheap one pays for both."""
    source = f'''{HIJACK}
import json
def moved(r):
    p = json.loads(honest(r))
    marks = [e for e in p["events"] if e[0] in ("begin", "end")]
    p["events"] = [e for e in p["events"] if e not in marks] + marks
    return json.dumps(p).encode()
session._program = moved
def f(x, w): return x @ w
'''

    def scenario(s, x, w):
        with s.segment("decode"):
            return s.f(x, w)

    with pytest.raises(Mismatch, match="cannot be counted"):
        budget(source).replay(scenario, X, W, expect=oracle)


def test_bans_hold_where_the_guard_was_switched_off(budget, running):
    forbid = {"functions": {"torch.softmax": "By hand."}, "operators": {}, "modules": {}}
    source = "def f(x, w):\n    with torch._C.DisableTorchFunction():\n        return torch.softmax(x @ w, -1)"
    budget(source, forbid=forbid).replay(product, X, W, expect=lambda x, w: torch.softmax(x @ w, -1))
    assert [k.banned for k in running.links] == [["torch.softmax is not allowed in this exercise. By hand."]]


def test_a_scenario_must_not_touch_the_answer(budget):
    with pytest.raises(GraderFault, match="untouched"):
        budget("def f(x, w): return x @ w").replay(lambda s, x, w: s.f(x, w) + 1, X, W, expect=oracle)


def test_the_learners_error_is_the_learners(budget):
    with pytest.raises(RemoteError, match="mine"):
        budget("def f(x, w): raise ValueError('mine')").replay(product, X, W, expect=oracle)


# ---- limits -------------------------------------------------------------------------------------------------------


@pytest.fixture
def plain():
    return Budget(None, None, None, None, 0)


def test_within_the_limits(plain, running):
    plain.require("FLOPs", Metric(100, Trust.replayed, [Spot("mm", 100, 3)]), at_most=100, at_least=100, reference=90)
    measure = running.measures[0]
    assert measure.ok and (measure.value, measure.at_most, measure.at_least, measure.reference) == (100, 100, 100, 90)
    assert measure.trust is Trust.replayed and measure.spots[0].line == 3 and running.compared == 1


def test_above(plain, running):
    with pytest.raises(BudgetExceeded, match=r"FLOPs: 2 kFLOP, at most 1 kFLOP \(2 times the limit\)") as e:
        plain.require("FLOPs", 2000, at_most=1000)
    assert not e.value.measure.ok and running.measures == [e.value.measure] and e.value.ratio == 2
    for no_measure in (math.nan, -math.inf):
        with pytest.raises(Mismatch, match="is no measure"):
            plain.require("x", no_measure, at_most=1)
    assert len(running.measures) == 1
    with pytest.raises(BudgetExceeded):
        plain.require("x", 1, at_most=0)


def test_below_the_floor_is_for_staff(plain, running):
    with pytest.raises(BudgetExceeded, match="part of the work was not seen") as e:
        plain.require("FLOPs", 10, at_least=100)
    assert running.flags and e.value.ratio == 10
    with pytest.raises(BudgetExceeded, match="it must be at least 2 times") as e:
        plain.require("ratio", 1, at_least=2, unit="times", floor=False)
    assert len(running.flags) == 1
    with pytest.raises(BudgetExceeded):
        plain.require("x", 0, at_least=1)


def test_whom_a_number_is_believed_from(plain, running):
    plain.require("a", 1.0)
    plain.require("b", 1.0, trust="handed in")
    plain.require("c", Metric(1, Trust.outside))
    plain.require("d", Metric(4, Trust.replayed) / 2)  # what was computed from it is nobody's word
    assert [m.trust for m in running.measures] == [Trust.self_reported, Trust.handed_in, Trust.outside, Trust.self_reported]


def test_growth(plain, running):
    assert plain.growth("work", [1, 2, 4], [3, 6, 12], exponent_at_most=1.01) == pytest.approx(1)
    assert running.measures[-1].series == [(1, 3), (2, 6), (4, 12)]
    with pytest.raises(BudgetExceeded, match="growth exponent: 2"):
        plain.growth("work", [1, 2, 4], [1, 4, 16], exponent_at_most=1.25)
    with pytest.raises(BudgetExceeded, match="work at 1: 30"):  # padding the small sizes flattens the slope
        plain.growth("work", [1, 2, 4], [30, 30, 30], exponent_at_most=1.25, at_most=[4, 8, 16])
    for sizes, values in (([1, 2], [1, 2]), ([1, 2, 3], [1, 2])):
        with pytest.raises(GraderFault, match="three sizes"):
            plain.growth("work", sizes, values, exponent_at_most=1)


@pytest.mark.parametrize(("value", "unit", "text"), [
    (67_108_864, "FLOP", "67.11 MFLOP"), (999, "FLOP", "999 FLOP"), (3e12, "FLOP", "3 TFLOP"), (1.5 * 2**20, "B", "1.5 MiB"),
    (100, "B", "100 B"), (5 * 2**30, "bytes", "5 GiB"), (4, "calls", "4 calls"), (1.03, "exponent", "1.03 exponent"), (2, "", "2")])
def test_quantities(value, unit, text):
    assert quantity(value, unit) == text


# ---- memory, steps, the clock -------------------------------------------------------------------------------------


MEMORY = '''
    def plain(n): return float(np.ones(n << 17).sum())
    def hidden(n):
        import mmap
        m = mmap.mmap(-1, n << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for i in range(0, n << 20, 4096): m[i] = 1
        return 1.0
    class Box:
        def fill(self, n): return plain(n)
'''


def test_peaks(budget):
    b = budget(MEMORY)
    for scenario in (lambda s: s.plain(8), lambda s: s.hidden(8), lambda s: s.Box().fill(8), lambda s: (s.plain(1), s.plain(8))):
        peak = b.peak_bytes(scenario)
        assert peak == pytest.approx(8 << 20, rel=0.1) and peak.trust is Trust.outside
    assert b.peak_bytes(lambda s: s.plain(0)) < 100_000


def test_in_one_process_peaks_are_its_own_word(budget):
    b = budget(MEMORY, transport="loopback")
    peak = b.peak_bytes(lambda s: s.plain(8))
    assert peak == pytest.approx(8 << 20, rel=0.1) and peak.trust is Trust.self_reported
    assert b.peak_bytes(lambda s: s.hidden(8)) < 100_000


def test_steps(budget):
    b = budget("def f(n):\n    for _ in range(n): pass")
    small, large = b.steps(lambda s: s.f(100)), b.steps(lambda s: s.f(1000))
    assert small.trust is Trust.self_reported and 5 < large / small < 11


def test_a_scenario_that_calls_nothing(budget):
    b = budget("X = 1\ndef f(): return 1", baseline="def f(): return 1")
    for measure in (b.peak_bytes, b.steps):
        with pytest.raises(GraderFault, match="called nothing"):
            measure(lambda s: s.X)
    with pytest.raises(GraderFault, match="called nothing"):
        b.cpu_ratio("r", candidate=lambda s, i: s.X, baseline=lambda s, i: s.f(), baseline_file="x", at_least=1)


LOOP = "def f(n):\n    t = 0\n    for i in range({}): t += i * n\n    return t"


@pytest.fixture
def few_pairs(monkeypatch):
    monkeypatch.setattr(budgets, "_MIN_PAIRS", 4)


def ratio(b, at_least, **kw):
    b.cpu_ratio("CPU time", candidate=lambda s, i: s.f(i), baseline=lambda s, i: s.f(i), baseline_file="x", at_least=at_least, **kw)


def test_faster_by_enough(budget, running, few_pairs):
    ratio(budget(LOOP.format(20_000), baseline=LOOP.format(200_000)), 2.0, reference=10.0)
    measure = running.measures[0]
    assert measure.ok and 4 < measure.value < 20 and measure.trust is Trust.outside and measure.unit == "times"


def test_not_faster(budget, running, few_pairs):
    with pytest.raises(BudgetExceeded, match="CPU time: .* times, it must be at least 2 times"):
        ratio(budget(LOOP.format(60_000), baseline=LOOP.format(60_000)), 2.0)
    assert not running.measures[0].ok


def test_too_close_to_say(budget, monkeypatch, few_pairs):
    monkeypatch.setattr(budgets, "_MAX_PAIRS", 5)
    monkeypatch.setattr(budgets, "_sequential", lambda ratios, threshold, noise: None)
    with pytest.raises(NotJudged, match="after 5 pairs the measurement is still too close to 1"):
        ratio(budget(LOOP.format(1000), baseline=LOOP.format(1000)), 1.0)


def test_timed_answers_are_validated(budget, few_pairs):
    def validate(i, answer):
        if answer != sum(range(20_000)) * i:
            raise Mismatch("wrong while timed")

    b = budget(LOOP.format(20_000).replace("return t", "return t if n < 2 else 0"), baseline=LOOP.format(200_000))
    with pytest.raises(Mismatch, match="wrong while timed"):
        ratio(b, 2.0, validate=validate)


def test_no_clock_from_outside(budget):
    with pytest.raises(NotJudged, match="only across the process boundary"):
        ratio(budget("def f(n): pass", baseline="def f(n): pass", transport="loopback"), 1.0)


@pytest.mark.parametrize(("true", "verdict"), [(2.0, True), (1.5, True), (1.0, False), (0.5, False)])
def test_the_side_is_found(true, verdict):
    rng = np.random.default_rng(5)
    for _ in range(50):
        ratios: list[float] = []
        while (said := budgets._sequential(ratios, math.log(1.25))) is None:
            ratios.append(math.log(true) + 0.1 * rng.standard_normal())
            assert len(ratios) <= budgets._MAX_PAIRS
        assert said is verdict and len(ratios) >= budgets._MIN_PAIRS


@pytest.mark.parametrize("noise", [0.1, 0.2])
def test_few_pairs_that_agree_by_chance_do_not_decide(noise):
    """15 % below the threshold, at the noise of a busy machine: with the spread put in as measured 3 in 1,000 are wrong."""
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(2000):
        ours, theirs = rng.normal(0, noise, (2, budgets._MAX_PAIRS))
        for n in range(budgets._MIN_PAIRS, budgets._MAX_PAIRS + 1):
            said = budgets._sequential(ours[:n] - theirs[:n] - budgets._DELTA, 0.0, math.sqrt(2) * float(np.std(ours[:n], ddof=1)))
            if said is not None:
                break
        wrong += bool(said)
    assert wrong <= 1


def test_noise_takes_longer():
    def needed(noise):
        rng, ratios = np.random.default_rng(1), []
        while budgets._sequential(ratios, 0.0) is None:
            ratios.append(0.3 + noise * rng.standard_normal())
        return len(ratios)

    assert needed(0.5) > needed(0.01) == budgets._MIN_PAIRS


def test_a_spread_the_machine_cannot_account_for_does_not_count():
    """Now as fast as asked, now twenty times as slow: by the spread alone nothing could be said for ever."""
    ratios = [math.log(1.9), math.log(0.05)] * 30
    assert budgets._sequential(ratios, math.log(0.45)) is None
    assert budgets._sequential(ratios, math.log(0.45), noise=0.1) is False


def test_one_worker_serves_all_measurements_of_a_check(budget, running):
    b = budget("made = []\ndef f(x, w):\n    made.append(1)\n    return x @ w\ndef n(): return len(made)")
    for _ in range(2):
        assert b.replay(product, X, W, expect=oracle).flops == PRODUCT
    assert b.peak_bytes(lambda s: s.n()) < 1 << 20
    (link,) = running.fresh
    assert link.recording is None and link.meter is None and Submission(link).n() == 2
    b.close()
    assert link.process is None


def test_a_failure_costs_the_worker_and_nothing_else(budget, running):
    b = budget("made = []\ndef f(x, w):\n    made.append(1)\n    if len(made) > 1: raise ValueError\n    return x @ w\n"
               "def n(): return len(made)")
    bad = (lambda: b.replay(lambda s, x, w: [s.f(x, w), s.f(x, w)], X, W, expect=oracle),
           lambda: b.peak_bytes(lambda s: s.f(X, W)))
    for measure in bad:
        with pytest.raises(RemoteError):
            measure()
        (link,) = running.fresh
        assert link.process is None and link.recording is None and link.meter is None
        assert b.replay(product, X, W, expect=oracle).flops == PRODUCT  # a fresh one: the first call goes well
        link.abandon()
