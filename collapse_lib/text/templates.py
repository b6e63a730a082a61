"""The language in which story grammars are written, and its compiled form: what ``data/storygrammar.yaml`` and ``data/smallgrammar.yaml`` hold.

The template language, one alternative a line:

==================  ==========================================================================================================
``{list}``          a fresh draw from a word list or from the alternatives of a rule
``{slot}``          a member of the cast: drawn on its first mention, the same word on every later one; slots that share a list differ
``{word.form}``     an inflected form: ``s ed ing ly er`` by rule, or a form that the word or its kind names (``{hero.he}``)
``{Word}``          the same with a capital first letter
``{a}``, ``{A}``    the article that the next word asks for, 'a' or 'an'
``(this|that)``     a choice in place; ``[this]`` is ``(this|)``
==================  ==========================================================================================================
"""

from __future__ import annotations

import functools
import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

PARAGRAPH = "\n\n"
PLOT, ENDING, LABELS = -2, -1, 2  # places behind the cast in what a derivation has bound, and how many


class Choice:
    """Weighted alternatives."""

    __slots__ = ("_beginnings", "cumulative", "is_of_words", "log_shares", "options", "shares", "weights")

    def __init__(self, options: Any, weights: list[float]):
        total = sum(weights)
        self.options = tuple(options)
        self.is_of_words = all(isinstance(option, tuple) and len(option) == 1 and isinstance(option[0], str) for option in self.options)
        self._beginnings: dict[str, list[tuple[Pieces, str, float]]] = {}
        self.weights = weights
        self.shares = [weight / total for weight in weights]
        self.log_shares = [math.log(share) for share in self.shares]
        self.cumulative = list(accumulate(self.shares))[:-1]  # the last option takes what rounding leaves

    def draw(self, uniform: Callable[[], float]) -> Any:
        return self.options[bisect_right(self.cumulative, uniform())]

    def beginning_with(self, initial: str) -> list[tuple[Pieces, str, float]]:
        """The options that may write `initial` first (all if it is empty): the option, its first literal text or '', its log share."""
        if initial not in self._beginnings:
            found = []
            for option, log_share in zip(self.options, self.log_shares, strict=True):
                first = option[0] if option and type(option[0]) is str else ""
                if not initial or not first or first[0].lower() == initial:
                    found.append((option, first, log_share))
            self._beginnings[initial] = found
        return self._beginnings[initial]


@dataclass(frozen=True, eq=False)
class Mark:
    """Changes the next text that is written: an article before it, a capital letter on it, or both."""

    article: bool
    capital: bool

    def join(self, text: str) -> str:
        if self.article:
            text = f"{_article(text)} {text}"
        return text[0].upper() + text[1:] if self.capital else text


_CAPITAL = Mark(article=False, capital=True)
_ARTICLES = {"a": Mark(article=True, capital=False), "A": Mark(article=True, capital=True)}


@dataclass(frozen=True)
class Mention:
    """A member of the cast in one of its forms."""

    slot: int
    form: str


@dataclass(frozen=True)
class Label:
    """Writes nothing, and notes in a state which plot or which ending is being told."""

    place: int
    value: int


@dataclass(frozen=True, eq=False)
class Slot:
    """A member of the cast: the words it may stand for and the slots that must stand for others."""

    name: str
    words: list[dict[str, str]]
    choice: Choice
    rivals: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Plot:
    body: Pieces
    endings: tuple[Pieces, Pieces]  # happy, sad


Piece = str | Mark | Mention | Label | Choice
Pieces = tuple[Piece, ...]


# ---- from the source to the compiled form ----------------------------------------------------------------------------------------------


class Compiler:
    """Reads the source once; a rule compiles to one shared ``Choice`` however often it is mentioned."""

    def __init__(self, source: Mapping[str, Any], reverse: bool):
        self._zipf = source.get("zipf", {"words": [1.0, 0.0], "compounds": [1.0, 0.0], "phrases": [1.0, 0.0]})
        self._zipf = {"plots": self._zipf["phrases"], **self._zipf}
        self._reverse = reverse
        self._rules = {name: text.strip().splitlines() for name, text in source.get("rules", {}).items()}
        self._words = {name: _read_words(name, text, source.get("kinds", {})) for name, text in source.get("words", {}).items()}
        for name, recipe in source.get("compounds", {}).items():
            first, joint, second = re.split(r"([+-])", recipe)
            self._words[name] = _compounds(self._words[first], self._words[second], joint.strip("+"))
        self._level = defaultdict(lambda: "words", dict.fromkeys(source.get("compounds", {}), "compounds"))
        self._compiled: dict[str, Choice | None] = {}
        cast: dict[str, str] = source.get("cast", {})
        names = list(cast)
        self._slot_index = {name: index for index, name in enumerate(names)}
        self.slots = [
            Slot(
                name,
                self._words[cast[name]],
                self.choice(range(len(self._words[cast[name]])), self._level[cast[name]]),
                tuple(index for index, other in enumerate(names) if other != name and cast[other] == cast[name]),
            )
            for name in names
        ]
        self.endings: list[str] = []
        self.plots = {
            name: Plot(
                self._sequence(PARAGRAPH.join(plot["body"].strip().splitlines())),
                ((self._labelled(plot["happy"], f"{name}-happy"),), (self._labelled(plot["sad"], f"{name}-sad"),)),
            )
            for name, plot in source["plots"].items()
        }

    def _labelled(self, text: str, name: str) -> Choice:
        """The alternatives of an ending, each with its label; a single line that is a rule stands for the rule's alternatives."""
        choice = self._alternatives(text.strip().splitlines())
        inner = choice.options[0][0] if len(choice.options) == 1 and len(choice.options[0]) == 1 else None
        if isinstance(inner, Choice):
            return Choice([(self._with_labels(inner, name),)], choice.weights)
        return self._with_labels(choice, name)

    def _with_labels(self, choice: Choice, name: str) -> Choice:
        first = len(self.endings)
        self.endings += [f"{name}-{number}" for number in range(1, len(choice.options) + 1)]
        return Choice([(Label(ENDING, first + index), *option) for index, option in enumerate(choice.options)], choice.weights)

    def choice(self, options: Any, level: str) -> Choice:
        """Options with Zipf-Mandelbrot weights, ``(rank + shift) ** -exponent``, by their order or, for the twin, against it."""
        exponent, shift = self._zipf[level]
        weights = [(rank + shift) ** -exponent for rank in range(1, len(options) + 1)]
        return Choice(options, weights[::-1] if self._reverse else weights)

    def _alternatives(self, lines: list[str]) -> Choice:
        return self.choice([self._sequence(line.strip()) for line in lines], "phrases")

    def _sequence(self, template: str) -> Pieces:
        tokens = re.findall(r"\{[^{}]*\}|[()\[\]|{}]|[^()\[\]|{}]+", template)
        for before, after in pairwise(tokens):
            if (before[-1] == "}" and re.match(r"[\w-]", after)) or (after[0] == "{" and re.search(r"[\w-]$", before)):
                raise ValueError(f"'{before}' and '{after}' would grow together to one word in the template '{template}'")
            if after[0] == "{" and re.search(r"(^|\W)an? $", before, re.I):
                raise ValueError(f"write '{{a}}' for the article before '{after}' in the template '{template}'")
        options = self._options(iter(tokens), "", template)
        if len(options) > 1:
            raise ValueError(f"'|' stands outside brackets in the template '{template}'")
        return options[0]

    def _options(self, tokens: Iterator[str], closing: str, template: str) -> list[Pieces]:
        options: list[list[Piece]] = [[]]
        after_article = False
        for token in tokens:
            sequence = options[-1]
            if token == closing:
                break
            if token == "|":
                options.append([])
            elif token == "(":
                sequence.append(self.choice(self._options(tokens, ")", template), "phrases"))
            elif token == "[":
                sequence.append(self.choice([*self._options(tokens, "]", template), ()], "phrases"))
            elif token in "()[]{}":
                raise ValueError(f"'{token}' has no partner in the template '{template}'")
            elif token[0] == "{":
                sequence.extend(self._reference(token[1:-1]))
            else:
                text = token.removeprefix(" ") if after_article else token  # the article brings its own space
                sequence.extend([text] if text else [])
            after_article = token in ("{a}", "{A}")
        else:
            if closing:
                raise ValueError(f"'{closing}' is missing in the template '{template}'")
        return [tuple(option) for option in options]

    def _reference(self, reference: str) -> list[Piece]:
        if reference in _ARTICLES:
            return [_ARTICLES[reference]]
        if reference[:1].isupper():
            return [_CAPITAL, *self._reference(reference[0].lower() + reference[1:])]
        if reference in self._rules:
            return [self._rule(reference)]
        name, _, form = reference.partition(".")
        if name in self._slot_index:
            slot = self._slot_index[name]
            for forms in self.slots[slot].words:
                _inflect(forms, form)
            return [Mention(slot, form)]
        if name in self._words:
            if reference not in self._compiled:
                self._compiled[reference] = self.choice([(_inflect(forms, form),) for forms in self._words[name]], self._level[name])
            return [self._compiled[reference]]
        raise ValueError(f"'{{{reference}}}' is no article, rule, member of the cast or word list")

    def _rule(self, name: str) -> Choice:
        if name not in self._compiled:
            self._compiled[name] = None  # a rule in the making: to meet it again is to go round in a circle
            self._compiled[name] = self._alternatives(self._rules[name])
        if self._compiled[name] is None:
            raise ValueError(f"the rule '{name}' leads back to itself")
        return self._compiled[name]


# ---- words and their forms -------------------------------------------------------------------------------------------------------------


def _read_words(name: str, text: str, kinds: Mapping[str, Mapping[str, str]]) -> list[dict[str, str]]:
    """Words of a list: 'mouse/s=mice' names a form, 'Lily/she' a kind that brings forms; '_' is a space."""
    words = []
    for entry in text.split():
        word, *features = entry.replace("_", " ").split("/")
        forms = {"": word}
        for feature in features:
            form, equals, value = feature.partition("=")
            if not equals and form not in kinds:
                raise ValueError(f"'{form}' in the word list '{name}' is not a kind of word")
            forms.update({form: value} if equals else kinds[form])
        words.append(forms)
    doubles = {forms[""] for forms in words if sum(other[""] == forms[""] for other in words) > 1}
    if doubles:
        raise ValueError(f"the word list '{name}' holds more than once: {', '.join(sorted(doubles))}")
    return words


def _compounds(first: list[dict[str, str]], second: list[dict[str, str]], joint: str) -> list[dict[str, str]]:
    """Every pair of words, written together, those of two common words first."""
    pairs = sorted(((i, j) for i in range(len(first)) for j in range(len(second))), key=lambda pair: ((pair[0] + 1) * (pair[1] + 1), pair))
    return [{"": first[i][""] + joint + second[j][""]} for i, j in pairs]


def _inflect(forms: dict[str, str], form: str) -> str:
    if form not in forms:
        if form not in _ENDINGS:
            raise ValueError(f"'{forms['']}' has no form '{form}'")
        first, space, rest = forms[""].partition(" ")  # of 'skip along' the first word changes, of 'paper boat' the last
        if form in ("ed", "ing"):
            forms[form] = _ENDINGS[form](first) + space + rest
        else:
            before, space, last = forms[""].rpartition(" ")
            forms[form] = before + space + _ENDINGS[form](last)
    return forms[form]


def _doubled(word: str) -> str:
    return word + word[-1] if re.fullmatch(r"[^aeiou]*(qu)?[aeiou][bdgmnprt]", word) else word


def _plural(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh)$", word):
        return word + "es"
    return word[:-1] + "ies" if re.search(r"[^aeiou]y$", word) else word + "s"


def _past(word: str) -> str:
    if word.endswith("e"):
        return word + "d"
    return word[:-1] + "ied" if re.search(r"[^aeiou]y$", word) else _doubled(word) + "ed"


def _gerund(word: str) -> str:
    return word[:-1] + "ing" if re.search(r"[^eoy]e$", word) else _doubled(word) + "ing"


def _adverb(word: str) -> str:
    if word.endswith("ic"):
        return word + "ally"
    if re.search(r"[^aeiou]le$", word):
        return word[:-1] + "y"
    return word[:-1] + "ily" if re.search(r"[^aeiou]y$", word) else word + "ly"


def _comparative(word: str) -> str:
    if word.endswith("e"):
        return word + "r"
    return word[:-1] + "ier" if re.search(r"[^aeiou]y$", word) else _doubled(word) + "er"


_ENDINGS = {"s": _plural, "ed": _past, "ing": _gerund, "ly": _adverb, "er": _comparative}


@functools.cache
def _article(text: str) -> str:
    """'a' or 'an' by sound, as far as this vocabulary needs."""
    return "an" if re.match(r"(?i)(?!one|uni|use|usu|euc|uku|eur)[aeiou]|hour|honest|heir", text) else "a"
