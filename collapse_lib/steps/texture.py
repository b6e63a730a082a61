"""The text of a generation as a whole: how much its context decides, how diverse it is, and how generation 1 sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import TextureSettings
    from collapse_lib.metrics.metric import Metric
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer


def texture(run: Run, generation: int, device: str = "auto") -> Results:
    """What becomes of the text of ``generation``: does it dissolve, does it fixate?

    Reads the models and texts of this generation and of the first, the validation stories and the tokeniser. Returns what was measured:
    ``context_information``, ``conditional_entropy`` (nats), ``block_distinct_2``, ``self_bleu``, ``compression_ratio``, ``text_distance``, and in
    ``series`` the histogram of likelihoods under generation 1. Generation 1 measures the validation stories, too (``real_self_bleu``, ...).

    Example: ``steps.texture(Run.open("demo"), 1)["metrics"]["context_information"]["value"]``
    """
    return perform(look_at_text, "texture", run, generation, device)


def look_at_text(
    task: Task,
    model: GPTNeo,
    text: TokenCorpus,
    first_model: GPTNeo,
    first_text: TokenCorpus,
    validation: TokenCorpus,
    tokenizer: Tokenizer,
) -> None:
    """The work of step ``texture``."""
    from collapse_lib.metrics.context_information import context_information
    from collapse_lib.metrics.diversity import distinct_shares, features, text_distance
    from collapse_lib.metrics.likelihood_histogram import likelihood_histogram
    from collapse_lib.metrics.story_sample import complete_stories
    from collapse_lib.metrics.token_scores import token_losses, token_losses_and_entropies

    record, settings, context = task.record, task.protocol.texture, task.protocol.evaluation.max_context
    rows, first_rows = (_rows(part, settings.rows, task.seed("texture", 0)) for part in (text, first_text))
    written = [row[1:] for row in rows]
    _, entropies = token_losses_and_entropies(model, rows, context)
    record.metrics |= context_information(written, entropies)
    if sum(map(len, written)) >= settings.block_tokens:
        record.metrics |= {f"block_{name}": metric for name, metric in distinct_shares(written, settings.block_tokens).items()}
    histogram = likelihood_histogram(token_losses(first_model, rows, context), token_losses(first_model, first_rows, context))
    record.metrics |= {name: histogram[name] for name in ("above_reference", "below_reference")}
    record.series["likelihood_counts"], record.series["likelihood_edges"] = histogram["counts"], histogram["edges"]
    record.metrics |= {f"likelihood_{level}": metric for level, metric in histogram["quantiles"].items()}
    stories = [story for story in complete_stories(text, settings.stories, task.seed("texture stories", 0)) if len(story)]
    written_tokens = {"tokens": sum(map(len, stories))}
    record.measure("compared_stories", len(stories), "stories", "complete stories that were compared with each other", counts=written_tokens)
    real = features(first_model, [row.astype(np.int64)[:context] for row in validation.iter_rows(0, settings.stories)])
    if len(stories) >= settings.block_stories:
        starts = [np.append(text.eos_id, story).astype(np.int64)[:context] for story in stories]
        record.metrics |= _diversity(stories, tokenizer, settings.block_stories)
        if len(real) >= settings.block_stories:
            record.metrics["text_distance"] = text_distance(features(first_model, starts), real, settings.block_stories)
    if task.generation == 1:
        record.metrics |= _real(task.protocol.texture, validation, tokenizer, real)


def _diversity(stories: Sequence[np.ndarray], tokenizer: Tokenizer, block_stories: int) -> dict[str, Metric]:
    """How much the stories (token arrays without their ends) have in common."""
    from collapse_lib.metrics.diversity import compression_ratio, self_bleu

    return {
        "self_bleu": self_bleu([story.tolist() for story in stories], block_stories),
        "compression_ratio": compression_ratio([tokenizer.decode(story) for story in stories], block_stories),
    }


def _real(settings: TextureSettings, validation: TokenCorpus, tokenizer: Tokenizer, seen: np.ndarray) -> dict[str, Metric]:
    """What validation stories have of the same, as far as there are enough of them; ``seen`` are their features, of which two halves are compared."""
    from collapse_lib.metrics.diversity import distinct_shares, text_distance

    rows, half = list(validation.iter_rows()), len(seen) // 2
    measures: dict[str, Metric] = {}
    if sum(map(len, rows)) >= settings.block_tokens:
        measures |= {f"block_{name}": metric for name, metric in distinct_shares(rows, settings.block_tokens).items()}
    if len(rows[: settings.stories]) >= settings.block_stories:
        measures |= _diversity([row[1:] for row in rows[: settings.stories]], tokenizer, settings.block_stories)
    if half >= settings.block_stories:
        measures["text_distance"] = text_distance(seen[:half], seen[half:], settings.block_stories)
    return {f"real_{name}": metric | {"definition": f"of validation stories: {metric['definition']}"} for name, metric in measures.items()}


def _rows(text: TokenCorpus, count: int, seed: int) -> list[np.ndarray]:
    """Sampled rows, the same numbers of every text, each with the start token that it was given."""
    chosen = np.random.default_rng(seed).permutation(text.rows)[:count]
    rows = [text.row(int(row)).astype(np.int64) for row in np.sort(chosen)]
    return rows if text.has_start else [np.append(text.eos_id, row) for row in rows]
