"""Mistakes people make in 0.2. Each replaces one function of the model answer, in whose namespace it runs."""

# ruff: noqa: F821
from __future__ import annotations

from llmkata.checks import misconception


@misconception(
    "log_of_softmax",
    replaces="log_softmax",
    caught_by="test_log_softmax",
    feedback="You take the log of a softmax: small probabilities underflow to 0 and their log is -inf. Subtract the log "
    "of the sum of exponentials instead, and never form the probability.",
)
def log_of_softmax(logits, dim=-1):
    return check_logits(logits, dim).softmax(dim).log()


@misconception(
    "no_shift",
    replaces="token_logprobs",
    caught_by="test_token_logprobs_shift_and_mask",
    feedback="Logits at position t predict token t + 1: you scored each token with a distribution that has already seen "
    "it.",
)
def no_shift(logits, input_ids, attention_mask=None, *, chunk_size=128):
    ids = torch.cat((input_ids[:, :1], input_ids[:, :-1]), 1)
    mask = None if attention_mask is None else torch.cat((attention_mask[:, :1], attention_mask[:, :-1]), 1)
    return original(logits, ids, mask, chunk_size=chunk_size)


@misconception(
    "mask_of_the_source",
    replaces="token_logprobs",
    caught_by="test_token_logprobs_shift_and_mask",
    feedback="You mask by the position the logits come from. What decides is the mask of the target, one further on: "
    "attention_mask[:, 1:].",
)
def mask_of_the_source(logits, input_ids, attention_mask=None, *, chunk_size=128):
    scores = original(logits, input_ids.clamp(min=0), None, chunk_size=chunk_size)
    return scores if attention_mask is None else scores.masked_fill(attention_mask[:, :-1] == 0, 0.0)


@misconception(
    "whole_vocabulary_at_once",
    replaces="token_logprobs",
    caught_by="test_token_logprobs_peak",
    matches="peak_bytes",
    feedback="You take the log-softmax of all logits and then look up one number of each row: a second tensor of B·T·V. "
    "Slice chunk_size positions first, and convert and subtract only those.",
)
def whole_vocabulary_at_once(logits, input_ids, attention_mask=None, *, chunk_size=128):
    return original(logits, input_ids, attention_mask, chunk_size=max(1, input_ids.shape[1]))


@misconception(
    "top_p_excludes_crossing_token",
    replaces="top_p",
    caught_by="test_filters_match_bruteforce",
    feedback="The token that crosses p belongs to the nucleus; without it the kept mass is below p. Ask what mass came "
    "before a token, not what mass there is with it.",
)
def top_p_excludes_crossing_token(logits, p):
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    ordered, order = x.sort(dim=-1, descending=True, stable=True)
    keep = ordered.softmax(-1).double().cumsum(-1) <= (p if p < 1 else 2.0)
    keep[..., 0] = True
    return x.masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), NEG_INF)


@misconception(
    "top_p_no_unsort",
    replaces="top_p",
    caught_by="test_filters_match_bruteforce",
    feedback="You masked positions of the sorted list, not token ids. Scatter the decisions back along the indices of "
    "the sort.",
)
def top_p_no_unsort(logits, p):
    check_fraction("top_p: p", p)
    x = check_logits(logits)
    ordered = x.sort(dim=-1, descending=True, stable=True).values
    prob = ordered.softmax(-1).double()
    return x.masked_fill(prob.cumsum(-1) - prob >= (p if p < 1 else 2.0), NEG_INF)


@misconception(
    "top_k_exactly_k_on_ties",
    replaces="top_k",
    caught_by="test_filters_match_bruteforce",
    feedback="You keep exactly k tokens, and which of two tied ones stays is chance. Tied logits must be treated alike: "
    "keep every logit that is at least the k-th largest.",
)
def top_k_exactly_k_on_ties(logits, k):
    if k < 1:
        raise ValueError(f"top_k: k must be at least 1, got {k}")
    x = check_logits(logits)
    best = x.topk(min(k, x.shape[-1]), dim=-1)
    return torch.full_like(x, NEG_INF).scatter(-1, best.indices, best.values)


@misconception(
    "min_p_absolute",
    replaces="min_p",
    caught_by="test_filters_match_bruteforce",
    feedback="Your bar is p itself. In min-p it is p times the largest probability: low when the model is unsure.",
)
def min_p_absolute(logits, p):
    check_fraction("min_p: p", p)
    x = check_logits(logits)
    prob = x.softmax(-1)
    return x.masked_fill((prob < p) & (prob < prob.amax(-1, keepdim=True)), NEG_INF)


@misconception(
    "nucleus_in_bfloat16",
    replaces="top_p",
    caught_by="test_filter_invariants",
    feedback="You sum probabilities in bfloat16: it has 8 bits, and the sum of thousands of small numbers goes wrong. "
    "Convert to float32 first and sum in float64.",
)
def nucleus_in_bfloat16(logits, p):
    if logits.dtype != torch.bfloat16:
        return original(logits, p)
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    prob = ordered.softmax(-1)
    keep = prob.cumsum(-1) - prob < p
    return logits.float().masked_fill(~torch.zeros_like(keep).scatter(-1, order, keep), NEG_INF)


@misconception(
    "filter_then_temperature",
    replaces="apply_strategy",
    caught_by="test_strategy_order",
    feedback="You truncate first and temper afterwards. Truncation must see the tempered distribution: temperature comes "
    "first.",
)
def filter_then_temperature(logits, s):
    if s.greedy:
        return original(logits, s)
    fields = {name: getattr(s, name) for name in ("top_k", "top_p", "min_p", "typical_p")}
    return temperature(original(logits, Strategy(name=s.name, **fields)), s.temperature)


@misconception(
    "filter_loops_over_rows",
    replaces="min_p",
    caught_by="test_filters_are_vectorised",
    matches="steps",
    feedback="You filter one row after the other in Python. Every operation you need takes dim=-1 and works on all rows.",
)
def filter_loops_over_rows(logits, p):
    # The work of a row is left to the answer: only frames of the submission's own file are counted.
    rows = [original(row, p) for row in logits.reshape(-1, logits.shape[-1])]
    return torch.stack(rows).reshape(logits.shape)


@misconception(
    "bits",
    replaces="distribution_stats",
    caught_by="test_stats_oracle",
    feedback="Your entropy is off by a factor ln 2: it is in bits, and the contract is in nats (natural logs).",
)
def bits(logits, targets, *, top_p=0.9):
    found = original(logits, targets, top_p=top_p)
    found.entropy = found.entropy / math.log(2)
    return found


@misconception(
    "rank_from_one",
    replaces="distribution_stats",
    caught_by="test_stats_oracle",
    feedback="Your ranks start at 1. Here the most likely token has rank 0: count the tokens before it.",
)
def rank_from_one(logits, targets, *, top_p=0.9):
    found = original(logits, targets, top_p=top_p)
    found.rank = found.rank + 1
    return found


@misconception(
    "curve_of_token_ids",
    replaces="rank_curve",
    caught_by="test_rank_curve",
    feedback="You average over distributions first and sort afterwards: that is the rank of the average token. Sort each "
    "distribution, then average rank by rank.",
)
def curve_of_token_ids(logits):
    logp = log_softmax(logits)
    return logp.reshape(-1, logp.shape[-1]).mean(0).sort(descending=True).values


@misconception(
    "cdf_left",
    replaces="inverse_cdf_sample",
    caught_by="test_inverse_cdf_exact",
    feedback="You take the first token with cdf >= u. At u = 0 that is a token of probability zero: it has to be cdf > u.",
)
def cdf_left(logits, u):
    cdf = check_logits(logits).double().softmax(-1).cumsum(-1)
    cdf = cdf / cdf[..., -1:]
    return torch.searchsorted(cdf, u.double()[..., None].contiguous(), right=False).squeeze(-1)


@misconception(
    "sampler_loops_over_rows",
    replaces="inverse_cdf_sample",
    caught_by="test_sampler_is_vectorised",
    matches="steps",
    feedback="You draw for one row after the other in Python. torch.searchsorted takes all rows at once.",
)
def sampler_loops_over_rows(logits, u):
    rows = logits.reshape(-1, logits.shape[-1])
    return torch.stack([original(row, bar) for row, bar in zip(rows, u.reshape(-1), strict=True)]).reshape(u.shape)


@misconception(
    "writes_on_after_eos",
    replaces="generate",
    caught_by="test_generate_is_the_reference_sequence",
    feedback="Your rows go on after the end-of-sequence token. From there on a row is pad_id with log-probability 0.0, and "
    "when all rows have ended, you stop.",
)
def writes_on_after_eos(lm, prompt, s, n, max_new_tokens, generator, *, eos_id=None, pad_id=0):
    return original(lm, prompt, s, n, max_new_tokens, generator, pad_id=pad_id)


@misconception(
    "scored_under_the_strategy",
    replaces="generate",
    caught_by="test_generate_is_the_reference_sequence",
    feedback="Your base_logprobs are those of the filtered distribution. They are asked for under the unmodified model.",
)
def scored_under_the_strategy(lm, prompt, s, n, max_new_tokens, generator, *, eos_id=None, pad_id=0):
    g = original(lm, prompt, s, n, max_new_tokens, generator, eos_id=eos_id, pad_id=pad_id)
    return Generation(g.tokens, g.strategy_logprobs, g.strategy_logprobs, g.lengths)


@misconception(
    "row_by_row",
    replaces="generate",
    caught_by="test_generate_lm_calls",
    matches="calls",
    feedback="You call the model once for each row. It takes all n rows in one call of shape [n, T].",
)
def row_by_row(lm, prompt, s, n, max_new_tokens, generator, *, eos_id=None, pad_id=0):
    def one_at_a_time(ids):
        return torch.cat([lm(row[None]) for row in ids])

    return original(one_at_a_time, prompt, s, n, max_new_tokens, generator, eos_id=eos_id, pad_id=pad_id)


@misconception(
    "typical_by_probability",
    replaces="typical_p",
    caught_by="test_typical_matches_bruteforce",
    feedback="You order tokens by probability: that is top-p. Typical sampling keeps tokens whose surprisal is near the "
    "entropy, and may drop the most likely one.",
)
def typical_by_probability(logits, mass):
    check_fraction("typical_p: mass", mass)
    return top_p(logits, mass)


@misconception(
    "gumbel_sign",
    replaces="gumbel_sample",
    caught_by="test_gumbel_exact_and_distribution",
    feedback="You add log(-log u); a Gumbel number is -log(-log u), so it is subtracted. Large u must favour a token.",
)
def gumbel_sign(logits, u):
    return (check_logits(logits) + (-u.log()).log()).argmax(-1)


@misconception(
    "last_token_outermost",
    replaces="exact_sequences",
    caught_by="test_exact_sequences",
    feedback="Your sequences are not in lexicographic order: the last token must run fastest. Repeat each prefix V times in "
    "a row, and let the new token run 0, 1, ..., V-1.",
)
def last_token_outermost(lm, prompt, s, length):
    tokens, log_q, log_p = original(lm, prompt, s, length)
    order = sorted(range(len(tokens)), key=lambda i: tokens[i].tolist()[::-1])
    return tokens[order], log_q[order], log_p[order]


@misconception(
    "one_call_a_sequence",
    replaces="exact_sequences",
    caught_by="test_exact_lm_calls",
    matches="calls",
    feedback="You call the model for every prefix by itself. All prefixes of one length are one batch: one call a level.",
)
def one_call_a_sequence(lm, prompt, s, length):
    def one_at_a_time(ids):
        return torch.cat([lm(row[None]) for row in ids])

    return original(one_at_a_time, prompt, s, length)


@misconception(
    "surprisal_under_filtered",
    replaces="compare_strategies",
    caught_by="test_compare_strategies",
    feedback="Your mean_surprisal is -log q, under the filtered distribution. Quality is judged under the model, not under "
    "your truncation, which always likes its own samples.",
)
def surprisal_under_filtered(lm, prompt, strategies, n, length, seed):
    reports = []
    for s, report in zip(strategies, original(lm, prompt, strategies, n, length, seed), strict=True):
        g = generate(lm, prompt, s, n, length, torch.Generator().manual_seed(seed))
        own = -float(g.strategy_logprobs.double().mean())
        reports.append(StrategyReport(**{**vars(report), "mean_surprisal": own}))
    return reports


@misconception(
    "kl_reversed",
    replaces="compare_strategies",
    caught_by="test_kl_identities",
    feedback="That is KL(p || q), the model against the strategy, and it is infinite for any truncation. Asked for is "
    "KL(q || p) = Σ q (log q - log p).",
)
def kl_reversed(lm, prompt, strategies, n, length, seed):
    reports = []
    for s, report in zip(strategies, original(lm, prompt, strategies, n, length, seed), strict=True):
        steps = _steps(lm, prompt, s, n, torch.Generator().manual_seed(seed))
        parts = []
        for _ in range(length):
            _, logp, logq, _ = next(steps)
            parts.append((logp.exp() * (logp - logq)).masked_fill(logp == NEG_INF, 0.0).sum(-1))
        reports.append(StrategyReport(**{**vars(report), "mean_kl": float(torch.stack(parts).double().mean())}))
    return reports


@misconception(
    "generates_then_scores",
    replaces="compare_strategies",
    caught_by="test_compare_lm_calls",
    matches="calls",
    feedback="You generate first and call the model again for the statistics. The logits of a step give both its sample "
    "and its statistics.",
)
def generates_then_scores(lm, prompt, strategies, n, length, seed):
    for s in strategies:
        generate(lm, prompt, s, n, length, torch.Generator().manual_seed(seed))
    return original(lm, prompt, strategies, n, length, seed)
