"""The endpoint ``/mcp``: one client message becomes one upstream exchange.

Invariant: it decides which era and which session a message belongs to, and turns whatever goes wrong into
an error object. What is refused is refused before anything went upstream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.permissions import UNRESTRICTED
from vestige_bridge.access.responses import error_response
from vestige_bridge.endpoint.bodies import ArrivingBodies
from vestige_bridge.endpoint.gate import Gate, Judged
from vestige_bridge.endpoint.modern_clients import ModernClients
from vestige_bridge.endpoint.per_client_mode import ClientSessions
from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.endpoint.response_writer import EventStreams
from vestige_bridge.endpoint.shared_mode import SharedMode
from vestige_bridge.errors import (
    BridgeError,
    InternalError,
    InvalidMessage,
    MethodNotAllowed,
    UpstreamTimeout,
)
from vestige_bridge.http.headers import SESSION_ID
from vestige_bridge.jsonrpc.messages import AnyMessage, Request
from vestige_bridge.jsonrpc.parser import parse_body
from vestige_bridge.mcp.methods import INITIALIZE
from vestige_bridge.mcp.modern import is_modern, require_supported
from vestige_bridge.mcp.versions import MODERN_VERSIONS
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.session import Session
from vestige_bridge.settings import Settings


class Endpoint:
    """ASGI endpoint for ``/mcp`` (MCP 2025-11-25 and 2026-07-28, basic/transports, Streamable HTTP).

    Parameters:
        session: the held session.
        dispatcher: sees the messages of clients through.
        settings: limits and timeouts.
        client_sessions: the clients' own sessions in per-client mode; ``None`` when all share the held one.
        audit: the audit log; ``None`` for none.

    Attributes:
        streams: the event streams of all clients.
        gate: judges their messages.
    """

    def __init__(
        self,
        session: Session,
        dispatcher: Dispatcher,
        settings: Settings,
        client_sessions: ClientSessions | None,
        audit: AuditLog | None = None,
    ) -> None:
        self._session = session
        self._dispatcher = dispatcher
        self._settings = settings
        self._shared = SharedMode(session, dispatcher)
        self._modern = ModernClients(session, dispatcher)
        self._client_sessions = client_sessions
        self._bodies = ArrivingBodies(settings.max_in_flight)
        self.gate = Gate(session, dispatcher, audit)
        self.streams = EventStreams(settings.heartbeat_seconds)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request."""
        incoming = EndpointRequest(scope, receive, send, self._settings, self.streams)
        try:
            await (self._post(incoming) if scope["method"] == "POST" else self._serve(incoming, scope["method"]))
        except ClientDisconnect:
            incoming.record.client_left = True
        except BridgeError as error:
            error.request_id = error.request_id or incoming.spelled_id
            await incoming.respond(error_response(error))
        except Exception:
            if not incoming.record.answering:
                failure = InternalError("The bridge failed; its log says why.", request_id=incoming.spelled_id)
                await incoming.respond(error_response(failure))
            raise

    async def _serve(self, incoming: EndpointRequest, http_method: str) -> None:
        own = self._client_sessions
        if http_method in ("DELETE", "GET"):
            require_supported(incoming.protocol_version)
        if http_method == "DELETE":
            self._shared.require_not_ended(incoming.caller)
            await (own.end(incoming) if own is not None else self._shared.end(incoming))
        elif http_method == "GET":
            if not incoming.accepted.event_stream or incoming.protocol_version in MODERN_VERSIONS:
                raise MethodNotAllowed(
                    "GET opens a session's event stream and needs `Accept: text/event-stream`; "
                    "requests are POSTed, and modern clients send subscriptions/listen.",
                    headers={"allow": "GET, POST, DELETE"},
                )
            self._shared.require_not_ended(incoming.caller)
            await (own.listen(incoming) if own is not None else self._shared.listen(incoming))
        else:
            raise MethodNotAllowed("This path takes GET, POST and DELETE.", headers={"allow": "GET, POST, DELETE"})

    async def _post(self, incoming: EndpointRequest) -> None:
        body = incoming.body_now()
        if body is None:
            body = await self._bodies.receive(incoming)
        message = parse_body(body)
        if isinstance(message, list):
            return await self._post_batch(incoming, message)
        incoming.note(message, self._session.catalog.tools.__contains__)
        try:
            if incoming.record.permissions is not UNRESTRICTED or self.gate.judges_all:
                (judged,) = await self.gate.judge(incoming.record, [message])
                if isinstance(judged, BridgeError):
                    raise judged
            if is_modern(message, incoming.protocol_version):
                return await self._modern.serve(incoming, message)
            self._shared.require_not_ended(incoming.caller)
            if self._client_sessions is not None and _belongs_to_session(incoming, message):
                return await self._client_sessions.serve(incoming, message)
            await self._shared.serve(incoming, message)
        except BaseException as error:
            self._note(incoming, [message], error)
            raise

    async def _post_batch(self, incoming: EndpointRequest, members: Sequence[Judged]) -> None:
        record = incoming.record
        judged: Sequence[Judged] = members
        try:
            for member in members:
                if not isinstance(member, BridgeError) and is_modern(member, incoming.protocol_version):
                    raise InvalidMessage("The modern era of MCP has no batches; send each request by itself.")
            self._shared.require_not_ended(incoming.caller)
            if record.permissions is not UNRESTRICTED or self.gate.judges_all:
                judged = await self.gate.judge(record, members)
            for message, judgement in zip(members, judged, strict=True):
                if isinstance(judgement, BridgeError) and not isinstance(message, BridgeError):
                    self.gate.refuse(record, message, judgement)
            if self._client_sessions is not None and SESSION_ID in incoming.headers:
                return await self._client_sessions.serve_batch(incoming, judged)
            await self._shared.serve_batch(incoming, judged)
        except BaseException as error:
            self._note(incoming, judged, error)
            raise

    def _note(self, incoming: EndpointRequest, messages: Sequence[Judged], error: BaseException) -> None:
        """Has the gate take note of messages that were refused, or that failed before any of them was accepted."""
        if isinstance(error, asyncio.CancelledError):
            error = UpstreamTimeout("The bridge had to stop.")
        elif not isinstance(error, BridgeError):
            error = InternalError("The bridge failed.")
        self.gate.note(incoming.record, messages, error)


def _belongs_to_session(incoming: EndpointRequest, message: AnyMessage) -> bool:
    """Whether the message opens or names a session, as legacy clients do and plain posters do not."""
    opens = isinstance(message, Request) and message.method == INITIALIZE
    # A session id that nobody gave out, of whatever form, must not lead to the session that all share.
    return opens or SESSION_ID in incoming.headers
