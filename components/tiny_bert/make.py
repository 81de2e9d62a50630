"""Makes the fixture: a tiny random BERT as transformers saves it, and what it answers to a padded batch.

    python components/tiny_bert/make.py            # writes config.json, model.safetensors, answers.safetensors
    python components/tiny_bert/make.py --check    # remakes them elsewhere and compares behaviour

answers.safetensors: ids (3, 12) int64, mask (3, 12) int64 (1 = real token, the first 12, 7 and 1 slots of a row), hidden
(3, 12, 32) float32, the last hidden state; what it holds at padding means nothing.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

SEED = 22


def make(folder: Path) -> None:
    torch.manual_seed(SEED)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=24,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # so that scores, biases and the norms' gains matter
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    ids = torch.randint(0, config.vocab_size, (3, 12))
    mask = (torch.arange(12) < torch.tensor([12, 7, 1])[:, None]).long()
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    save_file({"ids": ids, "mask": mask, "hidden": hidden.contiguous()}, folder / "answers.safetensors")


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
