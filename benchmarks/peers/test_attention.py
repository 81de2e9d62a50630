"""The three assertions of benchmarks/course as a plain pytest file beside ``attention.py``; notebooks are made from it."""

import torch
from attention import attention
from torch.nn import functional


def test_output():
    q, k, v = torch.randn(3, 2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(attention(q, k, v)[0], functional.scaled_dot_product_attention(q, k, v), atol=1e-9)


def test_rows_sum_to_one():
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.allclose(attention(q, k, k)[1].sum(-1), torch.ones(5, dtype=torch.float64), atol=1e-9)


def test_causal():
    q, k = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert not attention(q, k, k, causal=True)[1].triu(1).any()
