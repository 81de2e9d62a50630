"""Makes the fixture: a tiny random GPT-2 as transformers saves it, and what it answers, whole and with blocks deleted.

    python components/tiny_gpt2/make.py            # writes config.json, model.safetensors, answers.safetensors
    python components/tiny_gpt2/make.py --check    # remakes them elsewhere and compares behaviour

The unembedding is a matrix of its own (not tied to the embedding). answers.safetensors: ids and targets (2, 9) int64;
logits (2, 9, 20) float32; without (3, 2, 9, 20) float32, the logits of the model whose block l was deleted from
``transformer.h``, for l = 0, 1, 2.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

SEED = 24


def make(folder: Path) -> None:
    torch.manual_seed(SEED)
    config = GPT2Config(
        vocab_size=20,
        n_positions=12,
        n_embd=16,
        n_layer=3,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that scores, biases and the norms' gains matter
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    ids, targets = torch.randint(0, config.vocab_size, (2, 2, 9))
    blocks, without = model.transformer.h, []
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        for left_out in range(config.n_layer):
            model.transformer.h = torch.nn.ModuleList(b for n, b in enumerate(blocks) if n != left_out)
            without.append(model(input_ids=ids, use_cache=False).logits)
    answers = {"ids": ids.contiguous(), "targets": targets.contiguous(), "logits": logits, "without": torch.stack(without)}
    save_file(answers, folder / "answers.safetensors")


def check(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        make(Path(other))
        for name in ("model.safetensors", "answers.safetensors"):
            kept, made = load_file(folder / name), load_file(Path(other) / name)
            assert kept.keys() == made.keys(), name
            for key in kept:
                torch.testing.assert_close(made[key], kept[key], msg=f"{name}: {key}")


if __name__ == "__main__":
    here = Path(__file__).parent
    check(here) if "--check" in sys.argv else make(here)
