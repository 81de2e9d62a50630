"""Hidden checks of 0.2: 51 points on the core tasks, 25 on the stretch tasks.

Filters are checked against a brute force over sorted lists, not against transformers' warpers: those keep other tokens
on ties, and importing them costs more than all other checks together. Rows in which a mass lies within 1e-6 of a bar
are left out: rounding decides them. Language models are tables that depend on the whole prefix; they run on the
grader's side. The KL of a truncation at T = 1 is checked through `compare_strategies` with one token, where all n rows
have the same prefix, so that a Monte Carlo mean is exact.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import strategies as st

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, sk, task

INF = math.inf


def table_lm(torch_rng, vocabulary: int, scale: float = 1.5, dtype=torch.float32):
    """A language model whose logits depend on the whole prefix; its calls are counted in `lm.rows`, `lm.fed` is the last."""
    now = scale * torch.randn(vocabulary, vocabulary, generator=torch_rng, dtype=torch.float64)
    past = 0.5 * scale * torch.randn(vocabulary, vocabulary, generator=torch_rng, dtype=torch.float64)
    rows = []

    def lm(ids):
        rows.append(ids.shape[0])
        lm.fed = ids
        return (now[ids] + past[ids.cumsum(-1) % vocabulary]).to(dtype)

    lm.rows = rows
    return lm


# -- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@points(6)
@hint(
    "exp(-230) is 0 in float32, and log(0) is -inf: never form the probability.",
    "log p_i = x_i - c - log Σ exp(x_j - c) for any c. Which c makes overflow impossible?",
)
def test_log_softmax(submission, reference, rng):
    """`log_softmax` is right along any axis and in any float dtype, also where the probability underflows."""
    same(submission.log_softmax(torch.tensor([0.0, -200.0, 30.0])), torch.tensor([-30.0, -230.0, 0.0]), atol=1e-3,
         what="log_softmax([0, -200, 30])")  # fmt: skip
    x = torch.from_numpy(3 * rng.standard_normal((3, 4, 5)))
    hard = torch.tensor([[1e4, 0, -1e4], [0, -INF, 1], [-1e4, -1e4, -INF], [5, -INF, -INF]], dtype=torch.float64)
    for values, dims in ((x, (0, 1, 2, -1)), (hard, (-1,)), (x[..., :1], (-1,))):
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            given = values.to(dtype)
            out = torch.promote_types(dtype, torch.float32)
            for dim in dims:
                got, (after, *_) = submission.call("log_softmax", given, dim, echo=True)
                want = torch.from_numpy(reference.log_softmax(given.double().numpy(), dim))
                size = given.double().abs().masked_fill(given == -INF, 0).clamp(min=1) + want.abs().nan_to_num(posinf=0)
                same(got, want.to(out), atol=16 * torch.finfo(out).eps * size.numpy(), rtol=0,
                     what=f"log_softmax of {dtype} {tuple(given.shape)} along {dim}")  # fmt: skip
                same(after, given, atol=0, rtol=0, what="the logits after the call")


@task(1)
@points(8)
@needs("test_log_softmax")
@hint(
    "Logits at position t are about token t + 1. How many scores do T tokens have?",
    "The mask that counts is that of the target, attention_mask[:, 1:]. Ids there may be anything: replace them before "
    "you look them up.",
)
def test_token_logprobs_shift_and_mask(submission, reference, rng):
    """`token_logprobs` scores each token by the logits before it, 0.0 where the target is masked."""
    b, t, v = 3, 6, 7
    logits = torch.from_numpy(2 * rng.standard_normal((b, t, v)))
    ids = torch.from_numpy(rng.integers(0, v, (b, t)))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    hidden = torch.where(mask == 0, -100, ids)
    want = torch.from_numpy(reference.token_logprobs(logits.numpy(), ids.numpy())).float()
    for dtype in (torch.float32, torch.float64):
        for chunk in (1, 2, 4, 7, t):
            got = submission.token_logprobs(logits.to(dtype), ids, chunk_size=chunk)
            same(got, want, atol=2e-5, what=f"scores with chunk_size={chunk}")
    masked = torch.from_numpy(reference.token_logprobs(logits.numpy(), ids.numpy(), mask.numpy())).float()
    for m in (mask, mask.bool()):
        same(submission.token_logprobs(logits.float(), hidden, m, chunk_size=2), masked, atol=2e-5, what="masked scores")
    same(submission.token_logprobs(logits.float(), ids), want, atol=2e-5, what="scores with the default chunk_size")
    half = logits.bfloat16()
    want = torch.from_numpy(reference.token_logprobs(half.double().numpy(), ids.numpy())).float()
    same(submission.token_logprobs(half, ids, chunk_size=3), want, atol=2e-5, what="scores from bfloat16 logits")
    same(submission.token_logprobs(logits[:, :1], ids[:, :1]), torch.zeros(b, 0), atol=0, what="scores for T = 1")
    # Where exp of a logit overflows or is 0, and over a vocabulary of one token: the masked id is not one of it.
    hard = torch.tensor([[[1e4, 0, -1e4], [0, -INF, 1], [-200, 0, 30], [0, 0, 0]]])
    want = torch.log_softmax(hard.double(), -1)[:, (0, 1, 2), (1, 2, 0)].float()
    same(submission.token_logprobs(hard, torch.tensor([[0, 1, 2, 0]])), want, atol=1e-3, what="scores from hard logits")
    only = submission.token_logprobs(torch.zeros(1, 3, 1), torch.tensor([[0, -100, 0]]), torch.tensor([[1, 0, 1]]))
    same(only, torch.zeros(1, 2), atol=0, what="scores over a vocabulary of one token")
    spoilt = logits.float()
    spoilt[:, -1] = math.nan
    got = submission.token_logprobs(spoilt, ids)
    check(bool(torch.isfinite(got).all()), "The logits of the last position are about no token: do not look at them.")
    spoilt[1, 2] = math.nan
    with expect_error(ValueError, "NaN"):
        submission.token_logprobs(spoilt, ids)


# -- task 2 -----------------------------------------------------------------------------------------------------------


def filter_cases(values):
    """(logits [..., V], a value of the filter): small integers, so that there are ties; sometimes -inf."""

    @st.composite
    def cases(draw):
        v = draw(st.integers(1, 12))
        batch = draw(st.sampled_from(((), (2,), (3, 2))))
        seed = draw(st.integers(0, 999))
        rng = np.random.default_rng(seed)
        kind = draw(st.sampled_from(("integers", "reals", "holes")))
        x = rng.standard_normal((*batch, v)) * 2 if kind == "reals" else rng.integers(-3, 4, (*batch, v)).astype(float)
        if kind == "holes":
            x[rng.random(x.shape) < 0.3] = -INF
            x[..., 0] = 0.0
        return torch.from_numpy(x), draw(values)

    return cases()


#: 24 pairs of logits 0 and 1.
TIES = torch.tensor([0.0, 1.0] * 24)
FRACTIONS = st.sampled_from((0.5, 0.9, 1.0, 0.1, 0.3, 0.75, 0.02, 0.999))


def against_brute_force(submission, reference, name, x, value, dtype=torch.float64):
    x = x.to(dtype)
    flat = x.double().reshape(-1, x.shape[-1]).numpy()
    if any(reference.near_a_bar(name, row, value) for row in flat):
        return
    want = x.clone().reshape(flat.shape)
    for i, row in enumerate(flat):
        ids = reference.kept(name, row, value)
        want[i, [j for j in range(len(row)) if j not in ids]] = -INF
    got, (after, *_) = submission.call(name, x, value, echo=True)
    same(got, want.reshape(x.shape), atol=0, rtol=0, what=f"{name}(logits, {value})")
    same(after, x, atol=0, rtol=0, what=f"the logits after {name}")


@task(2)
@points(9)
@hint(
    "top_p: sort, and ask for each token what mass came before it. The first one always stays, and so does the one that "
    "crosses p.",
    "What you decide in sorted order must go back to token ids: scatter the decisions along the sort's indices.",
    "top_k compares with the k-th largest logit: whoever is tied with it stays.",
)
@sk.given(st.tuples(filter_cases(st.sampled_from((1, 2, 3, 5, 50))), FRACTIONS), examples=50)
def test_filters_match_bruteforce(submission, reference, case):
    """top_k, top_p and min_p keep what their definitions say, on ties, holes and any batch."""
    (x, k), p = case
    against_brute_force(submission, reference, "top_k", x, k)
    against_brute_force(submission, reference, "top_p", x, p)
    against_brute_force(submission, reference, "min_p", x, p)


@task(2)
@points(4)
@hint(
    "Probabilities of 4096 tokens in bfloat16 have 8 bits, and a sum of them stalls. float32 first, sums in float64.",
    "p = 1 keeps every token: a rounded sum may reach 1 too early.",
)
def test_filter_invariants(submission, reference, rng):
    """Filters refuse bad values, ignore shifts, grow with p, and are as exact for bfloat16 logits as for float32."""
    x = torch.from_numpy(2 * rng.standard_normal((4, 60)))
    for name, values in (("top_k", (1, 7, 60)), ("top_p", (0.2, 0.7, 1.0)), ("min_p", (1.0, 0.1, 0.01))):
        fn, before = getattr(submission, name), None
        for value in values:
            got = fn(x, value)
            kept = got > -INF
            check(bool(kept.any(-1).all()), f"{name} must leave a token in each row")
            check(bool((got == x)[kept].all()), f"{name} must leave surviving logits as they are")
            check(torch.equal(fn(x + 4.0, value) > -INF, kept), f"{name} must not see a shift of all logits")
            order = torch.from_numpy(rng.permutation(60))
            check(torch.equal(fn(x[:, order], value) > -INF, kept[:, order]), f"{name} must not depend on token ids")
            check(before is None or bool((kept | ~before).all()), f"{name}: a wider filter keeps more")
            before = kept
    check(bool((submission.top_p(4 * x, 1.0) > -INF).all()), "top_p with p = 1 keeps all tokens")
    # A sort that is not stable may shuffle ties in rows longer than 16.
    against_brute_force(submission, reference, "top_p", TIES, 0.31)
    for name, bad in (("top_k", 0), ("top_p", 0.0), ("min_p", 1.5), ("temperature", 0.0)):
        same(submission.temperature(x, 2.0), x / 2, atol=1e-12, what="temperature(x, 2)")
        with expect_error(ValueError, name):
            getattr(submission, name)(x, bad)
    wide = torch.from_numpy(rng.standard_normal(4096)).bfloat16()
    got = submission.top_p(wide, 0.9)
    want = len(reference.kept_of_many(wide.double().numpy(), 0.9))
    check(got.dtype == torch.float32, "bfloat16 logits come back in float32", got=got.dtype, want=torch.float32)
    # float32 probabilities are right to 1e-7 each: one token more or less; a bfloat16 sum loses dozens.
    same(int((got > -INF).sum()), want, atol=5, rtol=0, dtype=None, what="tokens in the nucleus of 4096 bfloat16 logits")


@task(2)
@points(3)
@hint("Each filter gets what the one before it returned, and temperature comes first.")
def test_strategy_order(submission, reference, rng):
    """`apply_strategy` tempers first, then top_k, top_p and min_p; greedy keeps the argmax of the logits as given."""
    fixed = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0], dtype=torch.float64)
    rows = [fixed, *torch.from_numpy(2 * rng.standard_normal((6, 9)))]
    for fields in (
        {"temperature": 3.0, "top_p": 0.6},
        {"temperature": 0.5, "min_p": 0.2},
        {"temperature": 2.0, "top_k": 4, "top_p": 0.72},
        {"top_k": 3, "min_p": 0.15, "top_p": 0.83},
        {"greedy": True, "temperature": 0.5, "top_k": 2},
        {},
    ):
        for row in rows:
            got = submission.apply_strategy(row, submission.Strategy(name="s", **fields))
            want = torch.from_numpy(reference.filtered(row.numpy(), fields))
            same(got, want, atol=1e-12, what=f"apply_strategy with {fields}")
    tied = torch.tensor([1.0, 2.0, 2.0])
    got = submission.apply_strategy(tied, submission.Strategy(name="greedy", greedy=True))
    same(got, torch.tensor([-INF, 2.0, -INF]), atol=0, what="greedy on a tie: the lowest id")


# -- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@points(6)
@hint(
    "0·(-inf) is NaN, but a token of probability 0 adds nothing to the entropy: mask it out before the sum.",
    "rank: how many tokens have a larger logit, plus how many equal ones have a smaller id?",
    "Nats, not bits: natural logs.",
)
def test_stats_oracle(submission, reference, rng):
    """Entropy, surprisal, rank, nucleus size, margin and largest probability match their definitions."""
    rows = [
        (2 * rng.standard_normal((2, 3, 9)), 0.9),
        (rng.integers(-2, 3, (5, 8)).astype(float), 0.77),
        (np.zeros((2, 10)), 0.55),
        (np.array([[0.0, -INF, -INF], [1.0, 0.0, -INF]]), 0.9),
        (np.array([[0.0, -INF, -INF], [1.0, 0.0, -INF]]), 1.0),
        (np.zeros((3, 1)), 0.5),
    ]
    for x, p in rows:
        targets = rng.integers(0, x.shape[-1], x.shape[:-1]) if np.isfinite(x).all() else np.zeros(x.shape[:-1], int)
        for dtype in (torch.float64, torch.float32):
            got = submission.distribution_stats(torch.from_numpy(x).to(dtype), torch.from_numpy(targets), top_p=p)
            given = torch.from_numpy(x).to(dtype).double().numpy()
            for index in np.ndindex(*targets.shape):
                for name, want in reference.stats(given[index], int(targets[index]), p).items():
                    value = float(getattr(got, name)[index])
                    tol = 1e-5 if dtype == torch.float32 else 1e-10
                    same(value, float(want), atol=tol, rtol=tol, dtype=None, what=f"{name} of {x[index].round(3)}")
        for name in ("entropy", "surprisal", "rank", "nucleus_size", "margin", "max_prob"):
            same(tuple(getattr(got, name).shape), x.shape[:-1], what=f"shape of {name}: that of the targets")
        for name in ("rank", "nucleus_size"):
            check(getattr(got, name).dtype == torch.int64, f"{name} is int64", got=getattr(got, name).dtype)


@task(3)
@points(2)
@hint("Sort the log-probabilities of each distribution first, then average over distributions.")
def test_rank_curve(submission, reference, rng):
    """`rank_curve` is the mean log-probability at each rank, over all leading axes."""
    for shape in ((7,), (4, 7), (2, 3, 5)):
        x = rng.standard_normal(shape)
        want = -np.sort(-reference.log_softmax(x), axis=-1).reshape(-1, shape[-1])
        got = submission.rank_curve(torch.from_numpy(x))
        same(got, torch.from_numpy(want.mean(0)), atol=1e-11, what=f"rank_curve of {shape}")


# -- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@points(5)
@hint(
    "The smallest i with cdf[i] > u: at u = 0 a first token of probability 0 has cdf 0, which is not > 0.",
    "torch.searchsorted has `right`: which side of an equal entry do you want?",
)
def test_inverse_cdf_exact(submission, reference, rng):
    """`inverse_cdf_sample` returns the first token whose cumulative probability exceeds u, never one of probability 0."""
    quarters = torch.tensor([-INF, 0.0, -INF, 0.0, 0.0, 0.0, -INF])
    u = torch.tensor([0.0, 0.24, 0.25, 0.5, 0.6, 0.75, 1 - 2.0**-53], dtype=torch.float64)
    got = submission.inverse_cdf_sample(quarters.expand(7, 7), u)
    same(got, torch.tensor([1, 1, 3, 4, 4, 5, 5]), atol=0, what="draws from four equal tokens at and between the borders")
    # Between 1/3 and the float32 next to it; and ten tenths, whose float64 sum is the largest u there is.
    u = torch.tensor(1 / 3 + 3e-9, dtype=torch.float64)
    same(submission.inverse_cdf_sample(torch.zeros(3), u), torch.tensor(1), atol=0, what="the draw just above 1/3")
    u = torch.tensor(1 - 2.0**-53, dtype=torch.float64)
    same(submission.inverse_cdf_sample(torch.zeros(10), u), torch.tensor(9), atol=0, what="the draw at the largest u")
    u = torch.tensor([0.25, 0.75])
    same(submission.inverse_cdf_sample(torch.zeros(2, 2), u), torch.tensor([0, 1]), atol=0, what="draws for a float32 u")
    x = torch.from_numpy(2 * rng.standard_normal((3, 40, 11)))
    u = torch.from_numpy(rng.random((3, 40)))
    want = [[reference.inverse_cdf(x[i, j].tolist(), float(u[i, j])) for j in range(40)] for i in range(3)]
    same(submission.inverse_cdf_sample(x, u), torch.tensor(want), atol=0, what="draws")
    check(int(submission.inverse_cdf_sample(x[0, 0], u[0, 0])) == want[0][0], "a single row, a single u")
    with expect_error(ValueError, "all logits are -inf"):
        submission.inverse_cdf_sample(torch.full((2, 3), -INF), torch.zeros(2, dtype=torch.float64))


STRATEGIES = (
    {"name": "plain"},
    {"name": "greedy", "greedy": True},
    {"name": "hot", "temperature": 1.7},
    {"name": "top-k", "top_k": 3},
    {"name": "nucleus", "top_p": 0.8, "temperature": 0.8},
    {"name": "min-p", "min_p": 0.1},
)


@probe
def next_number(module, fields, n, steps):
    """What the generator gives next, after a generation."""
    import torch

    generator = torch.Generator().manual_seed(5)
    table = torch.arange(9.0).reshape(3, 3)
    module.generate(lambda ids: table[ids], torch.tensor([1]), module.Strategy(**fields), n, steps, generator)
    return float(torch.rand((), generator=generator, dtype=torch.float64))


@task(4)
@points(8)
@needs("test_inverse_cdf_exact")
@hint(
    "Each step: lm on all rows, logits of the last position, filter, torch.rand(n, ...), inverse_cdf_sample.",
    "Ended rows go on being drawn for and fed (with the pad id), but write pad_id and 0.0.",
)
def test_generate_is_the_reference_sequence(submission, reference, torch_rng):
    """`generate` is a function of its seed: the tokens, both log-probabilities and the lengths, row by row."""
    vocabulary, n = 6, 5
    for case, fields in enumerate(STRATEGIES):
        lm = table_lm(torch_rng, vocabulary)
        prompt = torch.randint(0, vocabulary, (3,), generator=torch_rng)
        strategy = submission.Strategy(**fields)
        for eos, steps in ((None, 4), (2, 9), (None, 1)):
            generator = torch.Generator().manual_seed(case)
            given = prompt[None] if case % 2 else prompt
            got = submission.generate(lm, given, strategy, n, steps, generator, eos_id=eos, pad_id=5)
            fed = lm.fed
            tokens, base, own, _ = reference.generate(lm, prompt, fields, n, steps, case, eos, 5)
            what = f"{fields}, eos {eos}"
            same(got.tokens, torch.tensor(tokens), atol=0, what=f"tokens of {what}")
            if len(fed) == n:  # one call for all rows is asked for by test_generate_lm_calls
                same(fed[:, 3:], got.tokens[:, :-1], atol=0, what=f"what the model is fed (pads in ended rows) of {what}")
            same(got.base_logprobs, torch.tensor(base), atol=1e-4, dtype=None, what=f"base_logprobs of {what}")
            same(got.strategy_logprobs, torch.tensor(own), atol=1e-4, dtype=None, what=f"strategy_logprobs of {what}")
            lengths = [row.index(eos) + 1 if eos in row else len(row) for row in tokens]
            same(got.lengths, torch.tensor(lengths), atol=0, what=f"lengths of {what}")
    lm = table_lm(torch_rng, vocabulary)
    got = submission.generate(lm, prompt.expand(2, 3), strategy, 2, 0, torch.Generator().manual_seed(0))
    same(got.tokens, torch.zeros(2, 0, dtype=torch.int64), what="tokens for max_new_tokens = 0")
    for name in ("base_logprobs", "strategy_logprobs"):
        same(tuple(getattr(got, name).shape), (2, 0), what=f"shape of {name} for max_new_tokens = 0")
    same(got.lengths, torch.zeros(2, dtype=torch.int64), what="lengths for max_new_tokens = 0")
    check(not lm.rows, "max_new_tokens = 0 needs no call of the model", got=len(lm.rows), want=0)
    # A step draws n numbers, a greedy one none.
    numbers = torch.rand(7, generator=torch.Generator().manual_seed(5), dtype=torch.float64).tolist()
    for fields, at in (({"name": "plain"}, 6), ({"name": "greedy", "greedy": True}, 0)):
        after = submission.run(next_number, fields, 2, 3)
        check(after == numbers[at], f"3 steps of 2 rows draw {at} numbers: {fields}", got=after, want=numbers[at])
    # A model that can only say eos: one step, whatever max_new_tokens.
    only = torch.tensor([-INF, -INF, 0.0])
    got = submission.generate(
        lambda ids: only.expand(*ids.shape, 3), prompt, strategy, 2, 7, torch.Generator().manual_seed(0), eos_id=2
    )
    same(got.tokens, torch.tensor([[2], [2]]), atol=0, what="generation stops when every row has ended")


# -- task 5 -----------------------------------------------------------------------------------------------------------


@task(5)
@points(5)
@hint(
    "Order tokens by |surprisal - entropy|, the smallest first; then the same prefix rule as for top_p.",
    "The most likely token may be less typical than the second: it can go.",
)
@sk.given(filter_cases(FRACTIONS), examples=30)
def test_typical_matches_bruteforce(submission, reference, case):
    """typical_p keeps the tokens whose surprisal is nearest to the entropy."""
    x, mass = case
    against_brute_force(submission, reference, "typical_p", x, mass)
    fixed = torch.tensor([3.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0])
    against_brute_force(submission, reference, "typical_p", fixed, 0.31)
    against_brute_force(submission, reference, "typical_p", TIES, 0.31)
    holes = torch.tensor([0.5, 0.25, 0.15, 0.1, 0.0]).log()
    against_brute_force(submission, reference, "typical_p", holes, 0.2)
    got = submission.apply_strategy(x, submission.Strategy(name="typical", typical_p=mass))
    same(got, submission.typical_p(x, mass), atol=1e-12, what="apply_strategy with typical_p")
    with expect_error(ValueError, "typical_p"):
        submission.typical_p(fixed, 0.0)


@task(5)
@points(4)
@hint("-log(-log u) is a Gumbel number: add it to the logits and take the argmax.")
def test_gumbel_exact_and_distribution(submission, rng):
    """`gumbel_sample` is the formula on the given u, and its draws have the distribution softmax(logits)."""
    x = np.array([1.0, 0.0, -1.0, 2.0, -np.inf])
    u = rng.random((20000, 5)) * (1 - 2e-9) + 1e-9
    given = torch.from_numpy(u)
    got, (_, after) = submission.call("gumbel_sample", torch.from_numpy(x).expand(20000, 5), given, echo=True)
    same(after, given, atol=0, rtol=0, what="u after the call")
    want = torch.from_numpy(np.argmax(x - np.log(-np.log(u)), -1))
    same(got, want, atol=0, what="draws")
    p = np.exp(x[:4]) / np.exp(x[:4]).sum()
    seen = np.bincount(got.numpy(), minlength=5)
    chi = float(((seen[:4] - 20000 * p) ** 2 / (20000 * p)).sum())
    # Chi-square with 3 degrees of freedom exceeds 30.7 once in a million times.
    check(chi < 30.7 and seen[4] == 0, "20 000 draws must follow softmax(logits)", got=seen.tolist(), want=20000 * p)


# -- task 7 -----------------------------------------------------------------------------------------------------------


@probe
def sequences_of_one(module, vocabulary):
    """Shape of the sequences of one token."""
    import torch

    logits = torch.zeros(1, 1, vocabulary)
    tokens, _, _ = module.exact_sequences(lambda ids: logits, torch.tensor([0]), module.Strategy(name="plain"), 1)
    return list(tokens.shape)


@task(7)
@points(7)
@hint(
    "One level: V children for each prefix. log p(child) = log p(prefix) + log p(token | prefix), a [rows, V] sum, "
    "flattened.",
    "Lexicographic order: each prefix repeated V times in a row (repeat_interleave), the new token running 0..V-1.",
)
def test_exact_sequences(submission, reference, torch_rng):
    """`exact_sequences` has every sequence with its log q and log p; both distributions sum to 1."""
    for v, length, fields, dtype in (
        (3, 2, {"name": "plain"}, torch.float64),
        (4, 3, {"name": "top-k", "top_k": 2}, torch.float32),  # logs are taken in float64
        (5, 3, {"name": "nucleus", "top_p": 0.7, "temperature": 1.3}, torch.float64),
        (3, 3, {"name": "greedy", "greedy": True}, torch.float64),
    ):
        lm = table_lm(torch_rng, v, dtype=dtype)
        prompt = torch.tensor([1, 2])
        got = submission.exact_sequences(lm, prompt, submission.Strategy(**fields), length)
        tokens, log_q, log_p = reference.exact_sequences(lm, prompt, fields, length, v)
        same(got[0], torch.from_numpy(tokens), atol=0, what="sequences")
        same(got[1], torch.from_numpy(log_q), atol=1e-10, what=f"log q, {fields}")
        same(got[2], torch.from_numpy(log_p), atol=1e-10, what=f"log p, {fields}")
        for name, logs in zip("qp", got[1:], strict=True):
            same(float(logs.exp().sum()), 1.0, atol=1e-12, dtype=None, what=f"the sum of {name}")
    plain = submission.Strategy(name="plain")
    tokens, log_q, log_p = submission.exact_sequences(lm, prompt, plain, 0)
    same(tokens, torch.zeros(1, 0, dtype=torch.int64), what="the sequences of length 0")
    same(log_p, torch.zeros(1, dtype=torch.float64), atol=0, what="log p of the empty sequence")
    with expect_error(ValueError):
        submission.exact_sequences(lm, prompt, plain, 13)  # 3**13 = 1 594 323 > 2**20 = 1 048 576
    got = submission.run(sequences_of_one, 2**20)
    check(got == [2**20, 1], "2**20 sequences are not too many", got=got, want=[2**20, 1])


# -- task 8 -----------------------------------------------------------------------------------------------------------


@task(8)
@points(4)
@needs("test_exact_sequences")
@hint(
    "KL(q || p) = Σ q (log q - log p), over the tokens that q keeps. The other way round it is infinite.",
    "For a truncation at temperature 1, q = p / kept mass, so log q - log p is the same number for every kept token.",
)
def test_kl_identities(submission, reference, torch_rng):
    """A truncation costs -log(kept mass), and the KL of sequences is the sum of expected KLs of their tokens."""
    v, prompt = 5, torch.tensor([1, 3])
    for fields in ({"name": "top-k", "top_k": 2}, {"name": "nucleus", "top_p": 0.6}, {"name": "greedy", "greedy": True}):
        lm = table_lm(torch_rng, v, dtype=torch.float64)
        strategy = submission.Strategy(**fields)
        row = lm(prompt[None])[0, -1].numpy()
        kept = np.isfinite(reference.filtered(row, fields))
        mass = float(np.exp(reference.log_softmax(row))[kept].sum())
        (report,) = submission.compare_strategies(lm, prompt, [strategy], 4, 1, 0)
        same(report.mean_kl, -math.log(mass), atol=1e-10, dtype=None, what=f"mean_kl of one token, {fields}")
        same(report.mean_support, float(kept.sum()), atol=1e-9, dtype=None, what="mean_support of one token")
        tokens, log_q, log_p = submission.exact_sequences(lm, prompt, strategy, 3)
        total = reference.kl(log_q.tolist(), log_p.tolist())
        steps = 0.0
        for level in range(3):
            for at in range(0, v**3, v ** (3 - level)):  # one prefix of this level: its share of q times its own KL
                share = float(log_q[at : at + v ** (3 - level)].exp().sum())
                if share > 0:
                    row = lm(torch.cat((prompt, tokens[at, :level]))[None])[0, -1].numpy()
                    own = reference.kl(reference.log_softmax(reference.filtered(row, fields)), reference.log_softmax(row))
                    steps += share * own
        same(total, steps, atol=1e-10, dtype=None, what="KL of the sequences against Σ of the expected KLs")


@task(8)
@points(5)
@needs("test_generate_is_the_reference_sequence")
@hint(
    "Surprisal is -log p of the sampled token under the model, not under the strategy: -base_logprobs.",
    "Entropy, KL and support are averages over the positions you visited, computed from the logits of that step.",
)
def test_compare_strategies(submission, reference, torch_rng):
    """Every field of every report is that of its definition, and Monte Carlo agrees with the exact sequences."""
    lm = table_lm(torch_rng, 5)
    prompt = torch.tensor([0, 4])
    rows = [*STRATEGIES, {"name": "typical", "typical_p": 0.83}]
    strategies = [submission.Strategy(**fields) for fields in rows]

    def never_2(ids):
        return lm(ids).index_fill(-1, torch.tensor([2]), -INF)

    for model, n, length in ((lm, 6, 3), (never_2, 3, 1)):
        reports = submission.compare_strategies(model, prompt, strategies, n, length, 7)
        check(len(reports) == len(rows), "one report for each strategy", got=len(reports), want=len(rows))
        for report, fields in zip(reports, rows, strict=True):
            check(report.name == fields["name"], "reports in the order of the strategies", got=report.name)
            for name, want in reference.report(model, prompt, fields, n, length, 7).items():
                # Means of float32 log-probabilities: each is right to about 1e-6.
                value = getattr(report, name)
                check(not isinstance(value, torch.Tensor), f"{name} is a number, not a tensor", got=type(value))
                same(float(value), want, atol=2e-5, dtype=None, what=f"{name} of {fields['name']}")
    n, length, fields = 400, 3, {"name": "nucleus", "top_p": 0.8}
    strategy = submission.Strategy(**fields)
    (report,) = submission.compare_strategies(lm, prompt, [strategy], n, length, 3)
    _, log_q, log_p = reference.exact_sequences(lm, prompt, fields, length, 5)
    q = np.exp(log_q)
    mean = -(q * log_p).sum() / length
    error = math.sqrt(((q * (log_p / length) ** 2).sum() - mean**2) / n)
    check(abs(report.mean_surprisal - mean) < 6 * error, "mean_surprisal within 6 standard errors of the exact one",
          got=report.mean_surprisal, want=mean)  # fmt: skip
