"""Hidden correctness checks of 2.1 self_attention.

Core is tasks 1 to 4; tasks 5 to 8 are stretch. The layer (task 2) may attend through either function: its checks here
only look at values, so that it can be passed with `attention` alone. That it goes through the streaming path when no
weights are asked for is task 8, judged by its peak memory in test_budgets.py. Mended in the specification: it asked
for the streaming path in the layer itself, which would have made a core task depend on stretch code.

Unit-normal data unless said. float64: 1e-12 absolute (scores stay below about 100, so rounding is below 1e-13).
float32: 8 eps (1 + max|s|) max|v|, because an error of eps·|s| in a score is a relative error of its weight.
"""

import math

import torch
from hypothesis import strategies as st
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, points, probe, same, sk, task

TIGHT = {"atol": 1e-12, "rtol": 0.0}
GRADIENT = {"atol": 1e-10, "rtol": 0.0}


def float32_tolerance(q, k, v, scale=None):
    scores = (q.double() @ k.double().mT) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    return 8 * torch.finfo(torch.float32).eps * (1 + scores.abs().max().item()) * v.abs().max().item()


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


def both(got, want, first, second):
    """Compare a pair of results, calling each by its name."""
    check(isinstance(got, (tuple, list)) and len(got) == 2, f"The result is the pair ({first}, {second}).", got=got)
    same(got[0], want[0], **TIGHT, what=first)
    same(got[1], want[1], **TIGHT, what=second)


def lead_mask_shapes(lead, tq, tk):
    return [None, (tk,), (tq, tk), (*lead, 1, tk)]


@st.composite
def attention_cases(draw):
    """(q, k, v) and the options of `attention`; masks hide all keys of some queries now and then."""
    tq, tk, d, dv = (draw(st.integers(1, n)) for n in (24, 24, 16, 16))
    lead = draw(st.sampled_from([(), (2,), (2, 3)]))
    options = {"is_causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.05, 0.5, 1.0, 3.0]))}
    shape = draw(st.sampled_from(lead_mask_shapes(lead, tq, tk)))
    density = draw(st.sampled_from([1.0, 0.7, 0.4, 0.2]))
    seed = draw(st.integers(0, 999))
    q, k, v = (sk.tensor(seed + n, s) for n, s in enumerate(((*lead, tq, d), (*lead, tk, d), (*lead, tk, dv))))
    if shape is not None:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.rand(shape, generator=generator) < density
        if len(shape) > 1:  # the last row hides everything in about half of the cases
            mask[..., -1, :] &= seed % 2 == 0
        options["mask"] = mask
    return (q, k, v), options


@st.composite
def streaming_cases(draw):
    """(q, k, v), options of the mathematics, block sizes (not dividing T, and larger than T)."""
    tq, tk, d, dv = (draw(st.integers(1, n)) for n in (24, 24, 16, 16))
    lead = draw(st.sampled_from([(), (2,), (2, 3)]))
    options = {"is_causal": draw(st.booleans()), "scale": draw(st.sampled_from([None, 0.05, 0.5, 1.0, 3.0]))}
    shape = draw(st.sampled_from([None, (*lead, tk), (*lead[:-1], 1, tk) if lead else (tk,), (tk,)]))
    density = draw(st.sampled_from([1.0, 0.7, 0.4, 0.0]))
    blocks = {"block_q": draw(st.integers(1, tq + 5)), "block_k": draw(st.integers(1, tk + 5))}
    seed = draw(st.integers(0, 999))
    q, k, v = (sk.tensor(seed + n, s) for n, s in enumerate(((*lead, tq, d), (*lead, tk, d), (*lead, tk, dv))))
    if shape is not None:
        options["key_padding_mask"] = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    return (q, k, v), options, blocks


# --- task 1: attention --------------------------------------------------------------------------------------------


@task(1)
@points(4)
@hint(
    "Each row of the weights is a probability distribution: which axis does the softmax run over?",
    "A hidden key must take no part in the normalisation: hide its score (with -inf) before the softmax.",
)
def test_weights_are_distributions(submission, torch_rng):
    """Every row of the weights sums to 1, hidden keys weigh exactly 0, and weights @ v is the output."""
    for lead, tq, tk in (((), 5, 5), ((2,), 3, 8), ((2, 3), 9, 4)):
        q, k, v = (normal(torch_rng, *lead, t, 6, dtype=torch.float32) for t in (tq, tk, tk))
        mask = torch.rand((tq, tk), generator=torch_rng) < 0.6
        mask[:, 0] = True
        output, weights = submission.attention(q, k, v, mask=mask)
        same(weights.sum(-1), torch.ones(*lead, tq), atol=3e-6, rtol=0.0, what="the sum over each row of weights")
        hidden = weights.masked_select(~mask)
        check(bool((hidden == 0).all()), "A hidden key has a weight other than 0.", got=hidden.abs().max().item())
        same(output, weights @ v, atol=1e-5, rtol=0.0, what="output against weights @ v")


@task(1)
@points(7)
@hint(
    "Compare on paper with two queries and two keys: S = scale · Q Kᵀ, hide, softmax along the keys, times V.",
    "Look at the options of the smallest failing case: which of scale, mask and is_causal does it need?",
)
@sk.given(attention_cases(), examples=20)
def test_attention_matches_reference(submission, reference, case):
    """Output and weights equal a loop over queries that gathers only the visible keys (float64)."""
    inputs, options = case
    both(submission.attention(*inputs, **options), reference.attention(*inputs, **options), "output", "weights")


@task(1)
@points(3)
@hint("A row of scores that is -inf throughout gives 0/0 in a softmax: treat the queries that see nothing apart.")
def test_empty_rows(submission, torch_rng):
    """A query that may see no key gets zero weights and a zero output, and disturbs no other query."""
    q, k, v = (normal(torch_rng, 2, 4, 3) for _ in range(3))
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[0, 1] = mask[1, :2] = False
    full = submission.attention(q, k, v)
    check(bool(full[1].any(-1).all()), "Without a mask every query sees keys: no row of weights may be zero.", got=full[1])
    output, weights = submission.attention(q, k, v, mask=mask)
    empty = ~mask.any(-1, keepdim=True)
    same(output, full[0].masked_fill(empty, 0.0), **TIGHT, what="output")
    same(weights, full[1].masked_fill(empty, 0.0), **TIGHT, what="weights")


@task(1)
@points(2)
@hint("F.scaled_dot_product_attention reads a boolean mask as this exercise does: True = may be attended to.")
def test_agrees_with_sdpa(submission, torch_rng):
    """On float32 batches of heads with a mask the output equals F.scaled_dot_product_attention."""
    q, k, v = (normal(torch_rng, 2, 3, t, 8, dtype=torch.float32) for t in (7, 11, 11))
    mask = torch.rand(2, 1, 7, 11, generator=torch_rng) < 0.5
    output, _ = submission.attention(q, k, v, mask=mask)
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    same(output, want, atol=float32_tolerance(q, k, v), rtol=0.0)


@task(1)
@points(5)
@hint(
    "The last query sees every key, also when there are more keys than queries.",
    "Query i sees key j iff j <= i + Tk - Tq; torch.tril has an argument for that offset.",
)
def test_causal_alignment(submission, reference, torch_rng):
    """Causal order is aligned bottom-right: query i sees key j iff j <= i + Tk - Tq."""
    for tq, tk in ((7, 7), (1, 9), (4, 9), (9, 4)):
        q, k, v = (normal(torch_rng, t, 4) for t in (tq, tk, tk))
        output, weights = submission.attention(q, k, v, is_causal=True)
        want_output, want_weights = reference.attention(q, k, v, is_causal=True)
        same(weights, want_weights, **TIGHT, what=f"weights for {tq} queries and {tk} keys")
        same(output, want_output, **TIGHT, what=f"output for {tq} queries and {tk} keys")


def future_independent(attend, torch_rng):
    for tq, tk in ((6, 6), (4, 9)):
        q, k, v = (normal(torch_rng, 2, t, 4, dtype=torch.float32) for t in (tq, tk, tk))
        before = attend(q, k, v)
        check(bool(before.any()), "The output is zero throughout: it depends on nothing.", got=before)
        for i in range(tq - 1):
            horizon = i + tk - tq
            k2, v2 = k.clone(), v.clone()
            k2[:, horizon + 1 :], v2[:, horizon + 1 :] = 1e30, 1e30
            check(
                torch.equal(attend(q, k2, v2)[:, : i + 1], before[:, : i + 1]),
                f"The keys and values after position {horizon} changed the output of queries 0..{i} "
                f"({tq} queries, {tk} keys), which cannot see them.",
            )


@task(1)
@points(3)
@hint("Something of the hidden keys reaches the output. Does a maximum, a sum or a mean run over all keys?")
def test_future_independence(submission, torch_rng):
    """Replacing the keys and values after a query's horizon by 1e30 leaves its output equal to the last bit."""
    future_independent(lambda q, k, v: submission.attention(q, k, v, is_causal=True)[0], torch_rng)


@task(1)
@points(3)
@hint("exp(100) overflows float32: softmax does not change when the maximum of a row is subtracted from its scores.")
def test_extreme_logits(submission, torch_rng):
    """Scores of several ten thousand give exact one-hot rows, and equal scores of 30 000 give uniform weights."""
    extreme_logits(submission.attention, torch_rng)
    # 4 · 15000 · 0.5 = 30000 without rounding, so all scores are equal whatever the order of the sum.
    _, weights = submission.attention(torch.full((3, 4), 15000.0), torch.ones(5, 4), torch.ones(5, 2))
    same(weights, torch.full((3, 5), 0.2), atol=1e-6, rtol=0.0, what="weights of equal scores")


def extreme_logits(attend, torch_rng):
    q, k, v = (normal(torch_rng, 8, 6, dtype=torch.float32) for _ in range(3))
    scores = (1e4 * q).double() @ k.double().T / math.sqrt(6)
    top = scores.topk(2, dim=-1).values
    clear = top[:, 0] - top[:, 1] > 200  # exp(-200) is 0 in float32, whatever the rounding of the scores
    output = attend(1e4 * q, k, v)[0]
    check(bool(output.isfinite().all()), "The output for scores of some ten thousand is not finite.", got=output)
    same(output[clear], v[scores.argmax(-1)][clear], atol=1e-6, rtol=0.0, what="rows with one clear winner")


# Rounding to bfloat16 (8 bits) changes a value by at most 2^-8 of it, to float16 (11 bits) 2^-11.
# The limit is 6 times the rounding of the largest value. All scores of a query share a large part, 80 · 16/sqrt(8) =
# 452, that the softmax cancels. Rounded to half precision such a score errs by up to 1 (bfloat16) or 0.125 (float16),
# which is a relative error of its weight.
HALF = ((torch.bfloat16, 6 * 2.0**-8), (torch.float16, 6 * 2.0**-11))


def half_precision(attend, oracle, torch_rng):
    """`attend` and `oracle` return a tuple; the results of attend have the input dtype."""
    for dtype, tolerance in HALF:
        q, k, v = (normal(torch_rng, 2, 16, 8, dtype=dtype) for _ in range(3))
        q[..., 0], k[..., 0] = 80.0, 16.0
        for name, got, want in zip(("output", "weights"), attend(q, k, v), oracle(q, k, v), strict=False):
            what = f"{name} for {dtype} inputs"
            same(got, want, atol=tolerance * want.abs().max().item(), rtol=0.0, dtype=dtype, what=what)


@task(1)
@points(3)
@hint("Convert q, k and v to float32 first, and the two results back at the very end.")
def test_half_precision(submission, reference, torch_rng):
    """float16 and bfloat16 inputs are computed in float32 and rounded once: output and weights have the input dtype."""
    half_precision(submission.attention, reference.attention, torch_rng)


@task(1)
@points(5)
@hint(
    "Where is the gradient NaN? Replacing a NaN after it arose may hide it from the value only.",
    "Give an empty row finite scores before the softmax, and zero its weights after it.",
)
def test_attention_gradients(submission, reference, torch_rng):
    """Gradients of q, k, v through output and weights are right; empty rows pass back exact zeros, never NaN."""
    for tq, tk, causal in ((5, 5, False), (3, 6, True), (6, 3, True)):
        inputs = tuple(normal(torch_rng, 2, t, d) for t, d in ((tq, 4), (tk, 4), (tk, 3)))
        mask = torch.rand(2, tq, tk, generator=torch_rng) < 0.7
        mask[1, -1] = False
        options = {"mask": mask, "is_causal": causal}
        cotangents = normal(torch_rng, 2, tq, 3), normal(torch_rng, 2, tq, tk)
        _, grads = submission.vjp("attention", inputs, options, wrt=(0, 1, 2), cotangents=cotangents)
        want = reference.gradients(reference.attention, inputs, cotangents, **options)
        for name, got, right in zip("qkv", grads, want, strict=True):
            same(got, right, **GRADIENT, what=f"gradient of {name}")


@task(1)
@points(1)
@hint("`check_qkv` and `check_mask` are given: call them first.")
def test_errors(submission, torch_rng):
    """Shapes that do not fit raise ValueError naming both, and a mask that is not boolean raises TypeError."""
    q, k, v = (normal(torch_rng, 2, t, 4) for t in (3, 5, 5))
    submission.attention(q, k, v)
    with expect_error(ValueError, "2, 3, 4", "2, 5, 3"):
        submission.attention(q, k[..., :3], v)
    with expect_error(ValueError, "2, 5, 4", "2, 6, 4"):
        submission.attention(q, k, normal(torch_rng, 2, 6, 4))
    with expect_error(TypeError, "mask must be boolean"):
        submission.attention(q, k, v, mask=torch.zeros(3, 5))


# --- task 2: the layer (values only: either path will do) ------------------------------------------------------------


def layer_parameters(torch_rng, d_model, d_head, bias):
    shapes = {name: (d_head, d_model) for name in ("q_proj", "k_proj", "v_proj")} | {"out_proj": (d_model, d_head)}
    parameters = {f"{n}.weight": normal(torch_rng, *s, dtype=torch.float32) * 0.5 for n, s in shapes.items()}
    if bias:
        parameters |= {f"{n}.bias": normal(torch_rng, s[0], dtype=torch.float32) for n, s in shapes.items()}
    return parameters


@probe
def parameter_shapes(module, d_model, d_head, bias):
    """Names and shapes of the parameters of a new layer (their values are random)."""
    layer = module.SelfAttention(d_model, d_head, bias=bias)
    return {name: list(p.shape) for name, p in layer.named_parameters()}


@task(2)
@points(5)
@hint(
    "key_padding_mask is about keys and says True for real tokens: (B, T) becomes (B, 1, T) for `attention`.",
    "The scale is 1/sqrt(d_head): that of the projected queries, which `attention` uses by default.",
)
def test_module(submission, reference, torch_rng):
    """The layer with given weights equals the reference: padding, causal order, bias, B = 1, T = 1."""
    for d_head, causal, bias, batch, t in ((None, False, False, 2, 5), (3, True, True, 3, 6), (5, True, False, 1, 1)):
        parameters = layer_parameters(torch_rng, 8, d_head or 8, bias)
        shapes = submission.run(parameter_shapes, 8, d_head, bias)
        want_shapes = {name: list(p.shape) for name, p in parameters.items()}
        check(shapes == want_shapes, "The parameters have other names or shapes.", got=shapes, want=want_shapes)
        layer = submission.SelfAttention(8, d_head, causal=causal, bias=bias)
        layer.load_state_dict(parameters)
        x = normal(torch_rng, batch, t, 8, dtype=torch.float32)
        # The last sequence is half padding on the left: with causal order its first queries see nothing.
        real = torch.ones(batch, t, dtype=torch.bool)
        real[-1, : t // 2] = False
        for padding in (None, real):
            want, want_weights = reference.self_attention(parameters, x, padding, causal=causal)
            output = layer(x, padding)
            again, weights = layer(x, padding, return_weights=True)
            # What a padding position gives is nobody's concern, as long as it is finite.
            read = real if padding is not None else torch.ones_like(real)
            check(bool(output.isfinite().all()), "The output is not finite everywhere.", got=output)
            limits = {"atol": 1e-4, "rtol": 0.0, "dtype": torch.float32}
            same(output[read], want[read], **limits, what="output")
            same(again[read], want[read], **limits, what="output with return_weights=True")
            same(weights[read], want_weights[read], **limits, what="weights")


@task(2)
@points(1)
@hint("One head of nn.MultiheadAttention is this layer; its four matrices were loaded into yours.")
def test_module_agrees_with_torch(submission, torch_rng):
    """The layer equals a one-head nn.MultiheadAttention with the same weights, in value and in gradient of x."""
    parameters = layer_parameters(torch_rng, 6, 6, bias=True)
    oracle = torch.nn.MultiheadAttention(6, 1, bias=True, batch_first=True)
    oracle.load_state_dict(
        {
            "in_proj_weight": torch.cat([parameters[f"{n}_proj.weight"] for n in "qkv"]),
            "in_proj_bias": torch.cat([parameters[f"{n}_proj.bias"] for n in "qkv"]),
            "out_proj.weight": parameters["out_proj.weight"],
            "out_proj.bias": parameters["out_proj.bias"],
        }
    )
    layer = submission.SelfAttention(6, bias=True)
    layer.load_state_dict(parameters)
    x = normal(torch_rng, 2, 5, 6, dtype=torch.float32)
    cotangent = normal(torch_rng, 2, 5, 6, dtype=torch.float32)
    # return_weights keeps this on the path of task 1: a core check must not need the streaming backward pass.
    (output, _), (gradient,) = submission.vjp(
        layer, (x,), {"return_weights": True}, wrt=(0,), cotangents=(cotangent, None)
    )
    leaf = x.clone().requires_grad_()
    want, _ = oracle(leaf, leaf, leaf)
    (want_gradient,) = torch.autograd.grad(want, leaf, cotangent)
    same(output, want.detach(), atol=1e-4, rtol=0.0)
    same(gradient, want_gradient, atol=1e-4, rtol=0.0, what="gradient of x")


# --- task 3: summary --------------------------------------------------------------------------------------------------

FIELDS = ("entropy", "effective_keys", "argmax_key", "mean_distance", "received", "sink_mass")


def compare_summaries(got, want):
    for field in FIELDS:
        value, right = getattr(got, field), getattr(want, field)
        if right.ndim == 0:  # one map has one sink_mass: an array of no dimensions and a number are the same to us
            value, right = float(value), float(right)
        same(value, right, **TIGHT, equal_nan=True, what=field)


@task(3)
@points(4)
@hint(
    "Entropy is in nats, and 0·log 0 counts as 0. Query i stands at key position i + Tk - Tq.",
    "Try the identity (entropy 0, distance 0) and the uniform map (entropy log Tk, Tk effective keys).",
)
def test_summary(submission, reference, torch_rng):
    """Identity, uniform, one-hot and random maps, with empty rows, are summarised as defined (float64)."""
    scores = normal(torch_rng, 2, 3, 4, 7)
    random = scores.softmax(-1)
    random[0, 0, 1] = 0.0  # an empty row
    ties = torch.tensor([[0.0, 0.5, 0.5], [0.25, 0.25, 0.5], [0.0, 0.0, 0.0]])
    one_hot = F.one_hot(torch.tensor([3, 0, 2]), 5).double()
    for weights in (torch.eye(4), torch.full((3, 8), 1 / 8), one_hot, ties, random):
        compare_summaries(submission.summarise_attention(weights), reference.summarise_attention(weights))


@probe
def warnings_of_summary(module, weights, query_mask):
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module.summarise_attention(weights, query_mask)
    return [str(warning.message) for warning in caught]


@task(3)
@points(2)
@hint("An invalid query is left out, not multiplied by 0: its weights may be NaN, and 0 · NaN is NaN.")
def test_summary_leaves_out_invalid_queries(submission, reference, torch_rng):
    """Queries that query_mask rules out are NaN (argmax -1) and do not enter the means, whatever they hold."""
    weights = normal(torch_rng, 2, 4, 5).softmax(-1)
    valid = torch.tensor([[True, True, False, True], [False, False, False, False]])
    weights[0, 2] = math.nan
    compare_summaries(submission.summarise_attention(weights, valid), reference.summarise_attention(weights, valid))
    whole = torch.tensor([[True], [False]])  # one entry for all queries of a map
    finite = normal(torch_rng, 2, 4, 5).softmax(-1)
    want = reference.summarise_attention(finite, whole.expand(2, 4))
    compare_summaries(submission.summarise_attention(finite, whole), want)
    said = submission.run(warnings_of_summary, finite, whole)
    check(not said, "Where no query is valid the means are NaN without a warning.", got=said, want=[])


# --- task 4: figure ---------------------------------------------------------------------------------------------------

# Two `$` make matplotlib parse a formula, and `\frac` without arguments is an error when the figure is drawn. (The
# specification's tokens have one `$` each, which matplotlib 3.11 shows as it is.)
TOKENS = ["<s>", "the", "the", "$x", "$\\frac$", "a_b^c", "</s>"]
TITLE = "layer 0: $\\where$"


@probe
def figure_facts(module, weights, query_tokens, key_tokens, title):
    """What is on the figure, as plain data; drawn once, because labels that cannot be drawn fail only then."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    figure = module.plot_attention(weights, query_tokens, key_tokens, title=title)
    FigureCanvasAgg(figure).draw()
    maps = [ax for ax in figure.axes if ax.images]
    return {
        "other_axes": len(figure.axes) - len(maps),
        "texts": [text.get_text() for text in figure.findobj(Text)],
        "maps": [
            {
                "images": len(ax.images),
                "data": [[float(x) for x in row] for row in ax.images[0].get_array()],
                "limits": [float(x) for x in ax.images[0].get_clim()],
                "rows_downwards": bool(ax.transData.transform((0, 0))[1] > ax.transData.transform((0, 1))[1]),
                "x_ticks": [float(x) for x in ax.get_xticks()],
                "y_ticks": [float(y) for y in ax.get_yticks()],
                "x_labels": [t.get_text() for t in ax.get_xticklabels()],
                "y_labels": [t.get_text() for t in ax.get_yticklabels()],
                "axis_labels": [ax.get_xlabel(), ax.get_ylabel()],
                "title": ax.get_title(),
            }
            for ax in maps
        ],
    }


def judge_map(facts, weights, query_tokens, key_tokens, where):
    check(facts["images"] == 1, f"{where} holds more than one image.", got=facts["images"], want=1)
    data = torch.tensor(facts["data"], dtype=torch.float64)
    same(data, weights.double(), atol=1e-6, rtol=0.0, what=f"image of {where}")
    check(facts["limits"] == [0.0, 1.0], f"Colour limits of {where} are not (0, 1).", got=facts["limits"], want=[0, 1])
    for axis, tokens in (("x", key_tokens), ("y", query_tokens)):
        ticks, labels = facts[f"{axis}_ticks"], facts[f"{axis}_labels"]
        check(ticks == list(range(len(tokens))), f"{where} needs one {axis} tick per token.", got=ticks)
        check(labels == list(tokens), f"The {axis} tick labels of {where} are not the tokens.", got=labels, want=tokens)
    check(facts["axis_labels"] == ["key", "query"], f"Axis labels of {where}.", got=facts["axis_labels"])


@task(4)
@points(4)
@hint(
    "One imshow of the weights as they are: rows are queries, vmin and vmax are 0 and 1.",
    "Two `$` in a label make a formula, and a bad one is an error when drawn: set parse_math=False on each label.",
)
def test_figure(submission, torch_rng):
    """One map shows the untouched weights, colours from 0 to 1, and each token as it is at its tick."""
    weights = normal(torch_rng, 5, 7, dtype=torch.float32).softmax(-1)
    facts = submission.run(figure_facts, weights, TOKENS[2:], TOKENS, TITLE)
    check(len(facts["maps"]) == 1, "A (Tq, Tk) map gives one axes with an image.", got=len(facts["maps"]), want=1)
    judge_map(facts["maps"][0], weights, TOKENS[2:], TOKENS, "the map")
    check(TITLE in facts["texts"], "The title is not on the figure.", got=facts["texts"])
    check(facts["other_axes"] == 1, "One colour bar, and no axes besides.", got=facts["other_axes"], want=1)


@task(4)
@points(2)
@hint("imshow in a loop over heads with the same vmin and vmax, then one figure.colorbar(image, ax=all_axes).")
def test_figure_of_heads(submission, torch_rng):
    """(H, Tq, Tk) gives H maps titled head 0, head 1, ... that share one scale and one colour bar."""
    weights = normal(torch_rng, 3, 2, 4, dtype=torch.float32).softmax(-1)
    tokens = ["a", "b", "c", "d"]
    facts = submission.run(figure_facts, weights, tokens[2:], tokens, "")
    check(len(facts["maps"]) == 3, "Three heads give three axes.", got=len(facts["maps"]), want=3)
    for head, one in enumerate(facts["maps"]):
        judge_map(one, weights[head], tokens[2:], tokens, f"head {head}")
        check(one["title"] == f"head {head}", "Titles of the heads.", got=one["title"], want=f"head {head}")
    check(facts["other_axes"] == 1, "One colour bar for all, and no axes besides.", got=facts["other_axes"], want=1)


@probe
def figure_file(module, weights, tokens):
    """The written file's first bytes, size in pixels, number of distinct colours; figures left open in pyplot."""
    import tempfile
    from pathlib import Path

    from matplotlib import pyplot
    from PIL import Image

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.png"
        module.plot_attention(weights, tokens, tokens, path=path)
        with Image.open(path) as image:
            image.verify()
        with Image.open(path) as image:
            colours = image.convert("RGB").getcolors(maxcolors=image.width * image.height)
            return {
                "signature": path.read_bytes()[:8],
                "size": list(image.size),
                "colours": len(colours),
                "open_figures": len(pyplot.get_fignums()),
            }


@task(4)
@points(1)
@hint("savefig(path, format='png'); `new_figure` (given) makes a figure that pyplot never hears of.")
def test_figure_file(submission, torch_rng):
    """With a path, a PNG of at least 300 pixels on its shorter side is written; no figure stays open in pyplot."""
    facts = submission.run(figure_file, normal(torch_rng, 3, 3).softmax(-1), ["a", "b", "c"])
    check(facts["signature"] == b"\x89PNG\r\n\x1a\n", "The file is not a PNG.", got=facts["signature"])
    check(min(facts["size"]) >= 300, "The picture is smaller than 300 pixels.", got=facts["size"])
    check(facts["colours"] > 9, "The picture shows no map.", got=facts["colours"])
    check(facts["open_figures"] == 0, "A figure was left open in pyplot.", got=facts["open_figures"], want=0)


@task(4)
@points(1)
@hint("Compare len(query_tokens) with the rows and len(key_tokens) with the columns before drawing.")
def test_figure_labels_error(submission):
    """A number of labels that does not fit the weights raises ValueError about "labels"."""
    weights = torch.full((2, 3), 1 / 3)
    submission.plot_attention(weights, ["a", "b"], ["a", "b", "c"])
    for queries, keys in ((["a"], ["a", "b", "c"]), (["a", "b"], ["a", "b"])):
        with expect_error(ValueError, "labels"):
            submission.plot_attention(weights, queries, keys)


# --- task 5: streaming forward ----------------------------------------------------------------------------------------


@task(5)
@points(7)
@hint(
    "Keep, per query, the running maximum m, the sum l and the output o. What must happen to l and o when m grows?",
    "With one block of keys everything is right? Then look at the rescaling. With lse = m + log l, not log l.",
)
@sk.given(streaming_cases(), examples=20)
def test_streaming_matches_reference(submission, reference, case):
    """Output and log-sum-exp equal the reference for every block size, padding mask and causal shape (float64)."""
    inputs, options, blocks = case
    got = submission.streaming_attention(*inputs, **options, **blocks)
    both(got, reference.streaming_attention(*inputs, **options), "output", "lse")


@task(5)
@points(3)
@hint(
    "exp(-inf - (-inf)) is NaN: a tile in which a query sees nothing must leave its m, l and o as they were.",
    "The sums m, l and o are float32 for half-precision inputs; lse is float32 too.",
)
def test_streaming_hard_inputs(submission, reference, torch_rng):
    """Extreme scores, half precision, hidden keys of 1e30 and bad arguments behave as they do in `attention`."""

    def stream(q, k, v, **options):
        return submission.streaming_attention(q, k, v, block_q=3, block_k=2, **options)

    extreme_logits(stream, torch_rng)
    half_precision(lambda *qkv: stream(*qkv)[:1], lambda *qkv: reference.streaming_attention(*qkv)[:1], torch_rng)
    q, k, v = (normal(torch_rng, 2, 7, 4, dtype=torch.bfloat16) for _ in range(3))
    want = reference.streaming_attention(q, k, v)[1]
    same(stream(q, k, v)[1], want, atol=1e-4, rtol=0.0, dtype=torch.float32, what="lse for bfloat16 inputs")
    future_independent(lambda q, k, v: stream(q, k, v, is_causal=True)[0], torch_rng)
    for blocks in ({"block_q": 0}, {"block_k": 0}):
        with expect_error(ValueError, "block"):
            submission.streaming_attention(q, k, v, **blocks)


@probe
def stream_with_another_default_device(module, q, k, v):
    """Tensors that are created without a device land on `meta` here and cannot be mixed with those of the inputs."""
    import torch

    with torch.device("meta"):
        output, lse = module.streaming_attention(q, k, v, is_causal=True, block_q=4, block_k=3)
    return [output.device.type, lse.device.type, output, lse]


@task(5)
@points(1)
@hint("Pass device=q.device wherever you create a tensor (zeros, full, arange), or use q.new_zeros and the like.")
def test_streaming_follows_the_device(submission, reference, torch_rng):
    """Every tensor the function creates lives on the device of q, whatever the default device is."""
    q, k, v = (normal(torch_rng, 2, 9, 4) for _ in range(3))
    *devices, output, lse = submission.run(stream_with_another_default_device, q, k, v)
    check(devices == ["cpu", "cpu"], "The results are not on the device of the inputs.", got=devices)
    both((output, lse), reference.streaming_attention(q, k, v, is_causal=True), "output", "lse")


# --- task 6: merge ----------------------------------------------------------------------------------------------------


@st.composite
def partitions(draw):
    """q, k, v, the keys cut into 2 to 5 parts (some empty), and a random order and bracketing of the merges."""
    parts = draw(st.integers(2, 5))
    t, tk = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    part_of_key = [draw(st.integers(0, parts - 1)) for _ in range(tk)]
    picks = [(draw(st.integers(0, 4)), draw(st.integers(0, 4))) for _ in range(parts - 1)]
    seed = draw(st.integers(0, 999))
    q, k, v = (sk.tensor(seed + n, (2, s, 3), scale=c) for n, (s, c) in enumerate(((t, 2.0), (tk, 1.0), (tk, 1.0))))
    return (q, k, v), part_of_key, picks


@task(6)
@points(5)
@hint(
    "A part stands for a softmax mass of exp(lse): how does the mass of the union follow from the two masses?",
    "Take the larger lse out before exp; where both are -inf there is nothing to divide by.",
)
@sk.given(partitions(), examples=14)
def test_merge_is_a_monoid(submission, reference, case):
    """Keys cut into parts and merged in any order and bracketing give the whole; (0, -inf) is the identity."""
    (q, k, v), part_of_key, picks = case
    owner = torch.tensor(part_of_key)
    live = [
        reference.streaming_attention(q, k, v, key_padding_mask=owner == part) for part in range(len(picks) + 1)
    ]
    for a, b in picks:
        first = live.pop(a % len(live))
        second = live.pop(b % len(live))
        live.append(submission.merge_attention(*first, *second))
    want = reference.streaming_attention(q, k, v)
    both(live[0], want, "merged output", "merged lse")


@task(6)
@points(1)
@hint("(0, -inf) means: this part saw no key. Merging with it changes nothing, and two of them make another.")
def test_merge_at_the_edges(submission, torch_rng):
    """The identity (0, -inf) works on both sides, two empty parts stay empty, and lse 1 000 apart do not overflow."""
    out, lse = normal(torch_rng, 2, 3, 4), normal(torch_rng, 2, 3)
    zero, nothing = torch.zeros(2, 3, 4, dtype=torch.float64), torch.full((2, 3), -math.inf, dtype=torch.float64)
    same(submission.merge_attention(zero, nothing, out, lse), (out, lse), **TIGHT, what="identity on the left")
    same(submission.merge_attention(out, lse, zero, nothing), (out, lse), **TIGHT, what="identity on the right")
    same(submission.merge_attention(zero, nothing, zero, nothing), (zero, nothing), **TIGHT, what="two empty parts")
    far = normal(torch_rng, 2, 3, 4)
    same(submission.merge_attention(out, lse, far, lse + 1000), (far, lse + 1000), **TIGHT, what="lse 1000 apart")
    # Half-precision outputs come with a float32 lse: each result keeps its dtype.
    half, single = out.bfloat16(), lse.float()
    got = submission.merge_attention(half, single, half, single)
    same(got[0], half, atol=0.02, rtol=0.0, what="two equal parts in bfloat16")  # 4 > |out|, rounded to 2^-7 of it once
    same(got[1], (lse + math.log(2)).float(), atol=1e-5, rtol=0.0, what="lse of two equal parts")


# --- task 7: streaming backward ---------------------------------------------------------------------------------------


def judge_backward(submission, reference, inputs, options, blocks, cotangents, case):
    _, grads = submission.vjp(
        "streaming_attention", inputs, {**options, **blocks}, wrt=(0, 1, 2), cotangents=cotangents
    )
    want = reference.gradients(reference.streaming_attention, inputs, cotangents, **options)
    for name, got, right in zip("qkv", grads, want, strict=True):
        # lse does not depend on v: autograd may say so by None.
        got = torch.zeros_like(right) if got is None and not right.any() else got
        same(got, right, **GRADIENT, what=f"gradient of {name} {case}")


@task(7)
@points(6)
@hint(
    "Check dV = Pᵀ dO alone first (let only v need a gradient), then dP, then dS = P ∘ (dP - δ).",
    "δ = rowsum(dO ∘ O) - dLSE: the second term carries the gradient that enters through lse.",
)
def test_streaming_backward(submission, reference, torch_rng):
    """Gradients of q, k, v through output and lse equal those of the reference for all shapes and blocks (1e-10)."""
    # Reference gradients come from autograd through the loops; that replaces the finite differences of a gradcheck.
    for tq, tk, causal, bq, bk in ((5, 5, False, 2, 3), (4, 7, True, 3, 2), (7, 4, True, 2, 9), (6, 6, False, 9, 1)):
        inputs = tuple(normal(torch_rng, 2, t, d) for t, d in ((tq, 4), (tk, 4), (tk, 3)))
        padding = torch.rand(2, tk, generator=torch_rng) < 0.7
        padding[1] = causal  # a whole sequence of padding in the non-causal cases
        options = {"is_causal": causal, "key_padding_mask": padding}
        blocks = {"block_q": bq, "block_k": bk}
        d_out, d_lse = normal(torch_rng, 2, tq, 3), normal(torch_rng, 2, tq)
        for cotangents, case in (((d_out, d_lse), ""), ((d_out, None), "through out"), ((None, d_lse), "through lse")):
            judge_backward(submission, reference, inputs, options, blocks, cotangents, case)
    # bfloat16: each gradient has the dtype of its input. Output and gradients are rounded, by 2^-9 of themselves each.
    inputs = tuple(normal(torch_rng, 2, t, 4, dtype=torch.bfloat16) for t in (5, 6, 6))
    cotangents = normal(torch_rng, 2, 5, 4, dtype=torch.bfloat16), normal(torch_rng, 2, 5, dtype=torch.float32)
    blocks = {"block_q": 2, "block_k": 4}
    _, grads = submission.vjp("streaming_attention", inputs, blocks, wrt=(0, 1, 2), cotangents=cotangents)
    want = reference.gradients(reference.streaming_attention, [x.double() for x in inputs], cotangents)
    for name, got, right in zip("qkv", grads, want, strict=True):
        atol = 2.0**-4 * right.abs().max().item()
        same(got, right, atol=atol, rtol=0.0, dtype=torch.bfloat16, what=f"gradient of {name} for bfloat16 inputs")


@task(7)
@points(1)
@hint("view() needs contiguous memory; slicing, matmul and reshape do not.")
def test_streaming_backward_of_transposed_inputs(submission, reference, torch_rng):
    """Inputs that are transposed views, as heads split from one projection are, get the same gradients."""
    inputs = tuple(normal(torch_rng, 2, 5, 3, 4).transpose(1, 2) for _ in range(3))  # (B, T, H, D) seen as (B, H, T, D)
    cotangents = normal(torch_rng, 2, 3, 5, 4), normal(torch_rng, 2, 3, 5)
    options = {"is_causal": True, "scale": 0.7}
    judge_backward(submission, reference, inputs, options, {"block_q": 2, "block_k": 2}, cotangents, "(transposed)")
