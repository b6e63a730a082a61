"""Studies as the book shows them: a page each, of the same notebook, and the pages that all of them share."""

from __future__ import annotations

from pathlib import Path

from collapse_lib.book.notebooks import NotebookPage, notebook_pages
from collapse_lib.studies import ngram_regimes
from collapse_lib.studies.study import open_study, studies_with_results, study_files

ONE_STUDY = "study"  # the notebook of which each study has a page


def study_pages() -> list[NotebookPage]:
    """The pages about studies: each study with results, under what it asks, and then the notebooks about other things.

    That on the n-gram chains is left out where there are none of them.
    """
    pages = []
    for page in notebook_pages("studies"):
        if page.notebook.stem == ONE_STUDY:
            pages += [NotebookPage(_page(name), page.notebook, {"study": name}, _title(name), has_studies=True) for name in studies_with_results()]
        elif page.notebook.stem != "ngram_regimes" or ngram_regimes.table_file().is_file():
            pages.append(page)
    return sorted(pages, key=lambda page: (page.notebook.stem != ONE_STUDY, page.name))


def study_link(name: str, text: str, root: str = "") -> str:
    """A link to a study's page from the book's first level or, with ``root``, from elsewhere in the book."""
    return f"[{text}]({root}studies/{_page(name)})"


def study_links() -> str:
    """The studies with results, as links for the pages that tell readers where to go."""
    return ", ".join(study_link(name, name) for name in studies_with_results()) or "none yet; [](rerun) says how to make one"


def study_records() -> list[Path]:
    """The small files that these pages are made from: what the chains declare and have measured."""
    tables = [file for file in [ngram_regimes.table_file()] if file.is_file()]
    return [*tables, *(file for name in studies_with_results() for file in study_files(open_study(name)))]


def _page(name: str) -> str:
    return f"study-{name}"


def _title(name: str) -> str:
    """What a study asks: the first sentence of its description."""
    first, mark, _ = open_study(name).description.partition("? ")
    return f"{first}?" if mark else first.partition(". ")[0].rstrip(".") or f"Study {name}"
