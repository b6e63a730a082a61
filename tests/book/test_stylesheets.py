"""Style sheets lose what no page can use, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from collapse_lib.book.stylesheets import slim

SHEET = """
@charset "utf-8";
/* a remark */
:root { --dot: "."; }
.used, .never, #here > .used:hover { color: red; background: url(a.png) }
.never { color: blue }
#nowhere { color: blue }
div.never::before { content: ".used" }
p, [data-kind="never"], :not(.never) { margin: 0 }
.from-script { color: green }
.menu-left, .pager-left { color: green }
.a\\:b { color: blue }
@media (min-width: 600px) { .used { color: pink } .never { color: pink } }
@media print { .never { color: black } }
@supports (display: grid) { @media print { .used { color: black } } }
@keyframes never { from { top: 0 } to { top: 1px } }
@font-face { font-family: never; src: url(b.woff2) }
"""
KEPT = [
    '@charset "utf-8";',
    ':root{--dot: ".";}',
    ".used,#here > .used:hover{color: red; background: url(a.png)}",
    'p,[data-kind="never"],:not(.never){margin: 0}',
    ".from-script{color: green}",
    ".menu-left{color: green}",
    "@media (min-width: 600px) {.used{color: pink}}",
    "@supports (display: grid) {@media print {.used{color: black}}}",
    "@keyframes never { from { top: 0 } to { top: 1px } }",
    "@font-face { font-family: never; src: url(b.woff2) }",
]


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "_static").mkdir()
    (tmp_path / "index.html").write_text('<p class="used"><a id="here">word</a></p>')
    (tmp_path / "_static" / "all.js").write_text("element.className = wide ? 'from-script' : `menu-${side}`")
    (tmp_path / "_static" / "all.css").write_text(SHEET)
    (tmp_path / "_static" / "own.css").write_text(SHEET)
    return tmp_path


def test_what_no_page_and_no_script_names_goes(site: Path) -> None:
    slim(site, kept=["own.css"])
    assert (site / "_static" / "all.css").read_text().splitlines() == KEPT
    assert (site / "_static" / "own.css").read_text() == SHEET


def test_a_second_time_nothing_changes(site: Path) -> None:
    slim(site)
    once = (site / "_static" / "all.css").read_text()
    slim(site)
    assert (site / "_static" / "all.css").read_text() == once
