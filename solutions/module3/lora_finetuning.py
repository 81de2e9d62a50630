"""LoRA fine-tuning of a LLaMA for medical questions: the layer, its files, and the pipeline around it.

Conventions:

* A *model* is a ``LlamaForCausalLM`` of transformers, or anything that is called the same way:
  ``model(input_ids=(B, T), attention_mask=(B, T)).logits`` is (B, T, V).
* A *tokenizer* is used through ``encode(text, add_special_tokens=False)``, ``bos_token_id``, ``eos_token_id`` and
  ``pad_token_id``.
* Weights are those of ``nn.Linear``: (out, in). T is the length of a sequence, V the size of the vocabulary.
* transformers is imported where it is needed, not at the top: the layer itself is plain PyTorch.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import LlamaConfig

OPTIONS = ("yes", "no", "maybe")
#: The seven projections of a LLaMA layer: what ``--targets all`` means.
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT = "context: {contexts}\nquestion: {question}\nanswer:"


# --------------------------------------------------------------------------------------------------------------
# Task 1: the layer
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoraSpec:
    """Which layers get an adapter, and of what size.

    Raises ``ValueError`` for r < 1 and for a dropout outside [0, 1).
    """

    r: int
    alpha: float
    #: Last components of the names of the ``nn.Linear`` modules that are adapted.
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    dropout: float = 0.0
    use_rslora: bool = False

    def __post_init__(self) -> None:
        if self.r < 1:
            raise ValueError(f"r must be at least 1, got r = {self.r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def scaling(self) -> float:
        """The factor s in W + s·BA: alpha / r, with ``use_rslora`` alpha / sqrt(r)."""
        # BEGIN SOLUTION task 1: the factor in front of BA
        return self.alpha / math.sqrt(self.r) if self.use_rslora else self.alpha / self.r
        # END SOLUTION


class LoRALinear(nn.Module):
    """A linear layer plus a low-rank update: ``base(x) + s · B A dropout(x)``.

    Attributes: ``base`` (the very ``nn.Linear`` that was given, bias or not), parameters ``lora_A`` (r, in) and
    ``lora_B`` (out, r) in the device and dtype of the base weight, ``scaling`` (s), ``merged``, ``enabled``.

    A is drawn by ``nn.init.kaiming_uniform_(a=sqrt(5))``, uniform in ±1/sqrt(in); B is zero. The new module is in
    training mode iff the base is (``base.training``).

    Source: Hu et al. 2021; rank-stabilised scaling Kalajdzievski 2023.
    """

    def __init__(self, base: nn.Linear, spec: LoraSpec) -> None:
        super().__init__()
        # BEGIN SOLUTION task 1: keep the base, make the two factors
        factory = {"device": base.weight.device, "dtype": base.weight.dtype}
        self.base = base
        self.lora_A = nn.Parameter(torch.empty(spec.r, base.in_features, **factory))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, spec.r, **factory))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        self.scaling = spec.scaling
        self.dropout = spec.dropout
        self.merged = False
        self.enabled = True
        # The weight that a merge replaced. A buffer, so that it moves with the module; not part of its state.
        self.register_buffer("unmerged_weight", None, persistent=False)
        self.train(base.training)
        # END SOLUTION

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the dtype of x.

        Dropout (only in training mode) is applied to what enters A, never to what enters the base. A layer that is
        merged or not enabled is its base. The product BA, a matrix of the size of W, is never formed: with
        r << in, B(Ax) is r(in + out) multiplications a token instead of in·out.
        """
        # BEGIN SOLUTION task 1: the base and the low-rank path
        y = self.base(x)
        if self.merged or not self.enabled:
            return y
        low_rank = F.linear(F.dropout(x, self.dropout, self.training), self.lora_A)  # (..., r)
        return y + F.linear(low_rank, self.lora_B) * self.scaling
        # END SOLUTION

    def merge(self) -> None:
        """Put W + s·BA in the place of the base weight; a second call does nothing.

        Computed in float32 (float64 for a float64 base) and rounded once to the dtype of W. The merged weight is a new
        ``nn.Parameter``, so that a weight shared with another module is left as it is there. It requires grad as the
        old one did.
        """
        # BEGIN SOLUTION task 6: the merged weight, in enough precision
        if self.merged:
            return
        weight = self.base.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        with torch.no_grad():
            update = self.lora_B.to(wide) @ self.lora_A.to(wide)
            merged = torch.add(weight.to(wide), update, alpha=self.scaling).to(weight.dtype)
        self.unmerged_weight = weight.detach()
        self.base.weight = nn.Parameter(merged, requires_grad=weight.requires_grad)
        self.merged = True
        # END SOLUTION

    def unmerge(self) -> None:
        """Bring the base weight back, bit for bit; without a merge before, nothing happens.

        W + s·BA - s·BA is not W in floating point: the old weight has to be kept.
        """
        # BEGIN SOLUTION task 6: the kept weight
        if not self.merged:
            return
        self.base.weight = nn.Parameter(self.unmerged_weight, requires_grad=self.base.weight.requires_grad)
        self.unmerged_weight = None
        self.merged = False
        # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 2: into a model
# --------------------------------------------------------------------------------------------------------------


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Given: the adapted layers of a model by name, in the order of ``named_modules``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def inject_lora(model: nn.Module, spec: LoraSpec) -> list[str]:
    """Replace each targeted ``nn.Linear`` by a :class:`LoRALinear` around it; freeze all else.

    A module is targeted if it is an ``nn.Linear`` and the last component of its name is in ``spec.targets``
    ("model.layers.0.self_attn.q_proj" by "q_proj"). Afterwards the factors require grad and nothing else does.
    No weight is copied, on no device: a model on ``meta`` stays there.

    Returns:
        The names of the replaced modules, in the order of ``named_modules``.

    Raises:
        ValueError: no module is targeted (the message names the targets; one target of several may miss); or the model
        has adapters already ("already"). The model is then as it was.
    """
    # BEGIN SOLUTION task 2: find, replace, freeze
    if lora_layers(model):
        raise ValueError("this model has LoRA layers already: merge_and_unload it first")
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in spec.targets
    }
    if not found:
        raise ValueError(f"no linear layer is named like one of the targets {', '.join(spec.targets)}")
    model.requires_grad_(False)
    for name, module in found.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, LoRALinear(module, spec))
    return list(found)
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 3: PubMedQA, from records to batches
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PubMedQAExample:
    """One question, the parts of the abstract without its conclusion, the conclusion, and the answer if it is known."""

    pmid: str
    question: str
    contexts: tuple[str, ...]
    labels: tuple[str, ...]
    long_answer: str
    decision: str | None


def load_pubmedqa(path: Path) -> list[PubMedQAExample]:
    """Read questions in any of three layouts, in the order of the file (UTF-8).

    * ``ori_pqal.json``: one object ``{pmid: {QUESTION, CONTEXTS, LABELS, LONG_ANSWER, final_decision, ...}}``.
    * ``test_set.json``: the same without ``final_decision``.
    * rows of the hub as JSON lines, one object a line (blank lines are skipped):
      ``{pubid, question, context: {contexts, labels, ...}, long_answer, final_decision}``.

    Lines end with "\\n" only: abstracts hold U+2028, which ``str.splitlines`` takes for the end of a line. ``pmid`` is
    a string (``pubid`` is a number). A missing or null decision is None; missing labels and conclusions are empty.

    Raises:
        ValueError: a decision is none of :data:`OPTIONS`; the message names the pmid.
    """
    # BEGIN SOLUTION task 3: tell the layouts apart, one example per record
    text = Path(path).read_text(encoding="utf-8")
    try:
        whole = json.loads(text)
    except json.JSONDecodeError:  # several lines, one object each
        whole = None
    if isinstance(whole, dict) and "pubid" not in whole:
        return [
            _example(
                pmid,
                row["QUESTION"],
                row["CONTEXTS"],
                row.get("LABELS"),
                row.get("LONG_ANSWER"),
                row.get("final_decision"),
            )
            for pmid, row in whole.items()
        ]
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    return [
        _example(
            row["pubid"],
            row["question"],
            row["context"]["contexts"],
            row["context"].get("labels"),
            row.get("long_answer"),
            row.get("final_decision"),
        )
        for row in rows
    ]
    # END SOLUTION


# BEGIN HIDDEN
def _example(
    pmid: str | int,
    question: str,
    contexts: Sequence[str],
    labels: Sequence[str] | None,
    long_answer: str | None,
    decision: str | None,
) -> PubMedQAExample:
    if decision is not None and decision not in OPTIONS:
        raise ValueError(f"record {pmid}: the decision {decision!r} is none of {', '.join(OPTIONS)}")
    return PubMedQAExample(str(pmid), question, tuple(contexts), tuple(labels or ()), long_answer or "", decision)


# END HIDDEN


def option_ids(tokenizer: Any, option: str) -> list[int]:
    """Given: the tokens of an answer as they follow a prompt: the text as it is, without special tokens."""
    return tokenizer.encode(option, add_special_tokens=False)


def encode_prompt(ex: PubMedQAExample, tokenizer: Any, max_length: int) -> list[int]:
    """Token ids of the filled :data:`PROMPT`, with room for the answer left in ``max_length``.

    The ids are those of the filled template, encoded as one text without special tokens, after the tokenizer's BOS if
    it has one. ``contexts`` is what the contexts say: all their words (``str.split``), joined by single blanks. The
    question stands as it is. The conclusion (``long_answer``) and the decision never enter.

    Prompt and the longest of :data:`OPTIONS` together must fit into ``max_length``. If they do not, words go from the
    end of the contexts, as few as possible; the question and the cue "answer:" always survive.

    Raises:
        ValueError: even without any context word it does not fit; the message holds "question".
    """
    # BEGIN SOLUTION task 3: the largest number of context words that fits
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = max_length - max(len(option_ids(tokenizer, option)) for option in OPTIONS)
    words = " ".join(ex.contexts).split()

    def encoded(count: int) -> list[int]:
        text = PROMPT.format(contexts=" ".join(words[:count]), question=ex.question)
        return bos + tokenizer.encode(text, add_special_tokens=False)

    ids = encoded(len(words))
    if len(ids) <= room:
        return ids
    # A longer text has no fewer tokens, so the largest count that fits is found by halving: fits(low), not fits(high).
    low, high = -1, len(words)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(encoded(middle)) <= room else (low, middle)
    if low < 0:
        raise ValueError(f"the question of {ex.pmid} alone leaves no room for an answer in {max_length} tokens")
    return encoded(low)
    # END SOLUTION


def encode_example(ex: PubMedQAExample, tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """One training example: ``input_ids`` is prompt and answer, ``labels`` the same with -100 on the prompt.

    The prompt is :func:`encode_prompt`'s, so that training and scoring see the same tokens. No EOS follows.

    Raises:
        ValueError: the decision is None; the message holds "decision" and the pmid.
    """
    # BEGIN SOLUTION task 3: prompt, answer, labels
    if ex.decision is None:
        raise ValueError(f"{ex.pmid} has no decision to learn from")
    prompt, answer = encode_prompt(ex, tokenizer, max_length), option_ids(tokenizer, ex.decision)
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
    # END SOLUTION


def collate(items: Sequence[Mapping[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right: ``input_ids`` (with pad_id), ``attention_mask`` (0), ``labels`` (-100), all int64 (B, T)."""
    # BEGIN SOLUTION task 3: three padded matrices
    longest = max(len(item["input_ids"]) for item in items)

    def padded(rows: list[list[int]], fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (longest - len(row)) for row in rows], dtype=torch.int64)

    return {
        "input_ids": padded([item["input_ids"] for item in items], pad_id),
        "attention_mask": padded([[1] * len(item["input_ids"]) for item in items], 0),
        "labels": padded([item["labels"] for item in items], -100),
    }
    # END SOLUTION


def pad_token(tokenizer: Any) -> int:
    """Given: the id to pad with. LLaMA has no padding token; any will do, since the mask hides it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


# --------------------------------------------------------------------------------------------------------------
# Task 4: training
# --------------------------------------------------------------------------------------------------------------


def batches(n: int, batch_size: int, steps: int, seed: int) -> Iterator[list[int]]:
    """Given: ``steps`` lists of at most ``batch_size`` indices below n: shuffled epochs, last batches may be short."""
    rng, order = random.Random(seed), []
    for _ in range(steps):
        if not order:
            order = list(range(n))
            rng.shuffle(order)
        yield order[:batch_size]
        order = order[batch_size:]


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Given: the model in training or evaluation mode for a while; every module's own flag comes back."""
    flags = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def answer_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy, in nats, of the tokens that ``labels`` does not mark with -100; float32 or wider, a scalar.

    The logits at position t predict the token at t + 1. The mean is over all such tokens of the batch (as
    ``LlamaForCausalLM`` computes it from ``labels``). The batch is one of :func:`collate`, on the model's device.
    """
    # BEGIN SOLUTION task 4: shift, then cross-entropy over the answer tokens
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100)
    # END SOLUTION


def finetune(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[PubMedQAExample],
    spec: LoraSpec,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    max_length: int,
) -> list[float]:
    """Train the factors, and nothing else, with AdamW (no weight decay) on :func:`answer_loss`.

    Adapters are injected unless the model has some. Step i uses the examples of the i-th list of
    ``batches(len(examples), batch_size, steps, seed)``. The model is trained in training mode and left in the mode it
    came in. The optimiser is given the parameters that require grad. ``seed`` also seeds torch, for A and for dropout,
    so the same arguments give the same losses; torch's global generator is left as it was.

    Returns:
        The loss of every step, as it was before the step's update.
    """
    # BEGIN SOLUTION task 4: encode once, then batch, loss, backward, step
    items = [encode_example(ex, tokenizer, max_length) for ex in examples]
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if not lora_layers(model):
            inject_lora(model, spec)
        trainable = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=0.0)
        with mode(model, training=True):
            for indices in batches(len(items), batch_size, steps, seed):
                batch = collate([items[i] for i in indices], pad_token(tokenizer))
                loss = answer_loss(model, {key: t.to(trainable[0].device) for key, t in batch.items()})
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
    return losses
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 5: scoring and metrics
# --------------------------------------------------------------------------------------------------------------


def score_options(
    model: nn.Module,
    tokenizer: Any,
    prompts: list[list[int]],
    options: Sequence[str] = OPTIONS,
    batch_size: int = 16,
) -> Tensor:
    """log P(option | prompt) of every prompt and option: (n, k), float32, on the CPU.

    An option of several tokens (:func:`option_ids`) has the sum of their log-probabilities, each given the ones before
    it. Evaluation mode, no gradients; the model is left in the mode it came in. Prompts of unequal length are padded,
    and no score may depend on the others in its batch.

    One forward pass takes ``batch_size`` rows of prompt and what precedes an option's last token. Where all options
    have one token, that is the prompt alone, whatever the number of options: ceil(n / batch_size) passes.
    """
    # BEGIN SOLUTION task 5: one row per prompt and distinct beginning of an option
    endings = [option_ids(tokenizer, option) for option in options]
    heads = list(dict.fromkeys(tuple(ids[:-1]) for ids in endings))
    rows = [(i, head) for i in range(len(prompts)) for head in heads]
    rows.sort(key=lambda row: len(prompts[row[0]]) + len(row[1]))  # rows of like length: less padding
    device = next(model.parameters()).device
    scores = torch.zeros(len(prompts), len(options))
    with torch.no_grad(), mode(model, training=False):
        for start in range(0, len(rows), batch_size):
            part = rows[start : start + batch_size]
            sequences = [prompts[i] + list(head) for i, head in part]
            items = [{"input_ids": ids, "labels": ids} for ids in sequences]
            batch = {key: t.to(device) for key, t in collate(items, pad_token(tokenizer)).items()}
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for row, (i, head) in zip(logits, part, strict=True):
                # The prompt's last token predicts the option's first, wherever the row's padding is.
                first = len(prompts[i]) - 1
                log_p = row[first : first + len(head) + 1].float().log_softmax(-1).cpu()
                for k, ids in enumerate(endings):
                    if tuple(ids[:-1]) == head:
                        scores[i, k] = log_p[range(len(ids)), ids].sum()
    return scores
    # END SOLUTION


def pubmedqa_metrics(truth: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
    """``accuracy``, ``macro_f1`` and ``confusion`` of answers, as the official script of PubMedQA has them.

    ``confusion[i][j]`` counts questions whose answer is ``OPTIONS[i]`` and was said to be ``OPTIONS[j]`` (nested
    lists). F1 of a class is 2TP / (2TP + FP + FN); macro-F1 is its mean over the classes that occur among answers or
    predictions (scikit-learn's default). Without any question both numbers are NaN.
    """
    # BEGIN SOLUTION task 5: count, then F1 of each class
    confusion = [[0] * len(OPTIONS) for _ in OPTIONS]
    for t, p in zip(truth, predictions, strict=True):
        confusion[OPTIONS.index(t)][OPTIONS.index(p)] += 1
    right = [confusion[i][i] for i in range(len(OPTIONS))]
    # 2TP + FP + FN is a class's row sum plus its column sum.
    involved = [sum(confusion[i]) + sum(row[i] for row in confusion) for i in range(len(OPTIONS))]
    f1 = [2 * r / n for r, n in zip(right, involved, strict=True) if n > 0]
    return {
        "accuracy": sum(right) / len(truth) if len(truth) else math.nan,
        "macro_f1": sum(f1) / len(f1) if f1 else math.nan,
        "confusion": confusion,
    }
    # END SOLUTION


def evaluate(
    model: nn.Module, tokenizer: Any, examples: Sequence[PubMedQAExample], *, max_length: int, batch_size: int = 16
) -> dict[str, Any]:
    """Answer every example by its likeliest option.

    Returns:
        ``predictions`` {pmid: option} for all examples in their order, and the :func:`pubmedqa_metrics` of those whose
        decision is known. Of equal scores the first option wins.
    """
    # BEGIN SOLUTION task 5: prompts, scores, the best option; metrics of what is labelled
    prompts = [encode_prompt(ex, tokenizer, max_length) for ex in examples]
    best = score_options(model, tokenizer, prompts, OPTIONS, batch_size).argmax(dim=1).tolist()
    predictions = {ex.pmid: OPTIONS[k] for ex, k in zip(examples, best, strict=True)}
    labelled = [ex for ex in examples if ex.decision is not None]
    found = pubmedqa_metrics([ex.decision for ex in labelled], [predictions[ex.pmid] for ex in labelled])
    return {**found, "predictions": predictions}
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 6 (stretch): with, without, and for good
# --------------------------------------------------------------------------------------------------------------


def adapter_disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the block the model is its base, bit for bit, whether merged or not; afterwards it is as it was.

    That holds after an exception too, and for a block inside another one.
    """
    # BEGIN SOLUTION task 6: switch off, and back on in any case
    return _without_adapter(model)
    # END SOLUTION


# BEGIN HIDDEN
@contextmanager
def _without_adapter(model: nn.Module) -> Iterator[None]:
    before = [(layer, layer.merged, layer.enabled) for layer in lora_layers(model).values()]
    try:
        for layer, _, _ in before:
            layer.unmerge()
            layer.enabled = False
        yield
    finally:
        for layer, merged, enabled in before:
            layer.enabled = enabled
            if merged:
                layer.merge()


# END HIDDEN


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Merge each adapter and put its plain ``nn.Linear`` back into the model; returns the same model.

    No LoRALinear is left, names and costs are those of the base. Parameters stay frozen.
    """
    # BEGIN SOLUTION task 6: merge, then replace each layer by its base
    for name, layer in lora_layers(model).items():
        layer.merge()
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, layer.base)
    return model
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 7 (stretch): files that peft reads
# --------------------------------------------------------------------------------------------------------------


def adapter_config(spec: LoraSpec, base_model_name: str) -> dict[str, Any]:
    """Given: the contents of ``adapter_config.json`` in peft's layout."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model_name,
        "r": spec.r,
        "lora_alpha": spec.alpha,
        "target_modules": list(spec.targets),
        "lora_dropout": spec.dropout,
        "use_rslora": spec.use_rslora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
    }


def read_adapter_config(config: Mapping[str, Any]) -> LoraSpec:
    """Given: the spec that a peft configuration means; ``ValueError`` names a feature that this file does not have."""
    plain = {"use_dora": False, "bias": "none", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None}
    for key, value in {"peft_type": "LORA", **plain}.items():
        if config.get(key, value) != value and config[key]:
            raise ValueError(f"adapter_config.json asks for {key} = {config[key]!r}, which is not supported here")
    targets = config["target_modules"]
    is_pattern = isinstance(targets, str)
    if is_pattern:
        raise ValueError(f"target_modules must be a list of names here, got the pattern {targets!r}")
    return LoraSpec(
        r=config["r"],
        alpha=config["lora_alpha"],
        targets=tuple(targets),
        dropout=config.get("lora_dropout", 0.0),
        use_rslora=config.get("use_rslora", False),
    )


def save_adapter(model: nn.Module, spec: LoraSpec, directory: Path, base_model_name: str = "") -> None:
    """Write the adapter, and no other weight, so that ``PeftModel.from_pretrained(base, directory)`` opens it.

    ``adapter_config.json`` holds :func:`adapter_config`. ``adapter_model.safetensors`` holds, for each adapted layer,
    ``base_model.model.<name>.lora_A.weight`` (r, in) and ``base_model.model.<name>.lora_B.weight`` (out, r), in their
    dtype. The directory is made if it is not there.
    """
    # BEGIN SOLUTION task 7: two files
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text(
        json.dumps(adapter_config(spec, base_model_name), indent=2), encoding="utf-8"
    )
    factors = {key: p.detach().cpu().contiguous() for key, p in _factors(model).items()}
    save_file(factors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    # END SOLUTION


# BEGIN HIDDEN
def _factors(model: nn.Module) -> dict[str, nn.Parameter]:
    """The factors by the names that peft gives them."""
    return {
        f"base_model.model.{name}.{factor}.weight": getattr(layer, factor)
        for name, layer in lora_layers(model).items()
        for factor in ("lora_A", "lora_B")
    }


# END HIDDEN


def load_adapter(model: nn.Module, directory: Path) -> LoraSpec:
    """Read what :func:`save_adapter` or peft wrote; adapters are injected if the model has none.

    Factors are converted to the dtype and device of the model's. ``scaling`` and dropout become those of the file. A
    merged model is merged afterwards too, with the new factors.

    Raises:
        ValueError: the file's factors are not those of the model: a missing, an unknown, or one of another shape (its
        name is in the message). The factors of the model are then as they were.
    """
    # BEGIN SOLUTION task 7: read, compare names and shapes, copy
    directory = Path(directory)
    spec = read_adapter_config(json.loads((directory / "adapter_config.json").read_text(encoding="utf-8")))
    loaded = load_file(directory / "adapter_model.safetensors")
    if not lora_layers(model):
        inject_lora(model, spec)
    factors = _factors(model)
    for key in sorted(factors.keys() ^ loaded.keys()):
        raise ValueError(f"{key} is {'missing in the file' if key in factors else 'unknown to the model'}")
    for key, p in factors.items():
        if p.shape != loaded[key].shape:
            raise ValueError(f"{key} is {tuple(loaded[key].shape)} in the file and {tuple(p.shape)} in the model")
    with torch.no_grad():
        for key, p in factors.items():
            p.copy_(loaded[key])
    for layer in lora_layers(model).values():
        layer.scaling, layer.dropout = spec.scaling, spec.dropout
        if layer.merged:
            layer.unmerge()
            layer.merge()
    return spec
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Task 8 (stretch): at real scale
# --------------------------------------------------------------------------------------------------------------


def memory_plan(config: LlamaConfig, spec: LoraSpec) -> dict[str, int]:
    """What fine-tuning a LLaMA of this configuration holds, without holding it.

    Returns:
        ``total_params``: of the base; ``trainable_params``: of the adapters; ``weight_bytes_bf16``: 2 bytes a base
        parameter. Training state in mixed precision with Adam is 16 bytes a trained parameter (weight and gradient
        in 16 bits, fp32 master, two fp32 moments): ``lora_state_bytes`` = 16 · trainable_params,
        ``full_finetune_bytes`` = 16 · total_params. Activations are not counted.

    The configuration is not changed, and no weight is allocated (the device ``meta``).
    """
    # BEGIN SOLUTION task 8: build it where nothing is allocated, and count
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    total = sum(p.numel() for p in model.parameters())
    inject_lora(model, spec)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "total_params": total,
        "trainable_params": trainable,
        "weight_bytes_bf16": 2 * total,
        "lora_state_bytes": 16 * trainable,
        "full_finetune_bytes": 16 * total,
    }
    # END SOLUTION


# --------------------------------------------------------------------------------------------------------------
# Given: the command line
# --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Training, development and test questions of one run."""

    name: str
    train: list[PubMedQAExample]
    dev: list[PubMedQAExample]
    test: list[PubMedQAExample]


def read_splits(data: Path, directory: Path | None, seed: int) -> list[Split]:
    """Given: the official split where there is one, else a seeded half of the data for training.

    ``directory`` is ``data/`` of the PubMedQA repository. After its ``split_dataset.py pqal`` it holds
    ``pqal_fold0`` ... ``pqal_fold9`` with ``train_set.json`` (450) and ``dev_set.json`` (50), and ``test_set.json``
    (500): a split for each fold. Without folds, ``test_ground_truth.json`` ({pmid: decision}) says which records of
    ``data`` are for testing, and all others are for training.
    """
    examples = load_pubmedqa(data)
    if directory is None:
        order = list(examples)
        random.Random(seed).shuffle(order)
        half = len(order) // 2
        return [Split("half", order[:half], [], order[half:])]
    known = {ex.pmid: ex for ex in examples}
    folds = sorted(directory.glob("pqal_fold*"), key=lambda fold: int(fold.name.removeprefix("pqal_fold")))
    if folds:
        test = [known.get(ex.pmid, ex) for ex in load_pubmedqa(directory / "test_set.json")]
        return [
            Split(fold.name, load_pubmedqa(fold / "train_set.json"), load_pubmedqa(fold / "dev_set.json"), test)
            for fold in folds
        ]
    held_out = json.loads((directory / "test_ground_truth.json").read_text(encoding="utf-8"))
    train = [ex for ex in examples if ex.pmid not in held_out]
    return [Split("official", train, [], [known[pmid] for pmid in held_out])]


def load_base(base: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, Any]:
    """Given: model and tokenizer from a directory in the hub's layout, or by a name of the hub."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(base, dtype=dtype).to(device).eval()
    return model, AutoTokenizer.from_pretrained(base)


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune a LLaMA on PubMedQA and write predictions.json, metrics.json and the adapter of the best fold."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--base", required=True, help="directory in the hub's layout, or a name of the hub")
    parser.add_argument("--data", type=Path, required=True, help="ori_pqal.json, or rows of the hub as JSON lines")
    parser.add_argument("--split-dir", type=Path, help="data/ of the PubMedQA repository: the official split")
    parser.add_argument("--folds", type=int, default=1, help="how many folds to train, if there are folds (at most 10)")
    parser.add_argument("--r", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    parser.add_argument("--targets", default="q_proj,v_proj", help="names joined by commas, or 'all'")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--rslora", action="store_true")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=2e-4)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--max-length", type=int, default=768)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("lora_run"))
    args = parser.parse_args(argv)

    targets = PROJECTIONS if args.targets == "all" else tuple(args.targets.split(","))
    spec = LoraSpec(args.r, args.alpha, targets, args.dropout, args.rslora)
    args.out.mkdir(parents=True, exist_ok=True)
    report, best = [], -1.0
    for split in read_splits(args.data, args.split_dir, args.seed)[: args.folds]:
        model, tokenizer = load_base(args.base, getattr(torch, args.dtype), args.device)
        losses = finetune(
            model, tokenizer, split.train, spec,
            steps=args.steps, lr=args.lr, batch_size=args.batch_size, seed=args.seed, max_length=args.max_length,
        )  # fmt: skip
        sizes = {"max_length": args.max_length, "batch_size": args.batch_size}
        test = evaluate(model, tokenizer, split.test, **sizes)
        dev = evaluate(model, tokenizer, split.dev, **sizes)["accuracy"] if split.dev else math.nan
        figures = {key: test[key] for key in ("accuracy", "macro_f1", "confusion")}
        report.append({"split": split.name, "losses": losses, "dev_accuracy": dev, "test": figures})
        print(f"{split.name}: loss {losses[-1]:.3f}, dev {dev:.3f}, test {test['accuracy']:.3f}")
        if not split.dev or dev > best:
            best = dev
            save_adapter(model, spec, args.out / "adapter", args.base)
            (args.out / "predictions.json").write_text(json.dumps(test["predictions"], indent=1), encoding="utf-8")
    (args.out / "metrics.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
