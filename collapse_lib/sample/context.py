"""Which tokens are in view when the next one is sampled: the limit, what happens when it is reached, and the start without any token."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from collapse_lib.experiment.errors import UserError

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import SamplingSettings
    from collapse_lib.model.gpt_neo import GPTNeo


def capacity(model: GPTNeo, settings: SamplingSettings, total: int) -> int:
    """Most tokens in view while ``total`` are read; ``UserError`` if the model has not as many positions."""
    most = total if settings.overflow == "extend" else min(settings.max_context, total)
    limit = model.config.max_position_embeddings
    if most > limit:
        raise UserError(f"Sampling needs {most} positions, more than the model's max_position_embeddings = {limit}.")
    return most


def hop_length(capacity: int) -> int:
    """How many of its latest tokens a full context goes on with where ``sampling.overflow`` is "hop"."""
    return max(1, capacity // 2)


def tokens_in_view(position: int, capacity: int, overflow: str) -> int:
    """How many tokens are in view when the one at ``position`` is sampled."""
    if position <= capacity or overflow == "slide":
        return min(position, capacity)
    shortest = hop_length(capacity)
    return shortest + (position - capacity - 1) % (capacity - shortest + 1)


def masked_zero_state(model: GPTNeo, width: int) -> Tensor:
    """[B, H]: what the released code's first token comes from, namely token 0 at position 1; the sequence then begins at position 0 without it."""
    device = model.head.device
    return model(torch.zeros(width, 1, dtype=torch.int64, device=device), torch.ones(1, dtype=torch.int64, device=device))[:, 0]
