"""Makes the fixture: what peft itself writes and computes for a tiny random LLaMA with grouped-query attention.

    python components/peft_adapters/make.py                    # writes all files
    python components/peft_adapters/make.py --check            # remakes them elsewhere and compares
    python components/peft_adapters/make.py --open DIRECTORY   # opens an adapter for this base with peft

config.json, model.safetensors: the base (hidden 16, 2 layers, 4 heads, 2 key-value heads, 20 tokens, float32).
<spec>/adapter_config.json, adapter_model.safetensors: an adapter as ``PeftModel.save_pretrained`` writes it.
answers.safetensors: ids (2, 9) int64; cotangent (2, 9, 20); and for each spec ``<spec>.logits`` (2, 9, 20) and, with
the loss (logits * cotangent).sum(), ``<spec>.grad.<name of the factor in adapter_model.safetensors>``. float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

SEED = 321
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SPECS = {
    "two": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "all": {"r": 2, "lora_alpha": 6.0, "target_modules": PROJECTIONS, "use_rslora": True, "lora_dropout": 0.25},
}


def make(folder: Path) -> None:
    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    answers = {"ids": torch.randint(0, 20, (2, 9)), "cotangent": torch.randn(2, 9, 20)}
    for name, options in SPECS.items():
        base = LlamaForCausalLM.from_pretrained(folder)
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **options)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        model.save_pretrained(folder / name)
        (folder / name / "README.md").unlink()
        written = json.loads((folder / name / "adapter_config.json").read_text())
        written["base_model_name_or_path"] = ""  # not this folder's
        written["target_modules"] = sorted(written["target_modules"])  # a set, in the order of this run's hashes
        (folder / name / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
        logits = model(input_ids=answers["ids"]).logits
        answers[f"{name}.logits"] = logits.detach().contiguous()
        (logits * answers["cotangent"]).sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                answers[f"{name}.grad.{key.replace('.default', '')}"] = parameter.grad
    save_file(answers, folder / "answers.safetensors")


def check(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        make(Path(other))
        for name in ("model.safetensors", "answers.safetensors", *(f"{s}/adapter_model.safetensors" for s in SPECS)):
            kept, made = load_file(folder / name), load_file(Path(other) / name)
            assert kept.keys() == made.keys(), name
            for key in kept:
                torch.testing.assert_close(made[key], kept[key], msg=f"{name}: {key}")


def open_adapter(folder: Path, directory: Path) -> None:
    ids = load_file(folder / "answers.safetensors")["ids"]
    base = LlamaForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, directory).eval()(input_ids=ids).logits
    save_file({"logits": after.contiguous()}, directory / "logits_in_peft.safetensors")
    print(f"opened; the adapter changes logits by up to {(after - before).abs().max():.3g}")


if __name__ == "__main__":
    here = Path(__file__).parent
    if "--open" in sys.argv:
        open_adapter(here, Path(sys.argv[sys.argv.index("--open") + 1]))
    else:
        check(here) if "--check" in sys.argv else make(here)
