"""A generation against the exact law of the grammar whose stories began the chain: excess loss, legality, tails."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform

if TYPE_CHECKING:
    from collapse_lib.metrics.legality import Judge
    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.grammar import Reading, StoryGrammar
    from collapse_lib.text.tokenizer import Tokenizer

EXAMPLES = 6  # judged stories that a run shows of each generation


def exact(run: Run, generation: int, device: str = "auto") -> Results:
    """How far the model and the text of ``generation`` are from the grammar's own law; for runs whose stories come from it.

    Reads the model, the text, the initial training and validation stories, the tokeniser, and what this step measured before. Returns what was
    measured: ``excess_loss`` (nats a story), ``legal_share``, ``legal_sentences``, ``plots_told``, ...; in ``series`` loss by true probability and
    the survival of words.

    Example: ``steps.exact(Run.open("demo"), 1)["metrics"]["excess_share"]["value"]``
    """
    return perform(compare_with_law, "exact", run, generation, device)


def compare_with_law(
    task: Task,
    model: GPTNeo,
    text: TokenCorpus,
    initial_text: TokenCorpus,
    validation: TokenCorpus,
    tokenizer: Tokenizer,
    corpus: Results,
    previous_exact: Results | None,
    first_exact: Results | None,
) -> None:
    """The work of step ``exact``; ``corpus`` is what generation 0 measured, the last two what this step did before."""
    from collapse_lib.metrics.story_sample import complete_stories
    from collapse_lib.text.grammar import StoryGrammar

    grammar, settings = StoryGrammar(task.protocol.corpus.grammar), task.protocol.exact
    _losses(task, model, validation, tokenizer, grammar, first_exact)
    stories = [tokenizer.decode(ids) for ids in complete_stories(text, settings.stories, task.seed("exact"))]
    task.record.measure("judged_stories", len(stories), "stories", "complete stories that the grammar judged")
    if stories:
        _judged(task, stories, grammar)
    _survival(task, text, initial_text, tokenizer, corpus, previous_exact)


def _losses(task: Task, model: GPTNeo, validation: TokenCorpus, tokenizer: Tokenizer, grammar: StoryGrammar, first: Results | None) -> None:
    """Loss on validation stories against the floor, and by the true probability of the token; the truth is worked out once, in generation 1."""
    from collapse_lib.metrics.excess_loss import excess_loss
    from collapse_lib.metrics.tails import loss_by_probability, true_losses
    from collapse_lib.metrics.token_scores import token_losses, with_end

    record, rows = task.record, with_end(validation)
    losses = token_losses(model, rows, task.protocol.evaluation.max_context)
    if first:
        floors, truth = first["series"]["log_probability"], [np.array(row) for row in first["series"]["true_losses"]]
    else:
        floors = [grammar.log_probability(tokenizer.decode(row[1:-1])) for row in rows]
        few = rows[: task.protocol.exact.loss_stories]
        truth = [true_losses(row[1:-1], tokenizer, grammar.log_probability, grammar.log_prefix_probabilities) for row in few]
        record.series |= {"log_probability": floors, "true_losses": [[float(f"{value:.7g}") for value in row] for row in truth]}
    record.metrics |= excess_loss([row.sum() for row in losses], floors)
    record.series["loss_by_probability"] = loss_by_probability(losses[: len(truth)], truth)


def judge_of(grammar: StoryGrammar) -> tuple[Judge, Callable[[str], Reading]]:
    """Who says what the grammar could have written, and how the grammar reads a text; what was read once is remembered."""
    from collapse_lib.metrics.legality import Judge

    read = functools.cache(grammar.read)
    judge = Judge(
        grammar.log_probability,
        grammar.log_prefix_probability,
        grammar.is_sentence,
        grammar.word_types(),
        grammar.slots,
        lambda text: read(text).legal,
    )
    return judge, read


def _judged(task: Task, stories: list[str], grammar: StoryGrammar) -> None:
    """Legality, with its causes, and what is still told."""
    from collapse_lib.metrics.legality import legality
    from collapse_lib.metrics.tails import still_told

    record, (judge, read) = task.record, judge_of(grammar)
    verdicts = [judge.judge(story) for story in stories]
    record.metrics |= legality(verdicts)
    for what, tells, law in (
        ("plots", lambda story: read(story).plot, grammar.plot_probabilities()),
        ("endings", lambda story: read(story).ending, grammar.ending_probabilities()),
        ("heroes", lambda story: read(story).cast.get("hero"), grammar.cast_probabilities("hero")),
    ):
        record.metrics |= {f"{what}_{name}": metric for name, metric in still_told(stories, tells, law, what).items()}
    shown = list(zip(stories, verdicts, strict=True))[:EXAMPLES]
    record.examples["judged"] = [[story, verdict.legal_characters, verdict.cause] for story, verdict in shown]


def _survival(
    task: Task, text: TokenCorpus, initial_text: TokenCorpus, tokenizer: Tokenizer, corpus: Results, previous_exact: Results | None
) -> None:
    """Which words of the initial corpus are still written, against the extinction law."""
    from collapse_lib.metrics.tails import word_survival
    from collapse_lib.metrics.words import corpus_words

    before = previous_exact["series"]["sizes"] if previous_exact else [corpus["metrics"]["train_tokens"]["value"]]
    sizes = [*before, text.real_tokens]
    words, now = (corpus_words(part, tokenizer)[0] for part in (initial_text, text))
    task.record.series |= {"sizes": sizes, "word_survival": word_survival(words, now, sizes)}
