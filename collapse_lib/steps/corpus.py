"""Generation 0: the initial corpus, its tokeniser and its words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.inputs import given_tokenizer

if TYPE_CHECKING:
    from collapse_lib.experiment.protocol import Protocol
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer

EXCERPTS = 6  # rows that a run shows of each text
EXCERPT_TOKENS = 80  # and how much of each


def corpus(run: Run) -> Results:
    """Read or write the stories of generation 0, learn or load the tokeniser, store training, hold-out and validation tokens and the words.

    Writes ``tokenizer/`` and, in ``generation-00``, ``corpus/{train,holdout,validation}`` and ``corpus/words.txt``. Returns what was measured.

    Example: ``steps.corpus(Run.open("demo"))["metrics"]["train_stories"]["value"]``
    """
    return perform(write_initial_corpus, "corpus", run, 0)


def write_initial_corpus(task: Task) -> None:
    """The work of step ``corpus``."""
    from collapse_lib.metrics.words import corpus_word_types
    from collapse_lib.text import tokenizer as tokenization
    from collapse_lib.text.corpus import build_initial_corpus
    from collapse_lib.text.sources import read_stories

    protocol, record, seed = task.protocol, task.record, task.seed("corpus")
    if protocol.tokenizer.source == "learn":
        tokenizer = tokenization.learn(read_stories(protocol.corpus, "train", seed), protocol.tokenizer.vocabulary)
    else:
        tokenizer = given_tokenizer(protocol.tokenizer.source)
    check_lengths(protocol, tokenizer)
    task.publish("tokenizer", tokenizer.save)
    parts = build_initial_corpus(protocol, tokenizer, task.path("train").parent, seed)
    for part, stories in parts.items():
        record.measure(f"{part}_stories", stories.rows, "stories", f"stories of the initial corpus used for {part}")
        record.measure(f"{part}_tokens", stories.real_tokens, "tokens", f"tokens in them, one '<|endoftext|>' a story included ({part})")
        task.record_output(part)
    record.measure("validation_bytes", text_bytes(parts["validation"], tokenizer), "bytes", "UTF-8 bytes of the validation stories")
    task.publish("words", "\n".join(sorted(corpus_word_types(parts["train"], tokenizer))))
    record.measure("vocabulary", tokenizer.vocabulary, "tokens", "tokens the model can write")
    record.examples["samples"] = excerpts(parts["train"], tokenizer)


def check_lengths(protocol: Protocol, tokenizer: Tokenizer) -> None:
    """Raise ``UserError`` for lengths that only the tokeniser can tell, and that steps after hours of training would refuse."""
    from collapse_lib.text.tasks import TASKS, room_for_pairs

    if any(len(TASKS[name].columns) == 2 for name in protocol.classification.tasks):
        room_for_pairs(tokenizer, protocol.classification.max_length, protocol.classification.separator)
    if protocol.sampling.overflow == "extend":
        _check_positions(protocol, tokenizer)


def _check_positions(protocol: Protocol, tokenizer: Tokenizer) -> None:
    """``UserError`` unless every story beginning and its continuation have positions of their own."""
    from collapse_lib.metrics.gpt_eval import read_prompts

    start, positions = int(protocol.sampling.start == "endoftext"), protocol.model.max_position_embeddings
    for field, (tokens, beginnings) in protocol.continued_lengths().items():
        longest = start + max((len(tokenizer.encode(text)) for text in read_prompts(protocol.completions.prompts)[:beginnings]), default=0)
        if longest + tokens - 1 > positions:  # the last token is never read
            raise UserError(
                f"{field} is {tokens}, and the longest beginning in completions.prompts has {longest} tokens, start included: "
                f"with sampling.overflow = extend that is more than model.max_position_embeddings = {positions}."
            )


def text_bytes(stories: TokenCorpus, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of complete rows as text, their start tokens left out."""
    return sum(len(tokenizer.decode(row[1:]).encode()) for row in stories.iter_rows())


def excerpts(text: TokenCorpus, tokenizer: Tokenizer) -> list[str]:
    """The beginnings of the first rows as text."""
    start = 1 if text.has_start else 0
    rows = (text.row(index)[start : start + EXCERPT_TOKENS] for index in range(min(EXCERPTS, text.rows)))
    return [tokenizer.decode(row) for row in rows]
