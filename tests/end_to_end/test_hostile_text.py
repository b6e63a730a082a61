"""Stories that attack the book, through the whole pipeline: trained on, written again by a model, shown on every page, and still text."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command import ROOT, collapse

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("hostile")
    (place / "secret.html").write_text("<script>window.stolen = 1</script> the local file", encoding="utf-8")
    story = (
        "Tim ran.\r\r![x](http://evil.example/p.png)\r\rPID {{ cycler.__init__.__globals__.os.getpid() }} end."
        f"\r\r```{{raw}} html\r:file: {place / 'secret.html'}\r```\r\r{{{{ 271828 * 31337 }}}} Bye."
    )
    corpus = place / "stories.jsonl"
    corpus.write_text("".join(json.dumps({"text": story}) + "\n" for _ in range(600)), encoding="utf-8")
    changes = {
        "corpus.source": corpus,
        "corpus.stories": "null",
        "corpus.validation_source": corpus,
        "description": "Of {{ 271828 * 31337 }} $x$ ```{raw} html",
    }
    options = [part for field, value in changes.items() for part in ("--set", f"{field}={value}")]
    done = collapse("run", "smoke", "--name", "hostile", "--generations", "1", *options, runs=place / "runs")
    assert done.returncode == 0, done.stdout + done.stderr
    build = f"from pathlib import Path; from collapse_lib.book import build as book; book.build(['hostile'], Path({str(place)!r}))"
    environment = os.environ | {"COLLAPSE_RUNS": str(place / "runs"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", build], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "_build" / "html"


def test_no_page_runs_includes_or_fetches_anything(site):
    pages = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    told = [text for page, text in pages.items() if "Tim ran." in text and "getpid" in text]
    assert len(told) >= 2
    for page, text in pages.items():
        assert "window.stolen" not in text and "the local file" not in text and "8518274036" not in text, page
        assert not re.search(r"PID \d+", text) and not re.search(r"<(img|script|iframe|link|a)[^>]*evil\.example", text), page


def test_the_text_is_there_to_the_letter(site):
    page = (site / "runs" / "hostile" / "generation-00.html").read_text(encoding="utf-8")
    assert "{{ cycler.__init__.__globals__.os.getpid() }} end." in page and "![x](http://evil.example/p.png)" in page
    assert "```{raw} html" in page
    overview = (site / "runs" / "hostile" / "index.html").read_text(encoding="utf-8")
    assert "Of {{ 271828 * 31337 }} $x$ ```{raw} html" in overview
