from __future__ import annotations

import numpy as np

from collapse_lib.metrics.story_sample import complete_stories
from collapse_lib.text.corpus import TokenCorpus

EOS = 9
ROWS = [[1, 1, EOS, 2], [3, 3, 3, 3], [EOS, 4], [5, EOS, 6, EOS], [7, 7, 7, EOS]]


def corpus(rows: list[list[int]], complete: bool = False, has_start: bool = True) -> TokenCorpus:
    rows = [np.array([EOS] * has_start + row, np.uint16) for row in rows]
    return TokenCorpus.in_memory(rows, EOS, 10, rows_are_complete=complete, has_start=has_start)


def test_the_first_story_of_each_row_counts_if_it_ends_there():
    for has_start in (True, False):
        found = complete_stories(corpus(ROWS, has_start=has_start), 100, seed=1)
        assert [story.tolist() for story in found] == [[1, 1], [], [5], [7, 7, 7]]


def test_complete_rows_are_stories():
    assert [story.tolist() for story in complete_stories(corpus([[1, 2], [3]], complete=True), 5, seed=1)] == [[1, 2], [3]]


def test_a_sample_is_drawn_evenly_and_follows_from_its_seed():
    stories = corpus([[number, EOS] for number in range(8)])
    drawn = [tuple(int(story[0]) for story in complete_stories(stories, 2, seed)) for seed in range(2000)]
    assert drawn[7] == tuple(int(story[0]) for story in complete_stories(stories, 2, 7))
    assert all(a < b for a, b in drawn)
    often = np.bincount(np.ravel(drawn))
    assert len(often) == 8 and abs(often - 500).max() < 5 * np.sqrt(500)
