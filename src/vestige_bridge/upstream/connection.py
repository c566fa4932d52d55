"""One HTTP/1.1 connection to upstream, with one request at a time (RFC 9112).

Invariant: a request is written at once, and its reply is parsed as it arrives. Nothing here waits, so a request needs
no task. A reply ends exactly once, with an error if it failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

import httptools

from vestige_bridge.errors import (
    BodyTooLarge,
    BridgeError,
    RequestRefused,
    SessionLost,
    UpstreamDisconnected,
    UpstreamProtocolError,
)
from vestige_bridge.http import sse
from vestige_bridge.http.headers import (
    CONTENT_LENGTH,
    CONTENT_TYPE,
    JSON,
    SESSION_ID,
    TRANSFER_ENCODING,
    media_type,
    shown_media_type,
)
from vestige_bridge.upstream.answer_budget import LARGE_BYTES, AnswerBudget
from vestige_bridge.upstream.quirks import refuses_session

MAX_HEAD_BYTES: Final = 65_536
"""Maximum bytes that may arrive without completing the head of a reply or a part of its body."""

_REFUSED_UNREAD: Final = frozenset({401, 403, 405})
_REFUSED_BODY: Final = frozenset({400, 406, 415, 422})


class Receiver(Protocol):
    """The receiver of a reply."""

    def begin(self, *, streamed: bool, session_id: str | None) -> None:
        """The head of the reply has come.

        Parameters:
            streamed: whether its messages come as an event stream.
            session_id: the session that it opens (MCP 2025-11-25, basic/transports, session management).
        """

    def take(self, data: bytes) -> None:
        """A JSON-RPC message has come, its bytes as upstream wrote them.

        Errors:
            BridgeError: it is not a message; the reply ends with that error.
        """

    def end(self, failure: BridgeError | None, position: sse.Position | None) -> None:
        """The reply has ended.

        Parameters:
            failure: the error of its HTTP status, or of an interruption; ``None`` for a complete success.
            position: where an event stream can be resumed.
        """


class UpstreamConnection(asyncio.Protocol):
    """A connection with one request at a time.

    Parameters:
        transport: the connection, which this takes over.
        max_answer_bytes: the size limit of a message.
        held: counts the bytes of large answers.
        on_idle: called when the connection is free for another request.
        on_closed: called when it is closed.

    Attributes:
        receiver: the receiver of the current reply; ``None`` while there is none.
        idle_since: when it became free, in seconds of a monotonic clock.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        max_answer_bytes: int,
        held: AnswerBudget,
        *,
        on_idle: Callable[[UpstreamConnection], None],
        on_closed: Callable[[UpstreamConnection], None],
    ) -> None:
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self._transport = transport
        self._max_answer_bytes = max_answer_bytes
        self._held = held
        self._counted = False
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._has_session = False
        self._parser = httptools.HttpResponseParser(self)
        self._session_id: str | None = None
        self._decoder: sse.EventDecoder | None = None
        self._refusal: BridgeError | None = None
        self._body = bytearray()
        self._forget_reply()
        transport.set_protocol(self)

    @property
    def closed(self) -> bool:
        """Whether it can send no more requests."""
        return self._transport.is_closing()

    @property
    def unfinished(self) -> bool:
        """Whether the current reply is incomplete."""
        return not self._whole

    def send(self, message: bytes, receiver: Receiver, *, has_session: bool) -> None:
        """Writes a request.

        Parameters:
            message: its head and its body.
            receiver: the receiver of the reply.
            has_session: whether it names a session, which upstream may have lost.
        """
        self.receiver = receiver
        self._has_session = has_session
        self._transport.write(message)

    def cut(self, failure: BridgeError) -> None:
        """Ends the current reply with an error, and closes the connection."""
        self._transport.abort()
        # The object lives until garbage collection, so its buffers are released now.
        self._body.clear()
        self._count(0)
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.end(failure, None if self._decoder is None else self._decoder.position)

    def close(self) -> None:
        """Closes the connection, which ends the current reply."""
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Parses the next bytes of the reply."""
        if self.receiver is None:
            return self._transport.abort()
        self._pending_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if cause is not None and not isinstance(cause, BridgeError):
                raise cause from None
            return self.cut(cause or _not_http(f"{type(error).__name__}: {error}"))
        if self._pending_bytes > MAX_HEAD_BYTES:
            self.cut(_not_http(f"a head or trailers of over {MAX_HEAD_BYTES} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the current reply; it is complete if only the end of the connection could end it."""
        self._on_closed(self)
        if self._status and self._until_close and error is None and self.receiver is not None:
            try:
                return self.on_message_complete()
            except BridgeError as failure:
                return self.cut(failure)
        self.cut(UpstreamDisconnected("Upstream closed the connection.", detail=str(error or "before its reply ended")))

    def on_message_begin(self) -> None:
        """Closes a connection on which upstream sends without a request (called by the parser)."""
        if self.receiver is None:
            self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Stores the headers that are needed (called by the parser)."""
        name = name.lower()
        if name == CONTENT_TYPE:
            self._content_type = media_type(value)
        elif name == SESSION_ID:
            self._session_id = value.decode("latin-1")
        elif name in (CONTENT_LENGTH, TRANSFER_ENCODING):
            self._until_close = False

    def on_headers_complete(self) -> None:
        """Determines the kind of reply by status and content type (called by the parser).

        Errors:
            SessionLost, BodyTooLarge, UpstreamProtocolError: the reply has no messages.
        """
        self._pending_bytes = 0
        status = self._parser.get_status_code()
        if status < 200:
            # An interim reply (RFC 9110, section 15.2): the final one follows.
            return self._forget_reply()
        self._status = status
        streamed = self._content_type == sse.CONTENT_TYPE
        if status not in (202, 204) and not (status == 200 and (streamed or self._content_type == JSON)):
            self._refusal = self._refused()
        if streamed:
            self._decoder = sse.EventDecoder(self._max_answer_bytes)
        if self.receiver is not None:
            self.receiver.begin(streamed=streamed, session_id=self._session_id)

    def on_body(self, chunk: bytes) -> None:
        """Delivers the messages that the chunk completes (called by the parser).

        Errors:
            BridgeError: a message is invalid, or over the limit.
        """
        self._pending_bytes = 0
        receiver = self.receiver
        if receiver is None:
            return None
        if self._decoder is None:
            self._body += chunk
            if len(self._body) > self._max_answer_bytes:
                raise self._too_large()
            return self._count(len(self._body))
        try:
            for event in self._decoder.feed(chunk):
                if event.type == "message":
                    receiver.take(event.data)
                    if len(event.data) > LARGE_BYTES:
                        self._held.handed_over(len(event.data))
        except sse.EventTooLarge:
            raise self._too_large() from None
        return self._count(self._decoder.held_bytes)

    def on_message_complete(self) -> None:
        """Ends the reply, and frees the connection for another (called by the parser).

        Errors:
            BridgeError: the whole body is not a message.
        """
        receiver, refusal = self.receiver, self._refusal
        if self._status == 0 or receiver is None:
            return
        self._whole = True
        if self._body:
            body = bytes(self._body)
            self._body.clear()
            if refusal is None:
                receiver.take(body)
            else:
                refusal = self._take_refusal(receiver, body, refusal)
            if len(body) > LARGE_BYTES:
                self._held.handed_over(len(body))
            self._count(0)
        position = None if self._decoder is None else self._decoder.position
        self.receiver = None
        self._forget_reply()
        if self._parser.should_keep_alive():
            self._on_idle(self)
        else:
            self._transport.close()
        receiver.end(refusal, position)

    def _take_refusal(self, receiver: Receiver, body: bytes, refusal: BridgeError) -> BridgeError:
        """Delivers the body of an error status: a JSON-RPC error with the request's id is its answer."""
        if self._status == 400 and self._has_session and refuses_session(body):
            return _session_lost(400)
        with suppress(BridgeError):
            receiver.take(body)
        return refusal

    def pause_reading(self) -> None:
        """Pauses reading from upstream."""
        if not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resumes reading from upstream."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def _count(self, size: int) -> None:
        """Counts the bytes of a large message that arrives."""
        if self._counted or size > LARGE_BYTES:
            self._counted = size > LARGE_BYTES
            self._held.arriving(self, size if self._counted else 0)

    def _forget_reply(self) -> None:
        self._status = 0
        self._whole = False
        self._pending_bytes = 0
        self._content_type = ""
        self._session_id = None
        self._until_close = True
        self._decoder = None
        self._refusal = None

    def _refused(self) -> BridgeError:
        """The error for a reply with an error status, unless its JSON answers the request."""
        refusal = self._refusal_by_status()
        if self._content_type != JSON:
            raise refusal
        return refusal

    def _refusal_by_status(self) -> BridgeError:
        status = self._status
        message, detail = f"Upstream refused the request with HTTP status {status}.", f"HTTP {status}"
        if status == 413:
            return BodyTooLarge("Upstream refused the body as too large (HTTP 413).", data={"layer": "upstream"})
        if self._has_session and status == 404:
            return _session_lost(404)
        if status in _REFUSED_BODY:
            return RequestRefused(message, detail=shown_media_type(self._content_type))
        if status < 400:
            message = "Upstream sent something that is not MCP."
        return UpstreamProtocolError(
            message, detail=f"{detail}, {shown_media_type(self._content_type)}", sent=status not in _REFUSED_UNREAD
        )

    def _too_large(self) -> UpstreamProtocolError:
        return UpstreamProtocolError(f"The answer is over the limit of {self._max_answer_bytes} bytes.")


def _session_lost(status: int) -> SessionLost:
    return SessionLost("Upstream no longer recognizes the session.", detail=f"HTTP {status}")


def _not_http(detail: str) -> UpstreamProtocolError:
    return UpstreamProtocolError("Upstream sent invalid HTTP.", detail=detail)
