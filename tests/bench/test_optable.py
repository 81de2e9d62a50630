"""Every aten operator is priced or refused, and the prices are those of theory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llmkata.bench.optable import TABLE, UnknownOperator, base_name, operator
from llmkata.bench.refused import REFUSED
from llmkata.bench.replay import run
from llmkata.inside.recorder import Recorder

OVERLOADS = {name.removeprefix("aten::") for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
REGISTERED = {name.partition(".")[0] for name in OVERLOADS}


def test_every_operator_of_aten_is_in_the_table_or_refused() -> None:
    assert len(REGISTERED) > 1500
    assert not {name for name in REGISTERED if base_name(name) not in TABLE | REFUSED}


def test_none_is_in_both() -> None:
    assert not TABLE.keys() & REFUSED.keys()


def test_no_name_is_stale() -> None:
    assert not {name for name in TABLE | REFUSED if name not in REGISTERED and name + "_" not in REGISTERED}


def test_overloads_resolve_unless_refused_or_composite() -> None:
    """Composites are taken apart by the recorder; a program that names one was made by hand."""
    resolved = 0
    for name in sorted(OVERLOADS):
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", "CompositeImplicitAutograd")
        full = name if "." in name else f"{name}.default"
        if base_name(name.partition(".")[0]) in REFUSED or composite:
            with pytest.raises(UnknownOperator):
                operator(full)
        else:
            assert operator(full).overload.name() == f"aten::{name}"
            resolved += 1
    assert resolved > 1000


@pytest.mark.parametrize("name", ["no_such_operator.default", "mm.no_such_overload", "mm", "", ".", "__class__.default",
                                  "mm.__class__", "_dir.default", "mul.left_t", "gcd.int"])
def test_other_names_reach_nothing(name) -> None:
    with pytest.raises(UnknownOperator):
        operator(name)


# ---- prices ---------------------------------------------------------------------------------------------------------

M, K, N, B = 3, 5, 7, 2
rand = torch.randn

PRODUCTS = {
    "mm": (lambda: rand(M, K) @ rand(K, N), 2 * M * K * N),
    "mm out": (lambda: torch.mm(rand(M, K), rand(K, N), out=torch.empty(M, N)), 2 * M * K * N),
    "addmm": (lambda: torch.addmm(rand(M, N), rand(M, K), rand(K, N)), 2 * M * K * N),
    "addmm_": (lambda: rand(M, N).addmm_(rand(M, K), rand(K, N)), 2 * M * K * N),
    "bmm": (lambda: rand(B, M, K) @ rand(B, K, N), 2 * B * M * K * N),
    "baddbmm": (lambda: torch.baddbmm(rand(B, M, N), rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "baddbmm_": (lambda: rand(B, M, N).baddbmm_(rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "addbmm": (lambda: torch.addbmm(rand(M, N), rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "addbmm_": (lambda: rand(M, N).addbmm_(rand(B, M, K), rand(B, K, N)), 2 * B * M * K * N),
    "mv": (lambda: rand(M, K) @ rand(K), 2 * M * K),
    "addmv": (lambda: torch.addmv(rand(M), rand(M, K), rand(K)), 2 * M * K),
    "addmv_": (lambda: rand(M).addmv_(rand(M, K), rand(K)), 2 * M * K),
    "dot": (lambda: rand(K) @ rand(K), 2 * K),
    "vdot": (lambda: torch.vdot(rand(K), rand(K)), 2 * K),
    "addr": (lambda: torch.addr(rand(M, N), rand(M), rand(N)), 2 * M * N),
    "complex": (lambda: torch.randn(M, K, dtype=torch.cfloat) @ torch.randn(K, N, dtype=torch.cfloat), 8 * M * K * N),
    "int": (lambda: torch._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
            2 * 32 * 16 * 8),
    "einsum": (lambda: torch.einsum("bmk,kn->bmn", rand(B, M, K), rand(K, N)), 2 * B * M * K * N),
    "bilinear": (lambda: F.bilinear(rand(B, M), rand(B, K), rand(N, M, K)), 2 * B * M * K * N),
    "cdist": (lambda: torch.cdist(rand(B, M, K), rand(B, N, K)), 2 * B * M * K * N),
    "cdist large": (lambda: torch.cdist(rand(30, K), rand(30, K)), 2 * 30 * K * 30),
    "conv1d": (lambda: F.conv1d(rand(B, M, 9), rand(N, M, 3)), 2 * B * N * 7 * M * 3),
    "conv2d groups": (lambda: F.conv2d(rand(B, 4, 6, 6), rand(8, 2, 3, 3), groups=2), 2 * B * 8 * 16 * 2 * 9),
    "conv transposed": (lambda: F.conv_transpose1d(rand(B, M, 9), rand(M, N, 3)), 2 * B * M * 9 * N * 3),
    "attention": (lambda: F.scaled_dot_product_attention(rand(B, 1, M, K), rand(B, 1, N, K), rand(B, 1, N, K)),
                  2 * B * M * N * 2 * K),
    "inverse": (lambda: torch.linalg.inv(torch.eye(K) * 2), 2 * K**3),
    "cholesky": (lambda: torch.linalg.cholesky(torch.eye(6)), 6**3 // 3),
    "triangular solve": (lambda: torch.linalg.solve_triangular(torch.eye(K), rand(K, N), upper=False), K * K * N),
    "symmetric eigenvalues": (lambda: torch.linalg.eigh(torch.eye(K)), 9 * K**3),
    "fft": (lambda: torch.fft.fft(torch.randn(B, 8, dtype=torch.cfloat)), 5 * B * 8 * 3),
}


def counted(work) -> dict:
    recorder = Recorder(__file__)
    with recorder, torch.no_grad():
        work()
    return run(recorder.finish(), {})["total"]


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_cost_what_theory_says(name) -> None:
    work, flops = PRODUCTS[name]
    total = counted(work)
    assert total["flops"] == flops and total["matmul_calls"] >= 1


F4 = 4  # bytes of a float32

MOVES = {
    "clone": (lambda: torch.zeros(M, N).clone(), M * N * F4),
    "copy_": (lambda: torch.zeros(M, N).copy_(torch.zeros(N)), M * N * F4),
    "cast": (lambda: torch.zeros(M, N).double(), M * N * 8),
    "cat": (lambda: torch.cat([torch.zeros(M, N), torch.zeros(K, N)]), (M + K) * N * F4),
    "stack": (lambda: torch.stack([torch.zeros(M), torch.zeros(M)]), 2 * M * F4),
    "repeat": (lambda: torch.zeros(M).repeat(4, 1), 4 * M * F4),
    "embedding": (lambda: F.embedding(torch.zeros(B, M, dtype=torch.long), torch.zeros(9, N)), B * M * N * F4),
    "index": (lambda: torch.zeros(9, N)[torch.zeros(M, dtype=torch.long)], M * N * F4),
    "index_put_": (lambda: torch.zeros(9, N).index_put_((torch.zeros(M, dtype=torch.long),), torch.ones(N)),
                   M * N * F4),
    "index_put_ columns": (lambda: torch.zeros(9, N).__setitem__(
        (slice(None), torch.zeros(M, dtype=torch.long)), torch.ones(9, M)), 9 * M * F4),
    "index_put_ mask": (lambda: torch.zeros(3, 3).index_put_((torch.eye(3).bool(),), torch.ones(())), 3 * F4 + 9),  # the mask itself is a cast of nine elements to one byte each
    "index_add_": (lambda: torch.zeros(9, N).index_add_(0, torch.zeros(M, dtype=torch.long), torch.ones(M, N)),
                   M * N * F4),
    "index_copy": (lambda: torch.zeros(9, N).index_copy(0, torch.zeros(M, dtype=torch.long), torch.ones(M, N)),
                   9 * N * F4),
    "gather": (lambda: torch.zeros(9, N).gather(0, torch.zeros(M, N, dtype=torch.long)), M * N * F4),
    "scatter_": (lambda: torch.zeros(9, N).scatter_(0, torch.zeros(M, N, dtype=torch.long), 1.0), M * N * F4),
    "slice assignment": (lambda: torch.zeros(9, N)[2:4].fill_(1), 0),
}


@pytest.mark.parametrize("name", MOVES)
def test_moves_cost_the_bytes_they_write(name) -> None:
    work, moved = MOVES[name]
    total = counted(work)
    assert total["bytes_moved"] == moved and total["flops"] == 0


POINTWISE = {
    "broadcast": (lambda: torch.zeros(M, 1) * torch.zeros(N), M * N),
    "reduction": (lambda: torch.zeros(M, N).sum(), M * N),
    "expanded reduction": (lambda: torch.zeros(1).expand(M, N).sum(), M * N),
    "in place": (lambda: torch.zeros(M, N).exp_(), M * N),
    "out": (lambda: torch.add(torch.zeros(M, N), 1, out=torch.empty(M, N)), M * N),
    "sort": (lambda: torch.zeros(M, N).sort(), 2 * M * N),  # values and indices
    "list": (lambda: torch._foreach_add([torch.zeros(M), torch.zeros(N)], 1), M + N),
    "scatter that multiplies": (lambda: torch.ones(9).scatter_(0, torch.arange(4), torch.ones(4), reduce="multiply"), 4),
    "creation": (lambda: torch.zeros(M, N), 0),
    "view": (lambda: torch.zeros(M, N).t()[1:].unsqueeze(0).expand(9, -1, -1), 0),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_arithmetic_costs_elements(name) -> None:
    work, elements = POINTWISE[name]
    assert counted(work)["pointwise"] == elements
