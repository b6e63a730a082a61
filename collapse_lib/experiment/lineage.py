"""The steps of a run: what each is made from and what decides it. The data flow of the whole experiment in one table.

``run`` keeps the folder, ``steps`` does the work, ``batch`` executes the notebook ``notebooks/steps/<step>.ipynb``; all of them read this table.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collapse_lib.experiment.protocol import Protocol


def _every(protocol: Protocol, generation: int) -> bool:
    return generation >= 1


def _initial(protocol: Protocol, generation: int) -> bool:
    return generation == 0


def _completes(protocol: Protocol, generation: int) -> bool:
    """Generation 0 stands for the untrained baseline."""
    every = protocol.completions.every
    return every is not None and (generation == 0 or (generation >= 1 and (generation - 1) % every == 0))


def _is_graded(protocol: Protocol, generation: int) -> bool:
    return protocol.gpt_eval.judge is not None and _completes(protocol, generation)


def _is_classified(protocol: Protocol, generation: int) -> bool:
    settings = protocol.classification
    return bool(settings.tasks) and (generation == 0 or (generation >= 1 and (generation - 1) % settings.every == 0))


@dataclass(frozen=True)
class StepKind:
    """A step that generations have.

    ``parents`` are the steps whose outputs it reads: of the same generation, or of the ``previous`` or the ``initial`` one. A parent that this
    generation cannot have (the model before generation 1) is left out. ``decided_by`` are the sections and fields of the protocol that decide
    its outcome; what decides its parents is not repeated, because a step's manifest names their content.
    """

    title: str
    parents: tuple[str, ...]
    decided_by: tuple[str, ...]
    headline: str  # what the terminal says when it is done, with names of its metrics
    done_in: Callable[[Protocol, int], bool] = _every
    on_device: bool = True  # whether it uses a GPU if there is one
    optional: bool = False  # whether the book shows a generation without it: evaluations that a run may be given later

    def headline_of(self, metrics: dict[str, dict[str, Any]]) -> str:
        """The headline with this step's metrics filled in."""
        names = (name for _, name, _, _ in string.Formatter().parse(self.headline) if name)
        return self.headline.format(**{name: metrics[name]["value"] for name in names})


# In the order of execution within a generation.
STEPS: dict[str, StepKind] = {
    "corpus": StepKind(
        "The initial corpus",
        (),
        ("seed", "corpus", "tokenizer", "training.holdout"),
        "{train_stories:,} stories, {train_tokens:,} tokens",
        done_in=_initial,
        on_device=False,
    ),
    "train": StepKind(
        "Training",
        ("previous corpus",),
        ("seed", "model", "training"),
        "loss {loss:.3f} after {epochs} epochs, {tokens_per_second:,.0f} tokens/s",
    ),
    "sample": StepKind("Sampling", ("train",), ("seed", "sampling"), "{tokens:,} tokens, {tokens_per_second:,.0f} tokens/s"),
    "perplexity": StepKind("Perplexity", ("train", "initial corpus"), ("evaluation",), "perplexity {perplexity:.3f}"),
    "free_text": StepKind(
        "Free text",
        ("sample", "initial corpus"),
        (),
        "entropy {entropy:.3f} nats, {oov_lexicon_occurrences:,} non-words",
        on_device=False,
    ),
    "alpha": StepKind(
        "Alpha: the errors of the proof",
        ("train", "previous train", "initial corpus", "previous corpus", "previous alpha"),
        ("seed", "alpha", "evaluation.max_context"),
        "D_inf {divergence:.2f} nats at {contexts} contexts, accumulated {accumulated:.2f}",
        optional=True,
    ),
    # Two steps, because a judge may be chosen, or changed, long after the models are gone.
    "completions": StepKind(
        "Prompted completions",
        ("train", "initial corpus"),
        ("seed", "completions", "sampling.start", "sampling.max_context", "sampling.overflow"),
        "{completions:,} completions of {beginnings:,} beginnings",
        done_in=_completes,
        optional=True,
    ),
    "gpt_eval": StepKind(
        "GPT-Eval",
        ("completions", "initial corpus"),
        ("seed", "gpt_eval"),
        "{graded:,} of {completions:,} completions graded, {malformed:,} malformed answers",
        done_in=_is_graded,
        on_device=False,
        optional=True,
    ),
    "classification": StepKind(
        "Classification",
        ("train", "initial corpus"),
        ("seed", "model", "classification"),
        "mean accuracy {mean_accuracy:.3f} on {tasks} tasks",
        done_in=_is_classified,
        optional=True,
    ),
}


def steps_of(protocol: Protocol, generation: int) -> list[str]:
    """Names of the steps that a generation has under a protocol, in the order of execution."""
    return [name for name, kind in STEPS.items() if kind.done_in(protocol, generation)]
