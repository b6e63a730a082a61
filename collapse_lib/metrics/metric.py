"""A measured number as a step's metrics file holds it."""

from __future__ import annotations

from typing import Any

Metric = dict[str, Any]


def metric(value: float | int, unit: str, definition: str, counts: dict[str, int] | None = None, standard_error: float | None = None) -> Metric:
    """A number with its unit and definition, what it was counted over, and its standard error where one is known."""
    more = {"counts": counts, "standard_error": standard_error}
    return {"value": value, "unit": unit, "definition": definition} | {name: entry for name, entry in more.items() if entry is not None}


def ratio(part: int, whole: int, unit: str, definition: str, of: str, scale: int = 1) -> Metric:
    """``scale`` times the share of ``part`` in ``whole``, a number of ``of``; a share of nothing is 0."""
    return metric(scale * part / max(whole, 1), unit, definition, counts={"counted": part, of: whole})
