"""Hidden correctness checks of 6.4 knowledge_distillation.

Core is tasks 1 to 5; tasks 6 (JSD), 7 (hidden states), 8 (top-k cache) and 9 (fused loss) are stretch, and no core check
touches them.

Mended in the specification:
* The layer map takes layers 2 and 3 (counted from 1) of a three-layer teacher for a two-layer student, not "layers 0 and
  2": round(1.5) = 2.
* Training runs are small (models of width 32 and 16, 12 tokens, 25 and 10 steps) so that a pair takes 0.3 s of CPU. The
  teacher has layers of deviation 0.06 and a head of four times that: entropy 2.7 of 3.47 nats. Measured over 20 students:
  KL(kd)/KL(ce) 0.43 to 0.53 (limit 0.75), KL(copied)/KL(random) 0.51 to 0.58 (limit 0.75).
* What training does exactly (which loss, over which positions, in which order) is checked against a float64 oracle on a
  model of three lines, so that the statements about quality need no tight limits.
* A cache is a dict of two lists; the fused loss has no mask; rows of `compare_students` are measured at temperature 1.

Tolerances: float64 1e-10 (measured 1e-14 and less); float32 3e-6 · max|z|, z = logits/T, times T² where the loss has it.
"""

from __future__ import annotations

import functools
import math

import torch
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llmkata.checks import check, expect_error, hint, needs, points, probe, same, sk, task

F32, F64 = torch.float32, torch.float64
NEAR = {"atol": 1e-10, "rtol": 0.0}
INF = math.inf


# --- logits -----------------------------------------------------------------------------------------------------------


@st.composite
def logit_cases(draw, scales=(1.0, 30.0, 1e4), impossible=("none", "teacher", "both")):
    """Sizes and a seed; `logits` makes tensors of them, so that a case stays small and can be read."""
    return {
        "shape": (*draw(st.sampled_from([(), (1,), (3,), (2, 3)])), draw(st.sampled_from([2, 3, 7, 50, 200]))),
        "seed": draw(st.integers(0, 999)),
        "scale": draw(st.sampled_from(scales)),
        "temperature": draw(st.sampled_from([1.0, 2.0, 0.25, 4.0, 20.0])),
        "dtype": draw(st.sampled_from([F64, F32, torch.float16, torch.bfloat16])),
        "impossible": draw(st.sampled_from(impossible)),
    }


def logits(case):
    """Student's and teacher's logits. "teacher": -inf in the teacher's last token, "both": in the student's too."""
    student, teacher = (
        sk.tensor(case["seed"] + i, case["shape"], F64, case["scale"]).to(case["dtype"]) for i in (0, 1000)
    )
    if case["impossible"] != "none":
        teacher[..., -1] = -INF
    if case["impossible"] == "both":
        student[..., -1] = -INF
    return student, teacher


def result_dtype(student):
    return torch.promote_types(student.dtype, F32)


def tolerance(student, teacher, temperature, factor=1.0):
    """3e-6 · max|logits/T| in float32 and 1e-14 of it in float64, at least of 1, times ``factor``."""
    largest = max(x[x.isfinite()].abs().max().item() for x in (student.double(), teacher.double()))
    unit = 1e-14 if student.dtype == F64 else 3e-6
    return {"atol": unit * max(1.0, largest / temperature) * factor, "rtol": 1e-11 if student.dtype == F64 else 1e-5}


def a_mask(seed, positions):
    """About half of the positions, at least one."""
    mask = torch.rand(positions, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask.view(-1)[seed % mask.numel()] = True
    return mask


def noise(seed, x, scale):
    return sk.tensor(seed, x.shape, x.dtype, scale)


def slope(f, x, direction, step=1e-5):
    """Central difference of f at x along a direction."""
    return (f(x + step * direction) - f(x - step * direction)) / (2 * step)


# --- task 1: the soft loss and its gradient ---------------------------------------------------------------------------


@task(1)
@points(7)
@hint(
    "Work in logarithms: log_softmax(t/T) and log_softmax(s/T), the mean over positions, T² in front.",
    "Three usual slips: which distribution comes first in the KL, a forgotten T², and 0 · (-inf) = NaN where the teacher "
    "gives a token no probability at all.",
)
@sk.given(logit_cases(), examples=24)
def test_kd_value(submission, reference, case):
    """kd_loss is T² times the mean KL(teacher || student) of the softened distributions, for any size of logits."""
    (student, teacher), t = logits(case), case["temperature"]
    got = submission.kd_loss(student, teacher, temperature=t)
    want = reference.kd_loss(student, teacher, temperature=t)
    same(got, want, dtype=result_dtype(student), what="kd_loss", **tolerance(student, teacher, t, t * t))


@task(1)
@points(2)
@needs("test_kd_value")
@hint("A softmax does not change when a constant is added to all of its logits, and KL(p || p) = 0.")
@sk.given(logit_cases(scales=(1.0, 30.0), impossible=("none",)), examples=8)
def test_only_differences_count(submission, reference, case):
    """Constants added to the logits of a position change nothing; the loss is 0 for equal distributions, else positive."""
    student, teacher = (x.double() for x in logits(case))
    t = case["temperature"]
    apart = submission.kd_loss(student, teacher, temperature=t)
    shifts = [sk.tensor(case["seed"] + i, (*case["shape"][:-1], 1), F64, 10.0) for i in (5, 6)]
    shifted = submission.kd_loss(student + shifts[0], teacher + shifts[1], temperature=t)
    same(shifted, apart, atol=1e-10 * t * t, rtol=1e-9, what="kd_loss after adding constants")
    equal = submission.kd_loss(teacher + shifts[0], teacher, temperature=t)
    same(equal, torch.zeros((), dtype=F64), atol=1e-10 * t * t, rtol=0.0, what="kd_loss of equal distributions")
    # Where both are sure of the same token there is no difference to speak of.
    if reference.kd_loss(student, teacher, temperature=t).item() > 1e-6:
        check(apart.item() > 1e-9, "Distributions that differ must have a positive loss.", got=apart)


@task(1)
@points(6)
@needs("test_kd_value")
@hint(
    "d/ds of T² · KL is T · (softmax(s/T) - softmax(t/T)) per position: the chain rule takes one T away.",
    "Divide by the number of positions, not by positions times V. Nothing flows into the teacher: detach its logits.",
)
@sk.given(logit_cases(scales=(1.0, 30.0), impossible=("none", "teacher")), examples=16)
def test_kd_gradient(submission, reference, case):
    """Autograd through kd_loss, kd_grad and a finite difference agree; the teacher gets no gradient."""
    (student, teacher), t = logits(case), case["temperature"]
    want = reference.kd_grad(student, teacher, t).to(student.dtype)
    close = {F64: 1e-10, F32: 1e-5}.get(student.dtype, 2e-2) * max(1.0, t)
    one = torch.ones((), dtype=result_dtype(student))
    _, grads = submission.vjp("kd_loss", (student, teacher), {"temperature": t}, wrt=(0, 1), cotangents=one)
    same(grads[0], want, atol=close, rtol=0.0, what="gradient by autograd")
    check(grads[1] is None or not grads[1].any(), "A gradient flows into the teacher's logits.", got=grads[1])
    same(submission.kd_grad(student, teacher, t), want, atol=close, rtol=0.0, what="kd_grad")
    if student.dtype == F64:
        direction = sk.tensor(case["seed"] + 7, student.shape)
        numeric = slope(lambda x: submission.kd_loss(x, teacher, temperature=t).item(), student, direction)
        along = (grads[0] * direction).sum().item()
        same(along, numeric, atol=1e-5 * max(1.0, t * t), rtol=1e-5, what="slope along a random direction")


@task(1)
@points(3)
@hint("Soft gradients shrink like 1/T². The factor T² makes up for it, so that one alpha serves all temperatures.")
def test_temperature_scale(submission, torch_rng):
    """For small logits the gradient has the same size at temperatures 4 and 8, within 5 %."""
    student, teacher = (0.5 * torch.randn(6, 20, generator=torch_rng, dtype=F64) for _ in range(2))
    norms = []
    for t in (4.0, 8.0):
        _, (grad,) = submission.vjp(
            "kd_loss", (student, teacher), {"temperature": t}, wrt=(0,), cotangents=torch.ones((), dtype=F64)
        )
        norms.append(grad.norm().item())
    same(norms[1] / norms[0], 1.0, atol=0.05, rtol=0.0, what="gradient at T = 8 over gradient at T = 4")


@task(1)
@points(5)
@needs("test_kd_value")
@hint(
    "Select the positions that count first (logits[mask]), then average over those.",
    "reduction='batchmean' divides by the first dimension: by sequences, if you hand it (B, T, V).",
)
@sk.given(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(0, 999)), examples=16)
def test_masked_positions(submission, reference, case):
    """Masked positions count for nothing: not in the mean, not by what stands there, not in the gradient."""
    batch, length, seed = case
    student, teacher = (sk.tensor(seed + i, (batch, length, 6), F64, 3.0) for i in (0, 1))
    mask = a_mask(seed, (batch, length))
    hidden = ~mask[..., None]
    dirty = [torch.where(hidden, noise(seed + 2 + i, x, 100.0), x) for i, x in enumerate((student, teacher))]
    options = {"temperature": 2.0, "mask": mask}
    got, (grad,) = submission.vjp("kd_loss", dirty, options, wrt=(0,), cotangents=torch.ones((), dtype=F64))
    same(got, reference.kd_loss(student, teacher, **options), **NEAR, what="kd_loss with a mask")
    same(grad, reference.kd_grad(student, teacher, 2.0, mask), **NEAR, what="gradient with a mask")
    same(
        submission.kd_loss(student, teacher, temperature=2.0),
        reference.kd_loss(student, teacher, temperature=2.0),
        **NEAR,
        what="kd_loss without a mask",
    )
    with expect_error(ValueError, "mask"):
        submission.kd_loss(student, teacher, mask=torch.zeros_like(mask))


# --- task 2: soft and hard targets ------------------------------------------------------------------------------------


@st.composite
def label_cases(draw):
    return {
        "shape": (draw(st.integers(1, 3)), draw(st.integers(2, 6)), draw(st.sampled_from([5, 9]))),
        "seed": draw(st.integers(0, 999)),
        "alpha": draw(st.sampled_from([0.5, 0.0, 1.0, 0.2])),
        "temperature": draw(st.sampled_from([1.0, 3.0])),
        "ignore_index": draw(st.sampled_from([-100, 0])),
        "dtype": draw(st.sampled_from([F64, F32, torch.bfloat16])),
    }


@task(2)
@points(5)
@hint(
    "Position t predicts labels[:, t + 1]: compare logits[:, :-1] with labels[:, 1:], for both terms.",
    "One mask, labels[:, 1:] != ignore_index, for ce and kd. The cross-entropy stays at temperature 1.",
)
@sk.given(label_cases(), examples=24)
def test_shift_and_ignore(submission, reference, case):
    """loss, ce and kd use the same shifted positions, those whose target is not ignored."""
    *positions, vocab = case["shape"]
    seed, options = case["seed"], {name: case[name] for name in ("alpha", "temperature", "ignore_index")}
    student, teacher = (sk.tensor(seed + i, case["shape"], F64, 2.0).to(case["dtype"]) for i in (0, 1))
    labels = torch.randint(1, vocab, positions, generator=torch.Generator().manual_seed(seed))
    labels[:, 1:][~a_mask(seed, labels[:, 1:].shape)] = case["ignore_index"]
    got = submission.distillation_loss(student, teacher, labels, **options)
    want = reference.distillation_loss(student, teacher, labels, **options)
    same(got, want, dtype=result_dtype(student), what="losses", **tolerance(student, teacher, 1.0, 10.0))


@task(2)
@points(2)
@needs("test_shift_and_ignore")
@hint("The last position has no next token: it must not take part in either term.")
def test_like_transformers(submission, torch_rng):
    """ce is the loss of LlamaForCausalLM(labels=...), the last position gets no gradient, and no target is an error."""
    ids = DATA[:3].clone()
    labels = ids.clone()
    labels[0, 5:] = -100
    with torch.no_grad():
        out = TEACHER(input_ids=ids, labels=labels)
    student = out.logits
    teacher = student + torch.randn(student.shape, generator=torch_rng)
    got = submission.distillation_loss(student, teacher, labels, alpha=0.5, temperature=2.0)
    same(got["ce"], out.loss, atol=1e-5, rtol=0.0, what="ce")
    _, (grad,) = submission.vjp(
        "distillation_loss",
        (student, teacher, labels),
        {"alpha": 0.5, "temperature": 2.0},
        wrt=(0,),
        cotangents={"loss": torch.ones(())},
    )
    check(not grad[:, -1].any() and not grad[0, 4:].any(), "Positions without a target get a gradient.", got=grad)
    check(bool(grad[1, :-1].abs().sum(-1).min() > 0), "A position with a target gets no gradient.", got=grad)
    with expect_error(ValueError, "mask"):
        submission.distillation_loss(student, teacher, torch.full_like(ids, -100), alpha=0.5, temperature=2.0)


# --- task 3: training -------------------------------------------------------------------------------------------------


def small(seed, vocab=24, width=8, layers=1, scale=0.7):
    """Weights of the model of three lines: embedding, tanh layers, head."""
    made = [
        sk.tensor(seed + i, shape, F64, scale)
        for i, shape in enumerate([(vocab, width), *[(width, width)] * layers, (vocab, width)])
    ]
    return {"embed": made[0], "mixes": made[1:-1], "head": made[-1]}


def small_batches(seed, n=3, vocab=24):
    return [torch.randint(0, vocab, (2, 5), generator=torch.Generator().manual_seed(seed + i)) for i in range(n)]


@probe
def train_small(module, student, teacher, batches, options, called=None):
    """Runs train_student on two models of three lines; called() at each forward pass of the teacher.

    Returns losses, the student's parameters afterwards, what changed in the teacher, and in which state it was asked.
    """
    from types import SimpleNamespace

    import torch
    from torch import nn
    from torch.optim.optimizer import register_optimizer_step_post_hook

    asked = []

    class Model(nn.Module):
        def __init__(self, weights, role):
            super().__init__()
            self.embed = nn.Parameter(weights["embed"].clone())
            self.mixes = nn.ParameterList([x.clone() for x in weights["mixes"]])
            self.head = nn.Parameter(weights["head"].clone())
            self.dropout = nn.Dropout(0.5 if role == "teacher" else 0.0)
            self.frozen = nn.Dropout(0.5).eval() if role == "teacher" else nn.Identity()
            self.role = role

        def forward(self, input_ids, output_hidden_states=False, **_):
            h = [self.embed[input_ids]]
            for mix in self.mixes:
                h.append(torch.tanh(h[-1] @ mix.T))
            logits = self.frozen(self.dropout(h[-1])) @ self.head.T
            if self.role == "teacher":
                asked.append({"training": self.training or self.dropout.training, "graph": logits.grad_fn is not None})
                if called is not None:
                    called()
            return SimpleNamespace(logits=logits, hidden_states=tuple(h) if output_hidden_states else None)

    pupil, master = Model(student, "student"), Model(teacher, "teacher")
    steps, strangers = [], []
    own = {id(p) for p in pupil.parameters()}

    def watch(optimizer, *_):
        steps.append(1)
        others = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in own]
        strangers.append(sum(p.numel() for p in others))

    hook = register_optimizer_step_post_hook(watch)
    before = [(m.training, p.detach().clone(), p.requires_grad) for m, p in zip(master.modules(), master.parameters())]
    flags = [m.training for m in master.modules()]
    losses = module.train_student(pupil, master, batches, **options)
    hook.remove()
    return {
        "losses": list(losses),
        "parameters": [p.detach() for p in (pupil.embed, *pupil.mixes, pupil.head)],
        "steps": len(steps),
        "strangers": max(strangers, default=0),
        "asked": asked,
        "flags_kept": [m.training for m in master.modules()] == flags,
        "values_kept": all(torch.equal(p, old) for (_, old, _), p in zip(before, master.parameters())),
        "untouched": all(p.grad is None and p.requires_grad for p in master.parameters()),
    }


@task(3)
@points(5)
@needs("test_kd_value")
@hint(
    "mode 'kd' is kd_loss alone over all B · T positions; 'ce' is cross-entropy of logits[:, :-1] and ids[:, 1:].",
    "Let `fit` do the steps: step n uses batch n % len(batches).",
)
@sk.given(st.integers(0, 99), examples=2)
def test_training_by_the_contract(submission, reference, case):
    """Losses and trained parameters in modes "ce" and "kd" are those of a training loop in float64."""
    student, teacher, batches = small(case), small(case + 50, layers=2), small_batches(case)
    for mode in ("kd", "ce"):
        options = {"mode": mode, "steps": 5, "lr": 0.02, "temperature": 2.0}
        got = submission.run(train_small, student, teacher, batches, options)
        losses, parameters = reference.train(student, teacher, batches, **options)
        same(got["losses"], losses, atol=1e-7, rtol=0.0, what=f"losses of mode {mode}")
        same(got["parameters"], parameters, atol=1e-6, rtol=0.0, what=f"parameters of mode {mode}")
        check(got["steps"] <= 5, "The optimiser took more steps than it was given.", got=got["steps"], want=5)


@task(3)
@points(5)
@hint(
    "Dropout: a teacher in training mode gives another answer each time. teacher.eval() while you ask it.",
    "Afterwards put back the training flag of every module, also where a module had another flag than the whole.",
)
def test_teacher_left_alone(submission):
    """The teacher answers in eval mode, and afterwards its parameters, gradients and training flags are as before."""
    options = {"mode": "kd", "steps": 3, "lr": 0.02}
    got = submission.run(train_small, small(1), small(2, layers=2), small_batches(3), options)
    check(len(got["asked"]) > 0, "The teacher was not asked.")
    check(not any(a["training"] for a in got["asked"]), "The teacher was asked in training mode.", got=got["asked"])
    check(got["values_kept"], "The teacher's parameters changed.")
    check(got["untouched"], "The teacher's parameters got a gradient, or no longer require one.")
    check(got["flags_kept"], "The training flags of the teacher's modules are not what they were.")


TEACHER_CONFIG = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.06,
    "tie_word_embeddings": False,
}
STUDENT_CONFIG = {
    **TEACHER_CONFIG,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
STUDENT_CONFIG |= {"num_key_value_heads": 1, "initializer_range": 0.1}


def make_teacher():
    """A teacher with random weights whose layers change little and whose head is sharp, as trained ones are."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LlamaForCausalLM(LlamaConfig(**TEACHER_CONFIG))
    model.lm_head.weight.data *= 4
    return model.eval().requires_grad_(False)


@torch.no_grad()
def sample(teacher, n, length):
    """Sequences of the teacher's own: on them no student can beat it."""
    rng = torch.Generator().manual_seed(7)
    ids = torch.randint(0, teacher.config.vocab_size, (n, 1), generator=rng)
    for _ in range(length - 1):
        last = teacher(input_ids=ids).logits[:, -1]
        ids = torch.cat((ids, torch.multinomial(last.softmax(-1), 1, generator=rng)), dim=1)
    return ids


TEACHER = make_teacher()
DATA = sample(TEACHER, 80, 12)
BATCHES, EVAL = list(DATA[:48].split(16)), DATA[48:]


@functools.cache
def teacher_says():
    with torch.no_grad():
        return TEACHER(input_ids=EVAL).logits.log_softmax(-1).double()


def quality(logits):
    """(KL(teacher || student), nll of the next token) on the evaluation sequences."""
    log_q, log_p = logits.double().log_softmax(-1), teacher_says()
    nll = -log_q[:, :-1].gather(-1, EVAL[:, 1:, None]).mean()
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), nll.item()


@probe
def train_llama(module, configs, teacher_state, batches, eval_ids, runs, seed, tell):
    """Trains a student for each run (mode, start, steps, lr) and tells (logits on eval_ids, steps taken)."""
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook
    from transformers import LlamaConfig, LlamaForCausalLM

    teacher = LlamaForCausalLM(LlamaConfig(**configs["teacher"]))
    teacher.load_state_dict(teacher_state)
    for mode, start, steps, lr in runs:
        torch.manual_seed(seed)
        config = LlamaConfig(**configs["student"])
        student = module.init_student_from_teacher(teacher, config) if start == "copied" else LlamaForCausalLM(config)
        taken = []
        hook = register_optimizer_step_post_hook(lambda *_, taken=taken: taken.append(1))
        module.train_student(student, teacher, batches, mode=mode, steps=steps, lr=lr)
        hook.remove()
        with torch.no_grad():
            tell(student.eval()(input_ids=eval_ids).logits, len(taken))


def outcomes(submission, student, runs, seed):
    """Quality of the student of each run. Outcomes of training are told, not answered: rounding is no mistake."""
    told = []
    configs = {"teacher": TEACHER_CONFIG, "student": student}

    def tell(logits, steps):
        check(tuple(logits.shape) == (*EVAL.shape, 32), "The student's logits have another shape.", got=logits)
        told.append((quality(logits), steps))

    submission.run(train_llama, configs, dict(TEACHER.state_dict()), BATCHES, EVAL, runs, seed % 1000, tell)
    check(len(told) == len(runs), "Not every student was trained.", got=len(told), want=len(runs))
    for (_, steps), run in zip(told, runs):
        check(steps <= run[2], "The optimiser took more steps than it was given.", got=steps, want=run[2])
    return [q for q, _ in told]


@task(3)
@points(5)
@needs("test_training_by_the_contract")
@hint("A student that sees all of the teacher's probabilities learns more per token than from the one token drawn.")
def test_kd_beats_ce(submission, seed):
    """With the same 25 steps on the teacher's own text, a distilled student is far closer to it than one that was not."""
    # Entropy of the teacher: 2.7 nats, the floor of nll.
    (kl_ce, nll_ce), (kl_kd, nll_kd) = outcomes(
        submission, STUDENT_CONFIG, [["ce", "random", 25, 1e-2], ["kd", "random", 25, 1e-2]], seed
    )
    check(kl_kd <= 0.75 * kl_ce, "The distilled student is not closer to the teacher.", got=kl_kd, want=0.75 * kl_ce)
    check(nll_kd < nll_ce, "The distilled student predicts the teacher's text no better.", got=nll_kd, want=nll_ce)


# --- task 4: a student out of the teacher's layers ----------------------------------------------------------------------


@probe
def init_student(module, config, state, depth, width):
    """The student's state, and facts: does it share memory with the teacher, which layers are none of the teacher's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    teacher = LlamaForCausalLM(LlamaConfig(**config)).double()
    teacher.load_state_dict(state)
    student = module.init_student_from_teacher(
        teacher, LlamaConfig(**{**config, "num_hidden_layers": depth, "hidden_size": width})
    )
    theirs = {p.untyped_storage().data_ptr() for p in teacher.state_dict().values()}
    new = []
    for i, layer in enumerate(student.model.layers):
        q = layer.self_attn.q_proj.weight
        if not any(torch.equal(q, other.self_attn.q_proj.weight) for other in teacher.model.layers):
            new.append(i + 1)
    ids = torch.arange(8)[None] % config["vocab_size"]
    with torch.no_grad():
        answers = student(input_ids=ids).logits if depth == config["num_hidden_layers"] else None
    return {
        "class": type(student).__name__,
        "new": new,
        "state": {
            name: x
            for name, x in student.state_dict().items()
            if not any(name.startswith(f"model.layers.{i - 1}.") for i in new)
        },
        "shares": any(p.untyped_storage().data_ptr() in theirs for p in student.state_dict().values()),
        "trainable": all(p.requires_grad for p in student.parameters()),
        "answers": answers,
    }


@task(4)
@points(5)
@hint(
    "Layer k of the student, counted from 1, is model.layers[k - 1]; its source is mapped_layers(...)[k - 1].",
    "Copy values (copy_ or load_state_dict). Assigning a module or a parameter makes the student share the teacher's.",
)
@sk.given(st.tuples(st.sampled_from([(2, 2), (2, 4), (1, 3), (2, 3), (3, 1)]), st.integers(0, 9)), examples=4)
def test_init_from_teacher(submission, reference, case):
    """The student has the teacher's embeddings, norm, head and mapped layers, in memory of its own."""
    (depth, teacher_depth), seed = case
    config = {**TEACHER_CONFIG, "hidden_size": 8, "intermediate_size": 12, "vocab_size": 9}
    config["num_hidden_layers"] = teacher_depth
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        teacher = LlamaForCausalLM(LlamaConfig(**config)).double()
    state = {name: x + 0.01 * sk.tensor(seed, x.shape) for name, x in teacher.state_dict().items()}
    got = submission.run(init_student, config, state, depth, 8)
    sources = reference.layer_map(depth, teacher_depth)
    want = {name: x for name, x in state.items() if ".layers." not in name}
    for k, source in enumerate(sources):
        for name, x in state.items():
            if name.startswith(f"model.layers.{source - 1}."):
                want[name.replace(f"layers.{source - 1}.", f"layers.{k}.")] = x
    check(
        got["new"] == [k + 1 for k, j in enumerate(sources) if j == 0],
        "Other layers than these are new.",
        got=got["new"],
    )
    same(got["state"], want, atol=0.0, rtol=0.0, what="parameters")
    check(not got["shares"], "The student shares memory with the teacher: training it would edit the teacher.")
    check(
        got["class"] == "LlamaForCausalLM" and got["trainable"],
        "A trainable model of the teacher's class is asked for.",
    )
    if depth == teacher_depth:
        teacher.load_state_dict(state)
        with torch.no_grad():
            same(got["answers"], teacher(input_ids=torch.arange(8)[None]).logits, **NEAR, what="logits of a full copy")
    with expect_error(ValueError, "hidden_size"):
        submission.run(init_student, config, state, depth, 16)


@task(4)
@points(3)
@needs("test_init_from_teacher", "test_training_by_the_contract")
@hint("Both embeddings, the final norm, the head and the mapped layers: a missing one costs most of the advantage.")
def test_init_helps(submission, seed):
    """After the same ten steps a student made of the teacher's layers is far closer to it than a random one."""
    student = {**TEACHER_CONFIG, "num_hidden_layers": 2}
    (copied, _), (random, _) = outcomes(
        submission, student, [["kd", "copied", 10, 3e-3], ["kd", "random", 10, 3e-3]], seed
    )
    check(copied <= 0.75 * random, "Copying the teacher's layers did not help.", got=copied, want=0.75 * random)


# --- task 5: a comparison ---------------------------------------------------------------------------------------------


@probe
def compare_small(module, student, teacher, batches, eval_ids, options):
    """Rows of compare_students on models of three lines, without the seconds; how often a student was made."""
    from types import SimpleNamespace

    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self, weights, dropout=0.0):
            super().__init__()
            self.embed = nn.Parameter(weights["embed"].clone())
            self.mixes = nn.ParameterList([x.clone() for x in weights["mixes"]])
            self.head = nn.Parameter(weights["head"].clone())
            self.dropout = nn.Dropout(dropout)

        def forward(self, input_ids, output_hidden_states=False, **_):
            h = [self.embed[input_ids]]
            for mix in self.mixes:
                h.append(torch.tanh(h[-1] @ mix.T))
            logits = self.dropout(h[-1]) @ self.head.T
            # Dropout is for the evaluation to switch off; in training it would be another model.
            logits = h[-1] @ self.head.T if self.training and torch.is_grad_enabled() else logits
            return SimpleNamespace(logits=logits, hidden_states=tuple(h) if output_hidden_states else None)

    made = []

    def make_student():
        made.append(Model(student, dropout=0.5))
        return made[-1]

    rows = module.compare_students(Model(teacher, dropout=0.5), make_student, batches, eval_ids, **options)
    names = [sorted(row) for row in rows]
    told = [{k: v for k, v in row.items() if k != "seconds_ignored"} for row in rows]
    return {"rows": told, "names": names, "made": len(made)}


def expected_rows(reference, student, teacher, batches, eval_ids, modes, *, steps, lr):
    """What `compare_students` must say, by the oracle's training and the definitions."""
    log_p = reference.forward(teacher, eval_ids)[0].log_softmax(-1)
    calls = {"ce": 0, "kd": steps, "kd-topk": len(batches)}
    rows = []
    for mode in modes:
        _, (embed, *mixes, head) = reference.train(student, teacher, batches, mode=mode, steps=steps, lr=lr)
        log_q = reference.forward({"embed": embed, "mixes": mixes, "head": head}, eval_ids)[0].log_softmax(-1)
        rows.append(
            {
                "mode": mode,
                "params": sum(x.numel() for x in (embed, *mixes, head)),
                "kl_to_teacher": (log_p.exp() * (log_p - log_q)).sum(-1).mean().item(),
                "nll": -log_q[:, :-1].gather(-1, eval_ids[:, 1:, None]).mean().item(),
                "agreement": (log_p.argmax(-1) == log_q.argmax(-1)).double().mean().item(),
                "teacher_calls": calls[mode],
            }
        )
    return rows


@task(5)
@points(4)
@needs("test_training_by_the_contract")
@hint(
    "kl_to_teacher and agreement are means over all positions, nll over those with a next token.",
    "Count the teacher's calls with a forward hook around train_student only; measure students in eval mode.",
)
def test_compare_rows(submission, reference, seed):
    """Every figure of every row is what training by the contract and its definition give."""
    seed, modes, sizes = seed % 100, ["kd", "ce"], {"steps": 4, "lr": 0.05}
    student, teacher, batches = small(seed), small(seed + 50, layers=2), small_batches(seed)
    eval_ids = torch.randint(0, 24, (3, 6), generator=torch.Generator().manual_seed(seed + 9))
    got = submission.run(compare_small, student, teacher, batches, eval_ids, {"modes": modes, **sizes})
    want = expected_rows(reference, student, teacher, batches, eval_ids, modes, **sizes)
    keys = sorted([*want[0], "seconds_ignored"])
    check(got["names"] == [keys] * 2, "The keys of a row are others.", got=got["names"], want=keys)
    for row, expected in zip(got["rows"], want):
        same(row, expected, atol=2e-6, rtol=0.0, what=f"row of mode {expected['mode']}")
    check(got["made"] == 2, "make_student is called once per mode.", got=got["made"], want=2)


# --- task 6: JSD ------------------------------------------------------------------------------------------------------


BETAS = st.sampled_from([0.5, 0.1, 0.9, 1e-4, 0.0, 1.0])


@task(6)
@points(5)
@hint(
    "log m = logaddexp(log beta + log p, log(1 - beta) + log q). At the ends, by convention, KL(p || q) and KL(q || p).",
    "No T² here. And at 0 < beta < 1 both terms are there: beta · KL(p || m) + (1 - beta) · KL(q || m).",
)
@sk.given(st.tuples(logit_cases(impossible=("none",)), BETAS), examples=20)
def test_jsd(submission, reference, case):
    """The generalised JSD equals its definition on a grid of beta, ends included, at logits up to 1e4, with a mask."""
    sizes, beta = case
    (student, teacher), t = logits(sizes), sizes["temperature"]
    mask = a_mask(sizes["seed"], student.shape[:-1]) if student.ndim > 1 else None
    options = {"beta": beta, "temperature": t, "mask": mask}
    got = submission.generalized_jsd(student, teacher, **options)
    want = reference.generalized_jsd(student, teacher, **options)
    same(got, want, dtype=result_dtype(student), what="generalized_jsd", **tolerance(student, teacher, t))


@task(6)
@points(2)
@needs("test_jsd")
@hint("Impossible tokens (-inf) must not leave NaN behind, in the value or in the gradient: 0 · log 0 = 0.")
def test_jsd_properties(submission, reference, torch_rng):
    """JSD(1/2) is symmetric and at most log 2; tokens impossible for both do no harm; the teacher gets no gradient."""
    student, teacher = (3 * torch.randn(4, 9, generator=torch_rng, dtype=F64) for _ in range(2))
    forth = submission.generalized_jsd(student, teacher, beta=0.5)
    same(submission.generalized_jsd(teacher, student, beta=0.5), forth, **NEAR, what="JSD with the two exchanged")
    far = submission.generalized_jsd(400 * student, 400 * teacher, beta=0.5)
    check(far.item() <= math.log(2) + 1e-12, "JSD(1/2) is at most log 2.", got=far, want=math.log(2))
    student[:, 0] = teacher[:, 0] = -INF
    teacher[:, 1] = -INF
    for beta in (0.3, 0.0):
        options = {"beta": beta, "temperature": 2.0}
        got, grads = submission.vjp(
            "generalized_jsd", (student, teacher), options, wrt=(0, 1), cotangents=torch.ones((), dtype=F64)
        )
        same(got, reference.generalized_jsd(student, teacher, **options), **NEAR, what=f"JSD at beta = {beta}")
        check(grads[1] is None or not grads[1].any(), "A gradient flows into the teacher's logits.", got=grads[1])
        direction = torch.randn(student.shape, generator=torch_rng, dtype=F64)
        numeric = slope(lambda x: reference.generalized_jsd(x, teacher, **options).item(), student, direction)  # noqa: B023
        along = (grads[0] * direction)[:, 1:].sum().item()
        same(along, numeric, atol=1e-7, rtol=1e-6, what="slope along a random direction")


# --- task 7: hidden states ----------------------------------------------------------------------------------------------


@probe
def match(module, sizes, kind, weight, hs, ht, mask):
    """Loss and gradients of a HiddenMatcher with this projection, its layer map and its first weights."""
    matcher = module.HiddenMatcher(*sizes, kind=kind).double()
    first = matcher.projection.weight.detach().clone()
    matcher.load_state_dict({"projection.weight": weight})
    hs, ht = ([x.clone().requires_grad_() for x in states] for states in (hs, ht))
    loss = matcher(hs, ht, mask)
    loss.backward()
    return {
        "layer_map": list(matcher.layer_map),
        "loss": loss.detach(),
        "weight": matcher.projection.weight.grad,
        "hs": [x.grad for x in hs],
        "teacher": any(x.grad is not None and bool(x.grad.any()) for x in ht),
        "first": first if sizes[0] == sizes[1] else None,
    }


@st.composite
def hidden_cases(draw):
    return {
        "layers": draw(st.sampled_from([(1, 1), (1, 3), (2, 4), (3, 12), (4, 4), (4, 6), (3, 1)])),
        "widths": draw(st.sampled_from([(2, 2), (2, 5), (4, 3)])),
        "kind": draw(st.sampled_from(["mse", "cosine"])),
        "masked": draw(st.booleans()),
        "seed": draw(st.integers(0, 999)),
    }


@task(7)
@points(5)
@hint(
    "hidden_states[0] is the embedding output: student layer k is hs[k], and its teacher is ht[layer_map[k - 1]].",
    "Means: mse over positions and features, cosine over positions, then both over the student's layers.",
)
@sk.given(hidden_cases(), examples=24)
def test_hidden_matcher(submission, reference, case):
    """The matcher's loss and its gradients are those of the definition, for every depth, width, kind and mask."""
    seed, kind, (n_s, n_t), (d_s, d_t) = case["seed"], case["kind"], case["layers"], case["widths"]
    # The numbers of sk.tensor are 64ths; a little more, and no state is a vector of zeros, which has no direction.
    hs = [sk.tensor(seed + i, (2, 3, d_s)) + 0.001 for i in range(n_s + 1)]
    ht = [sk.tensor(seed + 50 + i, (2, 3, d_t)) + 0.001 for i in range(n_t + 1)]
    weight, mask = sk.tensor(seed + 99, (d_t, d_s)) + 0.0001, a_mask(seed, (2, 3)) if case["masked"] else None
    got = submission.run(match, (d_s, d_t, n_s, n_t), kind, weight, hs, ht, mask)
    check(got["layer_map"] == reference.layer_map(n_s, n_t), "layer_map is not mapped_layers.", got=got["layer_map"])
    same(got["loss"], reference.hidden_loss(weight, hs, ht, mask, kind), **NEAR, what="loss")
    check(not got["teacher"], "A gradient flows into the teacher's hidden states.")
    d_weight, d_state = sk.tensor(seed + 3, weight.shape), sk.tensor(seed + 4, hs[-1].shape)
    numeric = slope(lambda w: reference.hidden_loss(w, hs, ht, mask, kind).item(), weight, d_weight)
    same((got["weight"] * d_weight).sum().item(), numeric, atol=1e-6, rtol=1e-6, what="slope of the projection")
    numeric = slope(lambda h: reference.hidden_loss(weight, [*hs[:-1], h], ht, mask, kind).item(), hs[-1], d_state)
    same((got["hs"][-1] * d_state).sum().item(), numeric, atol=1e-6, rtol=1e-6, what="slope of the last state")
    if got["first"] is not None:
        same(got["first"], torch.eye(d_s, dtype=F64), what="projection of equal widths at the start")


@task(7)
@points(2)
@needs("test_hidden_matcher")
@hint("'kd+hidden' adds 1.0 times the matcher's mse to the loss of 'kd', and trains the projection along.")
def test_hidden_training(submission, reference, seed):
    """Training in mode "kd+hidden" is that of the oracle, projection and all."""
    seed = seed % 100
    student, teacher, batches = small(seed), small(seed + 50, layers=2), small_batches(seed)
    options = {"mode": "kd+hidden", "steps": 4, "lr": 0.02, "temperature": 2.0}
    got = submission.run(train_small, student, teacher, batches, options)
    losses, parameters = reference.train(student, teacher, batches, **options)
    same(got["losses"], losses, atol=1e-7, rtol=0.0, what="losses")
    same(got["parameters"], parameters, atol=1e-6, rtol=0.0, what="parameters")
    check(
        got["strangers"] in (0, 64), "Student and projection (8 x 8) are trained, nothing else.", got=got["strangers"]
    )
    check(
        not any(a["training"] or a["graph"] for a in got["asked"]),
        "The teacher: eval mode, no graph.",
        got=got["asked"],
    )


# --- task 8: the best k -------------------------------------------------------------------------------------------------


@st.composite
def topk_cases(draw):
    vocab = draw(st.sampled_from([2, 3, 6, 40]))
    return {
        "shape": (*draw(st.sampled_from([(), (3,), (2, 2)])), vocab),
        "k": draw(st.sampled_from(sorted({1, 2, (vocab + 1) // 2, vocab - 1, vocab}))),
        "seed": draw(st.integers(0, 999)),
        "scale": draw(st.sampled_from([1.0, 10.0])),
        "temperature": draw(st.sampled_from([1.0, 3.0])),
        "stored": draw(st.sampled_from([F64, F32, torch.float16])),
        "masked": draw(st.booleans()),
    }


def stored_topk(teacher, k, temperature, dtype, seed):
    """ids int32 and log p of the k best, in no order."""
    best = (teacher / temperature).log_softmax(-1).topk(k, dim=-1)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    return best.indices[..., order].to(torch.int32), best.values[..., order].to(dtype)


@task(8)
@points(5)
@hint(
    "k + 1 outcomes: the k cached tokens and everything else as one. Its probabilities are 1 - Σ p and 1 - Σ q.",
    "Rounded to half precision Σ p can exceed 1: then divide by it and leave the rest out. k = V has no rest at all.",
    "The student's rest: the log-sum-exp of the logits that are not cached, less that of all logits.",
)
@sk.given(topk_cases(), examples=24)
def test_topk_value(submission, reference, case):
    """topk_kd_loss is T² times KL over k tokens and one bucket for the rest, from logarithms in any precision."""
    seed, t = case["seed"], case["temperature"]
    student, teacher = (sk.tensor(seed + i, case["shape"], F64, case["scale"]) for i in (0, 1))
    ids, logp = stored_topk(teacher, case["k"], t, case["stored"], seed)
    mask = a_mask(seed, student.shape[:-1]) if case["masked"] and student.ndim > 1 else None
    got = submission.topk_kd_loss(student, ids, logp, temperature=t, mask=mask)
    want = reference.topk_kd_loss(student, ids, logp, temperature=t, mask=mask)
    same(got, want, atol=1e-10 * t * t, rtol=1e-9, what="topk_kd_loss")
    half = submission.topk_kd_loss(student.to(torch.bfloat16), ids, logp, temperature=t, mask=mask)
    rounded = reference.topk_kd_loss(student.to(torch.bfloat16), ids, logp, temperature=t, mask=mask)
    same(half, rounded, dtype=F32, atol=5e-4 * t * t, rtol=1e-4, what="topk_kd_loss of bfloat16 logits")


@task(8)
@points(3)
@hint(
    "Merging outcomes can only lose information: the loss is at most the full KL, and equal to it for k = V.",
    "A student that is sure of the cached tokens has a rest of e⁻⁴⁰: log(1 - Σ q) would be -inf.",
)
def test_topk_rest(submission, reference, torch_rng):
    """The loss never exceeds the full KL, punishes mass taken from the rest, and stands a student that is very sure."""
    for k in (1, 4, 12):
        student, teacher = (2 * torch.randn(5, 12, generator=torch_rng, dtype=F64) for _ in range(2))
        ids, logp = stored_topk(teacher, k, 2.0, F64, k)
        full = reference.kd_loss(student, teacher, temperature=2.0).item()
        got = submission.topk_kd_loss(student, ids, logp, temperature=2.0).item()
        check(got <= full + 1e-10, "KL over merged outcomes exceeds the full KL.", got=got, want=full)
        if k == 12:
            same(got, full, **NEAR, what="topk_kd_loss with k = V")
    ids, logp = stored_topk(teacher, 4, 1.0, F64, 0)
    over = torch.tensor([0.3, 0.3, 0.3, 0.2], dtype=F64).log().expand(logp.shape)
    got = submission.topk_kd_loss(student, ids, over, temperature=1.0)
    same(got, reference.topk_kd_loss(student, ids, over, temperature=1.0), **NEAR, what="loss where the sum of p is 1.1")
    inside = torch.zeros_like(teacher).scatter(-1, ids.long(), 1.0)
    honest = submission.topk_kd_loss(teacher, ids, logp, temperature=1.0).item()
    same(honest, 0.0, **NEAR, what="loss of a student that equals the teacher")
    sure = teacher + 40 * inside
    got, (grad,) = submission.vjp(
        "topk_kd_loss", (sure, ids, logp), {"temperature": 1.0}, wrt=(0,), cotangents=torch.ones((), dtype=F64)
    )
    same(got, reference.topk_kd_loss(sure, ids, logp, temperature=1.0), **NEAR, what="loss of a student without a rest")
    direction = torch.randn(sure.shape, generator=torch_rng, dtype=F64)
    numeric = slope(lambda x: reference.topk_kd_loss(x, ids, logp, temperature=1.0).item(), sure, direction)
    same((grad * direction).sum().item(), numeric, atol=1e-6, rtol=1e-6, what="slope along a random direction")


@probe
def cache_small(module, teacher, batches, k, temperature, called=None):
    """cache_teacher_topk of a model of three lines with dropout; whether it was left as it was."""
    from types import SimpleNamespace

    import torch
    from torch import nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Parameter(teacher["head"].clone())
            self.dropout = nn.Dropout(0.5)

        def forward(self, input_ids, **_):
            h = torch.tanh(teacher["embed"][input_ids] @ teacher["mixes"][0].T)
            if called is not None:
                called()
            return SimpleNamespace(logits=self.dropout(h) @ self.head.T, hidden_states=None)

    model = Model()
    cache = module.cache_teacher_topk(model, batches, k, temperature)
    told = {name: [x.detach() for x in cache[name]] for name in ("ids", "logp")}
    return {**told, "training": model.training, "graph": any(x.requires_grad for x in cache["logp"])}


@task(8)
@points(3)
@hint("log_softmax(logits/T) over the whole vocabulary first, then the k best of it, then int32 and float16.")
@sk.given(st.tuples(st.sampled_from([1, 3, 24, 30]), st.sampled_from([1.0, 2.0]), st.integers(0, 99)), examples=5)
def test_topk_cache(submission, reference, case):
    """The cache holds, batch by batch, the k most probable tokens and their log-probabilities at that temperature."""
    k, temperature, seed = case
    teacher, batches = small(seed), small_batches(seed, n=2)
    got = submission.run(cache_small, teacher, batches, k, temperature)
    check(len(got["ids"]) == len(got["logp"]) == 2, "One entry per batch.", got=[len(got["ids"]), len(got["logp"])])
    for ids, logp, batch in zip(got["ids"], got["logp"], batches):
        log_p = (reference.forward(teacher, batch)[0] / temperature).log_softmax(-1)
        want = log_p.topk(min(k, 24), dim=-1)
        same(ids.sort(-1).values, want.indices.sort(-1).values.to(torch.int32), what="ids, sorted")
        close = {"atol": 2e-3, "rtol": 2e-3}
        same(logp, log_p.gather(-1, ids.long()).to(torch.float16), what="logp of these ids", **close)
    check(not got["graph"], "The cache still hangs on the teacher's graph.")
    check(got["training"], "The teacher's training flag is not what it was.")


@task(8)
@points(1)
@needs("test_topk_value", "test_topk_cache")
@hint("Batch n % len(batches) goes with entry n % len(batches) of the cache; k is 16 where no cache is given.")
def test_topk_training(submission, reference, seed):
    """Training in mode "kd-topk" is that of the oracle with the 16 best tokens."""
    seed = seed % 100
    student, teacher, batches = small(seed), small(seed + 50, layers=2), small_batches(seed)
    options = {"mode": "kd-topk", "steps": 5, "lr": 0.02, "temperature": 2.0}
    got = submission.run(train_small, student, teacher, batches, options)
    losses, _ = reference.train(student, teacher, batches, **options)
    same(got["losses"], losses, atol=2e-3, rtol=0.0, what="losses")


# --- task 9: the fused loss ---------------------------------------------------------------------------------------------


@st.composite
def fused_cases(draw):
    return {
        "rows": draw(st.integers(1, 9)),
        "chunk": draw(st.sampled_from([1, 2, 3, 4, 64])),
        "vocab": draw(st.sampled_from([2, 11])),
        "seed": draw(st.integers(0, 999)),
        "temperature": draw(st.sampled_from([1.0, 2.0])),
        "dtype": draw(st.sampled_from([F64, F32, torch.bfloat16])),
    }


@task(9)
@points(4)
@hint(
    "The last chunk may be shorter. Sum over rows and divide by N once, in the loss and in the gradients.",
    "With G = T (q - p)/N for a chunk: the rows of grad h_s are G W_s, and grad W_s collects Gᵀ h_s. Both are multiplied by "
    "the gradient that comes in.",
)
@sk.given(fused_cases(), examples=20)
def test_fused_matches(submission, reference, case):
    """The fused loss and its two gradients are those of the unfused loss, whatever the chunk."""
    seed, t, dtype = case["seed"], case["temperature"], case["dtype"]
    shapes = [(case["rows"], 3), (case["vocab"], 3), (case["rows"], 5), (case["vocab"], 5)]
    inputs = [sk.tensor(seed + i, shape, F64).to(dtype) for i, shape in enumerate(shapes)]
    upstream = torch.tensor(-0.75, dtype=result_dtype(inputs[0]))
    got, grads = submission.vjp(
        "fused_linear_kd", inputs, {"temperature": t, "chunk": case["chunk"]}, wrt=(0, 1, 2, 3), cotangents=upstream
    )
    loss, (grad_h, grad_W) = reference.fused_linear_kd(*inputs, t)
    close = {F64: 1e-10, F32: 1e-4}.get(dtype, 0.3)
    same(got, loss, dtype=result_dtype(inputs[0]), atol=close * t * t, rtol=0.0, what="loss")
    for name, gradient, want in (("h_s", grads[0], grad_h), ("W_s", grads[1], grad_W)):
        same(gradient, -0.75 * want, dtype=dtype, atol=close * t, rtol=0.0, what=f"gradient of {name}")
    check(grads[2] is None and grads[3] is None, "A gradient flows into the teacher.", got=grads[2:])
    for i, name in enumerate(("h_s", "W_s")):
        options = {"temperature": t, "chunk": case["chunk"]}
        _, (alone,) = submission.vjp("fused_linear_kd", inputs, options, wrt=(i,), cotangents=upstream)
        same(alone, grads[i], atol=close * t, rtol=0.0, what=f"gradient of {name} where only it is asked for")
