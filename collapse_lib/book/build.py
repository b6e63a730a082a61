"""From runs to a site: stage the prose and the pages made from the runs, have Jupyter Book render them.

    book/*.md, _config.yml, ...     what people wrote
    book/_generated/                the book's whole source, staged: prose, a page a generation, executed notebooks of figures and of the proof
    book/_build/html/               the site

Nothing is done that would come out the same: a site whose inputs have not changed is left alone, a notebook is executed again
only when it or its data changed, and Jupyter Book reads again only the pages that changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import nbformat
import papermill
import yaml

from collapse_lib import figures
from collapse_lib.book import pages, pictures, quiet, quiet_page, sphinx_pages, stylesheets, viewer
from collapse_lib.book.execution import Execution, executing
from collapse_lib.book.notebooks import NotebookPage, executed_page, figure_data, notebook_pages
from collapse_lib.book.runs import BookRun, book_runs, runs_of_two_sizes
from collapse_lib.book.staging import CONTENTS, KEPT, Staging
from collapse_lib.book.studies import study_links, study_pages, study_records
from collapse_lib.book.wording.campaign import campaign, campaign_record
from collapse_lib.book.wording.claims import verdict_lines
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.paths import book_folder, project_root, runs_root
from collapse_lib.studies import claims, results
from collapse_lib.studies.study import open_study
from collapse_lib.studies.study import table as study_table

PROSE = ("*.md", "*.bib", "*.yml", "_static/*", "_templates/*")
FOLDERS = ("figures", "theory", "studies")  # of notebooks that become pages; figures are about runs, the others are not
# Their versions decide the site, too.
RENDERERS = ("jupyter-book", "Sphinx", "sphinx-book-theme", "myst-nb", "sphinx-mathjax-offline", "sphinx-proof")
# One file that asks for no others: no fonts, no extensions.
MATHJAX = ("sphinx-mathjax-offline", "sphinx-mathjax-offline/static/mathjax/tex-svg.js")
CURVES = "Left: training loss by optimizer step, this generation over the last. Right: perplexity up to here."
LANDING = {  # the figures that the landing page shows again, and what they show
    "figure_1_perplexity": "Perplexity on the validation stories by generation, one line a run.",
    "figure_2_entropy_oov": "Entropy of the generated text as a line and out-of-vocabulary words as bars, by generation.",
}


@dataclass(frozen=True)
class BookReport:
    """What a build did: the site's first page, how long it took, how many pages there are, whether anything was rendered.

    ``left_out`` has the runs that nobody named and that could not be read, each with the reason.
    """

    path: Path
    seconds: float
    pages: int
    rendered: bool
    left_out: dict[str, str]


def build(runs: Sequence[str] = (), output: Path | None = None) -> BookReport:
    """Build the book about ``runs`` (names, the main one first; default: all, ``demo`` first).

    ``output`` takes the place of the ``book`` folder for what is made: ``output/_generated`` and ``output/_build/html``.
    Raises ``UserError`` when there is no run to show, or when a page cannot be rendered (naming the log).
    """
    began = time.perf_counter()
    source = project_root() / "book"
    if not (source / "_config.yml").is_file():
        raise UserError(f"The book's sources are not in {source}; build it from a checkout of the project.")
    included, left_out = book_runs(runs)
    base = Path(output).resolve() if output else book_folder()
    site, stage, mark = base / "_build" / "html", base / "_generated", base / "_build" / "inputs.sha256"
    sources = [page.notebook for folder in FOLDERS for page in _notebook_pages(folder)]
    words = [run.name for run in included] + [os.environ.get(variable, "") for variable in (sphinx_pages.ADDRESS, pages.SOURCE)]
    inputs = _digest([*_prose(source), *sources, *_library(), *_records(included), *study_records()], extra=words)
    rendered = not ((site / "index.html").is_file() and mark.is_file() and mark.read_text() == inputs)
    if rendered:
        mark.unlink(missing_ok=True)
        _stage(stage, source, included)
        _render(stage, base)
        stylesheets.slim(site, kept=[file.name for file in (source / "_static").glob("*.css")])
        write_text(mark, inputs)
    return BookReport(site / "index.html", time.perf_counter() - began, _count_pages(site, stage), rendered, left_out)


def _stage(stage: Path, source: Path, runs: Sequence[BookRun]) -> None:
    """Put the book's whole source into ``stage``, touching only files whose content changes and dropping those no longer wanted."""
    staging, wanted = Staging(stage), _executions(stage, runs)
    with executing([execution for executions in wanted.values() for _, execution in executions]):  # what follows is done meanwhile
        table = results.load([run.name for run in runs])
        values = pages.numbers(runs[0]) | dict.fromkeys(LANDING, "") | {"studies": study_links()}
        values["verdicts"] = verdict_lines(claims.answers(claims.sources([run.name for run in runs])))
        staging.text("includes/runs.md", pages.runs_table(runs))
        staging.text("includes/excerpts.md", pages.excerpts_page(runs[0]))
        shown = [file for run in runs for file in viewer.viewer_records(run)]
        staging.made("includes/viewer.md", _digest([*_library(), *shown]), lambda: _stage_viewer(staging, runs))
        staging.text("includes/torture.md", campaign())
        for run in runs:
            _stage_run(staging, run, results.formatted(table[table["run"] == run.name], "csv") + "\n")
    names = {}
    for folder, executions in wanted.items():
        names[folder] = [page.name for page, _ in executions]
        for page, execution in executions:
            notebook = nbformat.read(execution.target, as_version=4)
            of_runs = _runs_of(page, runs) if folder == "figures" else []
            study = page.parameters.get("study")
            made, images = executed_page(notebook, page, of_runs, has_numbers=study is not None)
            stills = pictures.show_pictures(made.cells, f"{folder}/{page.name}")
            _stage_pictures(staging, stills)
            if page.name in LANDING and stills:
                values[page.name] = pictures.again("index", stills, LANDING[page.name])
            staging.text(f"{folder}/{page.name}.ipynb", nbformat.writes(made))
            staging.copy(f"{folder}/source/{page.notebook.name}", page.notebook)
            if of_runs:
                staging.text(f"{folder}/{page.name}.csv", figure_data(notebook, table[table["run"].isin(of_runs)]))
            if study:
                staging.text(f"{folder}/{page.name}.csv", results.formatted(study_table(open_study(study)), "csv") + "\n")
            for file, svg in images.items():
                staging.text(f"{folder}/{file}", svg)
    for file in _prose(source):
        name = file.relative_to(source).as_posix()
        if file.suffix == ".md":
            staging.text(name, pages.filled(file.read_text(encoding="utf-8"), values, name))
        elif name != CONTENTS:
            staging.copy(name, file)
    staging.text(CONTENTS, _contents(source, runs, names))
    staging.copy("extra/mathjax/tex-svg.js", _packaged(*MATHJAX))
    staging.bytes(f"extra/{sphinx_pages.PREVIEW}", figures.figure_1(table).png)
    staging.text("extra/.nojekyll", "")  # or a host that hides folders whose names begin with an underscore hides the styles
    staging.sweep()


def _stage_viewer(staging: Staging, runs: Sequence[BookRun]) -> None:
    script = viewer.viewer_script(runs)
    staging.text(f"extra/{viewer.SCRIPT}", script)
    staging.text("includes/viewer.md", viewer.viewer(runs, script))


def _stage_run(staging: Staging, run: BookRun, table: str) -> None:
    """The pages of a run: its overview with its results (CSV), one for each generation, and in a long run one for all at which nothing stands out."""
    folder, library, perplexities = f"runs/{run.name}", _digest(_library()), run.series("perplexity", "perplexity")
    curve, files = pictures.drawn(f"{folder}/index", figures.perplexity_so_far(run.name, perplexities, run.last), "Perplexity by generation")
    staging.text(f"{folder}/index.md", pages.overview_page(run, "results.csv", curve))
    _stage_pictures(staging, files)
    staging.text(f"{folder}/results.csv", table)
    shared = quiet.quiet_generations(run)
    for generation in quiet.own_pages(run):
        # Its own records, those of the generation that it is compared with, and of the first for units and what ended its training.
        inputs = _digest(run.records({1, generation - 1, generation}), extra=[library, json.dumps([perplexities, shared])])
        staging.made(f"{folder}/{quiet.page_of(generation)}", inputs, partial(_stage_generation, staging, run, generation, perplexities))
    if shared:
        inputs = _digest(run.records({1, *shared, *(generation - 1 for generation in shared)}), extra=[library, json.dumps(shared)])
        staging.made(f"{folder}/{quiet.PAGE}", inputs, partial(_stage_quiet, staging, run, shared))


def _stage_generation(staging: Staging, run: BookRun, generation: int, perplexities: Sequence[tuple[int, float]]) -> None:
    """The page of a generation, and its pictures."""
    page, curves = f"runs/{run.name}/{quiet.page_of(generation)}", ""
    if generation:
        loss_curves = {which: run.results[which]["train"]["series"].get("loss_curve") for which in (generation - 1, generation) if which}
        drawing = figures.training_and_perplexity(run.name, loss_curves, perplexities, generation)
        curves, files = pictures.drawn(f"{page}-curves", drawing, CURVES)
        _stage_pictures(staging, files)
    _stage_page(staging, pages.generation_page(run, generation, curves), page)


def _stage_quiet(staging: Staging, run: BookRun, generations: Sequence[int]) -> None:
    """The page that some generations share, their notebooks, and a file at each address that a page of their own would have."""
    folder = f"runs/{run.name}"
    _stage_page(staging, quiet_page.quiet_page(run, generations), f"{folder}/{quiet.PAGE}")
    for generation in generations:
        staging.text(f"extra/{folder}/{quiet.page_of(generation)}.html", quiet.forwarding(generation))
        for step in run.results[generation]:
            staging.copy(f"{folder}/{quiet_page.source(generation, step)}", run.step(generation, step).notebook)


def _stage_page(staging: Staging, made: nbformat.NotebookNode, page: str) -> None:
    """A page made of a run's notebooks, and its pictures."""
    _stage_pictures(staging, pictures.show_pictures(made.cells, page))
    staging.text(f"{page}.ipynb", nbformat.writes(made))


def _stage_pictures(staging: Staging, files: pictures.Files) -> None:
    for name, svg in files.items():
        staging.text(f"extra/{name}", svg)


def _executions(stage: Path, runs: Sequence[BookRun]) -> dict[str, list[tuple[NotebookPage, Execution]]]:
    """The notebooks that become pages and how each is executed, by folder."""
    library = _digest(_library())

    @cache
    def measured(names: tuple[str, ...]) -> str:
        return _digest([file for file in _records([run for run in runs if run.name in names]) if file.suffix != ".ipynb"])

    @cache
    def of_studies() -> str:
        return _digest(study_records())

    wanted: dict[str, list[tuple[NotebookPage, Execution]]] = {folder: [] for folder in FOLDERS}
    for folder in FOLDERS:
        for page in _notebook_pages(folder):
            if page.by_size and not runs_of_two_sizes(runs):
                continue
            known, names = papermill.inspect_notebook(str(page.notebook)), _runs_of(page, runs) if folder == "figures" else []
            parameters = page.parameters | ({"runs": names} if names and "runs" in known else {})  # not every page is about runs
            shown = [measured(tuple(names)) if names else "", of_studies() if page.has_studies else ""]
            inputs = _digest([page.notebook], extra=[library, *shown, json.dumps(parameters)])
            wanted[folder].append((page, Execution(page.notebook, stage / KEPT / folder / f"{page.name}.ipynb", parameters, inputs)))
    return wanted


def _runs_of(page: NotebookPage, runs: Sequence[BookRun]) -> list[str]:
    """Names of the runs that a page of figures shows: all, or, of the paper's figures, those of its design where there are any."""
    of_design = runs_of_two_sizes(runs) if page.is_of_paper else []
    return of_design or [run.name for run in runs]


def _contents(source: Path, runs: Sequence[BookRun], executed: Mapping[str, Iterable[str]]) -> str:
    """The table of contents: the written one, with executed notebooks (folder -> names) and runs put where it says ``insert``."""
    contents = yaml.safe_load((source / CONTENTS).read_text(encoding="utf-8"))
    inserts: dict[str, list[dict]] = {folder: [{"file": f"{folder}/{name}"} for name in names] for folder, names in executed.items()} | {"runs": []}
    for run in runs:
        names = [*map(quiet.page_of, quiet.own_pages(run)), *([quiet.PAGE] if quiet.quiet_generations(run) else [])]
        inserts["runs"].append({"file": f"runs/{run.name}/index", "sections": [{"file": f"runs/{run.name}/{name}"} for name in names]})
    for part in contents["parts"]:
        part["chapters"] = [page for chapter in part["chapters"] for page in (inserts[chapter["insert"]] if "insert" in chapter else [chapter])]
    return yaml.safe_dump(contents, sort_keys=False)


def _render(stage: Path, base: Path) -> None:
    """Have Jupyter Book render ``stage`` into ``base/_build/html``; any warning is a failure."""
    log = base / "_build" / "book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    program = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()"]
    command = [*program, "build", str(stage), "--path-output", str(base), "-W", "-n", "--keep-going"]
    with log.open("w", encoding="utf-8") as file:
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, check=False).returncode
    if status:
        said = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8")).splitlines()
        complaints = [line for line in said if "WARNING" in line or "ERROR" in line] or [line for line in said if line.strip()][-1:]
        raise UserError(f"Jupyter Book could not render the book without warnings (log: {log}): {' | '.join(complaints[:3])}")


def _notebook_pages(folder: str) -> list[NotebookPage]:
    return study_pages() if folder == "studies" else notebook_pages(folder)


def _count_pages(site: Path, stage: Path) -> int:
    """The pages of a site, without those of Sphinx and the files that only lead on."""
    found = (page.relative_to(site) for page in site.rglob("*.html") if page.name not in ("search.html", "genindex.html"))
    return sum(not page.parts[0].startswith("_") and not (stage / "extra" / page).is_file() for page in found)


def _prose(source: Path) -> list[Path]:
    return sorted(file for pattern in PROSE for file in source.glob(pattern) if file.is_file())


def _library() -> list[Path]:
    return sorted(Path(__file__).parents[1].rglob("*.py"))


def _records(runs: Sequence[BookRun]) -> list[Path]:
    """The small files that pages are made from: recorded benches, the last campaign's record, and the records of the runs."""
    campaigns = [file for file in [campaign_record()] if file.is_file()]
    return [*sorted((runs_root() / "bench").glob("*.json")), *campaigns, *(file for run in runs for file in run.records())]


def _digest(files: Iterable[Path], extra: Iterable[str] = ()) -> str:
    """One hash over files (names and bytes), the renderers' versions, and some words."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for word in (*extra, *_renderers()):
        digest.update(f"{word}\0".encode())
    return digest.hexdigest()


@cache
def _renderers() -> list[str]:
    return [f"{package}={metadata.version(package)}" for package in RENDERERS]


def _packaged(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    file = Path(str(metadata.distribution(package).locate_file(path)))
    if not file.is_file():
        raise UserError(f"Package {package} {metadata.version(package)} has no {path}; install the pinned version.")
    return file
