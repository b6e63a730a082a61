"""The steps of a run: what each reads, what it makes and what decides it. The data flow of the whole experiment in one table.

``run`` keeps the folder, ``steps/<step>.py`` does the work, ``execute`` executes the notebook ``notebooks/steps/<step>.ipynb``; all of them read
this table.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

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


class Read(NamedTuple):
    """One thing that a step reads, spelt ``[previous|first|initial] ARTEFACT`` or ``[...] STEP results``.

    Without a first word it is the step's own generation's. ``text`` is what a generation wrote, of generation 0 the initial training stories.
    """

    when: str
    what: str
    is_results: bool

    @classmethod
    def parse(cls, read: str) -> Read:
        words = read.split()
        when = words.pop(0) if words[0] in ("previous", "first", "initial") else ""
        return cls(when, words[0], words[-1] == "results")

    def generation(self, own: int) -> int:
        """The generation that is meant where a step of generation ``own`` reads this."""
        return {"": own, "previous": own - 1, "first": 1, "initial": 0}[self.when]

    def source(self, own: int) -> tuple[str, str | None]:
        """The step that makes it, and which of that step's artefacts it is (None: what it measured)."""
        if self.is_results:
            return self.what, None
        if self.what == "text":
            return ("corpus", "train") if self.generation(own) == 0 else ("sample", "corpus")
        return next(name for name, kind in STEPS.items() if self.what in kind.makes), self.what

    @property
    def argument(self) -> str:
        """The name under which a step's work is given it: ``previous_model``, ``initial_text``; just ``validation``, of which there is one."""
        return f"{self.when}_{self.what}" if self.when and (self.when != "initial" or self.what == "text") else self.what

    def parent(self, own: int) -> str:
        """The name under which a manifest lists the step that it comes from."""
        step = "corpus" if self.what == "text" and self.when else self.source(own)[0]
        return f"{self.when} {step}".strip()


@dataclass(frozen=True)
class StepKind:
    """A step that generations have.

    ``reads`` (see ``Read``) is opened and handed to its work; what this generation cannot have (the model before generation 1) is left out.
    ``makes`` names the artefacts (``artefacts.ARTEFACTS``) that it leaves beside its metrics. ``decided_by`` are the sections and fields of the
    protocol that decide its outcome; what decides its parents is not repeated, because a step's manifest names their content.
    """

    title: str
    reads: tuple[str, ...]
    decided_by: tuple[str, ...]
    headline: str  # what the terminal says when it is done, with names of its metrics
    makes: tuple[str, ...] = ()
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
        makes=("train", "holdout", "validation", "words", "tokenizer"),
        done_in=_initial,
        on_device=False,
    ),
    "train": StepKind(
        "Training",
        ("previous text", "initial tokenizer", "initial holdout", "first train results"),
        ("seed", "model", "training"),
        "loss {loss:.3f} after {epochs} epochs, {tokens_per_second:,.0f} tokens/s",
        makes=("model",),
    ),
    "sample": StepKind(
        "Sampling",
        ("model", "initial tokenizer"),
        ("seed", "sampling"),
        "{tokens:,} tokens, {tokens_per_second:,.0f} tokens/s",
        makes=("corpus",),
    ),
    "perplexity": StepKind(
        "Perplexity",
        ("model", "initial validation", "initial corpus results"),
        ("evaluation",),
        "perplexity {perplexity:.3f}",
    ),
    "free_text": StepKind(
        "Free text",
        ("text", "initial text", "initial words", "initial tokenizer"),
        (),
        "entropy {entropy:.3f} nats, {oov_lexicon_occurrences:,} non-words",
        on_device=False,
    ),
    "alpha": StepKind(
        "Alpha: the errors of the proof",
        (
            "model",
            "previous model",
            "first model",
            "previous text",
            "initial text",
            "initial validation",
            "initial tokenizer",
            "previous alpha results",
            "first alpha results",
        ),
        ("seed", "alpha", "evaluation.max_context"),
        "D_inf {divergence:.2f} nats at {contexts} contexts, accumulated {accumulated:.2f}",
        optional=True,
    ),
    # Two steps, because a judge may be chosen, or changed, long after the models are gone.
    "completions": StepKind(
        "Prompted completions",
        ("model", "initial tokenizer"),
        ("seed", "completions", "sampling.start", "sampling.max_context", "sampling.overflow"),
        "{completions:,} completions of {beginnings:,} beginnings",
        makes=("completions",),
        done_in=_completes,
        optional=True,
    ),
    "gpt_eval": StepKind(
        "GPT-Eval",
        ("completions", "initial validation", "initial tokenizer"),
        ("seed", "gpt_eval"),
        "{graded:,} of {completions:,} completions graded, {malformed:,} malformed answers",
        done_in=_is_graded,
        on_device=False,
        optional=True,
    ),
    "classification": StepKind(
        "Classification",
        ("model", "initial tokenizer"),
        ("seed", "model", "classification"),
        "mean accuracy {mean_accuracy:.3f} on {tasks} tasks",
        done_in=_is_classified,
        optional=True,
    ),
}


def steps_of(protocol: Protocol, generation: int) -> list[str]:
    """Names of the steps that a generation has under a protocol, in the order of execution."""
    return [name for name, kind in STEPS.items() if kind.done_in(protocol, generation)]


def reads_of(name: str) -> list[Read]:
    """What a step reads."""
    return [Read.parse(read) for read in STEPS[name].reads]
