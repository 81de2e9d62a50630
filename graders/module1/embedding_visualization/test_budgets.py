"""Budgets of 1.4 embedding_visualization: draws of a generator handed in, peaks of memory, interpreter steps; 17 points.

A step is one bytecode instruction in a frame of the submission's file; only the ratio of two counts is used.
"""

from llmkata.checks import hint, needs, points, probe, task

MIB = 1 << 20


@probe
def train_with_counted_generator(module, sentences, options, tick):
    """`tick` is called for every method that is taken from the generator."""
    import numpy as np

    class Counted(np.random.Generator):
        def __getattribute__(self, name):
            if not name.startswith("_") and name not in ("bit_generator", "spawn"):
                tick()
            return super().__getattribute__(name)

    module.train_sgns(sentences, seed=Counted(np.random.PCG64(1)), **options)
    return True


@task(3)
@points(4)
@needs("test_training_step_is_exact")
@hint(
    "rng.random((B, K)) and np.searchsorted on the cumulated noise distribution draw all negatives of a batch at once."
)
def test_rng_calls(submission, budget, rng):
    """Training asks its generator twice a batch at most, whatever the size of the batch."""
    sentences = [[f"w{i}" for i in rng.integers(0, 20, 6)] for _ in range(40)]
    draws = []
    # 40 sentences of 6 words, window 2: 40 · 18 = 720 pairs, 6 batches of 128, 2 epochs: 12 batches. The model answer draws
    # 1 + 2 · 1 + 12 = 15 times; the limit is 2 · 12 + 2 · 2 + 4 = 32; a draw for each pair makes 720 · 2 = 1440 and more.
    submission.run(train_with_counted_generator, sentences, {"batch": 128, "epochs": 2}, lambda: draws.append(1))
    budget.require("draws for 12 batches of 128 pairs", len(draws), at_most=32, at_least=12, reference=15, unit="calls",
                   trust="handed in")  # fmt: skip


@task(2)
@points(3)
@needs("test_sgns_gradients")
@hint("np.einsum('bd,bkd->bk', v, un) takes all dot products of all pairs at once; no loop over the batch is left.")
def test_sgns_steps(submission, budget, rng):
    """The gradients of 1024 pairs take as many interpreter steps as those of 64."""
    counts = []
    for b in (64, 1024):
        v, u, un = (rng.standard_normal(s) for s in ((b, 4), (b, 4), (b, 3, 4)))
        valid = rng.random((b, 3)) < 0.8
        counts.append(budget.steps(lambda s, a=(v, u, un, valid): s.sgns_loss_grad(*a)))
    # Vectorised: the same steps, ratio 1; a loop over pairs: 1024 / 64 = 16.
    budget.require("steps for 1024 pairs over steps for 64", counts[1] / counts[0], at_most=1.3, reference=1.0,
                   unit="ratio", trust="self-reported")  # fmt: skip


@task(6)
@points(6)
@needs("test_cooccurrence")
@hint(
    "Most words never meet: keep the cells that occur, in a dictionary or as (row, column, value) arrays.",
    "row * V + column is one number a cell: np.unique and np.bincount add up what is equal.",
)
def test_cooccurrence_peak(submission, budget, rng):
    """Counting co-occurrence takes memory for the pairs that occur, not for V²."""
    ids = [[int(i) for i in rng.permutation(6000)[:1000]] for _ in range(8)]
    # 8000 tokens, window 4: 2 · 4 · 8000 = 64 000 entries; as three arrays with a sort about 64 000 · 80 = 5 MB, in a
    # dictionary of tuples measured 13 MiB. The limit is 40 MiB; a dense table of V²: 6000² · 8 = 288 MB = 275 MiB.
    peak = budget.peak_bytes(lambda s: s.cooccurrence(ids, 4))
    budget.require("peak bytes of cooccurrence", peak, at_most=40 * MIB, at_least=64000 * 8, reference=6 * MIB,
                   unit="bytes")  # fmt: skip


@task(8)
@points(4)
@needs("test_joint_probabilities")
@hint(
    "x[:, None] - x[None] holds n · n · d numbers. |a - b|² = |a|² + |b|² - 2 a·b needs one product.",
    "Write into the product: d2 *= -2; d2 += squares[:, None]. Centre x first, so that little cancels.",
)
def test_pairwise_peak(submission, budget, rng):
    """Distances of n points take memory for n² numbers, whatever their dimension."""
    n, d = 400, 64
    x = rng.standard_normal((n, d))
    # One table: 400² · 8 = 1 280 000 bytes, the model answer measured 1.2 tables; limit 5 tables = 6 400 000 bytes; the
    # tensor of differences: 64 tables and more.
    peak = budget.peak_bytes(lambda s: s.pairwise_sq_dists(x))
    budget.require("peak bytes of pairwise_sq_dists", peak, at_most=5 * n * n * 8, at_least=n * n * 8,
                   reference=1.2 * n * n * 8, unit="bytes")  # fmt: skip
