"""Each request of a session: what it does, what it answers, how it fails."""

from __future__ import annotations

import dataclasses
import json
import random
import sys

import numpy as np
import pytest
import torch

from llmkata.inside.session import Session

from .conftest import Callback, Raised

SOURCE = '''
    """A submission."""
    from __future__ import annotations
    import dataclasses, os as _os, sys
    import numpy as np
    import torch

    CONSTANT = 7
    _private = 1

    @dataclasses.dataclass
    class Point:
        x: int
        y: float = 0.5

    class Box:
        size = 3
        def __init__(self, n): self.items = [n]
        def put(self, *more): self.items.extend(more); return self
        def __iter__(self): return iter(self.items)
        def __call__(self, k): return k * self.items[0]

    def add(a, b=1): return a + b
    def same(x): return x
    def mutate(a):
        a[0] = 99
        return a.sum()
    def shout(text):
        print(text)
        print("to stderr", file=sys.stderr)
        return text
'''


@pytest.fixture
def open_(talk):
    return talk(SOURCE)


def test_open_names_what_is_public(open_):
    assert open_.names == {"functions": ["add", "same", "mutate", "shout"], "classes": ["Point", "Box"],
                           "values": ["annotations", "CONSTANT"]}
    module = sys.modules[open_.name]
    assert module.__file__ == f"{open_.name}.py" and dataclasses.is_dataclass(module.Point)


@pytest.mark.parametrize("source", ["\N{ZERO WIDTH NO-BREAK SPACE}X = 'é'".encode(), "X = 'é'", "X = 'é'".encode()])
def test_sources_with_and_without_byte_order_mark(talk, source):
    assert talk(source)("get", target=None, path="X") == "é"


@pytest.mark.parametrize(("source", "kind", "line"), [
    ("x = 1\ny = (", "SyntaxError", 2), ("\nraise SystemExit(0)", "SystemExit", 2), ("import nowhere_at_all", "ModuleNotFoundError", 1),
    ("def f():\n    raise KeyboardInterrupt\nf()", "KeyboardInterrupt", 2),
    ("class Panic(BaseException): pass\nraise Panic('rust')", "Panic", 2)])
def test_what_fails_at_import_is_told_with_its_line(talk, source, kind, line):
    with pytest.raises(Raised) as e:
        talk(source)
    assert (e.value.type, e.value.frames[-1][0]) == (kind, line)


def test_calls(open_):
    assert open_.call("add", 2) == 3 and open_.call("add", 2, b=5) == 7
    assert open_("get", target=None, path="CONSTANT") == 7
    with pytest.raises(Raised, match="AttributeError"):
        open_.call("nothing")
    with pytest.raises(Raised, match="TypeError"):
        open_.call("add", 1, 2, 3)


def test_objects_stay_and_are_reached(open_):
    box = open_.call("Box", 4)
    assert box.type == "Box" and open_("methods", class_key=box.class_key).count("put") == 1
    assert open_.call("put", 5, 6, target=box).id == box.id
    assert open_("get", target=box, path="size") == 3
    assert open_("iterate", target=box) == [4, 5, 6]
    assert open_.call("", 10, target=box) == 40
    open_("set", target=box, name="size", value=8)
    assert open_("get", target=box, path="size") == 8
    assert open_.call("same", box).id == box.id
    assert open_("get", target=box, path="put.__name__") == "put"


def test_records(open_):
    point = open_.call("Point", 1)
    assert (point.type, point.fields) == ("Point", {"x": 1, "y": 0.5})
    assert open_.call("same", point).id == point.id


def test_iteration_has_an_end(talk):
    t = talk("def forever():\n    n = 0\n    while True:\n        yield n\n        n += 1")
    assert len(t("iterate", target=t.call("forever"))) == 100_000


def test_echo_shows_the_arguments_afterwards(open_):
    result, args = open_("call", target=None, path="mutate", args=(np.zeros(2),), kwargs={}, echo=True)
    assert result == 99 and args[0].tolist() == [99, 0]


def test_prints_are_kept_apart(open_, capsys):
    assert open_.call("shout", "hello") == "hello"
    assert open_.parts["printed"] == "hello\nto stderr\n"
    open_.call("add", 1)
    assert "printed" not in open_.parts
    assert capsys.readouterr() == ("", "")


def test_without_capture_they_go_to_the_terminal(talk, capsys):
    t = talk(SOURCE, capture=False)
    t.call("shout", "hello")
    assert capsys.readouterr() == ("hello\n", "to stderr\n") and "printed" not in t.parts
    assert sys.argv == ["pytest"]  # and the process's own arguments are not touched


@pytest.mark.parametrize("raised", ["SystemExit(0)", "KeyboardInterrupt()", "GeneratorExit()", "type('Panic', (BaseException,), {})()"])
def test_every_exception_becomes_data(talk, raised):
    t = talk(f"def f(): raise {raised}\ndef g(): return 1")
    with pytest.raises(Raised):
        t.call("f")
    assert t.call("g") == 1


def test_errors_name_known_bases_and_own_frames_only(talk):
    t = talk('''
        import torch
        class Odd(ValueError): pass
        def inner(): raise Odd("not even")
        def outer(): return inner()
        def library(): return torch.ones(2) @ torch.ones(3)
    ''')
    with pytest.raises(Raised) as e:
        t.call("outer")
    assert e.value.bases[:2] == ["ValueError", "Exception"] and e.value.message == "not even"
    assert [f[1] for f in e.value.frames] == ["outer", "inner"] and 'raise Odd("not even")' in e.value.frames[-1][2]
    with pytest.raises(Raised) as e:
        t.call("library")
    assert [f[1] for f in e.value.frames] == ["library"] and "RuntimeError" in e.value.bases


def test_errors_that_cannot_be_told(talk):
    t = talk('''
        class Silent(Exception):
            def __str__(self): raise SystemExit
        def f(): raise Silent
        def g(): raise ValueError("x" * 10_000)
        def h(): h()
    ''')
    for name, text in (("f", "could not be read"), ("g", "6000 more characters"), ("h", "recursion")):
        with pytest.raises(Raised, match=text) as e:
            t.call(name)
        assert len(e.value.frames) <= 12


def test_results_too_large_are_errors_not_deaths(talk):
    t = talk('''
        import torch
        def wide(): return torch.zeros(2**27 + 1, dtype=torch.uint8)
        def deep():
            x = []
            for _ in range(100): x = [x]
            return x
        def circle():
            x = []
            x.append(x)
            return x
        def fine(): return 1
    ''')
    for name, text in (("wide", "exceeds the limit"), ("deep", "nested deeper"), ("circle", "contains itself")):
        with pytest.raises(Raised, match=text):
            t.call(name)
    assert t.call("fine") == 1


def test_measured_calls_run_between_prepare_and_fetch(talk):
    t = talk("seen = []\ndef f(x):\n    seen.append(x)\n    return x + 1")
    t("prepare", target=None, path="f", args=(1,), kwargs={})
    assert t("get", target=None, path="seen") == []
    assert t("execute", instrument=None) is None
    assert t("get", target=None, path="seen") == [1]
    assert t("fetch") == 2
    assert t("fetch") is None  # nothing is held for ever


@pytest.mark.parametrize("instrument", ["steps", "traced_peak"])
def test_instruments(talk, instrument):
    t = talk("import numpy as np\ndef f(n):\n    s = np.zeros(n * 1000)\n    for _ in range(n): pass\n    return 0")
    readings, tracer = [], sys.gettrace()
    for n in (10, 100):
        t("prepare", target=None, path="f", args=(n,), kwargs={})
        readings.append(t("execute", instrument=instrument))
    assert 5 < readings[1] / readings[0] < 15
    with pytest.raises(Raised):
        t("prepare", target=None, path="f", args=("x",), kwargs={})
        t("execute", instrument=instrument)
    assert sys.gettrace() is tracer


def test_steps_of_a_known_mistake_count_as_the_submission_s(talk):
    t = talk("def f(n):\n    return sum(range(n))")
    t("patch", source="def slow(n):\n    s = 0\n    for i in range(n): s += i\n    return s", filename="<wrong>", bind={"f": "slow"})
    readings = []
    for n in (100, 200, 400):
        t("prepare", target=None, path="f", args=(n,), kwargs={})
        readings.append(t("execute", instrument="steps"))
    assert readings[2] - readings[1] == 2 * (readings[1] - readings[0]) > 400


def test_seeds_reach_all_generators(talk):
    t = talk("import random, numpy as np, torch\ndef draw(): return [random.random(), np.random.rand(), torch.rand(1).item()]")
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        draws = []
        for seed in (2**62 + 5, 2**62 + 5, 6):
            t("seed", seed=seed)
            draws.append(t.call("draw"))
        assert draws[0] == draws[1] and all(a != b for a, b in zip(draws[0], draws[2]))
    finally:
        random.setstate(before[0]), np.random.set_state(before[1]), torch.set_rng_state(before[2])


def test_files(talk, tmp_path):
    t = talk("def write(path):\n    open(path, 'wb').write(b'abcdef')")
    t.call("write", str(tmp_path / "x"))
    assert t("read_file", path=str(tmp_path / "x"), limit=4) == b"abcd"
    with pytest.raises(Raised, match="FileNotFoundError"):
        t("read_file", path=str(tmp_path / "y"), limit=4)


def test_probes(open_):
    source = "def look(module, n):\n    return module.add(n), module.__name__"
    assert open_("run", name="look", source=source, args=(4,), kwargs={}) == (5, open_.name)
    with pytest.raises(Raised, match="ZeroDivisionError"):
        open_("run", name="f", source="def f(m): return 1 / 0", args=(), kwargs={})


def test_callbacks(talk):
    t = talk("def twice(f, x):\n    return f(f(x))\ndef name(f): return f.__name__", callbacks={5: lambda x: x * 3})
    assert t.call("twice", Callback(5), 2) == 18
    assert isinstance(t.call("name", Callback(5)), str)


def test_a_patch_replaces_and_keeps_the_original(talk):
    t = talk("class A:\n    def f(self): return 1\n    @staticmethod\n    def s(): return 2\ndef g(): return A().f()")
    t("patch", source="def h(self): return 10 * original(self)", filename="<wrong>", bind={"A.f": "h"})
    assert t.call("g") == 10
    t("patch", source="class B:\n    def f(self): return 5\n    @staticmethod\n    def s(): return 6", filename="<wrong>",
      bind={"A.f": "B.f", "A.s": "B.s"})
    assert t.call("g") == 5 and t.call("A.s") == 6


def test_recording(talk):
    t = talk('''
        import torch, dataclasses
        from collections import deque
        @dataclasses.dataclass
        class Pair:
            a: torch.Tensor
            b: torch.Tensor
        def f(x, w): return {"y": x @ w, "more": (x + 1, [x * 2])}
        def g(x): return deque([x + 1]), Pair(x * 2, x * 3), {"v": x}.values()
    ''')
    x, w = torch.ones(2, 3), torch.ones(3, 2)
    t("record")
    t("segment", name="first", end=False)
    t.call("f", x, w)
    t("segment", name="first", end=True)
    t.call("g", x)
    program = json.loads(t("program"))  # bytes: the grader passes them on unread
    assert program["refused"] is None and "mm.default" in program["operators"]
    kinds = [e[0] for e in program["events"]]
    assert kinds.count("in") == 3 and kinds.count("out") == 3 + 4 and kinds.count("begin") == kinds.count("end") == 1
    t.call("f", x, w)  # nothing is recorded any more
    with pytest.raises(Raised):
        t("program")


def test_unknown_handles_are_errors(open_):
    from .conftest import Ref

    with pytest.raises(Raised, match="no object has the handle 99"):
        open_.call("same", Ref(99, "Box"))
    assert open_.call("add", 1) == 2


def test_a_file_opened_twice_is_compiled_once_and_shares_no_state():
    source = b"kept = []\ndef keep(x):\n    kept.append(x)\n    return len(kept)\n"
    one, other, renamed = (Session(None, None) for _ in range(3))
    for session, name, file in ((one, "twice_a", "twice.py"), (other, "twice_b", "twice.py"), (renamed, "twice_c", "other.py")):
        session._open({"name": name, "source": source, "filename": file})
    assert one.module.keep.__code__ is other.module.keep.__code__ is not renamed.module.keep.__code__
    assert (one.module.keep(1), one.module.keep(1), other.module.keep(1)) == (1, 2, 1)
