"""Oracle for normalisation: PyTorch's own norms in float64, autograd through them, decimals for one row, plain
loops."""

from __future__ import annotations

import decimal
import math

import torch
from torch import Tensor
from torch.nn import functional as F


def double(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.detach().double()


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = 1e-5) -> Tensor:
    return F.layer_norm(x.double(), x.shape[-1:], double(weight), double(bias), eps)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float = 1e-6) -> Tensor:
    return F.rms_norm(x.double(), x.shape[-1:], double(weight), eps)


def exact_layer_norm(row: Tensor, eps: float) -> Tensor:
    """One row without gain and bias, with 50 decimal digits."""
    with decimal.localcontext() as context:
        context.prec = 50
        values = [decimal.Decimal(v.item()) for v in row]
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        std = (variance + decimal.Decimal(eps)).sqrt()
        return torch.tensor([float((v - mean) / std) for v in values], dtype=torch.float64)


def tower(kind: str, x: Tensor, parameters: list, cotangent: Tensor, eps: float) -> tuple:
    """Norm of norm of ... x, and the gradients of x and of the parameters ([weight, bias] or [weight] a storey)."""
    x, parameters = x.double().requires_grad_(), [[p.double().requires_grad_() for p in one] for one in parameters]
    y = x
    for one in parameters:
        norm = F.layer_norm if kind == "layernorm" else F.rms_norm
        y = norm(y, y.shape[-1:], *one, eps=eps)
    leaves = [x, *(p for one in parameters for p in one)]
    return y.detach(), *torch.autograd.grad(y, leaves, cotangent.double())


def gradients(kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, cotangent: Tensor) -> list:
    """Gradients of x, weight and bias (left out where there is none) for the cotangent of the output."""
    leaves = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    if kind == "layernorm":
        y = F.layer_norm(leaves[0], x.shape[-1:], leaves[1], leaves[2], eps)
    else:
        y = F.rms_norm(leaves[0], x.shape[-1:], leaves[1], eps)
    return list(torch.autograd.grad(y, [t for t in leaves if t is not None], cotangent.double()))


def invariances(
    kind: str, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, shift: float, scale: float
) -> dict[str, float]:
    """The fields of ``Invariances`` for the library's norm; the Jacobian row by row."""

    def norm(t: Tensor) -> Tensor:
        if kind == "none":
            return t
        if kind == "layernorm":
            return F.layer_norm(t, t.shape[-1:], double(weight), double(bias), eps)
        return F.rms_norm(t, t.shape[-1:], double(weight), eps)

    x = x.double()
    y, rows = norm(x), norm(x).reshape(-1, x.shape[-1])
    first = x.reshape(-1, x.shape[-1])[0]
    leaf = first.clone().requires_grad_()
    jacobian = [torch.autograd.grad(y_i, leaf, retain_graph=True)[0] for y_i in norm(leaf)]
    singular = torch.linalg.svdvals(torch.stack(jacobian))
    return {
        "shift_error": float((norm(x + shift) - y).abs().max()),
        "scale_error": float((norm(scale * x) - y).abs().max()),
        "output_mean": float(sum(row.mean() for row in rows) / len(rows)),
        "output_rms": float(sum(row.norm() / math.sqrt(len(row)) for row in rows) / len(rows)),
        "jacobian_rank": int((singular > 1e-9 * singular[0]).sum()),
    }


def streams(state: dict[str, Tensor], ids: Tensor, kind: str, placement: str, n_layers: int = 4, n_heads: int = 2):
    """The residual stream of TinyLM with these weights, after the embedding and after every block, in float64."""
    state = {name: t.double() for name, t in state.items()}

    def norm(name: str, t: Tensor) -> Tensor:
        if kind == "layernorm":
            return F.layer_norm(t, t.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)
        return F.rms_norm(t, t.shape[-1:], state[f"{name}.weight"], 1e-6) if kind == "rmsnorm" else t

    def attention(name: str, t: Tensor) -> Tensor:
        length, d = t.shape[1:]
        q, k, v = (t @ w.T for w in state[f"{name}.qkv_proj.weight"].split(d))
        heads = []
        for h in range(n_heads):
            part = slice(h * d // n_heads, (h + 1) * d // n_heads)
            scores = q[..., part] @ k[..., part].mT / math.sqrt(d // n_heads)
            hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[..., part])
        return torch.cat(heads, -1) @ state[f"{name}.out_proj.weight"].T

    def mlp(name: str, t: Tensor) -> Tensor:
        return F.gelu(t @ state[f"{name}.0.weight"].T) @ state[f"{name}.2.weight"].T

    x = state["token.weight"][ids] + state["position.weight"][: ids.shape[1]]
    seen = [x]
    for i in range(n_layers):
        for f, branch, which in ((attention, "attention", "norm1"), (mlp, "mlp", "norm2")):
            branch, which = f"blocks.{i}.{branch}", f"blocks.{i}.{which}"
            x = x + f(branch, norm(which, x)) if placement == "pre" else norm(which, x + f(branch, x))
        seen.append(x)
    return seen


def lr_tolerance(rows: list[dict], threshold: float) -> dict[tuple[str, str], float | None]:
    """By trying every learning rate of a pair as the answer."""
    result = {}
    for pair in dict.fromkeys((r["kind"], r["placement"]) for r in rows):
        own = [r for r in rows if (r["kind"], r["placement"]) == pair]
        borne = [c["lr"] for c in own if all(r["val_loss"] < threshold for r in own if r["lr"] <= c["lr"])]
        result[pair] = max(borne, default=None)
    return result


def sweep_lines(rows: list[dict]) -> dict[str, list[tuple[float, float]]]:
    """Label -> (learning rate, mean loss) in ascending order, NaN where a seed diverged or its loss is not finite."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for pair in dict.fromkeys((r["kind"], r["placement"]) for r in rows):
        own = [r for r in rows if (r["kind"], r["placement"]) == pair]
        points = []
        for lr in sorted({r["lr"] for r in own}):
            cell = [r for r in own if r["lr"] == lr]
            lost = any(r["diverged"] or not math.isfinite(r["val_loss"]) for r in cell)
            points.append((lr, math.nan if lost else sum(r["val_loss"] for r in cell) / len(cell)))
        lines["/".join(pair)] = points
    return lines
