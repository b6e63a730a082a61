"""What a batch is made of: a corpus cut into numbered training sequences, and their order in an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.model.loss import IGNORED

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import TrainingSettings
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.view import Selection, Union

EMPTY = -1  # a block number that stands for no block: fills up the processes' shares of the last batch of an epoch
REPEATED_SEED = 42  # the released code's data seed, the same for each generation


class Blocks:
    """A token corpus as numbered training sequences of at most ``block_size`` inputs, each with its targets.

    "contiguous": block ``b`` is the stream's window of ``block_size + 1`` tokens from ``b * block_size`` on, so neighbours share
    one token and every token but the stream's first is a target once; a tail shorter than a block is left out. "story_per_row":
    a row cut to ``block_size + 1`` tokens; a complete row gets the end token that closes its story, and what pads a shorter row
    is no target. Given start tokens are never targets. Raises ``UserError`` when the corpus has not one block.
    """

    def __init__(self, corpus: TokenCorpus | Selection | Union, settings: TrainingSettings, name: str = "training") -> None:
        self.corpus = corpus
        self.block_size = settings.block_size
        self.contiguous = settings.layout == "contiguous"
        self.ignored_token = None if settings.eos_is_target else corpus.eos_id
        self.has_given = self.contiguous and corpus.has_given_starts
        self.count = max(0, corpus.tokens - 1) // self.block_size if self.contiguous else corpus.rows
        if not self.count:
            raise UserError(
                f"The {name} corpus has {corpus.tokens} tokens, less than one block of training.block_size + 1 = {self.block_size + 1};"
                " give more text or a smaller training.block_size."
            )

    def __len__(self) -> int:
        return self.count

    def read(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of some blocks, both int64 ``[blocks, tokens]``; no target is ``-100``, ``EMPTY`` gives none at all."""
        inputs, targets = self._windows(numbers) if self.contiguous else self._stories(numbers)
        if self.ignored_token is not None:
            targets[targets == self.ignored_token] = IGNORED
        return inputs, targets

    def _windows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = np.full((len(numbers), self.block_size + 1), self.corpus.eos_id, dtype=np.int64)
        targets = np.full((len(numbers), self.block_size), IGNORED, dtype=np.int64)
        for window, target, number in zip(windows, targets, numbers.tolist(), strict=True):
            if number == EMPTY:
                continue
            start = number * self.block_size
            window[:] = self.corpus.stream(start, start + self.block_size + 1)
            target[:] = window[1:]
            if self.has_given:
                target[self.corpus.given_starts(start + 1, start + self.block_size + 1)] = IGNORED
        return windows[:, :-1], targets

    def _stories(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        longest = self.block_size + 1
        rows = [self._story(number)[:longest] for number in numbers.tolist()]
        # As wide as the longest of these rows: padding up to block_size would cost time and change nothing.
        width = max(2, max(map(len, rows)))
        tokens = np.full((len(rows), width), self.corpus.eos_id, dtype=np.int64)
        targets = np.full((len(rows), width - 1), IGNORED, dtype=np.int64)
        for row, padded, target in zip(rows, tokens, targets, strict=True):
            padded[: len(row)] = row
            target[: max(0, len(row) - 1)] = row[1:]
        return tokens[:, :-1], targets

    def _story(self, number: int) -> np.ndarray:
        if number == EMPTY:
            return np.empty(0, dtype=np.uint16)
        row = self.corpus.row(number)
        return np.append(row, np.uint16(self.corpus.eos_id)) if self.corpus.row_is_complete(number) else row


def epoch_batches(blocks: int, settings: TrainingSettings, seed: int, epoch: int, share: float = 1.0) -> list[np.ndarray]:
    """The block numbers of every effective batch of an epoch; the last may be smaller, so that a small corpus is learned whole.

    An epoch may be a ``share`` of the blocks, drawn anew for each.
    """
    entropy = (REPEATED_SEED if settings.data_order == "repeated" else seed, epoch)
    order = np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy))).permutation(blocks)[: max(1, round(share * blocks))]
    return [order[start : start + settings.batch_size] for start in range(0, len(order), settings.batch_size)]
