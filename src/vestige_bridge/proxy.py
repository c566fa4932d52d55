"""The MCP endpoint: one client message becomes one upstream exchange.

The law of this room: it knows JSON-RPC and the lifecycle of MCP, and nothing of what a tool means. What it refuses, it
refuses before anything went upstream.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from typing import Final

from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response as HttpResponse
from starlette.types import Message as AsgiMessage
from starlette.types import Receive, Scope, Send

from vestige_bridge import headers
from vestige_bridge.access import AccessRecord
from vestige_bridge.errors import (
    BodyTimeout,
    BodyTooLarge,
    BridgeError,
    InternalError,
    InvalidMessage,
    MethodNotAllowed,
    NotFound,
    UnsupportedMediaType,
)
from vestige_bridge.exchange import Exchange
from vestige_bridge.jsonrpc import (
    AnyMessage,
    Notification,
    Request,
    Response,
    build_error,
    build_result,
    parse_body,
    replace_member,
)
from vestige_bridge.modern import LEGACY_VERSIONS, require_legacy
from vestige_bridge.multiplexer import Caller
from vestige_bridge.relay import Relay
from vestige_bridge.responses import error_response
from vestige_bridge.session import Session
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
        "tools/call",
        "tools/list",
    }
)
"""The methods that a log may name."""

MAX_ENDED_SESSIONS: Final = 65_536
"""How many sessions that were ended by their clients are remembered."""

_KEPT_NOTIFICATIONS: Final = frozenset(
    {"notifications/initialized", "notifications/progress", "notifications/roots/list_changed"}
)
"""What a client says about itself, which upstream would take for something said about the session of all."""


class McpEndpoint:
    """ASGI endpoint for ``/mcp`` (MCP 2025-11-25, basic/transports, Streamable HTTP).

    Parameters:
        session: the held session.
        settings: limits and timeouts.
    """

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session = session
        self._settings = settings
        self._ended: OrderedDict[Caller, None] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request; whatever goes wrong becomes an error object."""
        started = False

        async def send_watched(message: AsgiMessage) -> None:
            nonlocal started
            started = True
            await send(message)

        visit = _Visit(HttpRequest(scope, receive), send_watched)
        try:
            if scope["method"] == "POST":
                await self._post(visit)
            elif scope["method"] == "DELETE":
                await self._delete(visit)
            else:
                raise MethodNotAllowed(
                    "POST a JSON-RPC message here, or DELETE a session; there is no stream to GET.",
                    headers={"allow": "POST, DELETE"},
                )
        except ClientDisconnect:
            visit.record.client_left = True
        except BridgeError as error:
            error.request_id = error.request_id or visit.spelled_id
            await error_response(error)(scope, receive, send)
        except Exception:
            if not started:
                failure = InternalError("The bridge failed; its log says why.", request_id=visit.spelled_id)
                await error_response(failure)(scope, receive, send)
            raise

    async def _post(self, visit: _Visit) -> None:
        message = parse_body(await self._read_body(visit.http))
        if visit.caller in self._ended:
            raise NotFound("This session was ended by its client; send initialize to begin another.")
        if isinstance(message, list):
            return await self._post_batch(visit, message)
        visit.note(message, self._session)
        message = self._servable(visit, message)
        if isinstance(message, Notification):
            await self._take_notification(visit, message)
            return await visit.respond(HttpResponse(status_code=202))
        self._session.admit(1)
        relay = self._relay(visit)
        if message.method == "initialize":
            version = _negotiated_version(message)
            minted = (headers.SESSION_ID, f"{version}.{secrets.token_hex(16)}".encode())
            return await relay.answer(await self._initialize(message, version), headers=[minted])
        await relay.exchange(self._open(visit, message))

    async def _post_batch(self, visit: _Visit, members: list[AnyMessage | InvalidMessage]) -> None:
        """Serves a batch (MCP 2025-03-26, basic/transports; JSON-RPC 2.0, section 6)."""
        visit.record.method = "batch"
        requests = sum(isinstance(member, Request) for member in members)
        if requests > self._settings.max_in_flight:
            raise InvalidMessage(f"A batch may hold {self._settings.max_in_flight} requests.")
        self._session.admit(requests)
        answers: list[Exchange | bytes] = []
        for member in members:
            try:
                if isinstance(member, InvalidMessage):
                    raise member
                message = self._servable(visit, member)
                if isinstance(message, Notification):
                    await self._take_notification(visit, message)
                elif message.method == "initialize":
                    raise InvalidMessage("initialize cannot be part of a batch.", request_id=message.spelled_id)
                else:
                    answers.append(self._open(visit, message))
            except BridgeError as error:
                answers.append(build_error(error, error.request_id))
        if not answers:
            return await visit.respond(HttpResponse(status_code=202))
        await self._relay(visit).batch(answers)

    async def _delete(self, visit: _Visit) -> None:
        """Ends the client's own session; the shared one stays (MCP 2025-11-25, basic/transports)."""
        if visit.caller.session_id is None:
            raise InvalidMessage("Name the session to end in the header Mcp-Session-Id.")
        if visit.caller in self._ended:
            raise NotFound("This session was ended by its client.")
        self._ended[visit.caller] = None
        if len(self._ended) > MAX_ENDED_SESSIONS:
            self._ended.popitem(last=False)
        await visit.respond(HttpResponse(status_code=204))

    async def _initialize(self, request: Request, version: str) -> bytes:
        """Upstream's own InitializeResult, with the version negotiated for this client."""
        held = await self._session.connected()
        return build_result(request.spelled_id, replace_member(held.initialize_result, "protocolVersion", version))

    async def _take_notification(self, visit: _Visit, notification: Notification) -> None:
        if notification.method == "notifications/cancelled":
            self._session.cancel(visit.caller, notification)
        elif notification.method not in _KEPT_NOTIFICATIONS:
            await self._session.notify(notification, visit.upstream_headers)

    def _open(self, visit: _Visit, request: Request) -> Exchange:
        return self._session.request(request, visit.caller, visit.upstream_headers)

    def _relay(self, visit: _Visit) -> Relay:
        accepted = headers.accepted(visit.http.scope["headers"])
        return Relay(visit.send, accepted, self._settings.heartbeat_seconds, visit.client_left)

    def _servable(self, visit: _Visit, message: AnyMessage) -> Request | Notification:
        """The message, unless it must not or cannot go upstream."""
        require_legacy(message, headers.text(visit.http.scope["headers"], headers.PROTOCOL_VERSION))
        if isinstance(message, Response):
            raise InvalidMessage("Nobody waits for this response: the bridge asks its clients nothing.")
        named_as_notification = message.method.startswith("notifications/")
        if isinstance(message, Notification) and not named_as_notification:
            raise InvalidMessage('A request needs an "id"; a notification has a method that begins "notifications/".')
        if isinstance(message, Request) and named_as_notification:
            raise InvalidMessage('A notification has no "id".', request_id=message.spelled_id)
        return message

    async def _read_body(self, http: HttpRequest) -> bytes:
        """The body, if it is one that we take.

        Errors:
            UnsupportedMediaType, BodyTooLarge, BodyTimeout: it is not.
            ClientDisconnect: it was cut short.
        """
        raw, limit = http.scope["headers"], self._settings.max_body_bytes
        if not headers.is_json(raw):
            raise UnsupportedMediaType("Send the JSON-RPC message with the header `Content-Type: application/json`.")
        if headers.is_compressed(raw):
            raise UnsupportedMediaType("Send the body uncompressed, without Content-Encoding.")
        too_large = BodyTooLarge(
            f"The body is over the limit of {limit} bytes.", data={"limit_bytes": limit, "layer": "bridge"}
        )
        if (headers.content_length(raw) or 0) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                async for chunk in http.stream():
                    body += chunk
                    if len(body) > limit:
                        raise too_large
        except TimeoutError:
            raise BodyTimeout("The body did not arrive in time.") from None
        return bytes(body)


class _Visit:
    """One HTTP request to the endpoint, and what is learnt of it on the way."""

    def __init__(self, http: HttpRequest, send: Send) -> None:
        self.http = http
        self.send = send
        self.record: AccessRecord = http.scope["state"]["access"]
        self.spelled_id: str | None = None
        raw, principal = http.scope["headers"], http.scope["state"]["principal"]
        self.caller = Caller(principal, headers.text(raw, headers.SESSION_ID))
        self.upstream_headers = headers.upstream_headers(raw, principal, self.record.request_id)

    def note(self, message: AnyMessage, session: Session) -> None:
        """Keeps the id for an error and, for the log, such names as are known."""
        if isinstance(message, Response):
            return
        self.record.method = message.method if message.method in KNOWN_METHODS else "other"
        if isinstance(message, Request):
            self.spelled_id = message.spelled_id
            if message.method == "tools/call":
                self.record.tool = message.name if message.name in session.tools else "other"

    async def respond(self, response: HttpResponse) -> None:
        """Sends a whole response."""
        await response(self.http.scope, self.http.receive, self.send)

    async def client_left(self) -> bool:
        """Whether the client is gone; the log then says so."""
        self.record.client_left = await self.http.is_disconnected()
        return self.record.client_left


def _negotiated_version(request: Request) -> str:
    """The version that the client asked for if it is spoken here, otherwise the latest (MCP 2025-11-25, lifecycle)."""
    asked = request.params.get("protocolVersion")
    return asked.value if asked is not None and asked.value in LEGACY_VERSIONS else LEGACY_VERSIONS[0]
