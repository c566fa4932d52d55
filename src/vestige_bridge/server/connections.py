"""All connections of clients: their limit, which idle one is closed at the limit, and their idle times.

Invariant: a connection with a request in flight is never closed for another, and unauthenticated connections never keep
out a client with a token. One timer checks the times of all connections.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Final, Protocol

from vestige_bridge.upstream.answer_budget import AnswerBudget

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 0.5
"""How often the times of the connections are checked."""

UNAUTHENTICATED_IDLE_SECONDS: Final = 75.0
"""How long a connection without an authenticated request may be idle: longer than load balancers usually wait."""

HEAD_SECONDS: Final = 30.0
"""Time limit for a head from its first byte."""

LINGER_SECONDS: Final = 2.0
"""Time limit for reading and dropping the rest of a request after its answer."""

STALLED_SECONDS: Final = 1.0
"""A client that reads nothing for this long makes no progress."""

ARRIVING_HEADS_BYTES: Final = 16_777_216
"""Maximum bytes of incomplete heads in all connections."""

RESERVED_DESCRIPTORS: Final = 64
"""Descriptors for listeners, files, and connections that are being accepted or closed."""

MOST: Final = 8_192
"""Maximum number of connections, however many descriptors there are."""

ENDED: Final = ("send_timeout", "unsent_bytes")
"""Reasons for ending an answer that its client did not read."""


class WatchedConnection(Protocol):
    """A connection with time limits.

    Attributes:
        principal: the principal of its last authenticated request; ``None`` without one.
        idle_since: when its last request ended, in seconds of the event loop's clock; ``None`` with one in flight.
    """

    principal: str | None
    idle_since: float | None

    def watch(self, now: float) -> None:
        """Enforces its time limits."""

    def close_idle(self) -> None:
        """Closes the idle connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits on connections.

    Attributes:
        connections: the maximum number of connections.
        keep_alive_seconds: how long one may be idle after an authenticated request.
        send_seconds: how long a client may read nothing of an answer.
    """

    connections: int
    keep_alive_seconds: float
    send_seconds: float


def connection_limit(upstream_connections: int) -> int:
    """The maximum number of client connections by the process's descriptors, less those for upstream and a reserve.

    Parameters:
        upstream_connections: the maximum number of connections to upstream.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    spare = soft - RESERVED_DESCRIPTORS - upstream_connections
    return max(min(spare, MOST), min(soft // 2, RESERVED_DESCRIPTORS))


class Connections:
    """The connections of all clients.

    Parameters:
        limits: their limits.
        held: the budget for large answers.

    Attributes:
        limits: their limits.
        held: the budget for large answers.
        closed_for_room: how many idle connections were closed for new ones.
        refused: how many connections were answered 503, because all others were busy.
        ended: how many answers were ended because their client did not read them, by reason.
        head_bytes: the bytes of incomplete heads.
    """

    def __init__(self, limits: Limits, held: AnswerBudget) -> None:
        self.limits = limits
        self.held = held
        self.closed_for_room = 0
        self.refused = 0
        self.ended = Counter(dict.fromkeys(ENDED, 0))
        self.head_bytes = 0
        self._all: set[WatchedConnection] = set()
        self._unauthenticated: dict[WatchedConnection, None] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        """The number of connections."""
        return len(self._all)

    @property
    def heads_fit(self) -> bool:
        """Whether the incomplete heads are within their limit."""
        return self.head_bytes <= ARRIVING_HEADS_BYTES

    def admit(self, connection: WatchedConnection) -> bool:
        """Adds a new connection, and closes an idle one if there are too many.

        Returns:
            Whether it is within the limit; if not, the caller must reject and close it.
        """
        fits = True
        # Rejected connections that are not closed yet count too, so one may have to be closed besides the idle one.
        while fits and len(self._all) >= self.limits.connections:
            fits = self._close_longest_idle()
        self.refused += not fits
        self._all.add(connection)
        if self._timer is None:
            self._start_timer(asyncio.get_running_loop())
        return fits

    def forget(self, connection: WatchedConnection) -> None:
        """Removes a closed connection."""
        self._all.discard(connection)
        self._unauthenticated.pop(connection, None)
        if not self._all and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def unauthenticated_idle(self, connection: WatchedConnection) -> None:
        """Records that a connection without an authenticated request is idle from now on."""
        self._unauthenticated[connection] = None

    def unauthenticated_busy(self, connection: WatchedConnection) -> None:
        """Records that such a connection has a request, or is authenticated now."""
        self._unauthenticated.pop(connection, None)

    def _close_longest_idle(self) -> bool:
        """Closes the longest idle unauthenticated connection, or else that of the principal with the most."""
        victim = next(iter(self._unauthenticated), None) or self._longest_idle()
        if victim is None:
            return False
        self.closed_for_room += 1
        self.forget(victim)
        victim.close_idle()
        return True

    def _longest_idle(self) -> WatchedConnection | None:
        by_principal: dict[str | None, list[WatchedConnection]] = {}
        for connection in self._all:
            if connection.idle_since is not None:
                by_principal.setdefault(connection.principal, []).append(connection)
        most = max(by_principal.values(), key=len, default=None)
        return None if most is None else min(most, key=lambda it: it.idle_since or 0.0)

    def _start_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = loop.call_later(TICK_SECONDS, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._all):
            connection.watch(now)
        self.held.balance(now)
        if self._all:
            self._start_timer(loop)
        else:
            self._timer = None
