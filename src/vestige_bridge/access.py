"""The access log: one line for each request, and nothing in it that a client wants kept.

The law of this room: what a line names comes from lists that the bridge knows; what a client invents is ``other``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vestige_bridge import headers
from vestige_bridge.logs import FIELDS

log = logging.getLogger(__name__)

CLIENT_CLOSED_REQUEST: Final = 499
QUIET_PATHS: Final = frozenset({"/health", "/readyz", "/livez"})
ENDPOINT_PATHS: Final = frozenset({"/mcp", "/mcp/"})


@dataclass(slots=True)
class AccessRecord:
    """What the rooms behind the log learn of a request.

    Attributes:
        request_id: the id that the log and the answer carry.
        method: the JSON-RPC method, or ``batch``.
        tool: the tool that is called, if upstream announced it.
        client_left: whether the client was gone before its answer.
    """

    request_id: str
    method: str | None = None
    tool: str | None = None
    client_left: bool = False


Observe = Callable[[str, AccessRecord, int, int, float], None]
"""Told of each request that is over: its path, its record, its status, the bytes sent, and the seconds it took."""


class AccessLog:
    """ASGI middleware that logs each request once it is over, and returns its ``X-Request-Id``.

    Parameters:
        app: what is logged.
        draining: whether the bridge is about to stop, so that clients are told to close their connections.
        observe: told of each request that is over.
    """

    def __init__(self, app: ASGIApp, draining: Callable[[], bool], observe: Observe) -> None:
        self._app = app
        self._draining = draining
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on and watches what is answered."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        record = AccessRecord(headers.request_id(scope["headers"]))
        scope.setdefault("state", {})["access"] = record
        started_at, status, sent_bytes = time.perf_counter(), HTTPStatus.INTERNAL_SERVER_ERROR.value, 0

        async def send_watched(message: Message) -> None:
            nonlocal status, sent_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
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
        level = logging.DEBUG if scope["path"] in QUIET_PATHS and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        fields = {
            "http": scope["method"],
            "path": scope["path"] if scope["path"] in QUIET_PATHS | ENDPOINT_PATHS else "other",
            "method": record.method,
            "tool": record.tool,
            "principal": scope["state"].get("principal"),
            "agent": headers.text(scope["headers"], headers.AGENT_ID),
            "request_id": record.request_id,
            "trace_id": headers.trace_id(scope["headers"]),
            "status": status,
            "duration_ms": round(seconds * 1000, 1),
            "bytes": sent_bytes,
        }
        log.log(level, "request", extra={FIELDS: fields})
