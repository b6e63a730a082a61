"""Stories that attack the book, through the whole pipeline: trained on, written again by a model, shown on every page, and still text."""

from __future__ import annotations

from pathlib import Path

import pytest
from torture.stories import DESCRIPTION, STORIES, harm, site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    said = site(folder, list(STORIES.values()))
    assert not said, said
    return folder


def test_no_page_runs_includes_or_fetches_anything(place):
    assert harm(place) == []


def test_the_text_is_there_to_the_letter(place):
    run = place / "_build" / "html" / "runs" / "hostile"
    page = (run / "generation-00.html").read_text(encoding="utf-8")
    assert "{{ cycler.__init__.__globals__.os.getpid() }} end." in page and "![x](http://evil.example/p.png)" in page
    assert "```{raw} html" in page
    assert DESCRIPTION in (run / "index.html").read_text(encoding="utf-8")


def test_harm_is_seen(tmp_path):
    """The search itself finds what it looks for."""
    pages = tmp_path / "_build" / "html"
    pages.mkdir(parents=True)
    (pages / "a.html").write_text("Tim ran. <img src='http://evil.example/p.png'> Bye.")
    (pages / "b.html").write_text("Tim ran. 8518274036 PID 71 Bye.")
    assert sorted(harm(tmp_path)) == ["a.html: an element", "b.html: a process's number", "b.html: a template's value"]
