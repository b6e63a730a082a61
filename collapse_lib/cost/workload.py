"""How much a run has to do and what it leaves on the disk, counted from its protocol, its initial corpus and its model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from collapse_lib.experiment.lineage import is_composed, steps_of
from collapse_lib.steps.room import VOCABULARY_BYTES, checkpoint_bytes, fresh_tokens, model_bytes, text_bytes, written_tokens

if TYPE_CHECKING:
    from collapse_lib.cost.corpus_size import CorpusSize
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.model.gpt_neo import GPTNeo

EPOCHS = 3  # that early stopping is assumed to find: what the paper found (section 5.1.2)
PROMPTS, PROMPT_TOKENS = 44, 40  # story beginnings to complete, and the tokens of one
STEP_FILES = 4  # notebook, metrics, manifest, lock
STEP_BYTES = {"train": 65_000, "alpha": 110_000}  # of these four, most of it figures and series
OTHER_STEP_BYTES = 15_000
SHARD_TOKENS = 2**22  # of the initial corpus
ACTIVATIONS = 34  # vectors of the hidden size that backward needs of a token and layer, as ``micro_batch_size`` in training counts
CPU_TOKENS = 4096  # of a worker's forward pass in training
LOGITS = {"cpu": 2**23, "cuda": 2**28}  # alive at once
WHOLE = ("replace", "accumulate", "fresh", "first_only")  # regimes that choose no rows
COMPLETION_BYTES = 3  # of a sampled token in a file of completions: many stop early


class Size(NamedTuple):
    """What something takes on the disk."""

    bytes: int
    files: int


@dataclass(frozen=True)
class Workload:
    """Counts of a run; ``model`` needs no weights."""

    protocol: Protocol
    initial: CorpusSize
    model: GPTNeo

    def corpus(self, generation: int) -> tuple[float, float]:
        """Rows and tokens of the text that a generation leaves to the next, generation 0 without its hold-out."""
        if generation == 0:
            share = 1 - self.protocol.training.holdout
            return self.initial.stories * share, self.initial.tokens * share
        return self._written(self.protocol.regime.regime.tokens_to_sample(self.protocol.sampling.sequences))

    def _written(self, sequences: int) -> tuple[float, float]:
        return sequences, written_tokens(self.protocol, sequences, self._sampled_story)

    @property
    def _sampled_story(self) -> float:
        """Mean tokens of a sampled row that ends with its first story."""
        return float(np.minimum(np.add(self.initial.lengths, 1), self.protocol.sampling.length).mean())

    def learned(self, generation: int) -> tuple[float, float]:
        """Rows and tokens that an epoch of a generation reads, as its regime has it."""
        rows, tokens = self.corpus(generation - 1)
        regime = self.protocol.regime
        if not is_composed(self.protocol, generation):
            return rows, tokens
        if regime.name == "first_only":
            return self._written(self.protocol.sampling.sequences)
        total = self.corpus(0)[1]
        if regime.name == "accumulate" and regime.training == "epochs":
            total = sum(self.corpus(number)[1] for number in range(generation))
        elif written := {"mix": 1 - (regime.share or 0), "select": 1.0}.get(regime.name):
            total = min(total, tokens / written)
        return rows * total / tokens, total

    def epoch(self, generation: int) -> tuple[int, int]:
        """Tokens and optimizer steps of one epoch of a generation."""
        settings, (rows, tokens) = self.protocol.training, self.learned(generation)
        blocks = max(1, int((tokens - 1) // settings.block_size)) if settings.layout == "contiguous" else math.ceil(rows)
        return round(blocks * self.width), math.ceil(blocks / settings.batch_size)

    @property
    def width(self) -> float:
        """Tokens of a training sequence; stories in rows of their own are padded to the longest of their batch."""
        settings = self.protocol.training
        return settings.block_size if settings.layout == "contiguous" else self.initial.longest_of(settings.batch_size, settings.block_size)

    @property
    def stops_early(self) -> bool:
        """Whether generation 1 has to find the number of epochs."""
        return self.protocol.training.epochs == "early_stopping"

    @property
    def epochs(self) -> int:
        """Epochs that the weights of a generation have learned for."""
        settings = self.protocol.training
        return min(EPOCHS, settings.max_epochs) if self.stops_early else settings.epochs

    def epochs_tried(self, generation: int) -> int:
        """Epochs trained: early stopping in generation 1 has to see that one more does not help."""
        return min(self.epochs + 1, self.protocol.training.max_epochs) if self.stops_early and generation == 1 else self.epochs

    @property
    def completions(self) -> int:
        """Completions that a generation writes."""
        settings = self.protocol.completions
        return (settings.beginnings or PROMPTS) * settings.samples

    def decoding(self, rows: int, length: int) -> dict[str, float]:
        """The amounts of work to decode ``rows`` sequences of ``length`` tokens."""
        contexts, encoded = decoded_contexts(length, self.protocol.sampling.max_context, self.protocol.sampling.overflow)
        read = sum(self.model.kv_bytes_per_token(context) for context in contexts)
        return {"decode_token": rows * len(contexts), "decode_byte": rows * read, "encode_token": rows * encoded}

    @cached_property
    def scoring(self) -> tuple[float, float]:
        """Tokens encoded and tokens scored of a story, in the mean, for perplexity by both definitions and at the stories' ends."""
        from collapse_lib.metrics.perplexity import other_definition, paper_windows, released_windows

        settings, lengths = self.protocol.evaluation, [max(1, round(length)) for length in self.initial.lengths]
        has_start = settings.perplexity == "paper"
        encoded = sum(min(length + has_start, settings.max_context) for length in lengths)  # the ends are scored apart
        scored = len(lengths)
        other = other_definition(settings.perplexity, self.protocol.model.max_position_embeddings)
        for definition, context in ((settings.perplexity, settings.max_context), other):
            windows = paper_windows([length + 1 for length in lengths], context) if definition == "paper" else released_windows(lengths, context)
            encoded += int((windows.end - windows.begin).sum())
            scored += int(windows.tokens.sum())
        return encoded / len(lengths), scored / len(lengths)

    def disk(self, generation: int) -> dict[str, dict[str, Size]]:
        """What each step of a generation leaves, by artefact; "" is its notebook, metrics, manifest and lock."""
        protocol, vocabulary, large = self.protocol, self.initial.vocabulary, dict[str, dict[str, Size]]()
        if generation == 0:
            count, tokens = self.initial.stories, self.initial.tokens
            parts = [(0.05 * count, 0.05 * tokens), (0.95 * count, 0.95 * tokens)]  # hold-out and training
            parts.append((self.initial.validation_stories, self.initial.validation_stories * self.initial.mean_tokens))
            shards = [max(1, math.ceil(tokens / SHARD_TOKENS)) for _, tokens in parts]
            size = sum(text_bytes(*part, count) for part, count in zip(parts, shards, strict=True)) + VOCABULARY_BYTES * vocabulary
            large["corpus"] = {"train": Size(size, 6 + sum(shards))}  # the tokenizer's two; three records, and the words
        else:
            rows, tokens = self.corpus(generation)
            shards = math.ceil(rows / protocol.sampling.shard_sequences)
            # Weights and two configurations, the tokenizer's two; the text's record and what it was made from.
            large["train"] = {"model": Size(model_bytes(self.model.num_parameters(), vocabulary), 5)}
            large["sample"] = {"corpus": Size(text_bytes(rows, tokens, shards), 2 + shards)}
            large["compose"] = {"composition": self._composition(generation)}
        if protocol.completions.every:
            large["completions"] = {"completions": Size(COMPLETION_BYTES * self.completions * protocol.completions.max_new_tokens, 1)}
        small = {step: Size(STEP_BYTES.get(step, OTHER_STEP_BYTES), STEP_FILES) for step in steps_of(protocol, generation)}
        return {step: {"": size, **large.get(step, {})} for step, size in small.items()}

    def _composition(self, generation: int) -> Size:
        """Numbers of rows, 8 bytes each, and the text that is written for this generation alone."""
        tokens, chosen = fresh_tokens(self.protocol, self.corpus(0)[1], self._sampled_story), self.protocol.regime.name not in WHOLE
        rows = self.learned(generation)[0] if chosen else 0
        shards = math.ceil(tokens / SHARD_TOKENS)
        return Size(round(8 * rows + 2 * tokens), 1 + shards + (shards > 0) + chosen)

    @property
    def scratch(self) -> int:
        """Bytes of the checkpoints that a training keeps while it lasts."""
        return checkpoint_bytes(self.model.num_parameters(), self.protocol)

    def memory(self, on_gpu: bool, device_memory: int, workers: int) -> int:
        """Most bytes at once on the device that trains and samples, from the model's counts: a rough figure.

        ``device_memory`` is the GPU's in bytes; ``workers`` of a CPU train and sample side by side.
        """
        training, sampling, config = self.protocol.training, self.protocol.sampling, self.model.config
        weights, logits = 4 * self.model.num_parameters(), 4 * LOGITS["cuda" if on_gpu else "cpu"]
        token = config.num_layers * (ACTIVATIONS * config.hidden_size + 2 * config.num_heads * training.block_size) * 4
        fitting = device_memory // 4 if on_gpu else workers * max(CPU_TOKENS, training.block_size) * token
        copies = 4 if on_gpu else 4 + workers  # weights, gradients and AdamW's two moments; each worker's gradients besides
        to_train = copies * weights + min(training.batch_size * training.block_size * token, fitting)
        view = sampling.length if sampling.overflow == "extend" else min(sampling.length, sampling.max_context)
        to_sample = 2 * weights + min(sampling.batch_size, sampling.sequences) * self.model.kv_bytes_per_token(view)
        return max(to_train, to_sample) + logits


def decoded_contexts(length: int, max_context: int, overflow: str) -> tuple[Sequence[int], int]:
    """How a sequence is decoded: the tokens in view at each step that reads a cache, and how many tokens are encoded anew for the others."""
    if overflow == "extend" or length <= max_context:
        return range(1, length + 1), 0
    contexts: list[int] = []
    encoded = held = 0
    for _ in range(length):
        if held < max_context:
            held += 1
            contexts.append(held)
        else:  # the newest tokens start the cache anew: all of them for one step ("slide"), or half, to go on from ("hop")
            held = max_context if overflow == "slide" else max(1, max_context // 2)
            encoded += held
    return contexts, encoded
