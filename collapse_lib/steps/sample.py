"""Sections 3.1.1 and 5.1.2: a model writes the next generation's corpus, sampling its own distribution from an empty context."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from collapse_lib.experiment.artefacts import remove
from collapse_lib.experiment.files import read_json, sealed, write_json
from collapse_lib.experiment.run import Run
from collapse_lib.steps.corpus import excerpts
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.tokenizer import Tokenizer


def sample(run: Run, generation: int, device: str = "auto", processes: int = 1) -> Results:
    """Have the model of ``generation`` write as much text as the protocol says.

    Reads the model and the tokeniser; writes ``corpus/``. Returns what was measured: ``sequences``, ``tokens``, ``stories``, ``tokens_per_second``.

    Example: ``steps.sample(Run.open("demo"), 1)["examples"]["samples"][0]``
    """
    return perform(write_text, "sample", run, generation, device, processes)


def write_text(task: Task, model: GPTNeo, tokenizer: Tokenizer) -> None:
    """The work of step ``sample``: shards that an interruption left are taken over if they come from this model and these settings."""
    from collapse_lib.text.corpus import TokenCorpus

    record, folder = task.record, task.path("corpus")
    sequences = task.protocol.regime.regime.tokens_to_sample(task.protocol.sampling.sequences)  # as many times more rows as tokens are wanted
    statistics = sample_into(folder, task, model, tokenizer, "sample", sequences)
    if not task.group.is_main:
        return
    task.record_output("corpus")
    record.measure("sequences", statistics["sequences"], "sequences", "independent sequences sampled")
    record.measure("tokens", statistics["tokens"], "tokens", "tokens sampled, given start tokens not counted")
    record.measure("stories", statistics["stories"], "stories", "stories that the model brought to an end")
    rate = round(statistics["tokens_per_second"], 1)
    record.measure("tokens_per_second", rate, "tokens/s", "tokens sampled a second since the last interruption, if any")
    record.examples["samples"] = excerpts(TokenCorpus.open(folder), tokenizer)


def sample_into(folder: Path, task: Task, model: GPTNeo, tokenizer: Tokenizer, purpose: str, sequences: int) -> dict[str, float]:
    """Sample a corpus into a folder, going on from the shards that an interruption left if they come from these inputs and settings."""
    from collapse_lib.model.precision import dtype_name, product_dtype
    from collapse_lib.sample.generate import sample_corpus
    from collapse_lib.text.corpus import CorpusWriter

    settings = task.protocol.sampling.model_copy(update={"sequences": sequences})
    dtype = product_dtype(task.protocol.training.precision, model.head.device)
    task.record.products = dtype_name(dtype)
    made_from = task.made_from | {"products": task.record.products}  # shards of other products follow another law
    if task.group.is_main and read_json(folder / "made_from.json") != made_from:
        remove(folder)
        write_json(folder / "made_from.json", made_from)
    task.group.wait()
    origin, has_start = sealed(made_from)["sha256"], settings.start == "endoftext"
    with CorpusWriter(folder, tokenizer.eos_id, tokenizer.vocabulary, rows_are_complete=False, has_start=has_start, origin=origin) as writer:
        return sample_corpus(model, settings, task.seed(purpose), writer, dtype, task.group)
