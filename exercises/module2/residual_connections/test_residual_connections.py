"""Visible checks of 2.5 residual_connections. They earn no points; what they ask for is in README.md."""

import math
from pathlib import Path

import torch
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

NEAR = {"atol": 1e-12, "rtol": 0.0}
TINY_GPT2 = Path(__file__).parents[3] / "components" / "tiny_gpt2"


def tokens(rng, batch=2, length=6):
    return torch.randint(16, (batch, length), generator=rng)


@probe
def doubled(module, kind, gate):
    """Output and contribution of a wrapper around a branch that doubles, as sublayer of four; names of parameters."""
    import torch

    class Double(torch.nn.Module):
        def forward(self, x):
            return 2 * x

    wrapper = module.ResidualWrapper(Double(), kind, 4)
    with torch.no_grad():
        if gate is not None:
            wrapper.gate.fill_(gate)
        x = torch.tensor([[1.0, 10.0]])
        return wrapper(x), wrapper.contribution(x), [name for name, _ in wrapper.named_parameters()]


@task(1)
@hint("The branch doubles: none 2x, plain 3x, scaled x + 2x/sqrt(4) = 2x, rezero x + gate · 2x.")
def test_wirings_by_hand(submission):
    """The four wirings around a branch that doubles, as one of four sublayers."""
    x = torch.tensor([[1.0, 10.0]])
    for kind, gate, output, added in (
        ("none", None, 2.0, 2.0),
        ("plain", None, 3.0, 2.0),
        ("scaled", None, 2.0, 1.0),
        ("rezero", 0.25, 1.5, 0.5),
    ):
        got, contribution, names = submission.run(doubled, kind, gate)
        same(got, output * x, what=f"output of {kind}")
        same(contribution, added * x, what=f"contribution of {kind}")
        check(names == (["gate"] if kind == "rezero" else []), f"Parameters of {kind}.", got=names)


@task(1)
@hint("nn.Parameter(torch.zeros(())) for rezero, None for the others.")
def test_a_new_rezero_is_the_identity(submission):
    """Before training a rezero sublayer passes its input on."""
    got, contribution, _ = submission.run(doubled, "rezero", None)
    same(got, torch.tensor([[1.0, 10.0]]))
    same(contribution, torch.zeros(1, 2), what="contribution")


@task(1)
@hint("check_kind is given.")
def test_unknown_kind(submission):
    """An unknown kind raises ValueError with the four that there are."""
    same(float(submission.branch_scale("scaled", 16)), 0.25, **NEAR)
    with expect_error(ValueError, "none", "plain", "scaled", "rezero"):
        submission.branch_scale("highway", 2)


@task(2)
@hint("Each step doubles the variance: 2, 4, 8, 16.")
def test_variance_doubles(submission):
    """With alpha = 1 the variance doubles in each of four steps, expected exactly and measured within 10 %."""
    same(float(submission.expected_variance(4, 1.0)), 16.0, **NEAR)
    got = submission.measure_variance(4, 1.0)
    check(len(got) == 4, "One number for each step.", got=got)
    same([float(v) for v in got], [2.0, 4.0, 8.0, 16.0], atol=0.0, rtol=0.1, what="measured")


@task(2)
@hint("The mean over positions of the second is 0, so all of it is left.")
def test_rank_by_hand(submission):
    """Equal tokens are at distance 0, opposite ones at 1, and (1, 0), (0, 1) at sqrt(1/2)."""
    x = torch.tensor([[[3.0, 4.0], [3.0, 4.0]], [[1.0, 2.0], [-1.0, -2.0]], [[1.0, 0.0], [0.0, 1.0]]])
    same(submission.rank_one_distance(x), torch.tensor([0.0, 1.0, math.sqrt(0.5)]))


@probe
def collapse(module, skip, x):
    """rank_profile of six attention layers."""
    return [float(v) for v in module.rank_profile([module.AttentionOnly(16, skip, n) for n in range(6)], x)]


@task(2)
@hint("One number after each layer. Attention averages tokens: what keeps them apart is the skip.")
def test_collapse(submission, torch_rng):
    """Six layers of attention without a skip make all tokens the same; with a skip they stay apart."""
    x = torch.randn(8, 16, generator=torch_rng, dtype=torch.float64)
    without, with_skip = (submission.run(collapse, skip, x) for skip in (False, True))
    check(len(without) == 6, "Six layers give six numbers.", got=without)
    check(without[-1] < 1e-10, "Without a skip the tokens collapse.", got=without)
    check(min(with_skip) > 0.1, "With a skip they do not.", got=with_skip)


@probe
def profiles(module, ids, targets):
    """A profile and the gradients by backward of the same model, and whether .grad was None after the profile."""
    import torch

    model = module.TinyLM("plain", 2)
    g = module.gradient_profile(model, ids, targets)
    clean = all(p.grad is None for p in model.parameters())
    loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    loss.backward()
    norms = [torch.cat([p.grad.flatten() for p in s.parameters()]).norm().item() for s in model.sublayers]
    return [float(g.loss), *map(float, g.parameter)], [loss.item(), *norms], len(g.activation), clean


@task(3)
@hint("torch.autograd.grad(loss, streams + parameters) gives all gradients and writes to no .grad.")
def test_profile_of_a_new_model(submission, torch_rng):
    """Loss and parameter norms are those that backward gives, and no .grad was written to."""
    got, want, streams, clean = submission.run(profiles, tokens(torch_rng), tokens(torch_rng))
    same(got, want, atol=1e-4, rtol=1e-4, what="loss and parameter norms")
    check(streams == 4, "Two blocks are four sublayers.", got=streams, want=4)
    check(clean, "The profile wrote to .grad.")


@probe
def handmade(module, cells):
    """trainable_depth and the plotted lines of handmade rows."""
    import tempfile
    from pathlib import Path

    rows = [module.SweepRow(kind, depth, seed, loss, 1.0, 1.0, 0.5) for kind, depth, seed, loss in cells]
    with tempfile.TemporaryDirectory() as folder:
        (ax,) = module.plot_depth_sweep(rows, Path(folder) / "sweep.png").axes
    lines = {line.get_label(): [float(y) for y in line.get_ydata()] for line in ax.get_lines()}
    return [[kind, depth] for kind, depth in module.trainable_depth(rows, 2.0).items()], lines


@task(4)
@hint("plain passes at 1, 2 and 8 but not at 4, so 2 is the answer; none fails at once.")
def test_handmade_sweep(submission):
    """Handmade rows through trainable_depth and the plot."""
    plain = [
        ("plain", 1, 0, 1.5),
        ("plain", 2, 0, 1.5),
        ("plain", 4, 0, 1.5),
        ("plain", 4, 1, 2.5),
        ("plain", 8, 0, 1.5),
    ]
    depths, lines = submission.run(handmade, [*plain, ("none", 1, 0, 2.25)])
    check(sorted(depths, key=str) == [["none", None], ["plain", 2]], "trainable_depth", got=depths)
    same(lines["plain"], [1.5, 1.5, 2.0, 1.5], **NEAR, what="line of plain")
    same(lines["none"], [2.25], **NEAR, what="line of none")
    check("unigram entropy" in lines, "A horizontal line labelled 'unigram entropy'.", got=sorted(lines))


@probe
def real_sweep(module, tell):
    """Two depths, two kinds, six steps each, printed; the losses are told."""
    import functools

    train = functools.partial(module.train_tiny_lm, steps=6)
    rows = module.depth_sweep(["plain", "none"], [1, 4], [0], train_fn=train)
    for row in rows:
        print(
            f"{row.kind:6s} depth {row.depth}  loss {row.val_loss:.2f}  gradient {row.init_grad_first:.3f} first, "
            f"{row.init_grad_last:.3f} last  rank {row.init_rank:.3f}"
        )
    tell([float(row.val_loss) for row in rows])
    return [[row.kind, row.depth] for row in rows]


@task(4)
@hint("The rows come from your depth_sweep; four blocks without skips stay at about 2.6.")
def test_real_sweep_of_two_depths(submission):
    """A short real sweep: four blocks learn with skips and do not without."""
    told = []
    cells = submission.run(real_sweep, told.append)
    (losses,) = told
    check(cells == [["plain", 1], ["plain", 4], ["none", 1], ["none", 4]], "Cells in order.", got=cells)
    check(losses[1] < 2.2 < losses[3], "Losses of plain and none at depth 4.", got=losses[1::2])


@task(5)
@hint("(1 + b)(1 + a) = 1 + (a + b) + ba: entries 0, 1 and 2.")
def test_two_numbers(submission):
    """Two 1 x 1 matrices 2 and 5 on the vector 1 give 1, 7 and 10; their order matters for larger ones."""
    one = torch.ones(1, 1, dtype=torch.float64)
    same(submission.path_contributions([2 * one, 5 * one], one).flatten(), torch.tensor([1.0, 7, 10]).double(), **NEAR)
    a = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    b = torch.tensor([[0.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    # A x = (1, 0), B x = (0, 0), B A x = (0, 3).
    want = torch.tensor([[[0.0, 1]], [[1, 0]], [[0, 3]]]).double()
    same(submission.path_contributions([a, b], x), want, **NEAR, what="A first, then B")


@task(6)
@hint("The components sum to what final_norm reads: the embedding and all contributions.")
def test_components_and_logits_add_up(submission, torch_rng):
    """Attributions of a new plain model sum to its logits, and its components have the names of the contract."""
    model, ids, asked = submission.TinyLM("plain", 2), tokens(torch_rng), tokens(torch_rng)
    dec = submission.decompose_residual(model, ids)
    check(list(dec.names) == ["embed", "attn0", "mlp0", "attn1", "mlp1"], "names", got=list(dec.names))
    same(dec.components[0].detach(), model.embed(ids).detach(), what="the first component")
    got = submission.direct_logit_attribution(model, dec, asked).detach()
    want = model(ids).detach().gather(-1, asked[..., None]).squeeze(-1)
    same(got.sum(0), want, atol=1e-4, rtol=0.0, what="sum of the attributions")


@probe
def lesions_of(module, ids, targets):
    """Lesions of a plain model whose second block writes zeros; the whole loss and the loss without the first block."""
    import torch

    model = module.TinyLM("plain", 2)
    with torch.no_grad():
        for sublayer in model.sublayers[2:]:
            for p in sublayer.parameters():
                p.zero_()
        logits = model.unembed(model.final_norm(model.embed(ids)))
        return [float(v) for v in module.lesion_study(model, ids, targets)], model(ids), logits


@task(7)
@hint("A block that adds zero is not missed. Without the first block as well, only the embedding is left.")
def test_lesion_of_an_idle_block(submission, torch_rng):
    """Taking out a block that adds nothing costs nothing; taking out the only other one leaves the embedding."""
    ids, targets = tokens(torch_rng), tokens(torch_rng)
    got, whole, bare = submission.run(lesions_of, ids, targets)
    losses = [F.cross_entropy(logits.flatten(0, 1), targets.flatten()).item() for logits in (bare, whole)]
    same(got, [losses[0] - losses[1], 0.0], atol=1e-5, rtol=0.0, what="lesions")


@probe
def gpt2_under_study(module, folder, ids, targets):
    """Logits of a GPT-2 from its files, its lesions, and what its components sum to against its last stream."""
    import torch

    model = module.GPT2(folder)
    with torch.no_grad():
        x = model.embed(ids)
        for layer in model.sublayers:
            x = layer(x)
        dec = module.decompose_residual(model, ids)
        return model(ids), [float(v) for v in module.lesion_study(model, ids, targets)], dec.components.sum(0) - x


@task(7)
@hint("The adapter puts a GPT-2 into your wrappers: lesion l must cost what deleting its layer l costs.")
def test_lesions_of_a_gpt2(submission):
    """A GPT-2 from its files: transformers' logits, and each lesion costs what deleting that layer there costs."""
    from safetensors.torch import load_file

    answers = load_file(TINY_GPT2 / "answers.safetensors")
    logits, got, left = submission.run(gpt2_under_study, str(TINY_GPT2), answers["ids"], answers["targets"])
    same(logits, answers["logits"], atol=1e-4, rtol=0.0, what="logits")
    losses = [
        F.cross_entropy(each.flatten(0, 1), answers["targets"].flatten()).item()
        for each in (answers["logits"], *answers["without"])
    ]
    same(got, [loss - losses[0] for loss in losses[1:]], atol=1e-4, rtol=0.0, what="lesions")
    same(left, torch.zeros_like(left), atol=1e-4, rtol=0.0, what="stream minus the sum of its components")
