"""What a training block is, and which blocks an epoch shows."""

from __future__ import annotations

import numpy as np
import pytest
from small_training import EOS, settings, write

from collapse_lib.experiment.errors import UserError
from collapse_lib.model.loss import IGNORED
from collapse_lib.train.blocks import EMPTY, Blocks, epoch_batches


def test_contiguous_blocks_share_one_token_and_end_stories(tmp_path):
    blocks = Blocks(write(tmp_path, [[1, 2, 3], [4, 5]], [[6, 7, 8, 9]]), settings(block_size=4))
    inputs, targets = blocks.read(np.arange(len(blocks)))  # 12 tokens stored: the second shard's boundary lies inside a block
    assert inputs.tolist() == [[EOS, 1, 2, 3], [EOS, 4, 5, EOS]]
    assert targets.tolist() == [[1, 2, 3, EOS], [4, 5, EOS, 6]]


def test_given_start_tokens_are_context_but_never_targets(tmp_path):
    blocks = Blocks(write(tmp_path, [[1, 2, EOS], [4, 5, 6], [7, 8, 9]], complete=False), settings(block_size=5))
    inputs, targets = blocks.read(np.array([1, 0]))
    assert inputs.tolist() == [[4, 5, 6, EOS, 7], [EOS, 1, 2, EOS, EOS]]
    assert targets.tolist() == [[5, 6, IGNORED, 7, 8], [1, 2, EOS, IGNORED, 4]]  # the sampled end of a story stays a target


def test_every_real_token_of_a_sampled_corpus_is_a_target_once(corpus):
    blocks = Blocks(corpus, settings(block_size=7))
    assert corpus.tokens == 60 * 14 == 7 * len(blocks) + 7  # the last 7 tokens are less than a block
    targets = blocks.read(np.arange(len(blocks)))[1].ravel()
    stream = corpus.stream(1, 7 * len(blocks) + 1)
    assert targets[targets != IGNORED].tolist() == stream[~corpus.given_starts(1, 7 * len(blocks) + 1)].tolist()


def test_end_tokens_can_be_left_out_of_the_targets(tmp_path):
    stories = write(tmp_path, [[1, 2, 3], [4, 5, 6]])
    assert Blocks(stories, settings(block_size=7, eos_is_target=False)).read(np.array([0]))[1].tolist() == [[1, 2, 3, IGNORED, 4, 5, 6]]
    rows = Blocks(stories, settings(block_size=7, eos_is_target=False, layout="story_per_row"))
    assert rows.read(np.array([0]))[1].tolist() == [[1, 2, 3, IGNORED]]


def test_one_story_a_row_learns_its_end_but_no_padding(tmp_path):
    blocks = Blocks(write(tmp_path, [[1, 2, 3, 4, 5, 6], [7], [8, 9]]), settings(block_size=4, layout="story_per_row"))
    inputs, targets = blocks.read(np.array([0, 1, EMPTY, 2]))
    assert inputs.tolist() == [[EOS, 1, 2, 3], [EOS, 7, EOS, EOS], [EOS] * 4, [EOS, 8, 9, EOS]]
    assert targets.tolist() == [[1, 2, 3, 4], [7, EOS, IGNORED, IGNORED], [IGNORED] * 4, [8, 9, EOS, IGNORED]]


def test_a_row_without_start_token_never_has_its_first_token_as_target(tmp_path):
    ragged = write(tmp_path, [[1, 2, 3, 4], [5, EOS]], complete=False, has_start=False)
    inputs, targets = Blocks(ragged, settings(layout="story_per_row")).read(np.array([0, 1]))
    assert inputs.tolist() == [[1, 2, 3], [5, EOS, EOS]]
    assert targets.tolist() == [[2, 3, 4], [EOS, IGNORED, IGNORED]]


def test_a_corpus_without_one_block_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has 5 tokens, less than one block of training.block_size \+ 1 = 9"):
        Blocks(write(tmp_path, [[1, 2, 3, 4]]), settings())


def test_an_epoch_shows_every_block_once_in_an_order_of_its_own():
    def order(seed: int, epoch: int, **changes) -> list[int]:
        return np.concatenate(epoch_batches(100, settings(**changes), seed, epoch)).tolist()

    assert sorted(order(1, 0)) == list(range(100))
    assert [len(batch) for batch in epoch_batches(100, settings(), 1, 0)] == [16] * 6 + [4]  # the rest is learned too
    assert order(1, 0) == order(1, 0)
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    assert order(1, 0, data_order="repeated") == order(2, 0, data_order="repeated") != order(2, 1, data_order="repeated")
