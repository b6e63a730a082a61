"""How large the initial corpus of a run will be, before the run has made it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.text.sources import is_on_hub

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol

# TinyStories, which stands for any corpus on the hub, in GPT-2's tokens: of a thousand stories so many have so many tokens. The shares are a
# sample's; its lengths are stretched to the mean of the whole corpus, 4.7e8 tokens in 2.12e6 stories.
HUB_STORIES, HUB_VALIDATION_STORIES, HUB_VOCABULARY = 2_120_000, 22_000, 50_257
HUB_LENGTHS = ((100, 135), (150, 161), (250, 183), (250, 212), (150, 264), (50, 356), (35, 484), (10, 596), (4, 755), (1, 978))
CHARACTERS_PER_TOKEN = 4.07  # of TinyStories under GPT-2's tokenizer
SAMPLE = 400  # stories whose lengths stand for all


@dataclass(frozen=True)
class CorpusSize:
    """Counts of an initial corpus, the ``vocabulary`` of its tokenizer, and the ``lengths`` in tokens of stories that represent it."""

    stories: int
    validation_stories: int
    vocabulary: int
    lengths: tuple[float, ...]
    note: str = ""  # what is assumed

    @property
    def mean_tokens(self) -> float:
        """Mean tokens of a story, its '<|endoftext|>' included."""
        return 1 + float(np.mean(self.lengths))

    def longest_of(self, count: int, most: int) -> float:
        """Tokens, '<|endoftext|>' included, that the longest of ``count`` stories has in the mean; none has more than ``most``."""
        lengths = np.minimum(np.sort(self.lengths) + 1, most)
        below = (np.arange(len(lengths) + 1) / len(lengths)) ** count  # the chance that all are among the shortest 0, 1, 2, ...
        return float(lengths @ np.diff(below))

    @property
    def tokens(self) -> float:
        """Tokens of the training and hold-out stories."""
        return self.stories * self.mean_tokens


def initial_corpus(protocol: Protocol) -> CorpusSize:
    """The size of a protocol's initial corpus: counted for the grammar and for local files, TinyStories' for the hub, which is not asked.

    Raises ``UserError`` as reading the stories does.
    """
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.sources import read_stories

    corpus, source = protocol.corpus, protocol.tokenizer.source
    learned = protocol.tokenizer.vocabulary if source == "learn" else None
    if is_on_hub(corpus.source):
        size = CorpusSize(
            corpus.stories or HUB_STORIES,
            corpus.validation_stories or HUB_VALIDATION_STORIES,
            learned or HUB_VOCABULARY,
            tuple(float(tokens) for count, tokens in HUB_LENGTHS for _ in range(count)),
        )
        note = (
            f"'{corpus.source}' is not downloaded for a plan; it is taken to be like TinyStories: {size.stories:,} stories"
            f" of {size.mean_tokens:.0f} GPT-2 tokens ({size.tokens:.2g} in all) and {size.validation_stories:,} validation stories"
        )
        return replace(size, note=note)
    first = list(islice(read_stories(corpus), SAMPLE))
    stories = corpus.stories if corpus.source == "grammar" else sum(1 for _ in read_stories(corpus))
    validation_stories = corpus.validation_stories or sum(1 for _ in read_stories(corpus, "validation"))
    note = f"the first {len(first)} stories are taken to be as long as all others"
    if learned or Path(source).expanduser().exists():
        tokenizer = tokenization.learn(iter(first), learned) if learned else tokenization.load(source)
        vocabulary, lengths = learned or tokenizer.vocabulary, [len(ids) for ids in tokenizer.encode_batch(first)]
    else:
        vocabulary, lengths = HUB_VOCABULARY, [max(1, round(len(story) / CHARACTERS_PER_TOKEN)) for story in first]
        note += (
            f", with {CHARACTERS_PER_TOKEN} characters in a token; the tokenizer '{source}' is not downloaded"
            f" for a plan, its vocabulary is taken to be {vocabulary:,}"
        )
    return CorpusSize(stories, validation_stories, vocabulary, tuple(map(float, lengths)), note)
