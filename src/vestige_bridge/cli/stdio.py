"""The command ``stdio``: an MCP server on standard input and output that forwards to a running bridge.

It is for clients that support only stdio servers (MCP 2025-11-25, basic/transports, stdio).

Invariants: each line of standard output is one message, with the bytes that the bridge sent, except that line breaks
between tokens become spaces. Each request gets exactly one answer, unless its client cancelled it. A message is sent
before the next line is read, so that a cancellation never overtakes its request. A request that Vestige may have run is
not sent again.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import Final
from urllib.parse import urlsplit

from vestige_bridge.cli.bridge_client import Client
from vestige_bridge.cli.http_client import (
    MAX_ANSWER_BYTES,
    TIMEOUT_SECONDS,
    ClientError,
    NoAnswer,
    NotMcp,
    next_piece,
    open_connection,
    translated,
)
from vestige_bridge.cli.terminal import shown
from vestige_bridge.errors import BridgeError, UpstreamConnectError, UpstreamDisconnected, UpstreamProtocolError
from vestige_bridge.http import sse
from vestige_bridge.jsonrpc.builders import build_error
from vestige_bridge.jsonrpc.messages import CANCELLED, INITIALIZED, AnyMessage, Notification, Request, Response
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp import modern
from vestige_bridge.mcp.methods import INITIALIZE

CONNECT_SECONDS: Final = 10.0
"""How long a message waits for a bridge that is not running, for example during a restart."""

RETRY_SECONDS: Final = 0.2
LONGEST_RETRY_SECONDS: Final = 15.0

ORDER_SECONDS: Final = 1.0
"""How long the next line waits for a message to be sent."""

IDLE_SECONDS: Final = 30.0
"""How long an idle connection may be reused; shorter than the idle timeouts of proxies."""

LINGER_SECONDS: Final = 2.0
"""How long to wait for answers after the client closed standard input."""

_KEEP_ALIVE_SECONDS: Final = 30

_line_breaks = re.compile(rb"[\r\n]+")


def serve(client: Client) -> int:
    """Forwards each line of standard input, until its end.

    Parameters:
        client: the address of the bridge, and the token to send.

    Returns:
        The exit status, 0.
    """
    forwarder = Forwarder(client)
    for line in sys.stdin.buffer:
        if body := line.strip():
            forwarder.take(body)
    forwarder.close()
    return 0


class Output:
    """Standard output, one message a line, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def write(self, message: bytes) -> None:
        """Writes a message; exits if the reader closed standard output."""
        rest = memoryview(_line_breaks.sub(b" ", message.strip()) + b"\n")
        with self._lock:
            try:
                while rest:
                    rest = rest[os.write(1, rest) :]
            except BrokenPipeError:
                os._exit(0)


class BridgeSession:
    """A session that the client opened.

    Attributes:
        id: its id; empty if the bridge sent none.
        version: the negotiated version of the protocol.
        initialize: the request that opened it, to open it again if it is lost.
    """

    def __init__(self, session_id: str, version: str, initialize: bytes) -> None:
        self.id = session_id
        self.version = version
        self.initialize = initialize

    @property
    def headers(self) -> dict[str, str]:
        """The headers of each message on the session."""
        return {"Mcp-Session-Id": self.id, "MCP-Protocol-Version": self.version} if self.id else {}


class Forwarder:
    """Forwards messages to a bridge, and its answers to standard output.

    Parameters:
        client: the address of the bridge, and the token to send.

    Attributes:
        output: standard output.
        session: the session that the client opened, once it is open.
        url: the endpoint of the bridge.
    """

    def __init__(self, client: Client) -> None:
        self.output = Output()
        self.session: BridgeSession | None = None
        self.url = f"{client.url}/mcp"
        self._headers = {"Accept": f"application/json, {sse.CONTENT_TYPE}", "User-Agent": "vestige-bridge stdio"}
        self._headers |= {"Authorization": f"Bearer {client.token}"} if client.token else {}
        self._idle: list[tuple[http.client.HTTPConnection, float]] = []
        self._in_flight: dict[str, Exchange] = {}
        self._threads: set[threading.Thread] = set()
        self._renewing = threading.Lock()
        self._listening = False

    def take(self, body: bytes) -> None:
        """Forwards a message, and returns once it is sent."""
        message = _parsed(body)
        if isinstance(message, Notification) and message.method == CANCELLED and self._cancel(message):
            return
        exchange = Exchange(self, body, message)
        if isinstance(message, Request):
            self._in_flight[message.spelled_id] = exchange
        thread = threading.Thread(target=self._run, args=(exchange,), daemon=True)
        self._threads.add(thread)
        thread.start()
        if isinstance(message, Request) and message.method == INITIALIZE:
            thread.join()  # the following messages belong to the session that it opens
        else:
            exchange.sent.wait(ORDER_SECONDS)

    def close(self) -> None:
        """Waits briefly for answers, and ends the session."""
        over = time.monotonic() + LINGER_SECONDS
        for thread in list(self._threads):
            thread.join(max(0.0, over - time.monotonic()))
        session, self.session = self.session, None
        if session is not None and session.id:
            with suppress(ClientError), closing(open_connection(self.url, LINGER_SECONDS)) as connection:
                self.send(connection, "DELETE", None, session.headers)

    def send(
        self, connection: http.client.HTTPConnection, method: str, body: bytes | None, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """Sends a request and waits for the head of its response.

        Errors:
            NoAnswer: there is no response.
        """
        self.dispatch(connection, method, body, headers)
        with translated(self.url, "no answer in time"):
            return connection.getresponse()

    def dispatch(
        self, connection: http.client.HTTPConnection, method: str, body: bytes | None, headers: dict[str, str]
    ) -> None:
        """Sends a request.

        Errors:
            NoAnswer: it could not be sent.
        """
        content = {} if body is None else {"Content-Type": "application/json"}
        with translated(self.url, "no answer in time"):
            connection.request(method, urlsplit(self.url).path, body, {**self._headers, **content, **headers})

    def connected(self) -> http.client.HTTPConnection:
        """A connection without a request in flight; waits a limited time for a bridge that is not running.

        Errors:
            NoAnswer: there is no connection.
        """
        while self._idle:
            connection, since = self._idle.pop()
            if time.monotonic() - since < IDLE_SECONDS and not select.select([connection.sock], [], [], 0)[0]:
                return connection
            connection.close()
        over = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                return self._connect()
            except NoAnswer as error:
                if error.kind != "refused" or time.monotonic() > over:
                    raise
                time.sleep(RETRY_SECONDS)

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keeps a connection for the next message."""
        self._idle.append((connection, time.monotonic()))

    def pieces(self, response: http.client.HTTPResponse) -> Iterator[bytes]:
        """The messages of a response, as they arrive.

        Errors:
            NoAnswer: the response is incomplete.
            NotMcp: the response is not MCP.
        """
        if response.headers.get_content_type() == sse.CONTENT_TYPE:
            decoder = sse.EventDecoder(MAX_ANSWER_BYTES)
            while piece := next_piece(response, self.url):
                yield from (event.data for event in decoder.feed(piece) if event.data.strip())
            return
        body = b"".join(iter(lambda: next_piece(response, self.url), b"")).strip()
        if body and response.headers.get_content_type() != "application/json":
            raise NotMcp(f"the answer is not MCP: HTTP {response.status}")
        if body:
            yield body

    def renew(self, lost: BridgeSession) -> None:
        """Opens a new session in place of one that the bridge no longer has; once for all waiting requests.

        Errors:
            ClientError: it could not be opened.
        """
        with self._renewing:
            if self.session is not lost:
                return
            with closing(self._connect()) as connection:
                response = self.send(connection, "POST", lost.initialize, {})
                opened = [
                    session for body in self.pieces(response) if (session := _opened(response, body, lost.initialize))
                ]
            if not opened:
                raise NotMcp("the session was lost and could not be opened again")
            self.session = opened[0]
            initialized = json.dumps({"jsonrpc": "2.0", "method": INITIALIZED}).encode()
            with closing(self._connect()) as connection:
                self.send(connection, "POST", initialized, self.session.headers).read()

    def listen(self) -> None:
        """Starts to forward notifications that belong to no request."""
        if self._listening or self.session is None or not self.session.id:
            return
        self._listening = True
        threading.Thread(target=self._listen, daemon=True).start()

    def _run(self, exchange: Exchange) -> None:
        try:
            exchange.run()
        finally:
            exchange.sent.set()
            self._threads.discard(threading.current_thread())
            if isinstance(exchange.message, Request):
                self._in_flight.pop(exchange.message.spelled_id, None)

    def _connect(self) -> http.client.HTTPConnection:
        connection = open_connection(self.url, TIMEOUT_SECONDS)
        # The bridge enforces the timeout of a request. TCP keep-alive detects a dead peer.
        connection.sock.settimeout(None)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_SECONDS)
        return connection

    def _cancel(self, notification: Notification) -> bool:
        """Marks a request as cancelled; returns whether nothing has to be forwarded.

        A modern request is cancelled by the end of its stream, and not by a notification (MCP 2026-07-28, transports).
        """
        request_id = notification.params.get("requestId")
        exchange = self._in_flight.get(notification.spelled(request_id)) if request_id is not None else None
        if exchange is None:
            return False
        exchange.cancel()
        return exchange.is_modern

    def _listen(self) -> None:
        """Reads the event stream of the session, and opens it again when it ends (MCP 2025-11-25, transports)."""
        delay = RETRY_SECONDS
        while self.session is not None:
            session, began = self.session, time.monotonic()
            try:
                with closing(self._connect()) as connection:
                    response = self.send(connection, "GET", None, session.headers)
                    if response.status == 405:
                        return
                    if response.status == 404:
                        self.renew(session)
                    elif response.status == 200:
                        for message in self.pieces(response):
                            self.output.write(message)
            except (ClientError, ValueError) as error:
                _say(f"{self.url}: {error}")
            delay = RETRY_SECONDS if time.monotonic() - began > 1 else min(2 * delay, LONGEST_RETRY_SECONDS)
            time.sleep(delay)


class Exchange:
    """One message of the client and its answer.

    Parameters:
        forwarder: the forwarder.
        body: its bytes.
        message: the parsed message; ``None`` if it could not be parsed.

    Attributes:
        message: as given.
        is_modern: whether it is a stateless request (MCP 2026-07-28).
        sent: set once the message is sent, or cannot be.
    """

    def __init__(self, forwarder: Forwarder, body: bytes, message: AnyMessage | None) -> None:
        self.message = message
        self.sent = threading.Event()
        self.is_modern = message is not None and modern.is_modern(message, None)
        self._forwarder = forwarder
        self._body = body
        self._connection: http.client.HTTPConnection | None = None
        self._answered = self._cancelled = False

    def run(self) -> None:
        """Sends the message and forwards the answer; a failure is answered with an error object."""
        sent = False
        try:
            connection = self._connection = self._forwarder.connected()
            sent = True
            response = self._respond(connection)
            self._pass_on(response)
            if isinstance(self.message, Request) and not self._answered:
                raise NoAnswer("the stream ended before the answer", "cut")
            response.read()  # http.client reuses the connection only after this
            if not response.will_close:
                self._forwarder.keep(connection)
        except (ClientError, ValueError) as error:
            self._fail(error, sent=sent)

    def cancel(self) -> None:
        """Marks the answer as not needed; closes the connection of a modern request, which cancels it."""
        self._cancelled = True
        if self.is_modern and self._connection is not None and self._connection.sock is not None:
            with suppress(OSError):
                self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _respond(self, connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
        """Sends the message, and again on a new session if the bridge no longer had the session it was sent on."""
        session = self._forwarder.session
        self._forwarder.dispatch(connection, "POST", self._body, self._headers(session))
        self.sent.set()
        with translated(self._forwarder.url, "no answer in time"):
            response = connection.getresponse()
        if response.status != 404 or session is None or self.is_modern or self._opens_session:
            return response
        response.read()
        self._forwarder.renew(session)
        return self._forwarder.send(connection, "POST", self._body, self._headers(self._forwarder.session))

    def _headers(self, session: BridgeSession | None) -> dict[str, str]:
        if self.is_modern and isinstance(self.message, Request):
            return modern.http_headers(self.message)
        return {} if session is None or self._opens_session else session.headers

    def _pass_on(self, response: http.client.HTTPResponse) -> None:
        for body in self._forwarder.pieces(response):
            if self._opens_session and (session := _opened(response, body, self._body)):
                self._forwarder.session = session
            self._write(body)
        if isinstance(self.message, Notification) and self.message.method == INITIALIZED and response.status == 202:
            self._forwarder.listen()

    def _write(self, body: bytes) -> None:
        """Forwards one message of the bridge."""
        if not isinstance(self.message, Request):
            if self.message is None:
                return self._forwarder.output.write(body)
            # A notification or a response has no answer.
            return _say(body.decode(errors="replace"))
        answer = _parsed(body)
        if answer is None:
            raise NotMcp("the answer is not MCP")
        if isinstance(answer, Response):
            self._answered = True
            if answer.id is None:  # rejected before it was read, for example without a token
                error = json.loads(body).get("error")
                _say(str(error.get("message") if isinstance(error, dict) else error))
                body = _with_id(error, self.message.spelled_id)
        self._forwarder.output.write(body)

    def _fail(self, error: Exception, *, sent: bool) -> None:
        if self._cancelled or self._answered:
            return
        _say(f"{self._forwarder.url}: {error}")
        if isinstance(self.message, Request):
            kind = (UpstreamProtocolError if isinstance(error, NotMcp) else UpstreamDisconnected) if sent else None
            failure: BridgeError = (kind or UpstreamConnectError)(f"No usable answer from the bridge: {error}.")
            failure.data = {"outcome": "unknown" if sent else "not_sent", "retryable": not sent}
            self._forwarder.output.write(build_error(failure, self.message.spelled_id))

    @property
    def _opens_session(self) -> bool:
        return isinstance(self.message, Request) and self.message.method == INITIALIZE


def _parsed(body: bytes) -> AnyMessage | None:
    """The message; ``None`` for a batch, and if it is not a message."""
    try:
        return parse_message(body.decode())
    except (BridgeError, UnicodeDecodeError):
        return None


def _opened(response: http.client.HTTPResponse, body: bytes, initialize: bytes) -> BridgeSession | None:
    """The session that an answer to ``initialize`` opens, if it is a result."""
    answer = _parsed(body)
    if not isinstance(answer, Response) or answer.failed:
        return None
    version = json.loads(body)["result"].get("protocolVersion", "")
    return BridgeSession(response.headers.get("mcp-session-id", ""), str(version), initialize)


def _with_id(error: object, spelled_id: str) -> bytes:
    """The error as the answer to the request with this id."""
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"error":{json.dumps(error)}}}'.encode()


def _say(sentence: str) -> None:
    print(f"vestige-bridge stdio: {shown(sentence)}", file=sys.stderr, flush=True)
