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
from collapse_lib.metrics.words import corpus_word_types
from collapse_lib.steps.frame import Task
from collapse_lib.steps.free_text import measure_text
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
