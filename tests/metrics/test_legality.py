"""Legality on a grammar small enough to write out, and against a naive scan on the embedded one."""

from __future__ import annotations

import math
import random

import pytest

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.legality import CAUSES, Judge, Verdict, legal_length_by_bisection, legality, sentences_in
from collapse_lib.text.grammar import StoryGrammar

SMALL = {
    "zipf": {"words": [1.0, 0.5], "compounds": [1.0, 0.0], "phrases": [0.7, 0.5]},
    "kinds": {"she": {"he": "she", "his": "her"}, "he": {"he": "he", "his": "his"}},
    "cast": {"hero": "child", "friend": "child", "toy": "toy"},
    "words": {"child": "Ann/she Bob/he Cy/he", "toy": "ball teddy_bear toy_car umbrella", "big": "old big"},
    "rules": {"see": "{Hero} had {a} {toy}.\n{Hero} saw {a} {big} {toy}."},
    "plots": {
        "lost": {"body": "{see} The {toy} was lost.\n{Friend} found {hero.his} {toy}.", "happy": "{Hero.he} laughed.", "sad": "It broke."},
        "trip": {"body": '{Hero} went out. "Where is {friend}?" asked {hero}.', "happy": "{Friend} came.", "sad": "{Hero.he} went home."},
    },
}
STORY = "Ann had a ball. The ball was lost.\n\nBob found her ball.\n\nShe laughed."


@pytest.fixture(scope="module")
def grammar() -> StoryGrammar:
    return StoryGrammar(source=SMALL)


@pytest.fixture(scope="module")
def language(grammar) -> list[str]:
    """All its stories: their probabilities add up to 1."""
    texts = sorted(set(grammar.stories(1, 20_000)))
    assert sum(math.exp(grammar.log_probability(text)) for text in texts) == pytest.approx(1, abs=1e-9)
    return texts


@pytest.fixture(scope="module")
def legal_sentences(language) -> set[str]:
    return {sentence for text in language for sentence in sentences_in(text)}


@pytest.fixture(scope="module")
def judge(grammar, legal_sentences) -> Judge:
    return judge_of(grammar, legal_sentences.__contains__)


def judge_of(grammar: StoryGrammar, legal_sentence) -> Judge:
    slots = [slot.words for slot in grammar._slots]
    return Judge(grammar.log_probability, grammar.log_prefix_probability, legal_sentence, grammar.word_types(), slots)


def naive_legal_length(text: str, grammar: StoryGrammar) -> int:
    return next((end - 1 for end in range(1, len(text) + 1) if grammar.log_prefix_probability(text[:end]) == -math.inf), len(text))


def test_every_story_of_the_language_is_legal(judge, language):
    for text in language:
        sentences = len(sentences_in(text))
        assert judge.judge(text) == Verdict(len(text), len(text), sentences, sentences, None)


@pytest.mark.parametrize(
    ("old", "new", "legal", "cause"),
    [
        ("laughed.", "laughex.", "laughe", "non_word"),  # a word nobody knows
        ("laughed.", "laugh.", "laugh", "non_word"),
        ("laughed.", "l\ufffdughed.", "l", "non_word"),
        ("laughed.", "3 laughed.", "She ", "non_word"),
        ("lost.\n\nBob", "lost.\n\nAnn", "lost.\n\n", "cast"),  # the hero in the friend's place, before a friend was named
        ("She laughed", "He laughed", "\n\n", "cast"),
        ("her ball", "his ball", "found h", "cast"),
        ("The ball", "The teddy bear", "The ", "cast"),
        ("her ball", "her toy car", "her ", "cast"),
        ("a ball. The ball", "an umbrella. The ball", "The ", "cast"),
        ("Ann had a ball", "Ann saw an old teddy bear", "The ", "cast"),  # what follows names another toy
        ("She laughed.", "Bob came.", "ball.\n\n", "plot"),
        ("Bob found her ball.", "She went home.", "lost.\n\n", "plot"),
        ("Bob found her ball.", "Ann went home.", "lost.\n\n", "cast"),  # of two wrongs the first: no hero is asked for
        ("The ball was lost.", "It broke.", "ball. ", "plot"),
        ("\n\nShe laughed.", "", "ball.", "early_end"),
        ("She laughed.", "She laugh", "laugh", "early_end"),
        ("She laughed.", "It broke. It broke.", "It broke.", "plot"),  # goes on behind an end
        ("was lost", "was found", "was ", "word"),
        ("was lost", "lost was", "ball ", "word"),
        ("had a ball", "had ball", "had ", "word"),
        ("a ball.", "a ball!", "a ball", "word"),
        ("a ball. The", "a ball.  The", "ball. ", "plot"),  # what stands between two sentences belongs to the second
    ],
)
def test_why_a_story_breaks(judge, grammar, legal_sentences, old, new, legal, cause):
    assert judge.judge(STORY).cause is None
    text = STORY.replace(old, new)
    verdict = judge.judge(text)
    assert verdict.cause == cause and text[: verdict.legal_characters].endswith(legal)
    assert verdict.legal_characters == naive_legal_length(text, grammar)
    assert verdict.legal_sentences == sum(sentence in legal_sentences for sentence in sentences_in(text))


def test_an_article_belongs_to_the_cast(grammar, judge):
    """'an umbrella' for 'a ball' breaks inside the article already."""
    source = {**SMALL, "plots": {"lost": {"body": "{Hero} had {a} {toy}. It was {a} {toy}.", "happy": "Yes.", "sad": "No."}}}
    grammar = StoryGrammar(source=source)
    verdict = judge_of(grammar, lambda sentence: True).judge("Ann had a ball. It was an umbrella.\n\nYes.")
    assert (verdict.cause, verdict.legal_characters) == ("cast", len("Ann had a ball. It was a"))
    capital = StoryGrammar(source={**SMALL, "plots": {"lost": {"body": "{A} {toy} fell. {Toy.s} fell.", "happy": "Yes.", "sad": "No."}}})
    verdict = judge_of(capital, lambda sentence: True).judge("A ball fell. Umbrellas fell.\n\nYes.")
    assert (verdict.cause, verdict.legal_characters) == ("cast", len("A ball fell. "))


def test_sentences():
    text = '"Where is Bob?" asked Ann. "I am here," said Bob. Oh! "Well..."\n\nThe end? No, not yet\n\n'
    assert sentences_in(text) == ['"Where is Bob?"', "asked Ann.", '"I am here," said Bob.', "Oh!", '"Well..."', "The end?", "No, not yet"]
    assert sentences_in("") == sentences_in(" \n\n ") == []


def test_odd_texts_are_judged(judge):
    for text in ("", "\n", "\n\n\n", ". . .", "'s", "Ann's", "\ufffd", "A", "An ", "an an an", "- - -", "Ann had a 's. "):
        verdict = judge.judge(text)
        assert verdict.cause in CAUSES and verdict.legal_characters <= len(text)


def test_places_are_the_first_impossible_ones():
    grammar, chance = StoryGrammar(), random.Random(3)
    for index, text in enumerate(grammar.stories(4, 16)):
        place = chance.randrange(len(text))
        broken = [text, text[:place], text[:place] + chance.choice("qe ,") + text[place:], "".join(chance.sample(text, len(text)))][index % 4]
        legal = legal_length_by_bisection(broken, grammar.log_prefix_probability)
        assert grammar.log_prefix_probability(broken[:legal]) > -math.inf
        assert legal == len(broken) or grammar.log_prefix_probability(broken[: legal + 1]) == -math.inf


@pytest.fixture(scope="module")
def controls() -> dict[str, dict[str, dict]]:
    """Real stories, the same with their last halves' words shuffled, with all words shuffled, and random letters."""
    grammar, chance = StoryGrammar(), random.Random(1)
    texts = list(grammar.stories(5, 8))
    real = {sentence for text in texts for sentence in sentences_in(text)}
    judge = judge_of(grammar, real.__contains__)

    def shuffled(text: str) -> str:
        return " ".join(chance.sample(words := text.split(" "), len(words)))

    half = [text[: len(text) // 2] + shuffled(text[len(text) // 2 :]) for text in texts]
    letters = ["".join(chance.choices("abcdefgh ", k=300)) for _ in texts]
    samples = {"real": texts, "half": half, "shuffled": list(map(shuffled, texts)), "letters": letters}
    return {name: legality([judge.judge(text) for text in sample]) for name, sample in samples.items()}


def test_real_stories_are_legal_and_controls_less_so(controls):
    shares = {name: metrics["legal_share"]["value"] for name, metrics in controls.items()}
    assert shares["real"] == 1 > shares["half"] > 0.45 > shares["shuffled"] and shares["letters"] < 0.05
    for name, metrics in controls.items():
        assert metrics["legal_stories"]["value"] == metrics["legal_sentences"]["value"] == 1 or name != "real"
        assert metrics["legal_stories"]["value"] + sum(metrics[f"broken_{cause}"]["value"] for cause in CAUSES) == pytest.approx(1)
    assert controls["half"]["legal_stories"]["value"] == 0 and 0.1 < controls["half"]["legal_sentences"]["value"] < 0.9
    assert controls["letters"]["broken_non_word"]["value"] > 0.7


def test_standard_errors_take_stories_as_units():
    found = legality([Verdict(10, 5, 4, 4, "plot"), Verdict(100, 100, 2, 2, None), Verdict(0, 0, 0, 0, "early_end"), Verdict(8, 2, 2, 0, "cast")])
    assert found["legal_share"]["value"] == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)
    assert found["legal_share"]["standard_error"] == pytest.approx(0.4269562 / 2, rel=1e-5)
    assert found["legal_sentences"]["value"] == pytest.approx(6 / 9)
    assert found["broken_plot"]["value"] == 0.25 and found["broken_plot"]["counts"] == {"stories": 1}
    with pytest.raises(UserError, match="no complete story"):
        legality([])
