"""A probabilistic grammar of short children's stories: an initial corpus without a download, whose true distribution is known.

A story is the text of one of eight or ten plots, put together from phrases and words of ``data/storygrammar.yaml`` or, two to five sentences
long, of ``data/smallgrammar.yaml``. Each list there is ordered from common to rare and its probabilities follow Zipf's law by rank, so the
language has the long tail whose loss the paper measures (section 5.2). Because the grammar is a finite automaton with memory for its cast, the
probability of any text, and of any beginning of a text, is computed exactly; a model trained on the stories can be compared with the truth.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import accumulate, pairwise, permutations
from typing import Any

import yaml

from collapse_lib.experiment.errors import UserError

VARIANTS = {"standard": "storygrammar", "twin": "storygrammar", "small": "smallgrammar", "small-twin": "smallgrammar"}
PARAGRAPH = "\n\n"
PLOT, ENDING, LABELS = -2, -1, 2  # places behind the cast in what a state has bound, and how many
ILLEGAL = 1e6  # nats for a character that no story has there, more than any whole story's whole surprise
_WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
_SENTENCE_END = r"[.!?]\"?"


@dataclass(frozen=True)
class Story:
    """One story and what is known about how it was made.

    ``plot`` names the plot of the body and ``ending_plot`` that of the ending: they differ only where a misfit was asked for. ``ending_name`` is
    the ending's among ``StoryGrammar.ending_probabilities``. ``cast`` holds the word that each slot of the story stands for, such as
    ``{"hero": "Lily", "toy": "kite"}``.
    """

    body: str
    ending: str
    plot: str
    ending_plot: str
    ending_name: str
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


@dataclass(frozen=True)
class Reading:
    """What a text, which need not be a story of the grammar, tells as far as it can be read.

    ``legal`` counts the characters before the first impossible one: ``len(text)`` for a story and for the beginning of one. ``plot`` and
    ``cast`` are what all stories with this legal beginning have in common; ``plot`` is None where they differ, as in a first sentence that two
    plots share, and a slot that is not yet filled is missing in ``cast``. ``ending`` names the ending that the text behind the last paragraph
    break tells, read by itself and with any cast, so that a broken story may still have one; None if there is none or more than one.
    """

    legal: int
    plot: str | None
    ending: str | None
    cast: Mapping[str, str]


class StoryGrammar:
    """An embedded language: ``variant`` 'standard' has stories of two paragraphs, 'small' stories of two to five sentences.

    'twin' and 'small-twin' write the same stories as these with the probabilities of every list in reversed order. ``source`` replaces the
    embedded rules by others of the same layout (the sections of the YAML files); a rule that cannot be understood raises ``ValueError``.
    """

    def __init__(self, variant: str = "standard", source: Mapping[str, Any] | None = None):
        if variant not in VARIANTS:
            raise UserError(f"There is no story grammar '{variant}'; there are {', '.join(VARIANTS)}.")
        self.variant = variant
        compiler = _Compiler(source or _embedded_source(VARIANTS[variant]), reverse=variant.endswith("twin"))
        self._slots = compiler.slots
        self._plots = compiler.plots
        self._endings = compiler.endings
        self._plot_choice = compiler.choice(list(self._plots), "plots")
        self._ending_choice = compiler.choice([True, False], "phrases")
        plot_bodies = tuple(
            (_Label(PLOT, number), *plot.body, PARAGRAPH, _Choice(plot.endings, self._ending_choice.weights))
            for number, plot in enumerate(self._plots.values())
        )
        self._root: _Sequence = (_Choice(plot_bodies, self._plot_choice.weights),)
        self._unbound = (-1,) * (len(self._slots) + LABELS)

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
        bound = list(self._unbound)
        plot = ending_plot = self._plot_choice.draw(uniform)
        body = self._write(self._plots[plot].body, uniform, bound)
        happy = self._ending_choice.draw(uniform)
        if misfit:
            others = [name for name in self._plots if name != plot]
            ending_plot = others[int(uniform() * len(others))]
        ending = self._write(self._plots[ending_plot].endings[0 if happy else 1], uniform, bound)
        return Story(body, ending, plot, ending_plot, self._endings[bound[ENDING]], happy, self._cast(bound))

    def log_probability(self, text: str) -> float:
        """Natural logarithm of the probability that a story is exactly ``text``, all its derivations added up; -inf if there is none."""
        return _log_sum(self._derive(self._root, text, whole=True).values())

    def log_prefix_probability(self, prefix: str) -> float:
        """Natural logarithm of the probability that a story begins with these characters.

        The exact law of the next character or token is a ratio of two such probabilities.
        """
        return _log_sum(self._derive(self._root, prefix, whole=False).values())

    def grade(self, text: str) -> float:
        """``log_probability`` of a story; of any other text that of its legal beginning, less ``ILLEGAL`` nats for each character after it.

        A text that stops where the grammar goes on counts as one character too long. So all that models write can be told better from worse, where
        the probability of most of it is 0.
        """
        stories, legal = self._forward(self._root, text, whole=True)
        if stories:
            return _log_sum(stories.values())
        return self.log_prefix_probability(text[:legal]) - ILLEGAL * max(1, len(text) - legal)

    def read(self, text: str) -> Reading:
        """What a text tells, whether it is a story of the grammar or only begins like one."""
        _, legal = self._forward(self._root, text, whole=False)
        stories = list(self._derive(self._root, text[:legal], whole=False))
        shared = [numbers[0] if len(set(numbers)) == 1 else -1 for numbers in zip(*stories, strict=True)]
        _, has_ending, ending = text.rpartition(PARAGRAPH)
        roots = [root for plot in self._plots.values() for root in plot.endings] if has_ending else []
        told = {bound[ENDING] for root in roots for bound in self._derive(root, ending, whole=True)}
        return Reading(
            legal=legal,
            plot=self.plots[shared[PLOT]] if shared[PLOT] >= 0 else None,
            ending=self._endings[told.pop()] if len(told) == 1 else None,
            cast=self._cast(shared),
        )

    def is_sentence(self, text: str) -> bool:
        """Whether ``text`` is a sentence, as ``sentences_in`` cuts them, of some story: exact, with any cast that a story can have there."""
        if sentences_in(text) != [text]:
            return False
        return any(self._derive(self._sentences, text + after, whole=not after) for after in ("", " ", "\n"))

    def plot_probabilities(self) -> dict[str, float]:
        """The probability that a story has each plot."""
        return dict(zip(self._plots, self._plot_choice.shares, strict=True))

    def ending_probabilities(self) -> dict[str, float]:
        """The probability that a story has each ending; 'lost-happy-2' is the second in the list of happy endings of the plot 'lost'."""
        return dict(zip(self._endings, self._expectation.endings, strict=True))

    def cast_probabilities(self, slot: str) -> dict[str, float]:
        """The probability that a story has each word in a slot of its cast, such as 'hero'; together the probability that it has one there."""
        return dict(self._expectation.cast[slot])

    def word_counts(self) -> dict[str, float]:
        """The expected number of occurrences in a story of every word that it can hold (``words_in`` gives the words); exact."""
        return dict(self._expectation.words)

    @property
    def slots(self) -> list[list[dict[str, str]]]:
        """The members of each slot of the cast, each by its forms: ``{"": "Lily", "he": "she"}``."""
        return [slot.words for slot in self._slots]

    def word_types(self) -> set[str]:
        """Every word that a story can hold, in lower case and without a possessive 's; ``words_in`` splits a text the same way."""
        return set(self._expectation.words)

    def _cast(self, bound: Sequence[int]) -> dict[str, str]:
        return {slot.name: slot.words[word][""] for slot, word in zip(self._slots, bound, strict=False) if word >= 0}

    @functools.cached_property
    def _expectation(self) -> _Expectation:
        return _Expectation(self._slots, self._endings, self._root)

    @functools.cached_property
    def _sentences(self) -> _Sequence:
        return (_factored(_sentence_starts(self._root)),)

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
                if kind is _Label:
                    bound[piece.place] = piece.value
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

    def _derive(self, root: _Sequence, text: str, whole: bool) -> dict[tuple[int, ...], float]:
        """Log weights, by the cast and labels bound, of the derivations from ``root`` that write ``text``, or begin with it; empty without any."""
        return self._forward(root, text, whole)[0]

    def _forward(self, root: _Sequence, text: str, whole: bool) -> tuple[dict[tuple[int, ...], float], int]:
        """``_derive``, and how many characters of ``text`` some derivation begins with."""
        # The forward algorithm. A state is where the derivation stands (a stack of sequences still to be written), the cast bound so far and
        # a pending mark; `waiting` holds, by characters written, the log weight of each state. Derivations that meet are added up.
        end, legal = len(text), 0
        totals: dict[tuple[int, ...], float] = {}
        waiting: dict[int, dict[_State, float]] = defaultdict(dict)
        waiting[0][((root, 0, None), self._unbound, None)] = 0.0

        def reaches(piece: str, position: int, mark: _Mark | None) -> int | None:
            # Characters written once `piece` is, None if the text says something else; past the end counts for a beginning only.
            if mark and piece:
                piece = mark.join(piece)
            nonlocal legal
            if text.startswith(piece, position):
                legal = max(legal, position + len(piece))
                return position + len(piece)
            while legal < end and piece.startswith(text[position : legal + 1]):
                legal += 1
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
                totals[bound] = _log_add(totals.get(bound, -math.inf), weight)
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
                if mark and mark.article and legal < position + len("an "):  # options with another initial may have the article in common
                    for _, first, _ in piece.beginning_with(""):
                        reaches(first, position, mark)
            elif isinstance(piece, _Mark):
                add(position, (rest, bound, piece), weight)
            elif isinstance(piece, _Label):
                add(position, (rest, _replaced(bound, piece.place, piece.value), mark), weight)
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
                        cast = _replaced(bound, piece.slot, candidate)
                        add(reached, (rest, cast, None), weight if word >= 0 else free + slot.choice.log_shares[candidate])
        return totals, legal


def words_in(text: str) -> list[str]:
    """The words of a text as ``StoryGrammar.word_types`` counts them: lower case, hyphens and inner apostrophes kept, possessive 's dropped."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower())]


def sentences_in(text: str) -> list[str]:
    """The sentences of a text: each ends in . ! or ?, and a closing quotation mark if there is one, before white space or the text's end."""
    return re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+", text.strip())


# ---- the compiled form ---------------------------------------------------------------------------------------------------------------


class _Choice:
    """Weighted alternatives."""

    __slots__ = ("_beginnings", "cumulative", "is_of_words", "log_shares", "options", "shares", "weights")

    def __init__(self, options: Any, weights: list[float]):
        total = sum(weights)
        self.options = tuple(options)
        self.is_of_words = all(isinstance(option, tuple) and len(option) == 1 and isinstance(option[0], str) for option in self.options)
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


@dataclass(frozen=True)
class _Label:
    """Writes nothing, and notes in a state which plot or which ending is being told."""

    place: int
    value: int


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


_Piece = str | _Mark | _Mention | _Label | _Choice
_Sequence = tuple[_Piece, ...]
_Frame = tuple[_Sequence, int, Any]  # a sequence, the next piece in it, and the frame to return to
_State = tuple[_Frame | None, tuple[int, ...], _Mark | None]


def _initial(text: str, position: int, mark: _Mark | None) -> str:
    """The letter, in lower case, with which the next word of `text` begins; '' where the text ends before it."""
    if mark and mark.article:
        space = text.find(" ", position)
        position = space + 1 if space >= 0 else len(text)
    return text[position : position + 1].lower()


def _replaced(bound: tuple[int, ...], place: int, value: int) -> tuple[int, ...]:
    changed = list(bound)
    changed[place] = value
    return tuple(changed)


def _log_sum(values: Iterable[float]) -> float:
    return functools.reduce(_log_add, values, -math.inf)


def _log_add(a: float, b: float) -> float:
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


# ---- what is expected of a story -------------------------------------------------------------------------------------------------------


class _Expectation:
    """Expected numbers of words and endings in a story, and the distribution of its cast, by one exact recursion over the rules.

    A word of the cast depends on the path to it through one thing only: how many of the slots that share its list were filled before. So the
    recursion carries, with its probability, the order in which slots were filled (of slots that do not share a list, sorted) and the pending mark.
    """

    def __init__(self, slots: list[_Slot], endings: list[str], root: _Sequence):
        self._slots = slots
        self._shares = functools.cache(self._share_law)
        self._visits: dict[tuple[_Choice | _Mention | str, tuple[int, ...], _Mark | None], float] = defaultdict(float)
        self.endings = [0.0] * len(endings)
        finished = self._advance(root, {((), None): 1.0})
        self.cast = {slot.name: dict.fromkeys((forms[""] for forms in slot.words), 0.0) for slot in slots}
        for (order, _), probability in finished.items():
            for slot in order:
                for forms, share in zip(slots[slot].words, self._shares(slot, self._rank(slot, order)), strict=True):
                    self.cast[slots[slot].name][forms[""]] += probability * share
        self.words: dict[str, float] = defaultdict(float)
        for (piece, order, mark), probability in self._visits.items():
            for text, share in self._texts(piece, order):
                for word in words_in(mark.join(text) if mark and text else re.sub(r"^'s\b", "", text)):  # of 'Lily' + "'s kite"
                    self.words[word] += probability * share

    def _advance(self, sequence: _Sequence, states: dict[_Standing, float]) -> dict[_Standing, float]:
        """The states behind a sequence, from those before it; what is written in it is counted in ``_visits``."""
        for piece in sequence:
            after: dict[_Standing, float] = defaultdict(float)
            for (order, mark), probability in states.items():
                if isinstance(piece, _Choice) and not piece.is_of_words:
                    for option, share in zip(piece.options, piece.shares, strict=True):
                        for state, weight in self._advance(option, {(order, mark): probability * share}).items():
                            after[state] += weight
                    continue
                if isinstance(piece, _Mark):
                    mark = piece
                elif isinstance(piece, _Label):
                    if piece.place == ENDING:
                        self.endings[piece.value] += probability
                else:
                    if isinstance(piece, _Mention) and piece.slot not in order:
                        order = tuple(sorted((*order, piece.slot), key=lambda slot: min((slot, *self._slots[slot].rivals))))
                    self._visits[piece, order if isinstance(piece, _Mention) else (), mark] += probability
                    mark = None
                after[order, mark] += probability
            states = after
        return states

    def _texts(self, piece: _Choice | _Mention | str, order: tuple[int, ...]) -> Iterator[tuple[str, float]]:
        if isinstance(piece, str):
            yield piece, 1.0
        elif isinstance(piece, _Choice):
            yield from ((option[0], share) for option, share in zip(piece.options, piece.shares, strict=True))
        else:
            shares = self._shares(piece.slot, self._rank(piece.slot, order))
            yield from ((forms[piece.form], share) for forms, share in zip(self._slots[piece.slot].words, shares, strict=True))

    def _rank(self, slot: int, order: tuple[int, ...]) -> int:
        """How many slots of the same list were filled before ``slot``."""
        return sum(other in self._slots[slot].rivals for other in order[: order.index(slot)])

    def _share_law(self, slot: int, rank: int) -> list[float]:
        """The law of the word drawn for a slot when ``rank`` other words of its list, unknown ones, are taken."""
        shares = self._slots[slot].choice.shares
        totals = [0.0] * len(shares)
        for taken in permutations(range(len(shares)), rank):
            weight, free = 1.0, 1.0
            for word in taken:
                weight, free = weight * shares[word] / free, free - shares[word]
            for word, share in enumerate(shares):
                totals[word] += 0.0 if word in taken else weight * share / free
        return totals


_Standing = tuple[tuple[int, ...], _Mark | None]  # slots in the order in which they were filled, and a pending mark


# ---- sentences by themselves -----------------------------------------------------------------------------------------------------------


def _sentence_starts(root: _Sequence) -> list[_Sequence]:
    """What is still to be written of a story, cast aside, wherever a sentence of it begins."""
    starts: dict[_Sequence, None] = {}
    seen: set[tuple[_Sequence, str]] = set()
    waiting = [(root, ". ")]  # what is to be written, and the end of what was, as far as it belongs to a sentence's end
    while waiting:
        state = waiting.pop()
        sequence, before = state
        if not sequence or state in seen:
            continue
        seen.add(state)
        piece, rest = sequence[0], sequence[1:]
        if isinstance(piece, _Choice):
            waiting.extend(((*option, *rest), before) for option in piece.options)
        elif isinstance(piece, _Label):
            waiting.append((rest, before))
        elif isinstance(piece, str):
            text = before + piece
            places = [match.end() - len(before) for match in re.finditer(rf"{_SENTENCE_END}\s+(?=\S)", text)]
            starts.update(((piece[place:], *rest), None) for place in places if place >= 0)
            waiting.append((rest, re.search(rf"({_SENTENCE_END}\s*)?$", text)[0]))
        else:
            if before[-1:].isspace():
                starts[sequence] = None
            waiting.append((rest, ""))
    return list(starts)


def _factored(sequences: Iterable[_Sequence]) -> _Choice:
    """One choice among different sequences, beginnings in common written once: to try a text against them costs far less. Weights mean nothing."""
    by_first: dict[_Piece | None, list[_Sequence]] = defaultdict(list)
    for sequence in sequences:
        by_first[sequence[0] if sequence else None].append(sequence)
    options = [group[0] if len(group) == 1 else (first, _factored(sequence[1:] for sequence in group)) for first, group in by_first.items()]
    return _Choice(options, [1.0] * len(options))


# ---- from the source to the compiled form ----------------------------------------------------------------------------------------------


@functools.cache
def _embedded_source(name: str) -> Mapping[str, Any]:
    return yaml.safe_load((resources.files("collapse_lib.text") / "data" / f"{name}.yaml").read_text(encoding="utf-8"))


class _Compiler:
    """Reads the source once; a rule compiles to one shared ``_Choice`` however often it is mentioned."""

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
        self.endings: list[str] = []
        self.plots = {
            name: _Plot(
                self._sequence(PARAGRAPH.join(plot["body"].strip().splitlines())),
                ((self._labelled(plot["happy"], f"{name}-happy"),), (self._labelled(plot["sad"], f"{name}-sad"),)),
            )
            for name, plot in source["plots"].items()
        }

    def _labelled(self, text: str, name: str) -> _Choice:
        """The alternatives of an ending, each with its label; a single line that is a rule stands for the rule's alternatives."""
        choice = self._alternatives(text.strip().splitlines())
        inner = choice.options[0][0] if len(choice.options) == 1 and len(choice.options[0]) == 1 else None
        if isinstance(inner, _Choice):
            return _Choice([(self._with_labels(inner, name),)], choice.weights)
        return self._with_labels(choice, name)

    def _with_labels(self, choice: _Choice, name: str) -> _Choice:
        first = len(self.endings)
        self.endings += [f"{name}-{number}" for number in range(1, len(choice.options) + 1)]
        return _Choice([(_Label(ENDING, first + index), *option) for index, option in enumerate(choice.options)], choice.weights)

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
