"""Grades in tables and sentences (Table A2), never without what they are worth."""

from __future__ import annotations

import re
from typing import Any

from IPython.display import Markdown

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.judged import BASELINE, CONTROLS, cannot_fall, distrusted, graded_generations, is_trusted, judge_record
from collapse_lib.studies.results import load, measured
from collapse_lib.text.display import literal

COLUMNS = ("grammar", "creativity", "consistency")
LONGEST_CASE = 90  # characters of a completion in Table A2


def judge_verdict(record: dict[str, Any]) -> Markdown:
    """Who judged, and whether it passed its controls; ``record`` is what a step ``gpt_eval`` returns."""
    metrics, judge = record["metrics"], literal(", ".join(record["examples"]["judge"]))
    malformed, answers = metrics["malformed"]["value"], metrics["completions"]["value"] or 1
    wrong = f" {malformed / answers:.0%} of its answers were malformed." if malformed else ""
    margin = metrics["judge_margin"]["value"]
    failed = distrusted(record)
    if not failed:
        return Markdown(f"Judge {judge} **ranks the control rows correctly**: the real continuation leads by at least {margin:.2g} points.{wrong}")
    return Markdown(
        f"⚠ Judge {judge} is **unreliable here** in {' and '.join(failed)}: it does not put real continuations clearly above shuffled words and "
        "random tokens, and those in their order, or, in consistency, above another story's continuation "
        f"(smallest lead {margin:.2g} points). Grey grades are what it said; they are no evidence about the models.{wrong}"
    )


def table_a2(run: str, beginning: int = 0, each: int = 2) -> Markdown:
    """Extended Data Table A2: how every graded generation ends one broken sentence, with the judge's grades and what they are worth.

    A grade in which the judge fails its control rows is grey, under a heading with a sign of warning.

    The baseline comes last. ``beginning`` counts from 0 among the few of which a run keeps graded examples. Raises ``UserError`` where there is none.
    """
    record, generations = judge_record(run), graded_generations(run)
    cases = {generation: measured(run, generation, "gpt_eval")["examples"]["cases"] for generation in generations}
    beginnings = list(dict.fromkeys(case["beginning"] for case in cases[generations[0]]))
    if not 0 <= beginning < len(beginnings):
        raise UserError(f"There is no beginning {beginning} among the graded examples of run '{run}', which are 0 to {len(beginnings) - 1}.")
    rows = []
    for generation in sorted(generations, key=lambda generation: (generation == 0, generation)):
        for case in [case for case in cases[generation] if case["beginning"] == beginnings[beginning]][:each]:
            grades = (_shown(str(case.get(name, "malformed")), is_trusted(record, name)) for name in COLUMNS)
            rows.append((str(generation or "Baseline"), literal(first_sentence(case["completion"])), *grades))
    heads = (name.capitalize() + " ⚠" * (not is_trusted(record, name)) for name in COLUMNS)
    table = pipe_table(("Generation", "Completion", *heads), rows, "llrrr")
    lowest = cannot_fall(load(run), run, record)
    note = f" It gives generation 1 **no more than random tokens** in {' and '.join(lowest)}: there is nothing left to fall." if lowest else ""
    return Markdown(f"{judge_verdict(record).data}{note}\n\nThe beginning: {literal(beginnings[beginning])}\n\n{table}")


def first_sentence(text: str) -> str:
    """How the broken sentence was finished: up to its end, or cut with "…" where that is far away."""
    line = " ".join(text.split())
    match = re.match(r"(.*?[.!?][\"”']?)(?=\s|$)", line)
    sentence = match[1] if match else line
    return sentence if len(sentence) <= LONGEST_CASE else f"{sentence[: LONGEST_CASE - 1].rstrip()}…"


def controls_table(run: str) -> Markdown:
    """The judge's mean grades of the control rows and the baseline, with one standard error."""
    metrics, rows = judge_record(run)["metrics"], []
    for label, prefix in [*((label, f"control_{kind}_") for kind, (label, _) in CONTROLS.items()), (BASELINE, "")]:
        rows.append((label, *(_grade(metrics.get(f"{prefix}{name}")) for name in COLUMNS)))
    return Markdown(pipe_table(("what was graded", *COLUMNS), rows, "lrrr"))


def _shown(grade: str, is_trusted: bool) -> str:
    return grade if is_trusted else f'<span class="unreliable">{grade}</span>'


def _grade(metric: dict[str, Any] | None) -> str:
    if metric is None:
        return "–"
    return f"{metric['value']:.2f}" + (f" ± {metric['standard_error']:.2f}" if "standard_error" in metric else "")
