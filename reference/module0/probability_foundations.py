"""Oracle of exercise 0.2: one row at a time, Python floats, `math.fsum`, SciPy; sequences by `itertools.product`.

Filters return the set of ids that are kept. A decision within 1e-6 of a bar is one of rounding: `near_a_bar` tells.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import scipy.special
import torch


def log_softmax(x, axis: int = -1) -> np.ndarray:
    return scipy.special.log_softmax(np.asarray(x, np.float64), axis=axis)


def token_logprobs(logits, ids, mask=None) -> np.ndarray:
    b, t, _ = logits.shape
    out = np.zeros((b, t - 1))
    for i, j in np.ndindex(b, t - 1):
        if mask is None or mask[i, j + 1]:
            out[i, j] = log_softmax(logits[i, j])[ids[i, j + 1]]
    return out


def probabilities(row) -> list[float]:
    top = max(row)
    weights = [math.exp(x - top) for x in row]
    total = math.fsum(weights)
    return [w / total for w in weights]


def entropy(row) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities(row) if p > 0)


def prefix(order, prob, mass) -> set[int]:
    if mass == 1:
        return set(order)
    return {i for at, i in enumerate(order) if math.fsum(prob[j] for j in order[:at]) < mass}


def typical_order(row) -> list[int]:
    h, logp = entropy(row), log_softmax(row)
    return sorted(range(len(row)), key=lambda i: (round(abs(-float(logp[i]) - h), 9), i))


def kept(name: str, row, value) -> set[int]:
    """Ids that the named filter keeps of one row of logits; ids that were -inf do not count as kept."""
    row = [float(x) for x in row]
    ids, prob = range(len(row)), probabilities(row)
    if name == "top_k":
        bar = sorted(row, reverse=True)[min(value, len(row)) - 1]
        found = {i for i in ids if row[i] >= bar}
    elif name == "top_p":
        found = prefix(sorted(ids, key=lambda i: (-row[i], i)), prob, value)
    elif name == "min_p":
        found = {i for i in ids if prob[i] >= value * max(prob)}
    else:
        found = prefix(typical_order(row), prob, value)
    return {i for i in found if row[i] > -math.inf}


def near_a_bar(name: str, row, value) -> bool:
    """Does rounding decide what is kept?"""
    row = [float(x) for x in row]
    prob = probabilities(row)
    if name == "min_p":
        return value < 1 and any(abs(p - value * max(prob)) < 1e-6 for p in prob)
    if name == "top_k" or value == 1:
        return False
    order = sorted(range(len(row)), key=lambda i: (-row[i], i))
    if name == "typical_p":
        order, h, logp = typical_order(row), entropy(row), log_softmax(row)
        away = sorted((abs(-float(logp[i]) - h), row[i]) for i in range(len(row)) if row[i] > -math.inf)
        if any(b[0] - a[0] < 1e-6 and a[1] != b[1] for a, b in itertools.pairwise(away)):
            return True
    return any(abs(math.fsum(prob[j] for j in order[:at]) - value) < 1e-6 for at in range(1, len(row) + 1))


def filtered(row, s) -> np.ndarray:
    """One row of logits under a strategy (a mapping of its fields)."""
    row = np.asarray(row, np.float64)
    if s.get("greedy"):
        return np.where(np.arange(len(row)) == int(np.argmax(row)), row, -np.inf)
    row = row / s.get("temperature", 1.0)
    for name in ("top_k", "top_p", "min_p", "typical_p"):
        if s.get(name) is not None:
            ids = kept(name, row, s[name])
            row = np.array([x if i in ids else -np.inf for i, x in enumerate(row)])
    return row


def stats(row, target: int, p: float) -> dict[str, float]:
    row = [float(x) for x in row]
    ordered = sorted(row, reverse=True)
    return {
        "entropy": entropy(row),
        "surprisal": -float(log_softmax(row)[target]),
        "rank": sorted(range(len(row)), key=lambda i: (-row[i], i)).index(target),
        "nucleus_size": len(kept("top_p", row, p)),
        "margin": ordered[0] - ordered[1] if len(row) > 1 else math.inf,
        "max_prob": max(probabilities(row)),
    }


def inverse_cdf(row, u: float) -> int:
    """Walk along the probabilities until their sum exceeds u."""
    prob, total = probabilities([float(x) for x in row]), 0.0
    last = max(i for i, p in enumerate(prob) if p > 0)
    for i, p in enumerate(prob):
        total += p
        if p > 0 and (total > u or i == last):
            return i
    raise AssertionError


def generate(lm, prompt, s, n, steps, seed, eos_id=None, pad_id=0):
    """tokens, log p, log q (lists of rows, before padding is cut to equal length), and what was seen at each position."""
    generator = torch.Generator().manual_seed(seed)
    rows = [list(map(int, prompt)) for _ in range(n)]
    ended = [False] * n
    tokens, base, own = ([[] for _ in range(n)] for _ in range(3))
    seen = []
    for _ in range(steps):
        if all(ended):
            break
        u = None if s.get("greedy") else torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        logits = lm(torch.tensor(rows))[:, -1].double().numpy()
        for i in range(n):
            row = filtered(logits[i], s)
            token = int(np.argmax(row)) if u is None else inverse_cdf(row, u[i])
            logp, logq = log_softmax(logits[i]), log_softmax(row)
            seen.append((token, logp, logq))
            ended_before = ended[i]
            tokens[i].append(pad_id if ended_before else token)
            base[i].append(0.0 if ended_before else float(logp[token]))
            own[i].append(0.0 if ended_before else float(logq[token]))
            ended[i] = ended_before or token == eos_id
            rows[i].append(tokens[i][-1])
    return tokens, base, own, seen


def exact_sequences(lm, prompt, s, length, vocabulary):
    """Every sequence by itself: one forward each."""
    sequences, log_q, log_p = [], [], []
    for tail in itertools.product(range(vocabulary), repeat=length):
        ids = [*map(int, prompt), *tail]
        logits = lm(torch.tensor([ids]))[0].double().numpy()
        at = range(len(prompt) - 1, len(ids) - 1)
        log_p.append(math.fsum(log_softmax(logits[i])[ids[i + 1]] for i in at))
        log_q.append(sum(float(log_softmax(filtered(logits[i], s))[ids[i + 1]]) for i in at))
        sequences.append(tail)
    return np.array(sequences).reshape(len(log_p), length), np.array(log_q), np.array(log_p)


def kl(logq, logp) -> float:
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(logq, logp, strict=True) if a > -math.inf)


def report(lm, prompt, s, n, length, seed) -> dict[str, float]:
    tokens, _, _, seen = generate(lm, prompt, s, n, length, seed)
    rows = [tuple(row) for row in tokens]

    def distinct(k):
        grams = [row[i : i + k] for row in rows for i in range(length - k + 1)]
        return len(set(grams)) / len(grams) if grams else 0.0

    def mean(values):
        values = list(values)
        return math.fsum(values) / len(values)

    return {
        "mean_surprisal": mean(-float(logp[token]) for token, logp, _ in seen),
        "mean_entropy": mean(-math.fsum(math.exp(x) * x for x in logp if x > -math.inf) for _, logp, _ in seen),
        "mean_kl": mean(kl(logq, logp) for _, logp, logq in seen),
        "mean_support": mean(float(np.isfinite(logq).sum()) for _, _, logq in seen),
        "distinct_1": distinct(1),
        "distinct_2": distinct(2),
        "unique_fraction": len(set(rows)) / n,
        "top_sequence_share": max(Counter(rows).values()) / n,
    }


def kept_of_many(row, p: float) -> list[int]:
    """`kept("top_p", ...)` in one pass, for large vocabularies."""
    prob = probabilities([float(x) for x in row])
    found, before = [], 0.0
    for i in sorted(range(len(prob)), key=lambda i: (-prob[i], i)):
        if before >= p:
            break
        found.append(i)
        before += prob[i]
    return found
