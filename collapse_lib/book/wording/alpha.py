"""The errors of the proof in tables and sentences, from what the step ``alpha`` measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from IPython.display import Markdown

from collapse_lib.book.wording.numbers import pipe_table
from collapse_lib.figures.alpha import ErrorSeries
from collapse_lib.text.display import literal


def attaining_tokens(measured: dict[str, Any]) -> Markdown:
    """Contexts with the token whose probability shrank most, in proportion; ``measured`` is what one step ``alpha`` returns."""
    rows = []
    for context, count, (first, *_) in zip(
        measured["examples"]["contexts"], measured["series"]["counts"], measured["examples"]["attaining"], strict=False
    ):
        ratio = first["before"] / first["now"]
        words = literal(context) if context else "*nothing: a story's beginning*"
        before, now = (f"{first[when]:.2g}" for when in ("before", "now"))
        rows.append((words, f"{count:,}", literal(first["token"]), before, now, f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"))
    return Markdown(pipe_table(("after", "stories that begin so", "token", "before", "now", "before / now"), rows, "lrlrrr"))


def attaining_by_generation(run: str) -> Markdown:
    """Which tokens the maximum of D_inf is about: their probability and rank before, generation by generation."""
    rows = []
    for record in ErrorSeries(run).records:
        probability, rank, unseen = (record["metrics"][f"attaining_{name}"]["value"] for name in ("probability", "rank", "unseen"))
        tokens = [first["token"] for first, *_ in record["examples"]["attaining"]]
        commonest = sorted(set(tokens), key=lambda token: (-tokens.count(token), token))[:3]
        rows.append((str(record["generation"]), f"{probability:.1g}", f"{rank:,.0f}", f"{unseen:.0%}", " ".join(map(literal, commonest))))
    return Markdown(pipe_table(("generation", "probability before", "rank before", "never follows there", "most often"), rows, "rrrrl"))


def errors_in_words(run: str) -> Markdown:
    """The last generation's numbers in sentences; each is true of the run that it is about."""
    errors = ErrorSeries(run)
    last, metrics = errors.records[-1]["generation"], errors.records[-1]["metrics"]
    contexts, accumulated, direct, moved_in_all = (metrics[name]["value"] for name in ("contexts", "accumulated", "initial_divergence", "initial_tv"))
    lines = [
        f"Run **{run}**, generation {last}, means over {contexts} counted contexts:\n",
        f"- the errors add up to {accumulated:.1f} nats, so that equation (3) leaves the initial corpus a weight of "
        f"w = 10<sup>{-accumulated / np.log(10):.1f}</sup> (geometric mean);",
        f"- the share of p₀ that the model can still contain is w* = {np.exp(-direct):.2g} (geometric mean), which is "
        f"10<sup>{(accumulated - direct) / np.log(10):.1f}</sup> times as much;",
        f"- the distribution itself has moved a total variation of {moved_in_all:.3f} from p₀.",
    ]
    values, counted = errors.shared("tv", "drift_tv", since=last) if last > 1 else (np.empty(0), "")
    if values.size:
        moved, expected = values.mean(axis=(1, 2))
        than = "less than" if moved < expected else "more than"
        lines.append(
            f"- in this generation it moved {moved:.3f} over the {counted} that came up in the text before it, {than} "
            f"the {expected:.3f} by which drawing as many stories would have moved a model that only counts."
        )
    return Markdown("\n".join(lines))
