"""Oracle of 2.3: one head at a time in float64, on explicit slices of the features.

The softmax is written as exp(score) · visible, divided by its sum: no -inf and no maximum (scores here are small), so
an empty row is the case "the sum is zero". The model is a function of its state dict, the statistics are exact
(fractions, all sign patterns one by one).
"""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional as F

Parameters = dict[str, Tensor]
SIZES = {"copy": (8, 8, 8, 8), "reverse": (8, 8, 8, 8), "gather4": (2, 16, 8, 2)}  # vocabularies, lengths
GATHER_ORDER = (5, 0, 6, 3, 2, 7, 1, 4)


def linear(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    y = x.double() @ parameters[f"{name}.weight"].double().T
    bias = parameters.get(f"{name}.bias")
    return y if bias is None else y + bias.double()


def visible_keys(batch, n_heads, tq, tk, key_padding_mask=None, attn_mask=None, is_causal=False) -> Tensor:
    visible = torch.ones(batch, n_heads, tq, tk, dtype=torch.bool)
    if key_padding_mask is not None:
        visible &= key_padding_mask.view(batch, 1, 1, tk)
    if attn_mask is not None:
        visible &= attn_mask
    if is_causal:
        visible &= torch.tensor([[j <= i + tk - tq for j in range(tk)] for i in range(tq)])
    return visible


def attention(
    parameters: Parameters,
    query: Tensor,
    memory: Tensor | None = None,
    *,
    n_heads: int,
    n_kv_heads: int | None = None,
    prefix: str = "",
    **masks,
) -> tuple[Tensor, Tensor]:
    """Output (B, Tq, d) and weights (B, H, Tq, Tk) of the layer with these parameters."""
    memory = query if memory is None else memory
    q, k, v = (linear(parameters, f"{prefix}{n}_proj", x) for n, x in (("q", query), ("k", memory), ("v", memory)))
    d = q.shape[-1] // n_heads
    group = n_heads // (n_kv_heads or n_heads)
    visible = visible_keys(query.shape[0], n_heads, query.shape[1], memory.shape[1], **masks)
    contexts, weights = [], []
    for h in range(n_heads):
        own, shared = slice(h * d, (h + 1) * d), slice(h // group * d, (h // group + 1) * d)
        mass = torch.exp(torch.einsum("bid,bjd->bij", q[..., own], k[..., shared]) / math.sqrt(d)) * visible[:, h]
        total = mass.sum(-1, keepdim=True)
        weights.append(mass / torch.where(total > 0, total, 1.0))
        contexts.append(torch.einsum("bij,bjd->bid", weights[-1], v[..., shared]))
    return linear(parameters, f"{prefix}out_proj", torch.cat(contexts, -1)), torch.stack(weights, 1)


# --- the model as a function of its state dict ----------------------------------------------------------------------


def norm(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], parameters[f"{name}.weight"].double(), parameters[f"{name}.bias"].double())


def feed_forward(parameters: Parameters, name: str, x: Tensor) -> Tensor:
    return linear(parameters, f"{name}.2", linear(parameters, f"{name}.0", x).clamp(min=0))


def blocks(parameters: Parameters, part: str) -> list[str]:
    return sorted({".".join(name.split(".")[:2]) for name in parameters if name.startswith(f"{part}.")})


def encode(parameters: Parameters, src: Tensor, heads: dict) -> Tensor:
    x = parameters["src_embed.weight"].double()[src] + parameters["src_positions"].double()[: src.shape[1]]
    for b in blocks(parameters, "encoder"):
        x = x + attention(parameters, norm(parameters, f"{b}.norm1", x), prefix=f"{b}.attention.", **heads)[0]
        x = x + feed_forward(parameters, f"{b}.ff", norm(parameters, f"{b}.norm2", x))
    return norm(parameters, "src_norm", x)


def logits(parameters: Parameters, src: Tensor, tokens: Tensor, heads: dict) -> Tensor:
    """Logits (B, t, V) after each of ``tokens``, whose first is the start symbol."""
    memory = encode(parameters, src, heads)
    y = parameters["tgt_embed.weight"].double()[tokens] + parameters["tgt_positions"].double()[: tokens.shape[1]]
    for b in blocks(parameters, "decoder"):
        own = norm(parameters, f"{b}.norm1", y)
        y = y + attention(parameters, own, prefix=f"{b}.attention.", is_causal=True, **heads)[0]
        y = y + attention(parameters, norm(parameters, f"{b}.norm2", y), memory, prefix=f"{b}.cross.", **heads)[0]
        y = y + feed_forward(parameters, f"{b}.ff", norm(parameters, f"{b}.norm3", y))
    return linear(parameters, "unembed", norm(parameters, "tgt_norm", y))


def greedy(parameters: Parameters, src: Tensor, length: int, heads: dict) -> Tensor:
    """Everything again for every token."""
    start = parameters["tgt_embed.weight"].shape[0] - 1
    tokens = torch.full((src.shape[0], 1), start)
    for _ in range(length):
        after = logits(parameters, src, tokens, heads)[:, -1]
        tokens = torch.cat([tokens, after.argmax(-1)[:, None]], 1)
    return tokens[:, 1:]


# --- a trial --------------------------------------------------------------------------------------------------------


def make_batch(task: str, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    vocabulary, _, length, _ = SIZES[task]
    src = torch.randint(0, vocabulary, (n, length), generator=generator)
    if task == "gather4":
        groups = (GATHER_ORDER[:4], GATHER_ORDER[4:])
        tgt = [[int("".join(str(row[p]) for p in group), 2) for group in groups] for row in src.tolist()]
        return src, torch.tensor(tgt)
    return src, src if task == "copy" else src[:, list(reversed(range(length)))]


def train(parameters: Parameters, task: str, seed: int, steps: int, heads: dict) -> tuple[Parameters, float]:
    """Adam with warm-up and cosine from these initial parameters -> trained parameters, loss of the last step."""
    generator = torch.Generator().manual_seed(seed)
    names = list(parameters)
    leaves = [parameters[n].double().requires_grad_() for n in names]
    first, second = ([torch.zeros_like(p) for p in leaves] for _ in range(2))
    for step in range(steps):
        src, tgt = make_batch(task, 32, generator)
        model = dict(zip(names, leaves, strict=True))
        start = torch.full_like(tgt[:, :1], SIZES[task][1])
        out = logits(model, src, torch.cat([start, tgt[:, :-1]], 1), heads)
        loss = -out.log_softmax(-1).gather(-1, tgt[..., None]).mean()
        grads = torch.autograd.grad(loss, leaves)
        lr = 8e-3 * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        with torch.no_grad():
            for p, g, m, v in zip(leaves, grads, first, second, strict=True):
                m.copy_(0.9 * m + 0.1 * g)
                v.copy_(0.98 * v + 0.02 * g * g)
                unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.98 ** (step + 1))
                p -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    return dict(zip(names, (p.detach() for p in leaves), strict=True)), loss.item()


def score(parameters: Parameters, src: Tensor, tgt: Tensor, heads: dict) -> tuple[float, float]:
    written = greedy(parameters, src, tgt.shape[1], heads).tolist()
    right = [[a == b for a, b in zip(x, y, strict=True)] for x, y in zip(written, tgt.tolist(), strict=True)]
    return statistics.mean(map(statistics.mean, right)), statistics.mean(map(all, right))


# --- statistics -----------------------------------------------------------------------------------------------------


def sign_flip_pvalue(differences: list[float]) -> float:
    """All sign patterns one by one, in fractions."""
    exact = [Fraction(d) for d in differences]
    observed = abs(sum(exact))
    patterns = list(itertools.product((1, -1), repeat=len(exact)))
    extreme = [p for p in patterns if abs(sum(s * d for s, d in zip(p, exact, strict=True))) >= observed]
    return len(extreme) / len(patterns)


def compare(trials: list[dict], baseline: str, metric: str, alpha: float) -> list[dict]:
    """Rows as dicts, in order of first appearance."""
    rows = []
    for task, variant in dict.fromkeys((t["task"], t["variant"]) for t in trials):
        own = sorted((t for t in trials if (t["task"], t["variant"]) == (task, variant)), key=lambda t: t["seed"])
        base = {t["seed"]: t[metric] for t in trials if (t["task"], t["variant"]) == (task, baseline)}
        values = [t[metric] for t in own]
        differences = [t[metric] - base[t["seed"]] for t in own]
        p = sign_flip_pvalue(differences) if variant != baseline else 1.0
        better = "better" if sum(differences) > 0 else "worse"
        rows.append({
            "variant": variant,
            "task": task,
            "n": len(own),
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values) if len(values) > 1 else math.nan,
            "values": tuple(values),
            "diff_mean": statistics.mean(differences),
            "p_value": p,
            "verdict": "baseline" if variant == baseline else better if p < alpha else "indistinguishable",
            "kv_bytes": own[0]["kv_bytes"],
            "n_params": own[0]["n_params"],
            "metric": metric,
        })  # fmt: skip
    return rows


def pareto_front(points: list[tuple[str, float, int]]) -> list[str]:
    """Names of (name, quality, cost) that nobody dominates, cheapest first."""
    front = []
    for name, quality, cost in points:
        as_good = [(q, c) for _, q, c in points if q >= quality and c <= cost]
        if set(as_good) == {(quality, cost)}:
            front.append((cost, name))
    return [name for _, name in sorted(front, key=lambda x: x[0])]
