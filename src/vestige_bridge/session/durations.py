"""A histogram of durations in Prometheus' format."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""The upper bounds, in seconds."""


class Durations:
    """The durations of one kind of operation.

    Attributes:
        buckets: counts between each bound and the previous one; the last counts values over all bounds.
        sum_seconds: the sum of all durations.
    """

    __slots__ = ("buckets", "sum_seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(BUCKETS) + 1)
        self.sum_seconds = 0.0

    def observe(self, seconds: float) -> None:
        """Adds a duration."""
        self.buckets[bisect_left(BUCKETS, seconds)] += 1
        self.sum_seconds += seconds
