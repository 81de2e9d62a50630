"""Handles keep identity, records carry fields, relatives arrive plain; what nobody holds is forgotten."""

from __future__ import annotations

import collections
import dataclasses
import enum
import gc
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch

from llmkata.inside.objects import GraderSaid, Objects, known_bases
from llmkata.wire import UNTRUSTED, Decoder, Encoder, WireError

from .conftest import Raised, Ref, _Outside


def sent(objects: Objects, v):
    e = Encoder(objects.write, UNTRUSTED)
    e.value(v)
    return Decoder(e.out, _Outside(), UNTRUSTED).read()


@pytest.fixture
def objects():
    return Objects(lambda ident, args, kwargs: (ident, args, kwargs))


class Thing:
    pass


@dataclasses.dataclass
class Node:
    value: int
    parent: Node | None = None
    children: list = dataclasses.field(default_factory=list)


class Pair(NamedTuple):
    a: int
    b: Thing


class Colour(enum.Enum):
    red = "r"
    blue = (1, 2)


class Level(enum.IntEnum):
    low = 1


def test_one_object_has_one_handle(objects):
    a, b = Thing(), Thing()
    first = sent(objects, [a, b, {"again": a}])
    assert first[0].id == first[2]["again"].id != first[1].id
    assert sent(objects, a).id == first[0].id and objects.get(first[0].id) is a


def test_handles_go_on_from_where_the_grader_says(objects):
    objects.next_id = 40
    assert [sent(objects, Thing()).id for _ in range(2)] == [40, 41]


def test_release(objects):
    thing = Thing()
    ident, alive = sent(objects, thing).id, weakref.ref(thing)
    objects.release([ident, 999])
    with pytest.raises(WireError, match=f"no object has the handle {ident}"):
        objects.get(ident)
    assert sent(objects, thing).id != ident
    objects.release([ident + 1])
    del thing
    gc.collect()
    assert alive() is None


def test_a_new_object_at_an_old_address_gets_a_new_handle(objects):
    idents = set()
    for _ in range(50):
        thing = Thing()
        ident = objects.put(thing)
        assert objects.get(ident) is thing
        idents.add(ident)
        objects.release([ident])
        del thing
    assert len(idents) == 50


def test_records(objects):
    thing = Thing()
    pair = sent(objects, Pair(3, thing))
    assert (pair.type, pair.fields["a"], pair.fields["b"].type) == ("Pair", 3, "Thing")
    node = Node(1)
    record = sent(objects, [node, node])
    assert record[0].id == record[1].id and objects.get(record[0].id) is node
    assert sent(objects, Node).type == "type"  # the class itself is an object


def test_records_that_know_their_parents(objects):
    root = Node(0)
    root.children = [Node(1, root), Node(2, root)]
    got = sent(objects, root)
    assert [c.fields["value"] for c in got.fields["children"]] == [1, 2]
    inner = got.fields["children"][0].fields["parent"]
    assert inner.fields == {} and inner.id == got.id  # a handle of the very object


def test_long_chains_of_records_end_in_a_handle(objects):
    chain = None
    for i in range(200):
        chain = Node(i, chain)
    got, depth = sent(objects, chain), 0
    while got.fields:
        got, depth = got.fields["parent"], depth + 1
    assert got.type == "Node" and 10 < depth < UNTRUSTED.max_depth


def test_fields_that_were_deleted(objects):
    node = Node(1)
    del node.parent
    assert sent(objects, node).fields == {"value": 1, "parent": None, "children": []}


def test_enums_arrive_as_their_values(objects):
    e = Encoder(objects.write, UNTRUSTED)
    e.value([Colour.red, Colour.blue, Level.low])
    decoder = Decoder(e.out, _Outside(), UNTRUSTED)
    assert decoder.read() == ["r", (1, 2), 1]
    assert decoder.kinds == ["Colour.red", "Colour.blue", "Level.low"]


@pytest.mark.parametrize("v", [Thing(), len, lambda: 0, iter([]), (x for x in ()), Thing, torch.nn.Linear(1, 1), np.random,
                               type("L", (list,), {})(), collections.ChainMap(), torch.Generator(), object()])
def test_everything_else_stays(objects, v):
    assert isinstance(sent(objects, v), Ref)


def test_class_keys_and_methods(objects):
    box, linear = sent(objects, Thing()), sent(objects, torch.nn.Linear(1, 1))
    assert box.class_key != linear.class_key == sent(objects, torch.nn.Linear(2, 2)).class_key
    assert "state_dict" in objects.methods(linear.class_key) and objects.methods(12345) == []


def test_callbacks_reach_the_grader(objects):
    assert objects.callback(7)(1, x=2) == (7, (1,), {"x": 2})


def test_what_a_callback_wrote_is_written(objects):
    out, view = np.zeros(4), np.zeros((2, 2))
    settle = objects.settle_callback
    assert settle({"value": 5, "itself": None, "written": {"out": np.ones(4)}}, False, {"out": out}) == 5
    assert out.tolist() == [1.0] * 4
    assert settle({"value": None, "itself": "out", "written": {}}, False, {"out": view.T}).base is view
    with pytest.raises(GraderSaid, match="no"):
        settle("no", True, {})


def test_known_bases():
    class Mine(torch.OutOfMemoryError):
        pass

    assert known_bases(Mine) == ["torch.OutOfMemoryError", "RuntimeError", "Exception", "BaseException", "object"]
    assert "numpy.linalg.LinAlgError" in known_bases(np.linalg.LinAlgError)


def test_identity_through_a_session(talk):
    t = talk('''
        class A: pass
        kept = A()
        def one(): return kept
        def is_it(x): return x is kept
        def pair(): return [kept, A()]
    ''')
    a, (b, c) = t.call("one"), t.call("pair")
    assert a.id == b.id != c.id and t.call("is_it", b) is True and t.call("is_it", c) is False
    t("release", handles=[c.id])
    with pytest.raises(Raised, match="no object"):
        t.call("is_it", c)
