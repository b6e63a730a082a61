"""Section 5.2: how well a model predicts the validation stories, on which no generation was trained."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus


def perplexity(run: Run, generation: int, device: str = "auto", processes: int = 1) -> Results:
    """Perplexity of the model of ``generation`` on the validation stories (section 5.2), by the run's definition and by the other one.

    Reads the model, the validation stories and their size in bytes. Returns what was measured: ``perplexity``, ``loss`` (nats/token),
    ``bits_per_byte``, ``loss_at_FIRST_LAST`` by the tokens of context, ``end_probability``, ``perplexity_released`` or ``perplexity_paper``.

    Example: ``steps.perplexity(Run.open("demo"), 1)["metrics"]["perplexity"]["value"]``
    """
    return perform(measure_perplexity, "perplexity", run, generation, device, processes)


def measure_perplexity(task: Task, model: GPTNeo, validation: TokenCorpus, corpus: Results) -> None:
    """The work of step ``perplexity``; ``corpus`` is what generation 0 measured."""
    from collapse_lib.metrics.perplexity import other_definition, story_ends
    from collapse_lib.metrics.perplexity import perplexity as measure
    from collapse_lib.model.precision import dtype_name, explicit_dtype

    settings, record = task.protocol.evaluation, task.record
    dtype = explicit_dtype(task.protocol.training.precision, model.head.device)
    model, record.products = model.rounded(dtype), dtype_name(dtype)
    scored = measure(model, validation, settings.max_context, settings.perplexity, group=task.group)
    counts = {"tokens": scored["tokens"], "stories": scored["stories"]}
    definition = f"e^loss on the validation stories, at most {settings.max_context} tokens of context ({settings.perplexity})"
    record.measure("perplexity", scored["perplexity"], "1", definition, counts=counts, standard_error=scored["perplexity_standard_error"])
    definition = "mean token loss on the validation stories"
    record.measure("loss", scored["loss_nats"], "nats/token", definition, counts=counts, standard_error=scored["loss_standard_error"])
    size = corpus["metrics"]["validation_bytes"]["value"]
    bits = scored["loss_nats"] * scored["tokens"] / (math.log(2) * size)
    definition = "the same loss spread over the stories' UTF-8 bytes: comparable across tokenisers"
    record.measure("bits_per_byte", bits, "bits/byte", definition, counts={"bytes": size})
    for band in scored["bands"]:
        first, last = band["first"], band["last"]
        where = f"{first} to {last} tokens" if last > first else "no token"
        record.measure(
            f"loss_at_{first}_{last}" if last > first else f"loss_at_{first}",
            band["loss_nats"],
            "nats/token",
            f"mean loss of the tokens before which the model was shown {where} of the story",
            counts={"tokens": band["tokens"]},
            standard_error=band["loss_standard_error"],
        )
    ends = story_ends(model, validation, settings.max_context, settings.perplexity, group=task.group)
    definition = "mean probability of '<|endoftext|>' where a validation story ends"
    counts = {"stories": ends["stories"]}
    record.measure("end_probability", ends["probability"], "1", definition, counts=counts, standard_error=ends["standard_error"])
    # On the same models, so that runs of different protocols can be compared and a definition's share be told from a model's.
    other, context = other_definition(settings.perplexity, model.config.max_position_embeddings)
    scored = measure(model, validation, context, other, group=task.group)
    record.measure(
        f"perplexity_{other}",
        scored["perplexity"],
        "1",
        f"e^loss by the definition that this run does not follow, at most {context} tokens of context ({other})",
        counts={"tokens": scored["tokens"], "stories": scored["stories"]},
        standard_error=scored["perplexity_standard_error"],
    )
