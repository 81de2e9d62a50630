"""Record a piece of work, replay it on fresh inputs, and compute what it should give there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkata.bench.fresh import fresh
from llmkata.bench.replay import run
from llmkata.inside.recorder import Recorder


def _flat(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in _flat(item)]


@pytest.fixture
def record() -> Callable[..., dict[str, Any]]:
    """``record(work, *inputs)``: the program of ``work(*inputs)``; inputs are named "0", "1", ..."""
    def record(work: Callable[..., Any], *inputs: torch.Tensor) -> dict[str, Any]:
        recorder = Recorder(work.__code__.co_filename)
        for number, tensor in enumerate(inputs):
            recorder.input(tensor, str(number))
        with recorder:
            result = work(*inputs)
        for tensor in _flat(result):
            recorder.output(tensor)
        return recorder.finish()
    return record


@pytest.fixture
def replayed(record: Callable[..., dict[str, Any]]) -> Callable[..., SimpleNamespace]:
    """``replayed(work, *inputs)``: ``work`` recorded on ``inputs`` and replayed on others.

    Gives ``total``, ``segments``, ... as ``run`` does, with counts as attributes, ``outputs``, and ``want``: what
    ``truth`` (default: ``work`` itself) computes on the inputs of the replay.
    """
    def replayed(work: Callable[..., Any], *inputs: torch.Tensor, truth: Callable[..., Any] | None = None,
                 measure: tuple[str, ...] = ()) -> SimpleNamespace:
        program = record(work, *inputs)
        generator, memo = torch.Generator().manual_seed(11), {}
        new = [fresh(tensor, generator, memo) for tensor in inputs]
        result = SimpleNamespace(**run(program, {str(n): t for n, t in enumerate(new)}, measure=measure))
        result.program = program
        result.total = SimpleNamespace(**result.total)
        result.segments = {name: SimpleNamespace(**counts) for name, counts in result.segments.items()}
        result.want = _flat((truth or work)(*new))
        return result
    return replayed


@pytest.fixture
def right() -> Callable[[SimpleNamespace], bool]:
    """Whether a replay gave what the work gives on the same inputs."""
    def right(result: SimpleNamespace) -> bool:
        return all(torch.allclose(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
                   for got, want in zip(result.outputs, result.want, strict=True))
    return right
