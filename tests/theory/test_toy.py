"""The toy language: its law is one, text is drawn from it, counting is a plain count, and what the chapters say of it holds."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.theory import contexts, toy


def test_the_law_has_thirty_words_and_rows_that_sum_to_one():
    assert len(toy.WORDS) == 31 and toy.WORDS[0] == toy.EDGE
    assert {follower for followers in toy.FOLLOWERS.values() for follower in followers} <= set(toy.WORDS), "no follower is misspelt"
    assert np.allclose(toy.LAW.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert np.all(toy.LAW[:, 1:].sum(axis=0) > 0), "every word is said"


def test_the_cat_is_the_context_of_all_chapters():
    cat = toy.LAW[toy.index("cat")]
    assert cat[cat > 0].tolist() == [0.4, 0.3, 0.2, 0.1]
    assert [toy.WORDS[word] for word in cat.nonzero()[0]] == ["sat", "ran", "slept", "flew"]


def test_text_is_drawn_from_the_law():
    corpus = toy.write(toy.LAW, 20_000, np.random.default_rng(1))
    counts = toy.count(corpus)
    assert not counts[toy.LAW == 0].any()
    times = counts.sum(axis=1)
    error = np.sqrt(toy.LAW * (1 - toy.LAW) / times[:, None])
    assert np.all(np.abs(counts / times[:, None] - toy.LAW) <= 5 * error + 1e-12)


def test_counts_are_those_of_a_plain_loop_and_of_the_flow_of_stories():
    corpus = toy.write(toy.LAW, 50, np.random.default_rng(2))
    counts, plain = toy.count(corpus), Counter()
    for row in corpus:
        words = [0, *(word for word in row.tolist() if word), 0]
        plain.update(pairwise(words))
    assert {(x, v): counts[x, v] for x, v in zip(*counts.nonzero(), strict=True)} == plain
    flow, names = contexts.story_flow([[toy.WORDS[word] for word in row if word] for row in corpus], order=1)
    order = [toy.index(name[0]) if name else 0 for name in names]
    assert np.array_equal(counts[np.ix_(order, order)], flow)


def test_an_empty_sentence_and_a_cut_one_are_counted():
    assert toy.count(np.zeros((3, 1), np.int64))[0, 0] == 3
    cut = toy.write(toy.LAW, 5, np.random.default_rng(3), longest=2)
    assert cut.shape == (5, 2) and toy.count(cut).sum() == 15, "two words and their end"


def test_learning_divides_and_errs():
    counts = toy.count(toy.write(toy.LAW, 200, np.random.default_rng(4)))
    assert np.allclose(toy.learn(counts)[toy.index("the")], counts[toy.index("the")] / counts[toy.index("the")].sum())
    erring = toy.learn(counts, 0.31)
    assert np.allclose(erring, 0.69 * toy.learn(counts) + 0.01, rtol=0, atol=1e-12)
    assert toy.learn(np.zeros((31, 31)))[toy.index("fox"), 0] == 1, "an unknown word ends the sentence"


def test_a_chain_without_an_error_says_only_pairs_that_it_has_read():
    first = toy.write(toy.LAW, 60, np.random.default_rng(5))
    corpora = toy.recur(first, 5, np.random.default_rng(6))
    pairs = [toy.count(corpus) > 0 for corpus in corpora]
    assert len(corpora) == 6 and all(len(corpus) == 60 for corpus in corpora)
    assert all(np.all(later <= earlier) for earlier, later in pairwise(pairs))


def test_sentences_read_as_text():
    words = [toy.index(word) for word in ("the", "cat", "sat")]
    corpus = np.array([[*words, 0], [toy.index("tim"), 0, 0, 0], [*words, 0]])
    assert toy.sentences(corpus) == ["the cat sat.", "tim.", "the cat sat."]
    assert toy.commonest(corpus, 1) == [("the cat sat.", 2)]
    with pytest.raises(UserError, match="no word 'mouse'"):
        toy.index("mouse")
