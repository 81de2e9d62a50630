"""Exercise 1.4: Word2Vec, FastText and GloVe in NumPy with gradients by hand, and the map that t-SNE draws of them.

Packages: numpy and scipy.sparse; matplotlib in the given figure only. gensim, sklearn, torch and scipy.special may not
be imported.

Notation: V words, d dimensions, B pairs in a batch, K negatives a pair, n points of a map. All floats are float64.
"""

from __future__ import annotations

import argparse
from collections import Counter
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
    raise NotImplementedError("task 1: count, filter, sort")


def skipgram_pairs(ids: Sequence[Sequence[int]], window: int) -> tuple[np.ndarray, np.ndarray]:
    """(centres, contexts), int64 [N] each: every word with every other position at most `window` away in its sentence.

    The window is fixed (Word2Vec draws its width; here it is not drawn). Centre-major: by sentence, then by position of
    the centre, then by position of the context from left to right. A pair of equal ids is a pair like any other.
    """
    raise NotImplementedError("task 1: pairs within the window and the sentence")


def keep_probability(counts: np.ndarray, t: float) -> np.ndarray:
    """Subsampling of frequent words: min(1, sqrt(t / f)) with f = counts / Σ counts. counts [V] > 0 -> [V] float64."""
    raise NotImplementedError("task 1: min(1, sqrt(t / f))")


def noise_distribution(counts: np.ndarray, power: float = 0.75) -> np.ndarray:
    """The distribution negatives are drawn from: counts^power, normalised. counts [V] -> [V] float64."""
    raise NotImplementedError("task 1: counts to a power, normalised")


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
    raise NotImplementedError("task 2: stable log-sigmoids, σ - 1 for the positive, σ for the valid negatives")


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
            raise NotImplementedError("task 3: draw negatives, gradients, SGD on the rows of this batch")
    buckets = None if subwords is None else inputs[len(vocab.words) :]
    return Embeddings(vocab.words, composition @ inputs, subwords=subwords, buckets=buckets)


def nearest(e: Embeddings, query: np.ndarray, k: int, exclude: Collection[str] = ()) -> list[tuple[str, float]]:
    """The k words of `e` with the largest cosine to query [d], best first, as (word, cosine); fewer if there are fewer.

    Words in `exclude` do not appear. A zero vector, on either side, has cosine 0. Ties: the earlier word of e.words.
    """
    raise NotImplementedError("task 3: cosines, stable order")


def analogy(e: Embeddings, a: str, b: str, c: str, k: int = 1) -> list[str]:
    """a is to b as c is to ...: the k words nearest to b - a + c (raw vectors), a, b and c left out.

    KeyError if one of the three has no vector.
    """
    raise NotImplementedError("task 3: b - a + c without a, b, c")


# --------------------------------------------------------------------------------------------------------------------
# Task 4: FastText, words as sets of character n-grams.
# --------------------------------------------------------------------------------------------------------------------


def char_ngrams(word: str, min_n: int, max_n: int) -> list[str]:
    """All substrings of `<word>` with min_n <= length <= max_n characters, repeats kept, in any order.

    `<word>` itself is one of them if it is short enough, and so are `<` and `>` if min_n is 1.
    """
    raise NotImplementedError("task 4: substrings of the bracketed word")


def fasttext_hash(ngram: str, buckets: int) -> int:
    """fastText's bucket: 32-bit FNV-1a over the UTF-8 bytes, each sign-extended to 32 bits, modulo `buckets`.

    h = 2166136261; for each byte: h = (h XOR byte) · 16777619 mod 2³². A byte of 128 or more is XORed as byte - 256 in
    two's complement, i.e. as byte + 0xFFFFFF00 (fastText reads it as int8_t, and its stored models depend on it).
    """
    raise NotImplementedError("task 4: FNV-1a with sign extension")


def composition_matrix(v: Vocab, sub: Subwords | None) -> scipy.sparse.csr_matrix:
    """C [V, V + buckets]: row i averages word i's own vector (column i) and those of its n-grams' buckets (V + hash).

    With m n-grams each entry weighs 1 / (1 + m); repeated n-grams and colliding buckets add up, so rows sum to 1. For
    sub None: the identity [V, V].
    """
    size = len(v.words)
    if sub is None:
        return scipy.sparse.identity(size, format="csr")
    raise NotImplementedError("task 4: one row for each word")


def compose_unseen(word: str, sub: Subwords, buckets: np.ndarray) -> np.ndarray:
    """Vector [d] of a word outside the vocabulary: mean of its n-grams' rows of `buckets` [sub.buckets, d].

    Repeats count as often as they occur. A word without n-grams raises KeyError.
    """
    raise NotImplementedError("task 4: mean of the buckets")


# --------------------------------------------------------------------------------------------------------------------
# Task 5: t-SNE.
# --------------------------------------------------------------------------------------------------------------------


def pairwise_sq_dists(x: np.ndarray) -> np.ndarray:
    """x [n, d] -> [n, n]: squared Euclidean distances, never negative, exactly 0 on the diagonal.

    Right to 1e-8 also for points 1 apart that lie 1e5 away from the origin.
    """
    raise NotImplementedError("task 5: squared distances")


def joint_probabilities(x: np.ndarray, perplexity: float) -> np.ndarray:
    """P [n, n] of t-SNE: p_j|i = exp(-β_i d²_ij) / Σ_{k≠i} exp(-β_i d²_ik), p_ij = (p_j|i + p_i|j) / 2n, diagonal 0.

    Each row's precision β_i is bisected until |entropy in nats - log perplexity| < 1e-8, at most 200 times (a row whose
    nearest points coincide may not reach it). Raises ValueError if perplexity > n - 1: no row can have it.
    """
    n = len(x)
    if perplexity > n - 1:
        raise ValueError(f"perplexity {perplexity} needs more than {n} points")
    raise NotImplementedError("task 5: bisect each row's precision, symmetrise")


def tsne_kl_grad(y: np.ndarray, p: np.ndarray) -> tuple[float, np.ndarray]:
    """KL(P || Q) in nats and its gradient with respect to the map y [n, 2]; p [n, n] with zero diagonal.

    q_ij = w_ij / Σ_{k≠l} w_kl with w_ij = 1 / (1 + |y_i - y_j|²), w_ii = 0. Terms with p_ij = 0 are 0. p need not sum
    to 1 where the optimiser exaggerates it: the gradient is 4 Σ_j (p_ij - q_ij) w_ij (y_i - y_j) as it stands.
    """
    raise NotImplementedError("task 5: Student-t similarities, KL, gradient")


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
    raise NotImplementedError("task 6: sparse sums of 1/distance")


def glove_loss_grad(
    w: np.ndarray, u: np.ndarray, b: np.ndarray, c: np.ndarray, x: np.ndarray, xmax: float, alpha: float
) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """GloVe's loss ½ Σ min(1, (x/xmax)^α) (w·u + b + c - log x)² over B cells, and its gradients.

    w, u [B, d]; b, c, x [B], x > 0. Returns (loss, dL/dw [B, d], dL/du [B, d], dL/db [B], dL/dc [B]).
    """
    raise NotImplementedError("task 6: weighted least squares on log x")


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
            raise NotImplementedError("task 6: gradients of the batch, AdaGrad on the rows they belong to")
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
    raise NotImplementedError("task 7: four shares for each embedding")


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
    raise NotImplementedError("task 7: header or not, words with spaces, ragged lines")


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
