"""Distillation through F.kl_div on selected rows; one callable for the teacher; the fused loss by recomputing in backward."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODES = ("ce", "kd", "kd+hidden", "kd-topk")

# ---------------------------------------------------------------------------------------------------------------------
# Given: argument checks, models, the training loop
# ---------------------------------------------------------------------------------------------------------------------


def check_positive(temperature: float) -> None:
    """Raise ``ValueError`` unless temperature > 0."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")


def check_mask(mask: Tensor | None, positions: Sequence[int]) -> None:
    """Raise ``ValueError`` ("mask") if the mask has another shape than the positions or leaves none of them,
    ``TypeError`` if it is not boolean."""
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"the mask must be boolean, got {mask.dtype}")
    if mask is not None and tuple(mask.shape) != tuple(positions):
        raise ValueError(f"the mask has shape {tuple(mask.shape)}, the positions {tuple(positions)}")
    if 0 in positions or (mask is not None and not mask.any()):
        raise ValueError("the mask leaves no position: there is nothing to average over")


def check_logits(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None = None) -> None:
    """Raise ``ValueError`` for vocabularies ("vocabulary") or positions ("shape") that differ, a temperature that is
    not positive ("temperature"), or a mask that leaves nothing ("mask")."""
    check_positive(temperature)
    if student.shape[-1] != teacher.shape[-1]:
        raise ValueError(
            f"the vocabulary has {student.shape[-1]} tokens for the student, {teacher.shape[-1]} for the teacher"
        )
    if student.shape != teacher.shape:
        raise ValueError(f"logits differ in shape: student {tuple(student.shape)}, teacher {tuple(teacher.shape)}")
    check_mask(mask, student.shape[:-1])


def compute_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of softmax, sums and losses: float32 at least (half precision is upcast first), float64 for float64."""
    return torch.promote_types(logits.dtype, torch.float32)


def run_model(model: nn.Module, ids: Tensor, *, hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """ids (B, T) int64 -> logits (B, T, V), and with ``hidden`` the hidden states: n_layers + 1 tensors (B, T, d), the
    embedding output at index 0 and the output of layer k at index k. Grad mode and training mode are left to you."""
    out = model(input_ids=ids, output_hidden_states=hidden, use_cache=False)
    return out.logits, tuple(out.hidden_states) if hidden else ()


def tiny_config(vocab_size: int, d_model: int, n_layers: int, **more: Any) -> Any:
    """A `LlamaConfig` with heads of 16 channels and an MLP of 2·d_model, embeddings not tied."""
    from transformers import LlamaConfig

    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_hidden_layers": n_layers,
        "num_attention_heads": max(1, d_model // 16),
        "num_key_value_heads": max(1, d_model // 16),
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**sizes, **more})


def tiny_model(config: Any, seed: int, *, sharpness: float = 1.0) -> nn.Module:
    """A `LlamaForCausalLM` with random weights from ``seed``; ``sharpness`` scales its head, and so all its logits."""
    from transformers import LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


@torch.no_grad()
def sample_sequences(teacher: nn.Module, n: int, length: int, seed: int) -> Tensor:
    """(n, length) int64 sequences drawn from the teacher itself, the first token uniformly: on such data no student
    can beat it, and a student's nll is the teacher's entropy plus KL(teacher || student)."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, teacher.config.vocab_size, (n, 1), generator=generator)
    for _ in range(length - 1):
        logits, _ = run_model(teacher, ids)
        new = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)
        ids = torch.cat((ids, new), dim=1)
    return ids


def fit(
    parameters: Iterable[nn.Parameter], batch_loss: Callable[[int], Tensor], n_batches: int, *, steps: int, lr: float
) -> list[float]:
    """``steps`` steps of AdamW (no weight decay) on these parameters; step n minimises ``batch_loss(n % n_batches)``.

    Returns the loss of each step, before its update.
    """
    optimizer = torch.optim.AdamW(list(parameters), lr=lr, weight_decay=0.0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = batch_loss(step % n_batches)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def soft_targets(student: Tensor, teacher: Tensor, temperature: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """log q and log p, a row for each position that counts."""
    kind = compute_dtype(student)
    if mask is None:
        mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    s, t = student[mask].to(kind), teacher.detach()[mask].to(kind)
    return (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)


def kl_div_of_rows(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Mean over rows of KL(p || q). Impossible outcomes are handed to kl_div as log 0 := -1e30, on both sides."""
    impossible = log_p == -math.inf
    log_p = log_p.masked_fill(impossible, -1e30)
    log_q = log_q.masked_fill(impossible, 0.0)
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


class Oracle:
    """A model that only answers: eval mode and no graph for the time of a question."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, ids: Tensor, hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
        busy = [module for module in self.model.modules() if module.training]
        for module in busy:
            module.training = False
        try:
            with torch.no_grad():
                return run_model(self.model, ids, hidden=hidden)
        finally:
            for module in busy:
                module.training = True


class RecomputedKD(torch.autograd.Function):
    """Keeps its inputs only; the backward pass makes each chunk's logits again."""

    @staticmethod
    def forward(ctx, h, W, theirs, head, temperature, chunk):
        ctx.save_for_backward(h, W, theirs, head)
        ctx.settings = temperature, chunk
        total = h.new_zeros((), dtype=compute_dtype(h))
        for i in range(0, len(h), chunk):
            s, t = soft_targets(h[i : i + chunk] @ W.T, theirs[i : i + chunk] @ head.T, temperature, None)
            total += kl_div_of_rows(t, s) * len(s)
        return total * (temperature * temperature / len(h))

    @staticmethod
    def backward(ctx, upstream):
        h, W, theirs, head = ctx.saved_tensors
        temperature, chunk = ctx.settings
        kind = compute_dtype(h)
        down_h, down_W = torch.empty_like(h), torch.zeros_like(W, dtype=kind)
        for i in range(0, len(h), chunk):
            s, t = soft_targets(h[i : i + chunk] @ W.T, theirs[i : i + chunk] @ head.T, temperature, None)
            g = (s.exp_() - t.exp_()) * (upstream * temperature / len(h))
            down_h[i : i + chunk] = (g @ W.to(kind)).to(h.dtype)
            down_W.addmm_(g.T, h[i : i + chunk].to(kind))
        return down_h, down_W.to(W.dtype), None, None, None, None


# ---------------------------------------------------------------------------------------------------------------------
# Task 1: the soft loss and its gradient
# ---------------------------------------------------------------------------------------------------------------------


def kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None
) -> Tensor:
    """T² · KL(softmax(t/T) || softmax(s/T)), the mean over the positions that count. (Hinton et al. 2015)

    Args: logits (..., V); mask (...,) boolean or None. Returns a scalar in `compute_dtype` of the student's logits.
    Errors: see `check_logits`.
    """
    check_logits(student_logits, teacher_logits, temperature, mask)
    s, t = soft_targets(student_logits, teacher_logits, temperature, mask)
    return kl_div_of_rows(t, s) * (temperature * temperature)


def kd_grad(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The gradient of `kd_loss` (no mask) with respect to the student's logits, by its formula, without autograd.

    Returns the shape and dtype of student_logits (half precision: computed in float32, rounded once).
    Errors: see `check_logits`.
    """
    check_logits(student_logits, teacher_logits, temperature)
    s, t = soft_targets(student_logits, teacher_logits, temperature, None)
    difference = torch.exp(s.detach()) - torch.exp(t)
    difference *= temperature / difference.shape[0]
    return difference.reshape(student_logits.shape).to(student_logits.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Task 2: soft and hard targets together
# ---------------------------------------------------------------------------------------------------------------------


def distillation_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    alpha: float,
    temperature: float,
    ignore_index: int = -100,
) -> dict[str, Tensor]:
    """{"loss", "ce", "kd"}: loss = alpha · ce + (1 - alpha) · kd, scalars.

    logits (B, T, V), labels (B, T) int64, usually the ids themselves. Position t predicts ``labels[:, t + 1]``, so the
    last position has no target. ce and kd are means over the same positions: those whose target is not ignore_index.
    ce is the cross-entropy at temperature 1, kd is `kd_loss` at ``temperature``.
    Errors: alpha outside [0, 1] -> ValueError ("alpha"); no target left -> ValueError ("mask"); see `check_logits`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    check_logits(student_logits, teacher_logits, temperature)
    inside = torch.ones_like(labels, dtype=torch.bool)
    inside[:, -1] = False
    following = labels.roll(-1, dims=1)
    mask = inside & (following != ignore_index)
    kd = kd_loss(student_logits, teacher_logits, temperature=temperature, mask=mask)
    rows = student_logits[mask].to(compute_dtype(student_logits))
    ce = -rows.log_softmax(1)[torch.arange(len(rows)), following[mask]].mean()
    return {"loss": kd + alpha * (ce - kd), "ce": ce, "kd": kd}


# ---------------------------------------------------------------------------------------------------------------------
# Task 3: training (with the stretch modes of tasks 7 and 8)
# ---------------------------------------------------------------------------------------------------------------------


def train_student(
    student: nn.Module,
    teacher: nn.Module,
    batches: Sequence[Tensor],
    *,
    mode: str,
    steps: int,
    lr: float,
    temperature: float = 1.0,
    cache: dict[str, list] | None = None,
) -> list[float]:
    """Train the student in place and return the loss of every step, by the given `fit`: step n uses batch
    n % len(batches), ids (B, T) without padding. The student is put into training mode and left there.

    mode "ce": next-token cross-entropy alone, the mean over B · (T - 1) positions; the teacher is not run.
    mode "kd": `kd_loss` alone, over all B · T positions; the teacher runs once a step.
    mode "kd+hidden" (task 7): "kd" plus 1.0 x a `HiddenMatcher` of kind "mse", trained along with the student.
    mode "kd-topk" (task 8): `topk_kd_loss` over all positions against ``cache``, made by `cache_teacher_topk` with
    k = 16 where it is None; a teacher forward once per batch, none in the steps.
    Errors: another mode -> ValueError ("mode"); no batches -> ValueError ("batches"); temperature.
    """
    check_positive(temperature)
    if mode not in MODES:
        raise ValueError(f"mode must be one of {MODES}, got {mode!r}")
    if not len(batches):
        raise ValueError("batches: there is nothing to train on")
    student.train()
    if mode in ("ce", "kd"):
        target_of = Oracle(teacher)

        def objective(i: int) -> Tensor:
            ids = batches[i]
            logits = run_model(student, ids)[0]
            if mode == "ce":
                nothing = torch.zeros_like(logits)
                return distillation_loss(logits, nothing, ids, alpha=1.0, temperature=1.0)["ce"]
            return kd_loss(logits, target_of(ids)[0], temperature=temperature)

        return fit(student.parameters(), objective, len(batches), steps=steps, lr=lr)
    if mode == "kd+hidden":
        target_of, matchers = Oracle(teacher), []

        def matcher_for(hs: Sequence[Tensor], ht: Sequence[Tensor]) -> HiddenMatcher:
            return HiddenMatcher(hs[-1].size(-1), ht[-1].size(-1), len(hs) - 1, len(ht) - 1).to(hs[-1])

        matchers.append(matcher_for(*(Oracle(model)(batches[0], True)[1] for model in (student, teacher))))

        def objective(i: int) -> Tensor:
            logits, hs = run_model(student, batches[i], hidden=True)
            target, ht = target_of(batches[i], True)
            return kd_loss(logits, target, temperature=temperature) + matchers[0](hs, ht, None)

        return fit([*matchers[0].parameters(), *student.parameters()], objective, len(batches), steps=steps, lr=lr)
    if not cache:
        cache = cache_teacher_topk(teacher, batches, 16, temperature)

    def objective(i: int) -> Tensor:
        logits = run_model(student, batches[i])[0]
        return topk_kd_loss(logits, cache["ids"][i], cache["logp"][i], temperature=temperature)

    return fit(student.parameters(), objective, len(batches), steps=steps, lr=lr)


# ---------------------------------------------------------------------------------------------------------------------
# Task 4: a student that begins as a part of its teacher
# ---------------------------------------------------------------------------------------------------------------------


def mapped_layers(n_student: int, n_teacher: int) -> list[int]:
    """For the student's layers k = 1 .. n_student: the teacher's layer round(k · n_teacher / n_student), counted from 1.

    Python's round (halves to even). With more student than teacher layers the first ones may map to 0: no layer at
    all, but the embedding output.
    """
    return [round(k * n_teacher / n_student) for k in range(1, n_student + 1)]


def check_same_width(teacher_config: Any, student_config: Any) -> None:
    """Raise ``ValueError`` naming the first field of the two configurations that makes copying layers impossible."""
    for field in ("vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"):
        theirs, ours = getattr(teacher_config, field), getattr(student_config, field)
        if theirs != ours:
            raise ValueError(f"{field} must be the teacher's to copy its layers: {ours} is not {theirs}")


def init_student_from_teacher(teacher: nn.Module, student_config: Any) -> nn.Module:
    """A new model of the teacher's class with embeddings, final norm and head copied from the teacher, and layer k
    copied from the teacher's layer ``mapped_layers(...)[k - 1]`` (a layer that maps to 0 stays random).

    Layers are the parameters ``model.layers.{i}.…`` of Llama-like models, i from 0: layer k is i = k - 1. The student
    shares no memory with the teacher and has its dtype and device. Errors: see `check_same_width`.
    """
    check_same_width(teacher.config, student_config)
    depth, sources = teacher.config.num_hidden_layers, {}
    for k, source in enumerate(mapped_layers(student_config.num_hidden_layers, depth), start=1):
        sources.setdefault(source, []).append(k - 1)
    weights = {}
    for name, value in teacher.state_dict().items():
        before, dot, after = name.partition(".layers.")
        if not dot:
            weights[name] = value
            continue
        number, _, leaf = after.partition(".")
        for layer in sources.get(int(number) + 1, ()):
            weights[f"{before}.layers.{layer}.{leaf}"] = value
    student = type(teacher)(student_config)
    student.to(device=teacher.device, dtype=teacher.dtype).load_state_dict(weights, strict=False)
    return student


# ---------------------------------------------------------------------------------------------------------------------
# Task 5: what the teacher was worth
# ---------------------------------------------------------------------------------------------------------------------


def compare_students(
    teacher: nn.Module,
    make_student: Callable[[], nn.Module],
    train_batches: Sequence[Tensor],
    eval_ids: Tensor,
    *,
    steps: int,
    lr: float,
    modes: Sequence[str],
) -> list[dict[str, Any]]:
    """Train one fresh student per mode (``make_student()`` once each, in order; temperature 1, no cache given) and
    measure it on ``eval_ids`` (N, T). One row per mode, plain Python numbers:

    "mode"; "params": number of the student's parameters;
    "kl_to_teacher": KL(teacher || student) at temperature 1, the mean over all N · T positions;
    "nll": -log q(next token), the mean over the N · (T - 1) positions that have one;
    "agreement": share of all positions at which both have the same most probable token;
    "teacher_calls": forward calls of the teacher that training took (caching included, evaluation not);
    "seconds_ignored": seconds of training, for curiosity; nothing is judged by it.
    Students are measured in eval mode, teacher and student without autograd.
    """
    asked = []
    wanted = Oracle(teacher)(eval_ids)[0].double()

    def trained(mode: str) -> tuple[nn.Module, float]:
        student, clock = make_student(), time.perf_counter()
        del asked[:]
        hook = teacher.register_forward_hook(lambda *_: asked.append(mode))
        try:
            train_student(student, teacher, train_batches, mode=mode, steps=steps, lr=lr)
        finally:
            hook.remove()
        return student, time.perf_counter() - clock

    def row(mode: str) -> dict[str, Any]:
        student, seconds = trained(mode)
        log_q, log_p = (x.double().log_softmax(-1) for x in (Oracle(student)(eval_ids)[0], wanted))
        return {
            "mode": mode,
            "params": sum(p.numel() for p in student.parameters()),
            "kl_to_teacher": float((log_p.exp() * (log_p - log_q)).sum(-1).mean()),
            "nll": -float(log_q[:, :-1].gather(-1, eval_ids[:, 1:, None]).mean()),
            "agreement": float((log_q.argmax(-1) == log_p.argmax(-1)).double().mean()),
            "teacher_calls": len(asked),
            "seconds_ignored": seconds,
        }

    return [row(mode) for mode in modes]


def distillation_curves(
    teacher: nn.Module,
    make_student: Callable[[], nn.Module],
    train_batches: Sequence[Tensor],
    eval_ids: Tensor,
    *,
    steps: int,
    lr: float,
    modes: Sequence[str],
    every: int = 10,
    path: str | Path | None = None,
) -> dict[str, list[list[float]]]:
    """Given: {mode: [[step, KL to the teacher on eval_ids], ...]}, measured before step 0, ``every``, 2 · ``every``...

    With ``path`` the same goes to this JSON file; `plot_curves` draws it.
    """
    with torch.no_grad():
        flag = teacher.training
        want, _ = run_model(teacher.eval(), eval_ids)
        teacher.train(flag)
    curves: dict[str, list[list[float]]] = {}
    for mode in modes:
        student, points, forwards = make_student(), [], [0]

        def measure(model: nn.Module, _: Any, points: list = points, forwards: list = forwards) -> None:
            if not model.training:
                return
            step, forwards[0] = forwards[0], forwards[0] + 1
            if step % every == 0:
                model.eval()
                with torch.no_grad():
                    points.append([step, kd_loss(run_model(model, eval_ids)[0], want).item()])
                model.train()

        watch = student.register_forward_pre_hook(measure)
        train_student(student, teacher, train_batches, mode=mode, steps=steps, lr=lr)
        watch.remove()
        curves[mode] = points
    if path is not None:
        Path(path).write_text(json.dumps(curves, indent=1), encoding="utf-8")
    return curves


def plot_curves(data: str | Path, picture: str | Path) -> None:
    """Given: draw the JSON file of `distillation_curves` as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for mode, points in json.loads(Path(data).read_text(encoding="utf-8")).items():
        axes.plot(*zip(*points, strict=True), label=mode)
    axes.set(xlabel="step", ylabel="KL(teacher || student) in nats", yscale="log")
    axes.legend()
    figure.savefig(picture, format="png")


# ---------------------------------------------------------------------------------------------------------------------
# Task 6 (stretch): divergences between the two directions
# ---------------------------------------------------------------------------------------------------------------------


def generalized_jsd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """beta · KL(p || m) + (1 - beta) · KL(q || m) with m = beta · p + (1 - beta) · q, the mean over positions.

    beta = 0 is KL(p || q) and beta = 1 is KL(q || p), by convention (the formula tends to 0 there). Unlike `kd_loss`
    there is **no factor T²**, as in GKD and TRL. log m comes from a log-sum-exp: m itself may underflow.
    Errors: beta outside [0, 1] -> ValueError ("beta"); see `check_logits`. (Agarwal et al. 2024)
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta must lie in [0, 1], got {beta}")
    check_logits(student_logits, teacher_logits, temperature, mask)
    s, t = soft_targets(student_logits, teacher_logits, temperature, mask)
    if beta in (0, 1):
        return kl_div_of_rows(*((t, s) if beta == 0 else (s, t)))
    # A log-probability of -1e30 is impossible enough, and can be subtracted and differentiated.
    s, t = s.clamp(min=-1e30), t.clamp(min=-1e30)
    top = torch.maximum(s, t).detach()
    mixed = top + (beta * (t - top).exp() + (1 - beta) * (s - top).exp()).log()
    each = beta * t.exp() * (t - mixed) + (1 - beta) * s.exp() * (s - mixed)
    return each.sum(1).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): matching hidden states
# ---------------------------------------------------------------------------------------------------------------------


class HiddenMatcher(nn.Module):
    """How far the student's hidden states are from the teacher's, through a learned projection. (FitNets, DistilBERT)

    ``projection`` is one `nn.Linear(d_student, d_teacher, bias=False)` for all layers; with d_student == d_teacher it
    begins as the identity. ``layer_map`` is `mapped_layers(n_student, n_teacher)`: layer k of the student is compared
    with layer ``layer_map[k - 1]`` of the teacher.
    Errors: a kind that is neither "mse" nor "cosine" -> ValueError ("kind").
    """

    def __init__(self, d_student: int, d_teacher: int, n_student: int, n_teacher: int, *, kind: str = "mse") -> None:
        super().__init__()
        if kind not in ("mse", "cosine"):
            raise ValueError(f"kind must be 'mse' or 'cosine', got {kind!r}")
        self.kind = kind
        self.layer_map = mapped_layers(n_student, n_teacher)
        self.projection = nn.Linear(d_student, d_teacher, bias=False)
        if d_student == d_teacher:
            self.projection.load_state_dict({"weight": torch.eye(d_teacher)})

    def forward(self, hs: Sequence[Tensor], ht: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """hs: n_student + 1 tensors (B, T, d_student), ht: n_teacher + 1 tensors (B, T, d_teacher), as `run_model` gives
        them, the embedding output first; mask (B, T). The embedding output of the student is not matched.

        "mse": the mean of (W h_s - h_t)² over the positions that count and the d_teacher features. "cosine": the mean of
        1 - cos(W h_s, h_t) over the positions that count. Both: the mean over the student's layers. A scalar; nothing
        flows back into ht. Errors: see `check_mask`.
        """
        check_mask(mask, hs[0].shape[:-1])
        ours = torch.stack([hs[k + 1] for k in range(len(self.layer_map))])
        theirs = torch.stack([ht[j] for j in self.layer_map]).detach()
        if mask is not None:
            ours, theirs = ours[:, mask], theirs[:, mask]
        ours = self.projection(ours)
        if self.kind == "cosine":
            return 1 - torch.cosine_similarity(ours, theirs, dim=-1).mean()
        return (ours - theirs).pow(2).mean()


# ---------------------------------------------------------------------------------------------------------------------
# Task 8 (stretch): a cache of the teacher's best k
# ---------------------------------------------------------------------------------------------------------------------


def cache_teacher_topk(teacher: nn.Module, batches: Sequence[Tensor], k: int, temperature: float) -> dict[str, list]:
    """{"ids": [...], "logp": [...]}: for batch i (B, T), ``cache["ids"][i]`` int32 (B, T, k), the teacher's k most
    probable tokens at each position, and ``cache["logp"][i]`` float16 (B, T, k), their log p at ``temperature``.

    The teacher runs once per batch. k larger than V means V. The order among the k is free, as is the choice between
    equals. Errors: k < 1 -> ValueError ("k"); temperature not positive -> ValueError.
    """
    check_positive(temperature)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    target_of, stored = Oracle(teacher), []
    for batch in batches:
        rows = target_of(batch)[0]
        rows = rows.to(compute_dtype(rows)) / temperature
        values, places = rows.topk(min(k, rows.size(-1)), sorted=False)
        stored.append((places.to(torch.int32), (values - rows.logsumexp(-1, keepdim=True)).to(torch.float16)))
    return {"ids": [a for a, _ in stored], "logp": [b for _, b in stored]}


def topk_kd_loss(
    student_logits: Tensor, ids: Tensor, logp: Tensor, *, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """T² · KL over k + 1 outcomes: the k cached tokens, and one bucket for all the rest. The mean over positions.

    student_logits (..., V), ids (..., k) integers, logp (..., k) of any floating dtype, log p at the same temperature.
    The teacher's rest is 1 - Σ p. Rounding can make Σ p exceed 1; then, and always with k = V, p is divided by Σ p
    and there is no rest. The student's rest is accurate however small it is.
    Errors: temperature not positive; shapes that do not fit -> ValueError ("shape"); see `check_mask`.
    """
    check_positive(temperature)
    if (
        ids.shape != logp.shape
        or ids.shape[:-1] != student_logits.shape[:-1]
        or ids.shape[-1] > student_logits.shape[-1]
    ):
        raise ValueError(
            f"shapes do not fit: logits {tuple(student_logits.shape)}, ids {tuple(ids.shape)}, logp {tuple(logp.shape)}"
        )
    check_mask(mask, student_logits.shape[:-1])
    keep = torch.ones(ids.shape[:-1], dtype=torch.bool, device=ids.device) if mask is None else mask
    rows, index, known = student_logits[keep], ids[keep].long(), logp[keep].detach()
    rows = rows.to(compute_dtype(rows)) / temperature
    p = known.to(rows.dtype).exp()
    mass = p.sum(1)
    covered = (mass > 1).logical_or(torch.full_like(mass, index.size(1) == rows.size(1), dtype=torch.bool))
    p = p / torch.where(covered, mass, torch.ones_like(mass))[:, None]
    # The tokens that are not cached, moved together by a sort: their log-sum-exp is the student's rest.
    chosen = torch.zeros_like(rows).scatter_(1, index, 1.0).bool()
    inside = rows.masked_fill(~chosen, -math.inf).logsumexp(1)
    outside = rows.masked_fill(chosen, -1e30).logsumexp(1)
    whole = torch.logaddexp(inside, outside)
    total = -(p * (rows.gather(1, index) - whole[:, None]).nan_to_num(neginf=0.0)).sum(1) + torch.xlogy(p, p).sum(1)
    rest = torch.where(covered, torch.zeros_like(mass), 1 - mass)
    total = total + torch.xlogy(rest, rest) - rest * (outside - whole)
    return total.mean() * (temperature * temperature)


def save_cache(cache: dict[str, list], folder: str | Path, *, batches_per_file: int = 64) -> None:
    """Given: the cache as safetensors shards ``topk-00000.safetensors``, ... in ``folder``, which is made."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for shard, start in enumerate(range(0, len(cache["ids"]), batches_per_file)):
        part = range(start, min(start + batches_per_file, len(cache["ids"])))
        tensors = {f"{name}.{i}": cache[name][i].contiguous() for name in ("ids", "logp") for i in part}
        save_file(tensors, folder / f"topk-{shard:05d}.safetensors")


def load_cache(folder: str | Path) -> dict[str, list]:
    """Given: what `save_cache` wrote."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for path in sorted(Path(folder).glob("topk-*.safetensors")):
        tensors.update(load_file(path))
    return {name: [tensors[f"{name}.{i}"] for i in range(len(tensors) // 2)] for name in ("ids", "logp")}


# ---------------------------------------------------------------------------------------------------------------------
# Task 9 (stretch): the loss that never holds its logits
# ---------------------------------------------------------------------------------------------------------------------


def fused_linear_kd(
    h_s: Tensor, W_s: Tensor, h_t: Tensor, W_t: Tensor, *, temperature: float, chunk: int = 64
) -> Tensor:
    """`kd_loss(h_s @ W_s.T, h_t @ W_t.T, temperature=T)` without ever holding (N, V) numbers.

    h_s (N, d_s), W_s (V, d_s), h_t (N, d_t), W_t (V, d_t); at most ``chunk`` rows of logits exist at a time, in the
    forward and in the backward pass. Products in the dtype of their operands, softmax and loss in `compute_dtype` of h_s.
    Gradients go to h_s and W_s (where they are asked for), once; none to the teacher. Without gradients, nothing is computed for them.
    There is no mask: leave out rows of h_s and h_t instead.
    Errors: N or V that differ, N = 0 -> ValueError ("shape"); chunk < 1 -> ValueError ("chunk"); temperature.
    """
    check_positive(temperature)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if h_s.shape[0] != h_t.shape[0] or W_s.shape[0] != W_t.shape[0] or h_s.shape[0] == 0:
        raise ValueError(f"shapes do not fit: {[tuple(x.shape) for x in (h_s, W_s, h_t, W_t)]}")
    return RecomputedKD.apply(h_s, W_s, h_t.detach(), W_t.detach(), float(temperature), int(chunk))


# ---------------------------------------------------------------------------------------------------------------------
# At real scale: given
# ---------------------------------------------------------------------------------------------------------------------


def load_pair(
    teacher_folder: str | Path,
    student_folder: str | Path,
    *,
    teacher_dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> tuple[nn.Module, nn.Module, Any]:
    """Given: (teacher, student, tokenizer) from two local model folders in the layout of the Hugging Face hub.

    The student is float32, to be trained; the teacher only runs, so bfloat16 is enough. Errors: tokenizers or logits
    that do not mean the same tokens -> ValueError ("vocabulary"): there KL(teacher || student) compares apples and pears.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours, theirs = (AutoTokenizer.from_pretrained(f, local_files_only=True) for f in (student_folder, teacher_folder))
    apart = sorted(dict(set(ours.get_vocab().items()) ^ set(theirs.get_vocab().items())))
    if apart:
        raise ValueError(
            f"the vocabulary differs in {len(apart)} tokens, {apart[0]!r} for one: take a student of the same family"
        )
    student = AutoModelForCausalLM.from_pretrained(student_folder, local_files_only=True, dtype=torch.float32)
    teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, local_files_only=True, dtype=teacher_dtype)
    if student.config.vocab_size != teacher.config.vocab_size:
        raise ValueError(
            f"the vocabulary has {student.config.vocab_size} logits for the student, {teacher.config.vocab_size} for the teacher"
        )
    return teacher.to(device), student.to(device), ours
