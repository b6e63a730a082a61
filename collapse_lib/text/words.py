"""Words as tokens, for a model whose context is a few tokens: so that a few tokens are a phrase."""

from __future__ import annotations

from collections.abc import Iterable

from collapse_lib.text.tokenizer import EOS, Tokenizer

UNKNOWN = "<|unknown|>"
# A paragraph's end, a word with the space before it, its possessive, signs with the space before them, another blank: end to end they are the text.
PIECES = r"\n\n| ?\w+(?:['’-](?!s\b)\w+)*|['’]s\b| ?[^\w\s]+?(?=['’]s\b|[\w\s]|$)|\s"


def learn_words(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer whose tokens are the words and signs of ``texts``, in the order of their code points; other words become ``<|unknown|>``."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    cut = pre_tokenizers.Split(tokenizers.Regex(PIECES), behavior="isolated")
    words = {word for text in texts for word, _ in cut.pre_tokenize_str(text)} - {EOS, UNKNOWN}
    vocabulary = {word: token for token, word in enumerate((EOS, UNKNOWN, *sorted(words)))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Fuse()
    return Tokenizer(tokenizer, "words")
