"""Oracle of 1.4: the definitions as loops, torch's autograd for gradients, scipy's root finder, and planted corpora."""

import math
import random

import numpy as np
import torch
from scipy.optimize import brentq, minimize


def vocabulary(sentences, min_count=1):
    words = sorted({w for s in sentences for w in s})
    counts = {w: sum(list(s).count(w) for s in sentences) for w in words}
    kept = [w for w in words if counts[w] >= min_count]
    kept.sort(key=lambda w: -counts[w])  # stable: alphabetical among equals
    return kept, [counts[w] for w in kept]


def skipgram_pairs(ids, window):
    return [
        (s[i], s[j]) for s in ids for i in range(len(s)) for j in range(len(s)) if i != j and abs(i - j) <= window
    ]  # fmt: skip


def keep_probability(counts, t):
    total = sum(int(c) for c in counts)
    return np.array([min(1.0, math.sqrt(t / (c / total))) for c in counts])


def noise_distribution(counts, power):
    raised = [float(c) ** power for c in counts]
    return np.array([r / math.fsum(raised) for r in raised])


def sgns(v, u, un, valid):
    """Loss and gradients by autograd of the definition, with torch's own log-sigmoid."""
    v, u, un = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (v, u, un))
    positive = -torch.nn.functional.logsigmoid((v * u).sum(-1)).sum()
    negative = -torch.nn.functional.logsigmoid(-(v[:, None] * un).sum(-1))
    loss = positive + torch.where(torch.tensor(valid), negative, torch.zeros_like(negative)).sum()
    loss.backward()
    return loss.item(), v.grad.numpy(), u.grad.numpy(), un.grad.numpy()


def glove(w, u, b, c, x, xmax, alpha):
    leaves = [torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in (w, u, b, c)]
    w, u, b, c = leaves
    x = torch.tensor(x, dtype=torch.float64)
    loss = (0.5 * (x / xmax).pow(alpha).clamp(max=1) * ((w * u).sum(-1) + b + c - x.log()).square()).sum()
    loss.backward()
    return loss.item(), *(leaf.grad.numpy() for leaf in leaves)


def char_ngrams(word, min_n, max_n):
    marked = "<" + word + ">"
    return [marked[i:j] for i in range(len(marked)) for j in range(i + 1, len(marked) + 1) if min_n <= j - i <= max_n]


def fasttext_hash(ngram, buckets):
    h = np.uint32(2166136261)
    for byte in np.frombuffer(ngram.encode(), dtype=np.int8):
        h = np.uint32((int(h ^ np.int32(byte).astype(np.uint32)) * 16777619) % 2**32)
    return int(h) % buckets


def composition(words, min_n, max_n, buckets):
    dense = np.zeros((len(words), len(words) + buckets))
    for i, word in enumerate(words):
        grams = char_ngrams(word, min_n, max_n)
        dense[i, i] += 1 / (1 + len(grams))
        for g in grams:
            dense[i, len(words) + fasttext_hash(g, buckets)] += 1 / (1 + len(grams))
    return dense


def cooccurrence(ids, window, size):
    dense = np.zeros((size, size))
    for s in ids:
        for i in range(len(s)):
            for j in range(len(s)):
                if i != j and abs(i - j) <= window:
                    dense[s[i], s[j]] += 1 / abs(i - j)
    return dense


def sq_dists(x):
    return ((x[:, None] - x[None]) ** 2).sum(-1)


def joint_probabilities(x, perplexity):
    """Each row's precision by Brent's method on its logarithm."""
    n, d2 = len(x), sq_dists(x)
    p = np.zeros((n, n))

    def row(i, log_beta):
        d = np.delete(d2[i], i)
        e = np.exp(-math.exp(log_beta) * (d - d.min()))
        return e / e.sum()

    def excess(log_beta, i):
        q = row(i, log_beta)
        q = q[q > 0]
        return -(q * np.log(q)).sum() - math.log(perplexity)

    for i in range(n):
        p[i, np.arange(n) != i] = row(i, brentq(excess, -80, 80, args=(i,), xtol=1e-13, rtol=1e-14))
    return (p + p.T) / (2 * n)


def kl_grad(y, p):
    y = torch.tensor(y, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(p, dtype=torch.float64)
    off = ~torch.eye(len(y), dtype=torch.bool)
    w = 1 / (1 + (y[:, None] - y[None]).square().sum(-1))
    q = w / w[off].sum()
    kl = (p[p > 0] * (p[p > 0].log() - q[p > 0].log())).sum()
    kl.backward()
    return kl.item(), y.grad.numpy()


def settled(y, p):
    """(KL of the map y, KL of the minimum that L-BFGS reaches from it)."""

    def flat(z):
        kl, gradient = kl_grad(z.reshape(-1, 2), p)
        return kl, gradient.ravel()

    return flat(y.ravel())[0], minimize(flat, y.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 40}).fun


def purity(y, groups, k):
    """Mean share of a point's k nearest points that are of its group."""
    d2 = sq_dists(y)
    np.fill_diagonal(d2, np.inf)
    near = np.argsort(d2, 1)[:, :k]
    return float(np.mean([[groups[j] == groups[i] for j in row] for i, row in enumerate(near)]))


def trustworthiness(x, y, k):
    """1 less the penalised share of neighbours in the map that are none in space (Venna and Kaski 2001)."""
    n = len(x)
    space, flat = sq_dists(x), sq_dists(y)
    np.fill_diagonal(space, -1)
    np.fill_diagonal(flat, np.inf)
    rank = np.argsort(np.argsort(space, 1), 1)
    penalty = sum(max(0, rank[i, j] - k) for i in range(n) for j in np.argsort(flat[i])[:k])
    return 1 - 2 * penalty / (n * k * (2 * n - 3 * k - 1))


def spellings(rng, count, length):
    """Distinct random words: nothing can be known about them but what the corpus says."""
    words = {}
    while len(words) < count:
        words["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))] = None
    return list(words)


def planted_meanings(seed, sentences):
    """(sentences, categories {name: nouns}, analogies): 4 x 10 nouns, and 8 country-capital pairs sharing topic words."""
    rng = random.Random(seed)
    words = iter(spellings(rng, 104, 6))
    take = lambda n: [next(words) for _ in range(n)]
    nouns, around, of_noun = [take(10) for _ in range(4)], [take(3) for _ in range(4)], take(4)
    countries, capitals, topics = take(8), take(8), [take(3) for _ in range(8)]
    of_country, of_capital = take(4), take(4)
    corpus = []
    for _ in range(sentences):
        if rng.random() < 0.5:
            g = rng.randrange(4)
            a, b, c = rng.sample(nouns[g], 3)
            corpus.append([a, rng.choice(around[g]), b, rng.choice(of_noun), c])
        else:
            i = rng.randrange(8)
            name, role = rng.choice([(countries[i], of_country), (capitals[i], of_capital)])
            (r, s), (t, u) = rng.choices(role, k=2), rng.choices(topics[i], k=2)
            corpus.append([t, r, name, u, s])
    pairs = list(zip(countries, capitals))
    analogies = [(a, b, c, d) for a, b in pairs for c, d in pairs if a != c]
    return corpus, {f"group {i}": tuple(g) for i, g in enumerate(nouns)}, analogies


def planted_inflections(seed, sentences):
    """(sentences, held out {word: (field, suffix)}, seen {word: (field, suffix)}): 4 fields x 4 stems x 3 suffixes."""
    rng = random.Random(seed)
    words = iter(spellings(rng, 44, 5))
    take = lambda n: [next(words) for _ in range(n)]
    stems, fields, frames = take(16), [take(4) for _ in range(4)], [take(4) for _ in range(3)]
    suffixes = spellings(rng, 3, 3)
    forms = {stem + suffix: (i // 4, j) for i, stem in enumerate(stems) for j, suffix in enumerate(suffixes)}
    # Two of a field, with different stems and suffixes: three others of its field and suffix remain for each.
    held = {stems[4 * f + k] + suffixes[(f + k) % 3] for f in range(4) for k in range(2)}
    seen = [w for w in forms if w not in held]
    corpus = []
    for _ in range(sentences):
        word = rng.choice(seen)
        field, suffix = forms[word]
        (a, d), (b, c) = rng.choices(fields[field], k=2), rng.choices(frames[suffix], k=2)
        corpus.append([a, b, word, c, d])
    return corpus, {w: forms[w] for w in sorted(held)}, {w: forms[w] for w in seen}
