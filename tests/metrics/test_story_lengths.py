"""Story lengths and ends against what is known of the stories: simulated ones whose true lengths the test has seen, and counts by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from collapse_lib.metrics import story_lengths as module
from collapse_lib.metrics.row_blocks import row_blocks
from collapse_lib.metrics.story_lengths import expected_share, restricted_mean, row_counts, spells, story_lengths, survival
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus

EOS, VOCABULARY = 9, 10


def write(folder: Path, rows: list[list[int]], complete: bool = False, has_start: bool = True) -> TokenCorpus:
    with CorpusWriter(folder, EOS, VOCABULARY, rows_are_complete=complete, has_start=has_start) as writer:
        writer.write_shard(0, [np.array([EOS] * has_start + row, np.uint16) for row in rows])
        return writer.finish(1)


ROWS = [[1, 1, EOS, 2, EOS, 3], [1, 1, 1, 1, 1, EOS], [4, 4, 4, 4, 4, 4], [EOS, EOS, 5, 5, 5, EOS]]


@pytest.mark.parametrize("has_start", [True, False])
def test_stories_are_counted_by_length(tmp_path, has_start):
    corpus = write(tmp_path, ROWS, has_start=has_start)
    found = spells(corpus, 6)
    assert found.ended.tolist() == [0, 2, 1, 1, 1, 0, 1]  # the story that ends with its row is complete, and nothing begins behind it
    assert found.cut.tolist() == [0, 1, 0, 0, 0, 0, 1]
    ends, tokens = row_counts(corpus)
    assert ends.tolist() == [2, 1, 0, 3] and tokens.tolist() == [6, 6, 6, 6]


def test_rows_without_their_padding(tmp_path):
    """Where behind an end nothing is sampled, rows are shorter and every story is a row's first."""
    found = spells(write(tmp_path, [[1, 1, EOS], [2, 2, 2, 2], [EOS]], has_start=False), 4)
    assert found.ended.tolist() == [0, 1, 0, 1, 0] and found.cut.tolist() == [0, 0, 0, 0, 1]


def test_blocks_do_not_matter(tmp_path, monkeypatch):
    corpus = write(tmp_path, ROWS * 5)
    whole = [array.tolist() for array in (*spells(corpus, 6), *row_counts(corpus))]
    monkeypatch.setattr(module, "row_blocks", lambda corpus: row_blocks(corpus, 7))
    assert [array.tolist() for array in (*spells(corpus, 6), *row_counts(corpus))] == whole


def test_survival_by_hand(tmp_path):
    """At 1 token 8 stories are at risk and 2 end; one of length 1 is cut, 5 remain; and so on."""
    expected = np.cumprod([1, 6 / 8, 4 / 5, 3 / 4, 2 / 3, 1, 1 / 2])
    found = survival(spells(write(tmp_path, ROWS), 6))
    assert found == pytest.approx(expected)
    assert restricted_mean(spells(write(tmp_path, ROWS), 6), 6)[0] == pytest.approx(expected[:6].sum())


def test_cut_stories_do_not_make_the_mean_too_low(tmp_path):
    """Rows of 60 tokens over geometric lengths with mean 50: most stories are cut, and the true mean of min(length, 60) is known."""
    random, row, chance = np.random.default_rng(5), 60, 1 / 50
    tokens = np.where(random.random((4000, row)) < chance, EOS, 1)
    corpus = write(tmp_path, tokens.tolist())
    mean, error = restricted_mean(spells(corpus, row), row)
    truth = (1 - (1 - chance) ** row) / chance
    assert abs(mean - truth) < 4 * error and 0.05 < error < 1
    ended = spells(corpus, row).ended
    assert (ended * np.arange(row + 1)).sum() / ended.sum() < truth - 5  # what counting only whole stories would say


def test_greenwood_without_cut_stories_is_the_usual_error_of_a_mean(tmp_path):
    lengths = np.random.default_rng(2).integers(1, 20, 300)
    corpus = write(tmp_path, [[1] * (length - 1) + [EOS] for length in lengths], has_start=False)
    mean, error = restricted_mean(spells(corpus, 30), 30)
    assert mean == pytest.approx(lengths.mean()) and error == pytest.approx(lengths.std() / math.sqrt(300))


def test_metrics_stand_beside_those_of_the_initial_corpus(tmp_path):
    initial = write(tmp_path / "initial", [[1, 1], [1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], complete=True)
    found = story_lengths(write(tmp_path / "sampled", ROWS), initial, 6)
    values = {name: metric["value"] for name, metric in found.items()}
    assert values["eos_share"] == 6 / 24 and values["stories_ended"] == 3 / 4
    assert values["initial_eos_share"] == expected_share(np.array([3, 8, 6]), 6)
    assert values["initial_stories_ended"] == pytest.approx(2 / 3) and values["initial_story_length"] == pytest.approx((3 + 6 + 6) / 3)
    assert found["eos_share"]["counts"] == {"ends": 6, "tokens": 24} and found["stories_ended"]["standard_error"] == pytest.approx(math.sqrt(3) / 8)
    assert all({"value", "unit", "definition"} <= metric.keys() for metric in found.values())


def test_ends_to_be_expected_under_the_same_cut():
    """Against rows that are filled with stories one after the other; end to end, the stories have 1 end in 5 tokens, the rows have fewer."""
    random, row, lengths = np.random.default_rng(3), 8, np.array([3, 7, 5])
    drawn = random.choice(lengths, (100_000, 3)).cumsum(1)
    assert expected_share(lengths, row) == pytest.approx((drawn <= row).sum() / (row * len(drawn)), rel=0.01)
    assert expected_share(lengths, row) < 1 / 5
    assert expected_share(lengths, 5, continues=False) == pytest.approx((2 / 3) / ((3 + 5 + 5) / 3))
    assert expected_share(np.array([9, 20]), 8) == 0


def test_a_model_that_never_stops(tmp_path):
    initial = write(tmp_path / "initial", [[1, 1]], complete=True)
    found = story_lengths(write(tmp_path / "sampled", [[1] * 5] * 3), initial, 5)
    assert (found["story_length"]["value"], found["story_length"]["standard_error"], found["eos_share"]["value"]) == (5, 0, 0)
