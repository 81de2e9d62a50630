"""What graders see: the same over both transports."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkata.outside.probe import probe
from llmkata.outside.remote import MissingName, Record, Remote, RemoteError
from llmkata.wire import WireError

SOURCE = '''
    from __future__ import annotations
    import dataclasses
    from typing import NamedTuple
    import numpy as np
    import torch

    SIZE = 7

    @dataclasses.dataclass
    class Config:
        width: int
        depth: int = 2
        def area(self): return self.width * self.depth

    class Out(NamedTuple):
        y: torch.Tensor
        n: int

    class Cache:
        def __init__(self, config): self.config, self.items = config, []
        def append(self, x): self.items.append(x); return len(self.items)
        def __len__(self): return len(self.items)
        def __getitem__(self, i): return self.items[i]
        def __setitem__(self, i, x): self.items[i] = x
        def __contains__(self, x): return x in self.items
        def __iter__(self): return iter(self.items)
        @property
        def length(self): return len(self.items)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1, bias=False)
        def forward(self, x): return self.linear(x)

    def same(*args, **kwargs): return (args, kwargs)
    def is_same(a, b): return a is b
    def out(x): return Out(x * 2, 3)
    def zero(a):
        a *= 0
        return 1
    def apply(f, *args, **kwargs): return f(*args, **kwargs)
    def out_of(f, a):
        out = np.zeros(3)
        got = f(a, out=out)
        return out, got is out
    def swallow(f):
        try:
            f()
        except BaseException as e:
            return type(e).__name__
        return "fine"
    def fail(text): raise LookupError(text)
    def run(text): return "own run: " + text
    def draw(): return torch.rand(1).item(), np.random.rand()
'''


def test_values_cross_both_ways(open_):
    s = open_(SOURCE)
    x, a = torch.arange(6.0).reshape(2, 3).t(), np.arange(6)[::-2]
    (args, kwargs) = s.same(1, "é", None, (2, [3.5, {"k": {1, 2}}]), b"b", x, a, k=torch.bfloat16)
    assert args[:5] == (1, "é", None, (2, [3.5, {"k": {1, 2}}]), b"b") and kwargs == {"k": torch.bfloat16}
    assert torch.equal(args[5], x) and args[5].stride() == x.stride() and args[6].tolist() == a.tolist()


def test_names(open_):
    s = open_(SOURCE)
    assert s.SIZE == 7
    with pytest.raises(MissingName, match=r"learner_0.py does not define `nothing`"):
        s.nothing  # noqa: B018
    with pytest.raises(MissingName):
        s.call("SIZE")
    with pytest.raises(AttributeError):
        s._private  # noqa: B018
    assert "same of the submission" in repr(s.same)


def test_objects(open_):
    s = open_(SOURCE)
    config = s.Config(width=3)
    cache = s.Cache(config)
    assert (cache.append(5), cache.append(config)) == (1, 2)
    assert (len(cache), cache.length, cache[0], 5 in cache, 6 in cache) == (2, 2, 5, True, False)
    assert isinstance(cache, Remote) and not isinstance(cache, Record) and "Cache of the submission" in repr(cache)
    assert s.is_same(cache[1], config) and s.is_same(cache.config, cache[1])
    cache[0] = 8
    cache.extra = 9
    assert next(iter(cache)) == 8 and cache.extra == 9
    assert s.call("same", cache)[0][0]._id == cache._id


def test_records(open_):
    s = open_(SOURCE)
    config = s.Config(3, depth=4)
    assert isinstance(config, Record) and (config.width, config.depth, config._type) == (3, 4, "Config")
    assert config._handle.area() == 12 and repr(config) == "Config(width=3, depth=4)"
    y, n = s.out(torch.ones(2))
    assert y.tolist() == [2.0, 2.0] and n == 3 and s.out(torch.ones(1))[1] == 3 and len(s.out(torch.ones(1))) == 2
    config._handle.width = 10
    assert config.width == 3 and config._handle.width == 10  # a record is what it was when it came


def test_arguments_afterwards(open_):
    s = open_(SOURCE)
    a = np.ones(3)
    assert s.zero(a) == 1 and a.tolist() == [1, 1, 1]  # ours is out of reach
    result, after = s.call("zero", a, echo=True)
    assert result == 1 and after[0].tolist() == [0, 0, 0]


def test_callbacks(open_):
    s = open_(SOURCE)
    calls = []

    def double(x, times=2):
        calls.append(x)
        return x * times

    assert s.apply(double, 4) == 8 and s.apply(double, torch.ones(1), times=3).tolist() == [3.0]
    assert len(calls) == 2


def test_callbacks_write_to_out(open_):
    s = open_(SOURCE)

    def gemm(a, out):
        out[:] = a * 2
        return out

    def other(a, out):
        out[1] = 5
        return a

    written, itself = s.out_of(gemm, np.arange(3.0))
    assert written.tolist() == [0, 2, 4] and itself
    written, itself = s.out_of(other, np.arange(3.0))
    assert written.tolist() == [0, 5, 0] and not itself


def test_a_callback_that_raises_decides(open_):
    """Whatever the learner's code does with it."""
    s = open_(SOURCE)

    def refuse():
        raise AssertionError("asked twice")

    for name in ("apply", "swallow"):
        with pytest.raises(AssertionError, match="asked twice"):
            getattr(s, name)(refuse)
    assert s.swallow(lambda: None) == "fine"


def test_a_callback_may_speak_to_the_caller(open_):
    class Refused(Exception):
        for_the_caller = True

    def refuse():
        raise Refused("no more than 3")

    s = open_(SOURCE)
    assert s.swallow(refuse) == "GraderSaid"
    with pytest.raises(RemoteError, match="no more than 3"):
        s.apply(refuse)


def test_a_callback_that_leaves_the_check_leaves_it(open_):
    class Skip(BaseException):
        pass

    def skip():
        raise Skip

    s = open_(SOURCE)
    with pytest.raises(Skip):
        s.swallow(skip)
    assert s.same(1) == ((1,), {})  # and the submission can be asked again


def test_a_callback_must_not_ask_the_submission(open_):
    s = open_(SOURCE)
    with pytest.raises(WireError, match="while it is being asked"):
        s.apply(lambda: s.same(1))
    assert s.same(1) == ((1,), {})


def test_handed_in_objects_of_libraries(open_):
    s = open_(SOURCE)
    linear = torch.nn.Linear(2, 1)
    with pytest.raises(WireError, match="cannot be handed in"):
        s.same(object())
    assert s.apply(linear, torch.ones(1, 2)).shape == (1, 1)  # a call-back: it runs here
    assert s.call("same", torch.device("cpu"))[0][0]._type == "device"


def test_objects_of_one_worker_are_not_for_another(open_):
    s, other = open_(SOURCE), open_(SOURCE)
    with pytest.raises(WireError, match="of one worker"):
        other.same(s.Cache(None))


def test_gradients(open_):
    s = open_(SOURCE)
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    out, grads = s.vjp("out", (x,), cotangents=(torch.ones(2), None))
    assert out.y.tolist() == [2.0, 4.0] and grads[0].tolist() == [2.0, 2.0]
    net = s.Net()
    net.double()
    net.load_state_dict({"linear.weight": torch.tensor([[3.0, 4.0]], dtype=torch.float64)})
    out, grads, by_name = s.vjp(net, (x,), cotangents=torch.ones(1), parameters=True)
    assert out.item() == 11 and grads[0].tolist() == [3.0, 4.0] and by_name["linear.weight"].tolist() == [[1.0, 2.0]]
    assert s.vjp(net.forward, (x,), cotangents=torch.ones(1))[0].item() == 11
    with pytest.raises(MissingName):
        s.vjp("nothing", (x,))


def test_errors(open_):
    s = open_(SOURCE)
    with pytest.raises(RemoteError) as e:
        s.fail("what is lost")
    assert e.value.is_a(LookupError) and e.value.is_a(Exception) and not e.value.is_a(ValueError)
    assert e.value.type_name == "LookupError" and e.value.message == "what is lost" and str(e.value) == "LookupError: what is lost"
    assert e.value.where()[-1].endswith("in fail: def fail(text): raise LookupError(text)")


@probe
def look(module, k):
    import sys

    return {"k": k, "name": module.__name__, "size": module.SIZE, "modules": "llmkata.checks" in sys.modules}


def test_probes(open_):
    s = open_(SOURCE)
    seen = s.run(look, 4)
    assert seen["k"] == 4 and seen["size"] == 7
    assert seen["modules"] == (s.link.transport == "loopback" and "llmkata.checks" in __import__("sys").modules)
    assert s.run("hello") == "own run: hello"  # a submission's own function of that name


def test_prints_and_seeds(open_):
    s = open_(SOURCE + "\n    def shout():\n        print('loud')\n")
    draws = []
    for seed in (5, 5, 6):
        s.link.begin_check(seed)
        draws.append(s.draw())
    assert draws[0] == draws[1] != draws[2]
    s.shout()
    assert "".join(s.link.printed) == ("loud\n" if s.link.transport == "worker" else "")
    s.link.begin_check(1)
    assert s.link.printed == []


def test_a_flood_of_prints(links):
    s = links("def shout():\n    for _ in range(1000): print('x' * 1000)")
    for _ in range(5):
        s.shout()
    kept = "".join(s.link.printed)
    assert "more characters" in kept and len(kept) < 50_000


def test_the_same_transcript_over_both(links):
    """A check asked over one transport can be replayed over the other: same requests, same answers."""
    transcripts = []
    for transport in ("worker", "loopback"):
        s = links(SOURCE, transport)
        s.link.open()
        s.link.begin_check(3)
        cache = s.Cache(s.Config(2))
        cache.append(torch.ones(2))
        s.out(torch.ones(3))
        with pytest.raises(RemoteError):
            s.fail("x")
        transcripts.append([(e.request, e.kind, e.answer.replace(b"learner_0", b"learner_1")) for e in s.link.transcript.exchanges])
    assert transcripts[0] == transcripts[1]
    assert len(transcripts[0]) == 5  # the names of the methods of Cache are asked for beside it


def test_handles_are_given_back(open_):
    s = open_("class A:\n    pass\nkept = []\ndef make(): return A()\ndef same(x): return x\ndef n():\n"
              "    import gc\n    gc.collect()\n    return sum(type(o) is A for o in gc.get_objects())\n")
    a = s.make()
    b = s.same(a)
    del a
    assert s.n() == 1  # the other proxy still holds it
    del b
    s.same(0)
    assert s.n() == 0


def test_numbering_starts_again_with_a_check(open_):
    s = open_(SOURCE)
    s.link.open()
    requests = []
    for _ in range(2):
        s.link.begin_check(1)
        cache = s.Cache(None)
        cache.append(1)
        del cache
        requests.append([e.request for e in s.link.transcript.exchanges if b"methods" not in e.request])
    assert requests[0] == requests[1] and len(requests[0]) == 2


def test_bans_of_the_import_hold_for_every_check(open_):
    s = open_("try:\n    import json\nexcept BaseException:\n    pass\ndef f(): return 1",
              forbid={"functions": {}, "operators": {}, "modules": {"json": "No."}})
    for _ in range(2):
        s.link.begin_check(1)
        assert s.f() == 1 and s.link.banned == ["json is not allowed in this exercise. No."]
