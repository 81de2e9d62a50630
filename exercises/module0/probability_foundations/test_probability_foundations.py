"""Visible checks of 0.2: the worked example of the brief, function by function. Run `pytest exercises/module0`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

INF = math.inf
#: The distribution of the brief.
P = torch.tensor([0.5, 0.25, 0.15, 0.1], dtype=torch.float64)
LOGITS = P.log()
#: A Markov chain of three states: 0 goes on to 0 or 1, 1 to 1 or 2, 2 always to 0.
CHAIN = torch.tensor([[0.0, 0.0, -INF], [-INF, 0.0, 0.0], [0.0, -INF, -INF]])


def keeps(logits):
    return [i for i, x in enumerate(logits.tolist()) if x > -INF]


# -- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@hint("Subtract the largest logit first, then the log of the sum of exponentials: -230, not -inf.")
def test_log_softmax_example(submission):
    """log_softmax([0, -200, 30]) is [-30, -230, 0]: no probability underflows."""
    got = submission.log_softmax(torch.tensor([0.0, -200.0, 30.0]))
    same(got, torch.tensor([-30.0, -230.0, 0.0]), atol=1e-3, what="log_softmax([0, -200, 30])")
    same(submission.log_softmax(LOGITS), LOGITS, atol=1e-12, what="log_softmax of logs of probabilities")


@task(1)
@hint("The logits at position 0 are about the token at position 1. What is the first score you can give?")
def test_token_logprobs_example(submission):
    """Three tokens have two scores, each from the logits before its token; a masked target scores 0."""
    logits = torch.stack([LOGITS, LOGITS.flip(0), LOGITS])[None].float()
    ids = torch.tensor([[3, 1, 0]])
    want = torch.tensor([[0.25, 0.1]]).log()
    same(submission.token_logprobs(logits, ids), want, atol=1e-5, what="scores of the tokens 1 and 0")
    got = submission.token_logprobs(logits, torch.tensor([[3, 1, -100]]), torch.tensor([[1, 1, 0]]), chunk_size=1)
    same(got, want * torch.tensor([1.0, 0.0]), atol=1e-5, what="scores with a masked last token")


# -- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@hint("Masses before the tokens: 0, 0.5, 0.75, 0.9. Which of them are below p?")
def test_filters_example(submission):
    """On (0.5, 0.25, 0.15, 0.1): top_k 2 keeps two tokens, top_p 0.7 two, top_p 0.8 three, min_p 0.25 three."""
    for name, value, want in (
        ("top_k", 2, [0, 1]),
        ("top_p", 0.7, [0, 1]),
        ("top_p", 0.8, [0, 1, 2]),
        ("min_p", 0.25, [0, 1, 2]),
        ("top_k", 50, [0, 1, 2, 3]),
    ):
        got = getattr(submission, name)(LOGITS, value)
        check(keeps(got) == want, f"{name}(logits, {value}) keeps {want}", got=keeps(got), want=want)
        got = getattr(submission, name)(LOGITS.flip(0), value)
        want = [3 - i for i in reversed(want)]
        check(keeps(got) == want, f"{name} of the reversed logits keeps {want}", got=keeps(got), want=want)
    got = submission.top_k(torch.tensor([1.0, 2.0, 1.0, 0.0]), 2)
    check(keeps(got) == [0, 1, 2], "tokens tied with the k-th stay", got=keeps(got), want=[0, 1, 2])


@task(2)
@hint("At T = 0.5 the probabilities are squared and divided by their sum: 0.72, 0.18, 0.07, 0.03.")
def test_apply_strategy_example(submission):
    """Tempered with T = 0.5 first, the nucleus of 0.7 has one token; greedy keeps the largest logit as it is."""
    got = submission.apply_strategy(LOGITS, submission.Strategy(name="cold", temperature=0.5, top_p=0.7))
    same(got, torch.tensor([2 * LOGITS[0], -INF, -INF, -INF], dtype=torch.float64), atol=1e-12, what="cold nucleus")
    got = submission.apply_strategy(LOGITS, submission.Strategy(name="greedy", greedy=True))
    same(got, torch.tensor([LOGITS[0], -INF, -INF, -INF], dtype=torch.float64), atol=1e-12, what="greedy")
    with expect_error(ValueError, "top_p"):
        submission.apply_strategy(LOGITS, submission.Strategy(name="bad", top_p=1.5))


# -- task 3 -----------------------------------------------------------------------------------------------------------


@task(3)
@hint("entropy = 0.5 ln 2 + 0.25 ln 4 + 0.15 ln(1/0.15) + 0.1 ln 10.")
def test_statistics_example(submission):
    """(0.5, 0.25, 0.15, 0.1) has entropy 1.208 nats; its token 2 has surprisal 1.897 and rank 2."""
    got = submission.distribution_stats(LOGITS, torch.tensor(2), top_p=0.8)
    want = {"entropy": 1.20797, "surprisal": 1.89712, "rank": 2, "nucleus_size": 3, "margin": math.log(2), "max_prob": 0.5}
    for name, value in want.items():
        same(float(getattr(got, name)), float(value), atol=1e-4, dtype=None, what=name)
    same(submission.rank_curve(torch.stack([LOGITS, LOGITS.flip(0)])), LOGITS, atol=1e-12, what="rank_curve")


# -- task 4 -----------------------------------------------------------------------------------------------------------


@task(4)
@hint("The cdf is 0.5, 0.75, 0.9, 1: find the first entry that is greater than u.")
def test_inverse_cdf_example(submission):
    """For u = 0, 0.6, 0.8, 0.95 the tokens are 0, 1, 2, 3; a token of probability 0 is never drawn."""
    u = torch.tensor([0.0, 0.6, 0.8, 0.95], dtype=torch.float64)
    same(submission.inverse_cdf_sample(LOGITS.expand(4, 4), u), torch.tensor([0, 1, 2, 3]), atol=0, what="draws")
    got = submission.inverse_cdf_sample(torch.tensor([-INF, 0.0]), torch.tensor(0.0))
    same(got, torch.tensor(1), atol=0, what="the draw for u = 0 where token 0 has probability 0")


@task(4)
@hint("One torch.rand(n) a step, float64, from the generator you are given; the two choices split at u = 0.5.")
def test_generate_markov_chain(submission):
    """On a chain of three states, the tokens are those that the random numbers say, one model call a step."""
    generator = torch.Generator().manual_seed(0)
    state, want = [0, 0], []
    for _ in range(5):
        u = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        state = [0 if at == 2 else at + (x >= 0.5) for at, x in zip(state, u, strict=True)]
        want.append(state)
    calls = []

    def lm(ids):
        calls.append(tuple(ids.shape))
        return CHAIN[ids]

    got = submission.generate(lm, torch.tensor([0]), submission.Strategy(name="plain"), 2, 5,
                              torch.Generator().manual_seed(0))  # fmt: skip
    same(got.tokens, torch.tensor(want).T, atol=0, what="tokens")
    check(calls == [(2, 1), (2, 2), (2, 3), (2, 4), (2, 5)], "one call a step on all rows", got=calls)
    same(got.lengths, torch.tensor([5, 5]), atol=0, what="lengths")


@probe
def scores_of_a_saved_model(module, config, weights, ids):
    """token_logprobs of a model in the hub's layout, made here and loaded by the given load_lm."""
    import json
    import tempfile
    from pathlib import Path

    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(config))
        save_file(weights, str(Path(folder, "model.safetensors")), metadata={"format": "pt"})
        lm = module.load_lm(folder)
        logits = lm(ids).detach()
    return logits, module.token_logprobs(logits, ids)


@task(1)
@hint("If the logits are right and the scores are not, look at token_logprobs: the loader is given.")
def test_at_real_scale(submission, torch_rng):
    """A GPT-2 in the layout of the hub, loaded from its folder, is scored like any table."""
    v, d, t = 11, 8, 5
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": v, "n_positions": 16, "n_embd": d,
              "n_layer": 1, "n_head": 1, "bos_token_id": 0, "eos_token_id": 0, "torch_dtype": "float32"}  # fmt: skip
    shapes = {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "ln_2": (d,), "mlp.c_fc": (d, 4 * d),
              "mlp.c_proj": (4 * d, d)}  # fmt: skip
    w = {f"transformer.{name}.weight": 0.6 * torch.randn(rows, d, generator=torch_rng)
         for name, rows in (("wte", v), ("wpe", 16))}  # fmt: skip
    for name, shape in [(f"h.0.{name}", shape) for name, shape in shapes.items()] + [("ln_f", (d,))]:
        w[f"transformer.{name}.weight"] = 0.6 * torch.randn(*shape, generator=torch_rng)
        w[f"transformer.{name}.bias"] = 0.6 * torch.randn(shape[-1], generator=torch_rng)
    ids = torch.randint(0, v, (2, t), generator=torch_rng)

    def norm(x, name):
        return F.layer_norm(x, (d,), w[f"transformer.{name}.weight"], w[f"transformer.{name}.bias"])

    def linear(x, name):
        return x @ w[f"transformer.h.0.{name}.weight"] + w[f"transformer.h.0.{name}.bias"]

    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:t]
    q, k, values = linear(norm(x, "h.0.ln_1"), "attn.c_attn").chunk(3, -1)
    x = x + linear(F.scaled_dot_product_attention(q, k, values, is_causal=True), "attn.c_proj")
    x = x + linear(F.gelu(linear(norm(x, "h.0.ln_2"), "mlp.c_fc"), approximate="tanh"), "mlp.c_proj")
    want = norm(x, "ln_f") @ w["transformer.wte.weight"].T
    logits, scores = submission.run(scores_of_a_saved_model, config, w, ids)
    same(logits, want, atol=1e-3, what="logits of the loaded model")
    want = F.log_softmax(want[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    same(scores, want, atol=1e-3, what="scores of its tokens")


# -- tasks 5 to 8 -----------------------------------------------------------------------------------------------------


@task(5)
@hint("Surprisals 0.69, 1.39, 1.90, 2.30 and entropy 1.21: which token is nearest?")
def test_typical_example(submission):
    """Of (0.5, 0.25, 0.15, 0.1), typical_p with mass 0.2 keeps token 1 alone, and with 0.5 tokens 0 and 1."""
    for mass, want in ((0.2, [1]), (0.5, [0, 1]), (1.0, [0, 1, 2, 3])):
        got = keeps(submission.typical_p(LOGITS, mass))
        check(got == want, f"typical_p(logits, {mass}) keeps {want}", got=got, want=want)


@task(5)
@hint("-log(-log 0.5) = 0.37 for every token: equal numbers change no argmax.")
def test_gumbel_example(submission):
    """With u = 0.5 everywhere the largest logit wins; a u near 1 lifts the last token above it."""
    u = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.99]], dtype=torch.float64)
    same(submission.gumbel_sample(LOGITS.expand(2, 4), u), torch.tensor([0, 3]), atol=0, what="draws")


@task(6)
@hint("Each chunk writes its own columns of the result; the last one may be shorter.")
def test_chunks_agree(submission, torch_rng):
    """Scores do not depend on chunk_size."""
    logits = torch.randn(2, 9, 7, generator=torch_rng)
    ids = torch.randint(0, 7, (2, 9), generator=torch_rng)
    want = F.log_softmax(logits[:, :-1], -1).gather(-1, ids[:, 1:, None])[..., 0]
    for chunk in (1, 3, 8, 100):
        same(submission.token_logprobs(logits, ids, chunk_size=chunk), want, atol=1e-5, what=f"chunk_size={chunk}")


@task(7)
@hint("From state 0: 0→0, 0→1, each 1/2; then 0→0, 0→1, 1→1, 1→2, each 1/2 again.")
def test_exact_sequences_example(submission):
    """Of the nine pairs of the chain from state 0, four have probability 1/4, and all sum to 1."""
    def lm(ids):
        return CHAIN[ids]

    tokens, log_q, log_p = submission.exact_sequences(lm, torch.tensor([0]), submission.Strategy(name="plain"), 2)
    same(tokens, torch.cartesian_prod(torch.arange(3), torch.arange(3)), atol=0, what="sequences")
    want = torch.tensor([1, 1, 0, 0, 1, 1, 0, 0, 0], dtype=torch.float64) / 4
    same(log_p.exp(), want, atol=1e-12, what="p")
    same(log_q, log_p, atol=1e-12, what="log q of a strategy that changes nothing")


@probe
def drawn(module, logits):
    """plot_report of two reports, and the first bytes of its file."""
    import tempfile
    from pathlib import Path

    def lm(ids):
        return logits.expand(*ids.shape, -1)

    import torch

    strategies = [module.Strategy(name="plain"), module.Strategy(name="greedy", greedy=True)]
    reports = module.compare_strategies(lm, torch.tensor([0]), strategies, 4, 3, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.png")
        arrays = module.plot_report(reports, module.rank_curve(logits), path)
        start = path.read_bytes()[:8]
    return reports, arrays, start


@task(8)
@hint("Greedy keeps one token of probability 1/2: KL(q || p) = -ln(1/2), support 1, the same sequence every time.")
def test_compare_example(submission):
    """Greedy on (0.5, 0.25, 0.15, 0.1) costs ln 2 a token and always says the same; the figure shows the reports."""
    reports, arrays, start = submission.run(drawn, LOGITS)
    greedy = reports[1]
    want = {"mean_surprisal": math.log(2), "mean_entropy": 1.20797, "mean_kl": math.log(2), "mean_support": 1.0,
            "distinct_1": 1 / 12, "distinct_2": 1 / 8, "unique_fraction": 1 / 4, "top_sequence_share": 1.0}  # fmt: skip
    for name, value in want.items():
        same(float(getattr(greedy, name)), value, atol=1e-4, dtype=None, what=f"{name} of greedy")
    same(reports[0].mean_kl, 0.0, atol=1e-9, dtype=None, what="mean_kl of plain sampling")
    check(start == b"\x89PNG\r\n\x1a\n", "plot_report writes a PNG", got=start)
    check(arrays["names"] == ["plain", "greedy"], "the figure shows both strategies", got=arrays["names"])
    same(arrays["logprob"], LOGITS.tolist(), atol=1e-9, dtype=None, what="the curve drawn")
