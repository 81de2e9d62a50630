"""What an operator costs: matmul FLOPs, matmul calls, pointwise elements, bytes moved.

A price is a function of the bound arguments (by schema name, tensors as tensors) and of the results. A multiply-add is
two FLOPs; a complex one is eight. Attention gets no credit for hidden (causal) blocks: an operator is charged what its
shapes say. Dense factorisations are charged the leading terms of Golub & Van Loan, *Matrix Computations* (4th ed.),
as FLOPs, so that a solve is no cheap way round a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Cost(NamedTuple):
    """Cost of one operator: FLOPs of matmul-like work, number of such calls, elements, bytes written by moves."""

    flops: int = 0
    calls: int = 0
    pointwise: int = 0
    moved: int = 0


Arguments = dict[str, Any]
Price = Callable[[Arguments, list[Tensor]], Cost]


def elements(values: Iterable[Any]) -> int:
    """Elements of a list of tensors (None and numbers count nothing)."""
    return sum(value.numel() for value in values if isinstance(value, Tensor))


def pointwise(a: Arguments, results: list[Tensor]) -> Cost:
    """The larger of the largest input's and the outputs' element counts; a list of tensors is one input."""
    most = elements(results)
    for value in a.values():
        if isinstance(value, Tensor):
            most = max(most, value.numel())
        elif isinstance(value, list):
            most = max(most, elements(value))
    return Cost(pointwise=most, moved=_spread(a, results))


def _spread(a: Arguments, results: list[Tensor]) -> int:
    """Bytes of a floating result with more elements than any input has different ones: multiplied by one, what was expanded
    is copied as by ``expand(...).contiguous()``."""
    if len(results) != 1 or not results[0].dtype.is_floating_point:
        return 0
    inputs = [v for name, v in a.items() if isinstance(v, Tensor) and not name.startswith("out")]
    largest = max((math.prod(n for n, step in zip(v.shape, v.stride()) if step) for v in inputs), default=0)
    return results[0].numel() * results[0].element_size() if results[0].numel() > largest > 1 else 0


def free(a: Arguments, results: list[Tensor]) -> Cost:
    """Creating or filling memory, reading one number: no arithmetic. Allocation is counted apart."""
    return Cost()


# ---- moves ---------------------------------------------------------------------------------------------------------


def bytes_written(a: Arguments, results: list[Tensor]) -> Cost:
    """The bytes of the results."""
    return Cost(moved=sum(r.numel() * r.element_size() for r in results))


def _region(elements_of: Callable[[Arguments], int]) -> Price:
    """In place only a region of ``self`` is written; the functional form copies ``self`` whole first.

    The forms that multiply or take extrema on the way (``reduce=``) are arithmetic as well.
    """
    def price(a: Arguments, results: list[Tensor]) -> Cost:
        target, written = a["self"], elements_of(a)
        moved = written * target.element_size()
        if results and results[0].data_ptr() != target.data_ptr():
            moved = max(moved, results[0].numel() * results[0].element_size())
        return Cost(moved=moved, pointwise=written if "reduce" in a else 0)
    return price


def _indexed_elements(a: Arguments) -> int:
    """Elements that ``self[indices] = values`` writes; a boolean mask stands for its True entries."""
    shapes, kept, dim = [], 1, 0
    for index in a["indices"]:
        if index is None:
            kept *= a["self"].shape[dim]
            dim += 1
        elif index.dtype in (torch.bool, torch.uint8):
            shapes.append((int(index.count_nonzero()),))
            dim += index.dim()
        else:
            shapes.append(tuple(index.shape))
            dim += 1
    kept *= math.prod(a["self"].shape[dim:])
    return kept * math.prod(torch.broadcast_shapes(*shapes)) if shapes else kept


def _row_elements(a: Arguments) -> int:
    target = a["self"]
    rows = target.shape[a["dim"]] if target.dim() else 1
    return a["index"].numel() * (target.numel() // rows if rows else 0)


index_put = _region(_indexed_elements)
index_rows = _region(_row_elements)
scatter = _region(lambda a: a["index"].numel())

# ---- products ------------------------------------------------------------------------------------------------------


def _product(multiply_adds: int, like: Tensor) -> Cost:
    return Cost(flops=(8 if like.dtype.is_complex else 2) * multiply_adds, calls=1)


def matrix_product(left: str, right: str) -> Price:
    """(..., m, k) @ (..., k, n), (..., m, k) @ (k) and (k) . (k): every element of ``left`` meets n of ``right``."""
    def price(a: Arguments, results: list[Tensor]) -> Cost:
        columns = a[right].shape[-1] if a[right].dim() > 1 else 1
        return _product(a[left].numel() * columns, a[left])
    return price


def outer_product(a: Arguments, results: list[Tensor]) -> Cost:
    return _product(a["vec1"].numel() * a["vec2"].numel(), a["vec1"])


def int8_weight_product(a: Arguments, results: list[Tensor]) -> Cost:
    """``_weight_int8pack_mm``: (m, k) times the transpose of (n, k)."""
    return _product(a["self"].numel() * a["mat2"].shape[0], a["self"])


def _convolution_multiply_adds(source: Tensor, weight: Tensor, output: Tensor, transposed: bool) -> int:
    # weight is (C_out, C_in / groups, *kernel), transposed: (C_in, C_out / groups, *kernel)
    return (source if transposed else output).numel() * math.prod(weight.shape[1:])


def convolution(a: Arguments, results: list[Tensor]) -> Cost:
    return _product(_convolution_multiply_adds(a["input"], a["weight"], results[0], a["transposed"]), a["input"])


def convolution_backward(a: Arguments, results: list[Tensor]) -> Cost:
    """Each of the two gradients (input, weight) costs what the forward pass does."""
    forward = _convolution_multiply_adds(a["input"], a["weight"], a["grad_output"], a["transposed"])
    wanted = sum(bool(flag) for flag in a["output_mask"][:2])
    return _product(forward * wanted, a["input"])


def _attention_multiply_adds(a: Arguments) -> int:
    query, key, value = a["query"], a["key"], a["value"]
    *batch, length, dim = query.shape
    return math.prod(batch) * length * key.shape[-2] * (dim + value.shape[-1])


def attention(a: Arguments, results: list[Tensor]) -> Cost:
    """2 B H Tq Tk (D + Dv): the products of queries with keys and of weights with values."""
    return _product(_attention_multiply_adds(a), a["query"])


def attention_backward(a: Arguments, results: list[Tensor]) -> Cost:
    """2.5 times the forward pass: the scores again, dV, dP, dQ and dK."""
    forward = _product(_attention_multiply_adds(a), a["query"]).flops
    return Cost(flops=forward * 5 // 2, calls=1)


def trilinear(a: Arguments, results: list[Tensor]) -> Cost:
    """``_trilinear`` (F.bilinear): the sum over the broadcast product of three tensors."""
    shapes = []
    for number in ("1", "2", "3"):
        shape = list(a["i" + number].shape)
        for dim in sorted(a["expand" + number]):
            shape.insert(dim, 1)
        shapes.append(shape)
    return _product(math.prod(torch.broadcast_shapes(*shapes)), a["i1"])


def distances(a: Arguments, results: list[Tensor]) -> Cost:
    """All pairwise distances of (..., p, m) and (..., r, m): as much as the product they can be made to compute."""
    return _product(results[0].numel() * a["x1"].shape[-1], a["x1"])


# ---- factorisations ------------------------------------------------------------------------------------------------


def factorisation(matrix: str, flops: Callable[[int, int, int], float], right: str | None = None) -> Price:
    """Price by (m, n, k): ``matrix`` is (..., m, n), ``right`` brings k right-hand sides (1 for vectors)."""
    def price(a: Arguments, results: list[Tensor]) -> Cost:
        *batch, m, n = a[matrix].shape
        k = 1
        if right is not None:
            k = max(1, a[right].numel() // max(1, math.prod(batch) * m))
        factor = 4 if a[matrix].dtype.is_complex else 1
        return Cost(flops=factor * round(math.prod(batch) * flops(m, n, k)), calls=1)
    return price


def fourier(a: Arguments, results: list[Tensor]) -> Cost:
    """5 N log2 N per transform of N points, the textbook count of a radix-2 FFT."""
    whole = max([a["self"], *results], key=lambda t: t.numel())
    points = math.prod(whole.shape[dim] for dim in a["dim"])
    return Cost(flops=round(5 * whole.numel() * math.log2(max(2, points))), calls=1)
