"""The probes: whether the process runs, whether Vestige is connected, and whether it answers.

Invariant: requests without a token cannot load Vestige, and ``/readyz`` and ``/livez`` never wait.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from vestige_bridge.access.responses import json_response
from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import BridgeError, SessionLost
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.monitor import Monitor
from vestige_bridge.session.session import Session

SHARED_SECONDS: Final = 1.0
"""How long the result of one deep check is used for all requests."""

MAX_WAITING: Final = 64
"""Maximum number of requests that wait for a deep check: they need no token, and each keeps its connection busy."""


class Probes:
    """``/health``, ``/readyz`` and ``/livez``.

    Parameters:
        session: the shared session.
        dispatcher: sends the messages of clients.
        monitor: the state of the connection.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher, monitor: Monitor) -> None:
        self._session = session
        self._dispatcher = dispatcher
        self._monitor = monitor
        self._tasks = Tasks()
        self._deep_check: asyncio.Task[bool] | None = None
        self._deep_check_at = 0.0
        self._waiting = 0

    async def close(self) -> None:
        """Ends a deep check in progress."""
        await self._tasks.close()

    async def livez(self, request: Request) -> Response:
        """200 while the process runs."""
        return json_response({"status": "alive"})

    async def readyz(self, request: Request) -> Response:
        """200 if the last outcome was an answer from Vestige, otherwise 503; sends no request."""
        ready = self._monitor.ready and not self._dispatcher.draining
        health = self._monitor.health
        return json_response(
            {
                "status": "ready" if ready else "not_ready",
                "state": "draining" if self._dispatcher.draining else health.state.value,
                "reason": health.reason,
                "upstream_sessions": None if self._session.held is None else not self._session.stateless,
                "last_answer_age_seconds": self._monitor.answer_age_seconds,
            },
            200 if ready else 503,
        )

    async def health(self, request: Request) -> Response:
        """200 if Vestige now lists its tools, otherwise 503; if too many wait for this, the last known state."""
        now = time.monotonic()
        if self._deep_check is None or (self._deep_check.done() and now - self._deep_check_at >= SHARED_SECONDS):
            self._deep_check_at = now
            self._deep_check = self._tasks.start(self._check())
        # Without a token, no more than so many connections can be kept busy.
        healthy = await self._checked(self._deep_check) if self._waiting < MAX_WAITING else self._monitor.ready
        held = self._session.held
        return json_response(
            {
                "status": "ok" if healthy else "unavailable",
                "connected": held is not None,
                "reason": None if healthy else self._monitor.health.reason,
                "vestige": None if held is None else {"name": held.server_name, "version": held.server_version},
                "tools": len(self._session.catalog.tools) if healthy else None,
                "last_answer_age_seconds": self._monitor.answer_age_seconds,
            },
            200 if healthy else 503,
        )

    async def _checked(self, check: asyncio.Task[bool]) -> bool:
        self._waiting += 1
        try:
            return await asyncio.shield(check)
        finally:
            self._waiting -= 1

    async def _check(self) -> bool:
        if self._session.held is None:
            return False
        try:
            await self._session.discover_tools()
        except BridgeError as error:
            return isinstance(error, SessionLost) and await self._renewed()
        return True

    async def _renewed(self) -> bool:
        """Whether Vestige answers on a new session after the check found that the old one is lost."""
        try:
            await self._session.connected()
        except BridgeError:
            return False
        return True
