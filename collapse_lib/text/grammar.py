"""A probabilistic grammar of short children's stories: an initial corpus without a download, whose true distribution is known.

A story is the text of one of eight or ten plots, put together from phrases and words of ``data/storygrammar.yaml`` or, two to five sentences
long, of ``data/smallgrammar.yaml``. Each list there is ordered from common to rare and its probabilities follow Zipf's law by rank, so the
language has the long tail whose loss the paper measures (section 5.2). Because the grammar is a finite automaton with memory for its cast, the
probability of any text, and of any beginning of a text, is computed exactly; a model trained on the stories can be compared with the truth.
"""

from __future__ import annotations

import functools
import hashlib
import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import permutations
from typing import Any

import yaml

from collapse_lib.experiment.errors import UserError
from collapse_lib.text.templates import ENDING, LABELS, PARAGRAPH, PLOT, Choice, Compiler, Label, Mark, Mention, Piece, Pieces, Slot

VARIANTS = {"standard": "storygrammar", "twin": "storygrammar", "small": "smallgrammar", "small-twin": "smallgrammar"}
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
        compiler = Compiler(source or _embedded_source(VARIANTS[variant]), reverse=variant.endswith("twin"))
        self._slots = compiler.slots
        self._plots = compiler.plots
        self._endings = compiler.endings
        self._plot_choice = compiler.choice(list(self._plots), "plots")
        self._ending_choice = compiler.choice([True, False], "phrases")
        plot_bodies = tuple(
            (Label(PLOT, number), *plot.body, PARAGRAPH, Choice(plot.endings, self._ending_choice.weights))
            for number, plot in enumerate(self._plots.values())
        )
        self._root: Pieces = (Choice(plot_bodies, self._plot_choice.weights),)
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

    def log_prefix_probabilities(self, text: str) -> list[float]:
        """``log_prefix_probability`` of every beginning of ``text``, from '' to all of it, in one pass: ``len(text) + 1`` numbers."""
        masses = [0.0, *[-math.inf] * len(text)]
        self._forward(self._root, text, whole=False, masses=masses)
        return masses

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
    def _sentences(self) -> Pieces:
        return (_factored(_sentence_starts(self._root)),)

    def _write(self, sequence: Pieces, uniform: Callable[[], float], bound: list[int]) -> str:
        out: list[str] = []
        mark: Mark | None = None
        stack = [iter(sequence)]
        while stack:
            for piece in stack[-1]:
                kind = type(piece)
                if kind is Choice:
                    stack.append(iter(piece.draw(uniform)))
                    break
                if kind is Mark:
                    mark = piece
                    continue
                if kind is Label:
                    bound[piece.place] = piece.value
                    continue
                if kind is Mention:
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

    def _derive(self, root: Pieces, text: str, whole: bool) -> dict[tuple[int, ...], float]:
        """Log weights, by the cast and labels bound, of the derivations from ``root`` that write ``text``, or begin with it; empty without any."""
        return self._forward(root, text, whole)[0]

    def _forward(self, root: Pieces, text: str, whole: bool, masses: list[float] | None = None) -> tuple[dict[tuple[int, ...], float], int]:
        """``_derive``, and how many characters of ``text`` some derivation begins with.

        To ``masses[n]``, if it is given, the derivations are added that write the first n characters, n = 1, 2, ...: each where it passes the n-th.
        """
        # The forward algorithm. A state is where the derivation stands (a stack of sequences still to be written), the cast bound so far and
        # a pending mark; `waiting` holds, by characters written, the log weight of each state. Derivations that meet are added up.
        end, legal = len(text), 0
        totals: dict[tuple[int, ...], float] = {}
        waiting: dict[int, dict[_State, float]] = defaultdict(dict)
        waiting[0][((root, 0, None), self._unbound, None)] = 0.0

        def reaches(piece: str, position: int, mark: Mark | None, weight: float) -> int | None:
            # Characters written once `piece` is, None if the text says something else; past the end counts for a beginning only.
            if mark and piece:
                piece = mark.join(piece)
            nonlocal legal
            if masses is not None:
                for place in range(position, min(position + len(piece), end)):
                    if text[place] != piece[place - position]:
                        break
                    masses[place + 1] = _log_add(masses[place + 1], weight)
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
            if isinstance(piece, Choice):
                initial = _initial(text, position, mark)
                for option, first, log_share in piece.beginning_with(initial):
                    reached = reaches(first, position, mark, weight + log_share)  # written at once: here most options of a long list end
                    if reached is not None:
                        done = 1 if first else 0
                        after = (option, done, rest) if len(option) > done else rest
                        add(reached, (after, bound, None if first else mark), weight + log_share)
                if mark and mark.article and initial and (masses is not None or legal < position + len("an ")):
                    for _, first, log_share in piece.beginning_with(""):
                        if first and first[0].lower() != initial:  # but the article may be the same
                            reaches(first, position, mark, weight + log_share)
            elif isinstance(piece, Mark):
                add(position, (rest, bound, piece), weight)
            elif isinstance(piece, Label):
                add(position, (rest, _replaced(bound, piece.place, piece.value), mark), weight)
            elif isinstance(piece, str):
                if (reached := reaches(piece, position, mark, weight)) is not None:
                    add(reached, (rest, bound, None), weight)
            else:
                slot = self._slots[piece.slot]
                word = bound[piece.slot]
                taken = {bound[other] for other in slot.rivals}
                free = weight - math.log1p(-sum(slot.choice.shares[other] for other in taken if other >= 0))
                for candidate in range(len(slot.words)) if word < 0 else (word,):
                    if candidate not in taken:
                        chosen = weight if word >= 0 else free + slot.choice.log_shares[candidate]
                        if (reached := reaches(slot.words[candidate][piece.form], position, mark, chosen)) is not None:
                            add(reached, (rest, _replaced(bound, piece.slot, candidate), None), chosen)
        return totals, legal


def words_in(text: str) -> list[str]:
    """The words of a text as ``StoryGrammar.word_types`` counts them: lower case, hyphens and inner apostrophes kept, possessive 's dropped."""
    return [word.removesuffix("'s") for word in _WORD.findall(text.lower())]


def sentences_in(text: str) -> list[str]:
    """The sentences of a text: each ends in . ! or ?, and a closing quotation mark if there is one, before white space or the text's end."""
    return re.split(r"(?<=[.!?])\s+|(?<=[.!?]\")\s+", text.strip())


@functools.cache
def _embedded_source(name: str) -> Mapping[str, Any]:
    return yaml.safe_load((resources.files("collapse_lib.text") / "data" / f"{name}.yaml").read_text(encoding="utf-8"))


# ---- the automaton ---------------------------------------------------------------------------------------------------------------------


_Frame = tuple[Pieces, int, Any]  # a sequence, the next piece in it, and the frame to return to
_State = tuple[_Frame | None, tuple[int, ...], Mark | None]


def _initial(text: str, position: int, mark: Mark | None) -> str:
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

    def __init__(self, slots: list[Slot], endings: list[str], root: Pieces):
        self._slots = slots
        self._shares = functools.cache(self._share_law)
        self._visits: dict[tuple[Choice | Mention | str, tuple[int, ...], Mark | None], float] = defaultdict(float)
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

    def _advance(self, sequence: Pieces, states: dict[_Standing, float]) -> dict[_Standing, float]:
        """The states behind a sequence, from those before it; what is written in it is counted in ``_visits``."""
        for piece in sequence:
            after: dict[_Standing, float] = defaultdict(float)
            for (order, mark), probability in states.items():
                if isinstance(piece, Choice) and not piece.is_of_words:
                    for option, share in zip(piece.options, piece.shares, strict=True):
                        for state, weight in self._advance(option, {(order, mark): probability * share}).items():
                            after[state] += weight
                    continue
                if isinstance(piece, Mark):
                    mark = piece
                elif isinstance(piece, Label):
                    if piece.place == ENDING:
                        self.endings[piece.value] += probability
                else:
                    if isinstance(piece, Mention) and piece.slot not in order:
                        order = tuple(sorted((*order, piece.slot), key=lambda slot: min((slot, *self._slots[slot].rivals))))
                    self._visits[piece, order if isinstance(piece, Mention) else (), mark] += probability
                    mark = None
                after[order, mark] += probability
            states = after
        return states

    def _texts(self, piece: Choice | Mention | str, order: tuple[int, ...]) -> Iterator[tuple[str, float]]:
        if isinstance(piece, str):
            yield piece, 1.0
        elif isinstance(piece, Choice):
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


_Standing = tuple[tuple[int, ...], Mark | None]  # slots in the order in which they were filled, and a pending mark


# ---- sentences by themselves -----------------------------------------------------------------------------------------------------------


def _sentence_starts(root: Pieces) -> list[Pieces]:
    """What is still to be written of a story, cast aside, wherever a sentence of it begins."""
    starts: dict[Pieces, None] = {}
    seen: set[tuple[Pieces, str]] = set()
    waiting = [(root, ". ")]  # what is to be written, and the end of what was, as far as it belongs to a sentence's end
    while waiting:
        state = waiting.pop()
        sequence, before = state
        if not sequence or state in seen:
            continue
        seen.add(state)
        piece, rest = sequence[0], sequence[1:]
        if isinstance(piece, Choice):
            waiting.extend(((*option, *rest), before) for option in piece.options)
        elif isinstance(piece, Label):
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


def _factored(sequences: Iterable[Pieces]) -> Choice:
    """One choice among different sequences, beginnings in common written once: to try a text against them costs far less. Weights mean nothing."""
    by_first: dict[Piece | None, list[Pieces]] = defaultdict(list)
    for sequence in sequences:
        by_first[sequence[0] if sequence else None].append(sequence)
    options = [group[0] if len(group) == 1 else (first, _factored(sequence[1:] for sequence in group)) for first, group in by_first.items()]
    return Choice(options, [1.0] * len(options))
