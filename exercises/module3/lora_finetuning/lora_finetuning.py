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
        raise NotImplementedError("task 1: the factor in front of BA")


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
        raise NotImplementedError("task 1: keep the base, make the two factors")

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the dtype of x.

        Dropout (only in training mode) is applied to what enters A, never to what enters the base. A layer that is
        merged or not enabled is its base. The product BA, a matrix of the size of W, is never formed: with
        r << in, B(Ax) is r(in + out) multiplications a token instead of in·out.
        """
        raise NotImplementedError("task 1: the base and the low-rank path")

    def merge(self) -> None:
        """Put W + s·BA in the place of the base weight; a second call does nothing.

        Computed in float32 (float64 for a float64 base) and rounded once to the dtype of W. The merged weight is a new
        ``nn.Parameter``, so that a weight shared with another module is left as it is there. It requires grad as the
        old one did.
        """
        raise NotImplementedError("task 6: the merged weight, in enough precision")

    def unmerge(self) -> None:
        """Bring the base weight back, bit for bit; without a merge before, nothing happens.

        W + s·BA - s·BA is not W in floating point: the old weight has to be kept.
        """
        raise NotImplementedError("task 6: the kept weight")


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
    raise NotImplementedError("task 2: find, replace, freeze")


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
    raise NotImplementedError("task 3: tell the layouts apart, one example per record")


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
    raise NotImplementedError("task 3: the largest number of context words that fits")


def encode_example(ex: PubMedQAExample, tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """One training example: ``input_ids`` is prompt and answer, ``labels`` the same with -100 on the prompt.

    The prompt is :func:`encode_prompt`'s, so that training and scoring see the same tokens. No EOS follows.

    Raises:
        ValueError: the decision is None; the message holds "decision" and the pmid.
    """
    raise NotImplementedError("task 3: prompt, answer, labels")


def collate(items: Sequence[Mapping[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Pad on the right: ``input_ids`` (with pad_id), ``attention_mask`` (0), ``labels`` (-100), all int64 (B, T)."""
    raise NotImplementedError("task 3: three padded matrices")


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
    raise NotImplementedError("task 4: shift, then cross-entropy over the answer tokens")


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
    raise NotImplementedError("task 4: encode once, then batch, loss, backward, step")


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
    raise NotImplementedError("task 5: one row per prompt and distinct beginning of an option")


def pubmedqa_metrics(truth: Sequence[str], predictions: Sequence[str]) -> dict[str, Any]:
    """``accuracy``, ``macro_f1`` and ``confusion`` of answers, as the official script of PubMedQA has them.

    ``confusion[i][j]`` counts questions whose answer is ``OPTIONS[i]`` and was said to be ``OPTIONS[j]`` (nested
    lists). F1 of a class is 2TP / (2TP + FP + FN); macro-F1 is its mean over the classes that occur among answers or
    predictions (scikit-learn's default). Without any question both numbers are NaN.
    """
    raise NotImplementedError("task 5: count, then F1 of each class")


def evaluate(
    model: nn.Module, tokenizer: Any, examples: Sequence[PubMedQAExample], *, max_length: int, batch_size: int = 16
) -> dict[str, Any]:
    """Answer every example by its likeliest option.

    Returns:
        ``predictions`` {pmid: option} for all examples in their order, and the :func:`pubmedqa_metrics` of those whose
        decision is known. Of equal scores the first option wins.
    """
    raise NotImplementedError("task 5: prompts, scores, the best option; metrics of what is labelled")


# --------------------------------------------------------------------------------------------------------------
# Task 6 (stretch): with, without, and for good
# --------------------------------------------------------------------------------------------------------------


def adapter_disabled(model: nn.Module) -> AbstractContextManager[None]:
    """Inside the block the model is its base, bit for bit, whether merged or not; afterwards it is as it was.

    That holds after an exception too, and for a block inside another one.
    """
    raise NotImplementedError("task 6: switch off, and back on in any case")


def merge_and_unload(model: nn.Module) -> nn.Module:
    """Merge each adapter and put its plain ``nn.Linear`` back into the model; returns the same model.

    No LoRALinear is left, names and costs are those of the base. Parameters stay frozen.
    """
    raise NotImplementedError("task 6: merge, then replace each layer by its base")


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
    raise NotImplementedError("task 7: two files")


def load_adapter(model: nn.Module, directory: Path) -> LoraSpec:
    """Read what :func:`save_adapter` or peft wrote; adapters are injected if the model has none.

    Factors are converted to the dtype and device of the model's. ``scaling`` and dropout become those of the file. A
    merged model is merged afterwards too, with the new factors.

    Raises:
        ValueError: the file's factors are not those of the model: a missing, an unknown, or one of another shape (its
        name is in the message). The factors of the model are then as they were.
    """
    raise NotImplementedError("task 7: read, compare names and shapes, copy")


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
    raise NotImplementedError("task 8: build it where nothing is allocated, and count")


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
