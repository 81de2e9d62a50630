"""Oracle of 0.3: products of ones, ledgers of kernels over real arrays, exhaustive search, NumPy in float64."""

from __future__ import annotations

import numpy as np


def matmul_flops(a_shape, b_shape):
    """A product of ones counts multiply-adds: each element of the result is the number of terms in it."""
    return 2 * int((np.ones(a_shape) @ np.ones(b_shape)).sum())


class Ledger:
    """Runs kernels on real arrays and notes what each reads and writes: arrays at their own size."""

    def __init__(self, itemsize):
        self.dtype = {1: "int8", 2: "float16", 4: "float32", 8: "float64"}[itemsize]
        self.flops = self.read = self.written = 0

    def array(self, *shape):
        return np.ones(shape, self.dtype)

    def kernel(self, out_shape, *inputs, flops=0):
        out = self.array(*out_shape)
        self.flops += flops
        self.read += sum(x.nbytes for x in inputs)
        self.written += out.nbytes
        return out

    @property
    def cost(self):
        return self.flops, self.read, self.written


def cost_matmul(a_shape, b_shape, itemsize):
    ledger = Ledger(itemsize)
    a, b = ledger.array(*a_shape), ledger.array(*b_shape)
    ledger.kernel(np.matmul(a, b).shape, a, b, flops=matmul_flops(a_shape, b_shape))
    return ledger.cost


def cost_elementwise(in_shapes, itemsize, flops_per_element=1):
    ledger = Ledger(itemsize)
    inputs = [ledger.array(*shape) for shape in in_shapes]
    shape = sum(inputs).shape
    ledger.kernel(shape, *inputs, flops=flops_per_element * int(np.ones(shape).sum()))
    return ledger.cost


def cost_softmax(shape, itemsize, fused):
    ledger = Ledger(itemsize)
    x = ledger.array(*shape)
    if fused:
        ledger.kernel(shape, x, flops=5 * x.size)
        return ledger.cost
    rows = (*shape[:-1], 1)
    top = ledger.kernel(rows, x, flops=x.size)
    shifted = ledger.kernel(shape, x, top, flops=x.size)
    weights = ledger.kernel(shape, shifted, flops=x.size)
    total = ledger.kernel(rows, weights, flops=x.size)
    ledger.kernel(shape, weights, total, flops=x.size)
    return ledger.cost


def cost_attention(B, H, T, S, d, itemsize, fused):
    ledger = Ledger(itemsize)
    q, k, v = ledger.array(B, H, T, d), ledger.array(B, H, S, d), ledger.array(B, H, S, d)
    products = [matmul_flops(q.shape, (B, H, d, S)), matmul_flops((B, H, T, S), v.shape)]
    if fused:
        ledger.kernel(q.shape, q, k, v, flops=sum(products) + 5 * B * H * T * S)
        return ledger.cost
    scores = ledger.kernel((B, H, T, S), q, k, flops=products[0])
    weights = ledger.kernel(scores.shape, scores, flops=5 * scores.size)
    ledger.kernel(q.shape, weights, v, flops=products[1])
    return ledger.cost


def orders(first, last):
    """Every order of multiplying matrices first ... last: those with the fewest matrices on the left first."""
    if first == last:
        return [first]
    return [
        (left, right)
        for split in range(first, last)
        for left in orders(first, split)
        for right in orders(split + 1, last)
    ]


def tree_flops(dims, tree):
    """(FLOPs, rows, columns) of an order."""
    if isinstance(tree, int):
        return 0, dims[tree], dims[tree + 1]
    (left, n, k), (right, _, m) = tree_flops(dims, tree[0]), tree_flops(dims, tree[1])
    return left + right + 2 * n * k * m, n, m


def best_chain(dims):
    """Exhaustive: the first of the cheapest orders. `orders` lists small left factors first, at every node."""
    every = orders(0, len(dims) - 2)
    costs = [tree_flops(dims, tree)[0] for tree in every]
    return min(costs), every[costs.index(min(costs))]


def softmax(x):
    x = np.asarray(x, np.float64)
    weights = np.exp(x - x.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def layernorm(x, eps=1e-5):
    x = np.asarray(x, np.float64)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)


def attention(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    return softmax(np.einsum("...td,...sd->...ts", q, k) / np.sqrt(q.shape[-1])) @ v
