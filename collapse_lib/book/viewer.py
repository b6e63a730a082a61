"""The viewer of the landing page: one beginning, and what each generation makes of it, tinted by how surprising it is to the truth.

Its controls are an HTML fragment. Its data, one JSON literal in a script that does nothing else, are fetched while the page is already there to be
read; ``book/_static/viewer.js`` puts the texts in as text, never as HTML.
"""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from collapse_lib.book.runs import BookRun
from collapse_lib.book.wording.numbers import number
from collapse_lib.metrics.surprise import in_non_words, law_losses
from collapse_lib.text.display import visible
from collapse_lib.text.grammar import StoryGrammar

EDGES = (0.5, 2.0, 4.0, 7.0)  # nats: a piece of probability 0.61, 0.14, 0.018, 0.0009
IMPOSSIBLE, BEYOND = "5", "6"  # levels beside the digits 0 to 4 of ``EDGES``
SCRIPT = "viewer-data.js"  # at the root: what lies in _static, every page would load
BEGINNINGS = 4  # that are shown of a run whose generations completed beginnings before there was a step ``continuations``
PIECES = re.compile(r"\s*(?:\w+|[^\w\s]+)|\s+")

Continuation = dict[str, Any]
Law = Callable[[str], Sequence[float]]  # the logarithm of the probability of every beginning of a text


def viewer(runs: Sequence[BookRun], script: str) -> str:
    """The viewer of some runs as an HTML fragment without blank lines, which Markdown takes as it is; ``script`` is its ``viewer_script``."""
    choice = "".join(f"<option>{html.escape(run.name)}</option>" for run in runs)
    version = hashlib.sha256(script.encode()).hexdigest()[:8]  # a browser that has read an earlier book asks for this one's
    return FRAGMENT.format(runs=choice, hidden=" hidden" if len(runs) == 1 else "", source=f"{SCRIPT}?v={version}")


def viewer_script(runs: Sequence[BookRun]) -> str:
    """The data of the viewer of some runs as a script, which is kept under the name ``SCRIPT``."""
    data = json.dumps([viewer_data(run) for run in runs], separators=(",", ":"))
    for sign in "<>&":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return f"window.collapseViewer = {data};\n"


def viewer_records(run: BookRun) -> list[Path]:
    """The files that ``viewer_data`` is made from."""
    read = ("continuations", "perplexity", "exact") if _are_continued(run) else ("sample", "completions", "perplexity", "exact")
    steps = [run.step(generation, name) for generation in run.models for name in read if name in run.results[generation]]
    return [run.run.folder / "protocol.yaml", *(step.metrics_file for step in steps)]


def viewer_data(run: BookRun) -> dict[str, Any]:
    """What the viewer shows of a run: its ``generations``, one ``number`` of each, and ``beginnings`` with a continuation, or None, of each.

    A continuation has ``pieces``, for each of them a character of ``nonwords`` (1 in words that are none), ``ended``, and ``surprise``: by whose it
    is, the grammar's exact law ("grammar", where that allows the beginning) or generation 1 ("first", where it was recorded), ``losses`` (nats; None
    where there is no finite one) and a character of ``levels`` (see ``surprise_level``) a piece.
    """
    generations = run.models
    by_beginning = _continued(run) if _are_continued(run) else _excerpts(run)
    law = StoryGrammar(run.protocol.corpus.grammar).log_prefix_probabilities if run.protocol.corpus.source == "grammar" else None
    return {
        "run": run.name,
        "generations": generations,
        "number": _number(run),
        "beginnings": [_beginning(text, of_text, law) for text, of_text in by_beginning.items()],
    }


def surprise_level(loss: float | None) -> str:
    """0 (expected) to 4 (all but impossible), 5 where the law rules the piece out, 6 behind that."""
    if loss is None:
        return BEYOND
    return IMPOSSIBLE if loss == math.inf else str(bisect_right(EDGES, loss))


def _are_continued(run: BookRun) -> bool:
    return all("continuations" in run.results[generation] for generation in run.models)


def _continued(run: BookRun) -> dict[str, list[Continuation | None]]:
    recorded = [run.results[generation]["continuations"]["examples"]["continuations"] for generation in run.models]
    return {of_one[0]["beginning"]: list(of_one) for of_one in zip(*recorded, strict=True)}


def _excerpts(run: BookRun) -> dict[str, list[Continuation | None]]:
    """Of a run without the step ``continuations``: the first sample of each generation, and completions where there are some."""
    found: dict[str, list[Continuation | None]] = {"": [_cut(samples[0]) if (samples := run.samples(each)) else None for each in run.models]}
    for place, generation in enumerate(run.models):
        pairs = run.results[generation].get("completions", {}).get("examples", {}).get("completions", [])
        for beginning, text in pairs[:BEGINNINGS]:
            found.setdefault(beginning, [None] * len(run.models))[place] = _cut(text)
    return found


def _cut(text: str) -> Continuation:
    return {"pieces": PIECES.findall(text), "losses": None, "ended": False}


def _beginning(text: str, continuations: Sequence[Continuation | None], law: Law | None) -> dict[str, Any]:
    return {"text": visible(text, keep="\n\t"), "continuations": [one and _shown(text, one, law) for one in continuations]}


def _shown(beginning: str, one: Continuation, law: Law | None) -> Continuation:
    pieces = one["pieces"]
    surprise = {"grammar": law_losses(beginning, pieces, law) if law else None, "first": one["losses"]}
    return {
        "pieces": [visible(piece, keep="\n\t") for piece in pieces],
        "surprise": {whose: _tints(losses) for whose, losses in surprise.items() if losses is not None},
        "nonwords": "".join(str(int(is_in)) for is_in in in_non_words(beginning, pieces)),
        "ended": one["ended"],
    }


def _tints(losses: Sequence[float | None]) -> dict[str, Any]:
    rounded = [None if loss is None or loss == math.inf else abs(round(loss, 1)) for loss in losses]  # abs: a sure piece may come out as -0.0
    return {"levels": "".join(map(surprise_level, losses)), "losses": rounded}


def _number(run: BookRun) -> dict[str, Any]:
    """The measure beside the text: excess loss where the law is known, else perplexity."""
    is_exact = all("exact" in run.results[generation] for generation in run.models)
    step, name, label = (
        ("exact", "excess_loss", "Excess loss, nats a story") if is_exact else ("perplexity", "perplexity", "Perplexity on validation stories")
    )
    values = [value for _, value in run.series(step, name)]
    return {"label": label, "values": values, "said": [number(value) for value in values]}


FRAGMENT = """<div class="viewer" role="group" aria-label="A text by generation">
<div class="controls">
<label{hidden}>Run <select class="viewer-run">{runs}</select></label>
<label>Surprise of <select class="viewer-law"></select></label>
<label class="viewer-beginning-label">Beginning <select class="viewer-beginning"></select></label>
<label>Generation <span class="viewer-generation controls-setting"></span>
<input class="viewer-slider" type="range" min="0" step="1" value="0"></label>
<button class="viewer-play" type="button" aria-pressed="false">Play</button>
</div>
<div class="viewer-body">
<blockquote class="viewer-text sample"></blockquote>
<div class="viewer-number"><span class="viewer-label"></span> <strong class="viewer-value" aria-live="polite"></strong>
<svg viewBox="0 0 200 90" role="img"></svg></div>
</div>
<p class="viewer-legend"></p>
<noscript>The viewer needs JavaScript; the same texts are on the pages of the generations.</noscript>
<script defer src="{source}"></script>
</div>
"""
