"""Makes the fixture: a tiny LLaMA that answers general questions and has only read about medicine.

    python components/tiny_llama_qa/make.py            # writes config, model (float16), tokenizer (a minute)
    python components/tiny_llama_qa/make.py --check    # trains it again elsewhere and compares behaviour

Pre-training: general questions with their answers, and medical contexts without question or answer. So the model knows
what an answer is, knows the words of medicine, and not what they say about a question. It answers all of the general
questions and 38 % of the medical ones. Hidden 64, intermediate 128, 2 layers, 4 heads, 115 tokens, untied embeddings:
96 960 parameters.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from language import OPTIONS, prompt, records, vocabulary
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED, STEPS, BATCH = 32, 600, 32


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Word-level and lower-case; unknown words are <unk>."""
    backend = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary())}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=256, **special)


def texts(step: int) -> list[str]:
    """A batch: half general questions with answers, half medical contexts."""
    general = records("general", BATCH // 2, seed=100 + step).values()
    medical = records("medical", BATCH // 2, seed=100 + step).values()
    return [*(f"{prompt(r)} {r['final_decision']}" for r in general), *(" ".join(r["CONTEXTS"]) for r in medical)]


def loss_of(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: list[str]) -> Tensor:
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in batch]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    targets = ids.masked_fill(ids == tokenizer.pad_token_id, -100)
    logits = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, domain: str) -> float:
    """Share of 150 unseen questions whose right option is the likeliest of the three."""
    options = [tokenizer.convert_tokens_to_ids(o) for o in OPTIONS]
    right = []
    for record in records(domain, 150, seed=2).values():
        ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt(record), add_special_tokens=False)]
        best = int(model(input_ids=torch.tensor([ids])).logits[0, -1, options].argmax())
        right.append(OPTIONS[best] == record["final_decision"])
    return sum(right) / len(right)


def make(folder: Path) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    assert sum(p.numel() for p in model.parameters()) == 96_960
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, tokenizer, texts(step)).backward()
        optimizer.step()
        schedule.step()
    model.eval()
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    kept = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    print(json.dumps({domain: accuracy(kept, tokenizer, domain) for domain in ("general", "medical")}))


def check(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        make(Path(other))
        for path in (folder, Path(other)):
            model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
            assert accuracy(model, tokenizer, "general") == 1.0
            assert accuracy(model, tokenizer, "medical") < 0.6


if __name__ == "__main__":
    here = Path(__file__).parent
    check(here) if "--check" in sys.argv else make(here)
