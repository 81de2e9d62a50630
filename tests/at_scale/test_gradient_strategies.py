"""3.5 at real scale: PyTorch's DDP on two processes over gloo; what they accumulate is the gradient of all their tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from .conftest import LINES, SOLUTIONS

PROGRAM = SOLUTIONS / "module3/gradient_strategies.py"
ON_RANKS = Path(__file__).with_name("step_on_ranks.py")
UPDATES = 3


def on_ranks(tmp_path: Path, command, world: int, lines: int, *args: object) -> list[dict[str, Any]]:
    """What each of `world` ranks found in UPDATES updates of `lines` lines, dealt out in turn."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", world) if world > 1 else ()
    command(*launcher, ON_RANKS, PROGRAM, *args, "--per-update", lines, "--updates", UPDATES)
    return [json.loads((tmp_path / f"rank{rank}.json").read_text("utf-8")) for rank in range(world)]


def pooled(causal_lm: Path, lines: int) -> tuple[float, float]:
    """(mean loss of a token, norm of its gradient) of the first `lines` lines, by one loss and one backward."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(causal_lm)
    model = AutoModelForCausalLM.from_pretrained(causal_lm, dtype=torch.float64)
    losses = []
    for line in LINES[:lines]:
        ids = torch.tensor(tokenizer.encode(line))
        log_p = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-log_p.gather(1, ids[1:, None]).flatten())
    loss = torch.cat(losses).mean()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([g.flatten() for g in grads]).norm().item()


def test_two_ranks_take_the_steps_of_one(tmp_path: Path, command, causal_lm: Path, corpus: Path) -> None:
    given = (causal_lm, corpus, tmp_path)
    (one,) = on_ranks(tmp_path, command, 1, 5, *given)
    loss, norm = pooled(causal_lm, 5)
    first = one["reports"][0]
    assert (first["loss"], first["grad_norm"]) == pytest.approx((loss, norm), rel=1e-5)  # token_loss is a float32
    assert one["exchanged"] == 0

    two = on_ranks(tmp_path, command, 2, 5, *given)  # one has three lines, the other two
    assert two[0]["weights"] == two[1]["weights"]
    assert two[0]["weights"] == pytest.approx(one["weights"], rel=1e-5, abs=1e-7)
    for rank in two:
        assert rank["exchanged"] == UPDATES  # once an update, not once a micro-batch
        for report, wanted in zip(rank["reports"], one["reports"], strict=True):
            assert report["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
            assert (report["clipped"], report["skipped"]) == (wanted["clipped"], wanted["skipped"])
    # A rank reports its part of the mean.
    for parts, wanted in zip(zip(*(rank["reports"] for rank in two), strict=True), one["reports"], strict=True):
        assert sum(part["loss"] for part in parts) == pytest.approx(wanted["loss"], rel=1e-5)


@pytest.mark.parametrize(("part", "exchanges"), [("across_ranks", 1), ("no_sync", 2)])
def test_without_it_the_gradient_is_another(
    tmp_path: Path, command, causal_lm: Path, corpus: Path, part: str, exchanges: int
) -> None:
    """The negative controls: ranks that divide by their own tokens, or exchange after each of two micro-batches.

    Four lines an update: with three and two micro-batches ranks without no_sync would wait for each other in vain.
    """
    _, norm = pooled(causal_lm, 4)
    for rank in on_ranks(tmp_path, command, 2, 4, causal_lm, corpus, tmp_path, "--without", part):
        assert rank["reports"][0]["grad_norm"] != pytest.approx(norm, rel=1e-3)
        assert rank["exchanged"] == exchanges * UPDATES
