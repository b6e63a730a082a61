"""Still figures on pages: a wide and a narrow drawing of each, of which a browser loads the one that fits its screen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

    from collapse_lib.figures import Picture

SVG = "image/svg+xml"
FOLDER = "pictures"  # under the site's root: browsers ask for these files themselves, so that Sphinx need not know of them
PHONE = 600  # pixels: screens up to this width get the narrow drawing
SIZE = re.compile(r'<svg[^>]*? height="([\d.]+)pt"[^>]*? width="([\d.]+)pt"|<svg[^>]*? width="([\d.]+)pt"[^>]*? height="([\d.]+)pt"')

Files = dict[str, str]  # path under the site's root -> SVG


def show_pictures(cells: Sequence[NotebookNode], page: str) -> Files:
    """Have the SVG outputs of a page's cells shown as pictures, in place; returns the files that they show.

    ``page`` is its path in the book without an ending. Files are named after it: ``<page>.svg``, ``<page>-2.svg``, ... and ``<page>-narrow.svg``.
    """
    files: Files = {}
    for cell in cells:
        said = cell.metadata.get("mystnb") or {}
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if SVG not in data:
                continue
            count = sum(not name.endswith("-narrow.svg") for name in files)
            alt = said.get("image", {}).get("alt") or data.get("text/plain", "")
            narrow = output.metadata.get(SVG, {}).get("narrow")
            shown, of_one = picture(page, data[SVG], narrow, alt, f"-{count + 1}" if count else "")
            files |= of_one
            output.data = type(output.data)({"text/html": shown})
            output.metadata = type(output.metadata)()
    return files


def again(page: str, files: Files, alt: str) -> str:
    """The first picture of another page, whose ``files`` these are, as HTML for ``page``."""
    wide = next(iter(files))
    base = wide.removesuffix(".svg")
    return _tag(page, base, _size(files[wide]), f"{base}-narrow.svg" in files, alt)


def drawn(page: str, made: Picture, alt: str) -> tuple[str, Files]:
    """As ``picture``, of a figure that was drawn for a page."""
    return picture(page, made.svg, made.narrow_svg, alt)


def picture(page: str, wide: str, narrow: str | None, alt: str, suffix: str = "") -> tuple[str, Files]:
    """A drawing as HTML for ``page``, and the files that it shows."""
    base = f"{FOLDER}/{page}{suffix}"
    files = {f"{base}.svg": wide} | ({f"{base}-narrow.svg": narrow} if narrow else {})
    return _tag(page, base, _size(wide), bool(narrow), alt), files


def _tag(page: str, base: str, size: tuple[int, int], has_narrow: bool, alt: str) -> str:
    """The HTML of a picture whose files are ``<base>.svg`` and, maybe, ``<base>-narrow.svg`` under the site's root, for a page at ``page``."""
    at = "../" * page.count("/") + base
    source = f'<source media="(max-width: {PHONE}px)" srcset="{at}-narrow.svg">' if has_narrow else ""
    kind = "still" if has_narrow else "still only-wide"  # one that cannot be narrowed moves sideways on a phone
    image = f'<img src="{at}.svg" alt="{escape(alt)}" width="{size[0]}" height="{size[1]}" loading="lazy">'
    return f'<div class="{kind}"><picture>{source}{image}</picture></div>'  # a block, which Markdown leaves as it is


def _size(svg: str) -> tuple[int, int]:
    """Width and height in CSS pixels, of which a point has four thirds."""
    found: Any = SIZE.search(svg)
    height, width = (found[1], found[2]) if found[1] else (found[4], found[3])
    return round(float(width) * 4 / 3), round(float(height) * 4 / 3)
