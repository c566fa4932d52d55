"""The rate limit on opening upstream sessions.

Invariant: two sessions are opened at least a second apart, and further apart while they do not last.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Final

LEAST_SECONDS: Final = 1.0
"""The shortest time between two openings."""

LONGEST_SECONDS: Final = 4.0
"""The longest wait after the previous opening: shorter than the default time that a request waits for a session."""

LASTING_SECONDS: Final = 10.0
"""A session that lasted this long does not count as a repeated loss."""


class Pacing:
    """Exponential backoff with jitter for sessions that are lost soon after they are opened.

    Parameters:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._opened_at = self._opened_before = -math.inf
        self._losses = 0

    def opened(self) -> None:
        """Records that upstream was asked for a session."""
        self._opened_before, self._opened_at = self._opened_at, self._clock()

    def lost(self) -> None:
        """Records that the session was lost, or could not be opened."""
        lasted_seconds = self._clock() - self._opened_at
        self._losses = self._losses + 1 if lasted_seconds < LASTING_SECONDS else 0

    def failed(self, *, reached: bool) -> None:
        """Records that no session was opened.

        Parameters:
            reached: whether upstream may have received the request; otherwise no session was opened.
        """
        if reached:
            self.lost()
        else:
            self._opened_at = self._opened_before

    def delay_seconds(self) -> float:
        """How long to wait before upstream is asked for another session."""
        longest = min(LONGEST_SECONDS, LEAST_SECONDS * 2.0 ** min(max(self._losses - 1, 0), 16))
        apart_seconds = random.uniform(LEAST_SECONDS, longest)  # noqa: S311
        return max(0.0, self._opened_at + apart_seconds - self._clock())
