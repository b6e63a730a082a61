"""The pages of a run, as Markdown and notebooks, and the numbers in the prose: pure functions of what the run measured.

``build`` decides where these pages go and has them rendered. Every number a reader meets is written here from a metrics file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nbformat
from nbformat.v4 import new_markdown_cell, new_notebook

from collapse_lib.book.measures import MEASURES, OVERVIEW, with_unit
from collapse_lib.book.notebooks import number_cells, section
from collapse_lib.book.quiet import PAGE, link, page_of, quiet_generations, ranges
from collapse_lib.book.runs import BookRun
from collapse_lib.book.wording.numbers import course, number, peak, pipe_table
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.text.display import early_stopping, literal, plain, quotation, visible
from collapse_lib.text.tasks import origins

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE = "COLLAPSE_SOURCE_URL"  # the environment variable with the address of the project's source, for a book that is published
EXCERPTS = 3  # of the samples that a step records, how many a generation's page shows


def numbers(run: BookRun) -> dict[str, str]:
    """The values that prose may name in double braces, all about one run: the one that the landing page tells of."""

    def size(step: str, name: str) -> str:
        return number(run.metric(1 if step != "corpus" else 0, step, name)["value"])

    entropy = run.series("free_text", "entropy")
    return {
        "run": f"`{run.name}`",
        "source": _source(run),
        "source_link": f"[Source code]({os.environ[SOURCE]})." if os.environ.get(SOURCE) else "",
        "run_link": f"[{run.name}](runs/{run.name}/index)",
        "generations": str(run.last),
        "first_page": f"[generation 1](runs/{run.name}/generation-01)",
        "last_page": f"[generation {run.last}](runs/{run.name}/generation-{run.last:02d})",
        "train_stories": size("corpus", "train_stories"),
        "train_tokens": size("corpus", "train_tokens"),
        "validation_stories": size("corpus", "validation_stories"),
        "vocabulary": size("corpus", "vocabulary"),
        "parameters": size("train", "parameters"),
        "epochs": size("train", "epochs"),
        "stopping": early_stopping(run.results[1]["train"]),
        "sequences": size("sample", "sequences"),
        "sampled_tokens": size("sample", "tokens"),
        "minutes": f"{run.seconds(list(run.results)) / 60:.1f}",
        "perplexity_course": course(run.series("perplexity", "perplexity")),
        "loss_course": course(run.series("train", "loss")),
        "entropy_course": course(entropy),
        "entropy_peak": peak(entropy),
        "oov_lexicon_course": course(run.series("free_text", "oov_lexicon_rate")),
        "oov_initial_course": course(run.series("free_text", "oov_initial_rate")),
        "oov_unit": run.metric(1, "free_text", "oov_lexicon_rate")["unit"],
        "distinct_course": course(run.series("free_text", "distinct_2")),
    }


def _source(run: BookRun) -> str:
    """Where the stories of a run come from, and what is known of their law, in a sentence or two."""
    if run.protocol.corpus.source == "grammar":
        return (
            f"The stories of run `{run.name}`, shown here, come from a small grammar whose law is known exactly: what each model ought to say can be "
            "computed, so that nothing rests on anybody's taste."
        )
    name = plain(_source_name(run))
    return f"The stories of run `{run.name}`, shown here, are those of {name}; run `demo` draws its own from a grammar whose law is known exactly."


def _source_name(run: BookRun) -> str:
    return run.protocol.corpus.source.rstrip("/").rsplit("/", 1)[-1]


def excerpts_page(run: BookRun) -> str:
    """Two samples of the first, a middle and the last generation: the landing page's before and after."""
    models, parts = run.models, []
    for generation in sorted({models[0], models[len(models) // 2], models[-1]}):
        parts += [f"**Generation {generation}** writes:", *map(quotation, run.samples(generation)[:2])]
    return "\n\n".join(parts) + "\n"


def filled(prose: str, values: dict[str, str], name: str) -> str:
    """Prose with the values that it names, as {{ name }}. They are put in as they are: no template language runs over what runs have made."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise UserError(f"{name} names the number '{match[1]}', which there is not; there are {', '.join(values)}.")
        return values[match[1]]

    return re.sub(r"\{\{ *(\w+) *\}\}", value, prose)


def runs_table(runs: Sequence[BookRun]) -> str:
    """All runs of the book side by side."""
    rows = []
    for run in runs:
        source = plain(_source_name(run))
        tokens, parameters = run.metric(0, "corpus", "train_tokens"), run.metric(1, "train", "parameters")
        courses = (run.series("perplexity", "perplexity"), run.series("free_text", "entropy"))
        ends = [f"{number(points[0][1])} → {number(points[-1][1])}" for points in courses]
        link = f"[{run.name}](runs/{run.name}/index)"
        rows.append((link, source, number(tokens["value"]), number(parameters["value"]), str(run.last), *ends))
    header = ("Run", "Initial corpus", "Tokens", "Parameters", "Generations", "Perplexity, first → last", "Entropy, first → last")
    return pipe_table(header, rows, "llrrrrr") + "\n"


def fenced(text: str, language: str) -> str:
    """Text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join([f"{fence}{language}", *map(visible, text.split("\n")), fence])


def overview_page(run: BookRun, data: str, curve: str = "") -> str:
    """The page of a run: every generation in one table, its protocol, one sample of each. ``data`` is the file that its results are in, ``curve``
    the picture of its perplexity as HTML."""
    protocol = run.protocol
    rows = []
    for generation in run.models:
        values = [run.metric(generation, measure.step, measure.metric) for measure in OVERVIEW]
        seconds = round(run.seconds([generation]))
        rows.append((link(run, generation), *(number(value["value"]) if value else "–" for value in values), number(seconds)))
    header = ("Generation", *(with_unit(run, measure) for measure in OVERVIEW), "Seconds")
    definitions = [(measure.label, run.metric(1, measure.step, measure.metric)) for measure in MEASURES]
    described = "\n".join(f"{label}\n: {literal(metric['definition'])}\n" for label, metric in definitions if metric)
    notes = early_stopping(run.results[1]["train"])
    if protocol.classification.tasks:
        notes += f"\n\n{plain(origins(protocol.classification))}"
    state = f"All {run.last}" if run.last == protocol.generations else f"{run.last} of {protocol.generations}"
    quiet = quiet_generations(run)
    together = f" The generations {ranges(quiet)}, at which nothing stands out, share [a page]({PAGE})." if quiet else ""
    samples = "\n\n".join(f"{link(run, generation, 'Generation ')}\n\n{quotation(run.samples(generation)[0])}" for generation in run.models)
    return f"""# Run {run.name}

{literal(protocol.description)}

{state} generations are finished, from the [initial corpus](generation-00) on.{together} Everything measured is in
{{download}}`one table <{data}>` (CSV).

{notes}

{pipe_table(header, rows, "l" + "r" * (len(header) - 1))}

{curve}

:::{{dropdown}} What these numbers are
{described}
:::

:::{{dropdown}} The protocol, every field of it
{fenced(protocol.to_yaml().strip(), "yaml")}

Every step's manifest carries a hash of the fields that decide it, and the content hashes of what it was made from.
:::

## One sample of each generation

The first sequence that each generation wrote, cut short.

{samples}
"""


def generation_page(run: BookRun, generation: int, curves: str = "") -> NotebookNode:
    """A generation as one notebook: what changed, with a picture of its ``curves`` (HTML), then its executed step notebooks as sections."""
    page = new_notebook(cells=[new_markdown_cell(generation_opening(run, generation, curves) if generation else corpus_opening(run))])
    for step in run.results[generation]:
        executed = nbformat.read(run.step(generation, step).notebook, as_version=4)
        page.metadata.update({name: executed.metadata[name] for name in ("kernelspec", "language_info") if name in executed.metadata})
        page.cells.extend(section(executed, STEPS[step].title))
    number_cells(page, page_of(generation))
    return page


def corpus_opening(run: BookRun) -> str:
    """The head of generation 0's page: how much there is of what."""
    parts = {"for training": "train", "held out for early stopping": "holdout", "for validation": "validation"}
    sizes = [(use, run.metric(0, "corpus", f"{part}_stories"), run.metric(0, "corpus", f"{part}_tokens")) for use, part in parts.items()]
    rows = [(use, number(stories["value"]), number(tokens["value"])) for use, stories, tokens in sizes if stories and tokens]
    return f"""# Generation 0 of {run.name}: the initial corpus

Generation 1 learns from the stories for training. Later generations read none of these; on those for validation, all are scored.

{pipe_table(("Stories", "How many", "Tokens"), rows, "lrr")}
"""


def generation_opening(run: BookRun, generation: int, curves: str = "") -> str:
    """The head of a generation's page: what changed since the last one, its curves, its samples."""
    teacher = f"the text of {link(run, generation - 1, 'generation ')}" if generation > 1 else f"the {link(run, 0, 'initial corpus, generation ')}"
    rows = []
    for measure in MEASURES:
        before, now = (run.metric(which, measure.step, measure.metric) if which else None for which in (generation - 1, generation))
        if now:
            change = number(now["value"] - before["value"], signed=True) if before else "–"
            rows.append((with_unit(run, measure), number(before["value"]) if before else "–", number(now["value"]), change))
    header = ("Measure", f"Generation {generation - 1}" if generation > 1 else "Before", f"Generation {generation}", "Change")
    stopping = f"\n{early_stopping(run.results[1]['train'])}\n" if generation == 1 else ""
    return f"""# Generation {generation} of {run.name}

A model with fresh weights that has read {teacher}, and nothing else.
{stopping}
## What changed

{pipe_table(header, rows, "lrrr")}

{curves}

## What it writes

{what_it_writes(run, generation)}
"""


def what_it_writes(run: BookRun, generation: int) -> str:
    """The first samples of a generation, and its most frequent non-words."""
    samples = "\n\n".join(map(quotation, run.samples(generation)[:EXCERPTS]))
    words = run.results[generation]["free_text"]["examples"].get("frequent_oov", [])
    listed = ", ".join(f"{literal(word)} ({number(count)})" for word, count in words[:8]) or "none"
    return f"{samples}\n\nIts most frequent words that are not in the English lexicon: {listed}."
