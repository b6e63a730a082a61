"""A generation continues beginnings: pieces that are the text, losses that are generation 1's, an end only where the story has one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from collapse_lib.experiment.protocol import Protocol
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.steps.continuations import continue_beginnings, joined_pieces
from collapse_lib.steps.frame import Task
from collapse_lib.text.corpus import TokenCorpus


def test_pieces_are_tokens_and_characters_that_need_several_are_one(tokenizer):
    text = "Mia saw a ☃ at the café."
    ids = np.array(tokenizer.encode(text))
    losses = np.arange(1.0, len(ids) + 1)
    pieces, summed = joined_pieces(ids, losses, tokenizer)
    assert "".join(pieces) == text and sum(summed) == losses.sum()
    assert [piece for piece in pieces if "☃" in piece] == ["☃"] and len(pieces) == len(ids) - 2, "a snowman is three bytes"
    assert joined_pieces(ids[:0], losses[:0], tokenizer) == ([], [])


@pytest.mark.parametrize("ends", [True, False])
def test_what_is_recorded_of_a_generation(tmp_path, tokenizer, ends):
    shape = {"hidden_size": 16, "num_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2, "eos_token_id": tokenizer.eos_id}
    model, first = (GPTNeo(GPTNeoConfig(tokenizer.vocabulary, 2, **shape), seed=seed) for seed in (1, 2))
    row = [tokenizer.eos_id, *tokenizer.encode("Tom took a kite."), *([tokenizer.eos_id, 5] if ends else [])]
    text = TokenCorpus.in_memory([np.array(row, np.uint16)], tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=False)
    fields = {"corpus": {"stories": 10}, "continuations": {"beginnings": 2, "tokens": 30}, "evaluation": {"max_context": 128}}
    task = Task(Protocol.from_fields(fields), 2, "cpu", tmp_path)
    continue_beginnings(task, model, first, text, tokenizer)
    free, *given = task.record.examples["continuations"]
    assert free["beginning"] == "" and "".join(free["pieces"]) == "Tom took a kite." and free["ended"] == ends
    assert len(given) == 2 and all(one["beginning"] and 0 < len(one["pieces"]) == len(one["losses"]) <= 30 for one in given)
    written = task.record.metrics["tokens"]["value"] - len(tokenizer.encode("Tom took a kite."))
    assert (written == 2 * 30) == (not any(one["ended"] for one in given)), "what is not cut off has ended"
    none = Task(task.protocol.with_changes({"continuations.beginnings": "0", "completions.prompts": "absent.yaml"}), 2, "cpu", tmp_path)
    continue_beginnings(none, model, first, text, tokenizer)
    assert none.record.examples["continuations"] == [free], "no file of prompts is needed where none is wanted"
    ids = torch.tensor([tokenizer.eos_id, *tokenizer.encode("Tom took a kite.")])
    with torch.no_grad():
        plain = cross_entropy(first(ids[None, :-1])[0] @ first.head.T, ids[1:], reduction="none")
    assert free["losses"] == pytest.approx(plain.tolist(), abs=0.006)
