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


def _from_grammar(protocol: Protocol, generation: int) -> bool:
    return generation >= 1 and protocol.corpus.source == "grammar"


def _is_evaluated(protocol: Protocol, generation: int, every: int) -> bool:
    """Generations 1, 1 + every, ... as in the paper, and the last, without which a run's end is not judged; 0 stands for the untrained baseline."""
    return generation in (0, protocol.generations) or (generation >= 1 and (generation - 1) % every == 0)


def _completes(protocol: Protocol, generation: int) -> bool:
    every = protocol.completions.every
    return every is not None and _is_evaluated(protocol, generation, every)


def _is_graded(protocol: Protocol, generation: int) -> bool:
    return protocol.gpt_eval.judge is not None and _completes(protocol, generation)


def _is_classified(protocol: Protocol, generation: int) -> bool:
    settings = protocol.classification
    return bool(settings.tasks) and _is_evaluated(protocol, generation, settings.every)


class Read(NamedTuple):
    """One thing that a step reads, spelt ``[previous|first|initial|NUMBER] ARTEFACT [as ARGUMENT]`` or ``[...] STEP results``.

    Without a first word it is the step's own generation's; a number is a generation. ``text`` is what a generation wrote, of generation 0 the initial
    training stories.
    """

    when: str
    what: str
    is_results: bool
    argument: str  # the name under which a step's work is given it

    @classmethod
    def parse(cls, read: str) -> Read:
        thing, _, argument = read.partition(" as ")
        words = thing.split()
        when = words.pop(0) if words[0] in ("previous", "first", "initial") or words[0].isdigit() else ""
        what = words[0]
        plain = f"{when}_{what}" if when and (when != "initial" or what == "text") else what  # of validation stories there is one set
        return cls(when, what, words[-1] == "results", argument or plain)

    def generation(self, own: int) -> int:
        """The generation that is meant where a step of generation ``own`` reads this."""
        return int(self.when) if self.when.isdigit() else {"": own, "previous": own - 1, "first": 1, "initial": 0}[self.when]

    def source(self, own: int) -> tuple[str, str | None]:
        """The step that makes it, and which of that step's artefacts it is (None: what it measured)."""
        if self.is_results:
            return self.what, None
        if self.what == "text":
            return ("corpus", "train") if self.generation(own) == 0 else ("sample", "corpus")
        return next(name for name, kind in STEPS.items() if self.what in kind.makes), self.what

    def parent(self, own: int) -> str:
        """The name under which a manifest lists the step that it comes from."""
        step = "corpus" if self.what == "text" and self.when else self.source(own)[0]
        return f"{self.when} {step}".strip()


def is_composed(protocol: Protocol, generation: int) -> bool:
    """Whether a generation learns from anything but the whole text of its predecessor."""
    first = {"replace": None, "first_only": 3}.get(protocol.regime.name, 2)
    return first is not None and generation >= first


def _learned_text(protocol: Protocol, generation: int) -> str:
    return f"{'composition' if is_composed(protocol, generation) else 'previous text'} as learned_text"


def _compose_reads(protocol: Protocol, generation: int) -> tuple[str, ...]:
    """The texts that the regime may draw from, what writes a new one, and what judges one."""
    regime = protocol.regime.regime
    texts = {"fresh": (), "first_only": (), "mix": (0, generation - 1) if regime.real == "old" else (generation - 1,), "select": (generation - 1,)}
    numbers = texts.get(regime.name, range(generation))
    needs_model = regime.name == "first_only" or (regime.needs_scores and regime.verifier == "likelihood")
    return (
        *(f"{number} text as text_{number}" for number in numbers),
        *(("first model",) if needs_model else ()),
        "initial tokenizer",
        "initial corpus results",
    )


def _train_reads(protocol: Protocol, generation: int) -> tuple[str, ...]:
    reads = (_learned_text(protocol, generation), "initial tokenizer", "initial holdout", "first train results")
    reads += ("initial corpus results",) if protocol.regime.name == "accumulate" else ()
    return (*reads, "previous model") if protocol.training.init == "previous" else reads


def _alpha_reads(protocol: Protocol, generation: int) -> tuple[str, ...]:
    models = ("model", "previous model", "first model")
    return (*models, _learned_text(protocol, generation), "initial text", "initial validation", "initial tokenizer", *ALPHA_BEFORE)


ALPHA_BEFORE = ("previous alpha results", "first alpha results")


@dataclass(frozen=True)
class StepKind:
    """A step that generations have.

    ``reads`` (see ``Read``), which may depend on the protocol and the generation, is opened and handed to its work; what this generation cannot have
    (the model before generation 1) is left out.
    ``makes`` names the artefacts (``artefacts.ARTEFACTS``) that it leaves beside its metrics. ``decided_by`` are the sections and fields of the
    protocol that decide its outcome; what decides its parents is not repeated, because a step's manifest names their content.
    """

    title: str
    reads: tuple[str, ...] | Callable[[Protocol, int], tuple[str, ...]]
    decided_by: tuple[str, ...]
    headline: str  # what the terminal says when it is done, with names of its metrics
    makes: tuple[str, ...] = ()
    done_in: Callable[[Protocol, int], bool] = _every
    on_device: bool = True  # whether it uses a GPU if there is one
    divisible: bool = False  # whether several processes can share its work
    optional: bool = False  # whether the book shows a generation without it: evaluations that a run may be given later

    def reads_in(self, protocol: Protocol, generation: int) -> tuple[str, ...]:
        """What it reads in a generation, as the table spells it."""
        return self.reads(protocol, generation) if callable(self.reads) else self.reads

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
    "compose": StepKind(
        "What this generation learns from",
        _compose_reads,
        ("seed", "regime", "corpus", "sampling"),
        "{tokens:,} tokens in {parts} parts, {real_share:.3f} of them real",
        makes=("composition",),
        done_in=is_composed,
    ),
    "train": StepKind(
        "Training",
        _train_reads,
        ("seed", "model", "training"),
        "loss {loss:.3f} after {epochs} epochs, {tokens_per_second:,.0f} tokens/s",
        makes=("model",),
        divisible=True,
    ),
    "sample": StepKind(
        "Sampling",
        ("model", "initial tokenizer"),
        ("seed", "sampling", "regime.name", "regime.share"),
        "{tokens:,} tokens, {tokens_per_second:,.0f} tokens/s",
        makes=("corpus",),
        divisible=True,
    ),
    "perplexity": StepKind(
        "Perplexity",
        ("model", "initial validation", "initial corpus results"),
        ("evaluation",),
        "perplexity {perplexity:.3f}",
        divisible=True,
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
        _alpha_reads,
        ("seed", "alpha", "evaluation.max_context"),
        "D_inf {divergence:.2f} nats at {contexts} contexts, accumulated {accumulated:.2f}",
        optional=True,
    ),
    "exact": StepKind(
        "Against the exact law",
        (
            "model",
            "text",
            "initial text",
            "initial validation",
            "initial tokenizer",
            "initial corpus results",
            "previous exact results",
            "first exact results",
        ),
        ("seed", "exact", "evaluation.max_context"),
        "excess loss {excess_loss:.2f} nats a story, {excess_share:.0%} of the floor",
        done_in=_from_grammar,
        optional=True,
    ),
    "texture": StepKind(
        "The text as a whole",
        ("model", "text", "first model", "first text", "initial validation", "initial tokenizer"),
        ("seed", "texture", "evaluation.max_context"),
        "the context decides {context_information:.2f} of {unigram_entropy:.2f} nats",
        optional=True,
    ),
    "continuations": StepKind(
        "Beginnings continued",
        ("model", "first model", "text", "initial tokenizer"),
        ("seed", "continuations", "completions.prompts", "sampling.start", "sampling.max_context", "sampling.overflow", "evaluation.max_context"),
        "{continuations} beginnings continued",
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
        divisible=True,
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


def reads_of(name: str, protocol: Protocol, generation: int) -> list[Read]:
    """What a step of a generation reads."""
    return [Read.parse(read) for read in STEPS[name].reads_in(protocol, generation)]
