"""Extended Data Figure A1: what was trained from what and tested how, drawn from a run's own lineage and manifests."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from collapse_lib.experiment.lineage import STEPS
from collapse_lib.experiment.run import Run, Step
from collapse_lib.figures.style import COLOURS, NARROW_PANEL, Picture, legend_above, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 1.95, 0.66  # of a box
LETTERS = 19  # of a line of its title
GAP = 2.25  # from the middle of a box to that of its neighbour
COLUMN = 3.25  # from one generation to the next: a link with its label lies between
INCHES = 0.82  # a unit of the picture
SMALL = 9  # points, of what stands under a box's title and beside a link
UNTRAINED_ROW, MODEL_ROW, MADE_ROW, RESULT_ROW = 3.2, 2.0, 0.75, -0.5
UNTRAINED, MODEL, TEXT, RESULT = "#f4f4f4", "#d9ebf7", "#fdf0d5", "#dcf1e8"  # tints of the colours that the lines have
THIN = {"color": "#333333", "linewidth": 1.2}
THICK = {"color": COLOURS[0], "linewidth": 3.4}
DOTTED = {"color": COLOURS[2], "linewidth": 1.8, "linestyle": ":"}
NOT_DONE = "#9a9a9a"  # what the run has not done yet
# For a phone, time runs down: models on the left, what they come from and what tests say on the right, and a line to the tests along either edge.
BESIDE, EDGES = 2.5, (-1.2, 3.7)
NEXT_MODEL, SKIPPED, NEXT_TEST = 1.35, 0.3, 0.9


class Test(NamedTuple):
    """A test of a model: its step; what is made of the model first, if anything, and how much; whether the untrained baseline takes it too."""

    step: Step
    through: str | None
    size: str
    of_baseline: bool


@styled()
def figure_a1(run: str) -> Picture:
    """Extended Data Figure A1 of a run: generations 1, 2 and the last, which takes every test, the corpora between them, the untrained baseline.

    Links as in the paper: thin from a model to the same model after training, thick from a generation to the next, dotted from a model to a
    test's result. Sizes and the first digits of the corpora's hashes are read from the manifests; what is not done yet is grey.

    Example: ``figures.figure_a1("demo")``
    """
    opened = Run.open(run)
    last = opened.protocol.generations
    included, tests = sorted({1, min(2, last), last}), tests_of(opened, last)
    title = f"What was trained from what, run {opened.name}"
    return Picture(_across(opened, included, tests), title, _down(opened, included, tests))


def _across(opened: Run, included: Sequence[int], tests: Sequence[Test]) -> Figure:
    """The picture with time running to the right, and the tests of the last generation below it."""
    from matplotlib.figure import Figure

    x_of = {generation: COLUMN * (1 + index) + (0.5 if generation - 1 not in (0, *included) else 0) for index, generation in enumerate(included)}
    middle = x_of[included[-1]]
    left = max(0.0, middle - GAP * (len(tests) - 1) / 2)
    columns = [left + GAP * index for index in range(len(tests))]
    baseline = max(middle + COLUMN, columns[-1])
    ends = (-WIDTH / 2 - 0.1, baseline + WIDTH / 2 + 0.1)
    figure = Figure(figsize=(INCHES * (ends[1] - ends[0]), 5.4), layout="constrained")
    panel = figure.subplots()

    corpus = opened.step(0, "corpus")
    _box(panel, 0, MODEL_ROW, "Initial corpus", TEXT, corpus, f"{_measured(corpus, 'train_stories')} stories")
    for generation, x in x_of.items():
        train = opened.step(generation, "train")
        _box(panel, x, UNTRAINED_ROW, "Untrained model", UNTRAINED, train, "fresh weights")
        _box(panel, x, MODEL_ROW, f"Generation {generation}", MODEL, train, f"{_measured(train, 'parameters')} parameters")
        _link(panel, (x, UNTRAINED_ROW - HEIGHT / 2), (x, MODEL_ROW + HEIGHT / 2), THIN, train)
        before = x_of.get(generation - 1, x - COLUMN) if generation > 1 else 0
        _link(panel, (before + WIDTH / 2, MODEL_ROW), (x - WIDTH / 2, MODEL_ROW), THICK, train)
        if generation > 1 and generation - 1 not in x_of:
            panel.text(before + WIDTH / 2 - 0.15, MODEL_ROW, "…", ha="right", va="center", fontsize=18, color=THICK["color"])
        panel.text((before + x) / 2, MODEL_ROW + 0.12, _corpus_read(train), ha="center", va="bottom", fontsize=SMALL, linespacing=1.25)
    if any(test.of_baseline for test in tests):
        _box(panel, baseline, UNTRAINED_ROW, "Untrained baseline", UNTRAINED, None, "never pre-trained")
    for x, test in zip(columns, tests, strict=True):
        for source in [(middle, MODEL_ROW), *([(baseline, UNTRAINED_ROW)] if test.of_baseline else [])]:
            _test_link(panel, source, x, test)
        if test.through:
            _box(panel, x, MADE_ROW, test.through, MODEL if test.step.name == "classification" else TEXT, test.step, test.size)
            _link(panel, (x, MADE_ROW - HEIGHT / 2), (x, RESULT_ROW + HEIGHT / 2), DOTTED, test.step)
        _box(panel, x, RESULT_ROW, STEPS[test.step.name].title.partition(":")[0], RESULT, test.step)
    _legend(figure, all(step.manifest() for step in opened.steps()))
    panel.set(xlim=ends, ylim=(RESULT_ROW - HEIGHT / 2 - 0.05, UNTRAINED_ROW + HEIGHT / 2 + 0.05))
    panel.set_axis_off()
    return figure


def _down(opened: Run, included: Sequence[int], tests: Sequence[Test]) -> Figure:
    """The same with time running down: as wide as a phone."""
    from matplotlib.figure import Figure

    left, right = EDGES
    skipped = [generation for generation in included if generation - 1 not in (0, *included)]
    y_of = {generation: -NEXT_MODEL * (1 + index) - SKIPPED * (generation in skipped) for index, generation in enumerate(included)}
    bottom, has_baseline = y_of[included[-1]], any(test.of_baseline for test in tests)
    first = bottom - NEXT_MODEL * (1 + has_baseline) + 0.3
    rows = [first - NEXT_TEST * index for index in range(len(tests))]
    ends = (min([bottom, *rows]) - HEIGHT / 2 - 0.05, HEIGHT / 2 + 0.05)
    width = right - left + 0.2
    figure = Figure(figsize=(NARROW_PANEL[0], NARROW_PANEL[0] / width * (ends[1] - ends[0]) + 0.9), layout="constrained")
    panel = figure.subplots()

    corpus, above = opened.step(0, "corpus"), 0.0
    _box(panel, 0, 0, "Initial corpus", TEXT, corpus, f"{_measured(corpus, 'train_stories')} stories")
    for generation, y in y_of.items():
        train = opened.step(generation, "train")
        _box(panel, BESIDE, y, "Untrained model", UNTRAINED, train, "fresh weights")
        _box(panel, 0, y, f"Generation {generation}", MODEL, train, f"{_measured(train, 'parameters')} parameters")
        _link(panel, (BESIDE - WIDTH / 2, y), (WIDTH / 2, y), THIN, train)
        start = above - HEIGHT / 2 - SKIPPED * (generation in skipped)
        _link(panel, (0, start), (0, y + HEIGHT / 2), THICK, train)
        if generation in skipped:
            panel.text(0, start + SKIPPED / 2, "⋮", ha="center", va="center", fontsize=18, color=THICK["color"])
        panel.text(0.15, (start + y + HEIGHT / 2) / 2, _corpus_read(train), ha="left", va="center", fontsize=SMALL, linespacing=1.25)
        above = y
    if rows:
        panel.plot([-WIDTH / 2, left, left], [bottom, bottom, rows[-1]], **DOTTED, zorder=0)
    if has_baseline:
        y = bottom - NEXT_MODEL + 0.2
        _box(panel, BESIDE, y, "Untrained baseline", UNTRAINED, None, "never pre-trained")
        panel.plot(
            [BESIDE + WIDTH / 2, right, right],
            [y, y, min(row for row, test in zip(rows, tests, strict=True) if test.of_baseline)],
            **DOTTED,
            zorder=0,
        )
    for y, test in zip(rows, tests, strict=True):
        style = THIN if test.step.name == "classification" else DOTTED
        _link(panel, (left, y), ((0 if test.through else BESIDE) - WIDTH / 2, y), style, test.step)
        if test.through:
            _box(panel, 0, y, test.through, MODEL if test.step.name == "classification" else TEXT, test.step, test.size)
            _link(panel, (WIDTH / 2, y), (BESIDE - WIDTH / 2, y), DOTTED, test.step)
        _box(panel, BESIDE, y, STEPS[test.step.name].title.partition(":")[0], RESULT, test.step)
        if test.of_baseline:
            _link(panel, (right, y), (BESIDE + WIDTH / 2, y), DOTTED, test.step)
    _legend(figure, all(step.manifest() for step in opened.steps()), columns=1)
    panel.set(xlim=(left - 0.1, right + 0.1), ylim=ends)
    panel.set_axis_off()
    return figure


def tests_of(run: Run, generation: int) -> list[Test]:
    """The tests that a generation's model takes: its steps from which no other step of the generation is made.

    Ordered so that few links cross: those of the model alone first, those that the untrained baseline takes too last, the direct ones between.
    """
    steps = {step.name: step for step in run.steps_of(generation)}
    made_from = {name: [parent for parent in step.parents() if parent in steps] for name, step in steps.items()}
    inner = {parent for parents in made_from.values() for parent in parents}
    tests = []
    for name, step in steps.items():
        if name not in inner | {"train", "sample"}:
            between = [parent for parent in made_from[name] if parent != "train"]
            through = "Fine-tuned copies" if name == "classification" else STEPS[between[0]].title if between else None
            size = f"{_measured(steps['sample'], 'tokens')} tokens" if "sample" in between else ""
            tests.append(Test(step, through, size, STEPS[name].done_in(run.protocol, 0)))
    return sorted(tests, key=lambda test: (test.of_baseline, (test.through is None) != test.of_baseline))


def _test_link(panel: Axes, source: tuple[float, float], x: float, test: Test) -> None:
    style = THIN if test.step.name == "classification" else DOTTED
    target = MADE_ROW if test.through else RESULT_ROW
    _link(panel, (source[0], source[1] - HEIGHT / 2), (x, target + HEIGHT / 2), style, test.step)


def _box(panel: Axes, x: float, y: float, title: str, colour: str, step: Step | None, size: str = "") -> None:
    """A box with a title and a size under it; grey where its step (None: there is none to do) is not finished."""
    from matplotlib.patches import FancyBboxPatch

    ink = "#222222" if step is None or step.manifest() else NOT_DONE
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    panel.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.09", facecolor=colour, edgecolor=ink, linewidth=1))
    panel.text(x, y + (0.12 if size else 0), textwrap.fill(title, LETTERS), ha="center", va="center", fontsize=10.5, color=ink, linespacing=1.05)
    if size:
        panel.text(x, y - 0.16, size, ha="center", va="center", fontsize=SMALL, color=ink)


def _link(panel: Axes, start: tuple[float, float], end: tuple[float, float], style: dict, step: Step) -> None:
    """An arrow; grey where the step that it stands for is not finished."""
    colour = style["color"] if step.manifest() else NOT_DONE
    head = {"arrowstyle": "-|>", "mutation_scale": 15 if style is THICK else 10, "shrinkA": 0, "shrinkB": 0}
    panel.annotate("", end, start, arrowprops=head | style | {"color": colour}, zorder=0)


def _measured(step: Step, name: str) -> str:
    """One number of a step, in millions where that is shorter; "?" while the step is not finished."""
    results = step.results()
    if results is None:
        return "?"
    value = results["metrics"][name]["value"]
    return f"{value:,}" if value < 1e6 else f"{value / 1e6:.3g} M"


def _corpus_read(train: Step) -> str:
    """How much text a model was trained on, and the beginning of that text's hash, from the manifest of its training."""
    corpus, manifest = train.parents()["previous corpus"], train.manifest()
    if manifest is None:
        return ""
    name, hashed = next((name, value) for name, value in manifest["parents"]["previous corpus"].items() if name in ("train", "corpus"))
    tokens = _measured(corpus, "train_tokens" if name == "train" else "tokens")
    return f"{tokens} tokens\ncorpus {hashed[:6]}"


def _legend(figure: Figure, done: bool, columns: int = 4) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], **THIN, label="the same model, before and after training"),
        Line2D([], [], **THICK, label="a generation's training text"),
        Line2D([], [], **DOTTED, label="a test of a model"),
    ]
    if not done:
        handles.append(Line2D([], [], color=NOT_DONE, linewidth=1.2, label="not done yet"))
    legend_above(figure, handles, columns)
