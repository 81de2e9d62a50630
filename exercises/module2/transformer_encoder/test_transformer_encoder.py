"""Visible checks of 2.2 transformer_encoder. They earn no points; what they ask for is in README.md."""

import math
from pathlib import Path

import torch
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

NEAR = {"atol": 1e-6, "rtol": 0.0}
SMALL = {"d_model": 8, "n_heads": 2, "d_ff": 12, "n_layers": 2, "unpad": False}
TINY_BERT = Path(__file__).parents[3] / "components" / "tiny_bert"

# The worked example of the brief: a pre-norm layer with q = k = 0 (so that every visible token weighs the same), v and
# `out` the identity, and a feed-forward network that gives 0. The last token is padding.
EXAMPLE = {"d_model": 2, "n_heads": 1, "d_ff": 1, "n_layers": 1, "activation": "relu", "norm_eps": 1e-12}
TOKENS = torch.tensor([[[1.0, 0.0], [4.0, 2.0], [0.0, 3.0], [9.0, 0.0]]])
REAL = torch.tensor([[True, True, True, False]])
RIGHT = torch.tensor([[4 / 3, -1 / 3], [13 / 3, 5 / 3], [1 / 3, 8 / 3]])


@probe
def worked_example(module, cfg, tokens, mask):
    """Output of the layer of the worked example."""
    import torch

    layer = module.EncoderLayer(module.EncoderConfig(**cfg))
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            parameter.fill_(1.0 if name in ("norm1.weight", "norm2.weight") else 0.0)
        layer.qkv.weight[4:] = torch.eye(2)
        layer.out.weight.copy_(torch.eye(2))
        return layer(tokens, mask)


@probe
def fresh_encoder(module, cfg):
    """An encoder with its own random weights."""
    return module.TransformerEncoder(module.EncoderConfig(**cfg)).requires_grad_(False).eval()


@task(1)
@hint("Frequencies for d = 4 are 1 and 10000^(-2/4) = 0.01; a row is sin, cos, sin, cos.")
def test_first_positions(submission):
    """Rows 0 and 1 of the sinusoids for d = 4, by hand."""
    want = torch.tensor([[0.0, 1.0, 0.0, 1.0], [math.sin(1), math.cos(1), math.sin(0.01), math.cos(0.01)]])
    same(submission.sinusoidal_positions(2, 4), want, **NEAR, what="positions")
    same(submission.sinusoidal_positions(1, 4, offset=1), want[1:], **NEAR, what="positions from offset 1")
    with expect_error(ValueError, "even"):
        submission.sinusoidal_positions(2, 5)


@task(1)
@hint("Learned positions are the parameter `weight`; x gets its first T rows.")
def test_positions_are_added(submission):
    """PositionalEncoding adds sinusoids to every row of a batch, and nothing for positions "none"."""
    x = torch.ones(2, 3, 4)
    sinusoids = submission.PositionalEncoding(submission.EncoderConfig(4, 1, 4, 1))
    same(sinusoids(x), x + submission.sinusoidal_positions(3, 4), **NEAR, what="x plus sinusoids")
    nothing = submission.PositionalEncoding(submission.EncoderConfig(4, 1, 4, 1, positions="none"))
    same(nothing(x), x, **NEAR, what="x without positions")


@probe
def one_number(module, activation):
    """A feed-forward network of width 1 with up = 2, gate = 1, down = 1 and zero biases, at x = 1 and x = -1."""
    import torch

    ff = module.FeedForward(1, 1, activation)
    with torch.no_grad():
        for name, parameter in ff.named_parameters():
            parameter.fill_({"up.weight": 2.0, "gate.weight": 1.0, "down.weight": 1.0}.get(name, 0.0))
        return ff(torch.tensor([[1.0], [-1.0]])), sorted(name for name, _ in ff.named_parameters())


@task(2)
@hint("silu(z) = z · sigmoid(z), so for x = 1 the gate lets silu(1) = 0.7311 of up(1) = 2 pass.")
def test_feed_forward_by_hand(submission):
    """Networks of width 1: relu, gelu and swiglu of small numbers, and which parameters each has."""
    phi = (1 + math.erf(math.sqrt(2))) / 2  # Φ(2)
    silu = 1 / (1 + math.exp(-1))
    names = ["down.bias", "down.weight", "up.bias", "up.weight"]
    for activation, want, parameters in (
        ("relu", [[2.0], [0.0]], names),
        ("gelu", [[2 * phi], [-2 * (1 - phi)]], names),
        ("swiglu", [[2 * silu], [2 * (1 - silu)]], ["down.weight", "gate.weight", "up.weight"]),
    ):
        output, got = submission.run(one_number, activation)
        same(output, torch.tensor(want), **NEAR, what=f"{activation} output")
        check(got == parameters, f"The parameters of a {activation} network have other names.", got=got, want=parameters)


@task(3)
@hint(
    "Norms of the three real tokens are (1, -1), (1, -1), (-1, 1); their mean (1/3, -1/3) is added to every token.",
    "(1/4, -1/4) added: the padding takes part as a zero. (1/2, -1/2) added: it takes part as it is.",
)
def test_worked_example(submission):
    """The worked example of the brief: a pre-norm layer that adds the mean of the normalised real tokens."""
    output = submission.run(worked_example, EXAMPLE, TOKENS, REAL)
    same(output[0, :3], RIGHT, **NEAR, what="output of the three real tokens")


@probe
def beside_torch(module, cfg, x, mask):
    """Outputs of nn.TransformerEncoderLayer and of the submission's layer with its weights."""
    import torch

    theirs = torch.nn.TransformerEncoderLayer(
        cfg["d_model"], cfg["n_heads"], cfg["d_ff"], 0.0, cfg["activation"], batch_first=True,
        norm_first=cfg["norm"] == "pre",
    )
    ours = module.EncoderLayer(module.EncoderConfig(**cfg))
    module.copy_torch_layer(ours, theirs)
    return {name: p.detach() for name, p in theirs.named_parameters()}, ours(x, mask).detach()


@task(3)
@hint("Off by about 5e-4? F.gelu has a tanh form, which is not its default. Off by more: where do the norms stand?")
def test_layer_beside_torch(submission, torch_rng):
    """Post-norm and pre-norm layers agree with nn.TransformerEncoderLayer at real tokens."""
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    x = torch.randn(2, 5, 8, generator=torch_rng)
    for norm, activation in (("post", "relu"), ("post", "gelu"), ("pre", "gelu")):
        cfg = {"d_model": 8, "n_heads": 2, "d_ff": 12, "n_layers": 1, "norm": norm, "activation": activation}
        weights, output = submission.run(beside_torch, cfg, x, mask)
        layer = torch.nn.TransformerEncoderLayer(8, 2, 12, 0.0, activation, batch_first=True, norm_first=norm == "pre")
        layer.load_state_dict(weights)
        want = layer(x, src_key_padding_mask=~mask).detach()
        same(output[mask], want[mask], atol=2e-5, rtol=0.0, what=f"output of a {norm}-norm {activation} layer")


@task(4)
@hint("Replace what stands at padding before anything is computed from it: 0 · NaN is NaN.")
def test_padding_is_never_read(submission, torch_rng):
    """NaN at padding, or more padding, changes no real token, and outputs at padding are 0."""
    encoder = submission.run(fresh_encoder, SMALL)
    x = torch.randn(2, 4, 8, generator=torch_rng)
    mask = torch.tensor([[True, True, True, True], [False, True, True, False]])
    before = encoder(x, mask)
    after = encoder(x.masked_fill(~mask[..., None], math.nan), mask)
    same(after[mask], before[mask], atol=1e-5, rtol=0.0, what="output at real tokens with NaN at padding")
    same(after[~mask], torch.zeros(2, 8), atol=0.0, rtol=0.0, what="output at padding")
    wider = encoder(F.pad(x, (0, 0, 0, 2), value=5.0), F.pad(mask, (0, 2)))
    same(wider[:, :4][mask], before[mask], atol=1e-5, rtol=0.0, what="output at real tokens with two more columns")


@task(4)
@hint("Does something depend on the order of the tokens other than the positions?")
def test_order_enters_through_positions(submission, torch_rng):
    """Without positions, reversed inputs give reversed outputs; with sinusoids they do not."""
    x = torch.randn(1, 5, 8, generator=torch_rng)
    bag = submission.run(fresh_encoder, {**SMALL, "positions": "none"})
    same(bag(x.flip(1)), bag(x).flip(1), atol=1e-5, rtol=0.0, what="output for reversed inputs")
    sequence = submission.run(fresh_encoder, SMALL)
    moved = (sequence(x.flip(1)) - sequence(x).flip(1)).abs().max().item()
    check(moved > 1e-2, "With sinusoidal positions the order of the tokens makes no difference.", got=moved)


@probe
def bert(module, folder, cfg, ids, mask):
    """The encoder with the weights of a BERT model on disk."""
    encoder = module.TransformerEncoder(module.EncoderConfig(**cfg)).requires_grad_(False).eval()
    module.load_bert(encoder, folder)
    return encoder(ids, mask)


@task(4)
@hint("BERT adds learned positions, then normalises (embed_norm), then runs post-norm layers with exact GELU.")
def test_bert(submission):
    """With the weights of components/tiny_bert the encoder gives the hidden states that transformers gives."""
    from safetensors.torch import load_file

    answers = load_file(TINY_BERT / "answers.safetensors")
    cfg = {"d_model": 32, "n_heads": 4, "d_ff": 64, "n_layers": 2, "vocab_size": 50, "max_len": 24, "unpad": False}
    cfg |= {"positions": "learned", "norm": "post", "norm_eps": 1e-12, "embed_norm": True}
    mask = answers["mask"].bool()
    output = submission.run(bert, str(TINY_BERT), cfg, answers["ids"], mask)
    same(output[mask], answers["hidden"][mask], atol=2e-5, rtol=0.0, what="hidden states")


@task(5)
@hint("Slots are numbered row by row: with T = 3, slot 4 is the second token of the second row.")
def test_pack_two_rows(submission):
    """A 2 x 3 batch with a hole: values, lengths and slots by hand, and back again."""
    x = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    mask = torch.tensor([[True, False, True], [False, True, False]])
    packed = submission.pack(x, mask)
    same(packed.values, torch.tensor([[1.0], [3.0], [5.0]]), what="values")
    same(packed.index, torch.tensor([0, 2, 4]), what="index")
    same([int(n) for n in packed.lengths], [2, 1], what="lengths")
    same(submission.unpack(packed, 2, 3), x * mask[..., None], what="unpack(pack(x))")


@task(6)
@hint("Attention must stay inside each sequence, and positions are those of the slots.")
def test_unpadded_equals_padded(submission, torch_rng):
    """The same weights with unpad=True and unpad=False give the same output."""
    padded, unpadded = (submission.run(fresh_encoder, {**SMALL, "unpad": unpad}) for unpad in (False, True))
    unpadded.load_state_dict(padded.state_dict())
    x = torch.randn(3, 5, 8, generator=torch_rng)
    mask = torch.tensor([[True] * 5, [False, True, False, True, True], [False] * 5])
    same(unpadded(x, mask), padded(x, mask), atol=1e-5, rtol=0.0, what="unpadded output")


@task(6)
@hint("This check only shows numbers; the limits are in the brief.")
def test_flops_are_shown(submission, budget, torch_rng):
    """For your information: FLOPs of a padded and an unpadded pass over rows of 16, 4, 4 and 4 tokens."""
    x, mask = torch.randn(4, 16, 8, generator=torch_rng), torch.arange(16) < torch.tensor([16, 4, 4, 4])[:, None]
    for unpad in (False, True):
        cfg = {**SMALL, "unpad": unpad}
        run = budget.replay(lambda s, x, cfg=cfg: s.run(fresh_encoder, cfg)(x, mask), x, expect=None)
        budget.require(f"FLOPs, unpad={unpad}", run.flops)


@task(7)
@hint("Row sums: 5 tokens in all, and 4² + 1² = 17 pairs.")
def test_flops_of_two_sequences(submission):
    """One layer, d = 32, d_ff = 128, sequences of 4 and 1 tokens: the numbers of the brief."""
    flops = submission.encoder_flops(submission.EncoderConfig(32, 4, 128, 1), [4, 1])
    for part, want in (("projections", 40960), ("scores", 2176), ("feed_forward", 81920), ("total", 125056)):
        same(getattr(flops, part), want, what=part)


@task(8)
@hint("This check only shows numbers. 48 times the bytes of x is the limit of task 8.")
def test_memory_is_shown(submission, budget, torch_rng):
    """For your information: peak bytes of one layer on one sequence of 512 tokens (d = 32, 4 heads; x has 64 KiB)."""
    cfg = {"d_model": 32, "n_heads": 4, "d_ff": 128, "n_layers": 1}
    x = torch.randn(1, 512, 32, generator=torch_rng)
    run = budget.replay(lambda s, x: s.run(fresh_encoder, cfg)(x), x, expect=None)
    budget.require("peak bytes", run.peak_bytes, unit="bytes")
