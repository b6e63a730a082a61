"""Interactive figures on pages: the script draws all that the figures ask for, and answers to keys; in a real browser, without a book around it."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from headless import headless_chromium
from synthetic_runs import EVALUATED, write_run

from collapse_lib import figures
from collapse_lib.experiment.files import write_text
from collapse_lib.experiment.paths import project_root
from collapse_lib.figures import Curve, Interactive
from collapse_lib.studies import results, twins

STATIC = project_root() / "book" / "_static"
HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 1'>"
DRAWN = {
    "data": {
        *("type", "name", "x", "y", "mode", "line.color", "line.dash", "line.width", "marker.color", "marker.symbol", "marker.size"),
        *("marker.pattern.shape", "error_y.array", "error_y.arrayminus", "hovertemplate", "customdata", "legendgroup", "showlegend", "yaxis"),
    },
    "layout": {
        *("xaxis.title.text", "yaxis.title.text", "yaxis2.title.text", "xaxis.range", "yaxis.range", "xaxis.type", "yaxis.type"),
        *(
            "xaxis.autorange",
            "yaxis.autorange",
            "yaxis.rangemode",
            "yaxis2.rangemode",
            "showlegend",
            "legend.title.text",
            "title.text",
            "barmode",
            "sliders",
            "updatemenus",
        ),
    },
}
LOOKS = {  # what Plotly needs in Jupyter, and pages have their own way of
    "data": {"error_y.type", "error_y.thickness", "error_y.width"},
    "layout": {
        *("paper_bgcolor", "plot_bgcolor", "font", "margin", "height", "hovermode", "legend.orientation", "legend.x", "legend.y", "legend.yanchor"),
        *("legend.traceorder", "title.x", "title.font", "yaxis2.side", "yaxis.side", "yaxis.overlaying", "yaxis.tickmode"),
        *(f"{axis}.{what}" for axis in ("xaxis", "yaxis", "yaxis2") for what in ("showline", "linecolor", "gridcolor", "zeroline", "showgrid")),
        *(f"{axis}.{what}" for axis in ("xaxis", "yaxis") for what in ("dtick", "exponentformat")),
    },
}
INTERACTIVE = {
    name: function
    for name, function in vars(figures).items()
    if inspect.isfunction(function) and inspect.signature(function).return_annotation == "Interactive"
}


def asked(value: Any, path: str = "") -> Iterator[str]:
    """The paths of a JSON object, down to lists and plain values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from asked(inner, f"{path}.{name}" if path else name)
    else:
        yield path


def embedded(made: Interactive) -> dict[str, Any]:
    return json.loads(re.fullmatch(r'<div class="chart" id="[^"]+"><script type="application/json">(.*)</script></div>', made.html)[1])


@pytest.mark.parametrize("name", INTERACTIVE)
def test_the_script_draws_all_that_a_figure_asks_for(name, tmp_path, monkeypatch):
    example = re.search(r"Example: ``(.*)``", INTERACTIVE[name].__doc__)[1].partition(".save(")[0]
    if INTERACTIVE[name].__module__.endswith((".exact", ".texture")):
        monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
        write_run(tmp_path / "runs", "demo", 4, steps=EVALUATED)
    else:
        monkeypatch.setenv("COLLAPSE_RUNS", str(project_root() / "papermill_runs"))
        example = example.replace('"demo"', '"tinystories-small"')
    figure = embedded(eval(example, {"figures": figures, "results": results, "twins": twins}))
    kinds = {"data": {path for trace in figure["data"] for path in asked(trace)}, "layout": set(asked(figure["layout"]))}
    for kind, paths in kinds.items():
        known = DRAWN[kind] | LOOKS[kind]
        assert not [path for path in paths if not any(f"{path}.".startswith(f"{part}.") for part in known)], f"{kind} of {name}"
    for slider in figure["layout"].get("sliders", []):
        assert {step["method"] for step in slider["steps"]} == {"restyle"}
        assert {path for step in slider["steps"] for path in step["args"][0]} <= DRAWN["data"]
    for menu in figure["layout"].get("updatemenus", []):
        assert {button["method"] for button in menu["buttons"]} == {"update"}
        assert {path for button in menu["buttons"] for path in button["args"][0]} <= DRAWN["data"]
        assert {path for button in menu["buttons"] for path in button["args"][1]} <= DRAWN["layout"]


def test_no_words_leave_the_data():
    made = figures.turn("hostile", "generations", {1: [Curve(HOSTILE, [1, 2], [1, 2])]}, "x", "y")
    assert re.findall(r"<script[^>]*>", made.html) == ['<script type="application/json">'] and made.html.count("</script>") == 1
    assert "<img" not in made.html and embedded(made)["data"][0]["name"] == HOSTILE


def test_script_and_style_are_small_and_ask_nobody():
    for name in ("chart.js", "chart.css", "controls.css"):
        text = (STATIC / name).read_text(encoding="utf-8")
        assert len(text.encode()) < 25_000 and "innerHTML" not in text
        assert set(re.findall(r"https?://[\w.]+", text)) <= {"http://www.w3.org"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with headless_chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser, tmp_path):
    """Opens a page with a figure, on a phone."""

    def opened(made: Interactive) -> Any:
        controls, style, script = ((STATIC / name).read_text(encoding="utf-8") for name in ("controls.css", "chart.css", "chart.js"))
        viewport = '<meta name="viewport" content="width=device-width">'
        head = f'<!doctype html><meta charset="utf-8">{viewport}<style>{controls}{style}</style><script>{script}</script>'
        write_text(tmp_path / "page.html", f"{head}<body>{made.html}</body>")
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True})
        browser.get((tmp_path / "page.html").as_uri())
        return browser

    return opened


def rows(browser: Any, script: str) -> Any:
    return browser.execute_script(f"return {script}")


@pytest.mark.browser
def test_a_knob_turns_by_keys_and_plays_where_time_passes(page):
    from selenium.webdriver.common.keys import Keys

    settings = {n: [Curve(f"at {n}: {HOSTILE}", [1, 2, 3], [n, 2 * n, 3 * n]), Curve("dots", [1, 2, 3], [3, 2, 1], "dots")] for n in (1, 5, 40)}
    browser = page(figures.turn("knob", "generations", settings, "x", "height", start=1))
    slider, line = browser.find_element("css selector", "input[type=range]"), "document.querySelector('.chart-line').getAttribute('d')"
    assert slider.accessible_name.startswith("generations") and slider.get_attribute("aria-valuetext") == "5"
    seen = [rows(browser, line)]
    for key, value in ((Keys.ARROW_RIGHT, "40"), (Keys.HOME, "1")):
        slider.send_keys(key)
        assert slider.get_attribute("aria-valuetext") == value
        seen.append(rows(browser, line))
    assert len(set(seen)) == 3 and len(rows(browser, "[...document.querySelectorAll('.chart-dot')].map(dot => dot.tagName)")) == 3
    picture = browser.find_element("css selector", "svg[role=img]")
    assert picture.get_attribute("aria-label").startswith("height against x, generations 1: at 1: </script>")
    play = browser.find_element("css selector", ".controls button")
    play.send_keys(Keys.ENTER)
    assert play.text == "Pause"
    slider.send_keys(Keys.END)
    assert play.text == "Play" and slider.get_attribute("aria-valuetext") == "40"
    assert rows(browser, "window.stolen === undefined && !document.querySelector('.chart img')")
    assert rows(browser, "document.documentElement.scrollWidth") <= 390
    sizes = rows(browser, "[...document.querySelectorAll('svg[role=img] text')].map(text => text.getBoundingClientRect().height)")
    assert sizes and min(sizes) >= 9
    assert not page(figures.turn("still", "real share", {0.1: settings[1]}, "x", "y")).find_elements("css selector", ".controls button")


@pytest.mark.browser
def test_a_list_of_views_and_the_legend_answer(page, tmp_path, monkeypatch):
    from selenium.webdriver.common.keys import Keys

    monkeypatch.setenv("COLLAPSE_RUNS", str(tmp_path / "runs"))
    for name in ("one", "other"):
        write_run(tmp_path / "runs", name, 4)
    browser = page(figures.figure_1_interactive(results.load("one,other")))
    title = "document.querySelector('svg[role=img]').getAttribute('aria-label')"
    before = rows(browser, title)
    browser.find_element("css selector", "select").send_keys(Keys.ARROW_DOWN)
    assert rows(browser, title).startswith("perplexity / that of the first generation") and not before.startswith("perplexity /")
    first = browser.find_element("css selector", ".chart-legend button")
    assert first.text == "one" and len(browser.find_elements("css selector", ".chart-line")) == 2
    first.send_keys(Keys.ENTER)
    assert len(browser.find_elements("css selector", ".chart-line")) == 1
    assert browser.switch_to.active_element.get_attribute("aria-pressed") == "false", "the key stays where it was"


@pytest.mark.browser
@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_points_stand_where_their_values_are(page, log):
    x, y = np.array([1.0, 10.0, 100.0]), np.array([0.01, 1.0, 5.0])
    browser = page(figures.turn("places", "knob", {1: [Curve("dots", x, y, "dots")]}, "x", "y", log=log))
    at = rows(browser, "[...document.querySelectorAll('.chart-dot')].map(dot => dot.getAttribute('transform').match(/[-\\d.]+/g).map(Number))")
    for axis, values, places in (("x", x, [place[0] for place in at]), ("y", y, [-place[1] for place in at])):
        wanted = np.log(values) if axis in log else values
        assert np.corrcoef(wanted, places)[0, 1] > 1 - 1e-5 and places == sorted(places)
