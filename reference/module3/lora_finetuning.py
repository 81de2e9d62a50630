"""Oracle of 3.2: a LLaMA in float64 without batches or padding, whose adapted weights are formed, W + s·BA.

transformers and peft are not imported (each costs seconds): the model is written out below, and what peft writes and
computes lies in components/peft_adapters.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

OPTIONS = ("yes", "no", "maybe")
PROMPT = "context: {contexts}\nquestion: {question}\nanswer:"


# --- the layer --------------------------------------------------------------------------------------------------------


def scaling(r: int, alpha: float, rslora: bool) -> float:
    return alpha / (r**0.5 if rslora else r)


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
    """x (W + s BA)ᵀ + bias in float64."""
    y = x.double() @ (weight.double() + s * (b.double() @ a.double())).T
    return y if bias is None else y + bias.double()


# --- the model --------------------------------------------------------------------------------------------------------


def read_model(folder: Path) -> tuple[dict[str, Tensor], dict]:
    """Weights (float64) and configuration of a directory in the hub's layout."""
    weights = load_file(folder / "model.safetensors")
    return {k: v.double() for k, v in weights.items()}, json.loads((folder / "config.json").read_text())


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    return gain * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary positions of (heads, T, head size): the halves of a head are real and imaginary parts."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[1]).double(), theta ** (-torch.arange(half, dtype=torch.float64) / half))
    re, im = x[..., :half], x[..., half:]
    return torch.cat([re * angles.cos() - im * angles.sin(), re * angles.sin() + im * angles.cos()], -1)


def llama(weights: dict[str, Tensor], config: dict, ids: Tensor) -> Tensor:
    """Logits (T, V) of one sequence (T,)."""
    eps, n_heads, n_kv = config["rms_norm_eps"], config["num_attention_heads"], config["num_key_value_heads"]
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    x = weights["model.embed_tokens.weight"][ids]
    for i in range(config["num_hidden_layers"]):
        w = {k.removeprefix(f"model.layers.{i}."): v for k, v in weights.items() if k.startswith(f"model.layers.{i}.")}
        h = rms_norm(x, w["input_layernorm.weight"], eps)
        q, k, v = (
            (h @ w[f"self_attn.{name}_proj.weight"].T).unflatten(-1, (n, -1)).transpose(0, 1)
            for name, n in (("q", n_heads), ("k", n_kv), ("v", n_kv))
        )
        q, k = rotate(q, theta), rotate(k, theta)
        heads = []
        for head in range(n_heads):
            group = head // (n_heads // n_kv)
            scores = (q[head] @ k[group].T / math.sqrt(q.shape[-1])).masked_fill(future, -torch.inf)
            heads.append(scores.softmax(-1) @ v[group])
        x = x + torch.cat(heads, -1) @ w["self_attn.o_proj.weight"].T
        h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
        gate = torch.nn.functional.silu(h @ w["mlp.gate_proj.weight"].T)
        x = x + (gate * (h @ w["mlp.up_proj.weight"].T)) @ w["mlp.down_proj.weight"].T
    return rms_norm(x, weights["model.norm.weight"], eps) @ weights["lm_head.weight"].T


def adapted(weights: dict[str, Tensor], factors: dict[str, tuple[Tensor, Tensor]], s: float) -> dict[str, Tensor]:
    """The weights with W + s BA for each named module."""
    return weights | {f"{n}.weight": weights[f"{n}.weight"] + s * (b @ a) for n, (a, b) in factors.items()}


# --- the data ---------------------------------------------------------------------------------------------------------


def read_tokenizer(folder: Path) -> tuple[Tokenizer, int | None]:
    """The tokenizer of a directory, and its BOS."""
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos = json.loads((folder / "tokenizer_config.json").read_text()).get("bos_token")
    return backend, None if bos is None else backend.token_to_id(bos)


def text_ids(tokenizer: tuple[Tokenizer, int | None], text: str) -> list[int]:
    return tokenizer[0].encode(text, add_special_tokens=False).ids


def prompt(
    question: str, contexts: list[str], tokenizer: tuple[Tokenizer, int | None], max_length: int
) -> list[int] | None:
    """The prompt's ids with as many context words as fit; None if the question alone does not."""
    words = [word for context in contexts for word in context.split()]
    longest = max(len(text_ids(tokenizer, o)) for o in OPTIONS)
    for count in range(min(len(words), max_length), -1, -1):  # a word is a token at least
        ids = text_ids(tokenizer, PROMPT.format(contexts=" ".join(words[:count]), question=question))
        ids = ids if tokenizer[1] is None else [tokenizer[1], *ids]
        if len(ids) + longest <= max_length:
            return ids
    return None


# --- scores and metrics -----------------------------------------------------------------------------------------------


def option_scores(weights: dict[str, Tensor], config: dict, prompt_ids: list[int], options: list[list[int]]) -> list:
    """log P(option | prompt) of each option, unbatched and unpadded."""
    log_p = llama(weights, config, torch.tensor(prompt_ids)).log_softmax(-1)
    return [
        log_p[-1, option[0]].item() if len(option) == 1 else _long_score(weights, config, prompt_ids, option)
        for option in options
    ]


def _long_score(weights: dict[str, Tensor], config: dict, prompt_ids: list[int], option: list[int]) -> float:
    """One pass of prompt and option; token j is predicted at the position before it."""
    log_p = llama(weights, config, torch.tensor(prompt_ids + option)).log_softmax(-1)
    return sum(log_p[len(prompt_ids) - 1 + j, token].item() for j, token in enumerate(option))


def metrics(truth: list[str], said: list[str]) -> dict:
    """Accuracy, macro-F1 from precision and recall, and the confusion matrix."""
    f1 = []
    for option in sorted(set(truth) | set(said)):
        hits = sum(t == s == option for t, s in zip(truth, said, strict=True))
        precision = hits / said.count(option) if option in said else 0.0
        recall = hits / truth.count(option) if option in truth else 0.0
        f1.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    pairs = list(zip(truth, said, strict=True))
    return {
        "accuracy": sum(t == s for t, s in pairs) / len(pairs),
        "macro_f1": sum(f1) / len(f1),
        "confusion": [[pairs.count((t, s)) for s in OPTIONS] for t in OPTIONS],
    }
