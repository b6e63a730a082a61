"""The narrow heads' attention against the same written out plainly."""

from __future__ import annotations

import math

import pytest
import torch

from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig, band_mask
from collapse_lib.model.narrow_attention import HEADS, QUERIES, narrow_attention


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int) -> torch.Tensor:
    scores = (q @ k.transpose(2, 3)).masked_fill(~band_mask(q.shape[2], window, q.device), -math.inf)
    return torch.softmax(scores, -1) @ v


@pytest.mark.parametrize("length", [1, 3, QUERIES, QUERIES + 1, 3 * QUERIES - 5])
@pytest.mark.parametrize("window", [1, 5, QUERIES, QUERIES + 7, 1000])
def test_values_and_gradients(length: int, window: int) -> None:
    random = torch.Generator().manual_seed(length * 1000 + window)
    inputs = [torch.randn(3, 6, length, 4, generator=random, dtype=torch.float64, requires_grad=True) for _ in range(3)]  # 18 heads: 16 and 2
    assert inputs[0].shape[0] * inputs[0].shape[1] > HEADS
    weights = torch.randn(3, 6, length, 4, generator=random, dtype=torch.float64)
    found, expected = narrow_attention(*inputs, window), plain(*inputs, window)
    torch.testing.assert_close(found, expected)
    for one, other in zip(torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True):
        torch.testing.assert_close(one, other)


def test_no_token_sees_what_comes_later() -> None:
    q, k, v = (torch.randn(1, 2, 100, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
    before = narrow_attention(q, k, v, 30)[:, :, :70]
    k[:, :, 70:], v[:, :, 70:] = 7.0, -7.0
    torch.testing.assert_close(narrow_attention(q, k, v, 30)[:, :, :70], before, rtol=0, atol=0)


def test_the_1m_models_heads_take_this_path_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """And give what torch's fused attention gives."""
    config = GPTNeoConfig(50, 2, 64, 16, window_size=20, max_position_embeddings=128, initializer_range=0.3)
    model, tokens = GPTNeo(config, seed=1), torch.randint(50, (2, 100), generator=torch.Generator().manual_seed(0))
    found = model(tokens)
    monkeypatch.setattr("collapse_lib.model.gpt_neo.NARROW", 0)
    fused = model(tokens)
    assert not torch.equal(found, fused)
    torch.testing.assert_close(found, fused, rtol=1e-4, atol=1e-4)
