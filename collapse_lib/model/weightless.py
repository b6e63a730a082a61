"""A model that is asked for its counts alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig


def without_weights(config: GPTNeoConfig) -> GPTNeo:
    """A GPT-Neo that takes no memory: it knows its parameters, FLOP and bytes, and cannot compute."""
    import torch

    from collapse_lib.model.gpt_neo import GPTNeo

    with torch.device("meta"):
        return GPTNeo(config, seed=None)
