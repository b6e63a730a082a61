"""Sections 5.3.1 and 5.3.2: entropy, non-words and repetition of the text that a model wrote, and how long its stories are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

# What the initial stories have of them stands on the figures. All depend on the amount of text: it has to be the same.
REFERENCES = ("entropy", "oov_lexicon_occurrences", "oov_lexicon_rate", *(f"distinct_{n}" for n in range(1, 5)), "repeated")


def free_text(run: Run, generation: int) -> Results:
    """Entropy, non-words, repetition and story lengths of the text of ``generation`` (sections 5.3.1 and 5.3.2).

    Reads that text, the initial training stories and their words, and the tokeniser. Returns what was measured: ``entropy`` (nats),
    ``oov_lexicon_occurrences``, ``distinct_2``, ...; in generation 1 also what the initial stories have of them (``initial_entropy``, ...).

    Example: ``steps.free_text(Run.open("demo"), 1)["metrics"]["entropy"]["value"]``
    """
    return perform(measure_text, "free_text", run, generation)


def measure_text(task: Task, text: TokenCorpus, initial_text: TokenCorpus, words: set[str], tokenizer: Tokenizer) -> None:
    """The work of step ``free_text``."""
    from collapse_lib.metrics.entropy import padded_metrics
    from collapse_lib.metrics.free_text import free_text as measure
    from collapse_lib.metrics.story_lengths import story_lengths

    settings, record = task.protocol.sampling, task.record
    metrics, record.examples = measure(text, tokenizer, words, initial_text.token_counts())
    metrics |= padded_metrics(text, settings.length)
    record.metrics = metrics | story_lengths(text, initial_text, settings.length, continues=settings.after_eos == "continue")
    if task.generation == 1:  # the same for all generations
        initial, _ = measure(first_tokens(initial_text, text.real_tokens), tokenizer, words)
        of = "of as many tokens of initial stories, or all: "
        record.metrics |= {f"initial_{name}": initial[name] | {"definition": of + initial[name]["definition"]} for name in REFERENCES}


def first_tokens(text: TokenCorpus, tokens: int) -> TokenCorpus:
    """The first whole rows of a text, at most so many tokens of them, but one row at least; the text itself if it has no more."""
    import numpy as np

    if text.real_tokens <= tokens:
        return text
    rows = max(1, int(np.searchsorted(np.cumsum(text.row_lengths()), tokens, side="right")))
    return type(text).in_memory(list(text.iter_rows(0, rows)), text.eos_id, text.vocabulary, text.rows_are_complete)
