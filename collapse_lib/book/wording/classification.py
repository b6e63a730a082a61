"""Fine-tuned models in tables and sentences: what was done, and how generations compare with each other and with the paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.display import Markdown

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.experiment.run import Run
from collapse_lib.figures.classification import finetuned, is_learned, measured_tasks, scores
from collapse_lib.metrics import crossed
from collapse_lib.metrics.crossed import Measure
from collapse_lib.studies.chains import experiments
from collapse_lib.studies.results import measured
from collapse_lib.text.display import plain
from collapse_lib.text.tasks import TASKS, origins

if TYPE_CHECKING:
    from pandas import DataFrame

# What the paper's text and captions say of each task; its figures print no other numbers.
REPORTED = {
    **dict.fromkeys(("imdb", "sst2", "yelp", "qqp", "qnli"), "declines over the generations, in some cases to below the baseline"),
    "mrpc": "F1 declines, accuracy does not: put down to the unequal classes",
    "rte": "around 50% in every generation",
    "cola": "no better than the baseline in any generation",
}
NOT_MEASURED = "*not measured*"
NO_VERDICT = "no verdict: even the first generation does not beat the commonest answer"


def fine_tunings(table: DataFrame) -> Markdown:
    """For each fine-tuned run how often its models were fine-tuned, what follows for its intervals, and where the rows came from."""
    lines = []
    for run in finetuned(table):
        settings = Run.open(run).protocol.classification
        if settings.seeds == 1:
            how = (
                "one fine-tuning of each model on each task. Its intervals are about other test rows alone, and silent about other fine-tunings, "
                "which with few training rows can move a score by much more: nothing here is called better or worse."
            )
        else:
            how = f"{settings.seeds} fine-tunings of each model on each task; its intervals are about other test rows and other fine-tunings together"
            how += "." if settings.seeds >= crossed.ENOUGH else f", and too wide for a verdict, for which {crossed.ENOUGH} are needed."
        lines.append(f"- **{run}**: {how} {plain(origins(settings))}")
    return Markdown("\n".join(lines))


def generations_compared(table: DataFrame, measure: Measure = "accuracy") -> Markdown:
    """For every task what the paper says, and of each run the first and last generation measured, the baseline, and how the last compares with both.

    Of the chains of one experiment it is the longest: the words are about models, and the figure has all chains.
    """
    header = ("task", "the paper", "run", "first measured", "last measured", "untrained", "last against first", "last against untrained")
    runs, rows = list(experiments(finetuned(table))), []
    examples = cache(lambda run, generation: measured(run, generation, "classification")["examples"])  # a file has the answers of all tasks
    for task in measured_tasks(table, measure):
        for run in runs:
            points = scores(table, run, task, measure)
            if points is None:
                continue
            trained, baseline = points[points["generation"] > 0], points[points["generation"] == 0]
            ends = (trained.head(1), trained.tail(1), baseline)
            first, last, untrained = (part["generation"].tolist() for part in ends)
            if is_learned(table, run, task) is False:
                verdicts = [NO_VERDICT] * 2
            else:
                verdicts = [_verdict(partial(examples, run), task, measure, last, other) for other in (first, untrained)]
            said = (f"{_interval(part)}, generation {of[0]}" if of else NOT_MEASURED for part, of in zip(ends[:2], (first, last), strict=True))
            rows.append((TASKS[task].title, REPORTED.get(task, "*not one of its tasks*"), run, *said, _interval(baseline), *verdicts))
    if not runs:
        rows = [(TASKS[task].title, said, *("–",) * 5, NOT_MEASURED) for task, said in REPORTED.items()]
    return Markdown(pipe_table(header, rows, "lllrrrll"))


def task_scores(measured: dict[str, Any]) -> Markdown:
    """One step's results, a row a task; ``measured`` is what the step ``classification`` returns."""
    metrics, rows = measured["metrics"], []
    for name, task in TASKS.items():
        if f"{name}_accuracy" not in metrics:
            continue
        cells = []
        for measure in ("accuracy", "f1"):
            value, low, high = (100 * metrics[f"{name}_{measure}{end}"]["value"] for end in ("", "_low", "_high"))
            cells.append(f"{value:.1f} ({low:.1f} to {high:.1f})")
        count, majority = metrics[f"{name}_accuracy"]["counts"]["test_rows"], 100 * metrics[f"{name}_accuracy_majority"]["value"]
        rows.append((task.title, task.question, f"{count:,}", *cells, f"{majority:.1f}"))
    header = ("task", "the question", "test rows", "accuracy, 95% interval", "weighted F1, 95% interval", "commonest answer")
    return Markdown(pipe_table(header, rows, "llrrrr"))


def _interval(points: DataFrame) -> str:
    if points.empty:
        return NOT_MEASURED
    row = points.iloc[0]
    return f"{row['value']:.1f} ({row['low']:.1f} to {row['high']:.1f})"


def _verdict(examples: Callable[[int], dict[str, Any]], task: str, measure: Measure, generation: list[int], other: list[int]) -> str:
    """How a generation's model compares with another's on the same rows, in points with a 95% interval; no word where fine-tunings are too few.

    ``examples`` gives what the step of a generation recorded, by task.
    """
    if not generation or not other:
        return NOT_MEASURED
    if generation == other:
        return "–"
    ours, theirs = (examples(which[0])[task] for which in (generation, other))
    tunings = min(len(one["confusions"]) for one in (ours, theirs))
    if tunings < crossed.ENOUGH:
        return f"{'one fine-tuning' if tunings == 1 else f'{tunings} fine-tunings'}: no verdict"
    if "answers" not in ours or "answers" not in theirs or ours["rows"] != theirs["rows"]:
        return "not asked the same rows, or its answers are not recorded: no verdict"
    difference = crossed.difference(_row_scores(ours, measure), _row_scores(theirs, measure))
    low, high = difference.value - difference.reach, difference.value + difference.reach
    word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
    points = (f"{100 * value:+.1f}".replace("-", "−") for value in (difference.value, low, high))
    return "{}: {} ({} to {})".format(word, *points)


def _row_scores(example: dict[str, Any], measure: Measure) -> np.ndarray:
    """Scores [fine-tunings, rows] of what a step recorded of a task."""
    classes, rows = len(example["labels"]), sum(example["test_balance"])
    true = crossed.unpacked(example["true"], rows, classes)
    return crossed.row_scores(true, crossed.unpacked(example["answers"], rows, classes), classes, measure)
