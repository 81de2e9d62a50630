"""3.3 at real scale: torchrun starts the processes, which meet over gloo on CPUs and over nccl where there are GPUs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from .conftest import SOLUTIONS

PROGRAM = SOLUTIONS / "module3/distributed_training.py"
STEPS = 5  # of 16 examples each: an epoch of the corpus is one step


def losses(tmp_path: Path, command, processes: int, gpus: bool, *args: object) -> list[float]:
    """The losses that all ranks report after the command of the brief; ranks, backend and devices are as they should be."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes) if processes else ()
    printed = command(*launcher, PROGRAM, *args, "--steps", STEPS, gpus=gpus)
    report = json.loads((tmp_path / "ddp_run.json").read_text("utf-8"))
    world = processes or 1
    assert f"{world} ranks, {STEPS} steps" in printed
    assert report["world_size"] == world
    backend, devices = ("nccl", [f"cuda:{r}" for r in range(world)]) if gpus else ("gloo", ["cpu"] * world)
    for rank, (told, device) in enumerate(zip(report["ranks"], devices, strict=True)):
        assert (told["rank"], told["local_rank"], told["backend"], told["device"]) == (rank, rank, backend, device)
        assert told["losses"] == report["ranks"][0]["losses"]
        assert told["collectives"] == STEPS  # one bucket
    return report["ranks"][0]["losses"]


def test_two_processes_are_one(tmp_path: Path, command, causal_lm: Path, corpus: Path) -> None:
    given = ("--model", causal_lm, "--text", corpus)
    # Without torchrun: all examples on one process.
    one = losses(tmp_path, command, 0, False, *given, "--batch-size", 8)
    assert one[-1] < one[0]
    for impl in ("bucketed", "torch"):
        two = losses(tmp_path, command, 2, False, "--impl", impl, *given, "--batch-size", 4)
        assert two == pytest.approx(one, rel=1e-4), impl


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_nccl(tmp_path: Path, command, causal_lm: Path, corpus: Path) -> None:
    given = ("--model", causal_lm, "--text", corpus, "--batch-size", 4)
    processes = min(torch.cuda.device_count(), 2)
    on_cpus = losses(tmp_path, command, processes, False, *given)
    for impl in ("bucketed", "torch"):
        on_gpus = losses(tmp_path, command, processes, True, "--impl", impl, *given)
        assert on_gpus == pytest.approx(on_cpus, rel=1e-2), impl
