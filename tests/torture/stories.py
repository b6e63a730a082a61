"""Stories that attack the book, through the whole pipeline: trained on, written again by a model, shown on every page, and still text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from torture.campaign import Case, Outcome
from torture.watched import python

TITLE = "Hostile stories"
# Each ends with words by which its pages are found. SECRET is a file of this machine, of which nothing may be shown.
STORIES = {
    "line ends, Jinja and an inclusion": "Tim ran.\r\r![x](http://evil.example/p.png)\r\rPID {{ cycler.__init__.__globals__.os.getpid() }} end."
    "\r\r```{raw} html\r:file: SECRET\r```\r\r{{ 271828 * 31337 }} Bye.",
    "HTML of every kind": "Tim ran. <script src='http://evil.example/x.js'></script><img src=x onerror='window.stolen=1'><iframe src='http://evil.example/'>"
    "</iframe><svg onload=window.stolen=1><style>@import 'http://evil.example/y.css'</style><a href='http://evil.example/'>Bye.</a>",
    "MyST's directives and roles": "Tim ran.\n\n:::{include} SECRET\n:::\n\n```{eval-rst}\n.. include:: SECRET\n```\n\n{download}`x <SECRET>` "
    "{math}`\\href{javascript:window.stolen=1}{x}` [x](javascript:window.stolen=1)\n\n(target)=\n# A heading\n\n$$\\input{SECRET}$$ Bye.",
    "separators that only some take for line ends": "Tim ran.\u2028\u2028# Not a heading\u2029\u2029:::{include} SECRET\u0085:::\v\f"
    "<script>window.stolen=1</script>\u202e Bye.",
    "ends of what surrounds it": "Tim ran. --> ]]> </script></style></textarea></pre></code>`````` ''' \"\"\" \\end{document} %} }} #} "
    "</blockquote>\n\n<script>window.stolen=1</script> Bye.",
}
DESCRIPTION = "Of {{ 271828 * 31337 }} $x$ ```{raw} html"
BUILD = """
import sys
from pathlib import Path
from collapse_lib.book import build
build.build(["hostile"], Path(sys.argv[1]))
"""


def cases(place: Path, order: random.Random) -> list[Case]:
    names = list(STORIES)
    order.shuffle(names)
    return [Case("all at once", _attempt(list(STORIES.values()))), *(Case(name, _attempt([STORIES[name]])) for name in names)]


def _attempt(stories: list[str]) -> Callable[[Path], Outcome]:
    def attempt(scratch: Path) -> Outcome:
        said = site(scratch, stories)
        if said:
            return Outcome("broke", said)
        found = harm(scratch)
        return Outcome("used", "; ".join(found)) if found else Outcome("text")

    return attempt


def site(place: Path, stories: list[str]) -> str:
    """Make a run of such stories and the book of it, in ``place``; returns what was said if that went wrong."""
    secret = place / "secret.html"
    secret.write_text("<script>window.stolen = 1</script> the local file", encoding="utf-8")
    corpus = place / "stories.jsonl"
    told = [story.replace("SECRET", str(secret)) for story in stories]
    corpus.write_text("".join(json.dumps({"text": told[number % len(told)]}) + "\n" for number in range(600)), encoding="utf-8")
    changes = {"corpus.source": corpus, "corpus.stories": "null", "corpus.validation_source": corpus, "description": DESCRIPTION}
    options = [part for field, value in changes.items() for part in ("--set", f"{field}={value}")]
    variables = {"COLLAPSE_RUNS": str(place / "runs")}
    done = python(["-m", "collapse_lib", "run", "smoke", "--name", "hostile", "--generations", "1", *options], variables)
    if done.returncode == 0:
        done = python(["-c", BUILD, str(place)], variables)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def harm(place: Path) -> list[str]:
    """What of the stories' attacks took effect in the built book."""
    found, shown = [], 0
    for page in (place / "_build" / "html").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        shown += "Tim ran." in text  # as all of them begin; a page may show no more than a beginning
        for sign, what in {
            r"the local file": "a local file",
            r"8518274036": "a template's value",
            r"PID \d+": "a process's number",
            r"<(img|script|iframe|link|a|style|svg)\b[^>]*(evil\.example|window\.stolen|javascript:)": "an element",
            r"<script>\s*window\.stolen": "a script",
        }.items():
            if re.search(sign, text):
                found.append(f"{page.name}: {what}")
    return found if shown >= 2 else [*found, "the stories are not shown"]
