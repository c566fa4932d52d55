"""One HTTP request to the MCP endpoint: its body, who sent it, and the way back.

The law of this room: a body is taken only if it is plain JSON of a bounded size that arrives in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from vestige_bridge import headers
from vestige_bridge.access import AccessRecord
from vestige_bridge.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from vestige_bridge.jsonrpc import AnyMessage, Request, Response
from vestige_bridge.multiplexer import Caller
from vestige_bridge.relay import Relay
from vestige_bridge.settings import Settings

KNOWN_METHODS: Final = frozenset(
    {
        "completion/complete",
        "initialize",
        "logging/setLevel",
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
        "ping",
        "prompts/get",
        "prompts/list",
        "resources/list",
        "resources/read",
        "resources/subscribe",
        "resources/templates/list",
        "resources/unsubscribe",
        "server/discover",
        "subscriptions/listen",
        "tools/call",
        "tools/list",
    }
)
"""The methods that a log may name."""


class Visit:
    """One HTTP request, and what is learnt of it on the way.

    Parameters:
        scope, receive, send: as ASGI gives them.
        settings: limits and timeouts.

    Attributes:
        headers: the request's headers.
        record: what the access log says of it.
        caller: whose it is.
        upstream_headers: what goes to upstream with its messages.
        spelled_id: the id of the JSON-RPC request in it, once known.
        answering: whether the answer has begun.
        relay: the way back.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings) -> None:
        self._http = HttpRequest(scope, receive)
        self._settings = settings
        self._asgi_send = send
        self.headers: list[tuple[bytes, bytes]] = scope["headers"]
        self.record: AccessRecord = scope["state"]["access"]
        self.principal: str = scope["state"]["principal"]
        session_id = headers.text(self.headers, headers.SESSION_ID)
        self.caller = Caller(self.principal, session_id, read_only=scope["state"]["read_only"])
        self.upstream_headers = headers.upstream_headers(self.headers, self.principal, self.record.request_id)
        self.protocol_version = headers.text(self.headers, headers.PROTOCOL_VERSION)
        self.accepted = headers.accepted(self.headers)
        self.spelled_id: str | None = None
        self.answering = False
        self.relay = Relay(self.send, self.accepted, settings.heartbeat_seconds, self.client_left)

    async def send(self, message: AsgiMessage) -> None:
        """Sends a part of the answer."""
        self.answering = True
        await self._asgi_send(message)

    async def respond(self, response: HttpResponse) -> None:
        """Sends a whole answer."""
        await response(self._http.scope, self._http.receive, self.send)

    def note(self, message: AnyMessage, knows_tool: Callable[[str], bool]) -> None:
        """Keeps the id for an error and, for the log, such names as are known."""
        if isinstance(message, Response):
            return
        self.record.method = message.method if message.method in KNOWN_METHODS else "other"
        if isinstance(message, Request):
            self.spelled_id = message.spelled_id
            if message.method == "tools/call":
                self.record.tool = message.name if knows_tool(message.name or "") else "other"

    async def client_left(self) -> bool:
        """Whether the client is gone; the log then says so."""
        self.record.client_left = await self._http.is_disconnected()
        return self.record.client_left

    async def until_client_leaves(self) -> None:
        """Waits until the client is gone; to be called once the body was read."""
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        self.record.client_left = True

    async def body(self) -> bytes:
        """The body, if it is one that we take.

        Errors:
            UnsupportedMediaType, BodyTooLarge, BodyTimeout: it is not.
            ClientDisconnect: it was cut short.
        """
        limit = self._settings.max_body_bytes
        if not headers.is_json(self.headers):
            raise UnsupportedMediaType("Send the JSON-RPC message with the header `Content-Type: application/json`.")
        if headers.is_compressed(self.headers):
            raise UnsupportedMediaType("Send the body uncompressed, without Content-Encoding.")
        too_large = BodyTooLarge(
            f"The body is over the limit of {limit} bytes.", data={"limit_bytes": limit, "layer": "bridge"}
        )
        if (headers.content_length(self.headers) or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                async for chunk in self._http.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise BodyTimeout("The body did not arrive in time.") from None
        return bytes(body)
