"""The rules of ``metrics.fate``, ``null_band`` and ``early_warning`` applied to the table of results: a label a run, and what it rests on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from collapse_lib.experiment.run import Run
from collapse_lib.metrics.early_warning import Departure, Series, early_warnings
from collapse_lib.metrics.fate import Fate, fate
from collapse_lib.metrics.null_band import Band, fresh_band, within_run_band
from collapse_lib.studies.results import measured, metric

if TYPE_CHECKING:
    from pandas import DataFrame

STEP = "texture"
ENTROPY, DISTINCT = "conditional_entropy", "block_distinct_2"  # the two that a fate is made of
# Measure -> the metric of the same step that counts the tokens of its sample.
SAMPLED_IN = {
    **dict.fromkeys((ENTROPY, DISTINCT, "context_information", "above_reference", "below_reference"), "unigram_entropy"),
    **dict.fromkeys(("self_bleu", "compression_ratio", "text_distance"), "compared_stories"),
}


def fresh_chains(table: DataFrame, run: str) -> list[str]:
    """The other runs of a table that differ from a run in nothing but the regime, which is ``fresh``, and the seed."""
    protocol, fresh = Run.open(run).protocol, []
    for other in table["run"].unique():
        theirs = Run.open(other).protocol
        differs = {name for name in protocol.differences(theirs) if name != "seed" and not name.startswith("regime.")}
        if other != run and theirs.regime.name == "fresh" and not differs:
            fresh.append(other)
    return fresh


def null_band(table: DataFrame, run: str, name: str) -> Band | None:
    """The band of a measure of step ``texture`` over a run's generations: from the table's fresh chains if there are any, else from the run itself.

    None where the run does not have the measure in each generation from the first on, or not the errors that a band of its own is made of.
    """
    points = metric(table, run, name, STEP)
    if points["generation"].tolist() != list(range(1, len(points) + 1)) or points.empty:
        return None
    values = [value for chain in fresh_chains(table, run) for value in metric(table, chain, name, STEP)["value"]]
    if len(values) > 1:
        return fresh_band(values, len(points))
    return within_run_band(points["value"], points["standard_error"]) if points["standard_error"].notna().all() else None


def fate_of(table: DataFrame, run: str) -> Fate | None:
    """The fate of one chain; None where it cannot be computed."""
    entropy, distinct = (null_band(table, run, name) for name in (ENTROPY, DISTINCT))
    if entropy is None or distinct is None or entropy.source != distinct.source:
        return None
    return fate(*(metric(table, run, name, STEP)["value"] for name in (ENTROPY, DISTINCT)), entropy, distinct)


def departures(table: DataFrame, run: str) -> list[Departure]:
    """When each measure of a run first leaves its band, the earliest first; without those that have no band or no count of their tokens."""
    bands, series = {}, {}
    for name in SAMPLED_IN:
        band, points = null_band(table, run, name), metric(table, run, name, STEP)
        if band is not None and points["standard_error"].notna().all() and (tokens := sample_tokens(run, name)):
            bands[name], series[name] = band, Series(points["value"], points["standard_error"], tokens)
    return early_warnings(series, bands)


def sample_tokens(run: str, name: str) -> int | None:
    """Of how many tokens a measure of generation 1 was taken; None where that was not counted."""
    return measured(run, 1, STEP)["metrics"][SAMPLED_IN[name]].get("counts", {}).get("tokens")
