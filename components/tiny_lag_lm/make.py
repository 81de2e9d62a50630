"""Makes the fixture: a tiny Llama trained on the lag-2 permutation language, as transformers saves it.

    python components/tiny_lag_lm/make.py            # writes config.json and model.safetensors (about 10 s)
    python components/tiny_lag_lm/make.py --check    # trains it again elsewhere and compares behaviour

The language: 32 tokens; a row begins with two uniform tokens, and then x[t] = perm[x[t-2]] with probability 0.9, else a
uniform token. A predictable token has an entropy of 0.651 nats, the second of a row ln 32 = 3.466; the mean over the 31
predicted tokens of a row of 32 is (30 · 0.651 + 3.466) / 31 = 0.742. The model reaches 0.80 on held-out rows.
Hidden 64, intermediate 128, 2 layers, 4 heads, tied embeddings: 84 288 parameters.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

SEED, VOCABULARY, STEPS = 63, 32, 150


def lag2_batch(n: int, length: int, seed: int) -> Tensor:
    """n rows of `length` tokens of the language, int64; the same for the same seed."""
    perm = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, VOCABULARY, (n, length), generator=generator)
    follows = torch.rand((n, length), generator=generator) < 0.9
    ids = noise.clone()
    for t in range(2, length):
        ids[:, t] = torch.where(follows[:, t], perm[ids[:, t - 2]], noise[:, t])
    return ids


def loss_of(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross entropy of the next token, in nats."""
    logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def make(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,  # with 0.02 the two-token copy is found only after some 100 steps
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, lag2_batch(64, 32, seed=1000 + step)).backward()
        optimizer.step()
        schedule.step()
    model.eval().save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # says nothing that config.json does not
    with torch.no_grad():
        print(f"held-out loss {loss_of(model, lag2_batch(256, 32, seed=1)):.4f}")


def check(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        make(Path(other))
        kept, made = (LlamaForCausalLM.from_pretrained(path).eval() for path in (folder, Path(other)))
        ids = lag2_batch(256, 32, seed=1)
        with torch.no_grad():
            assert abs(loss_of(kept, ids) - loss_of(made, ids)) < 0.02


if __name__ == "__main__":
    here = Path(__file__).parent
    check(here) if "--check" in sys.argv else make(here)
