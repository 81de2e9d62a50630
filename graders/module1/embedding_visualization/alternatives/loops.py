"""1.4 with dictionaries and plain loops where speed is not asked for; sigmoids written out by sign."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

if TYPE_CHECKING:
    from matplotlib.figure import Figure


# --------------------------------------------------------------------------------------------------------------------
# Given: records and small tools.
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vocab:
    """Words by descending count, equal counts alphabetically. counts: [V] int64; index: word -> position."""

    words: tuple[str, ...]
    counts: np.ndarray
    index: dict[str, int]

    def ids(self, sentences: Sequence[Sequence[str]]) -> list[list[int]]:
        """Each sentence as ids, words outside the vocabulary left out."""
        return [[self.index[w] for w in s if w in self.index] for s in sentences]


@dataclass(frozen=True)
class Subwords:
    """Lengths of the character n-grams, and how many buckets they are hashed into."""

    min_n: int = 3
    max_n: int = 5
    buckets: int = 2000


@dataclass(frozen=True)
class Probes:
    """What embeddings are asked. A category's words should be neighbours; (a, b, c, d): a is to b as c is to d."""

    categories: dict[str, tuple[str, ...]]
    analogies: tuple[tuple[str, str, str, str], ...]
    #: Unseen word -> seen words that are acceptable as its nearest neighbour.
    unseen: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class EmbeddingReport:
    """One row of a comparison; see `compare_embeddings`."""

    name: str
    precision_at_k: float
    analogy_accuracy: float
    oov_coverage: float
    oov_neighbour_accuracy: float


def scatter_add(target: np.ndarray, ids: np.ndarray, rows: np.ndarray) -> None:
    """target[ids[i]] += rows[i] for every i, repeated ids added up. target [N, ...], ids [M], rows [M, ...]."""
    unique, place = np.unique(ids, return_inverse=True)
    gather = scipy.sparse.csr_matrix((np.ones(len(ids)), (place, np.arange(len(ids)))))
    target[unique] += (gather @ rows.reshape(len(ids), -1)).reshape(-1, *target.shape[1:])


# --------------------------------------------------------------------------------------------------------------------
# Task 1: what the corpus says.
# --------------------------------------------------------------------------------------------------------------------


def build_vocab(sentences: Sequence[Sequence[str]], min_count: int = 1) -> Vocab:
    """The words that occur at least `min_count` times, by descending count, then alphabetically."""
    table: dict[str, int] = {}
    for sentence in sentences:
        for word in sentence:
            table[word] = table.get(word, 0) + 1
    words = sorted(word for word in table if table[word] >= min_count)
    words.sort(key=table.__getitem__, reverse=True)
    return Vocab(tuple(words), np.array([table[w] for w in words], dtype=np.int64), dict(zip(words, range(len(words)))))


def skipgram_pairs(ids: Sequence[Sequence[int]], window: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres, contexts), int64 [N] each: every word with every other position at most `window` away in its sentence.

    The window is fixed (Word2Vec draws its width; here it is not drawn). Centre-major: by sentence, then by position of
    the centre, then by position of the context from left to right. A pair of equal ids is a pair like any other.
    """
    pairs = []
    for sentence in ids:
        for i in range(len(sentence)):
            for j in range(max(0, i - window), min(len(sentence), i + window + 1)):
                if j != i:
                    pairs.append((sentence[i], sentence[j]))
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0].copy(), table[:, 1].copy()


def keep_probability(counts: np.ndarray, t: float) -> np.ndarray:
    """Subsampling of frequent words: min(1, sqrt(t / f)) with f = counts / Σ counts. counts [V] > 0 -> [V] float64."""
    frequency = counts / np.sum(counts)
    keep = np.sqrt(t / frequency)
    keep[keep > 1.0] = 1.0
    return keep


def noise_distribution(counts: np.ndarray, power: float = 0.75) -> np.ndarray:
    """The distribution negatives are drawn from: counts^power, normalised. counts [V] -> [V] float64."""
    logs = power * np.log(counts)
    raised = np.exp(logs - logs.max())
    return raised / np.sum(raised)


# --------------------------------------------------------------------------------------------------------------------
# Task 2: skip-gram with negative sampling, loss and gradients.
# --------------------------------------------------------------------------------------------------------------------


def sgns_loss_grad(
    v: np.ndarray, u: np.ndarray, un: np.ndarray, valid: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
    """Loss and gradients of skip-gram with negative sampling (Mikolov et al. 2013).

    v [B, d] centres, u [B, d] true contexts, un [B, K, d] negatives, valid [B, K] bool: False where a negative is not
    to count. The loss is the *sum* over the batch of -log σ(v·u) - Σ_k valid_k log σ(-v·un_k), exact for any |v·u| (1e3
    too). Returns (loss, dL/dv [B, d], dL/du [B, d], dL/dun [B, K, d]). The arguments are not changed.
    """

    def sigmoid(s: np.ndarray) -> np.ndarray:
        small = np.exp(-np.abs(s))
        return np.where(s >= 0, 1.0, small) / (1.0 + small)

    def cost(s: np.ndarray) -> np.ndarray:  # -log sigmoid(s)
        return np.maximum(-s, 0.0) + np.log1p(np.exp(-np.abs(s)))

    s = (v * u).sum(axis=1)
    t = (un @ v[:, :, None])[:, :, 0]
    loss = cost(s).sum() + np.where(valid, cost(-t), 0.0).sum()
    down = np.where(valid, sigmoid(t), 0.0)
    up = (sigmoid(s) - 1.0)[:, None]
    dv = up * u + (down[:, None, :] @ un)[:, 0, :]
    return float(loss), dv, up * v, down[:, :, None] * v[:, None, :]


# --------------------------------------------------------------------------------------------------------------------
# Task 3: train, and ask. (The part of task 4 in here is marked; until then leave it as it is.)
# --------------------------------------------------------------------------------------------------------------------


class Embeddings:
    """Words and their vectors; with `subwords` and `buckets` also a vector for words that were never seen."""

    def __init__(
        self,
        words: Sequence[str],
        matrix: np.ndarray,
        *,
        subwords: Subwords | None = None,
        buckets: np.ndarray | None = None,
    ) -> None:
        """matrix [V, d]; buckets [subwords.buckets, d], the vectors of the hashed n-grams (FastText only)."""
        self.words = tuple(words)
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.index = {word: i for i, word in enumerate(self.words)}
        self.subwords = subwords
        self.buckets = buckets

    def vector(self, word: str) -> np.ndarray:
        """[d]. KeyError for an unknown word, unless it has n-grams and there are buckets: then `compose_unseen`."""
        if word in self.index:
            return self.matrix[self.index[word]]
        if self.subwords is None or self.buckets is None:
            raise KeyError(word)
        return compose_unseen(word, self.subwords, self.buckets)


def train_sgns(
    sentences: Sequence[Sequence[str]],
    *,
    dim: int = 24,
    window: int = 2,
    negatives: int = 5,
    epochs: int = 5,
    lr_in: float = 0.05,
    lr_out: float = 0.05,
    batch: int = 256,
    seed: int | np.random.Generator = 0,
    subwords: Subwords | None = None,
) -> Embeddings:
    """Word2Vec (subwords None) or FastText by plain SGD with linear decay of both rates; every word is kept.

    The vector of word i is row i of C @ W, C the composition matrix [V, M] and W the input vectors [M, d]. A step takes
    a batch of pairs, draws `negatives` words for each from the noise distribution, ignores a negative that equals the
    true context, and subtracts rate x gradient of the summed loss from W (through C: the exact gradient Cᵀ g) and from
    the output vectors, which start at zero; step s of S has the rates lr·(1 - s/S), s from 0. `seed` may be a Generator;
    draw for a whole batch at once, never pair by pair.
    """
    rng = np.random.default_rng(seed)
    vocab = build_vocab(sentences)
    centres, contexts = skipgram_pairs(vocab.ids(sentences), window)
    composition = composition_matrix(vocab, subwords)
    inputs = (rng.random((composition.shape[1], dim)) - 0.5) / dim
    outputs = np.zeros((len(vocab.words), dim))
    thresholds = noise_distribution(vocab.counts).cumsum()
    thresholds[-1] = 1.0  # a sum of floats may end below 1, and a draw beyond it
    starts = range(0, len(centres), batch)
    step, steps = 0, epochs * len(starts)
    for _ in range(epochs):
        order = rng.permutation(len(centres))
        for start in starts:
            chosen = order[start : start + batch]
            decay = 1.0 - step / steps
            step += 1
            centre = centres[chosen]
            context = contexts[chosen]
            here = composition[centre]
            drawn = rng.choice(len(vocab.words), size=(len(chosen), negatives), p=noise_distribution(vocab.counts))
            truth = context
            _, dv, du, dun = sgns_loss_grad(here @ inputs, outputs[truth], outputs[drawn], drawn != truth[:, None])
            np.subtract.at(outputs, truth, lr_out * decay * du)
            np.subtract.at(outputs, drawn, lr_out * decay * dun)
            inputs -= here.T @ (lr_in * decay * dv)
    buckets = None if subwords is None else inputs[len(vocab.words) :]
    return Embeddings(vocab.words, composition @ inputs, subwords=subwords, buckets=buckets)


def nearest(e: Embeddings, query: np.ndarray, k: int, exclude: Collection[str] = ()) -> list[tuple[str, float]]:
    """The k words of `e` with the largest cosine to query [d], best first, as (word, cosine); fewer if there are fewer.

    Words in `exclude` do not appear. A zero vector, on either side, has cosine 0. Ties: the earlier word of e.words.
    """
    scored = []
    length = float(np.sqrt(query @ query))
    for i, word in enumerate(e.words):
        if word in exclude:
            continue
        row = e.matrix[i]
        norm = float(np.sqrt(row @ row)) * length
        scored.append((-float(row @ query) / norm if norm else 0.0, i))
    return [(e.words[i], -score) for score, i in sorted(scored)[:k]]


def analogy(e: Embeddings, a: str, b: str, c: str, k: int = 1) -> list[str]:
    """a is to b as c is to ...: the k words nearest to b - a + c (raw vectors), a, b and c left out.

    KeyError if one of the three has no vector.
    """
    target = e.vector(c) + (e.vector(b) - e.vector(a))
    return [pair[0] for pair in nearest(e, target, k, (a, b, c))]


# --------------------------------------------------------------------------------------------------------------------
# Task 4: FastText, words as sets of character n-grams.
# --------------------------------------------------------------------------------------------------------------------


def char_ngrams(word: str, min_n: int, max_n: int) -> list[str]:
    """All substrings of `<word>` with min_n <= length <= max_n characters, repeats kept, in any order.

    `<word>` itself is one of them if it is short enough, and so are `<` and `>` if min_n is 1.
    """
    s = "<" + word + ">"
    found = []
    for length in range(min_n, max_n + 1):
        for start in range(len(s) - length + 1):
            found.append(s[start : start + length])
    return found


def fasttext_hash(ngram: str, buckets: int) -> int:
    """fastText's bucket: 32-bit FNV-1a over the UTF-8 bytes, each sign-extended to 32 bits, modulo `buckets`.

    h = 2166136261; for each byte: h = (h XOR byte) · 16777619 mod 2³². A byte of 128 or more is XORed as byte - 256 in
    two's complement, i.e. as byte + 0xFFFFFF00 (fastText reads it as int8_t, and its stored models depend on it).
    """
    state = 0x811C9DC5
    for byte in bytes(ngram, "utf-8"):
        signed = byte - 256 if byte > 127 else byte
        state = ((state ^ (signed % 2**32)) * 0x01000193) % 2**32
    return state % buckets


def composition_matrix(v: Vocab, sub: Subwords | None) -> scipy.sparse.csr_matrix:
    """C [V, V + buckets]: row i averages word i's own vector (column i) and those of its n-grams' buckets (V + hash).

    With m n-grams each entry weighs 1 / (1 + m); repeated n-grams and colliding buckets add up, so rows sum to 1. For
    sub None: the identity [V, V].
    """
    size = len(v.words)
    if sub is None:
        return scipy.sparse.identity(size, format="csr")
    dense = scipy.sparse.lil_matrix((size, size + sub.buckets))
    for i, word in enumerate(v.words):
        grams = char_ngrams(word, sub.min_n, sub.max_n)
        share = 1.0 / (len(grams) + 1)
        dense[i, i] = share
        for gram in grams:
            dense[i, size + fasttext_hash(gram, sub.buckets)] += share
    return dense.tocsr()


def compose_unseen(word: str, sub: Subwords, buckets: np.ndarray) -> np.ndarray:
    """Vector [d] of a word outside the vocabulary: mean of its n-grams' rows of `buckets` [sub.buckets, d].

    Repeats count as often as they occur. A word without n-grams raises KeyError.
    """
    total, number = np.zeros(buckets.shape[1]), 0
    for gram in char_ngrams(word, sub.min_n, sub.max_n):
        total = total + buckets[fasttext_hash(gram, sub.buckets)]
        number += 1
    if number == 0:
        raise KeyError(f"{word!r} has no n-grams")
    return total / number


# --------------------------------------------------------------------------------------------------------------------
# Task 5: t-SNE.
# --------------------------------------------------------------------------------------------------------------------


def pairwise_sq_dists(x: np.ndarray) -> np.ndarray:
    """x [n, d] -> [n, n]: squared Euclidean distances, never negative, exactly 0 on the diagonal.

    Right to 1e-8 also for points 1 apart that lie 1e5 away from the origin.
    """
    out = np.empty((len(x), len(x)))
    for i, row in enumerate(x):
        out[i] = np.square(x - row).sum(axis=1)
    return out


def joint_probabilities(x: np.ndarray, perplexity: float) -> np.ndarray:
    """P [n, n] of t-SNE: p_j|i = exp(-β_i d²_ij) / Σ_{k≠i} exp(-β_i d²_ik), p_ij = (p_j|i + p_i|j) / 2n, diagonal 0.

    Each row's precision β_i is bisected until |entropy in nats - log perplexity| < 1e-8, at most 200 times (a row whose
    nearest points coincide may not reach it). Raises ValueError if perplexity > n - 1: no row can have it.
    """
    n = len(x)
    if perplexity > n - 1:
        raise ValueError(f"perplexity {perplexity} needs more than {n} points")
    d2, p = pairwise_sq_dists(x), np.zeros((n, n))
    target = float(np.log(perplexity))
    for i in range(n):
        others = np.arange(n) != i
        d = d2[i, others]
        d = d - d.min()
        low, high = -100.0, 100.0  # of log β
        for _ in range(200):
            middle = 0.5 * (low + high)
            e = np.exp(-np.exp(middle) * d)
            row = e / e.sum()
            entropy = -float((row * np.log(np.maximum(row, 1e-300))).sum())
            if abs(entropy - target) < 1e-8:
                break
            if entropy > target:
                low = middle
            else:
                high = middle
        p[i, others] = row
    return (p + p.T) / (2 * n)


def tsne_kl_grad(y: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
    """KL(P || Q) in nats and its gradient with respect to the map y [n, 2]; p [n, n] with zero diagonal.

    q_ij = w_ij / Σ_{k≠l} w_kl with w_ij = 1 / (1 + |y_i - y_j|²), w_ii = 0. Terms with p_ij = 0 are 0. p need not sum
    to 1 where the optimiser exaggerates it: the gradient is 4 Σ_j (p_ij - q_ij) w_ij (y_i - y_j) as it stands.
    """
    kernel = 1.0 / (1.0 + pairwise_sq_dists(y))
    kernel[np.arange(len(y)), np.arange(len(y))] = 0.0
    q = kernel / kernel.sum()
    kl = np.sum(np.where(p > 0, p * (np.log(np.where(p > 0, p, 1.0)) - np.log(np.where(p > 0, q, 1.0))), 0.0))
    gradient = np.empty_like(y)
    for i in range(len(y)):
        gradient[i] = 4.0 * (((p[i] - q[i]) * kernel[i])[:, None] * (y[i] - y)).sum(axis=0)
    return float(kl), gradient


def tsne(
    x: np.ndarray, *, perplexity: float = 10.0, iterations: int = 400, seed: int = 0
) -> tuple[np.ndarray, list[float]]:
    """Given: gradient descent with momentum and gains; p is exaggerated twelve-fold for the first 100 iterations.

    x [n, d] -> (y [n, 2], KL(P || Q) before each iteration, of the plain P even while it is exaggerated).
    """
    p = joint_probabilities(np.asarray(x, dtype=np.float64), perplexity)
    rng = np.random.default_rng(seed)
    y = 1e-4 * rng.standard_normal((len(x), 2))
    velocity, gains, history = np.zeros_like(y), np.ones_like(y), []
    rate = min(len(x) / 4.0, max(len(x) / 48.0, 50.0))  # scikit-learn's, but less for few points
    for i in range(iterations):
        exaggeration = 12.0 if i < 100 else 1.0
        kl, gradient = tsne_kl_grad(y, exaggeration * p)
        # Σ cp log(cp / q) = c (Σ p log(p / q) + log c), as p sums to 1
        history.append(kl / exaggeration - np.log(exaggeration))
        gains = np.where(np.sign(gradient) != np.sign(velocity), gains + 0.2, gains * 0.8).clip(0.01)
        velocity = (0.5 if i < 100 else 0.8) * velocity - rate * gains * gradient
        y = y + velocity
        y = y - y.mean(0)
    return y, history


# --------------------------------------------------------------------------------------------------------------------
# Task 6: GloVe.
# --------------------------------------------------------------------------------------------------------------------


def cooccurrence(ids: Sequence[Sequence[int]], window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, cols, values): Σ 1/distance over all pairs at most `window` apart in a sentence, both (i, j) and (j, i).

    int64, int64, float64 [N], sorted by row, then column, each cell once, no zeros. A word beside itself counts from
    both sides, 2/distance. Memory goes with the pairs that occur, not with V².
    """
    cells: dict[tuple[int, int], float] = {}
    for sentence in ids:
        for i, a in enumerate(sentence):
            for distance in range(1, window + 1):
                if i + distance < len(sentence):
                    b = sentence[i + distance]
                    cells[a, b] = cells.get((a, b), 0.0) + 1.0 / distance
                    cells[b, a] = cells.get((b, a), 0.0) + 1.0 / distance
    keys = sorted(cells)
    rows = np.array([a for a, _ in keys], dtype=np.int64)
    cols = np.array([b for _, b in keys], dtype=np.int64)
    return rows, cols, np.array([cells[key] for key in keys], dtype=np.float64)


def glove_loss_grad(
    w: np.ndarray, u: np.ndarray, b: np.ndarray, c: np.ndarray, x: np.ndarray, xmax: float, alpha: float
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """GloVe's loss ½ Σ min(1, (x/xmax)^α) (w·u + b + c - log x)² over B cells, and its gradients.

    w, u [B, d]; b, c, x [B], x > 0. Returns (loss, dL/dw [B, d], dL/du [B, d], dL/db [B], dL/dc [B]).
    """
    f = np.where(x < xmax, (x / xmax) ** alpha, 1.0)
    error = (w * u).sum(axis=1) + b + c - np.log(x)
    pull = f * error
    return float(0.5 * np.sum(f * error**2)), u * pull[:, None], w * pull[:, None], pull, 1.0 * pull


def train_glove(
    sentences: Sequence[Sequence[str]],
    *,
    dim: int = 24,
    window: int = 4,
    epochs: int = 40,
    lr: float = 0.05,
    xmax: float = 20.0,
    alpha: float = 0.75,
    seed: int = 0,
) -> tuple[Embeddings, list[float]]:
    """GloVe by AdaGrad on shuffled batches of 256 cells. Returns (Embeddings of w + u, summed loss of each epoch).

    AdaGrad keeps for every parameter the sum of its squared gradients, starting at 1: parameter -= lr g / sqrt(sum),
    the g of this batch already in the sum. A row that occurs several times in a batch gets one summed gradient.
    """
    rng = np.random.default_rng(seed)
    vocab = build_vocab(sentences)
    rows, cols, values = cooccurrence(vocab.ids(sentences), window)
    size, losses = len(vocab.words), []
    # A row of `left` is (w_i, b_i), of `right` (u_j, c_j); `seen_*` are AdaGrad's sums.
    left, right = ((rng.random((size, dim + 1)) - 0.5) / dim for _ in range(2))
    seen_left, seen_right = np.ones_like(left), np.ones_like(right)
    for _ in range(epochs):
        order, total = rng.permutation(len(rows)), 0.0
        for start in range(0, len(rows), 256):
            chosen = order[start : start + 256]
            i = rows[chosen]
            j = cols[chosen]
            x = values[chosen]
            loss, dw, du, db, dc = glove_loss_grad(
                left[i, :-1], right[j, :-1], left[i, -1], right[j, -1], x, xmax, alpha
            )
            total = total + loss
            g_left, g_right = np.zeros_like(left), np.zeros_like(right)
            np.add.at(g_left, i, np.hstack([dw, db[:, None]]))
            np.add.at(g_right, j, np.hstack([du, dc[:, None]]))
            seen_left += g_left**2
            seen_right += g_right**2
            left -= lr * g_left / np.sqrt(seen_left)
            right -= lr * g_right / np.sqrt(seen_right)
        losses.append(total)
    return Embeddings(vocab.words, left[:, :dim] + right[:, :dim]), losses


# --------------------------------------------------------------------------------------------------------------------
# Task 7: comparison, and files of the real formats.
# --------------------------------------------------------------------------------------------------------------------


def compare_embeddings(es: Mapping[str, Embeddings], probes: Probes, k: int = 5) -> list[EmbeddingReport]:
    """One report for each entry of `es`, in its order. What has no vector counts as wrong; no question at all is 0.0.

    precision_at_k: mean over all category words of (its k nearest neighbours, itself left out, that are of the same
    category) / k. analogy_accuracy: share of (a, b, c, d) with analogy(e, a, b, c) == [d]. oov_coverage: share of the
    unseen words that have a vector. oov_neighbour_accuracy: share whose single nearest word (itself left out) is one of
    the acceptable ones.
    """
    reports = []
    for name, e in es.items():
        precision, right, covered, accepted_first = [], [], [], []
        for members in probes.categories.values():
            for word in members:
                try:
                    near = nearest(e, e.vector(word), k, [word])
                except KeyError:
                    near = []
                precision.append(len([w for w, _ in near if w in members]) / k)
        for a, b, c, d in probes.analogies:
            try:
                right.append(analogy(e, a, b, c)[:1] == [d])
            except KeyError:
                right.append(False)
        for word, accepted in probes.unseen.items():
            try:
                best = nearest(e, e.vector(word), 1, [word])
            except KeyError:
                covered.append(False)
                accepted_first.append(False)
                continue
            covered.append(True)
            accepted_first.append(len(best) > 0 and best[0][0] in accepted)
        shares = [float(np.mean(values)) if values else 0.0 for values in (precision, right, covered, accepted_first)]
        reports.append(EmbeddingReport(name, *shares))
    return reports


def save_vectors(e: Embeddings, path: Path) -> None:
    """Given: word2vec's text format, `V d`, then `word x1 ... xd` a line; the digits restore the very same floats."""
    lines = [f"{len(e.words)} {e.matrix.shape[1]}"]
    lines += [" ".join([word, *map(repr, row)]) for word, row in zip(e.words, e.matrix.tolist(), strict=True)]
    Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_vectors(path: Path) -> Embeddings:
    """Read UTF-8 lines `word x1 ... xd` separated by single spaces, with word2vec's header `V d` or without (GloVe).

    A first line of exactly two fields, both whole numbers, is a header and gives d; a wrong V in it is no error. Without
    one, d is the most frequent number of fields less one, of the first 200 lines. The last d fields are the numbers, and all
    before them the word: it may contain spaces (`at name@domain.com` in GloVe 840B). Trailing white space of a line
    (fastText writes one) and empty lines are ignored. A line with fewer than d + 1 fields, or with a last field that is
    no number, raises ValueError with "line N", counted from 1.
    """
    text = Path(path).read_bytes().decode("utf-8").split("\n")
    rows = [(i + 1, line.rstrip()) for i, line in enumerate(text) if line.strip()]
    d = None
    if rows:
        first = rows[0][1].split(" ")
        if len(first) == 2 and first[0].isdigit() and first[1].isdigit():
            d = int(first[1])
            rows = rows[1:]
    if d is None:
        widths = [line.count(" ") for _, line in rows[:200]]
        d = max(set(widths), key=widths.count) if widths else 0
    words, vectors = [], []
    for number, line in rows:
        parts = line.rsplit(" ", d) if d else [line]
        if len(parts) != d + 1:
            raise ValueError(f"line {number} has no word and {d} numbers")
        try:
            vectors.append([float(part) for part in parts[1:]])
        except ValueError as error:
            raise ValueError(f"line {number}: not a number") from error
        words.append(parts[0])
    return Embeddings(words, np.array(vectors, dtype=np.float64).reshape(len(words), d))


# --------------------------------------------------------------------------------------------------------------------
# Given: the figure and the command line.
# --------------------------------------------------------------------------------------------------------------------


def plot_embedding(y: np.ndarray, words: Sequence[str], groups: Sequence[str], path: Path) -> Figure:
    """Scatter y [n, 2] as a PNG: a colour and a legend entry for each group, a label for each word."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(dict.fromkeys(groups)):
        mine = [i for i, g in enumerate(groups) if g == group]
        axes.scatter(y[mine, 0], y[mine, 1], s=18, color=f"C{number % 10}", label=group)
    for (a, b), word in zip(y, words, strict=True):
        axes.annotate(word, (a, b), xytext=(3, 2), textcoords="offset points", fontsize=7)
    axes.legend(fontsize="small")
    figure.savefig(path, format="png", dpi=120)
    return figure


def toy_corpus(sentences: int = 2000, seed: int = 0) -> tuple[list[list[str]], Probes]:
    """Sentences about four categories of ten nouns, and about eight countries and their capitals, with their probes."""
    rng, words = np.random.default_rng(seed), str.split
    nouns = {
        "animal": words("dog cat horse cow sheep goat pig hen duck goose"),
        "food": words("bread cheese soup rice apple pear plum cake milk honey"),
        "tool": words("hammer saw drill file axe knife spade rake chisel pliers"),
        "vehicle": words("car bus train tram bike boat ship plane truck van"),
    }
    verbs = {
        "animal": words("barks sleeps runs grazes hides"),
        "food": words("tastes smells cooks spoils melts"),
        "tool": words("cuts breaks rusts bends shines"),
        "vehicle": words("drives stops turns leaves arrives"),
    }
    pairs = words("france:paris italy:rome spain:madrid japan:tokyo egypt:cairo peru:lima kenya:nairobi norway:oslo")
    corpus = []
    for _ in range(sentences):
        if rng.random() < 0.6:
            group = list(nouns)[rng.integers(4)]
            a, b = rng.choice(nouns[group], 2)
            v, w = rng.choice(verbs[group], 2)
            corpus.append(["the", str(a), str(v), "and", "the", str(b), str(w)])
        else:
            which = int(rng.integers(8))
            country, capital = pairs[which].split(":")
            topic = f"topic{which}{'abc'[rng.integers(3)]}"
            if rng.random() < 0.5:
                corpus.append([topic, country, ("land", "border", "people")[rng.integers(3)], topic])
            else:
                corpus.append([topic, capital, ("streets", "mayor", "suburbs")[rng.integers(3)], topic])
    split = [tuple(p.split(":")) for p in pairs]
    analogies = tuple((a, b, c, d) for a, b in split for c, d in split if a != c)
    unseen = {"trams": ("tram",), "hens": ("hen",), "hammers": ("hammer",), "cheeses": ("cheese",)}
    return corpus, Probes({group: tuple(members) for group, members in nouns.items()}, analogies, unseen)


def read_corpus(path: Path, t: float = 1e-4, min_count: int = 5, seed: int = 0) -> list[list[str]]:
    """Lines of a text file as sentences (text8's single line in pieces of 1000 words), rare words out, frequent thinned."""
    tokens = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    sentences = [line[i : i + 1000] for line in tokens for i in range(0, len(line), 1000)]
    vocab = build_vocab(sentences, min_count)
    keep, rng = keep_probability(vocab.counts, t), np.random.default_rng(seed)
    return [[w for w in s if w in vocab.index and rng.random() < keep[vocab.index[w]]] for s in sentences]


def main() -> None:
    """Train the three models on the toy corpus or --corpus (or load --vectors), compare them, and draw a map."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, help="text, one sentence a line, or text8")
    parser.add_argument("--vectors", type=Path, help="vectors in word2vec's, GloVe's or fastText's text format")
    parser.add_argument("--words", nargs="*", default=[], help="words of the map (default: the toy categories)")
    parser.add_argument("--out", type=Path, default=Path("embeddings.png"))
    options = parser.parse_args()
    sentences, probes = toy_corpus()
    if options.vectors:
        models = {"loaded": load_vectors(options.vectors)}
    else:
        if options.corpus:
            sentences = read_corpus(options.corpus)
        models = {
            "word2vec": train_sgns(sentences, epochs=10),
            "glove": train_glove(sentences, xmax=50.0)[0],
            "fasttext": train_sgns(sentences, epochs=10, lr_in=0.3, subwords=Subwords()),
        }
    print(f"{'':10} precision@5  analogies  unseen: covered  right")
    for r in compare_embeddings(models, probes):
        print(f"{r.name:10} {r.precision_at_k:11.2f}{r.analogy_accuracy:11.2f}{r.oov_coverage:17.2f}"
              f"{r.oov_neighbour_accuracy:7.2f}")  # fmt: skip
    e = next(iter(models.values()))
    group = {w: g for g, words in probes.categories.items() for w in words} | dict.fromkeys(options.words, "chosen")
    shown = [w for w in (options.words or group) if w in e.index]
    y, history = tsne(np.stack([e.vector(w) for w in shown]), perplexity=min(15.0, (len(shown) - 1) / 3))
    plot_embedding(y, shown, [group[w] for w in shown], options.out)
    print(f"KL {history[-1]:.3f}, map in {options.out}")


if __name__ == "__main__":
    main()
