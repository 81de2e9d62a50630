"""A causal language model small enough to train in a second, and a text of its words, as files like the hub's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SOLUTIONS = Path(__file__).resolve().parents[2] / "solutions"
SCENES = ("small", "cat", "bird"), ("big", "dog", "cat"), ("red", "bird", "dog"), ("small", "dog", "bird")
ACTS = ("sees", ""), ("hears", " and runs"), ("likes", " and then the bird sings"), ("sees", " then")
LINES = [f"the {size} {one} {does} a {other}{end}" for size, one, other in SCENES for does, end in ACTS]
WORDS = ["<unk>", *sorted({word for line in LINES for word in line.split()})]


@pytest.fixture(scope="session")
def causal_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a LLaMA of one layer with its tokenizer, as `save_pretrained` writes it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub") / "tiny_llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 lines of 5 to 10 tokens."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n", "utf-8")
    return path


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., str]:
    """Runs python with these arguments in `tmp_path`, without a network and, unless told, without a GPU; what it printed."""

    def run(*args: object, gpus: bool = False) -> str:
        environ = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})
        told = {"cwd": tmp_path, "env": environ, "capture_output": True, "text": True, "timeout": 600}
        done = subprocess.run([sys.executable, *map(str, args)], check=False, **told)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
