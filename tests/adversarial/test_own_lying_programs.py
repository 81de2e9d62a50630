"""A recorded program is the word of the process it comes from: programs that alias, overlap, overwrite their inputs, free
early, or are another program altogether."""

import json

import pytest
import torch

from llmkata.bench.program import parse
from llmkata.bench.replay import run
from llmkata.bench.structure import ProgramError
from llmkata.records import Outcome

from .arena import build, check
from .conftest import INSIDE

SOLUTION = '''
import torch

def work(x, w):
    return (x @ w).relu()
'''
CHECKS = '''
@task(1)
@points(1)
def test_right(submission, torch_rng):
    """Right."""
    x, w = (torch.randn(64, 64, generator=torch_rng) for _ in range(2))
    same(submission.work(x, w), (x @ w).relu())
'''
BUDGETS = '''
@task(1)
@points(3)
def test_work(submission, budget, torch_rng):
    """One product, and no more than two matrices beyond the inputs."""
    x, w = (torch.randn(64, 64, generator=torch_rng) for _ in range(2))
    run = budget.replay(lambda s, x, w: s.work(x, w), x, w, expect=lambda x, w: (x @ w).relu())
    budget.require("FLOPs", run.flops, at_most=2 * 64**3, at_least=2 * 64**3)
    budget.require("peak bytes", run.peak_bytes, at_most=2 * 64 * 64 * 4, unit="B")
'''
#: Answers right, and changes what the recorder says at the end.
DOCTORED = INSIDE + '''
import torch
from llmkata.inside import recorder as _recorder

_finish = _recorder.Recorder.finish
def _doctored(self):
    program = _finish(self)
    events = program["events"]
    {how}
    return program
_recorder.Recorder.finish = _doctored

def work(x, w):
    {work}
'''
THRICE = "return ((x @ w + x @ w + x @ w) / 3).relu()"
PROGRAMS = {
    "two of three products left out": (THRICE, "events[:] = [e for n, e in enumerate(events) if e[0] != 'op' or n not in (3, 4)]"),
    "nothing but the answer": (THRICE, "events[:] = [e for e in events if e[0] in ('in', 'out')]"),
    "the answer as a constant": (THRICE, ("out = [e for e in events if e[0] == 'out'][0]; "
                                 "events[:] = [e for e in events if e[0] == 'in'] + "
                                 "[['const', program['views'][out[1]][0], bytes(64 * 64 * 4), 1], out]")),
    "an input goes out": ("return (x @ w).relu()", "out = [e for e in events if e[0] == 'out'][0]; out[1] = events[0][2]"),
    "freed before it is used": ("return (x @ w).relu()", ("n = [i for i, e in enumerate(events) if e[0] == 'op'][0]; "
                                "events.insert(n + 1, ['free', [program['views'][events[n][5][0]][0]]])")),
    "an input freed": ("return (x @ w).relu()", "events.insert(2, ['free', [program['views'][events[0][2]][0]]])"),
    "another order": ("return (x @ w).relu()", "events.append(events.pop(0))"),
    "inputs renamed": ("return (x @ w).relu()", "events[0][1], events[1][1] = events[1][1], events[0][1]"),
    "no program": ("return (x @ w).relu()", "program = None"),
    "sizes that are none": ("return (x @ w).relu()", "program['storages'][-1] = -1"),
    "a view beyond its storage": ("return (x @ w).relu()", "program['views'][-1][3] = [1 << 20, 1 << 20]"),
}


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    return build(tmp_path_factory.mktemp("arena"), SOLUTION, CHECKS, BUDGETS)


def test_the_model_answer_passes(arena):
    assert arena.stands()


def test_twice_the_work_does_not(arena, earns_nothing):
    """What the doctored programs below are there to hide."""
    earns_nothing(arena.instead(f"def work(x, w):\n    {THRICE}\n"), "test_work")


@pytest.mark.parametrize("work, how", PROGRAMS.values(), ids=PROGRAMS)
def test_a_doctored_program_is_refused_or_wrong(arena, work, how, earns_nothing):
    record = arena.grade(DOCTORED.replace("{how}", how).replace("{work}", work))
    assert check(record, "test_right").outcome is Outcome.passed
    earns_nothing(record, "test_work")
    assert record.max_points == 4


def test_memory_of_an_input_is_no_gift(arena, earns_nothing):
    """Worked in, it counts as what it replaces. A copy of the input and two temporaries are three matrices either way."""
    in_place = "x.mul_(1.0); a = x @ w; b = a + 0; return b.relu_()"
    openly = "x = x * 1.0; a = x @ w; b = a + 0; return b.relu_()"
    for work in (in_place, openly):
        failed = earns_nothing(arena.instead(f"def work(x, w):\n    {work}\n"), "test_work")
        assert failed.measures[-1].value == 3 * 64 * 64 * 4


def recorded(work, *inputs):
    from llmkata.inside.recorder import Recorder

    recorder = Recorder(__file__)
    for n, tensor in enumerate(inputs):
        recorder.input(tensor, str(n))
    with recorder:
        result = work(*inputs)
    recorder.output(result)
    return recorder.finish()


def counted(program, *inputs):
    return run(program, {str(n): t for n, t in enumerate(inputs)})["total"]


def test_overlapping_views_cost_what_they_seem_to(arena):
    """A matrix that is one number over and over is multiplied as a matrix."""
    x = torch.randn(32, 32)
    honest = counted(recorded(lambda x: x @ x, x), x)
    overlapping = counted(recorded(lambda x: x.as_strided((32, 32), (0, 0)) @ x.as_strided((32, 32), (1, 1)), x), x)
    assert honest["flops"] == overlapping["flops"] == 2 * 32**3


def test_a_view_cannot_write_where_it_is_not():
    x = torch.randn(4, 4)
    program = recorded(lambda x: x.clone().zero_(), x)
    for at, value in ((2, 1 << 40), (3, [1 << 30]), (4, [-1, 1]), (0, 99)):
        views = json.loads(json.dumps(program["views"]))
        views[-1][at] = value
        with pytest.raises(ProgramError):
            parse(program | {"views": views})


def test_inputs_are_as_they_were_for_the_next_run():
    x = torch.ones(4)
    program = recorded(lambda x: x.add_(1), x.clone())
    for _ in range(2):
        assert run(program, {"0": x})["outputs"][0].tolist() == [2.0] * 4 and x.tolist() == [1.0] * 4


def test_multiplied_by_one_a_copy_is_a_copy():
    """What was expanded and is written out whole counts as moved, whatever operator does it; other arithmetic does not."""
    x, whole = torch.randn(8, 1, 32), 8 * 16 * 32 * 4
    spread = [lambda x: x.expand(8, 16, 32) * 1.0, lambda x: x * torch.ones(16, 1), lambda x: x.expand(8, 16, 32) + 0,
              lambda x: torch.mul(x, torch.ones(16, 1), out=torch.empty(8, 16, 32))]
    assert [counted(recorded(work, x), x)["bytes_moved"] for work in spread] == [whole] * 4
    openly = counted(recorded(lambda x: x.expand(8, 16, 32).contiguous(), x), x)
    assert openly["bytes_moved"] == whole
    plain = [lambda x: x * 2, lambda x: x + x[:1], lambda x: (x - x.mean(-1, keepdim=True)).exp(), lambda x: x > x[:1]]
    assert [counted(recorded(work, x), x)["bytes_moved"] for work in plain] == [0] * 4
