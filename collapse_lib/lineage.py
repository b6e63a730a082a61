"""The steps of a run: what each is made from and what decides it. The data flow of the whole experiment in one table.

``run`` keeps the folder, ``steps`` does the work, ``batch`` executes the notebook ``notebooks/steps/<step>.ipynb``; all of them read this table.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from collapse_lib.protocol import Protocol


def _every(protocol: Protocol, generation: int) -> bool:
    return generation >= 1


def _initial(protocol: Protocol, generation: int) -> bool:
    return generation == 0


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
}


def steps_of(protocol: Protocol, generation: int) -> list[str]:
    """Names of the steps that a generation has under a protocol, in the order of execution."""
    return [name for name, kind in STEPS.items() if kind.done_in(protocol, generation)]
