"""The true surprise of a text's pieces, and its non-words."""

import math

import pytest

from collapse_lib.metrics.surprise import in_non_words, law_losses
from collapse_lib.text.grammar import StoryGrammar


def test_losses_are_those_of_a_law_that_can_be_counted():
    """Of three texts, a third each: what is left of them after every piece."""
    texts = ["the cat", "the dog", "a dog"]

    def log_prefix_probabilities(text):
        counts = [sum(other.startswith(text[:end]) for other in texts) for end in range(len(text) + 1)]
        return [math.log(count / 3) if count else -math.inf for count in counts]

    assert law_losses("", ["the", " d", "og"], log_prefix_probabilities) == pytest.approx([math.log(1.5), math.log(2), 0])
    assert law_losses("the", [" c", "u", "t"], log_prefix_probabilities) == [pytest.approx(math.log(2)), math.inf, None]
    assert law_losses("The", [" cat"], log_prefix_probabilities) is None
    assert law_losses("a", [], log_prefix_probabilities) == []


def test_losses_of_a_story_add_up_to_what_the_grammar_says_of_it():
    grammar = StoryGrammar("small")
    story = grammar.story(1, 0)
    pieces = [story[start : start + 3] for start in range(0, len(story), 3)]
    assert sum(law_losses("", pieces, grammar.log_prefix_probabilities)) == pytest.approx(-grammar.log_prefix_probability(story))


@pytest.mark.parametrize(
    ("given", "pieces", "expected"),
    [
        ("", ["The", " dog", " ba", "rkq", "ed", "."], [0, 0, 1, 1, 1, 0]),
        ("The do", ["g", " sat"], [0, 0]),
        ("The do", ["zq", " sat"], [1, 0]),
        ("", ["I", " don", "'t", " z", " 3", "\n"], [0, 0, 0, 1, 0, 0]),
        ("", ["", "a"], [0, 0]),
    ],
)
def test_pieces_with_letters_of_non_words(given, pieces, expected):
    assert in_non_words(given, pieces) == [bool(value) for value in expected]
