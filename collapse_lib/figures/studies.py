"""Studies of many chains: every arm's course with the band between its chains, and the answers to what was asked beforehand."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from collapse_lib.experiment.errors import UserError
from collapse_lib.figures.style import COLOURS, Picture, styled
from collapse_lib.studies import inference
from collapse_lib.studies.analysis import Analysis, measured
from collapse_lib.studies.design import Study
from collapse_lib.text.display import figure_text, plain, sentence

if TYPE_CHECKING:
    from IPython.display import Markdown
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike
    from pandas import DataFrame

CONTROL_COLOUR = "#555555"
ARMS_A_PANEL = len(COLOURS)  # beside the control, which stands in every panel


@styled()
def by_generation(study: Study, table: DataFrame, measure: str, arms: Sequence[str] = ()) -> Picture:
    """A measure by generation: each arm's mean over chains, the band of its t intervals, and its chains as thin lines.

    The control is drawn in every panel, grey. Arms (default: all) with fewer than three chains have no band.
    """
    if unknown := [arm for arm in arms if arm not in study.arms]:
        raise UserError(f"Study '{study.name}' has no arm '{unknown[0]}'; it has {', '.join(study.arms)}.")
    declared = study.measures[measure]
    label = declared.label or f"{'log ' * declared.log}{declared.name.replace('_', ' ')}"
    figure = draw_courses(measured(study, table, measure), list(arms or study.arms), label, study.control_arm, 1 - study.level)
    return Picture(figure, f"Study {study.name}: {measure} by generation, means over chains with t bands between chains")


@styled()
def courses(
    table: DataFrame,
    measure: str,
    arms: Sequence[str],
    control: str,
    label: str,
    laws: Mapping[str, ArrayLike] | None = None,
    log: bool = False,
    level: float = 0.95,
) -> Picture:
    """As ``by_generation``, of any table with columns ``arm``, ``seed`` and ``generation`` in which a measure has a column.

    ``laws`` are exact predictions by name, each a value for generations 0, 1, ...; they are dashed lines. ``log`` makes the axis logarithmic.
    """
    wide = table[table["arm"].isin([control, *arms])].pivot(index=["arm", "seed"], columns="generation", values=measure).astype(float)
    figure = draw_courses(wide.dropna(axis=1, how="all"), arms, label, control, level)
    for panel in figure.axes:
        for number, (name, law) in enumerate((laws or {}).items()):
            panel.plot(range(len(law)), law, color="black", linestyle=("--", ":", "-.")[number % 3], linewidth=1.2, label=figure_text(name), zorder=3)
        panel.set(yscale="log" if log else "linear")
        panel.legend(frameon=False, fontsize=9)
    return Picture(figure, f"{label} by generation, means over chains with t bands between chains")


def setup(study: Study) -> Markdown:
    """What the arms are: chains, and in what they differ from the base."""
    rows = []
    for arm, design in study.arms.items():
        changes = ", ".join(f"{name} = {value}" for name, value in design.fields.items()) or "nothing"
        data = " (other data)" * design.changes_data
        rows.append([plain(arm) + " (control)" * (arm == study.control_arm), len(study.seeds_of(arm)), plain(changes) + data, sentence(design.note)])
    return _table(["arm", "chains planned", "differs from the base in", "what it is"], rows)


def expectations(study: Study) -> Markdown:
    """What was expected before the first chain began, and the works that the study answers to."""
    from IPython.display import Markdown

    words = [*study.expectations, *(question.expectation for question in (*study.contrasts, *study.equivalences) if question.expectation)]
    said = "\n".join(f"- {sentence(text)}" for text in words) or "Nothing was written down."
    works = "\n".join(f"- {plain(text)}" for text in study.citations)
    return Markdown(said + (f"\n\nIt answers to:\n\n{works}" if works else ""))


def contrasts(analysis: Analysis) -> Markdown:
    """The primary contrasts with their tests, and beside each what was expected of it."""
    rows = []
    for answer in analysis.contrasts:
        question, test, power = answer.question, answer.test, answer.power
        rows.append(
            [
                plain(f"{question.arm} - {question.against}"),
                plain(f"{question.measure}, generation {answer.generation}"),
                _chains(test.chains if test else (0, 0), answer.planned),
                _estimate(test),
                _p(test.p if test else None),
                _p(answer.p_holm),
                "" if power is None else f"{power.power:.0%}, sees {power.detectable:.3g}",
                plain({"greater": "> 0", "less": "< 0", None: ""}[question.expected]),
                f"**{answer.verdict}**",
            ]
        )
    return _table(["contrast", "measure", "chains", "difference", "p, exact", "p, Holm", "power from two chains", "expected", "verdict"], rows)


def equivalences(analysis: Analysis) -> Markdown:
    """The claims of equivalence with their tests."""
    rows = []
    for answer in analysis.equivalences:
        claim, test = answer.question, answer.test
        what = f"{claim.arm} - {claim.against}" if claim.against else f"{claim.arm}, generation {answer.generation} - generation {claim.since}"
        kind = "two samples" if claim.against else "paired by chain"
        chains = _chains(test.chains if test else (0,) * len(answer.planned), answer.planned)
        rows.append([plain(what), plain(claim.measure), kind, chains, _estimate(test), f"{claim.margin:g}", _p(test.p if test else None)])
        rows[-1].append(f"**{answer.verdict}**")
    return _table(["claim: no difference of", "measure", "test", "chains", "difference", "margin", "p, two one-sided tests", "verdict"], rows)


def comparisons(found: Mapping[str, inference.Comparison], control: str) -> Markdown:
    """Arms, each less the control, by Dunnett's procedure."""
    rows = [[plain(f"{arm} - {control}"), " and ".join(map(str, one.chains)), _estimate(one), _p(one.p)] for arm, one in found.items()]
    return _table(["comparison", "chains", "difference", "p, Dunnett"], rows)


def trends(analysis: Analysis) -> Markdown:
    """Each arm's trend over the generations, tested across its chains."""
    rows = [
        [plain(arm), len(found.slopes), _interval(found.slope), _p(found.p), _p(analysis.trend_p_holm.get(arm)), f"{found.tau.mean:.3g}"]
        for arm, found in analysis.trends.items()
    ]
    return _table(["arm", "chains", "slope a generation", "p, t test", "p, Holm", "Kendall's tau, mean"], rows)


def draw_courses(wide: DataFrame, arms: Sequence[str], label: str, control: str = "", level: float = 0.95) -> Figure:
    """``wide`` has a row a chain (index arm, seed) and a column a generation; ``control`` is an arm that stands in every panel."""
    have = set(wide.index.get_level_values("arm"))
    others = [arm for arm in arms if arm != control and arm in have]
    groups = [others[first : first + ARMS_A_PANEL] for first in range(0, len(others), ARMS_A_PANEL)] or [[]]
    figure, panels = _panels(len(groups))
    for panel, group in zip(panels, groups, strict=True):
        if control in have:
            _draw(panel, wide.loc[control], control, CONTROL_COLOUR, level)
        for arm, colour in zip(group, COLOURS, strict=False):
            _draw(panel, wide.loc[arm], arm, colour, level)
        panel.legend(frameon=False, fontsize=9)
        panel.set(xlabel="generation", ylabel=textwrap.fill(figure_text(label), 30))  # as long as a panel is high
    return figure


def _draw(panel: Axes, chains: DataFrame, arm: str, colour: str, level: float) -> None:
    """One arm: ``chains`` has a row a seed and a column a generation."""
    found = {generation: inference.interval(values.dropna(), level) for generation, values in chains.items() if values.notna().any()}
    for _, values in chains.iterrows():
        panel.plot(values.index, values, color=colour, linewidth=0.6, alpha=0.5)
    label = f"{arm}, {len(chains)} chain{'s' * (len(chains) > 1)}"
    panel.plot(list(found), [at.mean for at in found.values()], color=colour, marker="o", label=figure_text(label))
    banded = {generation: at for generation, at in found.items() if at.low is not None}
    panel.fill_between(list(banded), [at.low for at in banded.values()], [at.high for at in banded.values()], color=colour, alpha=0.15, linewidth=0)


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    """Panels of one scale, two side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    across = min(count, 2)
    down = -(-count // across)
    figure = Figure(figsize=(7.2 if count == 1 else 5.2 * across, 3.9 * down), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flat
    for spare in panels[count:]:
        spare.remove()
    for panel in panels[:count]:
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure, panels[:count]


def _table(head: list[str], rows: Iterable[list[Any]]) -> Markdown:
    from IPython.display import Markdown

    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return Markdown("\n".join([f"| {' | '.join(head)} |", "|" + ":--|" * len(head), *lines]) if lines else "None here.")


def _chains(have: tuple[int, ...], planned: tuple[int, ...]) -> str:
    return " and ".join(f"{n} of {m}" for n, m in zip(have, planned, strict=True))


def _estimate(test: Any) -> str:
    """A difference with its interval, of any of the tests; nothing where there is no test."""
    if test is None:
        return ""
    return f"{test.difference:.4g}" + ("" if test.low is None else f" [{test.low:.4g}, {test.high:.4g}]")


def _interval(found: inference.Interval) -> str:
    return f"{found.mean:.3g}" + ("" if found.low is None else f" [{found.low:.3g}, {found.high:.3g}]")


def _p(p: float | None) -> str:
    return "" if p is None else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
