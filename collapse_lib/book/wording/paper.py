"""What the paper reports, beside what runs measured; its samples (Table A1); which of its figures a page stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from IPython.display import Markdown

from collapse_lib.book.wording.numbers import course_and_peak, pipe_table, points_of
from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.judged import distrusted, graded_generations, judge_label, judge_record
from collapse_lib.figures.paper import sized_names
from collapse_lib.figures.style import evenly
from collapse_lib.studies.results import executed, measured, metric, select
from collapse_lib.text.display import literal

if TYPE_CHECKING:
    from pandas import DataFrame


class Reported(NamedTuple):
    """A measure: its label, the step that measures it, and what the paper reports of it."""

    label: str
    step: str
    said: str


NO_LAW = "not reported; the law of its stories is not known"
CONTROLS = "control rows"  # the one entry below that is no measure but a verdict on the judge
REPORTED = {
    "perplexity": Reported("perplexity", "perplexity", "rises in every generation from 1 to 40, faster for the 1M than for the 33M model (Fig. 1)"),
    "entropy": Reported(
        "entropy (nats)",
        "free_text",
        "rises from generation 1 to 25, then falls sharply (33M, Fig. 2); rises, then falls in the late generations (1M, Fig. A2)",
    ),
    "oov_lexicon_occurrences": Reported(
        "OOV words", "free_text", "rises from generation 1 to 39 (33M, Fig. 2); rises over 40 generations (1M, Fig. A2)"
    ),
    "repeated": Reported(
        "share of tokens that repeat their predecessor",
        "free_text",
        "no number; repetition is said to grow, often of tokens frequent in the initial corpus (Finding 2), 'e' and 'z' among them",
    ),
    "grammar": Reported("grammar grade", "gpt_eval", "tends to fall over generations 1 to 36 (33M, Fig. 3)"),
    "consistency": Reported("consistency grade", "gpt_eval", "falls more sharply than grammar (33M, Fig. 3)"),
    CONTROLS: Reported(
        "does the judge pass its controls?",
        "gpt_eval",
        "no control rows; about half of the untrained baseline's random tokens got surprisingly high grades (Table A2)",
    ),
    "loss_at_0": Reported(
        "loss at a story's first token (nats)",
        "perplexity",
        'not reported; from generation 16 on, Table A1 has beginnings such as "did day one day"',
    ),
    "loss_at_512_599": Reported(
        "loss beyond 512 tokens (nats)", "perplexity", "not reported; sequences of 600 tokens are written and at most 512 are the context"
    ),
    "eos_share": Reported("share of ends among the sampled tokens", "free_text", "not reported"),
    "end_probability": Reported(
        "probability of an end where a validation story ends",
        "perplexity",
        "not reported; in its released code no end is ever a training target",
    ),
    "story_length": Reported("story length, cut at the row (tokens)", "free_text", "not reported; all sequences are said to have 600 tokens"),
    "excess_loss": Reported("excess loss (nats a story)", "exact", NO_LAW),
    "legal_share": Reported("share of a story before its first impossible character", "exact", NO_LAW),
    "legal_sentences": Reported("share of legal sentences", "exact", NO_LAW),
    "legal_stories": Reported("share of stories that are legal to the end", "exact", NO_LAW),
    "plots_told": Reported("different plots told", "exact", NO_LAW),
    "endings_told": Reported("different endings told", "exact", NO_LAW),
    "heroes_told": Reported("different heroes told", "exact", NO_LAW),
    "conditional_entropy": Reported(
        "entropy of the next-token law on its own text (nats)",
        "texture",
        "not reported; repetition, as Finding 2 describes it for late generations, would be a fall",
    ),
    "context_information": Reported("what the context tells of a token (nats)", "texture", "not reported"),
    "block_distinct_2": Reported("distinct 2-grams in equally many tokens", "texture", "no number; repetition (Finding 2) would be a fall"),
    "self_bleu": Reported("self-BLEU", "texture", "no number; repetition (Finding 2) would be a rise"),
    "above_reference": Reported(
        "share of samples less probable to generation 1 than 99% of its own",
        "texture",
        "not reported; Shumailov and others (2024) see such a tail grow",
    ),
}


class PaperFigure(NamedTuple):
    """A figure that the paper draws for several measures or sizes of models: the measure that it shows, and what it is about."""

    measure: str
    opening: str


PAPER_FIGURES = {
    "2": PaperFigure("entropy", "The paper draws **Figure 2** of its 33M models."),
    "A2": PaperFigure(
        "entropy",
        "The paper draws Figure 2 once more, as **Figure A2**, for its other model size, the one it calls 1M. Does a model with fewer parameters "
        "take the same road, and does it get there sooner?",
    ),
    "4": PaperFigure("accuracy", "The paper draws **Figure 4**, accuracy, of its 33M models."),
    "A3": PaperFigure(
        "accuracy",
        "The paper draws Figure 4 once more, as **Figure A3**, for its other model size, the one it calls 1M. Does a model with fewer parameters "
        "have less to lose?",
    ),
    "A4": PaperFigure("f1", "The paper draws **Figure A4**, weighted F1, of its 33M models."),
    "A5": PaperFigure("f1", "The paper draws Figure A4, weighted F1, once more, as **Figure A5**, for the model that it calls 1M."),
}
OTHER_SIZE = (
    " The notebook draws whatever runs it is given. For the paper's figure give it a run of `paper-1m` or `released-1m`, and to compare, one of "
    "another size beside it. Runs of one size alone do not answer the question."
)


def paper_figure(figure: str, among: Sequence[str]) -> PaperFigure:
    """One of the paper's figures by its number. Raises ``UserError`` for one that is not ``among`` those of a notebook."""
    if figure not in among:
        raise UserError(f"This notebook does not draw a figure '{figure}'; choose {', '.join(among[:-1])} or {among[-1]}.")
    return PAPER_FIGURES[figure]


def page_opening(page: PaperFigure, table: DataFrame) -> Markdown:
    """What one of the paper's figures is about, which runs are shown here instead, and how large their models are."""
    names = "; ".join(f"**{run}**{name.removeprefix(run)}" for run, name in sized_names(table, table["run"].unique()).items())
    return Markdown(f"{page.opening}{OTHER_SIZE if '1M' in page.opening else ''}\n\nShown here: {names or 'no run'}.")


def beside_paper(table: DataFrame, measures: Sequence[str]) -> Markdown:
    """What the paper reports beside what each run of the table shows, for some of the measures in ``REPORTED``."""
    rows = []
    for name in measures:
        label, step, said = REPORTED[name]
        here = {run: _here(table, run, name, step) for run in table["run"].unique()}
        rows += [(label, said, run, words) for run, words in here.items() if words] or [(label, said, "–", "*not measured*")]
    return Markdown(pipe_table(("measure", "the paper", "run", "here, one chain per run"), rows))


def table_a1(run: str, generations: Sequence[int] = (), each: int = 2) -> Markdown:
    """Table A1, samples by generation: ``each`` of every chosen generation (default: up to eight, evenly spaced).

    Raises ``UserError`` for a run that has sampled nothing.
    """
    chosen = generations or evenly(_sampled(run), 8)
    rows = [(str(generation), literal(text)) for generation in chosen for text in measured(run, generation, "sample")["examples"]["samples"][:each]]
    return Markdown(pipe_table(("Generation", "Sample"), rows, "rl"))


def _here(table: DataFrame, run: str, name: str, step: str) -> str:
    """What a run shows of a measure; empty if it has not been measured."""
    if name == CONTROLS:
        if not any(graded_generations(run)):
            return ""
        record = judge_record(run)
        return f"{'**no**' if distrusted(record) else 'yes'}: {literal(judge_label(record))}"
    points = metric(table, run, name, step)  # several steps measure an entropy
    points = points[points["generation"] > 0]  # 0 is an untrained model
    return course_and_peak(points_of(points)) if len(points) else ""


def _sampled(run: str) -> list[int]:
    manifests = executed(select(run))
    generations = [] if manifests.empty else sorted(manifests[manifests["step"] == "sample"]["generation"].tolist())
    if not generations:
        raise UserError(f"Run '{run}' has no finished step 'sample' yet.")
    return generations
