"""How much of a generated story the grammar could have written, and why it breaks where it breaks: an exact judge.

A text is *legal* up to the first character that no story of the grammar has after the characters before it. Of a complete story:

- **legal share**: its characters before the first impossible one, divided by all of them (an empty story: 0). It grades what ``legal stories``, the
  share of stories that the grammar could have written as a whole, calls simply wrong;
- **legal sentences**: the share of its sentences that stand in some story of the grammar, wherever; ``sentences_in`` says what a sentence is.

**Why it broke.** Each story that is not legal has one cause, that of its first impossible character, by the first of these rules that holds. The
*word* there is the run of characters other than white space and ``.,!?"`` around that character or, if that character is none of them, the run
that ends before it: "catch" breaks "the cat" at its second c, and "cat " at the blank.

1. ``early_end``: there is no such character; the story stops where the grammar goes on.
2. ``non_word``: the word holds something other than letters, hyphens and apostrophes, or ``words_in`` it finds a word that no story has.
3. ``cast``: the word is, or belongs to, a form of a member of some slot of the cast (a name, a pronoun, a toy), and with the same form of another
   member of that slot in its stead (and the article before it that this one asks for) the text is legal up to the character behind the word.
   Tried are the members that the text before names, and the first few of the slot, which stand for all that it does not name.
4. ``plot``: the sentence stands in some story, so that its place is wrong, or another sentence's. What stands between two sentences belongs to the
   second, and what follows the last one to it.
5. ``word``: what is left, a word of the language (or a mark) in a sentence that does not ask for it.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.metrics.estimates import Metric, mean, measured, quantile, ratio_of_sums, share
from collapse_lib.text.grammar import words_in

CAUSES = {
    "early_end": "a legal beginning that stops",
    "non_word": "a word that no story has",
    "cast": "a name, pronoun or thing of another cast",
    "plot": "a legal sentence that cannot follow here",
    "word": "a word that its sentence does not ask for",
}
UNNAMED = 3  # members of a slot that stand for those not mentioned yet: one more than a slot has rivals that exclude a member
LONGEST_FORM = 8  # words of a form of a member of the cast

_BETWEEN = re.compile(r'(?<=[.!?])\s+|(?<=[.!?]")\s+')
_BREAKS = frozenset(' \n\t.,!?"')
_LETTERS = re.compile(r"[A-Za-z'-]+")
_WORD = re.compile(r"[\w'-]+")

Member = Mapping[str, str]  # a word of the cast by form: {"": "Lily", "he": "she"}


class Verdict(NamedTuple):
    """What the grammar says of one story; ``cause`` is None if the whole story is legal, else one of ``CAUSES``."""

    characters: int
    legal_characters: int
    sentences: int
    legal_sentences: int
    cause: str | None


class Judge:
    """Judges stories by the callables of one grammar.

    Args:
        log_probability, log_prefix_probability: the methods of ``StoryGrammar``.
        legal_sentence: whether a sentence stands in some story.
        word_types: ``StoryGrammar.word_types()``.
        slots: the members of each slot of the cast, each with all its forms.
        legal_length: how many characters of a text are legal; by default found by bisection with ``log_prefix_probability``.
    """

    def __init__(
        self,
        log_probability: Callable[[str], float],
        log_prefix_probability: Callable[[str], float],
        legal_sentence: Callable[[str], bool],
        word_types: Collection[str],
        slots: Sequence[Sequence[Member]],
        legal_length: Callable[[str], int] | None = None,
    ):
        self._log_probability, self._log_prefix_probability = log_probability, log_prefix_probability
        self._legal_sentence, self._word_types = functools.cache(legal_sentence), frozenset(word_types)
        self._slots = slots
        self._names = [[_padded(member[""]) for member in members] for members in slots]
        self._forms: dict[str, list[tuple[int, str]]] = {}
        for number, members in enumerate(slots):
            for form, text in {(form, text) for member in members for form, text in member.items()}:
                self._forms.setdefault(text, []).append((number, form))
        self._legal_length = legal_length or (lambda text: legal_length_by_bisection(text, log_prefix_probability))

    def judge(self, story: str) -> Verdict:
        """What the grammar says of a story."""
        sentences = _sentence_spans(story)
        if self._log_probability(story) > -np.inf:
            return Verdict(len(story), len(story), len(sentences), len(sentences), None)
        legal = self._legal_length(story)
        # What a legal beginning holds with a character behind it stands in a story, and what holds a strange word in none: asking is slow.
        stand = sum(end < legal or (self._knows(story[start:end]) and self._legal_sentence(story[start:end])) for start, end in sentences)
        return Verdict(len(story), legal, len(sentences), stand, self._cause(story, legal))

    def _knows(self, text: str) -> bool:
        return self._word_types.issuperset(words_in(text))

    def _cause(self, story: str, legal: int) -> str:
        if legal == len(story):
            return "early_end"
        start, end = _word_at(story, legal)
        word = story[start:end]
        if word and not (_LETTERS.fullmatch(word) and self._knows(word)):
            return "non_word"
        if word and self._fits_another_cast(story, legal):
            return "cast"
        return "plot" if self._legal_sentence(_sentence_at(story, legal)) else "word"

    def _fits_another_cast(self, story: str, legal: int) -> bool:
        named = _padded(story[:legal])
        texts: dict[str, None] = {}  # a set in order
        for start, end, capital in _spans(story, legal):
            own = story[start:end]
            own = own[0].lower() + own[1:] if capital else own
            for slot, form in self._forms.get(own, ()):
                for other in self._others(named, slot, form):
                    if other != own:
                        other = other[0].upper() + other[1:] if capital else other
                        texts.update(dict.fromkeys(before + other + story[end : end + 1] for before in _articles(story[:start])))
        return any(self._log_prefix_probability(text) > -np.inf for text in texts)

    def _others(self, named: str, slot: int, form: str) -> Iterator[str]:
        members = self._slots[slot]
        likely = [member for member, name in zip(members, self._names[slot], strict=True) if name in named]
        return (member[form] for member in (*likely, *members[:UNNAMED]) if form in member)


def legality(verdicts: Sequence[Verdict]) -> dict[str, Metric]:
    """Metrics of a sample of complete stories, with standard errors over stories. Raises ``UserError`` for none.

    An empty story counts as one sentence, an illegal one.
    ``legal_share`` and its median, ``legal_stories``, ``legal_sentences``, and ``broken_<cause>`` for each of ``CAUSES``: these and
    ``legal_stories`` add up to 1.
    """
    if not verdicts:
        raise UserError("There is no complete story to judge; legality needs at least one.")
    shares = [verdict.legal_characters / max(verdict.characters, 1) for verdict in verdicts]
    causes, stories = Counter(verdict.cause for verdict in verdicts), len(verdicts)
    definition = "share of a story's characters before the first that the grammar rules out"
    sentences = ratio_of_sums([verdict.legal_sentences for verdict in verdicts], [max(verdict.sentences, 1) for verdict in verdicts])
    return {
        "legal_share": measured(mean(shares), "1", f"{definition}: mean over stories", stories=stories),
        "legal_share_median": measured(quantile(shares, 0.5), "1", f"{definition}: median over stories", stories=stories),
        "legal_sentences": measured(sentences, "1", "share of sentences that stand in some story of the grammar"),
        "legal_stories": measured(
            share([verdict.cause is None for verdict in verdicts]), "1", "share of stories that the grammar could have written"
        ),
        **{
            f"broken_{cause}": measured(
                share([verdict.cause == cause for verdict in verdicts]), "1", f"share of stories broken by {text}", stories=causes[cause]
            )
            for cause, text in CAUSES.items()
        },
    }


def legal_length_by_bisection(text: str, log_prefix_probability: Callable[[str], float]) -> int:
    """Characters of ``text`` before the first impossible one. A beginning of a legal beginning is legal, so that places can be halved.

    Collapsed stories break early and short beginnings are cheap: the length looked at doubles until one is impossible.
    """
    legal, impossible = 0, 16
    while impossible <= len(text) and log_prefix_probability(text[:impossible]) > -np.inf:
        legal, impossible = impossible, 2 * impossible
    impossible = min(impossible, len(text) + 1)
    while impossible - legal > 1:
        middle = (legal + impossible) // 2
        if log_prefix_probability(text[:middle]) > -np.inf:
            legal = middle
        else:
            impossible = middle
    return legal


def sentences_in(text: str) -> list[str]:
    """Sentences of a text: each ends in ``.``, ``!`` or ``?``, and a closing quotation mark if there is one, before white space or the text's end."""
    return [text[start:end] for start, end in _sentence_spans(text)]


def _sentence_spans(text: str) -> list[tuple[int, int]]:
    """Where sentences start and end."""
    first, last = len(text) - len(text.lstrip()), len(text.rstrip())
    bounds = [first, *(bound for match in _BETWEEN.finditer(text, first, last) for bound in match.span()), last]
    return list(zip(bounds[::2], bounds[1::2], strict=True)) if first < last else []


def _sentence_at(text: str, place: int) -> str:
    """The sentence that holds a character; what stands between two belongs to the second, and what follows the last to it."""
    spans = _sentence_spans(text) or [(0, 0)]
    start, end = next((span for span in spans if place < span[1]), spans[-1])
    return text[start:end]


def _padded(text: str) -> str:
    """The words of a text between blanks, so that a run of whole words can be looked for."""
    return f" {' '.join(words_in(text))} "


def _word_at(text: str, place: int) -> tuple[int, int]:
    """Bounds of the word at a character, empty where marks follow each other."""
    start, end = place, place
    while start > 0 and text[start - 1] not in _BREAKS:
        start -= 1
    while end < len(text) and text[end] not in _BREAKS:
        end += 1
    return start, end


def _spans(text: str, place: int) -> Iterator[tuple[int, int, bool]]:
    """Runs of whole words that hold a character, end before it or follow the article that holds it; and whether to take a capital as small."""
    words = [match.span() for match in _WORD.finditer(text, max(0, place - 100), place + 100)]
    for first, (start, _) in enumerate(words):
        head = words[first - 1] if first else (start, start)
        begins = head[0] if text[head[0] : head[1]].lower() in ("a", "an") else start
        for _, end in words[first : first + LONGEST_FORM]:
            end -= 2 * text.endswith("'s", start, end)
            if begins <= place <= end:
                yield start, end, False
                if text[start].isupper():
                    yield start, end, True


def _articles(before: str) -> list[str]:
    """A text that is to go on with a word: as it is and, if it ends with an article, with either."""
    match = re.search(r"\b([Aa])n? $", before)
    return [before[: match.start()] + match[1] + article for article in (" ", "n ")] if match else [before]
