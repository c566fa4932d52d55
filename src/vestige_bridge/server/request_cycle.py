"""One HTTP request and its answer: the ``receive`` and ``send`` of an ASGI application (ASGI 3, HTTP).

Invariant: an answer has the length that its head says, or its connection is reset; head and first bytes are one write.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Final, Protocol

from starlette.types import ASGIApp, Message, Scope

from vestige_bridge.access.responses import error_response
from vestige_bridge.errors import InternalError
from vestige_bridge.http.headers import CONNECTION, CONTENT_LENGTH
from vestige_bridge.http.request_head import Framing
from vestige_bridge.upstream.answer_budget import LARGE_BYTES

log = logging.getLogger(__name__)

DISCARD_BYTES: Final = 65_536
"""How much of a body may arrive after its answer so that the connection is used again."""

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINES: Final = {it.value: f"HTTP/1.1 {it.value} {it.phrase}\r\n".encode() for it in HTTPStatus}
_BODILESS: Final = frozenset({204, 304})


class RequestConnection(Protocol):
    """The connection of a request."""

    @property
    def closing(self) -> bool:
        """Whether it is closed or closing."""

    @property
    def default_fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields of every answer."""

    @property
    def following(self) -> bool:
        """Whether bytes after the request were dropped."""

    @property
    def write_paused(self) -> bool:
        """Whether the client reads more slowly than the bridge writes."""

    def future(self) -> asyncio.Future[None]:
        """A future of the event loop."""

    def expect_body(self, *, send_continue: bool) -> None:
        """Resumes reading, for an application that waits for the body."""

    def authenticate(self, principal: str) -> None:
        """Records that the request has a valid token."""

    def write(self, data: bytes) -> None:
        """Writes bytes at once."""

    async def write_slowly(self, start: bytes, body: bytes, end: bytes) -> None:
        """Writes at the speed at which the client reads."""

    def answered(self, cycle: RequestCycle, *, keep_alive: bool) -> None:
        """Ends the request."""

    def abort(self) -> None:
        """Resets the connection."""


class RequestCycle:
    """One request on a connection and its answer: the ASGI ``receive`` and ``send`` (ASGI 3, HTTP).

    Parameters:
        connection: the connection.
        framing: the framing of the body.
        method: the method.
        chunks: whether the client supports chunked answers.
        keep_alive: whether the client wants to use the connection again.

    Attributes:
        framing: the framing of the body.
        keep_alive: whether the connection may be used again.
        read_to_end: whether the request was read to its end.
        started: whether the answer has begun.
        parser_replaced: whether another parser reads the body.
    """

    __slots__ = (
        "_answered",
        "_bodiless",
        "_body",
        "_body_bytes",
        "_chunked",
        "_chunks",
        "_connection",
        "_delivered",
        "_head",
        "_left",
        "_method",
        "_unwritten",
        "_waiter",
        "framing",
        "keep_alive",
        "parser_replaced",
        "read_to_end",
        "started",
    )

    def __init__(
        self, connection: RequestConnection, framing: Framing, method: bytes, *, chunks: bool, keep_alive: bool
    ) -> None:
        self.framing = framing
        self.keep_alive = keep_alive
        self.read_to_end = False
        self.started = False
        self.parser_replaced = False
        self._connection = connection
        self._method = method
        self._chunks = chunks
        self._body: bytes | bytearray = b""
        self._body_bytes = 0
        self._delivered = False
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""
        self._bodiless = False
        self._chunked = False
        self._unwritten: int | None = None
        self._answered = False
        self._left = False

    # Called by the application.

    @property
    def client_left(self) -> bool:
        """Whether the client has disconnected."""
        return self._left or self._connection.closing

    def authenticated(self, principal: str) -> None:
        """Records that the request has a valid token, so that the connection may be idle for longer."""
        self._connection.authenticate(principal)

    def whole_body(self) -> bytes | None:
        """The body, if it is complete; ``None`` if the rest must be received."""
        if not self.read_to_end or self._left:
            return None
        self._delivered = True
        body, self._body = self._body, b""
        return bytes(body)

    async def run(self, app: ASGIApp, scope: Scope) -> None:
        """Runs the application, and sends an error if it fails."""
        try:
            await app(scope, self.receive, self.send)
        except asyncio.CancelledError:
            self._connection.abort()
            raise
        except Exception:
            log.exception("The application failed")
        if self._answered or self.client_left:
            return None
        if self.started:
            return self._connection.abort()
        await error_response(InternalError("The bridge failed; see its log."))(scope, self.receive, self.send)
        return None

    async def receive(self) -> Message:
        """The next part of the body, or a disconnect after the client disconnects or the answer ends."""
        while not (self._body or self.read_to_end) or self._delivered:
            if self._left or self._answered:
                return {"type": "http.disconnect"}
            self._waiter = self._connection.future()
            if not self._delivered:
                self._connection.expect_body(send_continue=self._must_continue())
            await self._waiter
        if self._left or self._answered:
            return {"type": "http.disconnect"}
        body, self._body = self._body, b""
        self._delivered = self.read_to_end
        return {"type": "http.request", "body": bytes(body), "more_body": not self.read_to_end}

    async def send(self, message: Message) -> None:
        """Sends a part of the answer; drops it if the client has disconnected."""
        if message["type"] == "http.response.start":
            if self.started:
                raise RuntimeError("the answer has begun already")
            self.started = True
            self._head = self._build_head(message["status"], message.get("headers", ()))
            return
        if not self.started or self._answered:
            raise RuntimeError("the answer has not begun, or is complete")
        if self.client_left:
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        start, body, end = self._frame(body, more=more)
        connection = self._connection
        if len(body) > LARGE_BYTES or connection.write_paused:
            await connection.write_slowly(start, body, end)
        elif data := start + body + end:
            connection.write(data)
        if not more:
            self._answered = True
            self._wake()
            connection.answered(self, keep_alive=self.keep_alive)

    # Called by the connection.

    def take_body(self, piece: bytes) -> int:
        """Stores a part of the body, unless the answer is complete; returns how many bytes are stored."""
        self._body_bytes += len(piece)
        if self._answered or self._left:
            return 0
        if self._body:
            if isinstance(self._body, bytes):
                self._body = bytearray(self._body)
            self._body += piece
        else:
            self._body = piece
        self._wake()
        return len(self._body)

    def end_body(self) -> None:
        """Records that the request was read to its end."""
        self.read_to_end = True
        self._wake()

    def leave(self) -> None:
        """Records that the client disconnected."""
        self._left = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _must_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` (RFC 9110, section 10.1.1); it is sent once."""
        waits = self.framing.expects_continue and not self.started and self._body_bytes == 0
        if waits:
            self.framing = self.framing._replace(expects_continue=False)
        return waits

    def _reusable(self) -> bool:
        """Whether the connection can be used again after this answer (RFC 9112, section 9.3)."""
        if not self.keep_alive or self._connection.following:
            return False
        if self.read_to_end:
            return True
        framing = self.framing
        if framing.length is None or framing.expects_continue:
            return False
        return framing.length - self._body_bytes <= DISCARD_BYTES

    def _build_head(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """The head of the answer; determines its framing (RFC 9112, section 6.3) and whether the connection is kept."""
        self._bodiless = self._method == b"HEAD" or status in _BODILESS
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        closes = False
        for name, value in (*self._connection.default_fields, *fields):
            lines.append(b"%b: %b\r\n" % (name, value))
            if name == CONTENT_LENGTH:
                self._unwritten = int(value)
            elif name == CONNECTION:
                closes = True
        self._chunked = self._unwritten is None and not self._bodiless and self._chunks
        framed = self._unwritten is not None or self._bodiless or self._chunked
        self.keep_alive = framed and not closes and self._reusable()
        if self._chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keep_alive and not closes:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        if not head.count(b"\r") == head.count(b"\n") == len(lines):
            raise RuntimeError("a header field of the answer contains a line break")
        return head + b"\r\n"

    def _frame(self, body: bytes, *, more: bool) -> tuple[bytes, bytes, bytes]:
        """The bytes for a part of the body: those before it, the part, and those after it.

        Errors:
            RuntimeError: the answer is longer or shorter than its Content-Length; the connection is reset.
        """
        start, self._head = self._head, b""
        if self._bodiless:
            return start, b"", b""
        if self._chunked:
            end = b"" if more else b"0\r\n\r\n"
            return (start + b"%x\r\n" % len(body), body, b"\r\n" + end) if body else (start, body, end)
        if self._unwritten is not None:
            self._unwritten -= len(body)
            if self._unwritten < 0 or (self._unwritten and not more):
                self._connection.abort()
                raise RuntimeError("the answer is longer or shorter than its Content-Length")
        return start, body, b""
