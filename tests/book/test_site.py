"""The built book in a real browser: Chromium reads it as a reader would, from a server's root, from a sub-path and from the disk.

The site is the one that ``COLLAPSE_SITE`` names, else ``book/_build/html``, else one made here from a ``smoke`` run.
"""

from __future__ import annotations

import functools
import http.server
import io
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import numpy as np
import pytest

from collapse_lib.book.build import build
from collapse_lib.experiment.execute import environment
from collapse_lib.experiment.paths import project_root

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--allow-file-access-from-files",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what a page asks of another host would fail here as it does offline
)
MATH_IS_DRAWN = """
const ready = window.MathJax && MathJax.startup && MathJax.startup.promise;
if (ready && !window.mathDrawn) ready.then(() => { window.mathDrawn = true; });
return window.mathDrawn || !document.querySelector('script[src*="mathjax"]');
"""
DESKTOP, PHONE = (1400, 1000), (390, 844)


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    chosen = Path(os.environ.get("COLLAPSE_SITE", project_root() / "book" / "_build" / "html"))
    if (chosen / "index.html").is_file():
        return chosen.resolve()
    with environment({"COLLAPSE_RUNS": str(request.getfixturevalue("finished_runs"))}):
        return build(["smoke"], tmp_path_factory.mktemp("book")).path.parent


@pytest.fixture(scope="session")
def pages(site: Path) -> list[str]:
    """Every page of the book, by its path inside the site."""
    found = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    return [page for page in found if not page.startswith("_") and page not in ("genindex.html", "search.html")]


@pytest.fixture(scope="session")
def bases(site: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses of the same site: a server's root, a folder on a server, the disk."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    above = tmp_path_factory.mktemp("server")
    (above / "a" / "sub").mkdir(parents=True)
    (above / "a" / "sub" / "path").symlink_to(site)
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder)) for folder in (site, above)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    root, sub = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    yield {"root": f"{root}/", "sub-path": f"{sub}/a/sub/path/", "file": f"{site.as_uri()}/"}
    for server in servers:
        server.shutdown()


class Reader:
    """A browser that opens pages, waits until they are drawn and remembers what they asked for."""

    def __init__(self, driver: Any):
        self.driver = driver
        self.requests: list[str] = []
        self.failures: list[str] = []

    def open(self, address: str, size: tuple[int, int] = DESKTOP, dark: bool = False) -> None:
        width, height = size
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get("about:blank")  # what the last page still asks for ends here, and the next is loaded afresh
        self._listen()
        self.requests, self.failures = [], []
        self.driver.get(address)
        self.until("return document.readyState === 'complete'")
        self.until(MATH_IS_DRAWN)
        self._listen()

    def until(self, script: str, seconds: float = 20.0) -> Any:
        """Run a script again and again until it returns something true."""
        deadline = time.monotonic() + seconds
        while not (found := self.driver.execute_script(script)):
            assert time.monotonic() < deadline, f"never became true: {script}"
            time.sleep(0.05)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> list[Any]:
        return self.driver.find_elements("css selector", selector)

    def pixels(self, element: Any) -> np.ndarray:
        """What an element looks like: [height, width, 3]."""
        from PIL import Image

        self.run("arguments[0].scrollIntoView({block: 'center'})", element)
        return np.asarray(Image.open(io.BytesIO(element.screenshot_as_png)).convert("RGB"))

    def _listen(self) -> None:
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            details = message["params"]
            if message["method"] == "Network.requestWillBeSent":
                self.requests.append(details["request"]["url"])
            elif message["method"] == "Network.responseReceived" and details["response"]["status"] >= 400:
                self.failures.append(f"{details['response']['status']} {details['response']['url']}")
        self.failures += [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs the programs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield Reader(driver)
    driver.quit()


def _some(pages: list[str]) -> list[str]:
    """One page of each kind."""
    kinds = ("index.html", "experiment.html", "figures/figure_1", "figures/figure_2", "/generation-01.html", "/index.html")
    return [next(page for page in pages if page.startswith(kind) or (kind.startswith("/") and page.endswith(kind))) for kind in kinds]


def test_every_local_link_leads_somewhere(site: Path, pages: list[str]) -> None:
    from bs4 import BeautifulSoup

    broken = set()
    for page in pages:
        soup = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")
        for element in soup.find_all(["a", "img", "script", "link"]):
            address = element.get("href") or element.get("src")
            if not address or urlparse(address).scheme or address.startswith("#"):
                continue
            target = unquote(urlparse(urldefrag(urljoin(f"/{page}", address)).url).path).lstrip("/")
            if not (site / target).exists():
                broken.add(f"{page} -> {address}")
    assert not broken


@pytest.mark.parametrize("way", ["root", "sub-path", "file"])
def test_no_page_asks_another_host_or_is_wider_than_a_phone(reader: Reader, bases: dict[str, str], pages: list[str], way: str) -> None:
    base = bases[way]
    for page in (*(pages if way == "root" else _some(pages)), "search.html?q=perplexity"):
        reader.open(base + page, size=PHONE)
        elsewhere = [request for request in reader.requests if not request.startswith((base, "data:", "blob:", "about:"))]
        assert reader.requests and not elsewhere, f"{page} asks for {elsewhere}"
        assert not reader.failures, f"{page}: {reader.failures}"
        width = reader.run("return document.documentElement.scrollWidth")
        assert width <= PHONE[0], f"{page} is {width} px wide"


@pytest.mark.parametrize("way", ["root", "sub-path", "file"])
def test_formulas_are_drawn(reader: Reader, bases: dict[str, str], way: str) -> None:
    reader.open(bases[way] + "experiment.html")
    written = len(reader.find(".math"))
    drawn = reader.run(
        "return [...document.querySelectorAll('mjx-container')].map(box => [box.getBoundingClientRect().width, box.querySelectorAll('path').length])"
    )
    assert written >= 5 and len(drawn) >= written
    assert all(width > 3 and paths for width, paths in drawn)
    assert not reader.find("mjx-merror, [data-mjx-error]")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_figures_are_visible_and_not_blank(reader: Reader, bases: dict[str, str], pages: list[str], dark: bool) -> None:
    seen = 0
    for page in _some(pages):
        reader.open(bases["root"] + page, dark=dark)
        for image in reader.find("article img"):
            assert image.is_displayed() and image.get_attribute("alt"), f"{page}: {image.get_attribute('src')}"
            assert reader.run("return arguments[0].complete && arguments[0].naturalWidth > 0", image)
            shades = reader.pixels(image)
            assert len(np.unique(shades.reshape(-1, 3), axis=0)) > 20 and shades.std() > 5, f"{page}: {image.get_attribute('src')} is blank"
            assert np.median(shades) > 180, "plots have dark lines: they need a light ground in both themes"
            seen += 1
    assert seen >= 6


def test_interactive_views_are_drawn_and_answer(reader: Reader, bases: dict[str, str], pages: list[str]) -> None:
    for way in ("root", "file"):
        for figure in ("figures/figure_1", "figures/figure_2"):
            reader.open(bases[way] + next(page for page in pages if page.startswith(figure)))
            plots = reader.until(
                "const plots = [...document.querySelectorAll('.js-plotly-plot')];"
                "return plots.length && plots.every(plot => plot.querySelector('.scatterlayer .trace path.js-line')) && plots"
            )
            for plot in plots:
                assert plot.size["width"] > 300 and plot.size["height"] > 200
                assert len(np.unique(reader.pixels(plot).reshape(-1, 3), axis=0)) > 20
    hidden = "Plotly.restyle(document.querySelector('.js-plotly-plot'), {visible: 'legendonly'}); return true"
    assert reader.run(hidden)
    reader.until("return !document.querySelector('.js-plotly-plot').querySelector('.scatterlayer .trace')")


def test_the_knobs_of_the_proof_turn(reader: Reader, bases: dict[str, str], pages: list[str]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    curves = "return JSON.stringify(document.querySelector('.js-plotly-plot').data.map(curve => curve.y))"
    chapters = [page for page in pages if page.startswith("theory/")]
    assert len(chapters) == 6
    for page in chapters:
        reader.open(bases["root"] + page)
        rail = reader.until("return document.querySelector('.js-plotly-plot .slider-rail-touch-rect')")
        reader.run("arguments[0].scrollIntoView({block: 'center'})", rail)
        shown = []
        for share in (-0.45, 0.45):
            ActionChains(reader.driver).move_to_element_with_offset(rail, int(share * rail.size["width"]), 0).click().perform()
            time.sleep(0.3)  # the knob glides
            shown.append(reader.run(curves))
        assert shown[0] != shown[1], page


@pytest.mark.parametrize("way", ["root", "file"])
def test_search_finds_perplexity(reader: Reader, bases: dict[str, str], site: Path, way: str) -> None:
    from selenium.webdriver.common.keys import Keys

    reader.open(bases[way] + "index.html")
    reader.until("return document.querySelector('.search-button-field, .search-button__button')")
    next(button for button in reader.find(".search-button-field, .search-button__button, .search-button") if button.is_displayed()).click()
    field = reader.until("return [...document.querySelectorAll('input[type=search]')].find(field => field.offsetParent)")
    field.send_keys("perplexity" + Keys.ENTER)
    reader.until("return location.href.includes('q=perplexity') && document.querySelector('#search-results li a')")
    found = [link.get_attribute("href") for link in reader.find("#search-results li a")]
    assert len(found) >= 3 and all(address.startswith(bases[way]) for address in found)
    page = unquote(urlparse(found[0]).path)[len(unquote(urlparse(bases[way]).path)) :]
    assert "perplexity" in (site / page).read_text(encoding="utf-8").lower()


def test_next_and_previous_lead_through_the_whole_book(reader: Reader, bases: dict[str, str], pages: list[str]) -> None:
    here, seen = "index.html", []
    reader.open(bases["root"] + here)
    while True:
        seen.append(here)
        reader.until("return document.readyState == 'complete' && document.querySelector('.prev-next-area')")
        before = reader.find(".prev-next-area a.left-prev")
        assert [link.get_attribute("href") for link in before] == [bases["root"] + page for page in seen[-2:-1]]
        after = reader.find(".prev-next-area a.right-next")
        if not after:
            break
        here = after[0].get_attribute("href").removeprefix(bases["root"])
        reader.driver.get(bases["root"] + here)
    assert sorted(seen) == pages


def test_sidebar_leads_to_pages_and_shows_where_one_is(reader: Reader, bases: dict[str, str]) -> None:
    reader.open(bases["root"] + "index.html")
    for title in ("Glossary", "Paper against released code"):
        link = next(link for link in reader.find(".bd-sidebar-primary nav a") if link.text.strip() == title)
        link.click()
        reader.until(f"return document.readyState === 'complete' && document.querySelector('h1').textContent.startsWith('{title}')")
        assert [current.text.strip() for current in reader.find(".bd-sidebar-primary li.current.active > a")] == [title]


def test_light_and_dark_can_both_be_read(reader: Reader, bases: dict[str, str]) -> None:
    grounds = {}
    for dark in (False, True):
        reader.open(bases["root"] + "index.html", dark=dark)
        for selector in (
            "article p",
            "article h1",
            "article figcaption .caption-text",
            "blockquote.sample",
            "article td",
            ".bd-sidebar-primary nav a",
        ):
            ground, ink = reader.run(GROUND_AND_INK, selector)
            lighter, darker = sorted((_luminance(ground), _luminance(ink)), reverse=True)
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5, f"{selector} is hard to read in {'dark' if dark else 'light'}: {ink} on {ground}"
        grounds[dark] = _luminance(reader.run(GROUND_AND_INK, "article p")[0])
    assert grounds[False] > 0.8 and grounds[True] < 0.1


GROUND_AND_INK = """
const element = document.querySelector(arguments[0]);
const rgba = text => (text.match(/[\\d.]+/g) || []).map(Number);
let ground = element;
while (ground.parentElement && rgba(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
return [rgba(getComputedStyle(ground).backgroundColor), rgba(getComputedStyle(element).color)];
"""


def _luminance(colour: list[float]) -> float:
    channels = [value / 255 for value in colour[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_no_page_is_wider_than_a_desktop(reader: Reader, bases: dict[str, str], pages: list[str]) -> None:
    for page in _some(pages):
        reader.open(bases["root"] + page)
        assert reader.run("return document.documentElement.scrollWidth") <= DESKTOP[0], page


def test_a_phone_reaches_the_other_pages(reader: Reader, bases: dict[str, str]) -> None:
    reader.open(bases["root"] + "index.html", size=PHONE)
    on_screen = """
        return [...document.querySelectorAll('nav a')].filter(link => link.textContent.trim() === 'Glossary').some(
            link => link.offsetParent && link.getBoundingClientRect().right > 0)
    """
    assert not reader.run(on_screen)
    next(button for button in reader.find(".primary-toggle") if button.is_displayed()).click()
    reader.until(on_screen)
