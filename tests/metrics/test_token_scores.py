"""Losses and entropies of tokens against softmaxes of whole rows of logits, one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics import token_scores as module
from collapse_lib.metrics.token_scores import next_token_losses_and_entropies, token_losses, token_losses_and_entropies, with_end
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.text.corpus import TokenCorpus

VOCABULARY, EOS = 200, 199
CONFIG = GPTNeoConfig(VOCABULARY, 2, 16, 4, window_size=5, max_position_embeddings=64, initializer_range=0.5, eos_token_id=EOS)
LENGTHS = (1, 2, 5, 9, 40, 9, 1, 23)


@pytest.fixture(scope="module")
def model() -> GPTNeo:
    return GPTNeo(CONFIG, seed=3)


@pytest.fixture(scope="module")
def rows() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [np.append(EOS, random.integers(0, EOS, length - 1)).astype(np.uint16) for length in LENGTHS]


@torch.no_grad()
def naive(model: GPTNeo, row: np.ndarray, max_context: int) -> tuple[list[float], list[float]]:
    losses, entropies = [], []
    for index in range(1, len(row)):
        context = torch.from_numpy(row[max(0, index - max_context) : index].astype(np.int64))[None]
        law = torch.log_softmax(model.logits(model(context)[0, -1]).double(), -1)
        losses.append(-law[int(row[index])].item())
        entropies.append(-(law.exp() * law).sum().item())
    return losses, entropies


@pytest.mark.parametrize("max_context", [4, 8, 64])
@pytest.mark.parametrize("batch_tokens", [1, 60, None])
def test_every_token_is_scored_in_order(model, rows, max_context, batch_tokens):
    losses, entropies = token_losses_and_entropies(model, rows, max_context, batch_tokens)
    for row, loss, entropy, again in zip(rows, losses, entropies, token_losses(model, rows, max_context, batch_tokens), strict=True):
        expected = naive(model, row, max_context)
        assert len(loss) == len(row) - 1
        assert loss == pytest.approx(expected[0], abs=2e-5) and entropy == pytest.approx(expected[1], abs=2e-5)
        assert again == pytest.approx(loss, abs=2e-5)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("rows_at_once", "cached"), [(512, 1 << 18), (7, 7 * 64), (1, 1)])
def test_chunks_do_not_matter(monkeypatch, scale, rows_at_once, cached):
    """From a law that is nearly uniform to one that is nearly certain, in many chunks of rows and ids."""
    monkeypatch.setattr(module, "CPU_ROWS", rows_at_once)
    monkeypatch.setattr(module, "CACHED_LOGITS", cached)
    random = torch.Generator().manual_seed(1)
    hidden, head = torch.randn(30, 12, generator=random) * scale, torch.randn(777, 12, generator=random)
    targets = torch.randint(777, (30,), generator=random)
    law = torch.log_softmax(hidden.double() @ head.double().T, -1)
    losses, entropies = next_token_losses_and_entropies(hidden, head, targets)
    assert torch.allclose(losses.double(), -law[torch.arange(30), targets], rtol=1e-5, atol=1e-4)
    assert torch.allclose(entropies.double(), -(law.exp() * law).sum(-1), rtol=1e-4, atol=1e-4)


def test_complete_stories_are_scored_to_their_ends(model, rows):
    stories = TokenCorpus.in_memory(rows, EOS, VOCABULARY, rows_are_complete=True)
    assert [row.tolist() for row in with_end(stories)] == [[*row, EOS] for row in rows]
    with pytest.raises(UserError, match="complete stories"):
        with_end(TokenCorpus.in_memory(rows, EOS, VOCABULARY, rows_are_complete=False))


def test_more_context_than_positions_is_refused(model, rows):
    with pytest.raises(UserError, match=r"evaluation.max_context is 65, but the model has only 64 positions"):
        token_losses(model, rows, 65)
