"""Bans: by every road a function or module can be reached, with the sentence that teaches, and nothing else is banned."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from llmkata.inside.forbid import BannedCall, Bans, Guard

from .conftest import Raised

SDPA = {"torch.nn.functional.scaled_dot_product_attention": "Write it yourself.",
        "torch.nn.functional.multi_head_attention_forward": "Write it yourself."}
ROADS = {
    "functional": "F.scaled_dot_product_attention(q, q, q)",
    "an alias": "alias(q, q, q)",
    "getattr": "getattr(F, 'scaled_dot' + '_product_attention')(q, q, q)",
    "aten": "torch.ops.aten.scaled_dot_product_attention(q, q, q)",
    "an overload": "torch.ops.aten.scaled_dot_product_attention.default(q, q, q)",
    "the C module": "torch._C._nn.scaled_dot_product_attention(q, q, q)",
    "the kernel": "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)",
    "a module": "torch.nn.MultiheadAttention(4, 1)(q[0], q[0], q[0])",
    "a module in eval": "torch.nn.MultiheadAttention(4, 1).eval()(q[0], q[0], q[0], need_weights=False)",
}
HEAD = "import torch\nimport torch.nn.functional as F\nfrom torch.nn.functional import scaled_dot_product_attention as alias\n"


@pytest.mark.parametrize("road", ROADS)
def test_roads_to_a_banned_function(talk, road):
    t = talk(f"{HEAD}def f(q):\n    return {ROADS[road]}", forbid={"functions": SDPA})
    with pytest.raises(Raised, match=r"attention\w* is not allowed in this exercise. Write it yourself."):
        t.call("f", torch.ones(1, 1, 2, 4))
    assert len(t.parts["banned"]) == 1
    free = talk(f"{HEAD}def f(q):\n    return {ROADS[road]}")
    free.call("f", torch.ones(1, 1, 2, 4))  # the road itself is passable
    assert "banned" not in free.parts


def test_catching_the_refusal_does_not_help(talk):
    t = talk(f"{HEAD}def f(q):\n    try:\n        return F.scaled_dot_product_attention(q, q, q)\n"
             "    except BaseException:\n        return q", forbid={"functions": SDPA})
    t.call("f", torch.ones(1, 1, 2, 4))
    assert t.parts["banned"]
    t.call("f", torch.ones(1, 1, 2, 4))
    assert len(t.parts["banned"]) == 1  # of this request


def test_at_import_too(talk):
    with pytest.raises(Raised, match="not allowed"):
        talk(f"{HEAD}F.scaled_dot_product_attention(*[torch.ones(1, 1, 2, 4)] * 3)", forbid={"functions": SDPA})


def test_what_is_written_by_hand_is_allowed(talk):
    t = talk(f"{HEAD}def attention(q):\n    return (q @ q.mT).softmax(-1) @ q\ndef scaled_dot_product_attention(q): return attention(q)",
             forbid={"functions": SDPA})
    t.call("scaled_dot_product_attention", torch.ones(1, 1, 2, 4))
    assert "banned" not in t.parts


@pytest.mark.parametrize(("banned", "caught", "free"), [
    ("torch.softmax", ["softmax", "_softmax", "softmax_", "log_softmax"], ["max", "softmaxish", "softmin"]),
    ("torch.mm", ["mm"], ["addmm", "bmm", "common"]),
    ("torch.nn.functional.linear", ["linear"], ["bilinear", "linearise"]),
    ("torch.nn.functional.layer_norm", ["layer_norm", "native_layer_norm", "native_layer_norm_backward"],
     ["group_norm", "layered_norm"]),
])
def test_families_of_names(banned, caught, free):
    bans = Bans({banned: "By hand."}, {})
    assert all(bans.on(name) == f"{banned} is not allowed in this exercise. By hand." for name in caught)
    assert not any(bans.on(name) for name in free)


def test_operators_are_patterns():
    bans = Bans({}, {"*norm*": "No norms."})
    assert bans.on("native_batch_norm") and not bans.on("add")


def test_the_guard_itself():
    guard = Guard({"torch.exp": "No."}, {}, {})
    with guard:
        torch.ones(2) + 1
        for call in (lambda: torch.exp(torch.ones(2)), lambda: torch.ones(2).exp(), lambda: torch.ones(2).exp_()):
            with pytest.raises(BannedCall):
                call()
    assert len(guard.violations) == 3
    assert F.relu(torch.ones(1)).exp() > 2  # torch is as it was


MODULES = {"json": "Parse it yourself.", "email.message": "No mail.", "xml": "No XML."}


@pytest.mark.parametrize("statement", ["import json", "import json.decoder as d", "from json import loads", "import email.message",
                                       "from email import message", "from email.message import Message", "import xml.dom.minidom"])
def test_imports(talk, statement):
    t = talk(f"def f():\n    {statement}\n    return 1\n", forbid={"modules": MODULES})
    with pytest.raises(Raised, match="is not allowed in this exercise"):
        t.call("f")
    with pytest.raises(Raised, match="is not allowed"):
        talk(statement, forbid={"modules": MODULES})
    talk(statement)


@pytest.mark.parametrize("statement", ["import os", "import email", "import email.policy", "from email import policy",
                                       "import math as json"])
def test_other_imports(talk, statement):
    talk(statement, forbid={"modules": MODULES})


def test_libraries_import_what_they_like(talk):
    """The guard stands in the learner's own import statements, not in those of libraries."""
    t = talk("def f():\n    import importlib.metadata\n    return importlib.metadata.metadata('torch')['Name']",
             forbid={"modules": {"email": "No."}})
    assert t.call("f") == "torch"


def test_given_functions_may(talk):
    source = "def given():\n    import json\n    return json.dumps(1)\ndef mine():\n    import json\n    return json.dumps(1)"
    t = talk(source, forbid={"modules": MODULES, "allow_in": ["given"]})
    assert t.call("given") == "1"
    with pytest.raises(Raised, match="Parse it yourself"):
        t.call("mine")


COMPILE = {"modules": {"torch.compile": "Leave it as it is."}}


@pytest.mark.parametrize("line", ["g = lambda f: torch.compile(f)", "from torch import compile", "x = torch.compile.__doc__",
                                  "x = torch.\N{FULLWIDTH LATIN SMALL LETTER C}ompile"])
def test_what_torch_does_not_dispatch_is_banned_by_its_name(talk, line):
    with pytest.raises(Raised, match="torch.compile is not allowed in this exercise. Leave it as it is."):
        talk(f"import torch\n{line}", forbid=COMPILE)
    talk(f"import torch\n{line}")  # the line itself is sound


def test_a_given_function_may_use_a_banned_name(talk):
    source = "import torch\ndef given(f):\n    return torch.compile(f)\nclass Net:\n    compile = None\nn = Net().compile"
    talk(source, forbid=COMPILE | {"allow_in": ["given"]})
    with pytest.raises(Raised, match="Line 3: torch.compile"):
        talk(source, forbid=COMPILE)
