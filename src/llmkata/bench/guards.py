"""Arguments that torch's CPU kernels trust and a hand-made program could get wrong.

A kernel that is meant to be called by autograd only may use its index or shape arguments unchecked and then reads or
writes outside of its memory. A guard checks them first. It takes the bound arguments and returns whether they fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

Guard = Callable[[dict[str, Any]], bool]


def _within(index: Tensor, bound: int, ignored: int | None = None) -> bool:
    valid = (index >= 0) & (index < bound)
    return bool((valid if ignored is None else valid | (index == ignored)).all())


def _embedding_backward(a: dict[str, Any]) -> bool:
    indices = a["indices"]
    return a["grad_output"].shape[:-1] == indices.shape and _within(indices, a["num_weights"])


def _nll_backward(a: dict[str, Any]) -> bool:
    scores = a["self"]
    classes = scores.shape[1 if scores.dim() > 1 else 0]
    return a["target"].numel() * classes == scores.numel() and _within(a["target"], classes, a["ignore_index"])


def _pool_backward(spatial: int) -> Guard:
    return lambda a: a["grad_output"].shape[:-spatial] == a["self"].shape[:-spatial]


def _max_pool_backward(a: dict[str, Any]) -> bool:
    plane = math.prod(a["self"].shape[-2:])
    return (_pool_backward(2)(a) and a["indices"].shape == a["grad_output"].shape
            and _within(a["indices"], plane))


def _layer_norm_backward(a: dict[str, Any]) -> bool:
    source = a["input"]
    rows = math.prod(source.shape[: source.dim() - len(a["normalized_shape"])])
    return a["grad_out"].shape == source.shape and a["mean"].numel() == a["rstd"].numel() == rows


def _per_channel(a: dict[str, Any], *names: str) -> bool:
    return all(a.get(name) is not None and a[name].numel() == a["input"].shape[1] for name in names)


def _optional_per_channel(a: dict[str, Any], *names: str) -> bool:
    return all(a.get(name) is None or _per_channel(a, name) for name in names)


def _batch_norm(a: dict[str, Any]) -> bool:
    return (a["input"].dim() > 1 and (bool(a["training"]) or _per_channel(a, "running_mean", "running_var"))
            and _optional_per_channel(a, "weight", "bias", "running_mean", "running_var"))


def _batch_norm_backward(a: dict[str, Any]) -> bool:
    used = ("save_mean", "save_invstd") if a["train"] else ("running_mean", "running_var")
    return (a["input"].dim() > 1 and a["grad_out"].shape == a["input"].shape and _per_channel(a, *used)
            and _optional_per_channel(a, "weight", "running_mean", "running_var"))


def _gelu_backward(a: dict[str, Any]) -> bool:
    return a["grad_output"].shape == a["self"].shape


def _attention(a: dict[str, Any]) -> bool:
    query, key, value = a["query"], a["key"], a["value"]
    return (query.dim() == key.dim() == value.dim() == 4 and key.shape[:3] == value.shape[:3]
            and query.shape[0] == key.shape[0] and query.shape[3] == key.shape[3] and key.shape[1] > 0
            and query.shape[1] % key.shape[1] == 0)


def _attention_backward(a: dict[str, Any]) -> bool:
    query, out = a["query"], a["out"]
    return (_attention(a) and a["grad_out"].shape == out.shape == (*query.shape[:3], a["value"].shape[3])
            and a["logsumexp"].numel() == math.prod(query.shape[:3]))


def _real_fourier(a: dict[str, Any]) -> bool:
    return len(a["dim"]) > 0 and a["self"].shape[a["dim"][-1]] == a["last_dim_size"] // 2 + 1


def _pivots(a: dict[str, Any]) -> bool:
    size = a["LU"].shape[-1]
    return a["pivots"].shape == a["LU"].shape[:-1] and _within(a["pivots"] - 1, size)


def _same_noise(a: dict[str, Any]) -> bool:
    return a["noise"].shape == a["self"].shape


GUARDS: dict[str, Guard] = {
    "embedding_dense_backward": _embedding_backward,
    "nll_loss_backward": _nll_backward,
    "nll_loss2d_backward": _nll_backward,
    "avg_pool2d_backward": _pool_backward(2),
    "avg_pool3d_backward": _pool_backward(3),
    "_adaptive_avg_pool2d_backward": _pool_backward(2),
    "_adaptive_avg_pool3d_backward": _pool_backward(3),
    "adaptive_avg_pool3d_backward": _pool_backward(3),
    "max_pool2d_with_indices_backward": _max_pool_backward,
    "adaptive_max_pool2d_backward": _max_pool_backward,
    "native_layer_norm_backward": _layer_norm_backward,
    "gelu_backward": _gelu_backward,
    "native_batch_norm": _batch_norm,
    "native_batch_norm_backward": _batch_norm_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention_backward,
    "linalg_lu_solve": _pivots,
    "_fft_c2r": _real_fourier,
    "rrelu_with_noise": _same_noise,
    "rrelu_with_noise_functional": _same_noise,
    "rrelu_with_noise_backward": _same_noise,
}
