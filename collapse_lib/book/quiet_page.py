"""The page that the quiet generations of a long run share: their numbers side by side, then what each wrote, and what its notebooks show.

Left out is what every generation's notebooks say alike, the prose and the code, which generation 1's page shows, and bars that have run full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from collapse_lib.book.measures import MEASURES, Measure, with_unit
from collapse_lib.book.notebooks import number_cells, section
from collapse_lib.book.pages import what_it_writes
from collapse_lib.book.quiet import PAGE, link, page_of, ranges
from collapse_lib.book.runs import BookRun
from collapse_lib.book.wording.numbers import number, pipe_table
from collapse_lib.experiment.lineage import STEPS
from collapse_lib.text.display import METRICS_HEADING, plain, with_error

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDED = {
    "tags": ["remove-input", "hide-output"],
    "mystnb": {"code_prompt_show": "Show what its notebooks show", "code_prompt_hide": "Hide what its notebooks show"},
}
BAR = re.compile(r" 100%\|.*\|")


def quiet_page(run: BookRun, generations: Sequence[int]) -> NotebookNode:
    """The page of some generations of a run. It links their notebooks as ``source(generation, step)`` has them, beside it."""
    page = new_notebook(cells=[new_markdown_cell(_opening(run, generations))])
    for generation in generations:
        notebooks = {step: nbformat.read(run.step(generation, step).notebook, as_version=4) for step in run.results[generation]}
        page.cells.append(new_markdown_cell(_generation(run, generation)))
        if shown := [output for step, notebook in notebooks.items() for output in _shown(step, notebook)]:
            # A cell without a source is no cell to MyST-NB, whatever it has shown.
            page.cells.append(new_code_cell(f"# what the notebooks of generation {generation} show", outputs=shown, metadata=FOLDED))
        for notebook in notebooks.values():
            page.metadata.update({name: notebook.metadata[name] for name in ("kernelspec", "language_info") if name in notebook.metadata})
    number_cells(page, PAGE)
    return page


def source(generation: int, step: str) -> str:
    """Where the page wants an executed notebook, relative to itself."""
    return f"source/{page_of(generation)}/{step}.ipynb"


def _opening(run: BookRun, generations: Sequence[int]) -> str:
    measures = [measure for measure in MEASURES if any(run.metric(generation, measure.step, measure.metric) for generation in generations)]
    rows = [(str(generation), *(_changed(run, generation, measure) for measure in measures)) for generation in generations]
    steps = [step for step in STEPS if any(step in run.results[generation] for generation in generations)]
    tables = "\n\n".join(f":::{{dropdown}} {STEPS[step].title}: every number\n{_numbers(run, generations, step)}\n:::" for step in steps)
    return f"""# Quiet generations of {run.name}

The generations {ranges(generations)} share this page. No measure in the [table of the run](index) is highest or lowest at one of them (the seconds
do not count), perplexity did not take its largest step there, and none of them was evaluated in a way that others were not.
What their notebooks do and how they measure is the same in all generations and stands on the
page of {link(run, 1, "generation ")}; what they measured and wrote is here, and
the notebooks themselves are linked.

## Their numbers

In brackets: the change from the generation before.

{pipe_table(("Generation", *(with_unit(run, measure) for measure in measures)), rows, "l" + "r" * len(measures))}

{tables}
"""


def _changed(run: BookRun, generation: int, measure: Measure) -> str:
    """A measure of a generation, with its change in brackets."""
    before, now = (run.metric(which, measure.step, measure.metric) for which in (generation - 1, generation))
    if not now:
        return "–"
    return number(now["value"]) + (f" ({number(now['value'] - before['value'], signed=True)})" if before else "")


def _numbers(run: BookRun, generations: Sequence[int], step: str) -> str:
    """All that a step measured, a column a generation: HTML without blank lines, which costs a build nothing."""
    records = {generation: run.results[generation][step]["metrics"] for generation in generations if step in run.results[generation]}
    units = {name: metric["unit"] for metrics in records.values() for name, metric in metrics.items()}
    head = "".join(f'<th scope="col">{generation}</th>' for generation in records)
    rows = []
    for name, unit in units.items():
        label = plain(name.replace("_", " ")) + (f" ({plain(unit)})" if unit not in ("", "1") else "")
        values = "".join(f"<td>{with_error(metrics[name]) if name in metrics else '–'}</td>" for metrics in records.values())
        rows.append(f'<tr><th scope="row">{label}</th>{values}</tr>')
    table = f'<table class="table numbers"><thead><tr><th scope="col">Generation</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return f'<div class="pst-scrollable-table-container" tabindex="0">{table}</div>'


def _generation(run: BookRun, generation: int) -> str:
    """The head of a generation's part of the page: whose text it learned from, its notebooks, what it writes."""
    notebooks = ", ".join(f"{{download}}`{STEPS[step].title} <{source(generation, step)}>`" for step in run.results[generation])
    return f"""## Generation {generation}

After {link(run, generation - 1, "generation ")}. Its notebooks: {notebooks}.

{what_it_writes(run, generation)}
"""


def _shown(step: str, notebook: NotebookNode) -> list[NotebookNode]:
    """What a step's notebook shows beside its metrics, which the tables have, under the step's title; [] if nothing."""
    outputs = [output for cell in section(notebook, step) for output in cell.get("outputs", []) if not _is_elsewhere(output)]
    return [new_output("display_data", {"text/markdown": f"**{STEPS[step].title}**"}), *outputs] if outputs else []


def _is_elsewhere(output: NotebookNode) -> bool:
    """Whether an output is a table of metrics, or nothing but bars that have run full."""
    if output.output_type == "stream":
        return all(BAR.search(line) for line in output.text.splitlines() if line.strip())
    return output.get("data", {}).get("text/markdown", "").startswith(METRICS_HEADING)
