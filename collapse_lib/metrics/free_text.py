"""What a generation's free text looks like: entropy (section 5.3.1), non-words (section 5.3.2), repetition (Finding 2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from collapse_lib.metrics.entropy import entropy_metrics
from collapse_lib.metrics.metric import Metric, metric, ratio
from collapse_lib.metrics.repetition import Repeats, distinct_metrics, frequent_tokens
from collapse_lib.metrics.row_blocks import row_blocks
from collapse_lib.metrics.words import corpus_words, lexicon, oov_metrics

if TYPE_CHECKING:
    import numpy as np

    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer


def free_text(
    corpus: TokenCorpus, tokenizer: Tokenizer, initial_word_types: set[str], initial_counts: np.ndarray | None = None
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Measure a corpus; memory grows with its different words and not with its length.

    ``initial_word_types`` is what ``corpus_word_types`` says of the initial corpus, ``initial_counts`` [vocabulary] how often each token occurs there
    (without it there is no ``repeated_frequent``). Returns ``(metrics, examples)`` as a step's metrics file holds them: ``metrics[name]`` has
    ``value``, ``unit``, ``definition`` and, where it is a ratio, its ``counts``; a ratio of nothing is 0.
    """
    repeats = Repeats()
    for tokens, first in row_blocks(corpus):
        repeats.add(tokens, first)
    words, mixed = corpus_words(corpus, tokenizer)
    lexicon_metrics, lexicon_frequent = oov_metrics("lexicon", "in wordfreq's large English list", words, lexicon())
    initial_metrics, initial_frequent = oov_metrics("initial", "among the words of the initial corpus", words, initial_word_types)
    metrics = {
        **entropy_metrics(corpus.token_counts()),
        "words": metric(
            words.total(), "words", "words of the decoded text, without the last word of a row that was cut off, which may be incomplete"
        ),
        "word_types": metric(len(words), "types", "distinct words, case-folded"),
        "mixed": metric(mixed, "pieces", "pieces that mix letters with other characters, counted neither as words nor as OOV"),
        **lexicon_metrics,
        **initial_metrics,
        **distinct_metrics(corpus),
        "repeated": ratio(repeats.repeated, repeats.followers, "1", "share of tokens equal to the token before them in their row", "tokens"),
        "longest_repeat": metric(repeats.longest, "tokens", "length of the longest run of one and the same token"),
    }
    if initial_counts is not None:
        of_frequent = int(repeats.counts[frequent_tokens(initial_counts)].sum())
        definition = "share of the repeated tokens that are among the fewest tokens that make half of the initial corpus"
        metrics["repeated_frequent"] = ratio(of_frequent, repeats.repeated, "1", definition, "tokens")
    examples = {"frequent_oov": lexicon_frequent, "frequent_oov_initial": initial_frequent}
    if repeats.longest > 1:
        examples["longest_repeat_token"] = tokenizer.decode([repeats.token])
    return metrics, examples
