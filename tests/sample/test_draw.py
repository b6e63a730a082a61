"""Drawing a token, against probabilities in fp64 and transformers' truncations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from collapse_lib.sample.draw import TILE, TiledHead, end_of_text, inverse_cdf, restrict, row_uniforms


def test_inverse_cdf_is_exact_in_the_tail() -> None:
    """A running sum kept in fp32 strays by more than the probability of most ids; this one must not."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 50257 + (-50257 % TILE), generator=generator) * 2
    logits[:, 50257:] = -math.inf
    edges = F.pad(logits.double().softmax(-1).cumsum(-1)[0], (1, 0))  # id i has the uniforms from edges[i] to edges[i + 1]
    uniform = torch.cat([torch.rand(500, generator=generator, dtype=torch.float64), 1 - torch.logspace(-4, -15, 100, dtype=torch.float64)])

    def strays(found: torch.Tensor) -> float:
        return (edges[found] - uniform).clamp_min(0).maximum(uniform - edges[found + 1]).max().item()

    assert strays(inverse_cdf(logits.expand(len(uniform), -1), uniform)) < 3e-8
    naive = torch.searchsorted(logits[0].softmax(-1).cumsum(-1), uniform.float(), right=True).clamp_max(50256)
    assert strays(naive) > 6e-8


@pytest.mark.parametrize("vocabulary", [50257, 9001])
def test_the_tiled_head_samples_as_if_all_logits_were_there(vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp64 probabilities: no uniform, in the tail either, falls farther from its id than rounding, whatever the chunks."""
    generator = torch.Generator().manual_seed(3)
    head, hidden = torch.randn(vocabulary, 16, generator=generator), torch.randn(40, 16, generator=generator) * 0.7
    p = (hidden.double() @ head.double().T).softmax(-1)
    edges = F.pad(p.cumsum(-1), (1, 0))
    tail = 1 - torch.logspace(-3, -15, 20, dtype=torch.float64)
    uniform = torch.cat([torch.rand(18, generator=generator, dtype=torch.float64), torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), tail])
    for cached in (1, 2**14, 2**18, 2**30):
        monkeypatch.setattr("collapse_lib.sample.draw.CHUNK_LOGITS", cached)
        found = TiledHead(head).sample(hidden, uniform)
        assert found.max() < vocabulary and (p.gather(1, found[:, None]) > 0).all()
        low, high = edges.gather(1, found[:, None])[:, 0], edges.gather(1, found[:, None] + 1)[:, 0]
        assert (low - uniform).maximum(uniform - high).max() < 2e-6  # what fp32 logits can be off by
    assert (TiledHead(head).logits(hidden)[:, vocabulary:] == -math.inf).all()


def test_logits_outside_the_range_of_exp_are_sampled_exactly() -> None:
    """Rows whose logits all lie beyond what exp can take in fp32, among ordinary ones, which they must not touch."""
    vocabulary, hidden = 9001, torch.randn(40, 8, generator=torch.Generator().manual_seed(6))
    head = torch.randn(vocabulary, 8, generator=torch.Generator().manual_seed(7))
    head[:, 0] = 1  # so that a state's first number is added to all its logits
    hidden[:, 0] = 0
    uniform = torch.rand(40, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    ordinary = TiledHead(head).sample(hidden, uniform)
    for row, offset in enumerate((90, -90, 300, -300, 1000, -1000)):
        hidden[row, 0] = offset
    p = (hidden.double() @ head.double().T).softmax(-1)
    edges = F.pad(p.cumsum(-1), (1, 0))
    found = TiledHead(head).sample(hidden, uniform)
    low, high = edges.gather(1, found[:, None])[:, 0], edges.gather(1, found[:, None] + 1)[:, 0]
    assert (low - uniform).maximum(uniform - high).max() < 3e-4  # a logit of 1000 is rounded by 3e-5, and a few of them add up
    assert (found[6:] == ordinary[6:]).all()


def test_inverse_cdf_never_takes_an_impossible_id() -> None:
    generator = torch.Generator().manual_seed(2)
    u = torch.tensor([0.0, 2**-53, 2**-1074, 0.5, 1 - 2**-53, 1 - 2**-52], dtype=torch.float64)
    u = torch.cat([u, torch.rand(500, generator=generator, dtype=torch.float64)])
    for possible in (1, 2, 5, 300):
        logits = torch.full((len(u), 5 * TILE), -math.inf)
        where = torch.randperm(5 * TILE, generator=generator)[:possible]
        logits[:, where] = torch.randn(len(u), len(where), generator=generator) * 30  # some underflow to probability zero too
        found = inverse_cdf(logits, u)
        assert (logits.softmax(-1).gather(-1, found[:, None]) > 0).all()


def test_inverse_cdf_holds_at_the_edges_of_tiles() -> None:
    """There rounding could carry a uniform past the last id of its tile, and into an id that it must not take."""
    logits = torch.randn(1, 80 * TILE, generator=torch.Generator().manual_seed(5)) * 10
    p = logits.softmax(-1)
    edges = p.view(80, TILE).sum(-1).cumsum(0, dtype=torch.float64)
    at = (edges / edges[-1])[:-1]
    uniform = torch.cat([at, at.nextafter(torch.zeros_like(at)), at.nextafter(torch.ones_like(at))])
    found = inverse_cdf(logits.expand(len(uniform), -1), uniform)
    assert (p[0, found] > 0).all()
    past = (found // TILE).view(3, 79) - torch.arange(79)  # at an edge, rounding may choose the tile on either side
    assert ((past == 0) | (past == 1)).all()


def test_uniforms_are_uniform_and_apart() -> None:
    u = row_uniforms(3, range(400), 50)
    assert stats.kstest(u.ravel(), "uniform").pvalue > 1e-3
    assert len(np.unique(u)) == u.size
    assert np.array_equal(row_uniforms(3, [17], 20), u[17:18, :20])
    assert abs(np.corrcoef(u[:-1].ravel(), u[1:].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize(
    "fields", [{"top_k": 5}, {"top_k": 1000}, {"top_p": 0.5}, {"top_p": 0.97}, {"temperature": 0.6}, {"temperature": 1.7, "top_k": 40, "top_p": 0.8}]
)
def test_restrictions_are_transformers(fields: dict) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(300, 512, generator=torch.Generator().manual_seed(4)) * 3
    logits -= logits.amax(-1, keepdim=True)  # as a temperature's logits are, which changes no probability
    expected = logits
    if "temperature" in fields:
        expected = TemperatureLogitsWarper(fields["temperature"])(None, expected)
    if "top_k" in fields:
        expected = TopKLogitsWarper(fields["top_k"])(None, expected)
    if "top_p" in fields:
        expected = TopPLogitsWarper(fields["top_p"])(None, expected)
    assert torch.equal(restrict(logits, **fields), expected)


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-38, 1e-45, 1e-300, 5e-324])
def test_a_tiny_temperature_takes_the_likeliest(temperature: float) -> None:
    logits = torch.randn(300, 512, generator=torch.Generator().manual_seed(4)) * 100
    logits[:, 500:] = -math.inf
    found = restrict(logits, temperature)
    assert not found.isnan().any() and (found.amax(-1) == 0).all()
    assert torch.equal(inverse_cdf(found, torch.linspace(0, 1 - 2**-53, 300, dtype=torch.float64)), logits.argmax(-1))


def test_a_row_ends_with_the_first_end_that_it_samples() -> None:
    """Rows: going on, ending now, ended before, and with an end inside its prompt, which is none."""
    ended = torch.tensor([False, False, True, False])
    tokens = end_of_text(torch.tensor([5, 4, 7, 4]), ended, torch.tensor([True, True, True, False]), eos=4)
    assert tokens.tolist() == [5, 4, 4, 4]
    assert ended.tolist() == [False, True, True, False]
