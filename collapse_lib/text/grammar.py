"""A probabilistic grammar of short children's stories: an initial corpus without a download, whose true distribution is known.

A story is the text of one of some ten plots, put together from phrases and words of ``data/storygrammar.yaml``. Each list there is ordered
from common to rare and its probabilities follow Zipf's law by rank, so the language has the long tail whose loss the paper measures
(section 5.2). Because the grammar is a finite automaton with memory for its cast, the probability of any text, and of any beginning of a
text, is computed exactly; a model trained on the stories can be compared with the truth.

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
import hashlib
import math
import random
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate, pairwise
from typing import Any

import yaml

from collapse_lib.experiment.errors import UserError

VARIANTS = ("standard", "twin")
PARAGRAPH = "\n\n"
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")


@dataclass(frozen=True)
class Story:
    """One story and what is known about how it was made.

    ``plot`` names the plot of the body and ``ending_plot`` that of the ending: they differ only where a misfit was asked for.
    ``cast`` holds the word that each slot of the story stands for, such as ``{"hero": "Lily", "toy": "kite"}``.
    """

    body: str
    ending: str
    plot: str
    ending_plot: str
    happy: bool
    cast: Mapping[str, str]

    @property
    def text(self) -> str:
        """The story as the corpus holds it."""
        return self.body + PARAGRAPH + self.ending

    @property
    def fits(self) -> bool:
        """Whether the ending belongs to the story."""
        return self.plot == self.ending_plot


class StoryGrammar:
    """The embedded language; ``variant`` 'twin' writes the same stories with the probabilities of every list in reversed order.

    ``source`` replaces the embedded rules by others of the same layout (the sections of the YAML file); a rule that cannot be understood raises
    ``ValueError``.
    """

    def __init__(self, variant: str = "standard", source: Mapping[str, Any] | None = None):
        if variant not in VARIANTS:
            raise UserError(f"There is no story grammar '{variant}'; there are {' and '.join(VARIANTS)}.")
        self.variant = variant
        compiler = _Compiler(source or _embedded_source(), reverse=variant == "twin")
        self._slots = compiler.slots
        self._plots = compiler.plots
        self._plot_choice = compiler.choice(list(self._plots), "phrases")
        self._ending_choice = compiler.choice([True, False], "phrases")
        plot_bodies = tuple((*plot.body, PARAGRAPH, _Choice(plot.endings, self._ending_choice.weights)) for plot in self._plots.values())
        self._root: _Sequence = (_Choice(plot_bodies, self._plot_choice.weights),)

    @property
    def plots(self) -> tuple[str, ...]:
        """Names of the plots."""
        return tuple(self._plots)

    def story(self, seed: int, index: int) -> str:
        """The text of story ``index`` of the stream ``seed``; it depends on these two alone."""
        return self.sample(seed, index).text

    def stories(self, seed: int, count: int, start: int = 0) -> Iterator[str]:
        """Stories ``start`` to ``start + count - 1`` of the stream ``seed``."""
        return (self.story(seed, index) for index in range(start, start + count))

    def sample(self, seed: int, index: int, misfit: bool = False) -> Story:
        """Story ``index`` of the stream ``seed`` with its labels.

        With ``misfit`` the body and the cast stay as they are, but the ending is one of another plot: material for the question whether an
        ending fits its story. Such texts are outside the language.
        """
        digest = hashlib.blake2b(f"{seed}/{index}".encode(), digest_size=16).digest()
        uniform = random.Random(int.from_bytes(digest, "big")).random
        bound = [-1] * len(self._slots)
        plot = ending_plot = self._plot_choice.draw(uniform)
        body = self._write(self._plots[plot].body, uniform, bound)
        happy = self._ending_choice.draw(uniform)
        if misfit:
            others = [name for name in self._plots if name != plot]
            ending_plot = others[int(uniform() * len(others))]
        ending = self._write(self._plots[ending_plot].endings[0 if happy else 1], uniform, bound)
        cast = {slot.name: slot.words[word][""] for slot, word in zip(self._slots, bound, strict=True) if word >= 0}
        return Story(body, ending, plot, ending_plot, happy, cast)

    def log_probability(self, text: str) -> float:
        """Natural logarithm of the probability that a story is exactly ``text``, all its derivations added up; -inf if there is none."""
        return self._log_mass(text, whole=True)

    def log_prefix_probability(self, prefix: str) -> float:
        """Natural logarithm of the probability that a story begins with these characters.

        The exact law of the next character or token is a ratio of two such probabilities.
        """
        return self._log_mass(prefix, whole=False)

    def word_types(self) -> set[str]:
        """Every word that a story can hold, in lower case and without a possessive 's; ``words_in`` splits a text the same way."""
        types: set[str] = set()
        seen: set[int] = set()
        waiting: list[_Piece] = list(self._root)
        while waiting:
            piece = waiting.pop()
            if id(piece) in seen:
                continue
            seen.add(id(piece))
            if isinstance(piece, str):
                types.update(words_in(piece))
            elif isinstance(piece, _Mention):
                types.update(word for forms in self._slots[piece.slot].words for word in words_in(forms[piece.form]))
            elif isinstance(piece, _Choice):
                waiting.extend(inner for option in piece.options for inner in option)
            elif piece is not _CAPITAL:
                types.update(("a", "an"))
        return types

    def _write(self, sequence: _Sequence, uniform: Callable[[], float], bound: list[int]) -> str:
        out: list[str] = []
        mark: _Mark | None = None
        stack = [iter(sequence)]
        while stack:
            for piece in stack[-1]:
                kind = type(piece)
                if kind is _Choice:
                    stack.append(iter(piece.draw(uniform)))
                    break
                if kind is _Mark:
                    mark = piece
                    continue
                if kind is _Mention:
                    if bound[piece.slot] < 0:
                        self._bind(piece.slot, uniform, bound)
                    piece = self._slots[piece.slot].words[bound[piece.slot]][piece.form]
                if mark and piece:
                    piece, mark = mark.join(piece), None
                out.append(piece)
            else:
                stack.pop()
        return "".join(out)

    def _bind(self, slot: int, uniform: Callable[[], float], bound: list[int]) -> None:
        taken = [bound[other] for other in self._slots[slot].rivals]
        while (word := self._slots[slot].choice.draw(uniform)) in taken:
            pass
        bound[slot] = word

    def _log_mass(self, text: str, whole: bool) -> float:
        # The forward algorithm. A state is where the derivation stands (a stack of sequences still to be written), the cast bound so far and
        # a pending mark; `waiting` holds, by characters written, the log weight of each state. Derivations that meet are added up.
        end = len(text)
        total = -math.inf
        waiting: dict[int, dict[_State, float]] = defaultdict(dict)
        waiting[0][((self._root, 0, None), (-1,) * len(self._slots), None)] = 0.0

        def reaches(piece: str, position: int, mark: _Mark | None) -> int | None:
            # Characters written once `piece` is, None if the text says something else; past the end counts for a beginning only.
            if mark and piece:
                piece = mark.join(piece)
            if text.startswith(piece, position):
                return position + len(piece)
            return end + 1 if not whole and piece.startswith(text[position:]) else None

        def add(position: int, state: _State, weight: float) -> None:
            place = waiting[position]
            place[state] = _log_add(place[state], weight) if state in place else weight

        while waiting:
            position = min(waiting)
            states = waiting[position]
            if not states:
                del waiting[position]
                continue
            (frame, bound, mark), weight = states.popitem()
            if position >= end and (frame is None or not whole):
                total = _log_add(total, weight)
            if frame is None or (position >= end and not whole):
                continue
            sequence, index, rest = frame
            piece = sequence[index]
            if index + 1 < len(sequence):
                rest = (sequence, index + 1, rest)
            if isinstance(piece, _Choice):
                for option, first, log_share in piece.beginning_with(_initial(text, position, mark)):
                    reached = reaches(first, position, mark)  # written at once: here most options of a long list end
                    if reached is not None:
                        done = 1 if first else 0
                        after = (option, done, rest) if len(option) > done else rest
                        add(reached, (after, bound, None if first else mark), weight + log_share)
            elif isinstance(piece, _Mark):
                add(position, (rest, bound, piece), weight)
            elif isinstance(piece, str):
                if (reached := reaches(piece, position, mark)) is not None:
                    add(reached, (rest, bound, None), weight)
            else:
                slot = self._slots[piece.slot]
                word = bound[piece.slot]
                taken = {bound[other] for other in slot.rivals}
                free = weight - math.log1p(-sum(slot.choice.shares[other] for other in taken if other >= 0))
                for candidate in range(len(slot.words)) if word < 0 else (word,):
                    if candidate not in taken and (reached := reaches(slot.words[candidate][piece.form], position, mark)) is not None:
                        cast = (*bound[: piece.slot], candidate, *bound[piece.slot + 1 :])
                        add(reached, (rest, cast, None), weight if word >= 0 else free + slot.choice.log_shares[candidate])
        return total


def words_in(text: str) -> list[str]:
    """The words of a text as ``StoryGrammar.word_types`` counts them: lower case, hyphens and inner apostrophes kept, possessive 's dropped."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower())]


# ---- the compiled form ---------------------------------------------------------------------------------------------------------------


class _Choice:
    """Weighted alternatives."""

    __slots__ = ("_beginnings", "cumulative", "log_shares", "options", "shares", "weights")

    def __init__(self, options: Any, weights: list[float]):
        total = sum(weights)
        self.options = tuple(options)
        self._beginnings: dict[str, list[tuple[_Sequence, str, float]]] = {}
        self.weights = weights
        self.shares = [weight / total for weight in weights]
        self.log_shares = [math.log(share) for share in self.shares]
        self.cumulative = list(accumulate(self.shares))[:-1]  # the last option takes what rounding leaves

    def draw(self, uniform: Callable[[], float]) -> Any:
        return self.options[bisect_right(self.cumulative, uniform())]

    def beginning_with(self, initial: str) -> list[tuple[_Sequence, str, float]]:
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
class _Mark:
    """Changes the next text that is written: an article before it, a capital letter on it, or both."""

    article: bool
    capital: bool

    def join(self, text: str) -> str:
        if self.article:
            text = f"{_article(text)} {text}"
        return text[0].upper() + text[1:] if self.capital else text


_CAPITAL = _Mark(article=False, capital=True)
_ARTICLES = {"a": _Mark(article=True, capital=False), "A": _Mark(article=True, capital=True)}


@dataclass(frozen=True)
class _Mention:
    """A member of the cast in one of its forms."""

    slot: int
    form: str


@dataclass(frozen=True, eq=False)
class _Slot:
    """A member of the cast: the words it may stand for and the slots that must stand for others."""

    name: str
    words: list[dict[str, str]]
    choice: _Choice
    rivals: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Plot:
    body: _Sequence
    endings: tuple[_Sequence, _Sequence]  # happy, sad


_Piece = str | _Mark | _Mention | _Choice
_Sequence = tuple[_Piece, ...]
_Frame = tuple[_Sequence, int, Any]  # a sequence, the next piece in it, and the frame to return to
_State = tuple[_Frame | None, tuple[int, ...], _Mark | None]


def _initial(text: str, position: int, mark: _Mark | None) -> str:
    """The letter, in lower case, with which the next word of `text` begins; '' where the text ends before it."""
    if mark and mark.article:
        space = text.find(" ", position)
        position = space + 1 if space >= 0 else len(text)
    return text[position : position + 1].lower()


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


# ---- from the source to the compiled form ----------------------------------------------------------------------------------------------


@functools.cache
def _embedded_source() -> Mapping[str, Any]:
    return yaml.safe_load((resources.files("collapse_lib.text") / "data" / "storygrammar.yaml").read_text(encoding="utf-8"))


class _Compiler:
    """Reads the source once; a rule compiles to one shared ``_Choice`` however often it is mentioned."""

    def __init__(self, source: Mapping[str, Any], reverse: bool):
        self._zipf = source.get("zipf", {"words": [1.0, 0.0], "compounds": [1.0, 0.0], "phrases": [1.0, 0.0]})
        self._reverse = reverse
        self._rules = {name: text.strip().splitlines() for name, text in source.get("rules", {}).items()}
        self._words = {name: _read_words(name, text, source.get("kinds", {})) for name, text in source.get("words", {}).items()}
        for name, recipe in source.get("compounds", {}).items():
            first, joint, second = re.split(r"([+-])", recipe)
            self._words[name] = _compounds(self._words[first], self._words[second], joint.strip("+"))
        self._level = defaultdict(lambda: "words", dict.fromkeys(source.get("compounds", {}), "compounds"))
        self._compiled: dict[str, _Choice | None] = {}
        cast: dict[str, str] = source.get("cast", {})
        names = list(cast)
        self._slot_index = {name: index for index, name in enumerate(names)}
        self.slots = [
            _Slot(
                name,
                self._words[cast[name]],
                self.choice(range(len(self._words[cast[name]])), self._level[cast[name]]),
                tuple(index for index, other in enumerate(names) if other != name and cast[other] == cast[name]),
            )
            for name in names
        ]
        self.plots = {
            name: _Plot(
                self._sequence(PARAGRAPH.join(plot["body"].strip().splitlines())),
                ((self._alternatives(plot["happy"].strip().splitlines()),), (self._alternatives(plot["sad"].strip().splitlines()),)),
            )
            for name, plot in source["plots"].items()
        }

    def choice(self, options: Any, level: str) -> _Choice:
        """Options with Zipf-Mandelbrot weights, ``(rank + shift) ** -exponent``, by their order or, for the twin, against it."""
        exponent, shift = self._zipf[level]
        weights = [(rank + shift) ** -exponent for rank in range(1, len(options) + 1)]
        return _Choice(options, weights[::-1] if self._reverse else weights)

    def _alternatives(self, lines: list[str]) -> _Choice:
        return self.choice([self._sequence(line.strip()) for line in lines], "phrases")

    def _sequence(self, template: str) -> _Sequence:
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

    def _options(self, tokens: Iterator[str], closing: str, template: str) -> list[_Sequence]:
        options: list[list[_Piece]] = [[]]
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

    def _reference(self, reference: str) -> list[_Piece]:
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
            return [_Mention(slot, form)]
        if name in self._words:
            if reference not in self._compiled:
                self._compiled[reference] = self.choice([(_inflect(forms, form),) for forms in self._words[name]], self._level[name])
            return [self._compiled[reference]]
        raise ValueError(f"'{{{reference}}}' is no article, rule, member of the cast or word list")

    def _rule(self, name: str) -> _Choice:
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
