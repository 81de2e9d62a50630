"""Sentences on wrong answers that are no known mistake: each on the mistake it is for, none on work that differs by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from llmkata.checks.symptoms import raised_symptom, symptom

RNG = np.random.default_rng(3)
W = RNG.normal(size=(2, 4, 4))
INF = float("inf")


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def causal(rows: int, columns: int, shift: int = 0, *, corner: str = "bottom right") -> np.ndarray:
    """Causal weights over random scores; ``shift`` more keys are seen than may be."""
    i, j = np.mgrid[:rows, :columns]
    seen = j <= i + (columns - rows if corner == "bottom right" else 0) + shift
    scores = np.where(seen, np.random.default_rng(rows).normal(size=(2, rows, columns)), -INF)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(softmax(np.where(seen.any(-1, keepdims=True), scores, -1e300)) * seen)


def row_of_nan() -> np.ndarray:
    out = W.copy()
    out[1, 2] = np.nan
    return out


def one_nan() -> np.ndarray:
    out = W.copy()
    out[0, 3, 1] = np.nan
    return out


def infinite() -> np.ndarray:
    out = W.copy()
    out[0, 0, 0] = INF
    return out


@pytest.mark.parametrize(
    ("got", "want", "says"),
    [
        (np.swapaxes(W, -1, -2), W, "the last two axes swapped"),
        (torch.tensor(W).transpose(0, 1).contiguous()[:2, :2], torch.tensor(W)[:2, :2], "axes 0 and 1 swapped"),
        (W[..., :3].swapaxes(1, 2), W[..., :3], "Axes 1 and 2 are swapped"),
        (row_of_nan(), W, "NaN first appears at row (1, 2), and fills it: a softmax over a row of -inf"),
        (one_nan(), W, "NaN first appears at row (0, 3): 0/0"),
        (np.full_like(W, np.nan), W, "All of it is NaN"),
        (infinite(), W, "overflows"),
        (W, W.astype(np.float32), "Expected float32, got float64: np.zeros"),
        (torch.tensor(W), torch.tensor(W).float(), "Expected float32, got float64: a float64 array or tensor"),
        (torch.tensor(W).float(), torch.tensor(W), "default dtype"),
        (torch.tensor(W).float(), torch.tensor(W).bfloat16(), "not rounded to the inputs' bfloat16"),
        (np.ones(4, np.int64), np.ones(4), "integers went in"),
        (torch.ones(4), torch.ones(4, dtype=torch.bool), "boolean mask"),
        (torch.empty(2, 3, device="meta"), torch.ones(2, 3), "lies on meta, not on cpu: a tensor you create needs device"),
        (causal(4, 4, 1), causal(4, 4), "one key too many, the next one: off by one"),
        (causal(3, 5, 1), causal(3, 5), "one key too many"),
        (causal(4, 4, -1), causal(4, 4), "No query sees its own position: off by one"),
        (causal(3, 5, corner="top left"), causal(3, 5), "top left corner"),
        (causal(4, 4).swapaxes(1, 2), causal(4, 4), "wrong way round"),
        (softmax(W), causal(4, 4), "Nothing is masked"),
        (np.arange(4) <= np.arange(4)[:, None] + 1, np.arange(4) <= np.arange(4)[:, None], "one key too many"),
        (softmax(W, -2), softmax(W), "sums to 1 over axis -2"),
        (2.5 * W, W, "2.5 times expected"),
        (-W, W, "opposite sign"),
        (W + 0.125, W, "by the same number everywhere"),
        (np.zeros_like(W), W, "zero everywhere"),
        (np.roll(W, 1, 1), W, "shifted by one along axis 1"),
        (W[:, ::-1], W, "backwards along axis 1"),
        (W[:, :3], W, "One too few along axis 1"),
        (W[:, :1], W[:, 0], "size 1 is left over"),
        (W[:, 0], W[:, :1], "size 1 is missing"),
        (W[0], W[0, 0], "broadcast"),
        (W[0], W, "leading (batch) axes are gone"),
        (W.astype(np.float32).astype(np.float64), W, "seven digits"),
        (torch.tensor(W).bfloat16().double(), torch.tensor(W), "half precision"),
        ((W, np.swapaxes(W, -1, -2)), (W, W), "the last two axes swapped"),
    ],
)  # fmt: skip
def test_the_sentence_that_helps(got, want, says):
    assert says in symptom(got, want)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (W + RNG.normal(size=W.shape), W),
        (W, W),
        (np.float64(2.0), np.float64(1.0)),
        (np.array([2.0, 2.0]), np.array([1.0, 1.0])),
        (RNG.normal(size=(5, 7)), RNG.normal(size=(3, 2))),
        (softmax(W + RNG.normal(size=W.shape)), softmax(W)),
        (causal(4, 4) * [[[1.0], [0.5], [0.25], [2.0]]], causal(4, 4)),
        ("text", W),
        (None, (W, W)),
    ],
)
def test_nothing_is_said_where_nothing_is_recognised(got, want):
    assert symptom(got, want) == ""


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (lambda: torch.ones(2, 3) @ torch.ones(2, 3), "inner dimensions"),
        (lambda: np.ones((2, 3)) @ np.ones((2, 3)), "inner dimensions"),
        (lambda: torch.ones(2, 3) + torch.ones(2), "matched from the right"),
        (lambda: np.ones((2, 3)) + np.ones(2), "matched from the right"),
        (lambda: torch.ones(2, 3) @ torch.ones(3, 2).double(), "Two dtypes meet"),
        (lambda: torch.ones(2).sum().backward(), "The graph was cut"),
        (lambda: torch.ones(2, requires_grad=True).add_(1), "overwritten"),
        (lambda: torch.ones(2, requires_grad=True).numpy(), ".detach()"),
        (lambda: torch.ones(2, 3).T.view(6), "reshape"),
    ],
)
def test_errors_of_the_libraries(code, says):
    with pytest.raises((RuntimeError, ValueError)) as caught:
        code()
    assert says in raised_symptom(str(caught.value))


def test_two_devices():
    message = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
    assert "device=x.device" in raised_symptom(message)


def test_other_errors_are_left_alone():
    assert raised_symptom("list index out of range") == ""


def test_an_object_of_the_learners_is_not_asked():
    class Trap:
        @property
        def shape(self):
            raise AssertionError("asked")

    assert symptom(Trap(), W) == ""
