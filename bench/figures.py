"""Statistics: medians with their spread, and ratios that are computed within a round. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Figure:
    """The median of several rounds, with their minimum and maximum."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Returns the figure of the values.

        Errors:
            ValueError: there are no values.
        """
        known = list(values)
        if not known:
            raise ValueError("a figure needs a value")
        return cls(median(known), min(known), max(known))

    def as_json(self) -> dict[str, float]:
        """Returns the figure as JSON."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


Cell = tuple[str, str, int, int]
"""Contender, form, connections, bytes."""

Round = Mapping[Cell, Mapping[str, float]]
"""The measurements of one round."""


def summary(rounds: Sequence[Round], base: str) -> list[dict[str, Any]]:
    """Returns every cell with its figures, and their ratios to the base's in the same round if this was measured."""
    cells = []
    for cell in rounds[0]:
        contender, form, connections, size = cell
        against: Cell = (base, form, connections, size)
        taken = [it[cell] for it in rounds]
        entry: dict[str, Any] = {"contender": contender, "form": form, "connections": connections, "bytes": size}
        entry["figures"] = {name: Figure.of(it[name] for it in taken).as_json() for name in taken[0]}
        if against in rounds[0]:
            entry["against"] = {
                name: Figure.of(it[cell][name] / it[against][name] for it in rounds).as_json()
                for name in taken[0]
                if all(it[against].get(name) for it in rounds)
            }
        cells.append(entry)
    return cells


def ratio(rounds: Sequence[Round], one: Cell, other: Cell, name: str) -> Figure | None:
    """Returns the ratio of one cell's figure to another's, within each round; None if one was not measured."""
    if one not in rounds[0] or other not in rounds[0] or not all(it[other].get(name) for it in rounds):
        return None
    return Figure.of(it[one][name] / it[other][name] for it in rounds)


def difference(rounds: Sequence[Round], one: Cell, other: Cell, name: str) -> Figure | None:
    """Returns the difference of one cell's figure and another's, within each round; None if one was not measured."""
    if one not in rounds[0] or other not in rounds[0]:
        return None
    return Figure.of(it[one][name] - it[other][name] for it in rounds)


def percentile(values: Sequence[float], share: float) -> float:
    """Returns the percentile by nearest rank; 0 if there are no values."""
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))] if ordered else 0.0
