"""Budgets of 0.2: calls of the model, interpreter steps and bytes, 24 points, 11 of them on the core tasks.

Model calls are counted in the model that is handed in, rows too: a doubled batch is not a cheaper call. That filters
and samplers are free of Python loops over rows is read from the interpreter steps of the submission's own frames.
"""

from __future__ import annotations

import torch

from llmkata.checks import check, hint, needs, points, task


def counting_lm(torch_rng, vocabulary):
    table = torch.randn(vocabulary, vocabulary, generator=torch_rng)
    rows = []

    def lm(ids):
        rows.append(ids.shape[0])
        return table[ids]

    return lm, rows


@task(4)
@points(4)
@needs("test_generate_is_the_reference_sequence")
@hint("All rows go through the model together: one call a step, [n, T] ids.")
def test_generate_lm_calls(submission, budget, torch_rng):
    """`generate` calls the model once a step, on exactly n rows."""
    for n, steps in ((7, 5), (1, 3)):
        lm, rows = counting_lm(torch_rng, 11)
        submission.generate(lm, torch.tensor([1, 2]), submission.Strategy(name="plain"), n, steps,
                            torch.Generator().manual_seed(1))  # fmt: skip
        # One call a step = steps; row by row: n·steps = 35.
        budget.require(f"model calls for {n} rows of {steps} tokens", len(rows), at_most=steps, at_least=steps,
                       reference=steps, unit="calls", trust="handed in")  # fmt: skip
        check(set(rows) == {n}, "each call has n rows", got=rows, want=[n] * steps)


@task(2)
@points(4)
@needs("test_filters_match_bruteforce")
@hint("Sort, softmax, cumsum and scatter work on all rows at once: dim=-1.")
def test_filters_are_vectorised(submission, budget, torch_rng):
    """A filter takes as many interpreter steps for 512 rows as for one."""
    x = torch.randn(512, 50, generator=torch_rng)
    for name, value in (("top_k", 5), ("top_p", 0.8), ("min_p", 0.1)):
        steps = budget.steps(lambda s, name=name, value=value: getattr(s, name)(x, value))
        # Measured 83 to 131 (alternatives 85 to 190), validation included; a loop over rows takes at least 10 steps each, 512·10 = 5120.
        budget.require(f"interpreter steps of {name}", steps, at_most=2500, reference=131, unit="steps")


@task(4)
@points(3)
@needs("test_inverse_cdf_exact")
@hint("torch.searchsorted takes a batch of sorted rows.")
def test_sampler_is_vectorised(submission, budget, torch_rng):
    """`inverse_cdf_sample` draws for 512 rows without a loop over them."""
    x = torch.randn(512, 50, generator=torch_rng)
    u = torch.rand(512, generator=torch_rng, dtype=torch.float64)
    steps = budget.steps(lambda s: s.inverse_cdf_sample(x, u))
    # Measured 92 (alternatives 80 and 96), validation included; a loop over rows takes at least 10 steps each, 512·10 = 5120.
    budget.require("interpreter steps of inverse_cdf_sample", steps, at_most=2500, reference=92, unit="steps")


@task(6)
@points(7)
@needs("test_token_logprobs_shift_and_mask")
@hint(
    "Slice the logits first, then convert, validate and subtract: each of these makes a tensor of the size it is given.",
    "You need x[target] - logsumexp(x), not the log-probabilities of all V tokens.",
)
def test_token_logprobs_peak(submission, budget, torch_rng):
    """Scoring needs memory in proportion to chunk_size, not to the logits."""
    b, t, v, chunk = 1, 129, 2048, 8
    ids = torch.randint(0, v, (b, t), generator=torch_rng)

    def expect(x, ids):
        return x[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)

    for dtype, share in ((torch.float32, 0.25), (torch.bfloat16, 0.60)):
        x = torch.randn(b, t, v, generator=torch_rng).to(dtype)
        size = x.numel() * x.element_size()
        run = budget.replay(lambda s, x, ids: s.token_logprobs(x, ids, chunk_size=chunk), x, ids, expect=expect)
        # A chunk in float32 is 8·2048·4 = 65536 bytes: 0.062 of the float32 logits (129·2048·4 = 1056768 bytes), 0.124 of
        # the bfloat16 ones. Measured 67296 and 132856 bytes (alternatives up to 199248 and 262696), limits 264192 and
        # 317030; the log-softmax of all logits takes 1056768 bytes and more, for either dtype.
        budget.require(f"peak bytes beside {dtype} logits", run.peak_bytes, at_most=int(share * size), at_least=1024,
                       reference=2 * 65536, unit="bytes")  # fmt: skip


@task(7)
@points(3)
@needs("test_exact_sequences")
@hint("All prefixes of one length are one batch.")
def test_exact_lm_calls(submission, budget, torch_rng):
    """`exact_sequences` calls the model once a level, on the V**l prefixes of that level."""
    lm, rows = counting_lm(torch_rng, 7)
    submission.exact_sequences(lm, torch.tensor([1]), submission.Strategy(name="plain"), 4)
    # 4 calls with 1, 7, 49, 343 rows; one for each sequence: 7**4 = 2401.
    budget.require("model calls for 2401 sequences", len(rows), at_most=4, at_least=4, reference=4, unit="calls",
                   trust="handed in")  # fmt: skip
    check(rows == [1, 7, 49, 343], "one row for each prefix", got=rows, want=[1, 7, 49, 343])


@task(8)
@points(3)
@needs("test_compare_strategies")
@hint("The logits of a step give the sample and all statistics of that step.")
def test_compare_lm_calls(submission, budget, torch_rng):
    """`compare_strategies` calls the model `length` times a strategy."""
    lm, rows = counting_lm(torch_rng, 7)
    strategies = [submission.Strategy(name="a"), submission.Strategy(name="b", top_k=2)]
    submission.compare_strategies(lm, torch.tensor([1]), strategies, 5, 4, 0)
    # 2 strategies · 4 steps = 8; generating first and scoring afterwards: 10 or more.
    budget.require("model calls for two strategies of 4 steps", len(rows), at_most=8, at_least=8, reference=8, unit="calls",
                   trust="handed in")  # fmt: skip
    check(set(rows) == {5}, "each call has n rows", got=rows, want=[5] * 8)
