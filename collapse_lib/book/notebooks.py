"""Notebooks as pages: which there are, and what of an executed one a page shows."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from nbformat.v4 import new_markdown_cell

from collapse_lib.cost.bench import records
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.progress import settled
from collapse_lib.studies import results, twins
from collapse_lib.text.display import visible

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from pandas import DataFrame

WIDGET, PLOTLY = "application/vnd.jupyter.widget-view+json", "application/vnd.plotly.v1+json"


@dataclass(frozen=True)
class NotebookPage:
    """A page that is an executed notebook; several may come from one notebook with different parameters, each under a title of its own.

    One that is ``by_size`` compares models of two sizes, and a book without such runs does without it; one that ``has_studies`` shows those, too.
    """

    name: str
    notebook: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    title: str | None = None
    by_size: bool = False
    has_studies: bool = False

    @property
    def is_of_paper(self) -> bool:
        """Whether it stands for a figure or table of the paper."""
        return self.name.startswith(("figure_", "table_"))


def notebook_pages(folder: str) -> list[NotebookPage]:
    """The pages of a folder's notebooks in their order: the claims, the paper's figures and tables, the others; chapters by number.

    A notebook is one page of its name, unless its metadata name several: ``collapse.pages``, name -> title, parameters and ``by_size``. All in the
    folder ``studies`` show studies, and elsewhere those whose metadata say so: ``collapse.has_studies``.
    """
    pages = []
    for file in (project_root() / "notebooks" / folder).glob("*.ipynb"):
        settings = _settings(nbformat.read(file, as_version=4))
        has_studies = folder == "studies" or settings.get("has_studies", False)
        pages += [
            NotebookPage(name, file, dict(page.get("parameters", {})), page.get("title"), page.get("by_size", False), has_studies)
            for name, page in settings.get("pages", {file.stem: {}}).items()
        ]
    return sorted(pages, key=lambda page: (page.name != "claims", folder == "figures" and not page.is_of_paper, page.name))


def executed_page(
    executed: NotebookNode, page: NotebookPage, runs: Sequence[str] = (), has_numbers: bool = False
) -> tuple[NotebookNode, dict[str, str]]:
    """An executed notebook as a page with its downloads; if it shows runs or has numbers of its own, its SVG images too, by file name:
    ``<name>.svg``, ``<name>-2.svg``, ...

    Such a page links ``<name>.csv``, which has to be put beside it: see ``figure_data``.
    """
    made = copy.deepcopy(executed)
    made.cells = section(executed, page.name, level=1)
    for cell in made.cells:
        if "changes" in cell.metadata.get("tags", []):  # what to change in a notebook, folded away as its parameters are
            cell.source = f"````{{dropdown}} Change it\n{cell.source}\n````"
    if page.title:
        made.cells[0].source = re.sub("^# .*", lambda _: f"# {page.title}", made.cells[0].source)
    for key in ("papermill", "widgets"):
        made.metadata.pop(key, None)
    views = [output.get("data", {}) for cell in made.cells for output in cell.get("outputs", [])]
    pictures = [view["image/svg+xml"] for view in views if (runs or has_numbers) and "image/svg+xml" in view]
    images = {f"{page.name}{f'-{position}' if position > 1 else ''}.svg": svg for position, svg in enumerate(pictures, 1)}
    changed = ", ".join(f'`{name} = "{value}"`' for name, value in page.parameters.items())
    head = f"Download {_download('this notebook', f'source/{page.notebook.name}')}" + (f" (here with {changed})" if changed else "")
    if runs or has_numbers:
        head += f", {_download('its numbers', f'{page.name}.csv')}"
    if runs:
        head += f", everything measured in {' and '.join(_download(run, f'../runs/{run}/results.csv') for run in runs)}"
    head += (", or the image as " + " and ".join(_download(file, file) for file in images) if images else "") + "."
    made.cells.insert(1, new_markdown_cell(head))
    number_cells(made, page.name)
    return made, images


def section(notebook: NotebookNode, title: str, level: int = 2) -> list[NotebookNode]:
    """An executed notebook's cells for a page: its first heading at ``level``, parameters folded away, papermill's marks gone.

    Of the parameters' defaults and those that papermill put in their place, the page shows the latter.
    """
    cells = []
    injected = any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells)
    for original in notebook.cells:
        cell, tags = copy.deepcopy(original), [*original.metadata.get("tags", [])]
        if injected and "parameters" in tags:
            continue
        if "parameters" in tags or "injected-parameters" in tags:
            tags.append("hide-input")
        metadata = {"tags": tags, "mystnb": cell.metadata.get("mystnb")}
        cell.metadata = type(cell.metadata)({name: value for name, value in metadata.items() if value})
        if cell.cell_type == "markdown" and level > 1:
            cell.source = demote(cell.source)
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
        for output in cell.get("outputs", []):
            drop_active_views(output)
            show_controls(output)
            if "text/html" in output.get("data", {}):  # pandas heads the column of its index with nothing, which is no heading
                output.data["text/html"] = output.data["text/html"].replace("<th></th>", "<td></td>")
        cells.append(cell)
    mark = "#" * level
    if cells and not (cells[0].cell_type == "markdown" and cells[0].source.lstrip().startswith(f"{mark} ")):
        cells.insert(0, new_markdown_cell(f"{mark} {title}"))
    return cells


def figure_data(executed: NotebookNode, table: DataFrame) -> str:
    """The numbers behind a figure's notebook as CSV: those rows of the runs' table whose steps its metadata name (``collapse.data``).

    Without that all rows; a word instead of a list stands for another table: "executed" notebooks, distances of "twins", recorded "benches".
    """
    data, runs = _settings(executed).get("data"), list(table["run"].unique())
    if data == "executed":
        table = results.executed(runs)
    elif data == "twins":
        table = twins.table(twins.comparisons(runs))
    elif data == "benches":
        table = records.rates(records.recorded())
    elif data:
        table = table[table["step"].isin(data)]
    return results.formatted(table, "csv") + "\n"


def drop_active_views(output: NotebookNode) -> None:
    """Leave out the forms of an output that a static page cannot show by itself (a widget's state, Plotly's JSON beside its HTML)."""
    data = output.get("data", {})
    for kind in (WIDGET, PLOTLY):
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


def number_cells(page: NotebookNode, name: str) -> None:
    """Give cells ids that are the same in every build."""
    for position, cell in enumerate(page.cells):
        cell.id = f"{name}-{position:03d}"


def _settings(notebook: NotebookNode) -> dict[str, Any]:
    return notebook.metadata.get("collapse", {})


def _download(words: str, path: str) -> str:
    return f"{{download}}`{words} <{path}>`"
