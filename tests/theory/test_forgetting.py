"""T19 on chains small enough to enumerate."""

from __future__ import annotations

import numpy as np
import pytest

from collapse_lib.theory import forgetting as theory
from collapse_lib.theory import proof
from collapse_lib.theory.repeated_error import blend


def count_chain(vocabulary: int, tokens: int, error: float, law: np.ndarray | None = None) -> np.ndarray:
    corpora = theory.corpora(vocabulary, tokens)
    return theory.transition(corpora, blend(corpora / tokens, error, law))


def test_there_are_as_many_corpora_as_there_should_be():
    corpora = theory.corpora(3, 6)
    assert corpora.shape == (28, 3) and len(np.unique(corpora, axis=0)) == 28 and np.all(corpora.sum(axis=1) == 6)


def test_the_transition_is_a_law_and_that_of_two_tokens_is_chapter_fours():
    np.testing.assert_allclose(count_chain(3, 6, 0.1).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(count_chain(2, 10, 0.1), proof.resampling_matrix(10, 0.05), rtol=0, atol=1e-14)
    np.testing.assert_allclose(np.diag(count_chain(3, 4, 0.0))[[0, -1]], 1)  # without an error what is lost is lost


@pytest.mark.parametrize(("vocabulary", "tokens", "error"), [(2, 10, 0.1), (3, 6, 0.1), (4, 4, 0.3)])
def test_t19_differences_and_information_decay_as_the_theorem_says(vocabulary, tokens, error):
    matrix = count_chain(vocabulary, tokens, error)
    delta, prior = theory.doeblin(matrix), np.full(len(matrix), 1 / len(matrix))
    path = theory.information(prior, matrix, 60)
    assert 0 < delta < 1 and path[0] == pytest.approx(np.log(len(matrix)))
    for n in (1, 2, 10):
        power = np.linalg.matrix_power(matrix, n)
        farthest = proof.total_variation(power[:, None], power[None]).max()
        assert farthest <= (1 - delta) ** n + 1e-12
    assert np.all(path[1:] <= (1 - delta) * path[:-1] + 1e-12)


def test_t19_one_generation_can_forget_as_little_as_delta():
    """The bound is attained by a transition of two corpora that errs with probability delta, both ways alike."""
    matrix = np.array([[0.95, 0.05], [0.05, 0.95]])
    assert theory.doeblin(matrix) == pytest.approx(0.1)
    assert proof.total_variation(*np.linalg.matrix_power(matrix, 7)) == pytest.approx(0.9**7)


def test_t19_delta_without_the_matrix_and_its_bound():
    for tokens in (3, 10, 20):
        delta = theory.doeblin(count_chain(2, tokens, 0.1))
        assert theory.counting_doeblin(tokens, 0.1) == pytest.approx(delta, rel=1e-9)
        assert np.log(delta) <= theory.log_doeblin_bound(2, tokens, 0.1)
    assert np.log(theory.doeblin(count_chain(4, 5, 0.2))) <= theory.log_doeblin_bound(4, 5, 0.2)
    assert theory.counting_doeblin(100, 0.1) == pytest.approx(7.64e-38, rel=1e-3)


@pytest.mark.parametrize("law", [None, np.array([0.7, 0.2, 0.1])])
def test_t19_how_fast_it_really_forgets(law):
    expected = np.concatenate([[value] * (degree + 1) for degree, value in enumerate(theory.eigenvalues(6, 0.1))])
    found = np.sort(np.linalg.eigvals(count_chain(3, 6, 0.1, law)).real)[::-1]
    np.testing.assert_allclose(found, np.sort(expected)[::-1], rtol=0, atol=1e-10)
    assert theory.eigenvalues(6, 0.1)[1] == pytest.approx(0.9)


def test_t19_information_falls_like_the_square_of_the_largest_eigenvalue():
    path = theory.information(np.full(11, 1 / 11), count_chain(2, 10, 0.1), 60)
    assert path[60] / path[59] == pytest.approx(0.81, abs=1e-3)


def test_t19_what_is_kept_is_never_forgotten():
    """The vocabulary is learned once: an error falls on the types that the first corpus had, and on no other."""
    corpora = theory.corpora(3, 4)
    seen = corpora > 0
    vocabularies, recipe = np.unique(seen, axis=0, return_inverse=True)
    prior, later = np.full(len(corpora), 1 / len(corpora)), np.zeros((len(corpora), len(corpora)))
    for index, vocabulary in enumerate(vocabularies):
        matrix = theory.transition(corpora, blend(corpora / 4, 0.1, vocabulary / vocabulary.sum()))
        later[recipe.ravel() == index] = np.linalg.matrix_power(matrix, 2000)[recipe.ravel() == index]
    forever = proof.mutual_information(prior, later)
    of_the_vocabulary = proof.entropy(np.bincount(recipe.ravel()) / len(corpora))
    assert 0.3 < forever < of_the_vocabulary
    free = np.linalg.matrix_power(count_chain(3, 4, 0.1), 2000)
    assert proof.mutual_information(prior, free) == pytest.approx(0, abs=1e-9)
