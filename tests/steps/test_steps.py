"""What a step says of itself is what it does: its call, what it reads, and its work as a function of opened things."""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest

from collapse_lib import steps
from collapse_lib.experiment.lineage import STEPS, reads_of
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.metrics.entropy import entropy
from collapse_lib.metrics.words import corpus_word_types
from collapse_lib.model.gpt_neo import GPTNeo, GPTNeoConfig
from collapse_lib.steps.frame import Task
from collapse_lib.steps.free_text import REFERENCES, first_tokens, measure_text
from collapse_lib.steps.texture import look_at_text
from collapse_lib.text.corpus import TokenCorpus

NOTEBOOKS = Path(__file__).parents[2] / "notebooks" / "steps"


def test_file_step_notebook_and_function_have_one_name():
    assert set(STEPS) == set(steps.__all__) == {file.stem for file in NOTEBOOKS.glob("*.ipynb")}


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_signature_is_its_call(name):
    step = getattr(steps, name)
    arguments = ["run"] + ["generation"] * (name != "corpus") + ["device"] * STEPS[name].on_device
    arguments += ["processes"] * STEPS[name].divisible
    assert list(inspect.signature(step).parameters) == arguments
    assert inspect.signature(step).return_annotation == "Results"
    assert all(part in " ".join(step.__doc__.split()) for part in ("Returns what was measured", "Example: ``steps."))


@pytest.mark.parametrize("name", [name for name in STEPS if name != "compose"])  # whose inputs are the texts that the regime asks for
def test_a_steps_work_is_given_what_the_table_says(name):
    """The work of ``gpt_eval`` is given somebody to ask as well."""
    functions = inspect.getmembers(importlib.import_module(f"collapse_lib.steps.{name}"), inspect.isfunction)
    taking = [{*inspect.signature(function).parameters} - {"ask"} - optional(function) for _, function in functions]
    assert {"task", *(read.argument for read in reads_of(name, Protocol.from_fields({"corpus": {"stories": 10}}), 2))} in taking


def optional(function) -> set[str]:
    """What a function is given under some protocols only."""
    parameters = inspect.signature(function).parameters.items()
    return {name for name, parameter in parameters if parameter.default is None or parameter.kind is parameter.VAR_KEYWORD}


def test_a_step_works_without_a_run(tmp_path, tokenizer, stories):
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(stories)]
    text = TokenCorpus.in_memory(rows, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True)
    task = Task(Protocol.from_fields({"corpus": {"stories": 10}}), 1, "cpu", tmp_path)
    measure_text(task, text, text, corpus_word_types(text, tokenizer), tokenizer)
    assert task.record.metrics["oov_initial_occurrences"]["value"] == 0
    assert json.dumps(task.record.metrics) and list(tmp_path.iterdir()) == []


def test_initial_stories_are_measured_once_on_as_much_text(tmp_path, tokenizer, stories):
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(stories)]
    initial, text = (
        TokenCorpus.in_memory(part, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True) for part in (rows, rows[: len(rows) // 2])
    )
    words, protocol = corpus_word_types(initial, tokenizer), Protocol.from_fields({"corpus": {"stories": 10}})
    measured = {}
    for generation in (1, 2):
        task = Task(protocol, generation, "cpu", tmp_path)
        measure_text(task, text, initial, words, tokenizer)
        measured[generation] = task.record.metrics
    # The text is the first half of the initial stories, so that it has what as many tokens of these have.
    for name in REFERENCES:
        assert measured[1][f"initial_{name}"]["value"] == measured[1][name]["value"] and f"initial_{name}" not in measured[2]
    assert measured[1]["entropy"]["value"] != entropy(initial.token_counts())


def test_the_first_tokens_are_whole_rows_and_at_least_one(tokenizer, stories):
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(stories[:5])]
    text = TokenCorpus.in_memory(rows, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True)
    two = len(rows[0]) + len(rows[1])
    assert [first_tokens(text, tokens).rows for tokens in (1, two - 1, two, two + 1)] == [1, 1, 2, 2]
    assert first_tokens(text, text.real_tokens) is text


def test_real_stories_have_their_texture_measured_once_and_alike(tmp_path, tokenizer, stories):
    """The generation's text is the validation stories themselves, so that both have the same."""
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(stories)]
    text = TokenCorpus.in_memory(rows, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True)
    settings = {"rows": 40, "stories": len(stories), "block_tokens": 400, "block_stories": 10}
    protocol = Protocol.from_fields({"corpus": {"stories": 10}, "texture": settings, "evaluation": {"max_context": 32}})
    model = GPTNeo(GPTNeoConfig(vocab_size=tokenizer.vocabulary, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=4), seed=1)
    measured = {}
    for generation in (1, 2):
        task = Task(protocol, generation, "cpu", tmp_path)
        look_at_text(task, model, text, model, text, text, tokenizer)
        measured[generation] = task.record.metrics
    first = measured[1]
    assert [first[f"real_{name}"]["value"] for name in ("self_bleu", "compression_ratio")] == [
        first[name]["value"] for name in ("self_bleu", "compression_ratio")
    ]
    assert first["compared_stories"] | {"definition": ""} == {
        "value": len(stories),
        "unit": "stories",
        "definition": "",
        "counts": {"tokens": text.tokens - text.rows},
    }
    assert {"real_block_distinct_2", "real_text_distance"} <= first.keys() and not any(name.startswith("real_") for name in measured[2])
    assert first["real_text_distance"]["counts"]["blocks"] == len(stories) // 2 // 10


def test_too_few_stories_leave_out_what_compares_blocks_of_them(tmp_path, tokenizer, stories):
    rows = [np.array([tokenizer.eos_id, *ids], np.uint16) for ids in tokenizer.encode_batch(stories)]
    text, few = (TokenCorpus.in_memory(part, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=True) for part in (rows, rows[:5]))
    model = GPTNeo(GPTNeoConfig(vocab_size=tokenizer.vocabulary, max_position_embeddings=64, hidden_size=16, num_layers=2, num_heads=4), seed=1)
    for validation, compared in ((few, 20), (text, 5)):
        settings = {"rows": 40, "stories": compared, "block_tokens": 400, "block_stories": 10}
        protocol = Protocol.from_fields({"corpus": {"stories": 10}, "texture": settings, "evaluation": {"max_context": 32}})
        task = Task(protocol, 1, "cpu", tmp_path)
        look_at_text(task, model, text, model, text, validation, tokenizer)
        found = task.record.metrics
        assert ("self_bleu" in found) == (compared == 20) and not {"text_distance", "real_text_distance", "real_self_bleu"} & found.keys()
