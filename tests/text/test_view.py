"""A view over corpora reads like the corpus that a copy of its parts would be."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from collapse_lib.experiment.protocol import TrainingSettings
from collapse_lib.text.corpus import CorpusWriter, TokenCorpus
from collapse_lib.text.view import Selection, Union, complete_stories

EOS, VOCABULARY = 0, 50


def written(folder, rows, complete, shard_rows=3, has_start=True) -> TokenCorpus:
    with CorpusWriter(folder, EOS, VOCABULARY, rows_are_complete=complete, has_start=has_start) as writer:
        for index in range(0, len(rows), shard_rows):
            writer.write_shard(index // shard_rows, rows[index : index + shard_rows])
    return writer.finish(-(-len(rows) // shard_rows))


@pytest.fixture
def stories(tmp_path):
    random = np.random.default_rng(0)
    return written(tmp_path / "stories", [np.array([EOS, *random.integers(1, VOCABULARY, size)]) for size in (4, 1, 7, 3, 5, 2, 6)], True)


@pytest.fixture
def sampled(tmp_path):
    """Rows of nine tokens behind a given start, in which stories end where 0 stands."""
    rows = np.random.default_rng(1).integers(0, 5, (8, 10))
    rows[:, 0] = EOS
    return written(tmp_path / "sampled", rows, False)


def check_reads_alike(view, rows, complete):
    """Compare a view with its rows written down: ``complete`` says of each whether it is a whole story."""
    stream = np.concatenate(rows)
    assert (view.rows, view.tokens) == (len(rows), len(stream))
    assert view.row_lengths().tolist() == [len(row) for row in rows]
    assert [row.tolist() for row in view.iter_rows()] == [row.tolist() for row in rows]
    assert [view.row_is_complete(index) for index in range(len(rows))] == complete
    given = np.zeros(len(stream), bool)
    starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
    for index, start in enumerate(starts):
        given[start] = not complete[index] and not (index and complete[index - 1])
    written_tokens = stream[~(np.isin(np.arange(len(stream)), starts) & ~np.repeat(complete, [len(row) for row in rows]))]
    assert view.token_counts(chunk=7).tolist() == np.bincount(written_tokens, minlength=VOCABULARY).tolist()
    assert view.real_tokens == len(written_tokens)
    for start in range(0, len(stream) + 1, 3):
        for stop in range(start, len(stream) + 1, 4):
            assert view.stream(start, stop).tolist() == stream[start:stop].tolist()
            assert view.given_starts(start, stop).tolist() == given[start:stop].tolist()
    with pytest.raises(IndexError):
        view.stream(0, len(stream) + 1)
    with pytest.raises(IndexError):
        view.row(len(rows))


def test_a_selection_of_rows(stories, sampled):
    for corpus, chosen in ((stories, [5, 0, 3]), (sampled, [7, 2, 2, 4])):
        view = Selection.of_rows(corpus, np.array(chosen))
        complete = [corpus.rows_are_complete] * len(chosen)
        check_reads_alike(view, [corpus.row(index) for index in chosen], complete)


def test_complete_stories_are_found_in_sampled_rows(stories, sampled):
    expected = []
    for row in sampled.iter_rows():
        ends = np.flatnonzero(row == EOS)
        expected += [row[begin:end].tolist() for begin, end in pairwise(ends) if end - begin > 1]
    view = Selection.of_stories(sampled)
    assert len(expected) > 5 and [row.tolist() for row in view.iter_rows()] == expected
    check_reads_alike(Selection.of_stories(sampled, np.array([3, 1])), [np.array(expected[3]), np.array(expected[1])], [True, True])
    assert [row.tolist() for row in Selection.of_stories(stories).iter_rows()] == [row.tolist() for row in stories.iter_rows()]
    assert all(len(side) == stories.rows for side in complete_stories(stories))


def test_a_union_of_unlike_parts(stories, sampled):
    selection = Selection.of_rows(sampled, np.array([1, 6]))
    parts = [stories, selection, Selection.of_stories(sampled, np.array([0])), sampled]
    rows, complete = [], []
    for part in parts:
        rows += list(part.iter_rows())
        complete += [part.rows_are_complete] * part.rows
    check_reads_alike(Union(parts), rows, complete)


def test_a_views_hash_is_that_of_its_content(stories, sampled):
    views = [Selection.of_rows(stories, np.array(rows)) for rows in ([0, 1], [1, 0], [0, 1])]
    assert views[0].hash == views[2].hash != views[1].hash
    assert Union([stories, sampled]).hash != Union([sampled, stories]).hash


@pytest.mark.parametrize("layout", ["contiguous", "story_per_row"])
def test_training_reads_a_union_as_it_reads_a_copy(tmp_path, stories, layout):
    from collapse_lib.train.blocks import Blocks

    chosen = np.array([6, 0, 2])
    copy = written(tmp_path / "copy", [*stories.iter_rows(), *(stories.row(index) for index in chosen)], True)
    settings = TrainingSettings(block_size=8, layout=layout)
    ours, theirs = Blocks(Union([stories, Selection.of_rows(stories, chosen)]), settings), Blocks(copy, settings)
    assert len(ours) == len(theirs)
    for one, other in zip(ours.read(np.arange(len(ours))), theirs.read(np.arange(len(theirs))), strict=True):
        assert one.tolist() == other.tolist()


def test_the_tokens_of_a_view_are_the_corpus_own(stories):
    assert np.shares_memory(Union([stories]).stream(1, 4), stories.stream(0, 6))
    assert np.shares_memory(Selection.of_rows(stories, np.array([2])).row(0), stories.row(2))
