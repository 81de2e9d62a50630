"""Knowledge distillation: train a small language model to say what a large one says, and measure what that is worth.

Conventions of this module, used by every function below:

* Logits have shape (..., V): all dimensions but the last are *positions*, the last one is the vocabulary. Teacher and
  student logits have the same shape. A mean is over positions, never over positions times V.
* A mask is boolean, has the shape of the positions, and ``True`` means "this position counts". Whatever finite numbers
  stand at the other positions change neither the value nor the gradient; their own gradient is zero.
* p is the teacher's distribution, q the student's, both at temperature T: ``p = softmax(t/T)``, ``q = softmax(s/T)``.
  An outcome of probability 0 contributes 0 to a divergence (0·log 0 = 0), also where both logits are -inf.
* Losses are computed and returned in float32, or in float64 for float64 student logits (see `compute_dtype`). They are
  0-dimensional tensors, differentiable in the student only: nothing flows back into the teacher.
* Models are called as transformers' causal language models are; `run_model` does it. A teacher that takes part in
  training runs in eval mode and without autograd, and afterwards its parameters, buffers and the ``training`` flag of
  each of its modules are as before.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
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
    raise NotImplementedError("task 1: soften both, KL(teacher || student), mean over positions, T²")


def kd_grad(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The gradient of `kd_loss` (no mask) with respect to the student's logits, by its formula, without autograd.

    Returns the shape and dtype of student_logits (half precision: computed in float32, rounded once).
    Errors: see `check_logits`.
    """
    check_logits(student_logits, teacher_logits, temperature)
    raise NotImplementedError("task 1: T (q - p) / n")


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
    raise NotImplementedError("task 2: one shift and one mask for both terms")


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
        raise NotImplementedError("task 3: the loss of a batch, the teacher quiet")
    if mode == "kd+hidden":
        raise NotImplementedError("task 7: the matcher's size from a first look at both models; train it too")
    raise NotImplementedError("task 8: cache once, then never ask the teacher again")


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
    raise NotImplementedError("task 4: build, and copy name by name")


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
    raise NotImplementedError("task 5: train, count, measure")


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
    raise NotImplementedError("task 6: the mixture in logarithms, and the two ends")


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
        raise NotImplementedError("task 7: begin as the identity where that is possible")

    def forward(self, hs: Sequence[Tensor], ht: Sequence[Tensor], mask: Tensor | None) -> Tensor:
        """hs: n_student + 1 tensors (B, T, d_student), ht: n_teacher + 1 tensors (B, T, d_teacher), as `run_model` gives
        them, the embedding output first; mask (B, T). The embedding output of the student is not matched.

        "mse": the mean of (W h_s - h_t)² over the positions that count and the d_teacher features. "cosine": the mean of
        1 - cos(W h_s, h_t) over the positions that count. Both: the mean over the student's layers. A scalar; nothing
        flows back into ht. Errors: see `check_mask`.
        """
        check_mask(mask, hs[0].shape[:-1])
        raise NotImplementedError("task 7: project layer k, compare with the teacher's layer, mean over positions and layers")


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
    raise NotImplementedError("task 8: log-probabilities of the whole vocabulary, then the k best")


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
    raise NotImplementedError("task 8: k + 1 outcomes of teacher and student")


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
    raise NotImplementedError("task 9: rows in chunks, gradients by the formula of task 1")


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
