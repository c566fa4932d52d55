"""The limit on a principal's tool calls in a minute.

Invariant: a principal that made no call for a minute may make a minute's calls at once, and never more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

MINUTE_SECONDS: Final = 60.0

MAX_KEPT: Final = 4_096
"""Above this number of principals, those that made no call for a minute are removed."""


class RateLimits:
    """A token bucket for each principal that has a limit: its capacity is a minute's calls; it refills evenly.

    Parameters:
        clock: gives the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # The time at which each principal's bucket is full again; this one number gives its level (GCRA).
        self._full_at: dict[str, float] = {}

    def take(self, principal: str, rate: int) -> int:
        """Takes one call from a principal's bucket.

        Parameters:
            principal: the name of the principal.
            rate: its maximum number of calls in a minute.

        Returns:
            0 if the call is allowed, otherwise the seconds until it is, at least 1.
        """
        now, interval = self._clock(), MINUTE_SECONDS / rate
        full_at = max(self._full_at.get(principal, now), now) + interval
        early = full_at - now - MINUTE_SECONDS
        # Ignores rounding errors.
        if early > 1e-6:
            return math.ceil(early)
        if len(self._full_at) >= MAX_KEPT:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        self._full_at[principal] = full_at
        return 0

    def give_back(self, principal: str, rate: int) -> None:
        """Puts a call that was not made back into a principal's bucket.

        Parameters:
            principal: the name of the principal.
            rate: its maximum number of calls in a minute.
        """
        if principal in self._full_at:
            self._full_at[principal] -= MINUTE_SECONDS / rate
