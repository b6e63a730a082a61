"""The bytes that steps leave on the disk, and whether there is room for them: asked before a step begins, and by ``collapse plan``.

What is known beforehand is counted: weights, checkpoints, texts as long as the protocol lets them be. Of the initial corpus that is not known until
its stories have been read.
"""

from __future__ import annotations

import math
import shutil

from collapse_lib.experiment.artefacts import path_of, size_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import amount
from collapse_lib.experiment.protocol import Protocol
from collapse_lib.experiment.run import Step

SHARD_BYTES = 600  # the head of an Arrow file
VOCABULARY_BYTES = 45  # of the tokenizer's two files, for each token


def text_bytes(rows: float, tokens: float, shards: int) -> int:
    """Bytes of a corpus: 2 a token, 4 a row, and the heads of its shards."""
    return SHARD_BYTES * shards + round(2 * tokens + 4 * rows)


def model_bytes(parameters: int, vocabulary: int) -> int:
    """Bytes of a model's folder: fp32 weights, and the tokenizer."""
    return 4 * parameters + VOCABULARY_BYTES * vocabulary


def checkpoint_bytes(parameters: int, protocol: Protocol) -> int:
    """Most bytes of a training's checkpoints: each holds weights, AdamW's two moments and, where epochs are found, the best epoch's weights.

    A new one is whole before it takes the old one's place.
    """
    return 2 * (16 if protocol.training.epochs == "early_stopping" else 12) * parameters


def written_tokens(protocol: Protocol, sequences: int, story_tokens: float) -> float:
    """Tokens of so many sampled sequences; those that end with their first story are taken to be as long as initial ones, ``story_tokens`` each."""
    settings = protocol.sampling
    sampled = settings.length if settings.after_eos == "continue" else min(settings.length, story_tokens)
    return sequences * (sampled + (settings.start == "endoftext"))


def fresh_tokens(protocol: Protocol, initial: float, story_tokens: float) -> float:
    """Tokens of the text that step ``compose`` writes itself, ``initial`` being those of the initial corpus; 0 where it takes what is there."""
    regime = protocol.regime
    if regime.name == "first_only":
        return written_tokens(protocol, protocol.sampling.sequences, story_tokens)
    if regime.name == "fresh" or regime.real == "fresh":
        return initial * (1.0 if regime.name == "fresh" else regime.share or 0.0)
    return 0.0


def wanted(step: Step) -> int:
    """Bytes that a step will take before it is done, beyond those that an interrupted attempt has taken; 0 where it leaves hardly anything."""
    protocol = step.run.protocol
    if step.name not in ("train", "sample", "compose") or (found := step.run.step(0, "corpus").results()) is None:
        return 0
    initial = {name: metric["value"] for name, metric in found["metrics"].items()}
    story_tokens = initial["train_tokens"] / initial["train_stories"]
    if step.name == "train":
        return checkpoint_bytes(_parameters(protocol, initial["vocabulary"]), protocol) - size_of(step.folder / "checkpoint")
    if step.name == "sample":
        sequences = protocol.regime.regime.tokens_to_sample(protocol.sampling.sequences)
        tokens = written_tokens(protocol, sequences, story_tokens)
        shards = math.ceil(sequences / protocol.sampling.shard_sequences)
        return text_bytes(sequences, tokens, shards) - size_of(path_of(step.folder, "corpus"))
    return round(2 * fresh_tokens(protocol, initial["train_tokens"], story_tokens)) - size_of(path_of(step.folder, "composition"))


def check_room(step: Step) -> None:
    """Raise ``UserError`` if what a step will write does not fit on the disk of its run. A quota is not seen."""
    bytes_wanted, free = wanted(step), shutil.disk_usage(step.run.folder).free
    if bytes_wanted > free:
        raise UserError(
            f"Step {step} will write about {amount(bytes_wanted)}, and {amount(free)} are free in {step.run.folder.parent}; make room "
            "(--set retention.drop='[corpus,model]' lets go of what no step needs), or keep runs elsewhere with COLLAPSE_RUNS=FOLDER, "
            "and the same command goes on from there."
        )


def _parameters(protocol: Protocol, vocabulary: int) -> int:
    from collapse_lib.model.gpt_neo import GPTNeoConfig
    from collapse_lib.model.weightless import without_weights

    return without_weights(GPTNeoConfig.from_settings(protocol.model, vocabulary, vocabulary - 1)).num_parameters()
