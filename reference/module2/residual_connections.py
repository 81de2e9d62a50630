"""Oracle for residual connections: TinyLM as a function of its weights in float64, paths by enumeration, plain
loops."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def rms_norm(x: Tensor, weight: Tensor | None) -> Tensor:
    return x if weight is None else F.rms_norm(x, x.shape[-1:], weight, 1e-6)


def branch(state: State, n: int, x: Tensor, n_heads: int = 2) -> Tensor:
    """The branch of sublayer n: attention for even n, MLP for odd n, with the norm in front if there is one."""
    name = f"sublayers.{n}.branch"
    x = rms_norm(x, state.get(f"{name}.0.weight"))
    if n % 2:
        return F.gelu(x @ state[f"{name}.1.weight"].T) @ state[f"{name}.3.weight"].T
    length, d = x.shape[1:]
    q, k, v = (x @ w.T for w in state[f"{name}.1.qkv_proj.weight"].split(d))
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    heads = []
    for h in range(n_heads):
        part = slice(h * d // n_heads, (h + 1) * d // n_heads)
        scores = q[..., part] @ k[..., part].mT / math.sqrt(d // n_heads)
        heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., part])
    return torch.cat(heads, -1) @ state[f"{name}.1.out_proj.weight"].T


def streams(state: State, kind: str, n_layers: int, ids: Tensor, without_block: int | None = None) -> list[Tensor]:
    """The stream after the embedding and after every sublayer; a lesioned block's sublayers are not there at all."""
    x = state["token.weight"][ids] + state["position.weight"][: ids.shape[1]]
    seen = [x]
    for n in range(2 * n_layers):
        if n // 2 == without_block:
            continue
        y = branch(state, n, x)
        if kind == "none":
            x = y
        elif kind == "plain":
            x = x + y
        elif kind == "scaled":
            x = x + y / math.sqrt(2 * n_layers)
        else:
            x = x + state[f"sublayers.{n}.gate"] * y
        seen.append(x)
    return seen


def logits(state: State, stream: Tensor) -> Tensor:
    return rms_norm(stream, state.get("final_norm.weight")) @ state["unembed.weight"].T


def loss(state: State, stream: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits(state, stream).flatten(0, 1), targets.flatten())


def gradient_profile(state: State, kind: str, n_layers: int, ids: Tensor, targets: Tensor) -> dict:
    """The fields of GradientProfile; one differentiation for every tensor."""
    state = {name: t.double().requires_grad_() for name, t in state.items()}
    seen = streams(state, kind, n_layers, ids)
    value = loss(state, seen[-1], targets)

    def norm_of(tensors: list[Tensor]) -> float:
        total = 0.0
        for t in tensors:
            (g,) = torch.autograd.grad(value, t, retain_graph=True, allow_unused=True)
            total += 0.0 if g is None else float(g.square().sum())
        return math.sqrt(total)

    own = [[t for name, t in state.items() if name.startswith(f"sublayers.{n}.")] for n in range(2 * n_layers)]
    return {
        "loss": value.item(),
        "activation": [norm_of([x]) for x in seen[1:]],
        "parameter": [norm_of(tensors) for tensors in own],
    }


def components(state: State, kind: str, n_layers: int, ids: Tensor) -> Tensor:
    """Differences of consecutive streams, the embedding first."""
    seen = streams(state, kind, n_layers, ids)
    return torch.stack([seen[0], *(after - before for before, after in itertools.pairwise(seen))])


def attribution(state: State, parts: Tensor, tokens: Tensor) -> Tensor:
    """By how much a logit falls when a component is taken out of the stream that the norm's factor was computed
    from."""
    stream = parts.sum(0)
    norm_weight = state.get("final_norm.weight")
    factor = (
        torch.ones_like(stream)
        if norm_weight is None
        else norm_weight / (stream.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    )

    def logit(x: Tensor) -> Tensor:
        return ((x * factor) @ state["unembed.weight"].T).gather(-1, tokens[..., None]).squeeze(-1)

    return torch.stack([logit(stream) - logit(stream - part) for part in parts])


def lesions(state: State, kind: str, n_layers: int, ids: Tensor, targets: Tensor) -> list[float]:
    """Every lesioned model from its first layer on."""
    whole = loss(state, streams(state, kind, n_layers, ids)[-1], targets)
    return [
        (loss(state, streams(state, kind, n_layers, ids, block)[-1], targets) - whole).item()
        for block in range(n_layers)
    ]


def path_contributions(mats: list[Tensor], x: Tensor) -> Tensor:
    """All 2^L paths one by one."""
    total = torch.zeros(len(mats) + 1, *x.shape, dtype=x.dtype)
    for taken in itertools.product((False, True), repeat=len(mats)):
        v = x.T
        for a, runs_through in zip(mats, taken, strict=True):
            v = a @ v if runs_through else v
        total[sum(taken)] += v.T
    return total


def measure_variance(n_sublayers: int, alpha: float, d: int, batch: int, seed: int) -> list[float]:
    """The same draws, the arithmetic in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, d, generator=generator).double()
    first, ratios = (x**2).mean(), []
    for _ in range(n_sublayers):
        a = torch.randn(d, d, generator=generator).double() / math.sqrt(d)
        x = x @ (torch.eye(d, dtype=torch.float64) + alpha * a)
        ratios.append(float((x**2).mean() / first))
    return ratios


def rank_one_distance(x: Tensor) -> float:
    """Of one (T, d) array, by the definition with sums over its entries."""
    rows = x.double().tolist()
    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    whole = sum(v * v for row in rows for v in row)
    away = sum((v - m) ** 2 for row in rows for v, m in zip(row, mean, strict=True))
    return math.sqrt(away / whole) if whole else 0.0


def attention_only(x: Tensor, skip: bool, seed: int) -> Tensor:
    """The given layer: A x W, or x + A x W."""
    d = x.shape[-1]
    generator = torch.Generator().manual_seed(seed)
    wq, wk, wv = (torch.randn(d, d, generator=generator, dtype=torch.float64) / math.sqrt(d) for _ in range(3))
    y = F.scaled_dot_product_attention((x @ wq)[:, None], (x @ wk)[:, None], (x @ wv)[:, None])[:, 0]
    return x + y if skip else y


def trainable_depth(rows: list[dict], threshold: float) -> dict[str, int | None]:
    """By trying every depth of a kind as the answer."""
    result = {}
    for kind in dict.fromkeys(r["kind"] for r in rows):
        own = [r for r in rows if r["kind"] == kind]
        fine = [c["depth"] for c in own if all(r["val_loss"] < threshold for r in own if r["depth"] <= c["depth"])]
        result[kind] = max(fine, default=None)
    return result
