"""How many calls of tools a principal may make in a minute.

Invariant: a principal that made no call for a minute may make a minute's calls at once, and never more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

MINUTE_SECONDS: Final = 60.0

MAX_KEPT: Final = 4_096
"""From how many principals on those are forgotten that made no call for a minute."""


class RateLimits:
    """A token bucket for each principal that has a limit: it holds a minute's calls and is refilled evenly.

    Parameters:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # When the bucket of each principal would be full again: one number says how full it is (GCRA).
        self._full_at: dict[str, float] = {}

    def take(self, principal: str, rate: int) -> int:
        """Takes a call from a principal's bucket.

        Parameters:
            principal: who calls.
            rate: how many calls it may make in a minute.

        Returns:
            0 if it may call now, otherwise after how many seconds, at least 1, it may.
        """
        now, interval = self._clock(), MINUTE_SECONDS / rate
        full_at = max(self._full_at.get(principal, now), now) + interval
        early = full_at - now - MINUTE_SECONDS
        # A difference of rounding is no reason to wait.
        if early > 1e-6:
            return math.ceil(early)
        if len(self._full_at) >= MAX_KEPT:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        self._full_at[principal] = full_at
        return 0
