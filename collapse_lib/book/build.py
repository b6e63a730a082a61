"""From runs to a site: stage the prose and the pages made from the runs, have Jupyter Book render them.

    book/*.md, _config.yml, ...     what people wrote
    book/_generated/                the book's whole source, staged: prose, a page a generation, executed notebooks of figures and of the proof
    book/_build/html/               the site

Nothing is done that would come out the same: a site whose inputs have not changed is left alone, a notebook is executed again
only when it or its data changed, and Jupyter Book reads again only the pages that changed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from collapse_lib.book import pages as book_pages
from collapse_lib.book.pages import Shown
from collapse_lib.experiment.errors import UserError
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.paths import book_folder, project_root, run_names, runs_root
from collapse_lib.experiment.run import Run
from collapse_lib.studies.twins import RECORD as TWINS_RECORD
from collapse_lib.studies.twins import names as twins_names

PROSE = ("*.md", "*.bib", "*.yml", "_static/*")
RENDERERS = (
    "jupyter-book",
    "Sphinx",
    "sphinx-book-theme",
    "myst-nb",
    "plotly",
    "sphinx-mathjax-offline",
    "sphinx-proof",
)  # their versions decide the site too
MATHJAX = (
    "sphinx-mathjax-offline",
    "sphinx-mathjax-offline/static/mathjax/tex-svg-full.js",
)  # one file that asks for no others: no fonts, no extensions
PLOTLY = ("plotly", "plotly/package_data/plotly.min.js")


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

    ``output`` takes the place of ``book_folder()`` for what is made: ``output/_generated`` and ``output/_build/html``.
    Raises ``UserError`` when there is no run to show, or when a page cannot be rendered (naming the log).
    """
    began = time.perf_counter()
    source = project_root() / "book"
    if not (source / "_config.yml").is_file():
        raise UserError(f"The book's sources are not in {source}; build it from a checkout of the project.")
    shown, left_out = _shown(runs)
    place = Path(output).resolve() if output else book_folder()
    site, stage, mark = place / "_build" / "html", place / "_generated", place / "_build" / "inputs.sha256"
    made_from = [*_prose(source), *_notebooks("figures"), *_notebooks("theory"), *_library(), *_records(shown)]
    inputs = _digest(made_from, extra=[run.name for run in shown])
    if (site / "index.html").is_file() and mark.is_file() and mark.read_text() == inputs:
        return BookReport(site / "index.html", time.perf_counter() - began, _pages(site), rendered=False, left_out=left_out)
    mark.unlink(missing_ok=True)
    _stage(stage, source, shown)
    _render(stage, place)
    write_text(mark, inputs)
    return BookReport(site / "index.html", time.perf_counter() - began, _pages(site), rendered=True, left_out=left_out)


def _shown(names: Sequence[str]) -> tuple[list[Shown], dict[str, str]]:
    """The runs to show: those named, each of which must have a finished generation, or all that have one and are not there for another's sake.

    Of the latter, those that cannot be read are left out, and come second with the reason.
    """
    if names:
        runs = [Shown.read(Run.open(name)) for name in dict.fromkeys(names)]
        if unfinished := [shown.name for shown in runs if not shown.models]:
            raise UserError(f"Run '{unfinished[0]}' has no finished generation to show yet; `collapse run {unfinished[0]}` goes on with it.")
        return runs, {}
    there = run_names()
    companions = {name for chain in there for role, name in twins_names(chain).items() if role != "chain"}  # the chain's page on twins tells of them
    order = sorted(set(there) - companions, key=lambda name: (name != "demo", name == "smoke", name))
    runs, left_out = [], {}
    for name in order:
        try:
            runs.append(Shown.read(Run.open(name)))
        except UserError as error:
            left_out[name] = str(error)
    runs = [shown for shown in runs if shown.models]
    if not runs:
        raise UserError(next(iter(left_out.values()), "There is no run with a finished generation to make a book of; `collapse run demo` makes one."))
    return runs, left_out


def _stage(stage: Path, source: Path, runs: Sequence[Shown]) -> None:
    """Put the book's whole source into ``stage``, touching only files whose content changes and dropping those no longer wanted."""
    import nbformat

    from collapse_lib.studies import results

    staged = _Staging(stage)
    values = book_pages.numbers(runs[0])
    for file in _prose(source):
        name = file.relative_to(source).as_posix()
        if file.suffix == ".md":
            staged.text(name, book_pages.filled(file.read_text(encoding="utf-8"), values, name))
        elif name != "_toc.yml":
            staged.copy(name, file)
    staged.text("includes/runs.md", book_pages.runs_table(runs))
    staged.text("includes/excerpts.md", book_pages.excerpts_page(runs[0]))
    for shown in runs:
        folder = f"runs/{shown.name}"
        staged.text(f"{folder}/index.md", book_pages.overview_page(shown, "results.csv"))
        staged.text(f"{folder}/overview.svg", book_pages.overview_curve(shown))
        staged.text(f"{folder}/results.csv", results.formatted(results.load(shown.name), "csv") + "\n")
        for generation in shown.results:
            page = f"{folder}/generation-{generation:02d}"
            staged.text(f"{page}.ipynb", nbformat.writes(book_pages.generation_page(shown, generation)))
            if generation:
                staged.text(f"{page}.svg", book_pages.generation_curves(shown, generation))
    pages = _execute_notebooks(stage, runs)
    for folder, executed in pages.items():
        names = [shown.name for shown in runs] if folder == "figures" else []
        for name, notebook in executed.items():
            page, images = book_pages.executed_page(notebook, name, names)
            staged.text(f"{folder}/{name}.ipynb", nbformat.writes(page))
            if names:
                staged.text(f"{folder}/{name}.csv", book_pages.figure_data(notebook, names))
            for file, svg in images.items():
                staged.text(f"{folder}/{file}", svg)
        for notebook in _notebooks(folder):
            staged.copy(f"{folder}/source/{notebook.name}", notebook)
    staged.text("_toc.yml", _contents(source, runs, pages))
    staged.copy("extra/mathjax/tex-svg-full.js", _packaged(*MATHJAX))
    staged.copy("extra/plotly/plotly.min.js", _packaged(*PLOTLY))
    staged.text("extra/.nojekyll", "")  # or a host that hides folders whose names begin with an underscore hides the styles
    staged.sweep(keep="executed")


class _Staging:
    """Writes files into a folder only where their content changes, and knows which it has written."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.files: set[Path] = set()

    def text(self, name: str, content: str) -> None:
        self._bytes(name, content.encode("utf-8"))

    def copy(self, name: str, source: Path) -> None:
        self._bytes(name, source.read_bytes())

    def _bytes(self, name: str, content: bytes) -> None:
        path = self.folder / name
        self.files.add(path)
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def sweep(self, keep: str) -> None:
        """Delete what an earlier book left; its site goes too, for Sphinx keeps the pages of vanished sources."""
        stale = [
            path for path in self.folder.rglob("*") if path.is_file() and path not in self.files and keep not in path.relative_to(self.folder).parts
        ]
        for path in stale:
            path.unlink()
        if stale:
            shutil.rmtree(self.folder.parent / "_build", ignore_errors=True)


def _execute_notebooks(stage: Path, runs: Sequence[Shown]) -> dict[str, dict[str, Path]]:
    """Execute the notebooks that become pages, those excepted whose inputs are as they were; returns folder -> name -> executed notebook.

    Figures are drawn of these runs; the theory is about none. A notebook that fails raises what ``batch.execute`` raises.
    """
    import papermill

    from collapse_lib.experiment.execute import execute
    from collapse_lib.experiment.warm_kernel import warm_kernel

    names = [shown.name for shown in runs]
    data = [file for file in _records(runs) if file.suffix != ".ipynb"]
    pages: dict[str, dict[str, Path]] = {}
    with warm_kernel() as kernel:
        for folder, parameters, files in (("figures", {"runs": names}, data), ("theory", {}, [])):
            pages[folder] = {}
            for notebook in _notebooks(folder):
                executed = pages[folder][notebook.stem] = stage / "executed" / folder / notebook.name
                mark = executed.with_suffix(".sha256")
                inputs = _digest([notebook, *_library(), *files], extra=parameters.get("runs", []))
                if not (executed.is_file() and mark.is_file() and mark.read_text() == inputs):
                    known = papermill.inspect_notebook(str(notebook))  # not every page is about runs
                    execute(notebook, executed, {name: value for name, value in parameters.items() if name in known}, kernel)
                    write_text(mark, inputs)
    return pages


def _contents(source: Path, runs: Sequence[Shown], pages: Mapping[str, Iterable[str]]) -> str:
    """The table of contents: the written one, with executed notebooks (folder -> names) and runs put where it says ``insert``."""
    import yaml

    contents = yaml.safe_load((source / "_toc.yml").read_text(encoding="utf-8"))
    inserts: dict[str, list[dict]] = {folder: [{"file": f"{folder}/{name}"} for name in names] for folder, names in pages.items()} | {"runs": []}
    for shown in runs:
        generations = [{"file": f"runs/{shown.name}/generation-{generation:02d}"} for generation in shown.results]
        inserts["runs"].append({"file": f"runs/{shown.name}/index", "sections": generations})
    for part in contents["parts"]:
        part["chapters"] = [page for chapter in part["chapters"] for page in (inserts[chapter["insert"]] if "insert" in chapter else [chapter])]
    return yaml.safe_dump(contents, sort_keys=False)


def _render(stage: Path, place: Path) -> None:
    """Have Jupyter Book render ``stage`` into ``place/_build/html``; any warning is a failure."""
    log = place / "_build" / "book.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(stage),
        "--path-output",
        str(place),
        "-W",
        "-n",
        "--keep-going",
    ]
    with log.open("w", encoding="utf-8") as file:
        environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONUTF8": "1"}
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, check=False).returncode
    if status:
        said = re.sub(r"\x1b\[[\d;]*m", "", log.read_text(encoding="utf-8")).splitlines()
        complaints = [line for line in said if "WARNING" in line or "ERROR" in line] or [line for line in said if line.strip()][-1:]
        raise UserError(f"Jupyter Book could not render the book without warnings (log: {log}): {' | '.join(complaints[:3])}")


def _pages(site: Path) -> int:
    return sum(
        1
        for page in site.rglob("*.html")
        if not page.relative_to(site).parts[0].startswith("_") and page.name not in ("search.html", "genindex.html")
    )


def _prose(source: Path) -> list[Path]:
    return sorted(file for pattern in PROSE for file in source.glob(pattern) if file.is_file())


def _notebooks(folder: str) -> list[Path]:
    """A folder's notebooks in the order of their pages: the paper's figures and tables before the others, chapters by number."""
    found = (project_root() / "notebooks" / folder).glob("*.ipynb")
    return sorted(found, key=lambda file: (folder == "figures" and not file.stem.startswith(("figure", "table")), file.stem))


def _library() -> list[Path]:
    return sorted(Path(__file__).parents[1].rglob("*.py"))


def _records(runs: Sequence[Shown]) -> list[Path]:
    """The small files that pages are made from: recorded benches, and of runs the protocols, executed notebooks, metrics and manifests."""
    files = sorted((runs_root() / "bench").glob("*.json"))
    for shown in runs:
        files.append(shown.run.folder / "protocol.yaml")
        files += [file for file in [shown.run.folder / TWINS_RECORD] if file.is_file()]
        for generation, steps in shown.results.items():
            for step in (shown.run.step(generation, name) for name in steps):
                files += [step.notebook, step.metrics_file, step.manifest_file]
    return files


def _digest(files: Iterable[Path], extra: Iterable[str]) -> str:
    """One hash over files (names and bytes), the renderers' versions, and some words."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.parent.name}/{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    for word in (*extra, *(f"{package}={metadata.version(package)}" for package in RENDERERS)):
        digest.update(f"{word}\0".encode())
    return digest.hexdigest()


def _packaged(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    file = Path(str(metadata.distribution(package).locate_file(path)))
    if not file.is_file():
        raise UserError(f"Package {package} {metadata.version(package)} has no {path}; install the pinned version.")
    return file
