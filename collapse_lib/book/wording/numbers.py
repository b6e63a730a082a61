"""Numbers and tables as readers see them, and the course of a measure in words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame


Points = Sequence[tuple[int, float]]  # (generation, value)


def number(value: float, signed: bool = False) -> str:
    """A number as a reader wants it: whole ones in full, others to four significant digits (changes to three)."""
    sign = "+" if signed else ""
    whole = float(value).is_integer() or abs(value) >= 1000
    text = f"{value:{sign if value else ''},.0f}" if whole else f"{value:{sign}#.{3 if signed else 4}g}".rstrip(".")
    return text.replace("-", "−")


def course(points: Points) -> str:
    """Where a measure went, in words that are true of these numbers: "rose from 4.2 in generation 1 to 9.9 in generation 10 ..."."""
    (first, start), (last, end) = points[0], points[-1]
    steps = len(points) - 1
    if not steps:
        return f"is **{number(start)}** in generation {first}"
    if all(value == start for _, value in points):
        return f"stayed at **{number(start)}** from generation {first} to {last}"
    verb, way = ("rose", "up") if end > start else ("fell", "down") if end < start else ("came back", "")
    along = sum((after > before) == (end > start) for (_, before), (_, after) in pairwise(points) if after != before)
    how = f", {way} in {f'all {steps}' if along == steps else f'{along} of {steps}'} steps" if way and steps > 1 else ""
    return f"{verb} from **{number(start)}** in generation {first} to **{number(end)}** in generation {last}{how}"


def peak(points: Points) -> str:
    """Where a measure was highest."""
    generation, value = max(points, key=lambda point: point[1])
    return f"{number(value)} in generation {generation}"


def course_and_peak(points: Points) -> str:
    """The course of a measure, and its peak where that is neither the first generation nor the last."""
    inside = max(value for _, value in points) > max(points[0][1], points[-1][1])
    return course(points) + (f"; highest: {peak(points)}" if inside else "")


def points_of(table: DataFrame, column: str = "value") -> Points:
    """What ``results.metric`` returns as (generation, value)."""
    return list(zip(table["generation"].tolist(), table[column].tolist(), strict=True))


def pipe_table(header: Sequence[str], rows: Iterable[Sequence[str]], alignment: str = "") -> str:
    """A table in Markdown; ``alignment`` has l or r for each column (default: all to the left)."""
    rules = {"l": ":--", "r": "--:"}
    rule = [rules[side] for side in alignment or "l" * len(header)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (header, rule, *rows))
