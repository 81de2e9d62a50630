"""3.1 at real scale: any causal language model in the hub's layout, in float16 with the scaler or in bfloat16 without."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from .conftest import SOLUTIONS

PROGRAM = SOLUTIONS / "module3/mixed_precision.py"
STEPS = 24


def trained(tmp_path: Path, command, causal_lm: Path, corpus: Path, device: str, dtype: str) -> dict[str, list]:
    """What amp_run.json holds after the command of the brief."""
    command(
        PROGRAM, "--device", device, "--model", causal_lm, "--text", corpus, "--dtype", dtype, "--steps", STEPS, "--lr", 1e-2,
        gpus=device == "cuda",
    )  # fmt: skip
    run = json.loads((tmp_path / "amp_run.json").read_text("utf-8"))
    assert {name: len(values) for name, values in run.items()} == {"loss": STEPS, "scale": STEPS, "skipped": STEPS}
    return run


def judge(run: dict[str, list], scaled: bool, causal_lm: Path, corpus: Path) -> None:
    """The first loss is that of the untrained model in float32, the last is lower; the scale follows what was skipped."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(causal_lm), AutoModelForCausalLM.from_pretrained(causal_lm)
    ids = [torch.tensor([tokenizer.encode(line)]) for line in corpus.read_text("utf-8").splitlines()[:4]]
    with torch.no_grad():
        begun = sum(model(input_ids=x, labels=x).loss.item() for x in ids) / 4
    assert math.isclose(run["loss"][0], begun, rel_tol=1e-2)
    assert run["loss"][-1] < 0.5 * begun
    assert run["skipped"].count(False) > STEPS / 2
    if not scaled:
        assert run["scale"] == [1.0] * STEPS
        assert not any(run["skipped"])
        return
    assert run["scale"][0] == 2.0**20
    for (scale, after), skipped in zip(pairwise(run["scale"]), run["skipped"]):
        assert after == scale / 2 if skipped else after in (scale, 2 * scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_causal_lm(tmp_path: Path, command, causal_lm: Path, corpus: Path, dtype: str) -> None:
    judge(trained(tmp_path, command, causal_lm, corpus, "cpu", dtype), dtype == "float16", causal_lm, corpus)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_causal_lm_on_cuda(tmp_path: Path, command, causal_lm: Path, corpus: Path, dtype: str) -> None:
    judge(trained(tmp_path, command, causal_lm, corpus, "cuda", dtype), dtype == "float16", causal_lm, corpus)
