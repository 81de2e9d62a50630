"""The bench seen from the trusted side: whatever the recorded bytes are, it answers or refuses."""

from __future__ import annotations

import pytest
import torch

from llmkata.outside.bench import Bench, BenchRefused
from llmkata.wire import UNTRUSTED

from .conftest import on_linux

pytestmark = on_linux


@pytest.fixture(scope="module")
def bench():
    bench = Bench()
    yield bench
    bench.close()


def recorded(links, source, *args):
    s = links(source)
    s.link.begin_recording()
    s.f(*args)
    return s.link.end_recording()


def test_a_program_is_run_on_other_values(links, bench):
    x = torch.ones(2, 3)
    program, recording = recorded(links, "def f(x): return x @ x.mT", x)
    answer = bench.run(program, {"0": torch.full((2, 3), 2.0)}, ["counts"])
    assert answer["outputs"][0].tolist() == [[12.0, 12.0]] * 2 and answer["total"]["flops"] == 2 * 2 * 3 * 2
    assert answer["timeline"] == recording.timeline and len(recording.received) == 1 and "mm.default" in answer["names"]


@pytest.mark.parametrize("program", [5, None, "text", {"a": 1}, b"", b"junk", b"5", b'{"version": 1}', b"[" * 100_000, b"\xff",
                                     b"9" * 5000, b'{"operators": 5, "events": [], "version": 1}',
                                     b"[" + b"0," * (2 * UNTRUSTED.max_items) + b"0]"])
def test_what_is_no_program_is_refused(bench, program):
    with pytest.raises(BenchRefused):
        bench.run(program, {}, ["counts"])


def test_it_goes_on_after_a_refusal_and_after_a_death(links, bench):
    import os

    with pytest.raises(BenchRefused):
        bench.run(b"junk", {}, ["counts"])
    program, _ = recorded(links, "def f(x): return x + 1", torch.ones(2))
    os.kill(bench._process.inner_pid, 9)
    with pytest.raises(BenchRefused, match="ended the process"):
        bench.run(program, {"0": torch.ones(2)}, ["counts"])
    assert bench.run(program, {"0": torch.ones(2)}, ["counts"])["outputs"][0].tolist() == [2.0, 2.0]


def test_a_hostile_session_sends_no_program(links, bench):
    s = links('''
        import gc
        from llmkata.inside.session import Session
        session = next(o for o in gc.get_objects() if type(o) is Session)
        session._program = lambda r: {"operators": [session]}
        def f(x): return x
    ''')
    s.link.begin_recording()
    s.f(torch.ones(1))
    program, _ = s.link.end_recording()
    with pytest.raises(BenchRefused, match="no program"):
        bench.run(program, {}, ["counts"])


def test_segments_as_the_grader_saw_them(links):
    s = links("def f(x): return x + 1")
    s.link.begin_recording()
    with s.segment("one"):
        s.f(torch.ones(1))
    _, recording = s.link.end_recording()
    assert recording.timeline == ["begin one", "in 0", "out", "end one"]
    with s.segment("two"):  # nothing is recorded: nothing is marked
        s.f(torch.ones(1))
