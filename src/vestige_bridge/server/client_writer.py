"""Writes to a client: in parts if it reads slowly, with a time limit if it does not read at all.

Invariant: bytes that wait for a client are counted, and dropped if they make no progress within a time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from vestige_bridge.server.connections import STALLED_SECONDS, Connections
from vestige_bridge.upstream.answer_budget import LARGE_BYTES

log = logging.getLogger(__name__)

WRITE_BYTES: Final = 65_536
"""How much of a large answer is passed to the transport at a time."""


class ClientWriter:
    """The writing half of a client's connection, and its time limits.

    Parameters:
        connections: all connections and their limits.
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
        """Whether the connection is closed or closing."""
        return self._closing or self._transport.is_closing()

    @property
    def write_paused(self) -> bool:
        """Whether the client reads more slowly than the bridge writes."""
        return self._write_paused

    def write(self, data: bytes) -> None:
        """Writes bytes at once."""
        self._transport.write(data)

    async def write_slowly(self, start: bytes, body: bytes, end: bytes) -> None:
        """Writes at the speed at which the client reads.

        Parameters:
            start: the bytes before the body.
            body: a part of the answer; a large one is counted until all of it is written.
            end: the bytes after the body.
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
        """Records that the client reads more slowly than the bridge writes."""
        self._write_paused = True
        self._progress_at = self._loop.time()

    def resume_writing(self) -> None:
        """Wakes a waiting write."""
        self._write_paused = False
        self._progress_at = self._loop.time()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def watch(self, now: float) -> None:
        """Enforces the time limits: a write without progress, an idle connection, a head, the rest of a request."""
        unsent = self._transport.get_write_buffer_size()
        if unsent and unsent >= self._unsent_before:
            if now - self._progress_at >= self._connections.limits.send_seconds:
                log.info("A connection was reset: its client does not read the answer")
                return self.give_up("send_timeout")
        else:
            self._progress_at = now
        self._unsent_before = unsent
        if self._deadline is not None and now >= self._deadline and not unsent:
            self.abort()
        return None

    def stalled(self, now: float) -> bool:
        """Whether the client has read nothing for a while."""
        return self._write_paused and now - self._progress_at >= STALLED_SECONDS

    def give_up(self, reason: str) -> None:
        """Ends an answer that the client does not read, and counts it."""
        self._connections.ended[reason] += 1
        self.abort()

    def close_idle(self) -> None:
        """Closes the idle connection."""
        self.abort()

    async def _drain(self) -> None:
        while self._write_paused and not self.closing:
            self._drained = self._loop.create_future()
            await self._drained
