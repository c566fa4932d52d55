"""The MCP endpoint: one client message becomes one upstream exchange.

The law of this room: it decides which era and which session a message belongs to, and turns whatever goes wrong into
an error object. What is refused is refused before anything went upstream.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from vestige_bridge.deadlines import Deadlines
from vestige_bridge.errors import BridgeError, InternalError, InvalidMessage, MethodNotAllowed, Overloaded
from vestige_bridge.headers import SESSION_ID
from vestige_bridge.jsonrpc import parse_body
from vestige_bridge.messages import AnyMessage, Request
from vestige_bridge.modern import MODERN_VERSION, is_modern, require_supported
from vestige_bridge.per_client import ClientSessions
from vestige_bridge.permission import CALL, require_read_only
from vestige_bridge.relay import Waiter
from vestige_bridge.responses import error_response
from vestige_bridge.session import Session
from vestige_bridge.settings import Settings
from vestige_bridge.shared import SharedSession
from vestige_bridge.stateless import StatelessRequests
from vestige_bridge.visit import Visit


class McpEndpoint:
    """ASGI endpoint for ``/mcp`` (MCP 2025-11-25 and 2026-07-28, basic/transports, Streamable HTTP).

    Parameters:
        session: the held session.
        settings: limits and timeouts.
        client_sessions: the clients' own sessions in per-client mode; ``None`` when all share the held one.
    """

    def __init__(self, session: Session, settings: Settings, client_sessions: ClientSessions | None) -> None:
        self._session = session
        self._settings = settings
        self._shared = SharedSession(session, settings)
        self._stateless = StatelessRequests(session)
        self._client_sessions = client_sessions
        self._bodies_arriving = 0
        self._heartbeats: Deadlines[Waiter] = Deadlines(settings.heartbeat_seconds, lambda waiter: waiter.wake())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one HTTP request."""
        visit = Visit(scope, receive, send, self._settings, self._heartbeats)
        try:
            await (self._post(visit) if scope["method"] == "POST" else self._serve(visit, scope["method"]))
        except ClientDisconnect:
            visit.record.client_left = True
        except BridgeError as error:
            error.request_id = error.request_id or visit.spelled_id
            await visit.respond(error_response(error))
        except Exception:
            if not visit.record.answering:
                failure = InternalError("The bridge failed; its log says why.", request_id=visit.spelled_id)
                await visit.respond(error_response(failure))
            raise

    async def _serve(self, visit: Visit, http_method: str) -> None:
        own = self._client_sessions
        if http_method in ("DELETE", "GET"):
            require_supported(visit.protocol_version)
        if http_method == "DELETE":
            self._shared.require_not_ended(visit.caller)
            await (own.end(visit) if own is not None else self._shared.end(visit))
        elif http_method == "GET":
            if not visit.accepted.event_stream or visit.protocol_version == MODERN_VERSION:
                raise MethodNotAllowed(
                    "GET opens a session's event stream and needs `Accept: text/event-stream`; "
                    "requests are POSTed, and modern clients send subscriptions/listen.",
                    headers={"allow": "GET, POST, DELETE"},
                )
            self._shared.require_not_ended(visit.caller)
            await (own.listen(visit) if own is not None else self._shared.listen(visit))
        else:
            raise MethodNotAllowed("This path takes GET, POST and DELETE.", headers={"allow": "GET, POST, DELETE"})

    async def _post(self, visit: Visit) -> None:
        body = visit.body_now()
        if body is None:
            body = await self._body(visit)
        message = parse_body(body)
        if isinstance(message, list):
            return await self._post_batch(visit, message)
        visit.note(message, self._session.tools.__contains__)
        if visit.caller.read_only:
            await self._require_permitted(message)
        if is_modern(message, visit.protocol_version):
            return await self._stateless.serve(visit, message)
        self._shared.require_not_ended(visit.caller)
        if self._client_sessions is not None and _belongs_to_session(visit, message):
            return await self._client_sessions.serve(visit, message)
        await self._shared.serve(visit, message)

    async def _body(self, visit: Visit) -> bytes:
        """The body, unless as many are on their way already as there may be requests in flight."""
        if self._bodies_arriving >= self._settings.max_in_flight:
            raise Overloaded("Too many bodies are on their way.", data={"outcome": "not_sent", "retryable": True})
        self._bodies_arriving += 1
        try:
            return await visit.body()
        finally:
            self._bodies_arriving -= 1

    async def _post_batch(self, visit: Visit, members: Sequence[AnyMessage | BridgeError]) -> None:
        for member in members:
            if not isinstance(member, BridgeError) and is_modern(member, visit.protocol_version):
                raise InvalidMessage(f"{MODERN_VERSION} has no batches; send each request by itself.")
        self._shared.require_not_ended(visit.caller)
        if visit.caller.read_only:
            members = await self._permitted(members)
        if self._client_sessions is not None and SESSION_ID in visit.headers:
            return await self._client_sessions.serve_batch(visit, members)
        await self._shared.serve_batch(visit, members)

    async def _require_permitted(self, message: AnyMessage) -> None:
        """Refuses a message that a read-only principal may not send.

        Errors:
            Forbidden: it may not.
            UpstreamUnavailable: it calls a tool, and there is no session to know the tools by.
        """
        (permitted,) = await self._permitted([message])
        if isinstance(permitted, BridgeError):
            raise permitted

    async def _permitted(self, members: Sequence[AnyMessage | BridgeError]) -> list[AnyMessage | BridgeError]:
        """What a read-only principal sends, with the reason in the place of each message that it may not send.

        Errors:
            UpstreamUnavailable: it calls a tool, and there is no session to know the tools by.
            Overloaded: nor is there room to wait for one.
        """
        calls = any(isinstance(member, Request) and member.method == CALL for member in members)
        if calls and self._session.held is None:
            with self._session.admit():
                await self._session.connected()
        return [self._permitted_member(member) for member in members]

    def _permitted_member(self, member: AnyMessage | BridgeError) -> AnyMessage | BridgeError:
        try:
            if not isinstance(member, BridgeError):
                require_read_only(member, self._session.tools)
        except BridgeError as error:
            return error
        return member


def _belongs_to_session(visit: Visit, message: AnyMessage) -> bool:
    """Whether the message opens or names a session, as legacy clients do and plain posters do not."""
    opens = isinstance(message, Request) and message.method == "initialize"
    # A session id that nobody gave out, of whatever form, must not lead to the session that all share.
    return opens or SESSION_ID in visit.headers
