"""Per-client mode: each legacy client has an upstream session of its own, one to one.

The law of this room: bodies are untouched in both directions, and a session serves nobody but the principal that
opened it. It is for an upstream that holds many sessions in one process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from starlette.responses import Response as HttpResponse

from vestige_bridge import sse
from vestige_bridge.errors import (
    BodyTooLarge,
    BridgeError,
    InvalidMessage,
    MethodNotAllowed,
    NotFound,
    Overloaded,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    no_failures,
    reason_of,
)
from vestige_bridge.headers import JSON, LAST_EVENT_ID, PROTOCOL_VERSION, SESSION_ID
from vestige_bridge.jsonrpc import build_error, parse_message
from vestige_bridge.messages import AnyMessage, Request, Response
from vestige_bridge.settings import Settings
from vestige_bridge.tasks import Tasks
from vestige_bridge.upstream import ForwardedReply, Upstream
from vestige_bridge.visit import Visit

log = logging.getLogger(__name__)

_EVENT_ENDS: Final = (b"\n\n", b"\r\r", b"\r\n\r\n")


@dataclass(slots=True)
class _Owned:
    """A client's own upstream session: whose it is, and whether it is in use."""

    principal: str
    used_at: float
    in_use: int = 0


class ClientSessions:
    """The upstream sessions of the clients (MCP 2025-11-25, basic/transports, session management).

    Parameters:
        upstream: the MCP endpoint.
        settings: limits and timeouts.

    Attributes:
        in_flight: how many requests are in flight.
        streams_open: how many clients listen on their session's own stream.
        failures: how many requests ended without an answer, by reason.
    """

    def __init__(self, upstream: Upstream, settings: Settings) -> None:
        self.in_flight = 0
        self.streams_open = 0
        self.failures = no_failures()
        self._upstream = upstream
        self._settings = settings
        self._owned: dict[str, _Owned] = {}
        self._opening = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._closing = False
        self._streams_end = asyncio.Event()
        self._tasks = Tasks()

    async def __aenter__(self) -> Self:
        """Starts ending the sessions that are idle for too long."""
        self._tasks.start(self._end_idle_sessions())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends every session."""
        await self._tasks.close()
        await asyncio.gather(*(self._delete(session_id) for session_id in list(self._owned)))

    @property
    def sessions_open(self) -> int:
        """How many sessions clients have."""
        return len(self._owned)

    async def drain(self, timeout_seconds: float) -> None:
        """Takes no more requests, ends the streams, and waits for what is in flight."""
        self._closing = True
        self.end_streams()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()

    def end_streams(self) -> None:
        """Ends every client's stream; who may can open it again."""
        self._streams_end.set()
        self._streams_end = asyncio.Event()

    async def forward(self, visit: Visit, message: AnyMessage | None, body: bytes) -> None:
        """Forwards a message on its client's own session, which an ``initialize`` opens.

        Parameters:
            visit: the HTTP request.
            message: the message in it; ``None`` for a batch.
            body: the bytes as the client wrote them.
        """
        request = message if isinstance(message, Request) else None
        with self._admitted(visit, opens=visit.caller.session_id is None):
            try:
                async with self._upstream.forward("POST", self._headers(visit), body) as reply:
                    self._note(visit, reply)
                    await self._answer(visit, request, reply)
            except UpstreamError as error:
                await self._fail(visit, request, error)

    async def listen(self, visit: Visit) -> None:
        """Forwards the session's own stream until it ends, its client leaves, or streams are ended."""
        owned = self._require_owned(visit)
        if self._closing:
            raise Overloaded("The bridge is shutting down.")
        owned.in_use += 1
        self.streams_open += 1
        pumping = asyncio.create_task(self._pump_own_stream(visit))
        others = [asyncio.create_task(visit.until_client_leaves()), asyncio.create_task(self._streams_end.wait())]
        try:
            await asyncio.wait([pumping, *others], return_when=asyncio.FIRST_COMPLETED)
            if pumping.done():
                pumping.result()
        finally:
            owned.in_use -= 1
            self.streams_open -= 1
            for task in (pumping, *others):
                task.cancel()
            await asyncio.gather(pumping, *others, return_exceptions=True)
        if visit.record.client_left:
            return
        if not visit.record.answering:
            raise Overloaded("All streams were ended; open this one again.")
        await visit.send({"type": "http.response.body", "body": b""})

    async def end(self, visit: Visit) -> None:
        """Ends the client's own session, here and upstream."""
        self._require_owned(visit)
        await self._delete(visit.caller.session_id or "")
        await visit.respond(HttpResponse(status_code=204))

    @contextlib.contextmanager
    def _admitted(self, visit: Visit, *, opens: bool) -> Iterator[None]:
        """Counts a request while it is in flight, if there is room for it."""
        data = {"outcome": "not_sent", "retryable": True}
        if self._closing:
            raise Overloaded("The bridge is shutting down.", data=data)
        if self.in_flight >= self._settings.max_in_flight:
            raise Overloaded("Too many requests are in flight.", data=data)
        if opens and len(self._owned) + self._opening >= self._settings.max_client_sessions:
            raise Overloaded("Too many sessions are open; see VESTIGE_BRIDGE_MAX_CLIENT_SESSIONS.", data=data)
        owned = None if opens else self._require_owned(visit)
        self.in_flight += 1
        self._opening += opens
        self._idle.clear()
        if owned is not None:
            owned.in_use += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            self._opening -= opens
            if owned is not None:
                owned.in_use -= 1
                owned.used_at = asyncio.get_running_loop().time()
            if not self.in_flight:
                self._idle.set()

    def _require_owned(self, visit: Visit) -> _Owned:
        """The caller's session.

        Errors:
            InvalidMessage: it names none.
            NotFound: the session is unknown, or somebody else's.
        """
        if visit.caller.session_id is None:
            raise InvalidMessage("Name your session in the header Mcp-Session-Id; initialize gives you one.")
        owned = self._owned.get(visit.caller.session_id)
        if owned is None or owned.principal != visit.principal:
            raise NotFound("There is no such session; send initialize to begin one.")
        return owned

    def _headers(self, visit: Visit) -> dict[str, str]:
        passed_on = {
            name.decode(): value
            for name in (SESSION_ID, PROTOCOL_VERSION, LAST_EVENT_ID)
            if (value := visit.headers.text(name)) is not None
        }
        return visit.upstream_headers | passed_on

    def _note(self, visit: Visit, reply: ForwardedReply) -> None:
        """Keeps whose session was opened, or that upstream does not know one any more."""
        if visit.caller.session_id is None and reply.session_id is not None and reply.status < 300:
            # An upstream that gives one id twice gives nobody another's session by it.
            self._owned.setdefault(reply.session_id, _Owned(visit.principal, asyncio.get_running_loop().time()))
        elif reply.status == 404 and visit.caller.session_id is not None:
            self._owned.pop(visit.caller.session_id, None)

    async def _answer(self, visit: Visit, request: Request | None, reply: ForwardedReply) -> None:
        session = [] if reply.session_id is None else [(SESSION_ID, reply.session_id.encode())]
        if reply.content_type == sse.CONTENT_TYPE and reply.status == 200:
            if visit.accepted.event_stream:
                await _start(visit, 200, sse.CONTENT_TYPE, session)
                await self._pump(visit, request, reply)
                return await visit.send({"type": "http.response.body", "body": b""})
            data, status = await self._collapse(request, reply), 200
        elif reply.status in (202, 204) or reply.content_type == JSON:
            data, status = await self._whole(reply), reply.status
        elif reply.status == 413:
            raise BodyTooLarge("The MCP endpoint refused the body as too large.", data={"layer": "mcp_endpoint"})
        else:
            raise UpstreamProtocolError(
                "The MCP endpoint answered something that is not MCP.",
                detail=f"HTTP {reply.status}, {reply.content_type}",
            )
        await _start(visit, status, JSON, session)
        await visit.send({"type": "http.response.body", "body": data})

    async def _pump_own_stream(self, visit: Visit) -> None:
        async with self._upstream.forward("GET", self._headers(visit), None) as reply:
            if reply.status == 404:
                self._note(visit, reply)
                raise NotFound("There is no such session; send initialize to begin one.")
            if reply.status != 200 or reply.content_type != sse.CONTENT_TYPE:
                raise MethodNotAllowed("The MCP endpoint gives this session no stream, or has one open already.")
            await _start(visit, 200, sse.CONTENT_TYPE, [])
            await visit.send({"type": "http.response.body", "body": sse.HEARTBEAT, "more_body": True})
            # Such a stream may end at any time, and its client opens another: a cut is no more to it.
            with contextlib.suppress(UpstreamDisconnected):
                await self._pump(visit, None, reply)

    async def _pump(self, visit: Visit, request: Request | None, reply: ForwardedReply) -> None:
        """Passes the bytes of an event stream on as they come, with a heartbeat between events when none do."""
        tail = b"\n\n"
        async for chunk in self._chunks(request, reply):
            if chunk:
                tail = (tail + chunk)[-4:]
                await visit.send({"type": "http.response.body", "body": chunk, "more_body": True})
            elif tail.endswith(_EVENT_ENDS):
                await visit.send({"type": "http.response.body", "body": sse.HEARTBEAT, "more_body": True})

    async def _chunks(self, request: Request | None, reply: ForwardedReply) -> AsyncIterator[bytes]:
        """The bytes of a reply as they arrive; empty ones when nothing came for a heartbeat.

        Errors:
            UpstreamTimeout: nothing came for a request in its time.
        """
        silent_seconds = 0.0
        heartbeat_seconds = min(self._settings.heartbeat_seconds, self._settings.request_timeout_seconds)
        while True:
            try:
                async with asyncio.timeout(heartbeat_seconds):
                    chunk = await reply.read()
            except TimeoutError:
                silent_seconds += heartbeat_seconds
                if request is not None and silent_seconds >= self._settings.request_timeout_seconds:
                    raise UpstreamTimeout("No answer came in time.") from None
                yield b""
                continue
            if not chunk:
                return
            silent_seconds = 0.0
            yield chunk

    async def _whole(self, reply: ForwardedReply) -> bytes:
        body = bytearray()
        async for chunk in self._chunks(None, reply):
            body += chunk
            if len(body) > self._settings.max_answer_bytes:
                raise UpstreamProtocolError(f"The answer is over the limit of {self._settings.max_answer_bytes} bytes.")
        return bytes(body)

    async def _collapse(self, request: Request | None, reply: ForwardedReply) -> bytes:
        """The one response in an event stream, for a client that takes no stream."""
        decoder = sse.EventDecoder(self._settings.max_answer_bytes)
        async for chunk in self._chunks(request, reply):
            try:
                for event in decoder.feed(chunk):
                    message = parse_message(event.data.decode())
                    if isinstance(message, Response) and (request is None or _answers(message, request)):
                        return event.data
            except (sse.EventTooLarge, UnicodeDecodeError, InvalidMessage) as error:
                raise UpstreamProtocolError("The MCP endpoint answered something that is not MCP.") from error
        raise UpstreamProtocolError("The MCP endpoint gave no answer to the request.")

    async def _fail(self, visit: Visit, request: Request | None, error: UpstreamError) -> None:
        """Ends a stream that has begun by the error object."""
        self.failures[reason_of(error)] += 1
        error.request_id = visit.spelled_id
        error.data |= {"outcome": "unknown" if error.sent else "not_sent", "retryable": not error.sent}
        if isinstance(error, UpstreamTimeout) and request is not None:
            self._tasks.start(self._cancel(request, self._headers(visit)))
        if not visit.record.answering:
            raise error
        body = sse.encode_event(build_error(error, error.request_id))
        await visit.send({"type": "http.response.body", "body": body})

    async def _cancel(self, request: Request, headers: dict[str, str]) -> None:
        """Tells upstream that nobody waits any more (MCP 2025-11-25, basic/utilities/cancellation)."""
        body = f'{{"jsonrpc":"2.0","method":"notifications/cancelled","params":{{"requestId":{request.spelled_id}}}}}'
        with contextlib.suppress(BridgeError):
            async with self._upstream.forward("POST", headers, body.encode()):
                pass

    async def _end_idle_sessions(self) -> None:
        patience = self._settings.client_session_idle_seconds
        while True:
            await asyncio.sleep(min(patience, 60.0))
            now = asyncio.get_running_loop().time()
            for session_id, owned in list(self._owned.items()):
                if owned.in_use == 0 and now - owned.used_at >= patience:
                    log.info("A client's session was idle for too long and is ended")
                    await self._delete(session_id)

    async def _delete(self, session_id: str) -> None:
        if self._owned.pop(session_id, None) is not None:
            await self._upstream.delete({SESSION_ID.decode(): session_id})


async def _start(visit: Visit, status: int, content_type: str, session: list[tuple[bytes, bytes]]) -> None:
    raw = [(b"content-type", content_type.encode()), *session]
    if content_type == sse.CONTENT_TYPE:
        raw += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
    else:
        raw.append((b"cache-control", b"no-store"))
    await visit.send({"type": "http.response.start", "status": status, "headers": raw})


def _answers(response: Response, request: Request) -> bool:
    return response.id is not None and response.id.value == request.id.value
