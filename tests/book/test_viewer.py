"""The viewer: what it shows of a run, and that a text stays a text; then in a real browser, without a book around it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from headless import headless_chromium
from synthetic_runs import write_run

from collapse_lib.book.runs import BookRun
from collapse_lib.book.viewer import SCRIPT, surprise_level, viewer, viewer_data, viewer_records, viewer_script
from collapse_lib.experiment.files import read_text, write_text
from collapse_lib.experiment.paths import project_root
from collapse_lib.experiment.run import Run

STATIC = project_root() / "book" / "_static"
HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>"
BEGINNING = "One sunny day, Lily lost her red ball in the park. Her"
WRITTEN = {1: [" dad", " helped", " her", " look", " for", " it."], 2: [" dad", " zqx", HOSTILE], 3: [" \u202edad", "\x00", " & <b>bold</b>"]}


@pytest.fixture
def shown(tmp_path, monkeypatch) -> BookRun:
    """Three generations of a run on the small grammar that recorded continuations."""
    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path))
    folder = write_run(tmp_path, "made-up", 3)
    protocol = Run.open("made-up").protocol.with_changes({"corpus.source": "grammar", "corpus.grammar": "small"})
    write_text(folder / "protocol.yaml", protocol.to_yaml())
    run = BookRun(Run.open("made-up"), {n: {s: _results(folder, n, s) for s in ("sample", "perplexity")} for n in (1, 2, 3)})
    for generation, pieces in WRITTEN.items():
        one = {"pieces": pieces, "losses": [0.25 * place for place in range(len(pieces))], "ended": generation == 1}
        beginnings = [one | {"beginning": ""}, one | {"beginning": BEGINNING}, one | {"beginning": "Nobody knows"}]
        run.results[generation]["continuations"] = {"examples": {"continuations": beginnings}}
    return run


def _results(folder: Path, generation: int, step: str) -> dict:
    return json.loads(read_text(folder / f"generation-{generation:02d}" / "metrics" / f"{step}.json"))


def test_levels_go_from_expected_to_impossible():
    assert [surprise_level(loss) for loss in (0.0, 0.49, 0.5, 3.0, 6.9, 7.0, math.inf, None)] == list("00123456")


def test_what_is_shown_of_a_run(shown):
    made_from = {file.stem for file in viewer_records(shown)}
    assert {"protocol", "continuations", "perplexity"} <= made_from and "sample" not in made_from
    data = viewer_data(shown)
    assert data["generations"] == [1, 2, 3] and len(data["number"]["values"]) == len(data["number"]["said"]) == 3
    laws = [(one["text"], [*one["continuations"][0]["surprise"]]) for one in data["beginnings"]]
    assert laws == [("", ["grammar", "first"]), (BEGINNING, ["grammar", "first"]), ("Nobody knows", ["first"])]
    legal, broken, _ = data["beginnings"][1]["continuations"]
    assert set(legal["surprise"]["grammar"]["levels"]) <= set("0123") and legal["ended"]
    by_grammar = broken["surprise"]["grammar"]
    assert by_grammar["levels"][1:] == "56" and by_grammar["losses"][1:] == [None, None] and broken["nonwords"][:2] == "01"
    by_first = data["beginnings"][2]["continuations"][0]["surprise"]["first"]
    assert by_first["losses"] == [0.0, 0.2, 0.5, 0.8, 1.0, 1.2] and by_first["levels"] == "001111"


def test_a_run_without_the_step_shows_its_samples_untinted(shown):
    for generation in (1, 2, 3):
        del shown.results[generation]["continuations"]
    shown.results[3]["completions"] = {"examples": {"completions": [["Nobody had", " a cat."]]}}
    assert "sample" in {file.stem for file in viewer_records(shown)}
    free, completed = viewer_data(shown)["beginnings"]
    assert free["text"] == "" and "".join(free["continuations"][0]["pieces"]) == shown.samples(1)[0]
    assert completed["continuations"][:2] == [None, None] and completed["continuations"][2]["pieces"] == [" a", " cat", "."]
    assert completed["continuations"][2]["surprise"] == {}, "the grammar does not begin so, and generation 1 was not asked"
    assert [*free["continuations"][0]["surprise"]] == ["grammar"], "the grammar need not have been asked at the time"


def test_no_text_leaves_the_data(shown):
    script = viewer_script([shown])
    fragment = viewer([shown], script)
    assert "\n\n" not in fragment, "Markdown would end the fragment at a blank line"
    assert re.findall(r"<script[^>]*>", fragment)[0].startswith('<script defer src="viewer-data.js?v=') and fragment.count("<script") == 1
    assert "stolen" not in fragment and "<" not in script and "stolen" in script and script.count("\n") == 1
    (data,) = json.loads(script.removeprefix("window.collapseViewer = ").removesuffix(";\n"))
    assert data["beginnings"][0]["continuations"][1]["pieces"][2] == HOSTILE
    assert data["beginnings"][0]["continuations"][2]["pieces"][:2] == [" ⟨U+202E⟩dad", "⟨U+0000⟩"], "what has no shape is named"


def test_style_and_script_are_small_and_ask_nobody():
    for name in ("viewer.js", "viewer.css"):
        text = (STATIC / name).read_text(encoding="utf-8")
        assert len(text.encode()) < 10_000 and "innerHTML" not in text
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.mark.browser
def test_in_a_browser_keys_move_the_generation_and_texts_stay_texts(browser, shown, tmp_path):
    from selenium.webdriver.common.keys import Keys

    controls, style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("controls.css", "viewer.css", "viewer.js"))
    viewport = '<meta name="viewport" content="width=device-width">'
    head = f'<!doctype html><meta charset="utf-8">{viewport}<style>{controls}{style}</style><script>{script}</script>'
    data = viewer_script([shown])
    write_text(tmp_path / SCRIPT, data)
    write_text(tmp_path / "page.html", f"{head}<body>{viewer([shown], data)}</body>")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
    browser.get((tmp_path / "page.html").as_uri())

    def texts() -> tuple[str, str]:
        return tuple(browser.execute_script("return ['generation', 'text'].map(name => document.querySelector(`.viewer-${name}`).textContent)"))

    slider = browser.find_element("css selector", ".viewer-slider")
    assert slider.accessible_name.startswith("Generation")
    assert texts() == ("1", "".join(WRITTEN[1]) + " ■")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert texts() == ("2", "".join(WRITTEN[2]) + " …")
    slider.send_keys(Keys.END)
    assert texts()[0] == "3" and " & <b>bold</b>" in texts()[1]
    slider.send_keys(Keys.HOME)
    assert texts()[0] == "1"
    browser.find_element("css selector", ".viewer-beginning").send_keys(Keys.ARROW_DOWN)
    assert texts() == ("1", BEGINNING + "".join(WRITTEN[1]) + " ■")
    play = browser.find_element("css selector", ".viewer-play")
    play.send_keys(Keys.ENTER)
    assert play.get_attribute("aria-pressed") == "true"
    play.send_keys(Keys.ENTER)
    assert play.get_attribute("aria-pressed") == "false"
    assert browser.execute_script("return window.stolen === undefined && !document.querySelector('.viewer-text :is(img, script, b)')")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    marks = "return [...document.querySelectorAll('.viewer-text span')].map(piece => piece.className)"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert browser.execute_script(marks) == ["viewer-given", "s1", "s5 nonword", "s6 nonword", "viewer-given"]
    browser.find_element("css selector", ".viewer-law").send_keys(Keys.ARROW_DOWN)
    assert browser.execute_script(marks) == ["viewer-given", "s0", "s0 nonword", "s1 nonword", "viewer-given"]
