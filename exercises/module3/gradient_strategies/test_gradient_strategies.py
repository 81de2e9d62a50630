"""Visible checks of 3.5 gradient_strategies. They earn no points; what they ask for is in README.md."""

import math
from pathlib import Path

import torch

from llmkata.checks import check, expect_error, hint, probe, same, task

TINY_LLAMA = Path(__file__).parents[3] / "components" / "tiny_llama_qa"


@probe
def clip(module, name, params, grads, kwargs):
    """Calls a clipping function on parameters with these gradients; what it returns, and the gradients after."""
    leaves = []
    for value, grad in zip(params, grads):
        leaf = value.clone().requires_grad_()
        leaf.grad = grad.clone()
        leaves.append(leaf)
    return getattr(module, name)(leaves, **kwargs), [leaf.grad for leaf in leaves]


@task(1)
@hint("3² + 4² + 12² = 169, over both tensors together.")
def test_norm_by_hand(submission):
    """The worked example: (3, 4) and (12) have the 2-norm 13, the 1-norm 19 and the largest element 12."""
    grads = [torch.tensor([3.0, -4.0]), torch.tensor([[12.0]])]
    for p, want in ((2.0, 13.0), (1.0, 19.0), (math.inf, 12.0)):
        same(submission.global_norm(grads, p).double(), torch.tensor(want).double(), rtol=1e-6, what=f"{p:g}-norm")


@task(1)
@hint("Square 1e30 in float32 and look. float64 holds 1e60.")
def test_norm_of_large_gradients(submission):
    """Four gradients of 1e30 have the norm 2e30, although their squares are no float32."""
    got = submission.global_norm([torch.full((4,), 1e30)])
    same(got.double(), torch.tensor(2e30).double(), rtol=1e-6, atol=0.0, what="norm")


@task(2)
@hint("The norm is 13, so everything is multiplied by 6.5/13, nearly; below max_norm by exactly 1.")
def test_clip_by_hand(submission):
    """Clipping (3, 4) and (12) to 6.5 halves them; to 20 leaves them; clipping values at 3.5 cuts the 12."""
    grads = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    norm, after = submission.run(clip, "clip_grad_norm_", grads, grads, {"max_norm": 6.5})
    same(norm.double(), torch.tensor(13.0).double(), rtol=1e-6, what="norm before")
    same(after, [g / 2 for g in grads], rtol=1e-6, what="clipped to 6.5")
    _, after = submission.run(clip, "clip_grad_norm_", grads, grads, {"max_norm": 20.0})
    same(after, grads, atol=0.0, rtol=0.0, what="clipped to 20")
    _, after = submission.run(clip, "clip_grad_value_", grads, grads, {"clip_value": 3.5})
    same(after, [torch.tensor([3.0, 3.5]), torch.tensor([[3.5]])], atol=0.0, rtol=0.0, what="values")


@task(2)
@hint("The messages hold the name of the argument, or the word non-finite.")
def test_clip_errors(submission):
    """Bounds that make no sense, and a non-finite norm when asked for, are errors that say so."""
    grads = [torch.tensor([1.0, math.inf])]
    with expect_error(ValueError, "max_norm"):
        submission.run(clip, "clip_grad_norm_", grads, grads, {"max_norm": 0.0})
    with expect_error(RuntimeError, "non-finite"):
        submission.run(clip, "clip_grad_norm_", grads, grads, {"max_norm": 1.0, "error_if_nonfinite": True})
    _, after = submission.run(clip, "clip_grad_norm_", grads, grads, {"max_norm": 1.0})
    same(after, grads, atol=0.0, rtol=0.0, what="gradients with inf")


@probe
def accumulated(module, weight, batches):
    """accumulate on a linear model whose token loss is its output."""
    import torch

    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(weight)
    found = module.accumulate(model, batches, lambda model, x: (model(x).sum(), len(x)))
    return (found.loss, found.n_tokens, found.n_micro), model.weight.grad


@task(3)
@hint("Four tokens in all: sum over tokens, divided by 4. The mean of the two means is (2.5, 1).")
def test_accumulation_by_hand(submission):
    """Micro-batches of three tokens and one give the mean over four tokens, not the mean of two means."""
    batches = [torch.tensor([[1.0, 2.0]] * 3), torch.tensor([[4.0, 0.0]])]
    report, grad = submission.run(accumulated, torch.tensor([[1.0, 1.0]]), batches)
    same(grad, torch.tensor([[7 / 4, 6 / 4]]), rtol=1e-6, what="gradient")
    check(report == (13 / 4, 4, 2), "Loss, tokens, micro-batches.", got=report, want=(13 / 4, 4, 2))


@probe
def judge(module, options, norms):
    guard = module.SpikeGuard(**options)
    return [bool(guard.should_skip(norm)) for norm in norms], guard.skipped


@task(4)
@hint("The table of the brief has the window after each step.")
def test_guard_by_hand(submission):
    """The sequence of the brief: a spike and a NaN are skipped, a lasting change is accepted after two skips."""
    norms = [1.0, 2.0, 50.0, 3.0, math.nan, 40.0, 40.0, 40.0, 500.0, 45.0, 500.0]
    want = [False, False, True, False, True, True, True, False, False, False, True]
    decisions, skipped = submission.run(judge, {"window": 3, "factor": 10.0, "warmup": 2, "max_skips": 2}, norms)
    check(decisions == want, "The steps that are skipped.", got=decisions, want=want)
    check(skipped == 5, "`skipped` counts them.", got=skipped, want=5)


@task(5)
@hint("Row 0: ||w|| = 5, bound 0.5, ||g|| = 1, so g is halved. Row 1: bound 0.1 · eps. Row 2: far below its bound.")
def test_agc_by_hand(submission):
    """The worked rows: one is halved, one belongs to weights of zero, one is left alone."""
    w = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])
    g = torch.tensor([[0.6, 0.8], [1.0, 0.0], [0.0, 0.1]])
    _, after = submission.run(clip, "adaptive_clip_", [w], [g], {"clipping": 0.1, "eps": 0.01})
    same(after[0], torch.tensor([[0.3, 0.4], [1e-3, 0.0], [0.0, 0.1]]), rtol=1e-5, atol=1e-9, what="gradient")


@probe
def study(module):
    """The table of one seed, in short."""
    table = module.compare_strategies(
        lambda seed: module.AddingRNN(seed, 16),
        lambda seed: module.spiky_adding_task(seed, length=6, batch=16, spike_every=20),
        module.STUDY[:4], seeds=[0], steps=60, lr=0.02,
    )  # fmt: skip
    print(module.run_table(table))
    return table


@task(8)
@hint("Each strategy begins with a new model and the same batches.")
def test_study_of_one_seed(submission):
    """With three corrupt batches plain SGD ends in NaN; clipping by norm, by value and adaptively does not."""
    table = submission.run(study)
    check(list(table) == ["none", "norm", "value", "agc"], "One entry per strategy.", got=list(table))
    check(list(table["none"]["diverged"]) == [True], "Plain SGD diverges.", got=table["none"])
    for name in ("norm", "value", "agc"):
        check(list(table[name]["diverged"]) == [False], f"{name} does not diverge.", got=table[name])
        check(table[name]["final_loss"][0] < 3.0, "The loss stays near the variance of the targets, 2, or below.",
              got=table[name]["final_loss"])  # fmt: skip
        check(list(table[name]["updates"]) == [60], "60 updates.", got=table[name]["updates"])


@probe
def run_main(module, model):
    """main on a LLaMA directory and a text of a few lines: the reports it writes."""
    import json
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("does the drug help ?\nyes\nthe patient is well and the drug does help\n", "utf-8")
        module.main(["--model", model, "--text", str(text), "--steps", "2", "--accumulation", "3", "--out", folder])
        return json.loads((Path(folder) / "stability.json").read_text("utf-8"))


@task(8)
@hint("The command is given: it calls Trainer.step with an iterator of micro-batches.")
def test_real_model(submission):
    """`--model` trains a LLaMA from a directory of the hub's layout with accumulation, clipping and guard."""
    reports = submission.run(run_main, str(TINY_LLAMA))
    check(len(reports) == 2, "One report per update.", got=len(reports))
    for report in reports:
        check(set(report) == {"loss", "grad_norm", "skipped", "clipped"}, "Keys.", got=sorted(report))
        check(0 < report["loss"] < 20 and report["grad_norm"] > 0, "A loss and a norm.", got=report)
