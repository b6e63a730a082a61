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
from collapse_lib.metrics.legality import legal_length_by_bisection
from collapse_lib.text.grammar import ILLEGAL, StoryGrammar, sentences_in, words_in
from collapse_lib.text.tokenizer import learn

# Small enough to write out, with every construct: slots that exclude each other, kinds, forms, marks, choices, ambiguity, compounds.
TINY = {
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
    return StoryGrammar("small")


@pytest.fixture(scope="module")
def tiny() -> StoryGrammar:
    return StoryGrammar(source=TINY)


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


def test_tiny_grammar_by_hand(tiny):
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
    assert tiny.log_probability("Bob saw an old egg.\n\nAnn came.\n\nHe smiled.") == pytest.approx(math.log(expected))
    town = (1 / 2) / (1 + 1 / 2 + 1 / 3 + 1 / 4)  # Oakton, Oakby, Ashton, Ashby
    expected = phrase(2, 2) * share(2, 2, 1.0, 0.5) * town * phrase(2, 2)
    assert tiny.log_probability("A mouse went to Oakby.\n\nThe end.") == pytest.approx(math.log(expected))
    assert tiny.log_probability("Bob saw an old egg.\n\nBob came.\n\nHe smiled.") == -math.inf
    assert tiny.log_probability("Bob saw an old egg.\n\nAnn came.\n\nShe smiled.") == -math.inf
    assert tiny.word_types() == set(
        words_in("a an old big egg eggs mouse mice saw came left no smiled he she Ann Bob Cy went to slept the end Oakton Oakby Ashton Ashby")
    )


@pytest.mark.parametrize("variant", ["standard", "twin"])
def test_tiny_grammar_frequencies_follow_the_probabilities(variant):
    grammar = StoryGrammar(variant, source=TINY)
    stories = Counter(grammar.stories(11, 30_000))
    probability = {story: math.exp(grammar.log_probability(story)) for story in stories}
    assert sum(probability.values()) == pytest.approx(1, abs=1e-9)  # all of the 282 stories were met, and nothing is left over
    chi_square = sum((count - 30_000 * probability[story]) ** 2 / (30_000 * probability[story]) for story, count in stories.items())
    freedom = len(stories) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def test_prefix_probabilities_add_up(tiny, grammar):
    assert tiny.log_prefix_probability("") == pytest.approx(0, abs=1e-12)
    characters = sorted({character for story in tiny.stories(1, 2000) for character in story})
    sight = "Cy saw a mouse.\n\nAnn came.\n\nNo "
    for prefix in ("", "A", "An", "Ann ", "Bob saw a", "Bob saw an old", "Bob saw an old egg.\n\n", "A mouse went to Oak", sight):
        whole = math.exp(tiny.log_probability(prefix)) + sum(math.exp(tiny.log_prefix_probability(prefix + c)) for c in characters)
        assert math.exp(tiny.log_prefix_probability(prefix)) == pytest.approx(whole), prefix
    story = grammar.story(1, 2)
    falling = [grammar.log_prefix_probability(story[:length]) for length in range(0, len(story) + 1, 40)]
    assert falling[0] == pytest.approx(0, abs=1e-9)
    assert all(a >= b - 1e-9 for a, b in pairwise(falling))
    assert grammar.log_prefix_probability(story) == pytest.approx(grammar.log_probability(story))  # nothing follows a full stop of this story
    assert grammar.log_prefix_probability(story[:50] + "#") == -math.inf


def assert_one_pass_is_enough(grammar, text):
    found = grammar.log_prefix_probabilities(text)
    assert found == pytest.approx([grammar.log_prefix_probability(text[:end]) for end in range(len(text) + 1)], abs=1e-9)


def test_the_probabilities_of_all_beginnings_are_those_of_each(tiny, grammar, small):
    for story in sorted(set(tiny.stories(1, 40))):
        for text in (story, story[:9] + "#" + story[9:], story.replace(" an ", " a "), story.replace(" a ", " an "), f"{story} No"):
            assert_one_pass_is_enough(tiny, text)
    for text in ("", "a", "An", "A dragon", "An apple", "Once upon a time, there was an"):
        assert_one_pass_is_enough(grammar, text)
    assert_one_pass_is_enough(small, small.story(1, 3))
    story = grammar.story(1, 2)
    every = grammar.log_prefix_probabilities(story)
    assert every[::29] == pytest.approx([grammar.log_prefix_probability(story[:end]) for end in range(0, len(story) + 1, 29)], abs=1e-9)


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
        StoryGrammar(source={**TINY, "rules": {"see": rule}})


def test_an_unknown_variant_is_the_users_error():
    with pytest.raises(UserError, match="'cousin'; there are standard, twin, small, small-twin"):
        StoryGrammar("cousin")


# The small grammar


READABLE = {
    2: (
        "Anna lived near the pond with her sister. One Sunday, Anna had a cookie for lunch. Tom had nothing to eat.\n\n"
        "Anna gave Tom half of the cookie, and they ate together."
    ),
    9: (
        "Mia had a red drum, but one evening it was gone. She looked under the bed, but it was not there.\n\n"
        'Then Tom came with the red drum. "Thank you," said Mia.'
    ),
    11: ("One cloudy Friday, a dog came to Tom's door. It was very hungry.\n\nThe dog ate and played and stayed with Tom for ever."),
}


@pytest.mark.parametrize("seed", READABLE)
def test_small_stories_read_like_stories(small, seed):
    assert small.story(seed, 0) == READABLE[seed]


def test_small_stories_have_two_to_five_sentences_and_one_cast(small):
    words = yaml.safe_load((resources.files("collapse_lib.text") / "data" / "smallgrammar.yaml").read_text(encoding="utf-8"))["words"]
    people = dict(entry.split("/") for name in ("child", "elder") for entry in words[name].split())
    names = {entry.split("/")[0] for entry in words["child"].split()}
    lengths = Counter()
    for index in range(3000):
        story = small.sample(1, index)
        assert re.fullmatch(r"[A-Za-z .,!?\"'\n]+", story.text), story.text
        assert not re.search(r"  | \n|\n | [.,!?]|,,|\.\.|\n\n\n|^\s|\s$", story.text), story.text
        assert all(re.match(r'"?[A-Z]', sentence) for sentence in sentences_in(story.text)), story.text
        assert not re.search(r"\b[Aa] (?=[aeiou])|\b[Aa]n (?![aeiou])", story.text), story.text
        kinds = {people[word] for slot, word in story.cast.items() if slot in ("hero", "friend", "elder")}
        assert "he" in kinds or not re.search(r"\b(he|him|his|boy)\b", story.text, re.I), story.text
        assert "she" in kinds or not re.search(r"\b(she|her|girl)\b", story.text, re.I), story.text
        told = {word for word in re.findall(r"[A-Z][a-z]+", story.text) if word in names}
        assert told == {story.cast[slot] for slot in ("hero", "friend") if slot in story.cast}, story.text
        lengths[len(sentences_in(story.text))] += 1
    assert set(lengths) == {2, 3, 4, 5}


def test_small_grammar_has_a_tail_worth_losing(small):
    rare = {"words": small.word_counts(), "names": small.cast_probabilities("hero"), "endings": small.ending_probabilities()}
    for probabilities in rare.values():
        assert 1e-4 < min(probabilities.values()) < 2.5e-3
        assert max(probabilities.values()) > 50 * min(probabilities.values())
    assert 0.01 < min(small.plot_probabilities().values()) < 0.02
    assert sum(count < 1e-2 for count in rare["words"].values()) > 100


def test_nearly_every_word_of_the_small_grammar_is_one_token_of_a_small_vocabulary(small):
    tokenizer = learn(small.stories(1, 6000), 1280)
    assert tokenizer.vocabulary < 1280  # no pair is left to be merged
    stories = list(small.stories(2, 500))
    assert [tokenizer.decode(tokenizer.encode(story)) for story in stories] == stories
    split = [word for story in stories for word in re.findall(r" ?[A-Za-z]+", story) if len(tokenizer.encode(word)) > 1]
    assert len(split) < 0.002 * sum(len(words_in(story)) for story in stories)


@pytest.mark.parametrize("variant", ["small", "small-twin"])
def test_small_story_probabilities_add_up_and_are_those_of_samples(variant):
    grammar = StoryGrammar(variant)
    stories = list(grammar.stories(3, 8000))
    characters = sorted(set("".join(stories)))
    rng = random.Random(2)
    assert grammar.log_prefix_probability("") == pytest.approx(0, abs=1e-9)
    for story in grammar.stories(4, 12):
        prefix = story[: rng.randrange(len(story) + 1)]
        following = [grammar.log_prefix_probability(prefix + character) for character in characters]
        total = math.exp(grammar.log_probability(prefix)) + sum(map(math.exp, following))  # to end here, or to go on
        assert total == pytest.approx(math.exp(grammar.log_prefix_probability(prefix))), prefix
    for story in grammar.stories(5, 15):
        prefix = story[: rng.randrange(3, 40)]
        share = math.exp(grammar.log_prefix_probability(prefix))
        seen = sum(other.startswith(prefix) for other in stories)
        assert abs(seen - 8000 * share) < 5 * math.sqrt(8000 * share) + 1, prefix


# What is expected of a story


def test_expectations_of_the_tiny_grammar_are_sums_over_all_its_stories():
    """All stories are written out and weighted with the automaton's probabilities: two recursions that share no code agree."""
    for variant in ("standard", "twin"):
        grammar = StoryGrammar(variant, source=TINY)
        drawn = {story.text: story for story in (grammar.sample(11, index) for index in range(30_000))}
        words, plots, endings, cast = Counter(), Counter(), Counter(), Counter()
        for text, story in drawn.items():
            probability = math.exp(grammar.log_probability(text))
            words.update({word: probability * count for word, count in Counter(words_in(text)).items()})
            plots[story.plot] += probability
            endings[story.ending_name] += probability
            cast.update(dict.fromkeys(story.cast.items(), probability))
        assert sum(plots.values()) == pytest.approx(1, abs=1e-9)  # none is missing
        assert grammar.word_counts() == pytest.approx(dict(words))
        assert grammar.plot_probabilities() == pytest.approx(dict(plots))
        assert grammar.ending_probabilities() == pytest.approx(dict(endings))
        assert {(slot, word): p for slot in ("hero", "friend") for word, p in grammar.cast_probabilities(slot).items()} == pytest.approx(dict(cast))


@pytest.mark.parametrize("variant", ["standard", "small", "small-twin"])
def test_expectations_are_the_means_of_samples(variant):
    grammar, count = StoryGrammar(variant), 6000
    stories = [grammar.sample(4, index) for index in range(count)]
    words: dict[str, Counter] = {}
    for number, story in enumerate(stories):
        for word in words_in(story.text):
            words.setdefault(word, Counter())[number] += 1
    expected = grammar.word_counts()
    assert set(words) <= set(expected) == grammar.word_types()
    for word, probability in expected.items():
        occurrences = words.get(word, Counter())
        spread = math.sqrt(max(probability * count, sum(n * n for n in occurrences.values())))
        assert abs(occurrences.total() - count * probability) < 5 * spread + 1, word
    assert sum(expected.values()) == pytest.approx(statistics.mean(len(words_in(story.text)) for story in stories), rel=0.01)
    for slot in {slot for story in stories for slot in story.cast}:
        told = Counter(story.cast.get(slot) for story in stories)
        for word, probability in grammar.cast_probabilities(slot).items():
            assert abs(told[word] - count * probability) < 5 * math.sqrt(count * probability) + 1, (slot, word)
    assert sum(grammar.cast_probabilities("hero").values()) == pytest.approx(1)
    assert sum(grammar.ending_probabilities().values()) == pytest.approx(1)
    told = Counter(story.ending_name for story in stories)
    for name, probability in grammar.ending_probabilities().items():
        assert abs(told[name] - count * probability) < 5 * math.sqrt(count * probability) + 1, name


# What a text tells


@pytest.mark.parametrize("variant", ["standard", "small"])
def test_a_story_is_read_as_it_was_made(variant):
    grammar = StoryGrammar(variant)
    for index in range(8 if variant == "standard" else 60):
        story = grammar.sample(5, index)
        reading = grammar.read(story.text)
        assert reading.legal == len(story.text)
        assert (reading.plot, reading.cast) == (story.plot, story.cast)
        assert reading.ending in ({story.ending_name} if variant == "small" else {story.ending_name, None})


def test_a_broken_story_is_read_as_far_as_it_goes(small):
    story = small.sample(1, 6)
    for place in range(0, len(story.text), 7):
        broken = story.text[:place] + "#" + story.text[place:]
        reading = small.read(broken)
        assert reading.legal == place
        assert reading.plot in (story.plot, None) and reading.cast.items() <= story.cast.items()
        assert small.log_prefix_probability(broken[: reading.legal]) > -math.inf
    assert small.read("One sunny day, ").plot is None and small.read("").legal == 0
    other = small.read("Purple purple purple.\n\n" + story.ending)
    assert (other.legal, other.plot, other.ending) == (0, None, story.ending_name)
    assert small.read(story.body).ending is None and small.read(story.body + "\n\nThe end.").ending is None


def test_the_sentences_of_the_tiny_grammar_are_those_of_its_stories(tiny):
    sentences = {sentence for index in range(5000) for sentence in sentences_in(tiny.story(11, index))}
    words = sorted({word for sentence in sentences for word in re.findall(r"\w+", sentence)})
    rng = random.Random(1)
    for sentence in sorted(sentences):
        assert tiny.is_sentence(sentence)
        pieces = sentence.split(" ")
        for place in range(len(pieces)):
            changed = " ".join([*pieces[:place], re.sub(r"\w+", rng.choice(words), pieces[place]), *pieces[place + 1 :]])
            assert tiny.is_sentence(changed) == (changed in sentences), changed
        for broken in (sentence[:-1], sentence + " ", sentence + ".", sentence[1:], f"{sentence} {sentence}", ""):
            assert tiny.is_sentence(broken) == (broken in sentences), broken


@pytest.mark.parametrize("variant", ["standard", "small"])
def test_sentences_of_stories_are_sentences_and_altered_ones_are_not(variant):
    grammar = StoryGrammar(variant)
    sentences = [sentence for story in grammar.stories(6, 3 if variant == "standard" else 40) for sentence in sentences_in(story)]
    assert all(map(grammar.is_sentence, sentences))
    assert not any(grammar.is_sentence(" ".join([*sentence.split(" ")[:-1], "blorp."])) for sentence in sentences)


def test_a_sentence_keeps_one_cast_but_need_not_fit_the_story(small):
    assert small.is_sentence("Ben stopped and helped Lily up.") is False  # the hero may help her, but not by name
    assert small.is_sentence("Ben gave Lily half of the cookie, and they ate together.")
    assert not small.is_sentence("Ben gave Ben half of the cookie, and they ate together.")
    assert not small.is_sentence("Ben gave Lily half of the kite, and they ate together.")
    assert small.is_sentence("Lily lived near the park with her mom.") and not small.is_sentence("Lily lived near the park with his mom.")


def test_texts_are_graded_by_how_far_they_are_stories(tiny):
    story = tiny.story(1, 0)
    assert tiny.grade(story) == tiny.log_probability(story)
    cut, broken = story[:-1], story[:12] + "#" * (len(story) - 12)
    legal = tiny.read(broken).legal
    assert tiny.grade(cut) == tiny.log_prefix_probability(cut) - ILLEGAL
    assert tiny.grade(broken) == tiny.log_prefix_probability(story[:legal]) - ILLEGAL * (len(story) - legal)
    assert tiny.grade("#") == -ILLEGAL == tiny.grade("")
    assert tiny.grade(broken + "#") < tiny.grade(broken) < tiny.grade(cut) < tiny.grade(story)


@pytest.mark.parametrize("variant", ["standard", "small"])
def test_legal_characters_are_those_that_bisection_finds(variant):
    grammar, random_ = StoryGrammar(variant), random.Random(3)
    for index in range(12):
        story = grammar.story(2, index)
        place = random_.randrange(len(story))
        broken = story[:place] + random_.choice(["n", " ", "an ", story[place:][::-1]]) + story[place:]
        assert grammar.read(broken).legal == legal_length_by_bisection(broken, grammar.log_prefix_probability)
