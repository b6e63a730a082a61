"""What the book says about a run, as notebooks and MyST text: pure functions of what the run measured.

``book`` decides where these pages go and has them rendered. Every number a reader meets is written here from a metrics file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.progress import settled
from collapse_lib.experiment.run import Run
from collapse_lib.figures.paper import COLOURS, STYLE, Picture
from collapse_lib.text.display import early_stopping, literal, plain, quotation, visible
from collapse_lib.text.tasks import origins

if TYPE_CHECKING:
    from pathlib import Path

    from nbformat import NotebookNode

AHEAD = "#c8c8c8"  # what is not this generation's own
EXCERPTS = 3  # of the samples a step keeps, how many a generation's page shows


class Measure(NamedTuple):
    """A metric that the pages follow from one generation to the next."""

    step: str
    metric: str
    label: str


MEASURES = (
    Measure("perplexity", "perplexity", "{term}`Perplexity <perplexity>` on {term}`validation stories`"),
    Measure("train", "loss", "Training loss at the end"),
    Measure("free_text", "entropy", "{term}`Entropy <entropy>` of the text it wrote"),
    Measure("free_text", "oov_lexicon_rate", "{term}`OOV` words, against the English lexicon"),
    Measure("free_text", "oov_initial_rate", "{term}`OOV` words, against the initial corpus"),
    Measure("free_text", "distinct_2", "Distinct pairs of tokens"),
    Measure("free_text", "repeated", "Tokens that repeat the token before them"),
    Measure("free_text", "longest_repeat", "Longest run of one token"),
    Measure("sample", "stories", "Stories it brought to an end"),
)
OVERVIEW = MEASURES[:5]  # columns of a run's overview


@dataclass(frozen=True)
class Shown:
    """A run as the book shows it: every finished generation's results (generation -> step -> the metrics file), read once."""

    run: Run
    results: dict[int, dict[str, dict[str, Any]]]

    @classmethod
    def read(cls, run: Run) -> Shown:
        """Read the generations, the initial corpus (0) included, up to the first of which a step is missing that the pages cannot do without."""
        results = {}
        for generation in range(run.protocol.generations + 1):
            finished = {step.name: step.results() for step in run.steps_of(generation) if step.is_finished()}
            if any(step.name not in finished and not STEPS[step.name].optional for step in run.steps_of(generation)):
                break
            results[generation] = finished
        return cls(run, results)

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def last(self) -> int:
        """The last finished generation; -1 if not even the initial corpus is."""
        return max(self.results, default=-1)

    @property
    def models(self) -> list[int]:
        """The finished generations that have a model: 1, 2, ..."""
        return [generation for generation in self.results if generation]

    @property
    def seconds(self) -> float:
        return sum(step["seconds"] for steps in self.results.values() for step in steps.values())

    def metric(self, generation: int, step: str, name: str) -> dict[str, Any] | None:
        """One metric with its unit and definition; None where it was not measured."""
        return self.results[generation][step]["metrics"].get(name) if generation in self.results else None

    def series(self, step: str, name: str) -> list[tuple[int, float]]:
        """A metric over the generations, as (generation, value)."""
        found = ((generation, self.metric(generation, step, name)) for generation in self.models)
        return [(generation, metric["value"]) for generation, metric in found if metric]

    def samples(self, generation: int, step: str = "sample") -> list[str]:
        return self.results[generation][step]["examples"].get("samples", [])


def number(value: float, signed: bool = False) -> str:
    """A number as a reader wants it: whole ones in full, others to four significant digits (changes to three)."""
    sign = "+" if signed else ""
    whole = float(value).is_integer() or abs(value) >= 1000
    text = f"{value:{sign if value else ''},.0f}" if whole else f"{value:{sign}#.{3 if signed else 4}g}".rstrip(".")
    return text.replace("-", "−")


def course(points: Sequence[tuple[int, float]]) -> str:
    """Where a metric went, in words that are true of these numbers: "rose from 4.2 in generation 1 to 9.9 in generation 10 ..."."""
    (first, start), (last, end) = points[0], points[-1]
    if len(points) == 1:
        return f"is **{number(start)}** in generation {first}"
    if all(value == start for _, value in points):
        return f"stayed at **{number(start)}** from generation {first} to {last}"
    verb = "rose" if end > start else "fell" if end < start else "came back"
    along = sum((after > before) if verb == "rose" else (after < before) for (_, before), (_, after) in pairwise(points))
    steps = len(points) - 1
    how = (
        ""
        if verb == "came back" or steps == 1
        else f", {'up' if verb == 'rose' else 'down'} in {f'all {steps}' if along == steps else f'{along} of {steps}'} steps"
    )
    return f"{verb} from **{number(start)}** in generation {first} to **{number(end)}** in generation {last}{how}"


def peak(points: Sequence[tuple[int, float]]) -> str:
    """Where a metric was highest."""
    generation, value = max(points, key=lambda point: point[1])
    return f"{number(value)} in generation {generation}"


def numbers(shown: Shown) -> dict[str, str]:
    """The values that prose may name in double braces, all about one run: the one that the landing page tells of."""

    def size(step: str, name: str) -> str:
        return number(shown.metric(1 if step != "corpus" else 0, step, name)["value"])

    entropy = shown.series("free_text", "entropy")
    return {
        "run": f"`{shown.name}`",
        "run_link": f"[{shown.name}](runs/{shown.name}/index)",
        "generations": str(shown.last),
        "first_page": f"[generation 1](runs/{shown.name}/generation-01)",
        "last_page": f"[generation {shown.last}](runs/{shown.name}/generation-{shown.last:02d})",
        "train_stories": size("corpus", "train_stories"),
        "train_tokens": size("corpus", "train_tokens"),
        "validation_stories": size("corpus", "validation_stories"),
        "vocabulary": size("corpus", "vocabulary"),
        "parameters": size("train", "parameters"),
        "epochs": size("train", "epochs"),
        "stopping": early_stopping(shown.results[1]["train"]),
        "sequences": size("sample", "sequences"),
        "sampled_tokens": size("sample", "tokens"),
        "minutes": f"{shown.seconds / 60:.1f}",
        "perplexity_course": course(shown.series("perplexity", "perplexity")),
        "loss_course": course(shown.series("train", "loss")),
        "entropy_course": course(entropy),
        "entropy_peak": peak(entropy),
        "oov_lexicon_course": course(shown.series("free_text", "oov_lexicon_rate")),
        "oov_initial_course": course(shown.series("free_text", "oov_initial_rate")),
        "oov_unit": shown.metric(1, "free_text", "oov_lexicon_rate")["unit"],
        "distinct_course": course(shown.series("free_text", "distinct_2")),
    }


def excerpts_page(shown: Shown) -> str:
    """Two samples of the first, a middle and the last generation: the landing page's before and after."""
    models = shown.models
    parts = []
    for generation in sorted({models[0], models[len(models) // 2], models[-1]}):
        parts += [f"**Generation {generation}** writes:", *map(quotation, shown.samples(generation)[:2])]
    return "\n\n".join(parts) + "\n"


def filled(prose: str, values: dict[str, str], name: str) -> str:
    """Prose with the values that it names, as {{ name }}. They are put in as they are: no template language runs over what runs have made."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in values:
            raise UserError(f"{name} names the number '{found[1]}', which there is not; there are {', '.join(values)}.")
        return values[found[1]]

    return re.sub(r"\{\{ *(\w+) *\}\}", value, prose)


def runs_table(runs: Sequence[Shown]) -> str:
    """All runs of the book side by side."""
    rows = []
    for shown in runs:
        source = plain(shown.run.protocol.corpus.source.rstrip("/").rsplit("/", 1)[-1])
        tokens, parameters = (number(shown.metric(*where)["value"]) for where in ((0, "corpus", "train_tokens"), (1, "train", "parameters")))
        ends = [
            [number(points[0][1]), number(points[-1][1])]
            for points in (shown.series("perplexity", "perplexity"), shown.series("free_text", "entropy"))
        ]
        rows.append((f"[{shown.name}](runs/{shown.name}/index)", source, tokens, parameters, str(shown.last), *(" → ".join(pair) for pair in ends)))
    header = ("Run", "Initial corpus", "Tokens", "Parameters", "Generations", "Perplexity, first → last", "Entropy, first → last")
    return table(header, rows, text_columns=2)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """A MyST pipe table; the columns behind the first ``text_columns`` are aligned right."""
    rule = [":--" if column < text_columns else "--:" for column in range(len(header))]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows)) + "\n"


def fenced(text: str, language: str) -> str:
    """Text as a code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return "\n".join([f"{fence}{language}", *map(visible, text.split("\n")), fence])


def overview_page(shown: Shown, data: str) -> str:
    """The page of a run: every generation in one table, its protocol, one sample of each. ``data`` is the file that its results are in."""
    protocol = shown.run.protocol
    rows = []
    for generation in shown.models:
        values = [shown.metric(generation, measure.step, measure.metric) for measure in OVERVIEW]
        seconds = sum(step["seconds"] for step in shown.results[generation].values())
        rows.append((_link(generation), *(number(value["value"]) if value else "–" for value in values), number(round(seconds))))
    header = ("Generation", *(_with_unit(shown, measure) for measure in OVERVIEW), "Seconds")
    definitions = [(measure.label, shown.metric(1, measure.step, measure.metric)) for measure in MEASURES]
    described = "\n".join(f"{label}\n: {literal(metric['definition'])}\n" for label, metric in definitions if metric)
    notes = [early_stopping(shown.results[1]["train"])] if shown.models else []
    if protocol.classification.tasks:
        notes.append(plain(origins(protocol.classification)))
    notes = "\n\n".join(notes)
    state = f"All {shown.last}" if shown.last == protocol.generations else f"{shown.last} of {protocol.generations}"
    samples = "\n\n".join(f"{_link(generation, 'Generation ')}\n\n{quotation(shown.samples(generation)[0])}" for generation in shown.models)
    return f"""# Run {shown.name}

{literal(protocol.description)}

{state} generations are finished, from the [initial corpus](generation-00) on. Everything measured is in {{download}}`one table <{data}>` (CSV).

{notes}

{table(header, rows)}

![Perplexity by generation](overview.svg)

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


def generation_page(shown: Shown, generation: int) -> NotebookNode:
    """A generation as one notebook: what changed, then its executed step notebooks as sections."""
    import nbformat
    from nbformat.v4 import new_markdown_cell, new_notebook

    page = new_notebook(cells=[new_markdown_cell(generation_opening(shown, generation) if generation else corpus_opening(shown))])
    for step in shown.results[generation]:
        executed = nbformat.read(shown.run.step(generation, step).notebook, as_version=4)
        page.metadata.update({name: executed.metadata[name] for name in ("kernelspec", "language_info") if name in executed.metadata})
        page.cells.extend(section(executed, STEPS[step].title))
    _number_cells(page, f"generation-{generation:02d}")
    return page


def corpus_opening(shown: Shown) -> str:
    """The head of generation 0's page: how much there is of what."""
    parts = {"for training": "train", "held out for early stopping": "holdout", "for validation": "validation"}
    found = [(use, shown.metric(0, "corpus", f"{part}_stories"), shown.metric(0, "corpus", f"{part}_tokens")) for use, part in parts.items()]
    rows = [(use, number(stories["value"]), number(tokens["value"])) for use, stories, tokens in found if stories and tokens]
    return f"""# Generation 0 of {shown.name}: the initial corpus

Generation 1 learns from the stories for training. Later generations read none of these; on those for validation, all are scored.

{table(("Stories", "How many", "Tokens"), rows)}"""


def generation_opening(shown: Shown, generation: int) -> str:
    """The head of a generation's page: what changed since the last one, its curves, its samples."""
    teacher = f"the text of {_link(generation - 1, 'generation ')}" if generation > 1 else f"the {_link(0, 'initial corpus, generation ')}"
    rows = []
    for measure in MEASURES:
        before, now = (shown.metric(which, measure.step, measure.metric) if which else None for which in (generation - 1, generation))
        if now:
            change = number(now["value"] - before["value"], signed=True) if before else "–"
            rows.append((_with_unit(shown, measure), number(before["value"]) if before else "–", number(now["value"]), change))
    header = ("", f"Generation {generation - 1}" if generation > 1 else "Before", f"Generation {generation}", "Change")
    samples = "\n\n".join(map(quotation, shown.samples(generation)[:EXCERPTS]))
    words = shown.results[generation]["free_text"]["examples"].get("frequent_oov", [])
    listed = ", ".join(f"{literal(word)} ({number(count)})" for word, count in words[:8]) or "none"
    stopping = f"\n{early_stopping(shown.results[1]['train'])}\n" if generation == 1 else ""
    return f"""# Generation {generation} of {shown.name}

A model with fresh weights that has read {teacher}, and nothing else.
{stopping}
## What changed

{table(header, rows)}
![Left: training loss by optimizer step, this generation over the last. Right: perplexity up to here.](generation-{generation:02d}.svg)

## What it writes

{samples}

Its most frequent words that are not in the English lexicon: {listed}.
"""


def section(notebook: NotebookNode, title: str, level: int = 2) -> list[NotebookNode]:
    """An executed notebook's cells for a page: its first heading at ``level``, parameters folded away, papermill's marks gone.

    Of the parameters' defaults and those that papermill put in their place, the page shows the latter.
    """
    cells = []
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for original in notebook.cells:
        cell = copy.deepcopy(original)
        tags = [*cell.metadata.get("tags", [])]
        if injected and "parameters" in tags:
            continue
        if "parameters" in tags or "injected-parameters" in tags:
            tags.append("hide-input")
        kept = {"tags": tags, "mystnb": cell.metadata.get("mystnb")}
        cell.metadata = type(cell.metadata)({name: value for name, value in kept.items() if value})
        if cell.cell_type == "markdown":
            cell.source = demote(cell.source) if level > 1 else cell.source
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
        for output in cell.get("outputs", []):
            drop_active_views(output)
            show_controls(output)
        cells.append(cell)
    mark = "#" * level
    if cells and not (cells[0].cell_type == "markdown" and cells[0].source.lstrip().startswith(f"{mark} ")):
        from nbformat.v4 import new_markdown_cell

        cells.insert(0, new_markdown_cell(f"{mark} {title}"))
    return cells


def executed_page(executed: Path, name: str, runs: Sequence[str] = ()) -> tuple[NotebookNode, dict[str, str]]:
    """An executed notebook as a page with its downloads; if it shows runs, its SVG images too, by file name: ``<name>.svg``, ``<name>-2.svg``, ...

    The page of a figure links ``<name>.csv``, which has to be put beside it: see ``figure_data``.
    """
    import nbformat
    from nbformat.v4 import new_markdown_cell

    page = nbformat.read(executed, as_version=4)
    page.cells = section(page, name, level=1)
    for key in ("papermill", "widgets"):
        page.metadata.pop(key, None)
    views = [output.get("data", {}) for cell in page.cells for output in cell.get("outputs", [])]
    drawn = [view["image/svg+xml"] for view in views if runs and "image/svg+xml" in view]
    images = {f"{name}{f'-{position}' if position > 1 else ''}.svg": svg for position, svg in enumerate(drawn, 1)}
    head = f"Download {{download}}`this notebook <source/{name}.ipynb>`"
    if runs:
        head += f", {_file('its numbers', f'{name}.csv')}, everything measured in " + " and ".join(
            _file(run, f"../runs/{run}/results.csv") for run in runs
        )
    head += (", or the image as " + " and ".join(_file(file, file) for file in images) if images else "") + "."
    if any("Plotly." in view.get("text/html", "") for view in views):
        head += '\n\n<script src="../plotly/plotly.min.js"></script>'
    page.cells.insert(1, new_markdown_cell(head))
    _number_cells(page, name)
    return page, images


def figure_data(executed: Path, runs: Sequence[str]) -> str:
    """The numbers behind a figure's notebook as CSV: of these runs, the steps that the notebook's metadata name (``collapse.data``).

    Without that all steps; a word instead of a list stands for another table: "executed" notebooks, distances of "twins", recorded "benches".
    """
    import nbformat

    from collapse_lib.cost.bench import records
    from collapse_lib.studies import results, twins

    wanted = nbformat.read(executed, as_version=4).metadata.get("collapse", {}).get("data")
    if wanted == "executed":
        table = results.executed(runs)
    elif wanted == "twins":
        table = twins.table(twins.comparisons(runs))
    elif wanted == "benches":
        table = records.rates(records.recorded())
    else:
        table = results.load(runs)
        table = table[table["step"].isin(wanted)] if wanted else table
    return results.formatted(table, "csv") + "\n"


def _file(words: str, path: str) -> str:
    return f"{{download}}`{words} <{path}>`"


def drop_active_views(output: NotebookNode) -> None:
    """Leave out the forms of an output that a static page cannot show by itself (a widget's state, Plotly's JSON beside its HTML)."""
    data = output.get("data", {})
    for kind in ("application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"):
        if len(data) > 1:
            data.pop(kind, None)


def show_controls(output: NotebookNode) -> None:
    """Put stand-ins for the control characters in an output's text; some of them would end a line of the page."""
    if output.output_type == "stream":
        output.text = visible(output.text, keep="\n\t")
    data = output.get("data", {})
    for kind in data.keys() & {"text/plain", "text/markdown", "text/html"}:
        data[kind] = visible(data[kind], keep="\n\t")


def demote(markdown: str) -> str:
    """Markdown with every heading one level deeper; lines inside code fences stay as they are."""
    lines, fence = [], None
    for line in markdown.split("\n"):
        if mark := re.match(r"\s*(`{3,}|~{3,})", line):
            if fence is None:
                fence = mark[1]
            elif mark[1][0] == fence[0] and len(mark[1]) >= len(fence) and not line.strip().strip(fence[0]):
                fence = None
        elif fence is None and re.match(r"#{1,5} ", line):
            line = f"#{line}"
        lines.append(line)
    return "\n".join(lines)


def generation_curves(shown: Shown, generation: int) -> str:
    """SVG text: the training loss by step (this generation over the one before), and perplexity so far."""
    figure, (left, right) = _panels(2)
    for which, colour in ((generation - 1, AHEAD), (generation, COLOURS[1])):
        if which >= 1 and (curve := shown.results[which]["train"]["series"].get("loss_curve")):
            left.plot(*zip(*curve, strict=True), color=colour, label=f"generation {which}")
    left.set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    left.legend(frameon=False)
    _draw_perplexity(right, shown, generation)
    return Picture(figure, f"Training loss and perplexity, generation {generation} of run {shown.name}").svg


def overview_curve(shown: Shown) -> str:
    """SVG text: perplexity over all finished generations."""
    figure, (axes,) = _panels(1)
    _draw_perplexity(axes, shown, shown.last)
    return Picture(figure, f"Perplexity by generation, run {shown.name}").svg


def _draw_perplexity(axes: Any, shown: Shown, generation: int) -> None:
    """Perplexity up to a generation in colour, the generations still ahead of the reader in grey."""
    from matplotlib.ticker import MaxNLocator

    points = shown.series("perplexity", "perplexity")
    so_far = [point for point in points if point[0] <= generation]
    axes.plot(*zip(*points, strict=True), color=AHEAD, marker="o")
    axes.plot(*zip(*so_far, strict=True), color=COLOURS[0], marker="o")
    axes.set(xlabel="generation", ylabel="perplexity on validation stories")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _panels(count: int) -> tuple[Any, Any]:
    # The object interface: nothing of pyplot's global state.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2 if count == 1 else 4.8 * count, 3.4), layout="constrained")
        return figure, figure.subplots(1, count, squeeze=False)[0]


def _number_cells(page: NotebookNode, name: str) -> None:
    for position, cell in enumerate(page.cells):
        cell.id = f"{name}-{position:03d}"


def _link(generation: int, words: str = "") -> str:
    return f"[{words}{generation}](generation-{generation:02d})"


def _with_unit(shown: Shown, measure: Measure) -> str:
    metric = shown.metric(1, measure.step, measure.metric)
    return f"{measure.label} ({metric['unit']})" if metric and metric["unit"] not in ("", "1") else measure.label
