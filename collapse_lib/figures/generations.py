"""The curves on the pages of a run and of its generations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from collapse_lib.figures.style import COLOURS, Picture, over_generations, panels, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATER = "#c8c8c8"  # what is not the page's own generation
Points = Sequence[tuple[float, float]]


@styled()
def perplexity_so_far(run: str, perplexities: Points, generation: int) -> Picture:
    """Perplexity on validation stories, points (generation, value), up to a generation in colour and beyond it in grey.

    Example: ``figures.perplexity_so_far("demo", [(1, 9.5), (2, 11.0)], generation=2)``
    """
    figure, (panel,) = panels(size=(7.2, 3.4))
    _perplexity(panel, perplexities, generation)
    return Picture(figure, f"Perplexity by generation, run {run}")


@styled()
def training_and_perplexity(run: str, loss_curves: Mapping[int, Points], perplexities: Points, generation: int) -> Picture:
    """Left, the training loss of a generation over that of the one before, points (step, nats a token); right, ``perplexity_so_far``.

    Example: ``figures.training_and_perplexity("demo", {1: [(1, 7.0), (10, 3.0)]}, [(1, 9.5), (2, 11.0)], generation=1)``
    """
    figure, (left, right) = panels(2, size=(4.8, 3.4))
    for which, colour in ((generation - 1, LATER), (generation, COLOURS[1])):
        if loss_curves.get(which):
            left.plot(*zip(*loss_curves[which], strict=True), color=colour, label=f"generation {which}")
    left.set(xlabel="optimizer step", ylabel="training loss (nats a token)")
    left.legend(frameon=False)
    _perplexity(right, perplexities, generation)
    return Picture(figure, f"Training loss and perplexity, generation {generation} of run {run}")


def _perplexity(panel: Axes, perplexities: Points, generation: int) -> None:
    panel.plot(*zip(*perplexities, strict=True), color=LATER, marker="o")
    panel.plot(*zip(*(point for point in perplexities if point[0] <= generation), strict=True), color=COLOURS[0], marker="o")
    over_generations(panel)
    panel.set_ylabel("perplexity on validation stories")
