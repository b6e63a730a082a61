"""How the errors of the proof look on real models, and what became of twins: drawn from what the step ``alpha`` kept, and from ``twins.json``.

A line is a mean or a median over contexts, the same ones in every generation. A band is the middle half of them, or one standard error over stories;
over counted contexts, which lie inside each other, there is no such error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.paper import COLOURS, Interactive, drawn, plotly_layout
from collapse_lib.studies.results import Runs, executed, measured, select

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

GREY = "#777777"
SHORT = 50.0  # highest over lowest value of a logarithmic axis that has few powers of ten to label
PAIR_LOOKS = {
    "twin": (COLOURS[1], "o", "another initial corpus, same seeds"),
    "both": (COLOURS[3], "^", "another initial corpus, other seeds"),
    "reseeded": (COLOURS[0], "s", "same initial corpus, other seeds"),
}

CONTRAST = (COLOURS[2], "D", "what another initial corpus adds: ▲ less ■")
SYMBOLS = {"o": "circle", "^": "triangle-up", "s": "square", "D": "diamond"}  # Plotly's names of these markers
TWIN_LOOKS = PAIR_LOOKS | {"excess_both": CONTRAST}

PLACES = {"chain": "at the chain's held-out stories", "twin": "at the twin's held-out stories"}
DISTANCES = {
    "tv": ("total variation", "total variation, next token"),
    "js": ("Jensen-Shannon divergence", "Jensen-Shannon divergence, next token (nats)"),
}
TEXTS_AXIS = "total variation, frequencies of tokens"


class Measured:
    """What the step ``alpha`` measured on a run: ``generations`` [G], and every series as an array [G, contexts].

    Raises ``UserError`` for a run on which it has not been executed yet.
    """

    def __init__(self, run: str):
        steps = executed([run])
        found = [] if steps.empty else sorted(steps[steps["step"] == "alpha"]["generation"].tolist())
        if not found:
            raise UserError(f"Run '{run}' has no finished step 'alpha' yet; `collapse run {run}` goes on with it.")
        self.run, self.generations = run, np.array(found)
        self.records = [measured(run, generation, "alpha") for generation in found]
        series = self.records[0]["series"]
        self.smoothing = [name.removeprefix("divergence_") for name in series if name.startswith("divergence_")]
        self.contexts: list[str] = self.records[0]["examples"]["contexts"]

    def __getitem__(self, name: str) -> NDArray[np.float64]:
        return self.since(1, name)

    def since(self, generation: int, name: str) -> NDArray[np.float64]:
        """A series from a generation on; not a number where a context has no value."""
        return np.array([record["series"][name] for record in self.records if record["generation"] >= generation], float)

    def __contains__(self, name: str) -> bool:
        return name in self.records[0]["series"]

    def same(self, *names: str, since: int = 1) -> tuple[NDArray[np.float64], str]:
        """Series [names, generations, contexts] at those contexts alone that have a value in each of these generations; and how many they are."""
        values = np.array([self.since(since, name) for name in names]).reshape(len(names), -1, len(self.contexts))
        there = np.isfinite(values).all(axis=(0, 1))
        return values[..., there], f"{there.sum()} of {len(there)} contexts"

    def means(self, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Generations in which something was measured at positions, its means, and their standard errors over stories (0 where unknown)."""
        there = [record for record in self.records if name in record["metrics"]]
        metrics = [record["metrics"][name] for record in there]
        errors = [metric.get("standard_error") or 0.0 for metric in metrics]
        return np.array([record["generation"] for record in there]), np.array([metric["value"] for metric in metrics]), np.array(errors)


# Step notebook: one generation.


def attaining_table(measured: dict[str, Any]) -> Markdown:
    """Contexts with the tokens whose probability shrank most, in proportion, from what one ``alpha`` step measured."""
    from IPython.display import Markdown

    from collapse_lib.text.display import literal

    rows = ["| after | stories that begin so | token | before | now | before / now |", "|:--|--:|:--|--:|--:|--:|"]
    shown = zip(measured["examples"]["contexts"], measured["series"]["counts"], measured["examples"]["attaining"], strict=False)
    for context, count, (first, *_) in shown:
        ratio = first["before"] / first["now"]
        words = literal(context) if context else "*nothing: a story's beginning*"
        ratio = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.1f}"
        rows.append(f"| {words} | {count:,} | {literal(first['token'])} | {first['before']:.2g} | {first['now']:.2g} | {ratio} |")
    return Markdown("\n".join(rows))


# The errors by generation.


@drawn
def accumulated(run: str) -> tuple[Figure, str]:
    """The paper's series on real models: the sum of D_inf, raw and smoothed, medians over contexts with the middle half of them as a band.

    The axis on the right says the same in the paper's unit, y[n] / N_x = 1 + sum of alpha* / N_x.
    """
    from matplotlib.ticker import LogLocator

    found = Measured(run)
    figure, (axes,) = _panels(1)
    suffixes = ["", *(f"_{epsilon}" for epsilon in found.smoothing)]
    series, contexts = found.same(*(f"accumulated{suffix}" for suffix in suffixes))
    for place, (suffix, values) in enumerate(zip(suffixes, series, strict=True)):
        _band(axes, found.generations, values, COLOURS[place % len(COLOURS)], _left_out(suffix[1:]), "o^sDv"[place % 5])
    axes.set_ylabel("sum of D∞ so far (nats)")
    axes.set_ylim(bottom=0)
    right = axes.secondary_yaxis("right", functions=(lambda nats: np.exp(np.clip(nats, -700, 700)), lambda ratio: np.log(np.maximum(ratio, 1e-300))))
    right.set_yscale("log")
    right.yaxis.set_major_locator(LogLocator(numticks=7))
    right.set_ylabel("y[n] / N")
    axes.legend(frameon=False, fontsize=10, title=contexts)
    return figure, f"Accumulated errors by generation, run {run}"


def accumulated_interactive(run: str) -> Interactive:
    """The sum of D_inf at every counted context, to hover over; buttons choose how much mass is left out."""
    import plotly.graph_objects as go

    found = Measured(run)
    suffixes = ["", *(f"_{epsilon}" for epsilon in found.smoothing)]
    values = {suffix: found[f"accumulated{suffix}"].T for suffix in suffixes}
    figure = go.Figure()
    for context, line in zip(found.contexts, values[""], strict=True):
        figure.add_scatter(x=found.generations.tolist(), y=_plain(line), mode="lines", line={"color": "#b5cfe0", "width": 1}, name=_words(context))
    figure.add_scatter(
        x=found.generations.tolist(), y=_plain(np.median(values[""], 0)), mode="lines+markers", line={"color": COLOURS[0], "width": 3}, name="median"
    )
    figure.update_traces(hovertemplate="%{fullData.name}<br>generation %{x}: %{y:.4g} nats<extra></extra>", showlegend=False)
    buttons = [
        {
            "label": _left_out(suffix[1:]),
            "method": "update",
            "args": [{"y": [*map(_plain, values[suffix]), _plain(np.median(values[suffix], 0))]}, {"yaxis.autorange": True}],
        }
        for suffix in suffixes
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, "sum of D∞ so far (nats)", updatemenus=[menu], hovermode="closest")
    return Interactive(figure, f"accumulated-{run}")


@drawn
def weights(run: str) -> tuple[Figure, str]:
    """The weight w_n that the minimal errors leave to the initial corpus, and the largest share w*_n of it that p_n can contain.

    Right, w*_n again, without the worst tokens, and the overlap of p_0 and p_n. Medians over counted contexts; bands hold the middle half.
    """
    found = Measured(run)
    figure, (left, right) = _panels(2)
    smoothed = [f"initial_divergence_{epsilon}" for epsilon in found.smoothing]
    (summed, direct, moved, *without), contexts = found.same("accumulated", "initial_divergence", "initial_tv", *smoothed)
    _band(left, found.generations, np.exp(-summed), COLOURS[1], "w, by the sum of errors", "s")
    _band(left, found.generations, np.exp(-direct), COLOURS[0], "w*, measured directly", "o")
    left.set_yscale("log")
    left.set_ylabel("share of the initial corpus")
    _band(right, found.generations, 1 - moved, GREY, "overlap of p₀ and pₙ, 1 − TV", "")
    for place, (epsilon, values) in reversed(list(enumerate(zip(found.smoothing, without, strict=True)))):
        share = np.median(np.minimum(np.exp(-values), 1.0), axis=1)
        right.plot(found.generations, share, color=COLOURS[(2, 3, 4)[place % 3]], marker="^Dv"[place % 3], label=f"w* {_left_out(epsilon)}")
    _band(right, found.generations, np.exp(-direct), COLOURS[0], "w*", "o")
    right.set_yscale("log")
    _plain_ticks(right.yaxis)
    _legends(left, right, title=contexts)
    return figure, f"Weight and memory of the initial corpus by generation, run {run}"


@drawn
def drift(run: str) -> tuple[Figure, str]:
    """What each generation changed against what drawing N_x tokens would change in a model that only counts, in total variation.

    Left: means over the counted contexts that came up in every generation's text. Right: every generation with all contexts that came up in its text;
    on the diagonal the two are equal.
    """
    found = Measured(run)
    figure, (left, right) = _panels(2)
    series, contexts = found.same("drift_tv", "text_tv", "tv", since=2)
    looks = (
        (COLOURS[1], "s", "drawing N tokens alone (expected)"),
        (COLOURS[4], "^", "from the model to its text (measured)"),
        (COLOURS[0], "o", "from the model to the next (measured)"),
    )
    for values, (colour, marker, label) in zip(series, looks, strict=True):
        _mean(left, found.generations[found.generations >= 2], values, colour, label, marker)
    left.set_ylabel("total variation in one generation")
    left.set_ylim(bottom=0)
    expected, moved, drawn_from = (found.since(2, name) for name in ("drift_tv", "tv", "learned_counts"))
    there = np.isfinite(expected) & (expected > 0)
    if there.any():
        dots = right.scatter(expected[there], moved[there], c=np.log10(drawn_from[there]), s=9, cmap="viridis", linewidths=0)
        bar = figure.colorbar(dots, ax=right)
        bar.set_label("N, stories that began so")
        low, high = np.log10(drawn_from[there].min()), np.log10(drawn_from[there].max())
        bar.set_ticks(ticks := np.arange(np.ceil(low), np.floor(high) + 1), labels=[f"{10**tick:,.0f}" for tick in ticks])
        ends = [min(expected[there].min(), moved[there].min()), max(expected[there].max(), moved[there].max())]
        right.plot(ends, ends, color=GREY, linewidth=1, linestyle="--")
    right.set(xscale="log", yscale="log", xlabel="expected of drawing N tokens alone", ylabel="measured, model to model")
    for axis in (right.xaxis, right.yaxis):
        _plain_ticks(axis)
    left.set_xlabel(f"generation (over {contexts}: those in every text)")
    _legends(left)
    return figure, f"Sampling drift and the models' own change, run {run}"


@drawn
def memory(run: str) -> tuple[Figure, str]:
    """How far the next-token distribution has gone from where it began (left), and its entropy (right); means.

    Those over positions have bands of one standard error over stories.
    """
    found = Measured(run)
    figure, (left, right) = _panels(2)
    for panel, name, colour, marker, start in (
        (left, "initial_tv", COLOURS[0], "o", ", from p₀"),
        (left, "truth_tv", COLOURS[2], "^", ", from the grammar's law"),
        (right, "entropy", COLOURS[0], "o", ""),
    ):
        if name in found:
            (values,), contexts = found.same(name)
            _mean(panel, found.generations, values, colour, f"counted, {contexts}{start}", marker)
    for panel, name, label in (
        (left, "position_first_tv", "validation positions, from p₁"),
        (right, "position_entropy", "validation positions"),
    ):
        generations, means, errors = found.means(name)
        if len(means):
            _line(panel, generations, means, errors, COLOURS[1], label, "s")
    left.set_ylabel("total variation from the start")
    left.set_ylim(0, 1)
    right.set_ylabel("entropy of the next token (nats)")
    _legends(left, right)
    return figure, f"Memory of the initial corpus by generation, run {run}"


def attaining_by_generation(run: str) -> Markdown:
    """Which tokens the maximum of D_inf is about: their probability and rank before, generation by generation."""
    from IPython.display import Markdown

    from collapse_lib.text.display import literal

    found = Measured(run)
    rows = ["| generation | probability before | rank before | never seen there | most often |", "|--:|--:|--:|--:|:--|"]
    for record in found.records:
        metrics = record["metrics"]
        tops = [first["token"] for first, *_ in record["examples"]["attaining"]]
        often = sorted(set(tops), key=lambda token: (-tops.count(token), token))[:3]
        rows.append(
            f"| {record['generation']} | {metrics['attaining_probability']['value']:.1g} | {metrics['attaining_rank']['value']:,.0f} "
            f"| {metrics['attaining_unseen']['value']:.0%} | {' '.join(map(literal, often))} |"
        )
    return Markdown("\n".join(rows))


def in_words(run: str) -> Markdown:
    """The last generation's numbers in sentences; each is true of the run that it is about."""
    from IPython.display import Markdown

    found = Measured(run)
    last, metrics = found.records[-1]["generation"], found.records[-1]["metrics"]
    contexts = metrics["contexts"]["value"]
    accumulated_sum, direct = metrics["accumulated"]["value"], metrics["initial_divergence"]["value"]
    lines = [
        f"Run **{run}**, generation {last}, means over {contexts} counted contexts:",
        f"- the errors add up to {accumulated_sum:.1f} nats, so that equation (3) leaves the initial corpus a weight of "
        f"w = 10<sup>{-accumulated_sum / np.log(10):.1f}</sup> (geometric mean);",
        f"- the share of p₀ that the model can still contain is w* = {np.exp(-direct):.2g} (geometric mean), which is "
        f"10<sup>{(accumulated_sum - direct) / np.log(10):.1f}</sup> times as much;",
        f"- the distribution itself has moved a total variation of {metrics['initial_tv']['value']:.3f} from p₀.",
    ]
    if last > 1:
        values, came_up = found.same("tv", "drift_tv", since=last)
        if values.size:
            moved, expected = values.mean(axis=(1, 2))
            verb = "less" if moved < expected else "more"
            lines.append(
                f"- in this generation it moved {moved:.3f} over the {came_up} that came up in the text before it, {verb} than the "
                f"{expected:.3f} by which drawing as many stories would have moved a model that only counts."
            )
    return Markdown("\n".join([lines[0], "", *lines[1:]]))


# The twins.


@drawn
def twins(record: dict[str, Any]) -> tuple[Figure, str]:
    """Distances between chains by generation, with one standard error over stories, and what another initial corpus adds to them.

    That is a difference of two pairs that both differ in their seeds. The last panel compares the texts, token by token.
    """
    parts = list(record["generations"][-1]["positions"])
    figure, panels = _panels(len(parts) + 2)
    trained = [found for found in record["generations"] if found["generation"]]
    for panel, part in zip(panels, parts, strict=False):
        for pair, (colour, marker, label) in PAIR_LOOKS.items():
            _pair(panel, trained, part, pair, colour, label, marker)
        panel.set_ylabel(DISTANCES["tv"][1])
        panel.set_title(PLACES[part], fontsize=11)
        panel.set_ylim(bottom=0)
    adds, (colour, marker, label) = panels[-2], CONTRAST
    for part, place_colour in zip(parts, (colour, GREY), strict=False):
        _pair(adds, trained, part, "excess_both", place_colour, PLACES[part], marker)
    adds.axhline(0, color="black", linewidth=0.8)
    adds.set_ylabel("difference of total variations")
    adds.set_title(label, fontsize=11)
    if len(parts) > 1:
        adds.legend(frameon=False, fontsize=9)
    for pair, (colour, marker, _) in PAIR_LOOKS.items():
        values = [found["unigram_tv"][pair] for found in record["generations"]]
        panels[-1].plot([found["generation"] for found in record["generations"]], values, color=colour, marker=marker)
    panels[-1].set_ylabel(TEXTS_AXIS)
    panels[-1].set_title("of their texts (0: the initial corpora)", fontsize=11)
    panels[-1].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=10)
    return figure, f"Twin chains by generation, run {record['runs']['chain']}"


def twins_interactive(record: dict[str, Any]) -> Interactive:
    """The same to hover over, a panel at a time; a menu changes between total variation, Jensen-Shannon divergence and frequencies of tokens."""
    import plotly.graph_objects as go

    views = _twins_views(record)
    shown = {label: _twins_traces(found) for label, (_, found) in views.items()}
    (title, _), first = next(iter(views.values())), next(iter(shown.values()))
    figure = go.Figure()
    for place, (colour, marker, label) in enumerate(TWIN_LOOKS.values()):
        figure.add_scatter(
            x=first["x"][place],
            y=first["y"][place],
            error_y={"type": "data", "array": first["error_y.array"][place], "thickness": 1, "width": 3},
            customdata=first["customdata"][place],
            name=label,
            mode="lines+markers",
            line={"color": colour},
            marker={"symbol": SYMBOLS[marker], "size": 8},
            hovertemplate="%{fullData.name}<br>generation %{x}: %{customdata}<extra></extra>",
        )
    choices = [
        {"label": label, "method": "update", "args": [data, {"yaxis.title.text": views[label][0], "xaxis.autorange": True, "yaxis.autorange": True}]}
        for label, data in shown.items()
    ]
    menu = {"buttons": choices, "x": 0, "xanchor": "left", "y": 1.04, "yanchor": "bottom", "pad": {"b": 4}}
    plotly_layout(figure, title, updatemenus=[menu], legend={"orientation": "h", "y": -0.24, "yanchor": "top"})
    figure.update_layout(margin={"b": 105})
    figure.update_yaxes(rangemode="tozero")
    return Interactive(figure, f"twins-{record['runs']['chain']}")


def _twins_views(record: dict[str, Any]) -> dict[str, tuple[str, dict[int, dict[str, Any]]]]:
    """What a comparison holds, by its name in the menu: the axis, and by generation and pair a ``value`` with its ``standard_error``."""
    trained = [found for found in record["generations"] if found["generation"]]
    views = {}
    for part in record["generations"][-1]["positions"]:
        for kind, (name, axis) in DISTANCES.items():
            there = {found["generation"]: {pair: found["positions"][part][pair][kind] for pair in TWIN_LOOKS} for found in trained}
            views[f"{name}, {PLACES[part]}"] = axis, there
    apart = {found["generation"]: found["unigram_tv"] for found in record["generations"]}
    adds = {generation: {"excess_both": pairs["both"] - pairs["reseeded"]} for generation, pairs in apart.items()}
    texts = {generation: {pair: {"value": value} for pair, value in (pairs | adds[generation]).items()} for generation, pairs in apart.items()}
    return views | {"frequencies of tokens in their texts": (TEXTS_AXIS, texts)}


def _twins_traces(found: dict[int, dict[str, Any]]) -> dict[str, list[list[Any]]]:
    """Attributes of Plotly's traces, a list a pair."""
    values = [[pairs[pair] for pairs in found.values()] for pair in TWIN_LOOKS]
    return {
        "x": [list(found)] * len(values),
        "y": [[value["value"] for value in several] for several in values],
        "error_y.array": [[value.get("standard_error") for value in several] for several in values],
        "customdata": [[_value(value) for value in several] for several in values],
    }


def uncompared(runs: Runs, records: Sequence[dict[str, Any]]) -> Markdown:
    """A sentence on the runs that ``records`` do not compare with twins, and how to have them compared."""
    from IPython.display import Markdown

    compared = {name for record in records for name in record["runs"].values()}
    missing = [run for run in select(runs) if run not in compared]
    if not missing:
        return Markdown("Every run shown here has been compared with its twins.")
    names = ", ".join(f"**{run}**" for run in missing)
    return Markdown(f"Not compared with twins: {names}. `collapse twins {missing[0]}` makes the two other runs, and compares.")


def twins_setup(record: dict[str, Any]) -> Markdown:
    """In what the three runs differ."""
    from IPython.display import Markdown

    from collapse_lib.text.display import plain

    roles = list(record["runs"])
    names = sorted({name for fields in record["fields"].values() for name in fields})
    rows = ["| | " + " | ".join(f"`{record['runs'][role]}`" for role in roles) + " |", "|:--|" + ":--|" * len(roles)]
    for name in names:
        cells = [record["fields"][role].get(name, record["fields"]["chain"][name]) for role in roles]
        rows.append(f"| {name} | " + " | ".join("–" if cell is None else plain(str(cell)) for cell in cells) + " |")
    for name, label in (("train_stories", "stories trained on"), ("epochs", "epochs")):
        rows.append(f"| {label} | " + " | ".join(f"{record[name][role]:,}" for role in roles) + " |")
    return Markdown("\n".join(rows))


def twins_in_words(records: Sequence[dict[str, Any]]) -> Markdown:
    """What the comparisons say about the first and the last generation, as far as their numbers go."""
    from IPython.display import Markdown

    return Markdown("\n\n".join(map(_in_words, records)) or "There is no comparison to put into words.")


def _in_words(record: dict[str, Any]) -> str:
    trained = [found for found in record["generations"] if found["generation"]]
    first, last = trained[0], trained[-1]
    lines = [f"**{record['runs']['chain']}.**"] if "runs" in record else []
    for part, words in (("chain", "the chain's"), ("twin", "the twin's")):
        if part not in last["positions"]:
            continue
        now, then = ({pair: _value(found[pair]["tv"]) for pair in TWIN_LOOKS} for found in (last["positions"][part], first["positions"][part]))
        lines.append(
            f"At {last['positions'][part]['contexts']} positions of {words} held-out stories, two chains that differ in their initial corpora and in "
            f"their seeds are {now['both']} apart in total variation in generation {last['generation']} (generation {first['generation']}: "
            f"{then['both']}), two that differ in their seeds alone {now['reseeded']} ({then['reseeded']}). The difference, what another initial "
            f"corpus adds between these chains, is {now['excess_both']} ({then['excess_both']})."
        )
    lines.append(
        "**One chain of each kind: no verdict.** A ± is one standard error over held-out stories. It does not cover chance among chains: other seeds "
        "would set other distances between them."
    )
    return "\n\n".join(lines)


# Drawing.


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = 2 if count > 3 else 1
    figure = Figure(figsize=((7.2, 9.6, 12.6, 9.6)[count - 1], 4.1 * rows), layout="constrained")
    axes = figure.subplots(rows, -(-count // rows), squeeze=False).ravel()
    for panel in axes:
        panel.set_xlabel("generation")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, axes


def _band(axes: Axes, generations: Sequence[int], values: NDArray[np.float64], colour: str, label: str, marker: str) -> None:
    """The median over contexts and a band that holds the middle half of them; values [generations, contexts]."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=1)
    axes.plot(generations, middle, color=colour, marker=marker, label=label)
    axes.fill_between(generations, low, high, color=colour, alpha=0.15, linewidth=0)


def _line(axes: Axes, generations: Sequence[int], means: NDArray, errors: NDArray, colour: str, label: str, marker: str) -> None:
    axes.plot(generations, means, color=colour, marker=marker, label=label)
    axes.fill_between(generations, means - errors, means + errors, color=colour, alpha=0.2, linewidth=0)


def _mean(axes: Axes, generations: Sequence[int], values: NDArray[np.float64], colour: str, label: str, marker: str) -> None:
    """The mean over contexts; values [generations, contexts]. No band: contexts that lie inside each other have no standard error."""
    shown = generations if values.size else []
    axes.plot(shown, values.mean(axis=1) if values.size else [], color=colour, marker=marker, label=label)


def _pair(axes: Axes, trained: Sequence[dict[str, Any]], part: str, pair: str, colour: str, label: str, marker: str) -> None:
    """The total variation between two of the twins' chains, or a difference of two of these, by generation."""
    values = [found["positions"][part][pair]["tv"] for found in trained]
    errors = np.array([value["standard_error"] or 0.0 for value in values])
    _line(axes, [found["generation"] for found in trained], np.array([value["value"] for value in values]), errors, colour, label, marker)


def _legends(*panels: Axes, title: str | None = None) -> None:
    """A legend above each panel, where it hides nothing."""
    place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "alignment": "left"}
    for panel in panels:
        panel.legend(**place, frameon=False, fontsize=9, title=title, title_fontsize=9)


def _plain_ticks(axis: Axis) -> None:
    """Plain numbers on a logarithmic axis: on a short one 1, 2 and 5 of each decade, whose labels would run into each other on a long one."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < SHORT * low else (1,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _left_out(epsilon: str) -> str:
    return f"without the worst {100 * float(epsilon):g}%" if epsilon else "all tokens"


def _words(context: str) -> str:
    from collapse_lib.text.display import plain

    return plain(f"“{context}”") if context else "a story's beginning"


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [float(f"{value:.5g}") if np.isfinite(value) else None for value in values]


def _value(metric: dict[str, Any]) -> str:
    return _plus_minus(metric["value"], metric.get("standard_error"))


def _plus_minus(value: float, error: float | None) -> str:
    if not error:
        return f"{value:.3f}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))  # two of them for the error
    return f"{value:.{digits}f} ± {error:.{digits}f}"
