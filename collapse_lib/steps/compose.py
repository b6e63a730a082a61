"""What a generation learns from where that is not simply its predecessor's text: the regimes of ``experiment.regimes``."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from collapse_lib.experiment import regimes
from collapse_lib.experiment.artefacts import remove
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.run import Run
from collapse_lib.steps.frame import Results, Task, perform
from collapse_lib.steps.sample import sample_into
from collapse_lib.text.composition import FRESH, Part, save

if TYPE_CHECKING:
    from IPython.display import Markdown

    from collapse_lib.model.gpt_neo import GPTNeo
    from collapse_lib.text.corpus import TokenCorpus
    from collapse_lib.text.tokenizer import Tokenizer
    from collapse_lib.text.view import Selection


def compose(run: Run, generation: int, device: str = "auto") -> Results:
    """Choose, by the protocol's regime, the text that the model of ``generation`` will learn from.

    Reads the texts that the regime draws from, the tokeniser and, where generation 1 writes or judges, its model. Writes ``composition/``: which rows
    of texts, never copies of them. Returns what was measured: ``tokens``, ``real_share`` and, in ``series``, the tokens from each text.

    Example: ``steps.compose(Run.open("mixed"), 2)["series"]["tokens_by_text"]``
    """
    return perform(write_composition, "compose", run, generation, device)


def sources_table(composed: Results) -> Markdown:
    """Where the text comes from, and how much of it."""
    from IPython.display import Markdown

    writers = {"0": "the initial corpus", "real": "fresh real text", "first": "new text of generation 1"}
    counts, total = composed["series"]["tokens_by_text"], composed["metrics"]["tokens"]["value"]
    rows = [f"| {writers.get(name, f'text of generation {name}')} | {count:,} | {count / total:.3f} |" for name, count in counts]
    return Markdown("\n".join(["| text | tokens | share |", "|:--|--:|--:|", *rows]))


def write_composition(task: Task, tokenizer: Tokenizer, corpus: Results, first_model: GPTNeo | None = None, **texts: TokenCorpus) -> None:
    """The work of step ``compose``; ``corpus`` is what generation 0 measured, ``texts`` are ``text_0``, ``text_3``, ..., the texts of generations."""
    from collapse_lib.text.composition import load

    regime, folder = task.protocol.regime.regime, task.path("composition")
    opened = {int(name.removeprefix("text_")): text for name, text in texts.items()}
    remove(folder / "composition.json")
    if regime.name == "first_only":
        sample_into(folder / FRESH, task, first_model, tokenizer, "sample again", task.protocol.sampling.sequences)
        parts = [Part(None)]
    else:
        parts = [_part(task, part, opened, tokenizer, folder) for part in _composed(task, opened, corpus, tokenizer, first_model)]
    save(folder, parts)
    task.record_output("composition")
    view = load(folder, opened.__getitem__, "")
    _record(task, parts, getattr(view, "parts", [view]))


def _composed(task: Task, texts: dict[int, TokenCorpus], corpus: Results, tokenizer: Tokenizer, judge: GPTNeo | None) -> list[regimes.Part]:
    """The parts that ``regimes.compose`` draws; ``select`` draws complete stories, all others rows.

    N is the size of the initial corpus, or less where a predecessor wrote too little for its share of it.
    """
    from collapse_lib.text.view import Selection

    regime, generation = task.protocol.regime.regime, task.generation
    tokens = corpus["metrics"]["train_tokens"]["value"]
    seed, scores = task.seed("compose", 0), None
    lengths = [texts[number].row_lengths() if number in texts else np.empty(0, np.int64) for number in range(generation)]
    if regime.needs_scores:
        stories = Selection.of_stories(texts[generation - 1])
        lengths[-1] = stories.row_lengths()
        scores = _grammar_scores(task, stories, tokenizer) if regime.verifier == "grammar" else _likelihood_scores(task, stories, judge)
    written_share = {"select": 1.0, "mix": 1 - (regime.share or 0)}.get(regime.name, 0.0)
    if written_share:
        tokens = min(tokens, int(lengths[-1].sum() / written_share))
    if not tokens:
        more = "longer rows (sampling.length), since it takes complete stories" if regime.needs_scores else "more rows (sampling.sequences)"
        raise UserError(f"Generation {generation - 1} wrote nothing that regime '{regime.name}' can take; sample {more}.")
    return regimes.compose(regime, generation, lengths, tokens, seed, scores)


def _part(task: Task, part: regimes.Part, texts: dict[int, TokenCorpus], tokenizer: Tokenizer, folder: Path) -> Part:
    if part.text == regimes.FRESH:
        _write_fresh(task, part.tokens, tokenizer, folder / FRESH)
        return Part(None)
    are_stories = task.protocol.regime.regime.needs_scores
    is_whole = not are_stories and len(part.rows) == texts[part.text].rows
    return Part(part.text, None if is_whole else part.rows, are_stories)


def _write_fresh(task: Task, tokens: int, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the fewest stories of the grammar, unlike those of any other generation, that have ``tokens`` tokens."""
    from collapse_lib.text.corpus import write_stories
    from collapse_lib.text.grammar import StoryGrammar

    remove(folder)
    without_end = StoryGrammar(task.protocol.corpus.grammar).stories(task.seed("fresh corpus"), 2**62)
    write_stories(without_end, tokenizer, folder, tokens)


def _likelihood_scores(task: Task, stories: Selection, model: GPTNeo) -> np.ndarray:
    """Mean log-likelihood a token, the story's end included, of each story under generation 1's model."""
    from collapse_lib.metrics.token_scores import token_losses

    rows = [np.append(row, np.uint16(stories.eos_id)) for row in stories.iter_rows()]
    return np.array([-losses.mean() for losses in token_losses(model, rows, task.protocol.evaluation.max_context)])


def _grammar_scores(task: Task, stories: Selection, tokenizer: Tokenizer) -> np.ndarray:
    """``StoryGrammar.grade`` a token, the story's end included: whole stories of the grammar first, then what it could have begun longest."""
    from collapse_lib.text.grammar import StoryGrammar

    grade = functools.cache(StoryGrammar(task.protocol.corpus.grammar).grade)  # selected texts repeat themselves
    return np.array([grade(tokenizer.decode(row[1:])) / len(row) for row in stories.iter_rows()])


def _record(task: Task, parts: list[Part], views: list) -> None:
    record, tokens = task.record, [view.real_tokens for view in views]
    by_text: dict[str, int] = {}
    for part, count in zip(parts, tokens, strict=True):
        name = _name(task, part)
        by_text[name] = by_text.get(name, 0) + count
    total = sum(tokens)
    real = sum(count for name, count in by_text.items() if name in ("0", "real"))
    record.measure("tokens", total, "tokens", "tokens that this generation learns from, given start tokens not counted")
    record.measure("parts", len(parts), "parts", "texts that they come from")
    record.measure("real_share", real / total, "1", "share of them that no model has written")
    record.series["tokens_by_text"] = [[name, count] for name, count in by_text.items()]


def _name(task: Task, part: Part) -> str:
    """A generation's number; of a text that was written for this generation, who wrote it."""
    if part.text is not None:
        return str(part.text)
    return "first" if task.protocol.regime.name == "first_only" else "real"
