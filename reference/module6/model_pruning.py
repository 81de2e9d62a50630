"""Oracle of 6.3 model_pruning: rankings by explicit keys, formats by Python loops, training by written-out AdamW."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch

# --- masks ----------------------------------------------------------------------------------------------------------


def magnitudes(w):
    """|w| as float64 NumPy; exact for every float dtype."""
    return np.abs(w.detach().to(torch.float64).numpy())


def pruned_first(keys, count):
    """Indices of the `count` smallest of a list of tuples."""
    return set(sorted(range(len(keys)), key=keys.__getitem__)[:count])


def magnitude_mask(w, sparsity):
    """Sort the pairs (|w|, index); the first round(s·n) go."""
    gone = pruned_first([(a, i) for i, a in enumerate(magnitudes(w).ravel().tolist())], round(sparsity * w.numel()))
    return torch.tensor([i not in gone for i in range(w.numel())], dtype=torch.bool).reshape(w.shape)


def global_masks(weights, sparsity):
    """Sort the triples (|w|, number of the tensor, index)."""
    keys = [(a, t, i) for t, w in enumerate(weights.values()) for i, a in enumerate(magnitudes(w).ravel().tolist())]
    gone = {keys[k][1:] for k in pruned_first(keys, round(sparsity * len(keys)))}
    return {
        name: torch.tensor([(t, i) not in gone for i in range(w.numel())], dtype=torch.bool).reshape(w.shape)
        for t, (name, w) in enumerate(weights.items())
    }


def nm_mask(w, n, m):
    """Of all choices of n among m the one of largest sum; of equal sums the one with the highest indices."""
    mask = torch.zeros(w.shape, dtype=torch.bool)
    sizes = magnitudes(w)
    for row in range(w.shape[0]):
        for start in range(0, w.shape[1], m):
            group = sizes[row, start : start + m].tolist()
            choices = itertools.combinations(range(m), n)
            best = max(choices, key=lambda c: (sorted((group[i] for i in c), reverse=True), c))
            mask[row, [start + i for i in best]] = True
    return mask


def cubic_sparsity(step, initial, final, begin, end, every):
    """The closed form at the last update."""
    updates = [t for t in range(begin, end, every) if t <= step]
    if step >= end or not updates:
        return final if step >= end else initial
    progress = (updates[-1] - begin) / (end - begin)
    return final + (initial - final) * (1 - progress) ** 3


# --- structured -----------------------------------------------------------------------------------------------------


def neuron_scores(gate, up, down):
    g, u, d = (magnitudes(w) for w in (gate, up, down))
    return np.array([(g[f] ** 2).sum() + (u[f] ** 2).sum() + (d[:, f] ** 2).sum() for f in range(len(g))])


def kept_neurons(gate, up, down, keep):
    """The `keep` best, ascending; of equal scores the higher index stays."""
    scores = neuron_scores(gate, up, down)
    gone = pruned_first([(a, i) for i, a in enumerate(scores.tolist())], len(scores) - keep)
    return [i for i in range(len(scores)) if i not in gone]


def mlp(state, x, neurons=None):
    """down(silu(gate x) · up x), float64, with all neurons but `neurons` silenced."""
    w = {name: t.double() for name, t in state.items()}
    zero = torch.zeros(1, dtype=torch.float64)
    gate = x.double() @ w["gate_proj.weight"].T + w.get("gate_proj.bias", zero)
    up = x.double() @ w["up_proj.weight"].T + w.get("up_proj.bias", zero)
    hidden = gate * torch.sigmoid(gate) * up
    if neurons is not None:
        silent = [f for f in range(hidden.shape[-1]) if f not in set(neurons)]
        hidden[..., silent] = 0.0
    return hidden @ w["down_proj.weight"].T + w.get("down_proj.bias", zero)


# --- training -------------------------------------------------------------------------------------------------------


def masked_adamw(w, grads, masks, lr, decay, betas=(0.9, 0.999), eps=1e-8):
    """AdamW by its equations (Loshchilov & Hutter), all of it multiplied by the mask of the step; NumPy float64.

    grads: a function of (step, w). masks: one a step. -> [(w, m, v) after each step].
    """
    m, v, out = np.zeros_like(w), np.zeros_like(w), []
    for t, mask in enumerate(masks, start=1):
        w = w * mask
        g = grads(t - 1, w) * mask
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        step = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        w = (w - lr * decay * w - lr * step) * mask
        m, v = m * mask, v * mask
        out.append((w, m, v))
    return out


# --- formats --------------------------------------------------------------------------------------------------------


def bits_of(packed, width):
    """Numbers of `width` bits, the first in the most significant bits, from a string of binary digits."""
    digits = "".join(f"{byte:08b}" for byte in packed.tolist())
    return [int(digits[i : i + width], 2) for i in range(0, len(digits), width)]


def decode(enc, fmt, shape):
    """What the encoding says, element by element."""
    outputs, inputs = shape
    values = enc["values"]
    if fmt == "dense":
        return values
    w = torch.zeros(shape, dtype=values.dtype)
    if fmt == "bitmask":
        flat = [i for i, bit in enumerate(bits_of(enc["mask"], 1)) if bit]
        for place, i in enumerate(flat):
            w[i // inputs, i % inputs] = values[place]
    elif fmt == "csr":
        crow = enc["crow"].tolist()
        for o in range(outputs):
            for k in range(crow[o], crow[o + 1]):
                w[o, int(enc["col"][k])] = values[k]
    else:
        positions = bits_of(enc["positions"], 2)
        for k, value in enumerate(values.flatten()):
            o, slot = divmod(k, inputs // 2)
            w[o, slot // 2 * 4 + positions[k]] = value
    return w


def sizes(w):
    """Bytes of every format that holds w, by counting what has to be written down."""
    outputs, inputs = w.shape
    item, nonzero = w.element_size(), int((w != 0).sum())
    groups = [w[o, i : i + 4] for o in range(outputs) for i in range(0, inputs, 4)]
    out = {"dense": outputs * inputs * item}
    if inputs % 4 == 0 and all(int((g != 0).sum()) <= 2 for g in groups):
        out["nm:2:4"] = 2 * len(groups) * item + math.ceil(2 * len(groups) * 2 / 8)
    out["bitmask"] = nonzero * item + math.ceil(outputs * inputs / 8)
    out["csr"] = nonzero * item + 4 * nonzero + 4 * (outputs + 1)
    return out


# --- the model ------------------------------------------------------------------------------------------------------


def rms_norm(x, gain):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * gain


def rotate(x):
    """x (T, D) at positions 0..T-1 as complex numbers: pair (i, i + D/2) turns by t · 10000^(-2i/D)."""
    half = x.shape[1] // 2
    pairs = torch.complex(x[:, :half], x[:, half:])
    angle = torch.arange(len(x), dtype=torch.float64)[:, None] * 10000.0 ** (
        -torch.arange(half, dtype=torch.float64) / half
    )
    turned = pairs * torch.exp(1j * angle)
    return torch.cat([turned.real, turned.imag], dim=1)


def logits(state, ids, n_heads=4):
    """A Llama from its state dict, float64, row by row and head by head; widths follow the tensors."""
    w = {name: t.double() for name, t in state.items()}
    layers = 1 + max(int(name.split(".")[2]) for name in w if name.startswith("model.layers."))
    embed, rows = w["model.embed_tokens.weight"], []
    for row in ids:
        x = embed[row]
        hidden = torch.triu(torch.ones(len(row), len(row), dtype=torch.bool), 1)
        for i in range(layers):
            here = f"model.layers.{i}."
            normed = rms_norm(x, w[here + "input_layernorm.weight"])
            q, k, v = (normed @ w[here + f"self_attn.{n}_proj.weight"].T for n in "qkv")
            heads = []
            for part in range(n_heads):
                cut = slice(part * q.shape[1] // n_heads, (part + 1) * q.shape[1] // n_heads)
                scores = rotate(q[:, cut]) @ rotate(k[:, cut]).T / math.sqrt(q.shape[1] // n_heads)
                heads.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v[:, cut])
            x = x + torch.cat(heads, dim=1) @ w[here + "self_attn.o_proj.weight"].T
            normed = rms_norm(x, w[here + "post_attention_layernorm.weight"])
            x = x + mlp({n[len(here) + 4 :]: t for n, t in w.items() if n.startswith(here + "mlp.")}, normed)
        rows.append(rms_norm(x, w["model.norm.weight"]) @ embed.T)
    return torch.stack(rows)


def mean_loss(state, ids, n_heads):
    logp = logits(state, ids, n_heads)[:, :-1].log_softmax(-1)
    return -logp.gather(-1, ids[:, 1:, None]).mean()


def loss(state, ids, n_heads=4):
    """Mean of -log p of the next token, nats."""
    return mean_loss(state, ids, n_heads).item()


def masked_training(state, batches, changes, names, scope, lr, n_heads, masks=None):
    """AdamW on every tensor but lm_head (tied); at a step of `changes` {step: sparsity} what is not pruned is ranked again.

    Masked by hand: weights before and after each step, gradients, both moments. -> losses, sparsity, state.
    """
    w = {n: t.double().clone() for n, t in state.items() if n != "lm_head.weight"}
    masks = masks or {n: torch.ones_like(w[n], dtype=torch.bool) for n in names}
    m, v = ({n: torch.zeros_like(t) for n, t in w.items()} for _ in range(2))
    out = {"losses": [], "sparsity": []}
    for step, ids in enumerate(batches):
        if step in changes:
            # |w| + 1 against 0: what is pruned comes first. Weights here are far from where adding 1 makes ties.
            keys = {n: torch.where(masks[n], w[n].abs() + 1, 0.0) for n in names}
            if scope == "global":
                ranked = global_masks(keys, changes[step])
            else:
                ranked = {n: magnitude_mask(keys[n], changes[step]) for n in names}
            masks = {n: masks[n] & ranked[n] for n in names}
        w = {n: (t * masks.get(n, 1)).requires_grad_() for n, t in w.items()}
        value = mean_loss(w, ids, n_heads)
        grads = torch.autograd.grad(value, list(w.values()))
        for (n, t), g in zip(list(w.items()), grads, strict=True):
            keep = masks.get(n, 1)
            m[n] = (0.9 * m[n] + 0.1 * g) * keep
            v[n] = (0.999 * v[n] + 0.001 * g * g) * keep
            move = (m[n] / (1 - 0.9 ** (step + 1))) / (torch.sqrt(v[n] / (1 - 0.999 ** (step + 1))) + 1e-8)
            w[n] = (t.detach() * (1 - lr * 0.01) - lr * move) * keep
        out["losses"].append(value.item())
        kept, total = sum(int(masks[n].sum()) for n in names), sum(masks[n].numel() for n in names)
        out["sparsity"].append(1 - kept / total if total else 0.0)
    return out | {"state": {n: w["model.embed_tokens.weight" if n == "lm_head.weight" else n] for n in state}}


def lag2_batch(n, length, seed):
    """Rows of the language of components/tiny_lag_lm."""
    perm = torch.randperm(32, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 32, (n, length), generator=generator)
    follows = torch.rand((n, length), generator=generator) < 0.9
    ids = noise.clone()
    for t in range(2, length):
        ids[:, t] = torch.where(follows[:, t], perm[ids[:, t - 2]], noise[:, t])
    return ids
