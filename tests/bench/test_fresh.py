"""Fresh values keep what structure needs kept and nothing of the data."""

from __future__ import annotations

import pytest
import torch

from llmkata.bench.fresh import fresh


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_same_mean_and_deviation_other_values(generator) -> None:
    old = torch.randn(400, 50) * 3 + 1
    new = fresh(old, generator)
    assert new.mean().item() == pytest.approx(1, abs=0.1) and new.std().item() == pytest.approx(3, rel=0.05)
    assert not (new == old).any()
    assert torch.corrcoef(torch.stack([old.flatten(), new.flatten()]))[0, 1].abs() < 0.05


def test_one_sign_stays(generator) -> None:
    for sign in (1, -1):
        old = sign * torch.rand(10_000)
        new = fresh(old, generator)
        assert (new * sign > 0).all() and new.mean().item() == pytest.approx(old.mean().item(), rel=0.05)
        assert not (new == old).any()


def test_zeros_infinities_and_constants_stay(generator) -> None:
    mask = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    assert torch.equal(fresh(mask, generator), mask)
    assert torch.equal(fresh(torch.ones(4), generator), torch.ones(4))
    padded = torch.tensor([1.0, -2.0, 0.0, float("nan")])
    new = fresh(padded, generator)
    assert new[2] == 0 and new[3].isnan() and not torch.equal(new[:2], padded[:2])


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_other_dtypes_are_copied(generator, dtype) -> None:
    old = torch.randint(0, 2, (4, 4)).to(dtype)
    new = fresh(old, generator)
    assert torch.equal(new, old) and new.data_ptr() != old.data_ptr()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("layout", [
    lambda t: t, lambda t: t.t(), lambda t: t[1:, ::2], lambda t: t[:1].expand(5, -1), lambda t: t.unfold(0, 3, 1),
    lambda t: t[:0]])
def test_layout_is_kept(generator, dtype, layout) -> None:
    old = layout(torch.randn(6, 8, dtype=torch.float64).to(dtype))
    new = fresh(old, generator)
    assert (new.dtype, new.shape, new.stride(), new.storage_offset()) == (
        dtype, old.shape, old.stride(), old.storage_offset())
    assert new.untyped_storage().nbytes() == old.untyped_storage().nbytes()
    assert old.numel() == 0 or not torch.equal(new, old)


def test_views_of_one_storage_stay_together(generator) -> None:
    whole, memo = torch.randn(4, 4), {}
    new = [fresh(t, generator, memo) for t in (whole, whole[1:])]
    assert torch.equal(new[0][1:], new[1]) and new[0].untyped_storage()._cdata == new[1].untyped_storage()._cdata
    assert fresh(whole.requires_grad_(), generator).requires_grad
