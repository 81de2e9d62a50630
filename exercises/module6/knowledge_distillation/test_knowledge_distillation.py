"""Visible checks of 6.4 knowledge_distillation. They earn no points; what they ask for is in README.md."""

import math

import pytest
import torch
from torch.nn import functional as F

from llmkata.checks import check, expect_error, hint, probe, same, task

# The worked example of the brief: at temperature 1 the teacher says (4/5, 1/5), the student (1/2, 1/2).
TEACHER = torch.tensor([math.log(4.0), 0.0], dtype=torch.float64)
STUDENT = torch.zeros(2, dtype=torch.float64)
NEAR = {"atol": 1e-12, "rtol": 0.0}


def normal(rng, *shape):
    return torch.randn(*shape, generator=rng, dtype=torch.float64)


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


# --- task 1 -----------------------------------------------------------------------------------------------------------


@task(1)
@hint("At T = 2 the teacher's logits are log 4 / 2 = log 2 and 0: its distribution is (2/3, 1/3).")
def test_two_tokens(submission):
    """The worked example of the brief, at temperatures 1 and 2."""
    at_1 = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    at_2 = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    same(submission.kd_loss(STUDENT, TEACHER), f64(at_1), **NEAR, what="kd_loss at T = 1")
    same(submission.kd_loss(STUDENT, TEACHER, temperature=2.0), f64(at_2), **NEAR, what="kd_loss at T = 2")


@task(1)
@hint("Compare with T² · F.kl_div(log q, log p, log_target=True), summed over V, averaged over positions.")
def test_like_kl_div(submission, torch_rng):
    """kd_loss is T² times F.kl_div of the log-probabilities, and 0 where the logits are equal."""
    student, teacher = normal(torch_rng, 3, 4, 6), normal(torch_rng, 3, 4, 6)
    log_q, log_p = ((x / 3.0).log_softmax(-1).flatten(0, 1) for x in (student, teacher))
    want = 9 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    same(submission.kd_loss(student, teacher, temperature=3.0), want, **NEAR)
    same(submission.kd_loss(teacher, teacher, temperature=3.0), f64(0.0), **NEAR, what="kd_loss of equal logits")


@task(1)
@hint("(1/2, 1/2) - (4/5, 1/5) = (-0.3, 0.3), times T = 1, over one position.")
def test_gradient_by_hand(submission):
    """The gradient at the worked example is T (q - p)/n, by autograd and by kd_grad."""
    for t, want in ((1.0, [-0.3, 0.3]), (2.0, [-1 / 3, 1 / 3])):
        _, (grad,) = submission.vjp("kd_loss", (STUDENT, TEACHER), {"temperature": t}, wrt=(0,), cotangents=f64(1.0))
        same(grad, f64(want), **NEAR, what=f"gradient by autograd at T = {t}")
        same(submission.kd_grad(STUDENT, TEACHER, t), f64(want), **NEAR, what=f"kd_grad at T = {t}")


@task(1)
@hint("student_logits[mask] are the rows that count.")
def test_mask(submission, torch_rng):
    """With a mask the mean is over the positions that count, whatever stands at the others."""
    student, teacher = normal(torch_rng, 2, 3, 5), normal(torch_rng, 2, 3, 5)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    want = submission.kd_loss(student[mask], teacher[mask])
    student[~mask] = 1e6
    same(submission.kd_loss(student, teacher, mask=mask), want, **NEAR)


@task(1)
@hint("check_logits is given: leave its call where it is.")
def test_wrong_arguments(submission):
    """Impossible arguments are refused by name."""
    submission.kd_loss(STUDENT, TEACHER)
    with expect_error(ValueError, "temperature"):
        submission.kd_loss(STUDENT, TEACHER, temperature=0.0)
    with expect_error(ValueError, "vocabulary"):
        submission.kd_loss(STUDENT, torch.zeros(3))
    with expect_error(ValueError, "mask"):
        submission.kd_loss(STUDENT[None], TEACHER[None], mask=torch.tensor([False]))


# --- task 2 -----------------------------------------------------------------------------------------------------------


@task(2)
@hint("labels[:, 1:] = (2, -100, 1): positions 0 and 2 have a target, 1 has none, 3 has no next token.")
def test_both_losses(submission, torch_rng):
    """Four positions, two targets: both terms are means over positions 0 and 2."""
    student, teacher = normal(torch_rng, 1, 4, 3), normal(torch_rng, 1, 4, 3)
    labels = torch.tensor([[0, 2, -100, 1]])
    got = submission.distillation_loss(student, teacher, labels, alpha=0.25, temperature=2.0)
    ce = F.cross_entropy(student[0, [0, 2]], torch.tensor([2, 1]))
    log_q, log_p = ((x[0, [0, 2]] / 2).log_softmax(-1) for x in (student, teacher))
    kd = 4 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    same(got, {"loss": 0.25 * ce + 0.75 * kd, "ce": ce, "kd": kd}, **NEAR, what="losses")


# --- task 3 -----------------------------------------------------------------------------------------------------------


@probe
def short_training(module, modes, tell):
    """Trains a student per mode for 12 steps on a teacher's own text and tells its losses; the teacher's flag after."""
    teacher = module.tiny_model(module.tiny_config(24, 16, 2, initializer_range=0.06), 0, sharpness=4.0)
    batches = list(module.sample_sequences(teacher.eval(), 16, 8, 0).split(8))
    teacher.train()
    for mode in modes:
        student = module.tiny_model(module.tiny_config(24, 16, 1), 1)
        tell(module.train_student(student, teacher, batches, mode=mode, steps=12, lr=1e-2))
    return teacher.training


@task(3)
@hint("Mode 'kd' is kd_loss over all positions, 'ce' the shifted cross-entropy; both through `fit`.")
def test_small_student_improves(submission):
    """Twelve steps lower the loss of a small student in modes "ce" and "kd", and the teacher keeps its flag."""
    told = []
    training = submission.run(short_training, ["ce", "kd"], told.append)
    for mode, losses in zip(("ce", "kd"), told, strict=True):
        check(len(losses) == 12, "One loss per step.", got=len(losses), want=12)
        check(losses[-1] < losses[0], f"The loss did not fall in mode {mode!r}.", got=[losses[0], losses[-1]])
    check(training is True, "The teacher was in training mode before, and must be again.", got=training)


# --- task 4 -----------------------------------------------------------------------------------------------------------


@probe
def two_of_four(module):
    """Which of the teacher's layers the student's two layers equal, counted from 1, and whether memory is shared."""
    import torch

    teacher = module.tiny_model(module.tiny_config(9, 16, 4), 0)
    student = module.init_student_from_teacher(teacher, module.tiny_config(9, 16, 2))
    queries = [layer.self_attn.q_proj.weight for layer in teacher.model.layers]
    found = [
        [k for k, q in enumerate(queries, start=1) if torch.equal(q, layer.self_attn.q_proj.weight)]
        for layer in student.model.layers
    ]
    ends = torch.equal(student.lm_head.weight, teacher.lm_head.weight)
    theirs = {p.data_ptr() for p in teacher.parameters()}
    return {"layers": found, "head": ends, "shares": any(p.data_ptr() in theirs for p in student.parameters())}


@task(4)
@hint("mapped_layers(2, 4) is [2, 4].")
def test_two_layers_of_four(submission):
    """A student of two layers gets the teacher's layers 2 and 4 and its head, as copies."""
    got = submission.run(two_of_four)
    check(got["layers"] == [[2], [4]], "The student's layers come from others.", got=got["layers"], want=[[2], [4]])
    check(got["head"], "The head was not copied.")
    check(not got["shares"], "The student shares memory with the teacher.")


# --- task 5 -----------------------------------------------------------------------------------------------------------


@probe
def short_comparison(module, tell):
    """Rows for "ce" and "kd" with the same tiny student; the figures of training are told."""
    teacher = module.tiny_model(module.tiny_config(24, 16, 2, initializer_range=0.06), 0, sharpness=4.0).eval()
    ids = module.sample_sequences(teacher, 24, 8, 0)
    rows = module.compare_students(
        teacher,
        lambda: module.tiny_model(module.tiny_config(24, 16, 1), 1),
        list(ids[:16].split(8)),
        ids[16:],
        steps=6,
        lr=1e-2,
        modes=["ce", "kd"],
    )
    tell(rows)
    return [[row["mode"], row["teacher_calls"]] for row in rows]


@task(5)
@hint("One row per mode, in order; a forward hook on the teacher counts its calls during training.")
def test_rows(submission):
    """Two rows with all their keys; the teacher is called six times in six steps of "kd", and never in "ce"."""
    told = []
    calls = submission.run(short_comparison, told.append)
    check(calls == [["ce", 0], ["kd", 6]], "Other modes or calls.", got=calls, want=[["ce", 0], ["kd", 6]])
    for row in told[0]:
        keys = ["agreement", "kl_to_teacher", "mode", "nll", "params", "seconds_ignored", "teacher_calls"]
        check(sorted(row) == keys, "The keys of a row are others.", got=sorted(row), want=keys)
        check(0 <= row["agreement"] <= 1 and row["kl_to_teacher"] > 0, "A share and a divergence.", got=row)


@probe
def curves(module, tell):
    """Keys and steps of distillation_curves for modes "ce" and "kd"; whether the file holds the same."""
    import json
    import tempfile
    from pathlib import Path

    teacher = module.tiny_model(module.tiny_config(24, 16, 2, initializer_range=0.06), 0, sharpness=4.0).eval()
    ids = module.sample_sequences(teacher, 24, 8, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curves.json"
        found = module.distillation_curves(
            teacher,
            lambda: module.tiny_model(module.tiny_config(24, 16, 1), 1),
            list(ids[:16].split(8)),
            ids[16:],
            steps=11,
            lr=1e-2,
            modes=["ce", "kd"],
            every=5,
            path=path,
        )
        tell(found)
        return {
            "steps": {m: [p[0] for p in points] for m, points in found.items()},
            "file": json.loads(path.read_text()) == found,
        }


@task(5)
@hint("distillation_curves is given: it watches the student's forward passes in training mode, one a step.")
def test_curves(submission):
    """The given curves have a point every five steps, the KL falls in mode "kd", and the JSON file holds the same."""
    told = []
    got = submission.run(curves, told.append)
    check(got["steps"] == {"ce": [0, 5, 10], "kd": [0, 5, 10]}, "Other steps.", got=got["steps"])
    check(got["file"], "The file holds other numbers.")
    points = told[0]["kd"]
    check(points[-1][1] < points[0][1], "The KL to the teacher does not fall.", got=points)


# --- task 6 -----------------------------------------------------------------------------------------------------------


@task(6)
@hint("m = (0.65, 0.35) at beta = 1/2.")
def test_jsd_by_hand(submission):
    """The worked example at beta 1/2, and the two ends."""
    p, q, m = f64([0.8, 0.2]), f64([0.5, 0.5]), f64([0.65, 0.35])

    def kl(a, b):
        return (a * (a / b).log()).sum()

    for beta, want in ((0.5, kl(p, m) / 2 + kl(q, m) / 2), (0.0, kl(p, q)), (1.0, kl(q, p))):
        got = submission.generalized_jsd(STUDENT, TEACHER, beta=beta)
        same(got, want, **NEAR, what=f"generalized_jsd at beta = {beta}")
    with expect_error(ValueError, "beta"):
        submission.generalized_jsd(STUDENT, TEACHER, beta=1.5)


# --- task 7 -----------------------------------------------------------------------------------------------------------


@probe
def matched(module, kind):
    """Loss of a matcher of equal widths whose student layers equal the mapped teacher layers, doubled or not."""
    import torch

    rng = torch.Generator().manual_seed(0)
    ht = [torch.randn(2, 3, 4, generator=rng) for _ in range(5)]
    hs = [torch.randn(2, 3, 4, generator=rng), ht[2], ht[4]]
    matcher = module.HiddenMatcher(4, 4, 2, 4, kind=kind)
    return [float(matcher(hs, ht, None).detach()), float(matcher([2 * h for h in hs], ht, None).detach())]


@task(7)
@hint("hs[1] is the student's first layer; its teacher is ht[2] of four.")
def test_matching_nothing_to_do(submission):
    """Student layers that equal their teacher layers cost nothing; doubled, they cost in "mse" only."""
    cosine, mse = submission.run(matched, "cosine"), submission.run(matched, "mse")
    same([*cosine, mse[0]], [0.0, 0.0, 0.0], atol=1e-6, rtol=0.0, what="losses of equal states")
    check(mse[1] > 0.1, "Doubled states differ from the teacher's.", got=mse[1])


# --- task 8 -----------------------------------------------------------------------------------------------------------


@task(8)
@hint("Teacher (0.5, 0.3 | 0.2), student (0.25, 0.25 | 0.5): a KL over three outcomes.")
def test_topk_by_hand(submission):
    """Four tokens, two of them cached: the other two are one outcome."""
    ids, logp = torch.tensor([[2, 0]], dtype=torch.int32), f64([[0.5, 0.3]]).log()
    want = 0.5 * math.log(0.5 / 0.25) + 0.3 * math.log(0.3 / 0.25) + 0.2 * math.log(0.2 / 0.5)
    got = submission.topk_kd_loss(torch.zeros(1, 4, dtype=torch.float64), ids, logp, temperature=1.0)
    same(got, f64(want), **NEAR)


@task(8)
@hint("With k = V there is no rest.")
def test_topk_of_everything(submission, torch_rng):
    """With k = V the loss is kd_loss, whatever the order of the tokens."""
    student, teacher = normal(torch_rng, 2, 3, 7), normal(torch_rng, 2, 3, 7)
    best = (teacher / 2).log_softmax(-1).topk(7)
    got = submission.topk_kd_loss(student, best.indices.flip(-1).int(), best.values.flip(-1), temperature=2.0)
    same(got, submission.kd_loss(student, teacher, temperature=2.0), **NEAR)


@probe
def at_real_scale(module, tell):
    """Two model folders in the hub's layout, a sharded cache in bfloat16, training from it; a third with another vocabulary."""
    import tempfile
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    def write(folder, d_model, layers, words):
        module.tiny_model(module.tiny_config(len(words), d_model, layers), layers).save_pretrained(folder)
        vocabulary = {word: i for i, word in enumerate(words)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="a"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="a").save_pretrained(folder)

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write(root / "teacher", 32, 2, "abcdefgh")
        write(root / "student", 16, 1, "abcdefgh")
        write(root / "stranger", 16, 1, "abcdefgx")
        teacher, student, tokenizer = module.load_pair(root / "teacher", root / "student")
        batches = [torch.randint(0, 8, (2, 6), generator=torch.Generator().manual_seed(i)) for i in range(3)]
        cache = module.cache_teacher_topk(teacher, batches, 4, 1.0)
        module.save_cache(cache, root / "cache", batches_per_file=2)
        loaded = module.load_cache(root / "cache")
        same = all(torch.equal(a, b) for name in cache for a, b in zip(cache[name], loaded[name]))
        tell(module.train_student(student, teacher, batches, mode="kd-topk", steps=6, lr=1e-2, cache=loaded))
        try:
            module.load_pair(root / "teacher", root / "stranger")
            refused = ""
        except ValueError as e:
            refused = str(e)
        files = len(list((root / "cache").iterdir()))
        return [str(next(teacher.parameters()).dtype), len(tokenizer), files, same, "vocabulary" in refused]


@task(8)
@hint("cache_teacher_topk and train_student must work for a bfloat16 teacher as they do for a float32 one.")
def test_at_real_scale(submission):
    """From two local model folders: a bfloat16 teacher, its cache in two files, a student trained from them."""
    told = []
    got = submission.run(at_real_scale, told.append)
    want = ["torch.bfloat16", 8, 2, True, True]
    check(
        got == want,
        "dtype, vocabulary, cache files, equality, refusal: something is not as it should be.",
        got=got,
        want=want,
    )
    check(len(told[0]) == 6 and told[0][3] < told[0][0], "The loss did not fall in the second epoch.", got=told[0])


# --- task 9 -----------------------------------------------------------------------------------------------------------


@task(9)
@hint("Ten rows in chunks of four: 4, 4 and 2.")
def test_fused_equals_unfused(submission, torch_rng):
    """The fused loss and its gradients equal kd_loss of the products, for several chunks."""
    h_s, W_s, h_t, W_t = (normal(torch_rng, *shape) for shape in ((10, 3), (7, 3), (10, 5), (7, 5)))
    grad = submission.kd_grad(h_s @ W_s.T, h_t @ W_t.T, 2.0)
    want = submission.kd_loss(h_s @ W_s.T, h_t @ W_t.T, temperature=2.0), [grad @ W_s, grad.T @ h_s]
    for chunk in (1, 4, 64):
        options = {"temperature": 2.0, "chunk": chunk}
        got = submission.vjp("fused_linear_kd", (h_s, W_s, h_t, W_t), options, wrt=(0, 1), cotangents=f64(1.0))
        same(got, want, **NEAR, what=f"(loss, gradients) with chunk = {chunk}")


@probe
def fused_on_cuda(module, *inputs):
    """The fused loss computed on the GPU."""
    return module.fused_linear_kd(*(x.cuda() for x in inputs), temperature=2.0).cpu()


@task(9)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@hint("Create every tensor with the device of h_s.")
def test_fused_on_a_gpu(submission, torch_rng):
    """The same function runs on CUDA tensors."""
    inputs = [normal(torch_rng, *shape).float() for shape in ((200, 16), (500, 16), (200, 32), (500, 32))]
    want = submission.kd_loss(inputs[0] @ inputs[1].T, inputs[2] @ inputs[3].T, temperature=2.0)
    same(submission.run(fused_on_cuda, *inputs), want, atol=1e-2, rtol=1e-2)
