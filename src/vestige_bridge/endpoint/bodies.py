"""Bodies that did not come whole with their heads: how many may be on their way, and whose makes way for another's.

Invariant: a principal with few bodies on their way is not refused because another one has all the room.
"""

from __future__ import annotations

import asyncio

from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.errors import Overloaded


class ArrivingBodies:
    """The bodies on their way.

    Parameters:
        most: how many there may be.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, dict[asyncio.Timeout, None]] = {}

    async def receive(self, incoming: EndpointRequest) -> bytes:
        """Waits for the body of a request.

        Errors:
            Overloaded: too many are on their way, or this one made way for another principal's.
            BodyTooLarge, BodyTimeout: it is not one that we take.
            ClientDisconnect: it was cut short.
        """
        if self._count >= self._most:
            self._make_room(incoming.principal)
        try:
            async with asyncio.timeout(None) as arriving:
                self._count += 1
                self._of.setdefault(incoming.principal, {})[arriving] = None
                try:
                    return await incoming.body()
                finally:
                    self._forget(incoming.principal, arriving)
        except TimeoutError:
            raise _too_many() from None

    def _make_room(self, newcomer: str) -> None:
        """Refuses the newest body of the principal with the most, if that has more than the newcomer.

        Errors:
            Overloaded: it has not.
        """
        largest = max(self._of, key=lambda principal: len(self._of[principal]))
        if len(self._of[largest]) <= len(self._of.get(newcomer, ())):
            raise _too_many()
        newest = next(reversed(self._of[largest]))
        self._forget(largest, newest)
        newest.reschedule(asyncio.get_running_loop().time())

    def _forget(self, principal: str, arriving: asyncio.Timeout) -> None:
        """Counts a body no more; nothing happens if it is not counted."""
        bodies = self._of.get(principal, {})
        if arriving not in bodies:
            return
        del bodies[arriving]
        self._count -= 1
        if not bodies:
            del self._of[principal]


def _too_many() -> Overloaded:
    return Overloaded("Too many bodies are on their way.", data={"outcome": "not_sent", "retryable": True})
