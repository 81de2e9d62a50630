"""What is kept of a check: everything before the first example and the last example, up to a size."""

from __future__ import annotations

from llmkata.outside import transcript
from llmkata.outside.transcript import Exchange, Transcript
from llmkata.wire import Kind


def exchange(n: int) -> Exchange:
    return Exchange(b"q%d" % n, Kind.result, b"a%d" % n)


def kept(t: Transcript) -> list[bytes]:
    return [e.request for e in t.exchanges]


def test_the_last_example_and_what_came_before_the_first():
    t = Transcript()
    t.add(exchange(0))
    for first in (1, 3, 5):
        t.begin_example()
        t.add(exchange(first))
        t.add(exchange(first + 1))
    assert kept(t) == [b"q0", b"q5", b"q6"] and t.complete


def test_too_much_is_incomplete_until_the_next_example(monkeypatch):
    monkeypatch.setattr(transcript, "_CAP", 10)
    t = Transcript()
    for n in range(4):
        t.add(exchange(n))
    assert kept(t) == [b"q0", b"q1"] and not t.complete
    t = Transcript()
    t.begin_example()
    for n in range(4):
        t.add(exchange(n))
    assert not t.complete
    t.begin_example()
    t.add(exchange(9))
    assert t.complete and kept(t) == [b"q9"]
