"""Writing to a client: in pieces where it reads slowly, and not for ever where it does not read at all.

Invariant: what waits for a client is counted, makes progress within a time, and is otherwise given up.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from vestige_bridge.server.connections import STALLED_SECONDS, Connections
from vestige_bridge.upstream.answer_budget import LARGE_BYTES

log = logging.getLogger(__name__)

WRITE_BYTES: Final = 65_536
"""How much of a large answer is handed to the transport at a time."""


class ClientWriter:
    """The writing half of a client's connection, and the times that bound the connection.

    Parameters:
        connections: the record of all connections and their limits.
        loop: the event loop.
    """

    __slots__ = (
        "_closing",
        "_connections",
        "_deadline",
        "_drained",
        "_loop",
        "_progress_at",
        "_transport",
        "_unsent_before",
        "_write_paused",
    )

    _transport: asyncio.Transport

    def __init__(self, connections: Connections, loop: asyncio.AbstractEventLoop) -> None:
        self._connections = connections
        self._loop = loop
        self._closing = False
        self._write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._deadline: float | None = None
        self._unsent_before = 0
        self._progress_at = 0.0

    @property
    def closing(self) -> bool:
        """Whether the connection is closed or about to be."""
        return self._closing or self._transport.is_closing()

    @property
    def write_paused(self) -> bool:
        """Whether the client reads more slowly than it is written to."""
        return self._write_paused

    def write(self, data: bytes) -> None:
        """Writes bytes that belong together in one piece."""
        self._transport.write(data)

    async def write_slowly(self, start: bytes, body: bytes, end: bytes) -> None:
        """Writes as the client reads.

        Parameters:
            start: what precedes the body.
            body: a piece of the answer; if it is large it is counted as held until all of it is written.
            end: what follows the body.
        """
        held = self._connections.held
        if len(body) > LARGE_BYTES:
            held.waiting(self, len(body))
        try:
            await self._drain()
            if not self.closing:
                self._transport.write(start)
            with memoryview(body) as view:
                for position in range(0, len(view), WRITE_BYTES):
                    await self._drain()
                    if self.closing:
                        return
                    self._transport.write(bytes(view[position : position + WRITE_BYTES]))
            if end and not self.closing:
                self._transport.write(end)
        finally:
            held.waiting(self, 0)

    def abort(self) -> None:
        """Resets the connection: an answer that has begun cannot be completed."""
        self._closing = True
        self._transport.abort()

    def pause_writing(self) -> None:
        """Takes note that the client reads more slowly than it is written to."""
        self._write_paused = True
        self._progress_at = self._loop.time()

    def resume_writing(self) -> None:
        """Wakes what waits to write."""
        self._write_paused = False
        self._progress_at = self._loop.time()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def watch(self, now: float) -> None:
        """Ends what takes too long: a write without progress, an idle connection, a head, the rest of a request."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent_before:
            if now - self._progress_at >= self._connections.limits.send_seconds:
                log.info("A connection was reset: its client takes nothing of an answer")
                return self.give_up("send_timeout")
        else:
            self._progress_at = now
        self._unsent_before = unsent
        if self._deadline is not None and now >= self._deadline and not unsent:
            self.abort()
        return None

    def stalled(self, now: float) -> bool:
        """Whether the client has taken nothing for a while."""
        return self._write_paused and now - self._progress_at >= STALLED_SECONDS

    def give_up(self, reason: str) -> None:
        """Ends an answer that the client does not read, and counts it."""
        self._connections.ended[reason] += 1
        self.abort()

    def make_room(self) -> None:
        """Closes the connection, which idles."""
        self.abort()

    async def _drain(self) -> None:
        while self._write_paused and not self.closing:
            self._drained = self._loop.create_future()
            await self._drained
