"""Gradients for given cotangents equal those of autograd, wherever outputs nest and whatever is unused."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from llmkata.inside.differentiate import vjp

from .conftest import Raised


def parts():
    return torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3.0, 4.0], dtype=torch.float64)


def test_a_product():
    x, w = parts()
    out, grads, by_name = vjp(lambda x, w: x * w, (x, w), {}, (0, 1), torch.tensor([1.0, 10.0]), None)
    assert out.tolist() == [3.0, 8.0] and [g.tolist() for g in grads] == [[3.0, 40.0], [1.0, 20.0]] and by_name == {}
    assert not x.requires_grad and x.grad is None


def test_only_what_is_asked_for():
    x, w = parts()
    _, grads, _ = vjp(lambda x, w: x * w, (x, w), {}, (1,), torch.ones(2), None)
    assert [g.tolist() for g in grads] == [[1.0, 2.0]]


def test_nested_outputs_and_gaps():
    x, w = parts()

    def f(x, w, *, scale):
        return {"a": (x * scale, [w * 2, x.detach()]), "b": 5}

    cotangents = {"a": (torch.ones(2), [None, torch.ones(2)])}
    _, grads, _ = vjp(f, (x, w), {"scale": 3.0}, (0, 1), cotangents, None)
    assert grads[0].tolist() == [3.0, 3.0] and grads[1] is None


def test_nothing_flows():
    x, w = parts()
    _, grads, _ = vjp(lambda x, w: x.detach() + 1, (x, w), {}, (0, 1), torch.ones(2), None)
    assert grads == [None, None]


def test_parameters():
    module = torch.nn.Linear(2, 1).double()
    module.bias.requires_grad_(False)
    x, _ = parts()
    _, grads, by_name = vjp(module, (x,), {}, (0,), torch.ones(1), module)
    assert torch.equal(grads[0], module.weight[0]) and by_name.keys() == {"weight"}
    assert by_name["weight"].tolist() == [[1.0, 2.0]] and module.weight.grad is None


def test_cotangents_take_the_dtype_of_the_output():
    x = torch.ones(2, dtype=torch.float16)
    _, grads, _ = vjp(lambda x: x * 2, (x,), {}, (0,), torch.ones(2, dtype=torch.float64), None)
    assert grads[0].dtype == torch.float16


def test_under_no_grad():
    with torch.no_grad():
        _, grads, _ = vjp(lambda x: x * 2, (torch.ones(2),), {}, (0,), torch.ones(2), None)
    assert grads[0].tolist() == [2.0, 2.0]


def test_by_request(talk):
    t = talk('''
        import torch
        class Scale(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.w = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
            def forward(self, x): return x * self.w
        def f(x): return x ** 2
        def broken(x): raise ValueError("no")
    ''')
    request = {"args": (torch.ones(2),), "kwargs": {}, "wrt": [0], "cotangents": torch.ones(2)}
    out, grads = t("vjp", target=None, path="f", parameters=False, **request)
    assert out.tolist() == [1.0, 1.0] and grads[0].tolist() == [2.0, 2.0]
    out, grads, by_name = t("vjp", target=t.call("Scale"), path="", parameters=True, **request)
    assert grads[0].tolist() == [2.0, 3.0] and by_name["w"].tolist() == [1.0, 1.0]
    with pytest.raises(Raised, match="ValueError: no"):
        t("vjp", target=None, path="broken", parameters=False, **request)


@pytest.mark.parametrize("cotangent", [torch.ones(3), torch.ones(())])
def test_cotangents_that_do_not_fit_are_refused_as_autograd_refuses_them(cotangent):
    # The engine alone would take the second for one that is broadcast.
    x, w = parts()
    with pytest.raises(RuntimeError, match="Mismatch in shape: grad_output"):
        vjp(lambda x, w: x * w, (x, w), {}, (0, 1), cotangent, None)


_COLD = """
import sys, torch
from llmkata.inside.differentiate import vjp
x = torch.ones(2)
{}
print("sympy" in sys.modules)
"""


@pytest.mark.parametrize(("gradient", "brings"), [
    ("vjp(lambda x: x * x, (x,), {}, (0,), x, None)", False),
    ("y = torch.ones(2, requires_grad=True); torch.autograd.grad(y * y, y, x)", True),
])  # fmt: skip
def test_a_cold_start_does_without_sympy(gradient, brings):
    done = subprocess.run([sys.executable, "-c", _COLD.format(gradient)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(brings)
