"""One HTTP request to the endpoint: its body, its sender, and its response.

Invariant: a body is accepted only if it is plain JSON of a bounded size that arrives in time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect
from starlette.responses import Response as HttpResponse
from starlette.types import Receive, Scope, Send

from vestige_bridge.access.record import CONNECTION, TRACE, AccessRecord, ClientConnection, traceparent_of
from vestige_bridge.endpoint.response_writer import EventStreams, ResponseWriter
from vestige_bridge.errors import BodyTimeout, BodyTooLarge, UnsupportedMediaType
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.messages import AnyMessage, Request, Response
from vestige_bridge.mcp.methods import CALL_TOOL, LOGGABLE_METHODS
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.settings import Settings


class EndpointRequest:
    """One HTTP request, and the data that is read from it.

    Parameters:
        scope, receive, send: the ASGI arguments.
        settings: limits and timeouts.
        streams: the event streams of all clients.

    Attributes:
        headers: the request's headers.
        record: its access record.
        caller: the client.
        accepted: the media types that the client accepts.
        spelled_id: the id of its JSON-RPC request, once known.
        send: sends a part of the response.
    """

    __slots__ = (
        "_connection",
        "_receive",
        "_scope",
        "_settings",
        "_streams",
        "accepted",
        "caller",
        "headers",
        "record",
        "send",
        "spelled_id",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, settings: Settings, streams: EventStreams) -> None:
        record: AccessRecord = scope["state"]["access"]
        self._scope = scope
        self._receive = receive
        self.send = send
        self._settings = settings
        self.record = record
        self.headers = record.headers
        session_id = record.headers.text(headers.SESSION_ID)
        self.caller = Caller(record.authenticated, session_id)
        self.accepted = headers.accepted(record.headers)
        self.spelled_id: str | None = None
        self._connection: ClientConnection | None = scope.get("extensions", {}).get(CONNECTION)
        self._streams = streams

    @property
    def writer(self) -> ResponseWriter:
        """The response writer; the request calls this once."""
        # Not stored: the reference cycle would delay freeing both until garbage collection.
        return ResponseWriter(self.send, self.accepted, self._streams, self.client_left)

    @property
    def principal(self) -> str:
        """The principal of the request's token."""
        return self.caller.principal

    @property
    def protocol_version(self) -> str | None:
        """The version that the request declares in its header."""
        return headers.single_value(self.headers, headers.PROTOCOL_VERSION)

    @property
    def header_lines(self) -> str:
        """The client's header lines for upstream."""
        return headers.upstream_lines(self.headers, self.caller.principal, self.record.request_id)

    async def respond(self, response: HttpResponse) -> None:
        """Sends a complete response."""
        await response(self._scope, self._receive, self.send)

    def note(self, message: AnyMessage, knows_tool: Callable[[str], bool]) -> None:
        """Stores the id for errors and, for the access log, the names that are known."""
        if isinstance(message, Response):
            return
        if TRACE in message.meta_keys:
            self.record.traceparent = traceparent_of(message)
        self.record.method = message.method if message.method in LOGGABLE_METHODS else "other"
        if isinstance(message, Request):
            self.spelled_id = message.spelled_id
            if message.method == CALL_TOOL:
                self.record.tool = message.name if knows_tool(message.name or "") else "other"

    def client_left(self) -> bool:
        """Whether the client has disconnected, if the server reports it; the access record then says so."""
        connection = self._connection
        self.record.client_left = connection is not None and connection.client_left
        return self.record.client_left

    @asynccontextmanager
    async def watched(self, left: Callable[[], None]) -> AsyncIterator[None]:
        """Watches within the context whether the client disconnects; to be entered after the body is read.

        Parameters:
            left: called when it disconnects.
        """
        watching = asyncio.create_task(self._until_client_leaves(left))
        try:
            yield
        finally:
            watching.cancel()

    @asynccontextmanager
    async def listening(self, close: Callable[[], None]) -> AsyncIterator[None]:
        """Watches a stream of notifications: it ends when its client leaves, or with the OAuth token that opened it.

        Parameters:
            close: ends the stream.
        """
        token, expiry = self.record.access_token, None
        if token is not None:
            expiry = asyncio.get_running_loop().call_later(token.expires_at - time.time(), close)
        try:
            async with self.watched(close):
                yield
        finally:
            if expiry is not None:
                expiry.cancel()

    async def _until_client_leaves(self, left: Callable[[], None]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.record.client_left = True
        left()

    def body_now(self) -> bytes | None:
        """The body, if it is acceptable and came complete with its head; ``None`` if it is still arriving.

        Errors:
            UnsupportedMediaType, BodyTooLarge: it is not acceptable.
        """
        if not headers.is_json(self.headers):
            raise UnsupportedMediaType("Send the JSON-RPC message with the header `Content-Type: application/json`.")
        if headers.is_compressed(self.headers):
            raise UnsupportedMediaType("Send the body uncompressed, without Content-Encoding.")
        self._require_within_limit(headers.content_length(self.headers) or 0)
        body = None if self._connection is None else self._connection.whole_body()
        if body is not None:
            self._require_within_limit(len(body))
        return body

    async def body(self) -> bytes:
        """Waits for the rest of a body.

        Errors:
            BodyTooLarge, BodyTimeout: it is too large, or did not arrive in time.
            ClientDisconnect: the client disconnected.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                while True:
                    message = await self._receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    body += message.get("body", b"")
                    self._require_within_limit(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise BodyTimeout("The body did not arrive in time.") from None

    def _require_within_limit(self, length: int) -> None:
        limit = self._settings.max_body_bytes
        if length > limit:
            raise BodyTooLarge(
                f"The body is over the limit of {limit} bytes.", data={"limit_bytes": limit, "layer": "bridge"}
            )
