from __future__ import annotations

import math
import random
import re
import statistics
from collections import Counter
from importlib import resources
from itertools import pairwise

import pytest
import yaml

from collapse_lib.experiment.errors import UserError
from collapse_lib.text.grammar import StoryGrammar, words_in

# Small enough to write out, with every construct: slots that exclude each other, kinds, forms, marks, choices, ambiguity, compounds.
SMALL = {
    "zipf": {"words": [1.0, 0.5], "compounds": [1.0, 0.0], "phrases": [0.7, 0.5]},
    "kinds": {"she": {"he": "she"}, "he": {"he": "he"}},
    "compounds": {"town": "front+back"},
    "cast": {"hero": "child", "friend": "child"},
    "words": {"child": "Ann/she Bob/he Cy/he", "thing": "egg mouse/s=mice", "big": "old big", "front": "Oak Ash", "back": "ton by"},
    "rules": {"see": "{Hero} saw {a} [{big} ]{thing}.\n{Hero} saw (an old|a big) {thing}."},
    "plots": {
        "meeting": {"body": "{see}\n{Friend} came.", "happy": "{Hero.he} smiled.", "sad": "{Hero} left {friend}.\nNo {thing.s}!"},
        "trip": {"body": "{A} {thing} went to {town}.", "happy": "{Hero} slept.", "sad": "The end."},
    },
}


@pytest.fixture(scope="module")
def grammar() -> StoryGrammar:
    return StoryGrammar()


@pytest.fixture(scope="module")
def small() -> StoryGrammar:
    return StoryGrammar(source=SMALL)


def test_a_story_depends_on_seed_and_index_alone(grammar):
    ahead = list(grammar.stories(5, 30))
    again = [StoryGrammar().story(5, index) for index in (29, 3, 17)]
    assert again == [ahead[29], ahead[3], ahead[17]]
    assert list(grammar.stories(5, 4, start=26)) == ahead[26:]
    assert len(set(ahead)) == 30
    assert not set(ahead) & set(grammar.stories(6, 30))


def test_stories_are_short_texts_in_plain_characters(grammar):
    lengths = []
    for story in grammar.stories(1, 1000):
        assert re.fullmatch(r'[A-Za-z0-9 .,!?"\'\n-]+', story), story
        assert not re.search(r"  | \n|\n | [.,!?]|,,|\.\.|\n\n\n|^\s|\s$", story), story
        assert story.count('"') % 2 == 0, story
        assert all(re.match(r'"?[A-Z]', sentence) for sentence in re.split(r"(?<=[.!])\s+(?!and )", story)), story
        lengths.append(len(story.split()))
    assert statistics.quantiles(lengths, n=20)[0] > 60
    assert statistics.quantiles(lengths, n=20)[-1] < 125


def test_articles_and_pronouns_agree(grammar):
    words = yaml.safe_load((resources.files("collapse_lib.text") / "data" / "storygrammar.yaml").read_text(encoding="utf-8"))["words"]
    people = dict(entry.replace("_", " ").split("/") for name in ("child", "elder", "pet_name") for entry in words[name].split())
    for index in range(1500):
        story = grammar.sample(2, index)
        assert not re.search(r"\b[Aa] (?!eu)(?=[aeio]|u(?!ni|se|ku))", story.text), story.text
        assert not re.search(r"\b[Aa]n (?![aeiouAEIOU]|hour|honest)", story.text), story.text
        kinds = {people[word] for slot, word in story.cast.items() if slot in ("hero", "friend", "elder", "pet")}
        assert "he" in kinds or not re.search(r"\b(he|him|his|himself|boy|son)\b", story.text, re.I), story.text
        assert "she" in kinds or not re.search(r"\b(she|her|herself|girl|daughter)\b", story.text, re.I), story.text


def test_what_an_ending_speaks_of_was_told_before(grammar):
    plots = Counter()
    for index in range(1500):
        story = grammar.sample(3, index)
        assert story.fits
        assert story.text.startswith(story.body) and story.text.endswith(story.ending)
        assert all(re.search(rf"\b{word}", story.body, re.I) for slot, word in story.cast.items() if slot != "elder"), story  # everyone has parents
        assert story.cast["hero"] != story.cast.get("friend")
        plots[story.plot, story.happy] += 1
    assert len(plots) == 2 * len(grammar.plots) >= 12
    assert min(plots.values()) > 15


def test_a_misfit_keeps_the_body_and_leaves_the_language(grammar):
    for index in range(20):
        story, misfit = grammar.sample(4, index), grammar.sample(4, index, misfit=True)
        assert misfit.body == story.body and misfit.happy == story.happy
        assert not misfit.fits and misfit.ending_plot != story.plot
        assert grammar.log_probability(story.text) > -math.inf
        assert grammar.log_probability(misfit.text) == -math.inf


def test_happy_and_sad_endings_never_read_the_same(grammar):
    endings = {True: set(), False: set()}
    for index in range(3000):
        story = grammar.sample(8, index)
        endings[story.happy].add(story.ending)
    assert not endings[True] & endings[False]


def test_vocabulary_is_large_with_a_long_tail(grammar):
    types = grammar.word_types()
    assert len(types) > 2500
    counts = Counter(word for story in grammar.stories(9, 2000) for word in words_in(story))
    assert set(counts) <= types
    assert {"said", "berries", "carefully", "running", "mice"} <= types
    once = sum(count == 1 for count in counts.values())
    assert once > 0.1 * len(counts)
    assert sum(count for _, count in counts.most_common(100)) > 0.4 * counts.total()


def test_every_story_has_a_probability_and_its_mean_is_stable(grammar):
    def entropy(seed: int) -> list[float]:
        return [-grammar.log_probability(story) for story in grammar.stories(seed, 40)]

    first, second = entropy(1), entropy(2)
    assert all(20 < value < 400 for value in first + second)
    error = math.hypot(statistics.stdev(first), statistics.stdev(second)) / math.sqrt(40)
    assert abs(statistics.mean(first) - statistics.mean(second)) < 4 * error


def test_altered_stories_are_impossible(grammar):
    story = grammar.story(1, 1)
    words = story.split(" ")
    for place in (3, len(words) // 2, len(words) - 1):
        altered = " ".join([*words[:place], "blorp", *words[place + 1 :]])
        assert grammar.log_probability(altered) == -math.inf
    for altered in (story + " ", story[:-1], story + story, "", story.lower()):
        assert grammar.log_probability(altered) == -math.inf
    hero = grammar.sample(1, 1).cast["hero"]
    other = re.sub(rf"{hero}(?!.*{hero})", "Zuleika", story, flags=re.S)  # a name forgotten half-way
    assert other != story and grammar.log_probability(other) == -math.inf


def test_the_twin_has_the_same_support_and_another_distribution(grammar):
    twin = StoryGrammar("twin")
    assert twin.word_types() == grammar.word_types()
    mine = [(grammar.log_probability(story), twin.log_probability(story)) for story in grammar.stories(1, 25)]
    theirs = [(grammar.log_probability(story), twin.log_probability(story)) for story in twin.stories(1, 25)]
    assert min(min(pair) for pair in mine + theirs) > -math.inf
    assert statistics.mean(p - q for p, q in mine) > 10
    assert statistics.mean(q - p for p, q in theirs) > 10


def test_small_grammar_by_hand(small):
    def share(rank: int, size: int, exponent: float, shift: float) -> float:
        return (rank + shift) ** -exponent / sum((r + shift) ** -exponent for r in range(1, size + 1))

    def phrase(rank: int, size: int) -> float:
        return share(rank, size, 0.7, 0.5)

    first = phrase(1, 2)
    # 'Bob saw an old egg.' is written in two ways: the optional adjective, and the choice in the second line.
    child = [share(rank, 3, 1.0, 0.5) for rank in (1, 2, 3)]
    adjective = share(1, 2, 1.0, 0.5)
    sight = first * first * adjective + phrase(2, 2) * first
    expected = first * child[1] * sight * share(1, 2, 1.0, 0.5) * child[0] / (1 - child[1]) * first
    assert small.log_probability("Bob saw an old egg.\n\nAnn came.\n\nHe smiled.") == pytest.approx(math.log(expected))
    town = (1 / 2) / (1 + 1 / 2 + 1 / 3 + 1 / 4)  # Oakton, Oakby, Ashton, Ashby
    expected = phrase(2, 2) * share(2, 2, 1.0, 0.5) * town * phrase(2, 2)
    assert small.log_probability("A mouse went to Oakby.\n\nThe end.") == pytest.approx(math.log(expected))
    assert small.log_probability("Bob saw an old egg.\n\nBob came.\n\nHe smiled.") == -math.inf
    assert small.log_probability("Bob saw an old egg.\n\nAnn came.\n\nShe smiled.") == -math.inf
    assert small.word_types() == set(
        words_in("a an old big egg eggs mouse mice saw came left no smiled he she Ann Bob Cy went to slept the end Oakton Oakby Ashton Ashby")
    )


@pytest.mark.parametrize("variant", ["standard", "twin"])
def test_small_grammar_frequencies_follow_the_probabilities(variant):
    grammar = StoryGrammar(variant, source=SMALL)
    stories = Counter(grammar.stories(11, 30_000))
    probability = {story: math.exp(grammar.log_probability(story)) for story in stories}
    assert sum(probability.values()) == pytest.approx(1, abs=1e-9)  # all of the 282 stories were met, and nothing is left over
    chi_square = sum((count - 30_000 * probability[story]) ** 2 / (30_000 * probability[story]) for story, count in stories.items())
    freedom = len(stories) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_prefix_probabilities_add_up(small, grammar):
    assert small.log_prefix_probability("") == pytest.approx(0, abs=1e-12)
    characters = sorted({character for story in small.stories(1, 2000) for character in story})
    sight = "Cy saw a mouse.\n\nAnn came.\n\nNo "
    for prefix in ("", "A", "An", "Ann ", "Bob saw a", "Bob saw an old", "Bob saw an old egg.\n\n", "A mouse went to Oak", sight):
        whole = math.exp(small.log_probability(prefix)) + sum(math.exp(small.log_prefix_probability(prefix + c)) for c in characters)
        assert math.exp(small.log_prefix_probability(prefix)) == pytest.approx(whole), prefix
    story = grammar.story(1, 2)
    falling = [grammar.log_prefix_probability(story[:length]) for length in range(0, len(story) + 1, 40)]
    assert falling[0] == pytest.approx(0, abs=1e-9)
    assert all(a >= b - 1e-9 for a, b in pairwise(falling))
    assert grammar.log_prefix_probability(story) == pytest.approx(grammar.log_probability(story))  # nothing follows a full stop of this story
    assert grammar.log_prefix_probability(story[:50] + "#") == -math.inf


def test_prefix_frequencies_follow_the_probabilities(grammar):
    stories = list(grammar.stories(12, 4000))
    for prefix in ("Once upon a time, there was a", "L", "Once there was an", random.Random(1).choice(stories)[:20]):
        expected = math.exp(grammar.log_prefix_probability(prefix))
        observed = sum(story.startswith(prefix) for story in stories) / len(stories)
        assert abs(observed - expected) < 4 * math.sqrt(expected / len(stories)), prefix


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ("{nobody} came.", "nobody"),
        ("{hero.she} came.", "no form 'she'"),
        ("(one|two came.", "missing"),
        ("one] came.", "partner"),
        ("one|two", "outside brackets"),
        ("{hero}ish", "grow together"),
        ("a {thing}", "article"),
        ("{see}", "leads back to itself"),
    ],
)
def test_a_wrong_rule_is_named(rule, complaint):
    with pytest.raises(ValueError, match=re.escape(complaint)):
        StoryGrammar(source={**SMALL, "rules": {"see": rule}})


def test_an_unknown_variant_is_the_users_error():
    with pytest.raises(UserError, match="'cousin'; there are standard and twin"):
        StoryGrammar("cousin")
