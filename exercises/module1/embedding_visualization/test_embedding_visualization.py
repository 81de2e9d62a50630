"""Visible checks of 1.4 embedding_visualization. They earn no points; what they ask for is in README.md."""

import numpy as np

from llmkata.checks import check, expect_error, hint, probe, same, task

ANIMALS = {
    "cat",
    "horse",
    "cow",
    "sheep",
    "goat",
    "pig",
    "hen",
    "duck",
    "goose",
    "barks",
    "sleeps",
    "runs",
    "grazes",
    "hides",
}
FIVE = [[0, 1, 2, 1, 3]]


@probe
def vocabulary_of(module, sentences):
    v = module.build_vocab(sentences)
    return list(v.words), [int(c) for c in v.counts], [v.index[w] for w in v.words]


@probe
def neighbours_after_training(module, word):
    sentences, _ = module.toy_corpus(800, seed=3)
    e = module.train_sgns(sentences, epochs=8, seed=1)
    return [w for w, _ in module.nearest(e, e.vector(word), 3, exclude={word})]


@probe
def glove_losses(module):
    sentences, _ = module.toy_corpus(300, seed=3)
    return [float(x) for x in module.train_glove(sentences, epochs=5)[1]]


@probe
def one_row(module):
    import numpy as np

    word = ("her",)
    vocab = module.Vocab(word, np.array([1]), {"her": 0})
    c = module.composition_matrix(vocab, module.Subwords(3, 5, 50))
    return c.toarray()


@probe
def compared(module):
    import numpy as np

    e = module.Embeddings(["cat", "dog", "tea"], np.array([[1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]))
    probes = module.Probes({"animal": ("cat", "dog")}, (("cat", "dog", "tea", "tea"),), {"cats": ("cat",)})
    (r,) = module.compare_embeddings({"two": e}, probes, k=1)
    return [r.precision_at_k, r.analogy_accuracy, r.oov_coverage, r.oov_neighbour_accuracy]


@probe
def read_back(module, text):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vectors.txt"
        path.write_text(text, encoding="utf-8")
        e = module.load_vectors(path)
    return list(e.words), e.matrix


@probe
def figure_facts(module, y, words, groups):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "map.png"
        figure = module.plot_embedding(y, words, groups, path)
        signature = path.read_bytes()[:8]
    (axes,) = figure.axes
    drawn = [tuple(float(v) for v in point) for c in axes.collections for point in c.get_offsets()]
    return (
        signature,
        sorted(drawn),
        sorted(t.get_text() for t in axes.texts),
        [t.get_text() for t in axes.get_legend().texts],
    )


@task(1)
@hint("Centre by centre, and from left to right: what stands at most `window` places away in the same sentence.")
def test_what_the_corpus_says(submission):
    """Vocabulary, pairs, and the two distributions of a corpus that fits on a line."""
    got = submission.run(vocabulary_of, [["b", "a", "b"], ["c"]])
    check(list(got) == [["b", "a", "c"], [2, 1, 1], [0, 1, 2]], "Words by count, then alphabetically.", got=got)
    centres, contexts = submission.skipgram_pairs([[0, 1, 2], [3], [4, 5]], 1)
    same(centres, np.array([0, 1, 1, 2, 4, 5]), what="centres")
    same(contexts, np.array([1, 0, 2, 1, 5, 4]), what="contexts")
    counts = np.array([81, 16, 3])
    same(
        submission.keep_probability(counts, 0.04),
        np.array([0.2222222222, 0.5, 1.0]),
        atol=1e-9,
        what="keep probability",
    )
    # 81^¾ = 27, 16^¾ = 8, 3^¾ = 2.27950706
    want = np.array([27.0, 8.0, 2.27950706]) / 37.27950706
    same(submission.noise_distribution(counts), want, atol=1e-8, what="noise distribution")


@task(2)
@hint("Move one coordinate by h and by -h: (L(+h) - L(-h)) / 2h is the gradient.")
def test_sgns_by_finite_differences(submission, rng):
    """Each gradient of skip-gram with negative sampling is what the loss changes by."""
    arrays = [rng.standard_normal(s) for s in ((3, 2), (3, 2), (3, 2, 2))]
    valid = np.array([[True, False], [True, True], [False, False]])
    zero = [np.zeros_like(a) for a in arrays]
    loss = submission.sgns_loss_grad(*zero, valid)[0]
    same(loss, 6 * np.log(2.0), dtype=None, atol=1e-9, what="loss of zero vectors: 3 positives and 3 valid negatives")
    gradients = submission.sgns_loss_grad(*arrays, valid)[1:]
    for which, place in ((0, (1, 0)), (1, (2, 1)), (2, (0, 0, 1)), (2, (0, 1, 0))):
        values = []
        for h in (1e-5, -1e-5):
            moved = [a.copy() for a in arrays]
            moved[which][place] += h
            values.append(submission.sgns_loss_grad(*moved, valid)[0])
        slope = (values[0] - values[1]) / 2e-5
        same(gradients[which][place], slope, dtype=None, atol=1e-7, what=f"gradient of argument {which} at {place}")


@task(3)
@hint("If losses fall but neighbours are noise, look at repeated ids in a batch, and at the valid mask.")
def test_neighbours_of_dog(submission):
    """After half a second of training, the neighbours of `dog` are animals."""
    got = submission.run(neighbours_after_training, "dog")
    check(len(got) == 3 and set(got) <= ANIMALS, "The three nearest words come from the animals' sentences.", got=got)


@task(4)
@hint("`<her>` has the n-grams <he her er> <her her> <her>.")
def test_ngrams_of_where(submission):
    """n-grams, a bucket that fastText's own files use, and one row of the composition."""
    got = sorted(submission.char_ngrams("where", 3, 3))
    check(got == sorted(["<wh", "whe", "her", "ere", "re>"]), "The trigrams of <where>.", got=got)
    check(submission.fasttext_hash("<wh", 2000000) == 167652, "The bucket of <wh.", want=167652)
    check(
        submission.fasttext_hash("<é", 2000000) == 36627, "The bucket of <é, whose bytes are 128 and more.", want=36627
    )
    row = submission.run(one_row)
    same(row.sum(1), np.ones(1), atol=1e-12, what="sum of the row")
    same(row[0, 0], 1 / 7, dtype=None, atol=1e-12, what="weight of the own vector beside six n-grams")


@task(5)
@hint("Perplexity is exp of the entropy: a row that is uniform over m neighbours has perplexity m.")
def test_small_map(submission, rng):
    """Four points at equal distances, a P that sums to 1, and the gradient by finite differences."""
    p = submission.joint_probabilities(np.eye(4), 3.0)
    same(p, (1 - np.eye(4)) / 12, atol=1e-9, what="P of four points at equal distances")
    with expect_error(ValueError):
        submission.joint_probabilities(np.eye(4), 4.0)
    x, y = rng.standard_normal((9, 3)), rng.standard_normal((9, 2))
    p = submission.joint_probabilities(x, 4.0)
    same(p, p.T, atol=1e-14, what="P turned round")
    same(p.sum(), 1.0, dtype=None, atol=1e-12, what="sum of P")
    h = np.zeros_like(y)
    h[3, 1] = 1e-5
    slope = (submission.tsne_kl_grad(y + h, p)[0] - submission.tsne_kl_grad(y - h, p)[0]) / 2e-5
    same(submission.tsne_kl_grad(y, p)[1][3, 1], slope, dtype=None, atol=1e-7, what="gradient at one coordinate")


@task(6)
@hint("0 and 1 are neighbours (1) and three apart (1/3); 1 stands twice, two apart, and counts from both sides.")
def test_cooccurrence_of_five_words(submission):
    """Sums of 1/distance of a five-word sentence, and a GloVe whose loss falls."""
    rows, cols, values = submission.cooccurrence(FIVE, 3)
    # Every pair but (0, 3), which is four apart, and the words that stand once beside themselves.
    same(rows, np.array([0, 0, 1, 1, 1, 1, 2, 2, 2, 3, 3]), what="rows")
    same(cols, np.array([1, 2, 0, 1, 2, 3, 0, 1, 3, 1, 2]), what="columns")
    want = {(0, 1): 4 / 3, (0, 2): 1 / 2, (1, 1): 1.0, (1, 2): 2.0, (1, 3): 4 / 3, (2, 3): 1 / 2}
    for (i, j), value in want.items():
        cell = [float(v) for a, b, v in zip(rows, cols, values) if (a, b) == (i, j)]
        same(cell, [value], atol=1e-12, what=f"cell ({i}, {j})")
    losses = submission.run(glove_losses)
    check(len(losses) == 5 and losses[-1] < losses[0], "The loss falls from epoch to epoch.", got=losses)


@task(7)
@hint("The unseen word has no vector here: coverage 0, and its neighbour counts as wrong.")
def test_comparison_and_a_file(submission):
    """The four shares of two animals and a drink, and a GloVe line with a space in its word."""
    same(submission.run(compared), [1.0, 0.0, 0.0, 0.0], dtype=None, what="shares")
    words, matrix = submission.run(read_back, "at home 1.5 -2.0\nhome 0.25 1\naway 0 3\n")
    check(list(words) == ["at home", "home", "away"], "Words before the last two fields.", got=words)
    same(matrix, np.array([[1.5, -2.0], [0.25, 1.0], [0.0, 3.0]]), what="vectors")


@task(8)
@hint("Distances of n points are n² numbers: the centred product and its diagonal are enough.")
def test_distances(submission, rng):
    """Squared distances are right far away from the origin, too."""
    x = rng.standard_normal((6, 4)) + 1000.0
    want = ((x[:, None] - x[None]) ** 2).sum(-1)
    same(submission.pairwise_sq_dists(x), want, atol=1e-8, what="squared distances")


@task(5)
@hint("The figure is given; it needs matplotlib.")
def test_figure(submission, rng):
    """The figure shows each point where the map has it, a label a word, and a legend entry a group."""
    y, words = rng.standard_normal((5, 2)), ["a", "b", "c", "d", "e"]
    signature, drawn, labels, legend = submission.run(figure_facts, y, words, ["u", "v", "u", "w", "v"])
    check(bytes(signature) == b"\x89PNG\r\n\x1a\n", "The file is a PNG.")
    same(np.array(drawn), np.array(sorted(map(tuple, y.tolist()))), atol=1e-12, what="points of the figure")
    check(list(labels) == words and list(legend) == ["u", "v", "w"], "Labels and legend.", got=(labels, legend))
