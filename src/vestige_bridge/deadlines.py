"""Many timeouts of one length for the price of one timer.

The law of this room: what was started last is due last, so only the first of all has to be watched. Starting and
stopping are an entry of a dictionary each, and no timer of the event loop: with timers a request costs 1.1 times
the CPU time (`make bench-tricks`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Things that must not take longer than a time that is the same for all of them.

    Parameters:
        seconds: that time.
        expire: called with each thing that was not stopped in time.

    Attributes:
        seconds: that time.
    """

    def __init__(self, seconds: float, expire: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._expire = expire
        self._due: dict[T, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, thing: T) -> None:
        """Begins the time of a thing, or begins it anew."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._due.pop(thing, None)
        self._due[thing] = due = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._tick, loop)

    def stop(self, thing: T) -> None:
        """Ends the time of a thing; nothing happens if it has none."""
        self._due.pop(thing, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        expired = []
        for thing, due in self._due.items():
            if due > now:
                self._timer = loop.call_at(due, self._tick, loop)
                break
            expired.append(thing)
        for thing in expired:
            if self._due.pop(thing, None) is not None:
                self._expire(thing)
