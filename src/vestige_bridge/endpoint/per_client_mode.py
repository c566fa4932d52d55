"""Per-client mode: each legacy client has its own upstream session.

Invariant: messages are unchanged in both directions, and only the principal that opened a session may use it.
Requests use the same exchanges, limits, deadlines and errors as on the shared session. The mode is for an upstream
that holds many sessions in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, Self

from starlette.responses import Response as HttpResponse

from vestige_bridge.concurrency import Tasks
from vestige_bridge.endpoint.request import EndpointRequest
from vestige_bridge.errors import (
    BridgeError,
    InvalidMessage,
    MethodNotAllowed,
    NoEventStream,
    NotFound,
    Overloaded,
    SessionLost,
)
from vestige_bridge.http.headers import SESSION_ID
from vestige_bridge.jsonrpc.builders import build_error, build_ping
from vestige_bridge.jsonrpc.messages import CANCELLED, AnyMessage, Notification, Request, Response
from vestige_bridge.mcp.methods import INITIALIZE, METHODS, is_notification
from vestige_bridge.session.client_session import ClientSession
from vestige_bridge.session.dispatcher import Admission, Dispatcher
from vestige_bridge.session.exchange import Exchange
from vestige_bridge.session.session import Session
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.client import Upstream

log = logging.getLogger(__name__)

_NOBODYS_ID: Final = '"vestige-bridge-check"'


class ClientSessions:
    """The upstream sessions of the clients (MCP 2025-11-25, basic/transports, session management).

    Parameters:
        upstream: the MCP server.
        session: the shared session, whose attempts send the requests of all sessions.
        dispatcher: sends the messages of clients.
        settings: limits and timeouts.
    """

    def __init__(self, upstream: Upstream, session: Session, dispatcher: Dispatcher, settings: Settings) -> None:
        self._upstream = upstream
        self._session = session
        self._dispatcher = dispatcher
        self._settings = settings
        self._sessions: dict[str, ClientSession] = {}
        self._opening = 0
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        """Starts the task that ends idle sessions."""
        self._tasks.start(self._end_idle_sessions())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends every session."""
        await self._tasks.close()
        await asyncio.gather(*(self._delete(own) for own in list(self._sessions.values())))

    @property
    def sessions_open(self) -> int:
        """The number of clients' sessions."""
        return len(self._sessions)

    def end_streams(self) -> None:
        """Ends every client's stream; clients may open them again."""
        for own in self._sessions.values():
            own.end_stream()

    async def serve(self, incoming: EndpointRequest, message: AnyMessage) -> None:
        """Answers one message on its client's own session, which an ``initialize`` without a session opens.

        Errors:
            BridgeError: it was not answered, and nothing was sent to the client yet.
        """
        if isinstance(message, Request) and message.method == INITIALIZE and SESSION_ID not in incoming.headers:
            return await self._open(incoming, message)
        with self._session_of(incoming) as own:
            if isinstance(message, Request):
                exchange = self._request(incoming, own, message)
                try:
                    return await incoming.writer.exchange(exchange)
                finally:
                    self._forget_if_lost(own, exchange)
            await self._take(incoming, own, message)
            await incoming.respond(HttpResponse(status_code=202))

    async def serve_batch(self, incoming: EndpointRequest, members: Sequence[AnyMessage | BridgeError]) -> None:
        """Answers a batch, each member as a message of its own (MCP 2025-03-26, basic/transports).

        Errors:
            BridgeError: none of it was sent upstream.
        """
        incoming.record.method = "batch"
        requests = sum(isinstance(member, Request) for member in members)
        with self._session_of(incoming) as own:
            with self._dispatcher.admit(incoming.record, requests) as admission:
                # All requests take their slots before the first wait.
                opened = [self._open_member(incoming, own, it, admission) for it in members]
            replies = [await self._member(incoming, own, *pair) for pair in zip(members, opened, strict=True)]
            answers = [it for it in replies if it is not None]
            if not answers:
                return await incoming.respond(HttpResponse(status_code=202))
            try:
                await incoming.writer.batch(answers)
            finally:
                self._forget_if_lost(own, *(it for it in opened if it is not None))

    def _open_member(
        self, incoming: EndpointRequest, own: ClientSession, member: AnyMessage | BridgeError, admission: Admission
    ) -> Exchange | None:
        """The exchange of a request that is allowed in a batch."""
        if isinstance(member, Request) and member.method != INITIALIZE:
            return self._request(incoming, own, member, admission)
        return None

    async def _member(
        self, incoming: EndpointRequest, own: ClientSession, member: AnyMessage | BridgeError, opened: Exchange | None
    ) -> Exchange | bytes | None:
        """The answer to a member of a batch; ``None`` if it needs none."""
        if opened is not None:
            return opened
        try:
            if isinstance(member, BridgeError):
                raise member
            if isinstance(member, Request):
                raise InvalidMessage("initialize cannot be part of a batch.", request_id=member.spelled_id)
            await self._take(incoming, own, member)
        except BridgeError as error:
            return build_error(error, error.request_id)
        return None

    async def listen(self, incoming: EndpointRequest) -> None:
        """Opens a client's stream, which ends when its session's upstream stream ends.

        Errors:
            InvalidMessage, NotFound: the client names no session, or none of its own.
            MethodNotAllowed: upstream has no stream for the session.
            Overloaded: streams are being ended.
            UpstreamError: upstream cannot be reached, or did not answer.
        """
        with self._session_of(incoming) as own:
            if self._dispatcher.draining:
                raise Overloaded("The bridge is shutting down.")
            try:
                listener = await own.listen(self._settings.request_timeout_seconds)
            except SessionLost:
                await self._require_alive(own)
                raise MethodNotAllowed("Upstream has no event stream for this session.") from None
            except NoEventStream as error:
                raise MethodNotAllowed("Upstream has no event stream for this session.") from error
            try:
                async with incoming.listening(listener.close):
                    await incoming.writer.notifications(listener)
            finally:
                own.stop_listening(listener)

    async def end(self, incoming: EndpointRequest) -> None:
        """Ends the client's own session, here and upstream.

        Errors:
            InvalidMessage, NotFound: the client names no session, or none of its own.
        """
        with self._session_of(incoming) as own:
            await self._delete(own)
        await incoming.respond(HttpResponse(status_code=204))

    @contextlib.contextmanager
    def _session_of(self, incoming: EndpointRequest) -> Iterator[ClientSession]:
        """The caller's session, marked as in use within the context.

        Errors:
            InvalidMessage: the caller names no session.
            NotFound: the session is unknown, or another principal's.
        """
        # Only ids from upstream are found, so no other value of the header is sent upstream.
        session_id = incoming.headers.get(SESSION_ID)
        if session_id is None:
            raise InvalidMessage("Send the session id in the header Mcp-Session-Id; initialize returns one.")
        own = self._sessions.get(session_id.decode("latin-1"))
        if own is None or own.principal != incoming.principal:
            raise NotFound(
                "There is no such session; send initialize to begin one.",
                data={"outcome": "not_sent", "retryable": True},
            )
        with own.in_use():
            yield own

    async def _open(self, incoming: EndpointRequest, request: Request) -> None:
        """Forwards an ``initialize``; the head of the answer contains the session's id."""
        if len(self._sessions) + self._opening >= self._settings.max_client_sessions:
            raise Overloaded(
                "Too many sessions are open; see VESTIGE_BRIDGE_MAX_CLIENT_SESSIONS.",
                data={"outcome": "not_sent", "retryable": True},
            )
        own = ClientSession(incoming.principal, self._session.attempts, self._upstream, self._tasks)
        exchange = self._request(incoming, own, request)
        self._opening += 1
        try:
            session_id = await exchange.opened()
        finally:
            self._opening -= 1
        if session_id is None:
            return await incoming.writer.exchange(exchange)
        own.named(session_id, request)
        # If upstream uses one id twice, the second client must not get the first one's session.
        self._sessions.setdefault(session_id, own)
        with own.in_use():
            try:
                await self._relay_opening(incoming, own, exchange)
            finally:
                if exchange.answered is None or exchange.answered.response.failed:
                    self._tasks.start(self._delete(own))

    async def _relay_opening(self, incoming: EndpointRequest, own: ClientSession, exchange: Exchange) -> None:
        def answer(data: bytes) -> tuple[int, bytes]:
            if exchange.answered is not None:
                own.negotiated(exchange.answered)
            return 200, data

        session_id = own.held.session_id or ""
        await incoming.writer.exchange(exchange, answer, headers=[(SESSION_ID, session_id.encode("latin-1"))])
        # If the client disconnects, the session is still opened, or ended if that fails.
        with contextlib.suppress(BridgeError):
            own.negotiated(await exchange.result())

    def _request(
        self, incoming: EndpointRequest, own: ClientSession, request: Request, admission: Admission | None = None
    ) -> Exchange:
        """Sends a request on its client's own session."""
        exchange = self._dispatcher.request(
            request, incoming.caller, incoming.header_lines, incoming.record, admission, own=own.held
        )
        if incoming.accepted.event_stream:
            own.held.router.accept_stream(exchange)
        return exchange

    async def _take(self, incoming: EndpointRequest, own: ClientSession, message: Notification | Response) -> None:
        """Forwards a message that needs no answer; a response to upstream's request is forwarded under any load.

        Errors:
            InvalidMessage: it is a request without an id, which upstream might run.
            NotFound: upstream has ended the session.
            Overloaded: no slot is free for a notification.
            UpstreamError, BodyTooLarge: upstream did not accept it.
        """
        if isinstance(message, Notification):
            if message.method == CANCELLED:
                self._dispatcher.cancel(incoming.caller, message, own.held)
                return
            if message.method in METHODS and not is_notification(message.method):
                raise InvalidMessage(f'{message.method} needs an "id".')
            with self._dispatcher.admit(incoming.record) as held, self._forgotten_if_lost(own):
                return await self._dispatcher.notify(message, incoming.caller, incoming.header_lines, held, own.held)
        await self._send(own, message.encoded(), incoming.header_lines)

    async def _require_alive(self, own: ClientSession) -> None:
        """Checks that upstream has the session: a 404 for GET does not show that.

        Errors:
            NotFound: it does not.
            UpstreamError: it did not answer.
        """
        await self._send(own, build_ping(_NOBODYS_ID), "")

    async def _send(self, own: ClientSession, message: bytes, header_lines: str) -> None:
        with self._forgotten_if_lost(own):
            await self._dispatcher.pass_on(message, own.held, header_lines)

    @contextlib.contextmanager
    def _forgotten_if_lost(self, own: ClientSession) -> Iterator[None]:
        """Removes a session that upstream has ended.

        Errors:
            NotFound: upstream has ended it.
        """
        try:
            yield
        except SessionLost as error:
            self._forget(own)
            raise NotFound("Upstream has ended this session; send initialize to begin another.") from error

    def _forget_if_lost(self, own: ClientSession, *exchanges: Exchange) -> None:
        if any(isinstance(exchange.error, NotFound) for exchange in exchanges):
            self._forget(own)

    def _forget(self, own: ClientSession) -> bool:
        """Removes a session; returns whether it existed."""
        session_id = own.held.session_id or ""
        if self._sessions.get(session_id) is not own:
            return False
        del self._sessions[session_id]
        own.end_stream()
        return True

    async def _delete(self, own: ClientSession) -> None:
        """Ends a session, here and upstream."""
        if self._forget(own):
            await self._upstream.delete(own.held.headers)

    async def _end_idle_sessions(self) -> None:
        patience = self._settings.client_session_idle_seconds
        while True:
            await asyncio.sleep(min(patience, 60.0))
            idle_since = asyncio.get_running_loop().time() - patience
            for own in list(self._sessions.values()):
                if own.idle_since(idle_since):
                    log.info("A client's session was ended because it was idle")
                    await self._delete(own)
