"""One connection of a client: what it may send before there is a request that somebody answers for.

The law of this room: nobody without a token holds more memory than a head takes, or a connection for longer than an
idle one may last; and what is no HTTP is refused in JSON, too.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from vestige_bridge.access import CONNECTION
from vestige_bridge.cork import Corked
from vestige_bridge.errors import RENDERINGS, BridgeError, HeadTooLarge, InvalidMessage
from vestige_bridge.headers import CONTENT_LENGTH, TRANSFER_ENCODING
from vestige_bridge.jsonrpc import build_error

HEAD_LIMIT_BYTES: Final = 65_536
"""How many bytes may come without becoming a head, a part of a body, or the end of one."""


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with a bound on the length of a head and on the time until it is whole.

    uvicorn itself waits without an end for a connection to send its first head, and for one that sends it byte by byte.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._came_to_something = False
        self._pending_bytes = 0
        self._waiting_since: float | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._offered = False
        self._framing = b"Content-Length: 0"
        self._parsing_framing = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first head."""
        super().connection_made(Corked(transport, self.loop))
        self._waiting_since = self.loop.time()
        self._watch = self.loop.call_later(self.timeout_keep_alive, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        super().connection_lost(exc)
        if self._watch is not None:
            self._watch.cancel()

    def data_received(self, data: bytes) -> None:
        """Reads on, unless too much came that came to nothing: of a head, or of the trailers behind a body."""
        self._came_to_something = False
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            return self.send_400_response("")
        self._pending_bytes = 0 if self._came_to_something else self._pending_bytes + len(data)
        if self._pending_bytes > HEAD_LIMIT_BYTES:
            self._refuse(HeadTooLarge(f"The head of the request is over the limit of {HEAD_LIMIT_BYTES} bytes."))

    def on_message_begin(self) -> None:
        """Prepares for a request."""
        if not self._parsing_framing:
            super().on_message_begin()
            self._framing = b"Content-Length: 0"

    def on_url(self, url: bytes) -> None:
        """Takes the request target, or a part of it."""
        if not self._parsing_framing:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header, and remembers the one that says where the body ends."""
        if self._parsing_framing:
            return
        super().on_header(name, value)
        if name.lower() in (CONTENT_LENGTH, TRANSFER_ENCODING):
            self._framing = name + b": " + value

    def on_headers_complete(self) -> None:
        """Notes that there is a request now, which has limits of its own, and lets it ask for its client."""
        if self._parsing_framing:
            return
        self.scope["extensions"] = {CONNECTION: {"closed": self.transport.is_closing}}
        super().on_headers_complete()
        self._came_to_something, self._waiting_since = True, None
        self._offered = self.parser.should_upgrade()

    def on_body(self, body: bytes) -> None:
        """Notes that the body goes on."""
        self._came_to_something = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Notes that the request is whole; where an upgrade was offered, the parser says so before the body."""
        if self._offered:
            return
        self._came_to_something = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Begins to wait for the next head, unless it has come already."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._waiting_since = self.loop.time()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP."""
        self._refuse(InvalidMessage("This is no request that HTTP/1.1 knows."))

    def _parse(self, data: bytes) -> None:
        """Has the parser read the bytes; an offer to speak another protocol is ignored (RFC 9110, section 7.8).

        The parser takes the offer for accepted and leaves the body unread. So a new parser reads it, which is told the
        framing of the body by a head of ours. Java's HTTP client makes such an offer with every first request.

        Errors:
            HttpParserError: this is not HTTP/1.1.
        """
        while data:
            try:
                return self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                data = data[offer.args[0] :]
                self._offered = False
                self.parser = httptools.HttpRequestParser(self)
                self._parsing_framing = True
                try:
                    self.parser.feed_data(b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n" % self._framing)
                finally:
                    self._parsing_framing = False

    def _refuse(self, error: BridgeError) -> None:
        """Answers and closes; a connection on which a request waits for its answer is closed alone."""
        if self._waiting_since is not None or (self.cycle.more_body and not self.cycle.response_started):
            status, body = HTTPStatus(RENDERINGS[type(error)].status), build_error(error, None)
            head = [*self.server_state.default_headers, (b"content-type", b"application/json")]
            head += [(b"content-length", str(len(body)).encode()), (b"connection", b"close")]
            lines = [f"HTTP/1.1 {status.value} {status.phrase}".encode(), *(b": ".join(line) for line in head)]
            self.transport.write(b"\r\n".join([*lines, b"", body]))
        if self._waiting_since is None:
            # uvicorn would learn of it in a later turn, and until then write an answer to a closed connection.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _look(self) -> None:
        """Ends a connection whose next head takes too long."""
        waited = 0.0 if self._waiting_since is None else self.loop.time() - self._waiting_since
        if waited >= self.timeout_keep_alive:
            return self.transport.abort()
        self._watch = self.loop.call_later(self.timeout_keep_alive - waited, self._look)
