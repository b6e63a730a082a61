"""What Sphinx does to a page of this book beside what Jupyter Book has it do: an extension, named in ``book/_config.yml``.

No page loads the formula engine by itself: ``book/_static/formulas.js`` does where a formula is about to be seen. And every page has a description
and a picture for those who link to it. Pages are written by as many processes as there are cores.
"""

from __future__ import annotations

import os
import re
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils import nodes
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

ADDRESS = "COLLAPSE_BOOK_URL"  # the environment variable with the address under which a book will be published
PREVIEW = "preview.png"  # at the site's root; ``build`` puts it there
LONGEST = 200  # characters of a description


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("env-updated", _write_side_by_side)
    app.connect("html-page-context", _complete, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def _write_side_by_side(app: Sphinx, env: BuildEnvironment) -> None:
    """Pages are read by now, one after the other because some extensions know no other way; each core may write its share of them.

    One process more than there are cores: the first only hands out what the others write.
    """
    app.parallel = len(os.sched_getaffinity(0)) + 1


def _complete(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    context["script_files"] = [script for script in context["script_files"] if not _is_formula_engine(script)]
    if doctree is not None:
        engine = "../" * pagename.count("/") + app.config.mathjax_path.removeprefix("../")
        tags = f'<meta name="formula-engine" content="{engine}" />\n' + preview(pagename, _text(context.get("title", "")), description(doctree))
        context["metatags"] = context.get("metatags", "") + tags


def description(doctree: nodes.document) -> str:
    """The first paragraph of a page, or as many of its words as a description has room for."""
    from docutils import nodes

    words = next((re.sub(r"\s+", " ", part.astext()).strip() for part in doctree.findall(nodes.paragraph) if part.astext().strip()), "")
    return words if len(words) <= LONGEST else words[:LONGEST].rpartition(" ")[0] + " …"


def preview(pagename: str, title: str, words: str) -> str:
    base = os.environ.get(ADDRESS, "").rstrip("/")
    up = f"{base}/" if base else "../" * pagename.count("/")
    said = {"og:type": "article", "og:title": title, "og:description": words, "og:image": up + PREVIEW, "twitter:card": "summary_large_image"}
    if base:
        said["og:url"] = f"{base}/{pagename}.html"
    tags = [f'<meta property="{name}" content="{escape(value)}" />' for name, value in said.items()]
    return "\n".join([f'<meta name="description" content="{escape(words)}" />', *tags])


def _is_formula_engine(script: Any) -> bool:
    return "mathjax" in str(getattr(script, "filename", script)).lower()


def _text(title: str) -> str:
    from html import unescape

    return unescape(re.sub(r"<[^>]+>", "", title))
