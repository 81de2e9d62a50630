"""Mutants: in the marked regions only, each a small change that compiles to other code, every line where it was."""

from __future__ import annotations

import ast

import pytest

from llmkata.authoring.audit.mutation.engine import Mutant, mutants


def of(body: str, before: str = "") -> list[Mutant]:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return mutants(f"import torch\n\n\ndef f(x, y, n):\n{before}    # BEGIN SOLUTION task 3: f\n{lines}\n    # END SOLUTION\n")


def changes(body: str, operator: str = "") -> set[str]:
    return {m.change for m in of(body) if operator in ("", m.operator)}


@pytest.mark.parametrize(
    ("body", "operator", "change"),
    [
        ("return x < y", "comparison", "x < y -> x <= y"),
        ("return x is None", "comparison", "x is None -> x is not None"),
        ("return x + y", "arithmetic", "x + y -> x - y"),
        ("x *= y\nreturn x", "arithmetic", "x *= y -> x /= y"),
        ("x += y\nreturn x", "accumulation", "x += y -> x = y"),
        ("return x + y", "dropped term", "x + y -> x"),
        ("return x + y", "dropped term", "x + y -> y"),
        ("return x and y", "connective", "x and y -> x or y"),
        ("return x and y", "dropped term", "x and y -> y"),
        ("return ~x", "negation", "~x -> x"),
        ("return x if n else y", "condition", "x if n else y -> y"),
        ("return [i for i in x if i]", "condition", "[i for i in x if i] -> [i for i in x]"),
        ("return x.sum(-1)", "constant", "-1 -> -2"),
        ("return x.sum(-1)", "constant", "-1 -> 0"),
        ("return x * 0.5", "constant", "0.5 -> 1.0"),
        ("return x[:n]", "bound", ":n -> :n + 1"),
        ("return list(range(n))", "bound", "range(n) -> range(n - 1)"),
        ("return x.sum(-1, keepdim=True)", "keyword", "x.sum(-1, keepdim=True) -> x.sum(-1)"),
        ("return max(n, 1)", "extremum", "max(n, 1) -> n"),
        ("x.append(y)\nreturn x", "statement", "x.append(y) -> pass"),
        ("x[n] = y\nreturn x", "statement", "x[n] = y -> pass"),
        ("with torch.no_grad():\n    return x", "statement", "with torch.no_grad(): return x -> if True: return x"),
        ("return x.amax(n)", "swapped function", "x.amax(n) -> x.amin(n)"),
        ("return x.to(torch.float32)", "dtype", "torch.float32 -> torch.float64"),
        ("return x.detach()", "call left out", "x.detach() -> x"),
        ("return torch.exp(x)", "call left out", "torch.exp(x) -> x"),
        ("return x.mT", "call left out", "x.mT -> x"),
        ("return x @ y", "detached", "x @ y -> x.detach() @ y"),
        ("return x.mul_(y)", "in place", "x.mul_(y) -> x.mul(y)"),
        ("return x.masked_fill(y, n)", "in place", "x.masked_fill(y, n) -> x.masked_fill_(y, n)"),
        ("x = x + y\nreturn x", "in place", "x = x + y -> x += y"),
    ],
)
def test_operators(body: str, operator: str, change: str) -> None:
    assert change in changes(body, operator)


def test_a_guard_is_removed() -> None:
    found = changes("if n < 0:\n    raise ValueError('n')\nreturn x")
    assert "if n < 0: raise ValueError('n') -> if False: raise ValueError('n')" in found
    assert "raise ValueError('n') -> raise RuntimeError('n')" in found


def test_only_marked_regions_change() -> None:
    source = "def g(x):\n    return x + 1\n\n\ndef f(x):\n    # BEGIN SOLUTION task 2: f\n    return x - 1\n    # END SOLUTION\n"
    found = mutants(source)
    assert found
    assert {m.where for m in found} == {"f"}
    assert {m.task for m in found} == {2}
    assert all("return x + 1" in m.source for m in found)


def test_hidden_helpers_change_too() -> None:
    source = "# BEGIN HIDDEN\ndef g(x):\n    return x - 1\n# END HIDDEN\n\n\ndef f(x):\n    # BEGIN SOLUTION task 1: f\n    return g(x)\n    # END SOLUTION\n"
    assert {(m.where, m.task) for m in mutants(source)} == {("g", 0)}


def test_nothing_that_only_people_read_is_changed() -> None:
    body = 'if n:\n    raise ValueError(f"{n + 1} is too many of 3")\nreturn "a" + f"{n - 1}"'
    assert {m.operator for m in of(body)} <= {"condition", "statement", "error"}
    source = "def f(x: int = 3) -> 'y':\n    # BEGIN SOLUTION task 1: f\n    def g(y: 4 + 5): return y\n    return g(x)\n    # END SOLUTION\n"
    assert mutants(source) == []


def test_lines_stay_where_they_are() -> None:
    body = "z = (x +\n     y)\nif n:\n    z = z - 1\nreturn z"
    source_lines = None
    for m in of(body):
        tree = ast.parse(m.source)
        ends = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Return)]
        source_lines = source_lines or ends
        assert ends == source_lines, m.change


def test_equal_code_is_no_mutant() -> None:
    assert not any(m.change.endswith("-> y = 1 * 1") for m in of("y = 1 * 1\nreturn y"))  # folded by the compiler
    texts = [m.source for m in of("return x.sum(-1) + y.sum(-1)")]
    assert len(texts) == len(set(texts))
    # The keyword device is lost on one machine only; strict= shows in faulty code only.
    assert not changes("return torch.zeros(n, device=x.device)", "keyword")
    assert not changes("return list(zip(x, y, strict=True))", "keyword")


def test_a_mutant_is_applied_once() -> None:
    """Negative control: the same text twice in a line gives two mutants that differ."""
    found = [m for m in of("return (x - n) * (x - n)") if m.change == "x - n -> x + n"]
    assert len(found) == 2
    assert found[0].source != found[1].source


AUTOGRAD = """
import torch


def forward_pass(x, w):
    # BEGIN SOLUTION task 1: f
    return x @ w
    # END SOLUTION


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        return forward_pass(x, w)


def product(x, w):
    # BEGIN SOLUTION task 1: f
    return Product.apply(x @ w, w)
    # END SOLUTION
"""


def test_nothing_is_detached_where_autograd_does_not_look() -> None:
    assert {m.where for m in mutants(AUTOGRAD) if m.operator == "detached"} == {"product"}
    shared = AUTOGRAD.replace("Product.apply(x @ w, w)", "Product.apply(forward_pass(x, w), w)")
    assert {m.where for m in mutants(shared) if m.operator == "detached"} == {"forward_pass"}  # it has a second caller


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return x.exp()", True),  # an argument
        ("z = x + y\nreturn z.exp()", False),  # nobody sees it again
        ("z = x + y\nreturn z.exp() + z", True),
        ("return n.x.exp()", True),
        ("return (x + y).exp()", False),
    ],
)
def test_written_in_place_where_somebody_may_look_again(body: str, expected: bool) -> None:
    assert bool(changes(body, "in place")) is expected
