"""Mistakes people make in 1.4. Each replaces one function of the model answer, in whose namespace it runs."""

# ruff: noqa: F821
from __future__ import annotations

from llmkata.checks import misconception

# --- task 1 -----------------------------------------------------------------------------------------------------------


@misconception(
    "ties_by_appearance",
    replaces="build_vocab",
    caught_by="test_vocab",
    feedback="Words of equal count keep the order in which they appear, so the same text shuffled gives other ids. Sort by "
    "(-count, word).",
)
def ties_by_appearance(sentences, min_count=1):
    counts = Counter(word for sentence in sentences for word in sentence)
    kept = [w for w, c in counts.most_common() if c >= min_count]
    return Vocab(tuple(kept), np.array([counts[w] for w in kept], dtype=np.int64), {w: i for i, w in enumerate(kept)})


@misconception(
    "window_crosses_sentences",
    replaces="skipgram_pairs",
    caught_by="test_skipgram_pairs",
    feedback="Context stops at the sentence: your window reaches from the end of one sentence into the next, and pairs words "
    "that have nothing to do with each other.",
)
def window_crosses_sentences(ids, window):
    return original([[i for sentence in ids for i in sentence]], window)


@misconception(
    "context_to_the_right_only",
    replaces="skipgram_pairs",
    caught_by="test_skipgram_pairs",
    feedback="You pair a word with what follows it only. Skip-gram's window reaches to both sides of the centre.",
)
def context_to_the_right_only(ids, window):
    pairs = [(s[i], s[j]) for s in ids for i in range(len(s)) for j in range(i + 1, min(len(s), i + window + 1))]
    table = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@misconception(
    "keep_discard_swapped",
    replaces="keep_probability",
    caught_by="test_keep_and_noise",
    feedback="You keep the frequent words and drop the rare: min(1, sqrt(t / f)) is the probability of keeping a word, and "
    "you return that of discarding it.",
)
def keep_discard_swapped(counts, t):
    return 1.0 - original(counts, t)


@misconception(
    "noise_unigram",
    replaces="noise_distribution",
    caught_by="test_keep_and_noise",
    feedback="You draw negatives in proportion to their counts. Word2Vec flattens the unigram distribution by the power 3/4, "
    "so that rare words are drawn more often.",
)
def noise_unigram(counts, power=0.75):
    return original(counts, 1.0)


# --- task 2 -----------------------------------------------------------------------------------------------------------


@misconception(
    "positive_sign",
    replaces="sgns_loss_grad",
    caught_by="test_sgns_gradients",
    feedback="You push true pairs apart: the gradient of -log σ(s) is σ(s) - 1, which is negative, and you use σ(s).",
)
def positive_sign(v, u, un, valid):
    positive = np.einsum("bd,bd->b", v, u)
    negative = np.einsum("bd,bkd->bk", v, un)
    loss = np.logaddexp(0.0, -positive).sum() + np.logaddexp(0.0, negative)[valid].sum()
    g_pos = np.exp(-np.logaddexp(0.0, -positive))
    g_neg = np.exp(-np.logaddexp(0.0, -negative)) * valid
    dv = g_pos[:, None] * u + np.einsum("bk,bkd->bd", g_neg, un)
    return float(loss), dv, g_pos[:, None] * v, g_neg[:, :, None] * v[:, None, :]


@misconception(
    "negatives_include_target",
    replaces="sgns_loss_grad",
    caught_by="test_sgns_gradients",
    feedback="You count negatives that are marked invalid. A negative that equals the true context cancels the positive: it "
    "must add nothing to the loss or to any gradient.",
)
def negatives_include_target(v, u, un, valid):
    return original(v, u, un, np.ones_like(valid))


@misconception(
    "mean_over_the_batch",
    replaces="sgns_loss_grad",
    caught_by="test_sgns_gradients",
    feedback="You divide by the size of the batch. The loss here is the sum over the pairs: each pair then moves its vectors "
    "by the same step, however many others are in the batch.",
)
def mean_over_the_batch(v, u, un, valid):
    loss, *gradients = original(v, u, un, valid)
    return (loss / len(v), *(g / len(v) for g in gradients))


@misconception(
    "log_of_sigmoid",
    replaces="sgns_loss_grad",
    caught_by="test_sgns_is_stable",
    feedback="You take the log of a σ that has underflowed to 0, and the loss is inf. -log σ(s) = log(1 + exp(-s)) is "
    "np.logaddexp(0, -s), which stays finite.",
)
def log_of_sigmoid(v, u, un, valid):
    _, *gradients = original(v, u, un, valid)
    with np.errstate(all="ignore"):
        positive = -np.log(1.0 / (1.0 + np.exp(-np.einsum("bd,bd->b", v, u))))
        negative = -np.log(1.0 / (1.0 + np.exp(np.einsum("bd,bkd->bk", v, un))))
    return (float(positive.sum() + negative[valid].sum()), *gradients)


@misconception(
    "loop_over_pairs",
    replaces="sgns_loss_grad",
    caught_by="test_sgns_steps",
    matches="ratio",
    feedback="You go through the batch pair by pair in Python, which costs a hundred times the arithmetic. One einsum takes "
    "the dot products of all pairs and all negatives at once.",
)
def loop_over_pairs(v, u, un, valid):
    loss, dv, du, dun = 0.0, np.zeros_like(v), np.zeros_like(u), np.zeros_like(un)
    for i in range(len(v)):
        s = v[i] @ u[i]
        loss += np.logaddexp(0.0, -s)
        g = -np.exp(-np.logaddexp(0.0, s))
        dv[i], du[i] = g * u[i], g * v[i]
        for j in range(un.shape[1]):
            if valid[i, j]:
                t = v[i] @ un[i, j]
                loss += np.logaddexp(0.0, t)
                g = np.exp(-np.logaddexp(0.0, -t))
                dv[i] += g * un[i, j]
                dun[i, j] = g * v[i]
    return float(loss), dv, du, dun


# --- task 3 -----------------------------------------------------------------------------------------------------------


@misconception(
    "dot_product_neighbours",
    replaces="nearest",
    caught_by="test_nearest_and_analogy",
    feedback="You rank by the dot product: long vectors, those of frequent words, are then everybody's neighbours. Divide by "
    "both lengths.",
)
def dot_product_neighbours(e, query, k, exclude=()):
    scores = e.matrix @ query
    ranked = [i for i in np.argsort(-scores, kind="stable") if e.words[i] not in exclude]
    return [(e.words[i], float(scores[i])) for i in ranked[:k]]


@misconception(
    "analogy_returns_query",
    replaces="analogy",
    caught_by="test_nearest_and_analogy",
    feedback="Your analogies answer with one of the three words that were given. b - a + c lies near b and c: exclude all "
    "three.",
)
def analogy_returns_query(e, a, b, c, k=1):
    return [word for word, _ in nearest(e, e.vector(b) - e.vector(a) + e.vector(c), k)]


@misconception(
    "analogy_turned_round",
    replaces="analogy",
    caught_by="test_nearest_and_analogy",
    feedback="You look near a - b + c. a is to b as c is to d means b - a = d - c, so d is near b - a + c.",
)
def analogy_turned_round(e, a, b, c, k=1):
    return [word for word, _ in nearest(e, e.vector(a) - e.vector(b) + e.vector(c), k, exclude={a, b, c})]


@misconception(
    "last_gradient_wins",
    replaces="train_sgns",
    caught_by="test_training_step_is_exact",
    feedback="outputs[ids] -= g keeps one gradient of each repeated word and drops the others: NumPy does not add up repeated "
    "indices. Use scatter_add, np.subtract.at or a sparse product.",
)
def last_gradient_wins(sentences, *, dim=24, window=2, negatives=5, epochs=5, lr_in=0.05, lr_out=0.05, batch=256, seed=0,
                       subwords=None):  # fmt: skip
    true_scatter = globals()["scatter_add"]

    def overwrite(target, ids, rows):
        target[ids] += rows

    globals()["scatter_add"] = overwrite
    try:
        return original(sentences, dim=dim, window=window, negatives=negatives, epochs=epochs, lr_in=lr_in, lr_out=lr_out,
                        batch=batch, seed=seed, subwords=subwords)  # fmt: skip
    finally:
        globals()["scatter_add"] = true_scatter


@misconception(
    "rates_stay",
    replaces="train_sgns",
    caught_by="test_training_step_is_exact",
    feedback="Your learning rates do not fall. Multiply both by the given decay, 1 - step / steps: towards the end small steps "
    "let the vectors settle.",
)
def rates_stay(sentences, *, dim=24, window=2, negatives=5, epochs=5, lr_in=0.05, lr_out=0.05, batch=256, seed=0,
               subwords=None):  # fmt: skip
    rng = np.random.default_rng(seed)
    vocab = build_vocab(sentences)
    centres, contexts = skipgram_pairs(vocab.ids(sentences), window)
    composition = composition_matrix(vocab, subwords)
    inputs = (rng.random((composition.shape[1], dim)) - 0.5) / dim
    outputs = np.zeros((len(vocab.words), dim))
    thresholds = noise_distribution(vocab.counts).cumsum()
    thresholds[-1] = 1.0
    for _ in range(epochs):
        order = rng.permutation(len(centres))
        for start in range(0, len(centres), batch):
            chosen = order[start : start + batch]
            centre, context = centres[chosen], contexts[chosen]
            noise = np.searchsorted(thresholds, rng.random((len(chosen), negatives)), side="right")
            rows = composition[centre]
            _, dv, du, dun = sgns_loss_grad(rows @ inputs, outputs[context], outputs[noise], noise != context[:, None])
            inputs -= lr_in * (rows.T @ dv)
            scatter_add(outputs, np.concatenate((context, noise.ravel())),
                        -lr_out * np.concatenate((du, dun.reshape(-1, dim))))  # fmt: skip
    buckets = None if subwords is None else inputs[len(vocab.words) :]
    return Embeddings(vocab.words, composition @ inputs, subwords=subwords, buckets=buckets)


@misconception(
    "one_draw_a_pair",
    replaces="train_sgns",
    caught_by="test_rng_calls",
    matches="calls",
    feedback="You ask the generator once for every pair. rng.random((B, K)) gives the numbers of the whole batch in one call, "
    "and np.searchsorted turns them into words.",
)
def one_draw_a_pair(sentences, *, dim=24, window=2, negatives=5, epochs=5, lr_in=0.05, lr_out=0.05, batch=256, seed=0,
                    subwords=None):  # fmt: skip
    rng = np.random.default_rng(seed)
    vocab = build_vocab(sentences)
    centres, contexts = skipgram_pairs(vocab.ids(sentences), window)
    composition = composition_matrix(vocab, subwords)
    inputs = (rng.random((composition.shape[1], dim)) - 0.5) / dim
    outputs = np.zeros((len(vocab.words), dim))
    thresholds = noise_distribution(vocab.counts).cumsum()
    thresholds[-1] = 1.0
    starts = range(0, len(centres), batch)
    step, steps = 0, epochs * len(starts)
    for _ in range(epochs):
        order = rng.permutation(len(centres))
        for start in starts:
            chosen = order[start : start + batch]
            decay = 1.0 - step / steps
            step += 1
            centre, context = centres[chosen], contexts[chosen]
            noise = np.stack([np.searchsorted(thresholds, rng.random(negatives), side="right") for _ in chosen])
            rows = composition[centre]
            _, dv, du, dun = sgns_loss_grad(rows @ inputs, outputs[context], outputs[noise], noise != context[:, None])
            inputs -= lr_in * decay * (rows.T @ dv)
            scatter_add(outputs, np.concatenate((context, noise.ravel())),
                        -lr_out * decay * np.concatenate((du, dun.reshape(-1, dim))))  # fmt: skip
    buckets = None if subwords is None else inputs[len(vocab.words) :]
    return Embeddings(vocab.words, composition @ inputs, subwords=subwords, buckets=buckets)


# --- task 4 -----------------------------------------------------------------------------------------------------------


@misconception(
    "ngrams_without_brackets",
    replaces="char_ngrams",
    caught_by="test_ngrams_and_hash",
    feedback="Without < and > the n-gram `her` inside `where` and the word `her` are the same feature, and prefixes look like "
    "suffixes. Cut from '<' + word + '>'.",
)
def ngrams_without_brackets(word, min_n, max_n):
    return [word[i : i + n] for i in range(len(word)) for n in range(min_n, max_n + 1) if i + n <= len(word)]


@misconception(
    "longest_ngram_left_out",
    replaces="char_ngrams",
    caught_by="test_ngrams_and_hash",
    feedback="You leave out the n-grams of exactly max_n characters: range(min_n, max_n) ends one too early.",
)
def longest_ngram_left_out(word, min_n, max_n):
    return original(word, min_n, max_n - 1)


@misconception(
    "unsigned_hash",
    replaces="fasttext_hash",
    caught_by="test_ngrams_and_hash",
    feedback="fastText sign-extends bytes: one of 128 or more is XORed as byte | 0xFFFFFF00. With plain bytes only non-ASCII "
    "words land in other buckets, which nobody notices until a Czech model is loaded.",
)
def unsigned_hash(ngram, buckets):
    h = 2166136261
    for byte in ngram.encode():
        h = (h ^ byte) * 16777619 & 0xFFFFFFFF
    return h % buckets


@misconception(
    "repeats_counted_once",
    replaces="composition_matrix",
    caught_by="test_composition",
    feedback="You treat the n-grams of a word as a set. `ana` occurs twice in `banana` and weighs twice; so do two n-grams that "
    "share a bucket.",
)
def repeats_counted_once(v, sub):
    if sub is None:
        return original(v, sub)
    full = original(v, sub)
    full.data[:] = 1.0
    return scipy.sparse.csr_matrix(full.multiply(1.0 / full.sum(1)))


@misconception(
    "sum_instead_of_mean",
    replaces="composition_matrix",
    caught_by="test_composition",
    feedback="You add up a word's members and do not average them: long words then get long vectors and large gradients. Rows "
    "of C sum to 1.",
)
def sum_instead_of_mean(v, sub):
    full = original(v, sub)
    if sub is None:
        return full
    members = [1 + len(char_ngrams(word, sub.min_n, sub.max_n)) for word in v.words]
    return scipy.sparse.csr_matrix(scipy.sparse.diags(members) @ full)


# --- task 5 -----------------------------------------------------------------------------------------------------------


@misconception(
    "difference_tensor",
    replaces="pairwise_sq_dists",
    caught_by="test_pairwise_peak",
    matches="peak_bytes",
    feedback="x[:, None] - x[None] holds n · n · d numbers, d times the answer. |a - b|² = |a|² + |b|² - 2 a·b needs one matrix "
    "product and no more than the table itself.",
)
def difference_tensor(x):
    return ((x[:, None] - x[None]) ** 2).sum(-1)


@misconception(
    "sigma_shared",
    replaces="joint_probabilities",
    caught_by="test_joint_probabilities",
    feedback="You use one bandwidth for all points. The perplexity fixes each point's own: small where points are dense, large "
    "where they are sparse.",
)
def sigma_shared(x, perplexity):
    n = len(x)
    if perplexity > n - 1:
        raise ValueError("perplexity too large")
    d2 = pairwise_sq_dists(x)
    low, high = -80.0, 80.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        shifted = d2 + np.diag(np.full(n, np.inf))
        shifted -= shifted.min(1, keepdims=True)
        p = np.exp(-np.exp(middle) * shifted)
        p /= p.sum(1, keepdims=True)
        entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1).mean()
        low, high = (middle, high) if entropy > np.log(perplexity) else (low, middle)
    return (p + p.T) / (2.0 * n)


@misconception(
    "entropy_in_bits",
    replaces="joint_probabilities",
    caught_by="test_joint_probabilities",
    feedback="You hold an entropy in bits against a logarithm in nats. Perplexity is exp(H) with H in nats, or 2^H with H in "
    "bits: use the same base on both sides.",
)
def entropy_in_bits(x, perplexity):
    n = len(x)
    if perplexity > n - 1:
        raise ValueError("perplexity too large")
    # H / log 2 = log perplexity holds where H = log(perplexity ** log 2).
    return original(x, perplexity ** np.log(2.0))


@misconception(
    "not_symmetrised",
    replaces="joint_probabilities",
    caught_by="test_joint_probabilities",
    feedback="Your P is not symmetric: it holds p_j|i / n. An outlier then has no say about where it goes; t-SNE takes "
    "(p_j|i + p_i|j) / 2n.",
)
def not_symmetrised(x, perplexity):
    n = len(x)
    if perplexity > n - 1:
        raise ValueError("perplexity too large")
    d2 = pairwise_sq_dists(x) + np.diag(np.full(n, np.inf))
    d2 -= d2.min(1, keepdims=True)
    low, high = np.full((n, 1), -80.0), np.full((n, 1), 80.0)
    for _ in range(200):
        middle = 0.5 * (low + high)
        p = np.exp(-np.exp(middle) * d2)
        p /= p.sum(1, keepdims=True)
        flat = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1, keepdims=True) > np.log(perplexity)
        low, high = np.where(flat, middle, low), np.where(flat, high, middle)
    return p / n


@misconception(
    "gaussian_in_map",
    replaces="tsne_kl_grad",
    caught_by="test_tsne_gradient",
    feedback="You use exp(-d²) in the map: that is SNE. Student's t, 1 / (1 + d²), has heavy tails, so that moderate distances "
    "can become large ones and clusters do not crowd.",
)
def gaussian_in_map(y, p):
    w = np.exp(-pairwise_sq_dists(y))
    np.fill_diagonal(w, 0.0)
    q = w / w.sum()
    there = p > 0
    kl = float((p[there] * np.log(p[there] / q[there])).sum())
    f = p - q
    return kl, 4.0 * (f.sum(1)[:, None] * y - f @ y)


@misconception(
    "factor_4_missing",
    replaces="tsne_kl_grad",
    caught_by="test_tsne_gradient",
    feedback="Your gradient is a quarter of what it should be. Each point occurs in pair (i, j) and in pair (j, i), and d² gives "
    "another 2: the factor is 4.",
)
def factor_4_missing(y, p):
    kl, gradient = original(y, p)
    return kl, gradient / 4.0


@misconception(
    "kernel_forgotten",
    replaces="tsne_kl_grad",
    caught_by="test_tsne_gradient",
    feedback="Your gradient lacks the factor 1 / (1 + d²) that comes from differentiating Student's t: far points pull as hard "
    "as near ones.",
)
def kernel_forgotten(y, p):
    w = 1.0 / (1.0 + pairwise_sq_dists(y))
    np.fill_diagonal(w, 0.0)
    f = p - w / w.sum()
    return original(y, p)[0], 4.0 * (f.sum(1)[:, None] * y - f @ y)


@misconception(
    "principal_components",
    replaces="tsne",
    caught_by="test_map_quality",
    feedback="You return a projection on two principal components. It keeps large distances and folds clusters onto each other; "
    "t-SNE moves the points until the KL of neighbourhoods is small.",
)
def principal_components(x, *, perplexity=10.0, iterations=400, seed=0):
    p = joint_probabilities(x, perplexity)
    centred = x - x.mean(0)
    y = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    return y, [tsne_kl_grad(y, p)[0]] * iterations


# --- task 6 -----------------------------------------------------------------------------------------------------------


@misconception(
    "glove_unweighted_distance",
    replaces="cooccurrence",
    caught_by="test_cooccurrence",
    feedback="You count every context word as 1. GloVe weighs it by 1/distance: the neighbour counts whole, a word four places "
    "away a quarter.",
)
def glove_unweighted_distance(ids, window):
    cells = Counter()
    for sentence in ids:
        for i, a in enumerate(sentence):
            for b in sentence[i + 1 : i + 1 + window]:
                cells[a, b] += 1.0
                cells[b, a] += 1.0
    keys = sorted(cells)
    rows, cols = (np.array([key[side] for key in keys], dtype=np.int64) for side in (0, 1))
    return rows, cols, np.array([cells[key] for key in keys], dtype=np.float64)


@misconception(
    "one_direction",
    replaces="cooccurrence",
    caught_by="test_cooccurrence",
    feedback="You count (left word, right word) only. GloVe's table is symmetric: each meeting goes into (i, j) and (j, i).",
)
def one_direction(ids, window):
    cells = Counter()
    for sentence in ids:
        for i, a in enumerate(sentence):
            for distance, b in enumerate(sentence[i + 1 : i + 1 + window], 1):
                cells[a, b] += 1.0 / distance
    keys = sorted(cells)
    rows, cols = (np.array([key[side] for key in keys], dtype=np.int64) for side in (0, 1))
    return rows, cols, np.array([cells[key] for key in keys], dtype=np.float64)


@misconception(
    "dense_table",
    replaces="cooccurrence",
    caught_by="test_cooccurrence_peak",
    matches="peak_bytes",
    feedback="You fill a table of V by V numbers, nearly all zero: with a vocabulary of 400 000 that is a terabyte. Keep only the "
    "cells in which something was counted.",
)
def dense_table(ids, window):
    size = 1 + max((i for s in ids for i in s), default=0)
    table = np.zeros((size, size))
    for s in ids:
        a = np.array(s, dtype=np.int64)
        for distance in range(1, min(window, len(s) - 1) + 1):
            np.add.at(table, (a[:-distance], a[distance:]), 1.0 / distance)
            np.add.at(table, (a[distance:], a[:-distance]), 1.0 / distance)
    rows, cols = np.nonzero(table)
    return rows, cols, table[rows, cols]


@misconception(
    "counts_without_log",
    replaces="glove_loss_grad",
    caught_by="test_glove_gradients",
    feedback="You fit w·u + b + c to the count itself. GloVe fits its logarithm: differences of vectors then stand for ratios of "
    "co-occurrence.",
)
def counts_without_log(w, u, b, c, x, xmax, alpha):
    return original(w, u, b - x + np.log(x), c, x, xmax, alpha)


@misconception(
    "weight_not_capped",
    replaces="glove_loss_grad",
    caught_by="test_glove_gradients",
    feedback="Your weight (x / xmax)^α grows beyond 1, so that the most frequent pairs rule the loss. It is capped: "
    "min(1, (x / xmax)^α).",
)
def weight_not_capped(w, u, b, c, x, xmax, alpha):
    g = (x / xmax) ** alpha * (np.einsum("bd,bd->b", w, u) + b + c - np.log(x))
    loss = 0.5 * (g * (np.einsum("bd,bd->b", w, u) + b + c - np.log(x))).sum()
    return float(loss), g[:, None] * u, g[:, None] * w, g, g.copy()


@misconception(
    "adagrad_divides_by_the_sum",
    replaces="train_glove",
    caught_by="test_glove_learns",
    feedback="You divide by the sum of squared gradients, not by its root: rows with large gradients stop moving after a few "
    "steps, and the loss stays high.",
)
def adagrad_divides_by_the_sum(sentences, *, dim=24, window=4, epochs=40, lr=0.05, xmax=20.0, alpha=0.75, seed=0):
    rng = np.random.default_rng(seed)
    vocab = build_vocab(sentences)
    rows, cols, values = cooccurrence(vocab.ids(sentences), window)
    size, losses = len(vocab.words), []
    left, right = ((rng.random((size, dim + 1)) - 0.5) / dim for _ in range(2))
    seen_left, seen_right = np.ones_like(left), np.ones_like(right)
    for _ in range(epochs):
        order, total = rng.permutation(len(rows)), 0.0
        for start in range(0, len(rows), 256):
            chosen = order[start : start + 256]
            i, j = rows[chosen], cols[chosen]
            loss, dw, du, db, dc = glove_loss_grad(
                left[i, :dim], right[j, :dim], left[i, dim], right[j, dim], values[chosen], xmax, alpha
            )
            total += loss
            for side, seen, ids, vectors, biases in ((left, seen_left, i, dw, db), (right, seen_right, j, du, dc)):
                g = np.zeros_like(side)
                scatter_add(g, ids, np.column_stack((vectors, biases)))
                seen += g * g
                side -= lr * g / seen
        losses.append(total)
    return Embeddings(vocab.words, left[:, :dim] + right[:, :dim]), losses


# --- task 7 -----------------------------------------------------------------------------------------------------------


@misconception(
    "unanswered_left_out",
    replaces="compare_embeddings",
    caught_by="test_compare",
    feedback="You skip questions about words without a vector, so that a model looks better the fewer words it knows. They are "
    "wrong answers, and count in the denominator.",
)
def unanswered_left_out(es, probes, k=5):
    made = []
    for name, e in es.items():
        knows = e.index.__contains__
        kept = Probes(
            {group: tuple(w for w in words if knows(w)) for group, words in probes.categories.items()},
            tuple(q for q in probes.analogies if all(knows(w) for w in q)),
            {w: ok for w, ok in probes.unseen.items() if knows(w)},
        )
        report = original({name: e}, kept, k)[0]
        coverage = original({name: e}, probes, k)[0].oov_coverage
        made.append(EmbeddingReport(name, report.precision_at_k, report.analogy_accuracy, coverage,
                                    report.oov_neighbour_accuracy))  # fmt: skip
    return made


@misconception(
    "header_required",
    replaces="load_vectors",
    caught_by="test_vector_files",
    feedback="You take the first line for a header whatever it holds. GloVe's files have none: their first word is lost.",
)
def header_required(path):
    lines = [(n, line.rstrip().split(" ")) for n, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1)]
    lines = [(n, fields) for n, fields in lines if any(fields)]
    d = len(lines[0][1]) - 1 if len(lines[0][1]) > 2 else int(lines[0][1][1])
    words, matrix = [], []
    for number, fields in lines[1:]:
        try:
            if len(fields) < d + 1:
                raise ValueError("too short")
            matrix.append([float(field) for field in fields[-d:]])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        words.append(" ".join(fields[:-d]))
    return Embeddings(words, np.array(matrix).reshape(-1, d))


@misconception(
    "word_ends_at_the_first_space",
    replaces="load_vectors",
    caught_by="test_vector_files",
    feedback="You take the first field for the word and the rest for numbers. Words may contain spaces: the last d fields are "
    "the numbers, and everything before them is the word.",
)
def word_ends_at_the_first_space(path):
    for number, line in enumerate(Path(path).read_text("utf-8").split("\n"), 1):
        fields = line.rstrip().split(" ")
        if number > 1 and len(fields) > 4:
            raise ValueError(f"line {number}: could not convert {fields[1]!r} to a number")
    return original(path)
