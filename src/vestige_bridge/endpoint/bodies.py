"""Limits the number of request bodies that are being received, and chooses which one to reject at the limit.

Invariant: a principal with few bodies is not rejected because another one has taken the limit.
"""

from __future__ import annotations

import asyncio

from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.errors import Overloaded


class ArrivingBodies:
    """The bodies that are being received.

    Parameters:
        most: the maximum number.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._of: dict[str, dict[asyncio.Timeout, None]] = {}

    async def receive(self, incoming: EndpointRequest) -> bytes:
        """Waits for the body of a request.

        Errors:
            Overloaded: there are too many, or this one was rejected for another principal's.
            BodyTooLarge, BodyTimeout: it is too large, or did not arrive in time.
            ClientDisconnect: the client disconnected.
        """
        if self._count >= self._most:
            self._reject_newest(incoming.principal)
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

    def _reject_newest(self, newcomer: str) -> None:
        """Rejects the newest body of the principal with the most, if that has more than the newcomer.

        Errors:
            Overloaded: it does not have more.
        """
        largest = max(self._of, key=lambda principal: len(self._of[principal]))
        if len(self._of[largest]) <= len(self._of.get(newcomer, ())):
            raise _too_many()
        newest = next(reversed(self._of[largest]))
        self._forget(largest, newest)
        newest.reschedule(asyncio.get_running_loop().time())

    def _forget(self, principal: str, arriving: asyncio.Timeout) -> None:
        """Stops counting a body; does nothing if it is not counted."""
        bodies = self._of.get(principal, {})
        if arriving not in bodies:
            return
        del bodies[arriving]
        self._count -= 1
        if not bodies:
            del self._of[principal]


def _too_many() -> Overloaded:
    return Overloaded("Too many request bodies are being received.", data={"outcome": "not_sent", "retryable": True})
