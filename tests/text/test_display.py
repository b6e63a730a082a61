"""What notebooks show of results stays one table, whatever is written in a definition."""

from __future__ import annotations

import html
import io
import re
import tempfile
import unicodedata
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from collapse_lib.experiment.paths import project_root
from collapse_lib.figures.alpha import context_label
from collapse_lib.figures.style import styled
from collapse_lib.studies.results import measured
from collapse_lib.text.display import early_stopping, excerpts, figure_text, literal, metrics_table, plain, quotation, sentence

METRICS = {
    "metrics": {
        "ends_here": {"value": 0.25, "unit": "1", "definition": "share of '<|endoftext|>' | with $x$, *stars* and `ticks`", "standard_error": 0.01},
        "tokens": {"value": 1234, "unit": "<|tokens|>", "definition": "a_b ~ c^d"},
    }
}


def test_a_definition_cannot_split_its_row():
    rows = metrics_table(METRICS).data.split("\n")
    assert len(rows) == 4 and {row.count("|") for row in rows} == {5}
    assert rows[2].startswith("| ends here | 0.25 ± 0.01 |  | share of")
    for row, metric in zip(rows[2:], METRICS["metrics"].values(), strict=True):
        assert not re.search(r"[<*`$~^_]", row)
        assert html.unescape(row.split("|")[4].strip()) == metric["definition"]


def test_a_sentence_has_code_where_its_backticks_come_in_pairs():
    assert sentence("`replace` rises") == "<code>replace</code> rises"
    assert html.unescape(sentence("a ` b")) == "a ` b"
    assert "<script>" not in sentence("`<script>` <script>")


def test_plain_text_says_the_same():
    text = "a < b & 'c' | _d_ {e} [f](g) \\ $h$ ~i^"
    assert html.unescape(plain(text)) == text
    assert literal(" two\r\nlines") == '<span class="sample"> two &#9166; lines</span>' and "(nothing)" in literal("")
    assert quotation("two\r\rlines") == '<blockquote class="sample">two<br><br>lines</blockquote>'


# What has been tried against the pages, and signs that some parser between a text and its reader takes for its own.
ATTACKS = (
    "Tim ran.\r\r![x](http://evil.example/p.png)\r\rPID {{ cycler.__init__.__globals__.os.getpid() }}",
    "Tim ran.\r\r```{raw} html\r:file: /etc/hostname\r```\r\rBye.",
    "```{include} /etc/hostname\n```",
    "{% for x in y %}{{ x }}{% endfor %}{# gone #}",
    "<script>alert(1)</script><img src=x onerror=alert(1)><!-- <![CDATA[ &amp; &#60; &lt",
    "</span></blockquote></td></tr></table>",
    "[a]: http://evil.example\n\n[a] [^1] {ref}`x` {eval-rst}`y` <http://evil.example> http://evil.example",
    ":::{note}\nx\n:::\n\n+++\n\n% comment\n\n(label)=\n# Heading\n---\n",
    "    code\n\t1. one\n- two\n> three\n| four | five |\n|--|--|\n",
    "$x$ $$y$$ \\begin{equation} \\( \\$ **b** __b__ ~~s~~ ^p^ ==m== --- ... \"q\" 'q' \\",
)
SIGNS = "\r\n\t\0\x0b\x0c\x1b\x1c\x1d\x1e\x7f\x85\xa0\xad\u200b\u200d\u2028\u2029\u202e\u2066\ufeff\ud800\ue000\uffff"
SIGNS += "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ 10"
TEXTS = st.one_of(st.text(st.one_of(st.characters(exclude_categories=()), st.sampled_from(SIGNS)), max_size=60), st.sampled_from(ATTACKS))


def seen(text: str) -> str:
    """What a reader should see of a text."""
    named = {char: f"⟨U+{ord(char):04X}⟩" for char in text if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")}
    return "".join(named.get(char, char) for char in text)


LINE_ENDS = "\r\n?|\n"
ACTIVE = ("script", "img", "iframe", "object", "embed", "a", "form", "link", "style")


class Samples(HTMLParser):
    """Collects what a page shows inside its elements of class ``sample``, and what the page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.samples, self.active, self.inside, self.is_body = [], [], None, False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if ("class", "sample") in attrs:
            self.samples.append("")
            self.inside = tag
        elif self.inside and tag == "br":
            self.samples[-1] += "\n"
        elif self.inside or (self.is_body and tag in ACTIVE and ("class", "headerlink") not in attrs):
            self.active.append((tag, attrs))
        self.is_body = (self.is_body or ("role", "main") in attrs) and ("role", "navigation") not in attrs

    def handle_endtag(self, tag: str) -> None:
        self.inside = None if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.samples[-1] += data


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(TEXTS, min_size=20, max_size=40))
@example(list(ATTACKS))
@example([*SIGNS])
def test_any_text_comes_out_of_a_built_page_as_itself(texts):
    """Through the book's own parsers and extensions, in every place where pages put such text."""
    from sphinx.application import Sphinx

    book = yaml.safe_load((project_root() / "book" / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    rows = "\n".join(f"| {index} | {literal(text)} | {plain('a|b')} |" for index, text in enumerate(texts))
    parts = [
        excerpts(texts).data,
        f"| a | b | c |\n|:--|:--|--:|\n{rows}",
        "\n\n".join(map(quotation, texts)),
        *map(literal, texts),
        "\n".join(f"Term\n: {literal(text)}\n" for text in texts),
        ":::{dropdown} Title\n" + ", ".join(map(literal, texts)) + "\n:::",
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "index.md").write_text("# Page\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")
        chosen = {name: value for name, value in book.items() if name.startswith(("myst_", "smartquotes"))}
        chosen |= {"extensions": ["myst_nb", "sphinx_design", "sphinx_proof"], "nb_execution_mode": "off", "html_theme": "basic"}
        said = io.StringIO()
        Sphinx(folder, None, folder / "html", folder / "trees", "html", chosen, status=None, warning=said, freshenv=True).build()
        page = Samples()
        page.feed((folder / "html" / "index.html").read_text(encoding="utf-8"))
    lines = [seen(re.sub(LINE_ENDS, " ⏎ ", text)) or "(nothing)" for text in texts]
    blocks = ["\n".join(map(seen, re.split(LINE_ENDS, text))) or "(nothing)" for text in texts]
    assert page.samples == [*lines, *lines, *blocks, *lines, *lines, *lines]
    assert not page.active
    assert not [line for line in said.getvalue().splitlines() if "while setting up extension" not in line]  # said of every second Sphinx in a process


@settings(max_examples=40)
@given(TEXTS)
@example("$x$ \\$ $\\frac{1}$")
def test_any_text_comes_out_of_a_figure_as_itself(text):
    from matplotlib.figure import Figure

    with styled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its font lacks most of Unicode
        figure, file = Figure(), io.StringIO()
        figure.text(0, 0.5, f"a{figure_text(text)}b")
        figure.savefig(file, format="svg")
    [drawn] = [element.text for element in ElementTree.fromstring(file.getvalue()).iter("{http://www.w3.org/2000/svg}text")]
    assert drawn == f"a{seen(text)}b"


@given(TEXTS.filter(bool))
def test_plotly_gets_text_and_no_markup(text):
    name = context_label(text)
    assert html.unescape(name) == f"“{seen(text)}”"
    assert not re.search(r"[<>$%{]|&(?!#\d+;)", name)


@pytest.mark.parametrize(
    ("losses", "epochs", "said"),
    [
        ([4.1, 3.8, 3.61, 3.46], 4, r"^\*\*Cap reached, hold-out still falling by 0\.150 nats an epoch\*\*: `training\.max_epochs` = 4 ended"),
        ([4.1], 1, r"^\*\*Cap reached, hold-out still not seen to have stopped falling\*\*"),
        ([4.1, 3.8, 3.9], 2, r"^Early stopping: .* lowest after epoch 2, 3\.800 nats a token, and did not fall in the next\.$"),
        ([], 3, r"^No hold-out loss decided when to stop here: the epochs, 3, were given or had been decided in generation 1\.$"),
    ],
)
def test_what_ended_a_training_is_said(losses, epochs, said):
    assert re.search(said, early_stopping({"series": {"holdout_losses": losses}, "metrics": {"epochs": {"value": epochs}}}))


def test_the_committed_run_ran_into_its_cap():
    assert "still falling by 0.151 nats an epoch" in early_stopping(measured("tinystories-small", 1, "train"))
