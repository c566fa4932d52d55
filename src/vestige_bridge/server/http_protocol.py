"""HTTP/1.1 towards clients: one connection, and one request on it at a time (RFC 9112).

Invariants:

- The parser's events delimit head, body and trailer. The bridge does not search bytes, and does not change a body.
- One request at a time. Bytes that follow a request before its answer is complete are dropped unparsed, nothing more is
  read, and the connection is closed after that answer (section 9.3.2).
- A connection is used again only if its request was read to the end.
- The memory of a client is bounded before it sends a token: one read, one head, and an idle connection's time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, cast
from urllib.parse import unquote

import httptools
from starlette.types import ASGIApp, Scope
from uvicorn.config import Config
from uvicorn.server import ServerState

from vestige_bridge.access.record import CONNECTION
from vestige_bridge.access.responses import error_response
from vestige_bridge.errors import BridgeError, HeadTooLarge, InvalidMessage, Overloaded
from vestige_bridge.http.headers import CONNECTION as CONNECTION_FIELD
from vestige_bridge.http.request_head import MAX_FIELDS, read_framing, read_target
from vestige_bridge.server.client_writer import ClientWriter
from vestige_bridge.server.connections import (
    HEAD_SECONDS,
    LINGER_SECONDS,
    UNAUTHENTICATED_IDLE_SECONDS,
    Connections,
)
from vestige_bridge.server.request_cycle import CONTINUE, STATUS_LINES, RequestCycle

log = logging.getLogger(__name__)

HEAD_LIMIT_BYTES: Final = 65_536
"""Maximum bytes that may arrive without completing a head, a part of a body, or the end of one."""

READ_BYTES: Final = 65_536
"""Maximum bytes of one read."""

BODY_BUFFER_BYTES: Final = 65_536
"""Maximum bytes of a body that are kept before the application asks for them; then reading stops."""

LINGER_BYTES: Final = 262_144
"""Maximum bytes that are read and dropped before a connection is closed, so that its client gets the answer."""


class _FollowingBytes(Exception):
    """Bytes follow a request that is not answered yet."""


class HttpProtocol(ClientWriter, asyncio.BufferedProtocol):
    """One connection of a client.

    Parameters:
        config: uvicorn's configuration, with the application.
        server_state: uvicorn's record of connections, tasks and default headers.
        app_state: the state of the lifespan.
        connections: all connections and their limits.

    Attributes:
        principal: the principal of the last authenticated request; ``None`` without one.
        idle_since: when the last request ended, in seconds of the event loop's clock; ``None`` with one in flight.
    """

    __slots__ = (
        "_app",
        "_app_state",
        "_buffer",
        "_cycle",
        "_discarding",
        "_dropped_bytes",
        "_fields",
        "_following",
        "_head_bytes",
        "_in_head",
        "_lingered_bytes",
        "_lingering",
        "_parser",
        "_pending_bytes",
        "_read_something",
        "_reading_paused",
        "_server_state",
        "_target",
        "_template",
        "idle_since",
        "principal",
    )

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        connections: Connections,
        buffer: memoryview,
    ) -> None:
        super().__init__(connections, asyncio.get_running_loop())
        self.principal: str | None = None
        self.idle_since: float | None = None
        self._app: ASGIApp = config.loaded_app
        self._server_state = server_state
        self._app_state = app_state
        self._buffer = buffer
        self._parser = httptools.HttpRequestParser(self)
        self._template: dict[str, Any] = {}
        self._fields: list[tuple[bytes, bytes]] = []
        self._target = b""
        self._in_head = False
        self._read_something = False
        self._pending_bytes = 0
        self._dropped_bytes = 0
        self._head_bytes = 0
        self._cycle: RequestCycle | None = None
        self._discarding: RequestCycle | None = None
        self._following = False
        self._lingering = False
        self._lingered_bytes = 0
        self._reading_paused = False

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the first head, or rejects the connection if the limit is reached."""
        self._transport = cast("asyncio.Transport", transport)
        self._progress_at = self._loop.time()
        self._server_state.connections.add(self)  # type: ignore[arg-type]
        self._template = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": _address(transport.get_extra_info("sockname")),
            "client": _address(transport.get_extra_info("peername")),
            "scheme": "http",
            "root_path": "",
        }
        if not self._connections.admit(self):
            return self._refuse(Overloaded("Too many connections are busy."))
        self._idle()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notifies the application that its client disconnected."""
        self._closing = True
        self._server_state.connections.discard(self)
        self._connections.forget(self)
        self._count_head(0)
        if self._cycle is not None:
            self._cycle.leave()
        self.resume_writing()

    def eof_received(self) -> None:
        """Closes the connection: a client that closes its side has disconnected, which cancels its request."""
        if self._cycle is not None:
            self._cycle.leave()

    def get_buffer(self, sizehint: int) -> memoryview:
        """The one buffer that all connections read into; it is parsed before the next read."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parses the bytes, or drops them if they are no longer needed."""
        if self._closing:
            return None
        if self._lingering:
            return self._linger_on(nbytes)
        if self._cycle is not None and self._cycle.read_to_end:
            return self._drop_following(nbytes)
        self._read_something = False
        try:
            self._parse(self._buffer[:nbytes])
        except (httptools.HttpParserError, BridgeError) as error:
            return self._cannot_parse(error)
        self._pending_bytes = 0 if self._read_something else self._pending_bytes + nbytes
        if self._pending_bytes:
            self._wait_for_more()
        return None

    # Called by the parser.

    def on_message_begin(self) -> None:
        """Prepares for a head; stops the parser if a request is not answered yet."""
        if self._cycle is not None:
            raise _FollowingBytes
        self._fields = []
        self._target = b""
        self._in_head = True

    def on_url(self, url: bytes) -> None:
        """Stores the request target, or a part of it."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores a header field; trailers are dropped (RFC 9110, section 6.5.1).

        The parser keeps the white space after a value (RFC 9112, section 5.1).
        """
        if self._in_head:
            self._fields.append((name.lower(), value.rstrip(b" \t")))
            if len(self._fields) > MAX_FIELDS:
                raise HeadTooLarge(f"The head of the request has more than {MAX_FIELDS} header fields.")

    def on_headers_complete(self) -> None:
        """Starts the application for the request.

        Errors:
            BridgeError: the head is not valid.
        """
        self._in_head, self._read_something = False, True
        # A head in a single read is within the limit.
        if self._pending_bytes and self._head_size() > HEAD_LIMIT_BYTES:
            raise _head_too_large()
        parser = self._parser
        method, version = parser.get_method(), parser.get_http_version()
        framing = read_framing(self._fields, method, version)
        target = read_target(self._target)
        keep_alive = version == "1.1" and parser.should_keep_alive()
        path = target.path.decode("ascii")
        cycle = RequestCycle(self, framing, method, chunks=version == "1.1", keep_alive=keep_alive)
        scope: Scope = {
            **self._template,
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": target.path,
            "query_string": target.query,
            "headers": self._fields,
            "state": self._app_state.copy(),
            "extensions": {CONNECTION: cycle},
        }
        if version != "1.1":
            scope["http_version"] = version
        self._begin(cycle, scope)

    def on_body(self, body: bytes) -> None:
        """Passes a part of the body to the application, or drops it after an early answer."""
        self._read_something = True
        cycle = self._cycle or self._discarding
        if cycle is not None and cycle.take_body(body) > BODY_BUFFER_BYTES:
            self._pause_reading()

    def on_message_complete(self) -> None:
        """Records that the request was read to its end; if it offers an upgrade, its body is still to come."""
        if self._parser.should_upgrade():
            return
        self._read_something = True
        if self._cycle is not None:
            self._cycle.end_body()
        elif self._discarding is not None:
            self._restore_parser(self._discarding)
            self._discarding = None
            self._idle()

    # Called by the cycle.

    @property
    def default_fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields of every answer."""
        return self._server_state.default_headers

    @property
    def following(self) -> bool:
        """Whether bytes after the request were dropped."""
        return self._following

    def future(self) -> asyncio.Future[None]:
        """A future of the event loop."""
        return self._loop.create_future()

    def expect_body(self, *, send_continue: bool) -> None:
        """Resumes reading, for an application that waits for the body."""
        if send_continue and not self.closing:
            self._transport.write(CONTINUE)
        self._resume_reading()

    def authenticate(self, principal: str) -> None:
        """Records that the request has a valid token."""
        if self.principal is None:
            self._connections.unauthenticated_busy(self)
        self.principal = principal

    def answered(self, cycle: RequestCycle, *, keep_alive: bool) -> None:
        """Ends a request: the connection waits for the next one, or is closed.

        Parameters:
            cycle: the request.
            keep_alive: whether the answer's head keeps the connection open.
        """
        if self._cycle is not cycle:
            return
        self._cycle = None
        self._server_state.total_requests += 1
        if not keep_alive or self._following:
            return self._close_after(cycle)
        if cycle.read_to_end:
            self._restore_parser(cycle)
            return self._idle()
        self._discarding = cycle
        return self._wait_briefly()

    # Called by uvicorn.

    def shutdown(self) -> None:
        """Closes the connection after the request in flight is answered."""
        if self._cycle is None:
            self._closing = True
            self._transport.close()
        else:
            self._cycle.keep_alive = False

    def _begin(self, cycle: RequestCycle, scope: Scope) -> None:
        self._cycle = cycle
        self._deadline = self.idle_since = None
        self._count_head(0)
        if self.principal is None:
            self._connections.unauthenticated_busy(self)
        task = self._loop.create_task(cycle.run(self._app, scope))
        self._server_state.tasks.add(task)
        task.add_done_callback(self._server_state.tasks.discard)

    def _idle(self) -> None:
        """Waits for the next head."""
        self.idle_since = now = self._loop.time()
        if self.principal is None:
            self._deadline = now + UNAUTHENTICATED_IDLE_SECONDS
            self._connections.unauthenticated_idle(self)
        else:
            self._deadline = now + self._connections.limits.keep_alive_seconds
        if self._reading_paused:
            self._resume_reading()

    def _parse(self, data: memoryview) -> None:
        """Parses bytes; an offered upgrade is ignored (RFC 9110, section 7.8).

        With an offered upgrade the parser ends the message at its head. Another parser then reads the body; it gets
        the framing from a head that the bridge generates.
        """
        try:
            return self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            rest = data[offer.args[0] :]
        if self._cycle is not None:
            self._cycle.parser_replaced = True
            self._parser = httptools.HttpRequestParser(_BodyEvents(self))
            self._parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % self._cycle.framing.header)
            if rest:
                self._parser.feed_data(rest)
        return None

    def _cannot_parse(self, error: Exception) -> None:
        """Rejects invalid HTTP, unless an earlier request still waits for its answer."""
        cause = error if isinstance(error, BridgeError) else error.__context__
        if self._cycle is not None and self._cycle.read_to_end:
            return self._drop_following(0)
        if isinstance(cause, _FollowingBytes):
            return self._linger()
        if cause is not None and not isinstance(cause, BridgeError):
            self.abort()
            raise cause
        self._refuse(cause or InvalidMessage("This is not an HTTP/1.1 request."))
        return None

    def _restore_parser(self, cycle: RequestCycle) -> None:
        if cycle.parser_replaced:
            self._parser = httptools.HttpRequestParser(self)

    def _drop_following(self, nbytes: int) -> None:
        """Drops bytes after a request. Reading goes on, so that a client that disconnects is noticed, up to a limit."""
        self._following = True
        self._dropped_bytes += nbytes
        if self._dropped_bytes > LINGER_BYTES:
            self._pause_reading()

    def _wait_for_more(self) -> None:
        """Limits the bytes and the time of a head, and the bytes of trailers and chunk extensions."""
        if self._pending_bytes > HEAD_LIMIT_BYTES:
            return self._refuse(_head_too_large())
        if self._cycle is None and self._discarding is None:
            if self._head_bytes == 0 and self._deadline is not None:
                self._deadline = min(self._deadline, self._loop.time() + HEAD_SECONDS)
            if not self._count_head(self._pending_bytes):
                return self._refuse(Overloaded("Too many request heads are incomplete."))
        return None

    def _head_size(self) -> int:
        return len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._fields)

    def _count_head(self, size: int) -> bool:
        """Counts the bytes of an incomplete head; returns whether all such heads are within the limit."""
        if size != self._head_bytes:
            self._connections.head_bytes += size - self._head_bytes
            self._head_bytes = size
        return self._connections.heads_fit

    def _refuse(self, error: BridgeError) -> None:
        """Answers an invalid request and closes; resets the connection if an answer has begun."""
        cycle, self._cycle = self._cycle, None
        self._discarding = None
        if cycle is not None:
            started = cycle.started
            cycle.leave()
            if started:
                return self.abort()
        answer = error_response(error)
        fields = [*self._server_state.default_headers, *answer.raw_headers, (CONNECTION_FIELD, b"close")]
        lines = [STATUS_LINES[answer.status_code], *(b"%b: %b\r\n" % field for field in fields)]
        self._transport.write(b"".join([*lines, b"\r\n", answer.body]))
        return self._linger()

    def _close_after(self, cycle: RequestCycle) -> None:
        if cycle.read_to_end and not self._following:
            self._closing = True
            self._transport.close()
        else:
            self._linger()

    def _linger(self) -> None:
        """Closes the sending side, and drops received bytes for a while: a reset could lose the answer."""
        self._lingering = True
        self._count_head(0)
        self._transport.write_eof()
        self._wait_briefly()

    def _wait_briefly(self) -> None:
        """Reads for a while; the connection may be closed for another one meanwhile."""
        self.idle_since = now = self._loop.time()
        self._deadline = now + LINGER_SECONDS
        if self.principal is None:
            self._connections.unauthenticated_idle(self)
        self._resume_reading()

    def _linger_on(self, nbytes: int) -> None:
        self._lingered_bytes += nbytes
        if self._lingered_bytes > LINGER_BYTES:
            # The client can still read the answer until the time is over.
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._closing:
            self._reading_paused = False
            self._transport.resume_reading()


class _BodyEvents:
    """The callbacks of a parser that reads only a body, after a head that offered an upgrade."""

    def __init__(self, connection: HttpProtocol) -> None:
        self._begun = False
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete

    def on_message_begin(self) -> None:
        """Accepts the generated head; nothing may follow the body."""
        if self._begun:
            raise _FollowingBytes
        self._begun = True


def _address(address: object) -> tuple[str, int] | None:
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) and len(address) >= 2 else None


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The head of the request is over the limit of {HEAD_LIMIT_BYTES} bytes.")
