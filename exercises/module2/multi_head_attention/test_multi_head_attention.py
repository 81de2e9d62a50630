"""Visible checks of 2.3 multi_head_attention. They earn no points; what they ask for is in README.md."""

import torch
from torch import nn

from llmkata.checks import check, expect_error, hint, needs, probe, same, task

# The worked example of the brief: d_model = 4, two heads of two features, three tokens.
X = torch.tensor([[[1.0, 0.0, 4.0, 0.0], [0.0, 1.0, 0.0, 4.0], [1.0, 1.0, 8.0, 8.0]]], dtype=torch.float64)
NEAR = {"atol": 1e-12, "rtol": 0.0}


def normal(rng, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=rng, dtype=torch.float64).to(dtype)


def random_parameters(rng, d, kv_dim, dtype=torch.float64):
    shapes = {"q_proj": (d, d), "k_proj": (kv_dim, d), "v_proj": (kv_dim, d), "out_proj": (d, d)}
    weights = {f"{name}.weight": normal(rng, *shape) / d**0.5 for name, shape in shapes.items()}
    biases = {f"{name}.bias": normal(rng, shape[0]) for name, shape in shapes.items()}
    return {name: p.to(dtype) for name, p in (weights | biases).items()}


@probe
def run_layer(module, d_model, n_heads, n_kv_heads, parameters, query, memory, options):
    """What a layer with these parameters returns."""
    layer = module.MultiHeadAttention(d_model, n_heads, n_kv_heads, bias="q_proj.bias" in parameters)
    layer.to(query.dtype).load_state_dict(parameters)
    return layer(query, memory, **options)


@task(1)
@hint(
    "Head 0 owns features 0 and 1, head 1 owns features 2 and 3, of every token.",
    "Print split_heads(x, 2)[0, 1] for the x of this check: it must be [[4, 0], [0, 4], [8, 8]].",
)
def test_two_heads_by_hand(submission):
    """The worked example of the brief: one head reads everything equally, the other only the last token."""
    eye = torch.eye(4, dtype=torch.float64)
    # Head 0 has zero queries: equal scores. Head 1 asks with (0, 200), and its keys are (0, x0 + x1 - 1).
    parameters = {"q_proj.weight": torch.zeros(4, 4), "v_proj.weight": eye, "out_proj.weight": eye}
    parameters = {name: p.double() for name, p in parameters.items()}
    parameters |= {"q_proj.bias": torch.tensor([0.0, 0, 0, 200]).double()}
    parameters |= {"k_proj.weight": torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).double()}
    parameters |= {"k_proj.bias": torch.tensor([0.0, 0, 0, -1]).double()}
    parameters |= {f"{name}_proj.bias": torch.zeros(4).double() for name in ("v", "out")}
    output, weights = submission.run(run_layer, 4, 2, None, parameters, X, None, {"need_weights": True})
    third = [1 / 3, 1 / 3, 1 / 3]
    want = torch.tensor([[third, third, third], [[0.0, 0.0, 1.0]] * 3], dtype=torch.float64)
    same(weights[0], want, **NEAR, what="weights of both heads")
    same(output[0], torch.tensor([[2 / 3, 2 / 3, 8.0, 8.0]] * 3, dtype=torch.float64), **NEAR, what="output")


@task(1)
@hint("Our masks say what may be read, PyTorch's say what may not: the check inverts both for nn.MultiheadAttention.")
def test_agrees_with_torch(submission, torch_rng):
    """Output and weights per head equal nn.MultiheadAttention's, with padding and causal order."""
    d, n_heads = 12, 3
    parameters = random_parameters(torch_rng, d, d, torch.float32)
    x = normal(torch_rng, 2, 5, d, dtype=torch.float32)
    real = torch.tensor([[True] * 5, [True, True, True, False, False]])
    theirs = nn.MultiheadAttention(d, n_heads, batch_first=True)
    theirs.load_state_dict(
        {f"in_proj_{p}": torch.cat([parameters[f"{n}_proj.{p}"] for n in "qkv"]) for p in ("weight", "bias")}
        | {f"out_proj.{p}": parameters[f"out_proj.{p}"] for p in ("weight", "bias")}
    )
    # Both masks in one, for each head: with key_padding_mask torch would import SymPy, 0.3 s.
    may_read = (torch.ones(5, 5, dtype=torch.bool).tril() & real[:, None]).repeat_interleave(n_heads, 0)
    with torch.no_grad():
        want = theirs(x, x, x, attn_mask=~may_read, average_attn_weights=False)
    options = {"key_padding_mask": real, "is_causal": True, "need_weights": True}
    got = submission.run(run_layer, d, n_heads, None, parameters, x, None, options)
    same(got, want, atol=1e-5, rtol=0.0, what="(output, weights)")


@task(1)
@hint("Zero weights, so zeros are merged, and out_proj adds its bias. NaN comes from a softmax over -inf only.")
def test_a_query_that_reads_nothing(submission, torch_rng):
    """Where everything is masked, the weights are zero and the output is the bias of out_proj."""
    parameters = random_parameters(torch_rng, 4, 4)
    mask = torch.tensor([[True, True], [False, False]])
    options = {"attn_mask": mask, "need_weights": True}
    output, weights = submission.run(run_layer, 4, 2, None, parameters, normal(torch_rng, 1, 2, 4), None, options)
    same(weights[:, :, 1], torch.zeros(1, 2, 2, dtype=torch.float64), what="weights of the empty row")
    same(output[0, 1], parameters["out_proj.bias"], **NEAR, what="output of the empty row")


@task(2)
@hint("project_kv makes (B, n_kv_heads, S, head_dim) twice; forward(query, kv=...) must not project again.")
def test_reading_a_memory(submission, torch_rng):
    """Three queries read a memory of five, directly and through project_kv, with the same result."""
    layer = submission.MultiHeadAttention(8, 2)
    query, memory = (normal(torch_rng, 2, t, 8, dtype=torch.float32) for t in (3, 5))
    keys, values = layer.project_kv(memory)
    check(tuple(keys.shape) == (2, 2, 5, 4), "Shape of the keys.", got=tuple(keys.shape), want=(2, 2, 5, 4))
    direct = layer(query, memory)
    check(tuple(direct.shape) == (2, 3, 8), "Shape of the output.", got=tuple(direct.shape), want=(2, 3, 8))
    same(layer(query, kv=(keys, values)), direct, what="output with kv=project_kv(memory)")
    # A memory of one token leaves no choice: every query reads its value, whatever it asks.
    one = layer(query, memory[:, :1])
    same(one, one[:, :1].expand(2, 3, 8), what="outputs over a memory of one token")
    with expect_error(ValueError, "not both"):
        layer(query, memory, kv=(keys, values))


@probe
def toy_decode(module, length):
    """Greedy tokens and scores of a model that writes "last token + 1", and whose start symbol is 2."""
    import torch

    class Counter(module.Seq2Seq):
        def decode(self, tokens, *source, **options):
            after = (tokens + 1) % 2
            after[tokens == self.start] = 0
            return torch.nn.functional.one_hot(after, 2).float()

    model = Counter(module.TaskSize(2, 2, 2, length), 1, 1, d_model=4)
    src = torch.zeros(2, 2, dtype=torch.int64)
    tgt = torch.tensor([[0, 1], [1, 0]])
    return module.greedy_decode(model, src, length), module.evaluate(model, src, tgt)


@task(3)
@needs("test_reading_a_memory")
@hint("Read the start symbol, append the argmax after the last token, and leave the start symbol out in the end.")
def test_two_tokens(submission):
    """A toy that alternates 0 1 is decoded freely: against 0 1 it is right, against 1 0 it is wrong throughout."""
    tokens, scores = submission.run(toy_decode, 2)
    same(tokens, torch.tensor([[0, 1], [0, 1]]), what="tokens")
    same(scores, (0.5, 0.5), atol=1e-6, what="(token accuracy, exact match)")


@task(4)
@needs("test_two_tokens", "test_agrees_with_torch")
@hint("With 75 steps all variants learn to copy. Below 0.9, check causal order and cross-attention first.")
def test_copy_is_learned(submission):
    """A real training of 75 steps: two heads copy eight symbols, free-running token accuracy at least 0.9."""
    trial = submission.run_trial(submission.Variant("two", 2, 2), "copy", 0, steps=75)
    same(trial.kv_bytes, 256, what="kv_bytes")
    check(trial.token_accuracy >= 0.9, "Token accuracy on copy.", got=trial.token_accuracy)


@task(4)
@hint("2 · n_kv_heads · head_dim · itemsize")
def test_bytes_per_token(submission):
    """Keys and values of one token: four heads of 8 features take 256 bytes, one shared head 64."""
    same(submission.kv_bytes_per_token(32, 4, 4), 256, what="bytes for four heads")
    same(submission.kv_bytes_per_token(32, 4, 1), 64, what="bytes for one shared head")


@task(5)
@hint("Eight sign patterns of [1, 1, 1]; two of them, +++ and ---, are as far from zero as the data.")
def test_three_wins(submission):
    """Three wins out of three: p = 2/8. Of the 16 patterns of [2, 1, 1, 0] four are as extreme (0 has two signs): 4/16."""
    same(submission.sign_flip_pvalue([1.0, 1.0, 1.0]), 0.25, atol=1e-12, what="p-value of [1, 1, 1]")
    same(submission.sign_flip_pvalue([2.0, 1.0, 1.0, 0.0]), 0.25, atol=1e-12, what="p-value of [2, 1, 1, 0]")


@probe
def compared(module, scores):
    """Verdict, mean, sd, difference and p of each row, for {variant: exact match by seed} on one task."""
    trials = [
        module.Trial(name, "copy", seed, 10, 0.1, 0.9, value, 100, 256)
        for name, values in scores.items()
        for seed, value in enumerate(values)
    ]
    return [[r.variant, r.verdict, r.mean, r.sd, r.diff_mean, r.p_value] for r in module.compare(trials, "base")]


@task(5)
@needs("test_three_wins")
@hint("Six paired wins give p = 2/64, five only 2/32: look at the verdict of the second table again.")
def test_verdicts(submission):
    """Six wins out of six are better at alpha 0.05; five out of five are not."""
    base = [0.25, 0.5, 0.75, 0.25, 0.5, 0.75]
    more = [x + 0.125 for x in base]
    sd = (6 * 0.25**2 * 4 / 6 / 5) ** 0.5
    want = [["base", "baseline", 0.5, sd, 0.0, 1.0], ["more", "better", 0.625, sd, 0.125, 2 / 64]]
    same(submission.run(compared, {"base": base, "more": more}), want, atol=1e-12, what="rows of six seeds")
    rows = submission.run(compared, {"base": base[:5], "more": more[:5]})
    same([r[1] for r in rows], ["baseline", "indistinguishable"], what="verdicts of five seeds")


@task(6)
@hint(
    "With one shared head, k_proj and v_proj have head_dim outputs and project_kv gives one head.",
    "Repeating K and V is a fine first version; the budget of this task then asks for one without copies.",
)
def test_shared_heads(submission, torch_rng):
    """Four query heads over one key/value head equal four full heads with the same K and V in each."""
    parameters = random_parameters(torch_rng, 8, 2)
    full = {n: p.repeat(4, *[1] * (p.ndim - 1)) if n[0] in "kv" else p for n, p in parameters.items()}
    x = normal(torch_rng, 2, 5, 8)
    options = {"is_causal": True, "need_weights": True}
    shared = submission.run(run_layer, 8, 4, 1, parameters, x, None, options)
    same(shared, submission.run(run_layer, 8, 4, 4, full, x, None, options), **NEAR, what="(output, weights)")


@task(6)
@hint("q_proj and out_proj, k_proj and v_proj, scores and weighted sum: twice 2·m·k·n each.")
def test_flops_by_hand(submission):
    """One query over three keys, d_model = 4, four heads over two: 64 + 96 + 48 FLOPs."""
    same(submission.attention_flops(1, 1, 3, 4, 4, 2), 64 + 96 + 48, what="FLOPs")


@task(6)
@hint("This check only shows numbers. The limits of task 6 are 1.6 and 1.0 times the bytes of K and V.")
def test_copies_are_shown(submission, budget, torch_rng):
    """For your information: bytes copied by a call with 8 heads over 2, against those of K and V."""
    query, memory = (normal(torch_rng, 2, t, 64, dtype=torch.float32) for t in (16, 512))
    parameters = random_parameters(torch_rng, 64, 16, torch.float32)

    def scenario(s, query, memory, parameters):
        layer = s.MultiHeadAttention(64, 8, 2)
        layer.load_state_dict(parameters)
        with s.segment("forward"):
            return layer(query, memory)

    run = budget.replay(scenario, query, memory, parameters, expect=None)["forward"]
    budget.require("bytes copied", run.bytes_moved, reference=2 * 2 * 512 * 16 * 4, unit="bytes")


@probe
def drawn(module):
    """Front and figure of three handmade rows."""
    import tempfile
    from pathlib import Path

    rows = [
        module.Row(name, "gather4", 4, mean, 0.2, (), 0.0, 1.0, "indistinguishable", kv_bytes, 10, "exact_match")
        for name, mean, kv_bytes in (("one", 0.25, 256), ("four", 1.0, 256), ("mqa", 0.75, 64))
    ]
    with tempfile.TemporaryDirectory() as folder:
        figure = module.plot_comparison(rows, Path(folder) / "comparison.png")
    (ax,) = figure.axes
    labels = [t.get_text() for t in ax.get_xticklabels()]
    return module.pareto_front(rows), [float(p.get_height()) for p in ax.patches], labels, ax.get_ylabel()


@task(7)
@hint("`one` costs as much as `four` and is worse: it is beaten. `mqa` is cheaper than `four`, and worse: both stay.")
def test_front_and_figure(submission):
    """Of three handmade rows two are on the front, cheapest first; the figure has three labelled bars."""
    front, heights, labels, y_label = submission.run(drawn)
    same(front, ["mqa", "four"], what="front")
    same(heights, [0.25, 1.0, 0.75], atol=1e-9, what="heights of the bars")
    check(labels == ["one", "four", "mqa"], "x tick labels.", got=labels)
    same(y_label, "exact_match", what="y label")
