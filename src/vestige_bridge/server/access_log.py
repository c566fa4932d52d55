"""The access log: one line for each request, without private data of the client.

Invariant: names in a line come from lists that the bridge has; a name that a client invents is ``other``.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vestige_bridge import logs
from vestige_bridge.access.oauth import RESOURCE_METADATA
from vestige_bridge.access.record import ENDPOINT_PATHS, PROBE_PATHS, AccessRecord
from vestige_bridge.http import headers
from vestige_bridge.http.forwarded import client_address
from vestige_bridge.settings import Network

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST: Final = 499
MOST_IN_A_MINUTE: Final = 10_000
_NAMED_PATHS: Final = PROBE_PATHS | ENDPOINT_PATHS


Observe = Callable[[str, AccessRecord, int, int, float], None]
"""Called for each ended request: its path, its record, its status, the bytes sent, and its duration in seconds."""


def _named(path: str, status: int) -> str:
    """A path as a line names it: one that is served, and no more of it than is known."""
    if path in _NAMED_PATHS:
        return path
    return RESOURCE_METADATA if status != 404 and path.startswith(RESOURCE_METADATA) else "other"


class LastMinute:
    """Counts the events of the last minute, up to ``MOST_IN_A_MINUTE``.

    Parameters:
        clock: returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=MOST_IN_A_MINUTE)

    def count(self) -> int:
        """Counts one event; returns how many there were in the last minute."""
        now = self._clock()
        self._times.append(now)
        while self._times[0] <= now - 60:
            self._times.popleft()
        return len(self._times)


class AccessLog:
    """ASGI middleware that logs each request after it ends, and returns its ``X-Request-Id``.

    Parameters:
        app: the application.
        draining: whether the bridge is about to stop, so that clients close their connections.
        observe: called for each ended request.
        write: writes a line.
        trusted_proxies: the proxies whose ``X-Forwarded-For`` is trusted.
    """

    def __init__(
        self,
        app: ASGIApp,
        draining: Callable[[], bool],
        observe: Observe,
        write: logs.Write = logs.write,
        trusted_proxies: tuple[Network, ...] = (),
    ) -> None:
        self._app = app
        self._draining = draining
        self._observe = observe
        self._write_line = write
        self._trusted_proxies = trusted_proxies
        self._not_found = LastMinute(time.monotonic)
        # An id is a prefix unique to this process and a number, which is cheaper than a random id for each.
        self._process = os.urandom(6).hex()
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forwards the request and observes the response."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_headers = headers.Headers(scope["headers"])
        request_id = headers.request_id(request_headers) or f"{self._process}{next(self._numbers):08x}"
        record = AccessRecord(request_headers, request_id)
        scope.setdefault("state", {})["access"] = record
        started_at, status, sent_bytes = time.perf_counter(), 500, 0

        async def send_watched(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                record.answering, status = True, message["status"]
                raw = [*message.get("headers", []), (headers.REQUEST_ID, record.request_id.encode())]
                if self._draining():
                    raw.append((b"connection", b"close"))
                message["headers"] = raw
            else:
                sent_bytes += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, send_watched)
        finally:
            seconds = time.perf_counter() - started_at
            status = CLIENT_CLOSED_REQUEST if record.client_left else status
            self._observe(scope["path"], record, status, sent_bytes, seconds)
            self._write(scope, record, status, sent_bytes, seconds)

    def _write(self, scope: Scope, record: AccessRecord, status: int, sent_bytes: int, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in PROBE_PATHS and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = {
            "http": scope["method"],
            "path": _named(scope["path"], status),
            "method": record.method,
            "tool": record.tool,
            "principal": record.principal,
            "agent": record.headers.text(headers.AGENT_ID),
            "request_id": record.request_id,
            "trace_id": record.trace_id(),
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "bytes": sent_bytes,
        }
        if status == 401:
            peer = scope.get("client")
            fields["client"] = client_address(record.headers, peer and peer[0], self._trusted_proxies)
        elif status == 404 and fields["path"] == "other":
            fields["not_found_in_a_minute"] = self._not_found.count()
        self._write_line(log, level, "request", fields)
