"""A model's folder as other programs want it: transformers' pipelines and evaluation harnesses open it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from collapse_lib.experiment.files import write_json

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.tokenizer import Tokenizer


def save(model: GPTNeo, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights and configuration (``GPTNeo.save_pretrained``), the tokeniser's files and ``generation_config.json``.

    The last has text drawn from the model's own distribution, which transformers' defaults would cut and sharpen.
    """
    model.save_pretrained(folder)
    complete(folder, tokenizer, model.config.max_position_embeddings)


def complete(folder: Path, tokenizer: Tokenizer, positions: int) -> None:
    """Write what ``save`` writes beside weights and configuration; ``positions`` is the most tokens that the model can read."""
    tokenizer.save(folder)
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tokenizer.eos_id)
    sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_length": positions}
    write_json(folder / "generation_config.json", special | sampling)
