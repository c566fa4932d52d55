"""Upstream over HTTP: opens connections, sends, and translates failures; the only module that imports aiohttp's client.

Invariant: no exception of the HTTP client leaves it, and each error says whether upstream may have received
the request. It never sends anything twice.

Requests use connections that aiohttp's connector opens and the bridge's own protocol class takes over: aiohttp's client
spends most of a forwarded request's time on features that are not needed here (cookies, redirects, tracing, a timer and
a stream for each reply). A session's own stream uses aiohttp's client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

from vestige_bridge.errors import (
    BridgeError,
    NoEventStream,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamProtocolError,
)
from vestige_bridge.http import sse
from vestige_bridge.http.headers import JSON, LAST_EVENT_ID, SESSION_ID, header_lines
from vestige_bridge.upstream.answer_budget import AnswerBudget
from vestige_bridge.upstream.connection import Receiver, UpstreamConnection
from vestige_bridge.upstream.token import UpstreamToken

KEEP_ALIVE_SECONDS: Final = 3.0
"""Shorter than the five seconds after which Node.js closes an idle connection, so that no request meets the close."""

DELETE_TIMEOUT_SECONDS: Final = 5.0

_NO_STREAM: Final = frozenset({405, 501})
_ACCEPT: Final = f"{JSON}, {sse.CONTENT_TYPE}"
_SESSION_ID: Final = SESSION_ID.decode()

_error_numbers = re.compile(r"\[Errno (\d+)\]").findall


class EventStream:
    """The session's own stream."""

    def __init__(self, response: aiohttp.ClientResponse, max_answer_bytes: int) -> None:
        self._response = response
        self._max_answer_bytes = max_answer_bytes
        self._decoder = sse.EventDecoder(max_answer_bytes)

    @property
    def position(self) -> sse.Position | None:
        """Where the stream can be resumed, if its events have ids."""
        return self._decoder.position

    async def messages(self) -> AsyncIterator[bytes]:
        """Yields each JSON-RPC message as it arrives, its bytes as upstream wrote them.

        Errors:
            UpstreamDisconnected: the stream was interrupted.
            UpstreamProtocolError: a message is over the limit.
        """
        decoder = self._decoder
        with _translated():
            async for chunk in self._response.content.iter_any():
                try:
                    for event in decoder.feed(chunk):
                        if event.type == "message":
                            yield event.data
                except sse.EventTooLarge as error:
                    raise UpstreamProtocolError(f"A message is over {self._max_answer_bytes} bytes.") from error


class Upstream:
    """One upstream and the connections to it.

    Parameters:
        url: the URL of upstream.
        token: the bearer token for it.
        connect_timeout_seconds: the time limit for a connection.
        max_answer_bytes: the size limit of a message.
        budget: counts the bytes of large answers.
    """

    def __init__(
        self,
        url: str,
        *,
        token: UpstreamToken,
        connect_timeout_seconds: float,
        max_answer_bytes: int,
        budget: AnswerBudget,
    ) -> None:
        self._url = URL(url)
        self._headers = {"Accept-Encoding": "identity", "User-Agent": "vestige-bridge"}
        self._token = token
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout_seconds)
        self._max_answer_bytes = max_answer_bytes
        self._budget = budget
        self._http_client: aiohttp.ClientSession | None = None
        self._connections: dict[UpstreamConnection, aiohttp.connector.Connection] = {}
        self._idle: list[UpstreamConnection] = []
        always = {"Host": self._url.host_port_subcomponent or "", "Content-Type": JSON, "Accept": _ACCEPT}
        self._head = f"POST {self._url.raw_path_qs} HTTP/1.1\r\n{header_lines(always | self._headers)}"

    async def __aenter__(self) -> Self:
        """Opens the HTTP client, but no connection."""
        self._http_client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=self._timeout,
            headers=self._headers,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes every connection."""
        for connection in list(self._connections):
            connection.close()
            self._closed(connection)
        await self._client.close()

    def take_connection(self) -> UpstreamConnection | None:
        """A free connection, if there is one; the caller must send on it at once."""
        oldest_usable = time.monotonic() - KEEP_ALIVE_SECONDS
        while self._idle:
            connection = self._idle.pop()
            if connection.closed:
                continue
            if connection.idle_since >= oldest_usable:
                return connection
            # The others have been idle even longer, and upstream may be closing them now.
            for stale in (connection, *self._idle):
                stale.close()
            self._idle.clear()
        return None

    async def open_connection(self) -> UpstreamConnection:
        """A new connection; the caller must send on it at once.

        Errors:
            UpstreamConnectError: it could not be opened.
        """
        self._token.current()
        request = aiohttp.ClientRequest("POST", self._url, headers=self._headers)
        try:
            made = await self._connector.connect(request, [], self._timeout)
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamConnectError("Upstream cannot be reached.", detail=_reason(error)) from error
        if made.transport is None:
            raise UpstreamConnectError("Upstream cannot be reached.", detail="it closed the connection at once")
        connection = UpstreamConnection(
            made.transport, self._max_answer_bytes, self._budget, on_idle=self.free, on_closed=self._closed
        )
        self._connections[connection] = made
        return connection

    def send(self, connection: UpstreamConnection, message: bytes, headers: str, receiver: Receiver) -> None:
        """Sends one message.

        Parameters:
            connection: the connection.
            message: a JSON-RPC message, UTF-8.
            headers: its header lines, without those of every request.
            receiver: the receiver of the reply.
        """
        head = f"{self._head}{self._token.header_lines}{headers}Content-Length: {len(message)}\r\n\r\n"
        connection.send(head.encode("latin-1") + message, receiver, has_session=_SESSION_ID in headers)

    @contextlib.asynccontextmanager
    async def get(self, headers: Mapping[str, str], last_event_id: str | None = None) -> AsyncIterator[EventStream]:
        """Opens an event stream (MCP 2025-11-25, basic/transports, listening for messages, resumability).

        Parameters:
            headers: the headers of the session.
            last_event_id: the event after which a stream is resumed; ``None`` for the session's own stream.

        Errors:
            UpstreamConnectError, UpstreamDisconnected: there is no connection, or it was closed.
            SessionLost: HTTP 404: upstream has no such stream, or does not recognize the session.
            NoEventStream: HTTP 405 or 501: upstream has no such stream.
            UpstreamProtocolError: upstream refused for another reason, which may be temporary.
        """
        resumed = {} if last_event_id is None else {LAST_EVENT_ID.decode(): last_event_id}
        async with self._open("GET", {"Accept": sse.CONTENT_TYPE, **headers, **resumed}) as response:
            status = response.status
            if status == 404:
                raise SessionLost("Upstream no longer recognizes the session.", detail="GET: HTTP 404")
            if status in _NO_STREAM:
                raise NoEventStream("Upstream has no event stream for GET.", detail=f"HTTP {status}")
            if status != 200 or response.content_type != sse.CONTENT_TYPE:
                raise UpstreamProtocolError("Upstream refused an event stream.", detail=f"GET: HTTP {status}")
            yield EventStream(response, self._max_answer_bytes)

    async def delete(self, headers: Mapping[str, str]) -> None:
        """Ends the session that the headers name; an upstream that has stopped has ended it already."""
        with contextlib.suppress(BridgeError, TimeoutError), _translated():
            async with asyncio.timeout(DELETE_TIMEOUT_SECONDS):
                shown = {**self._token.headers, **headers}
                async with self._client.delete(self._url, headers=shown, allow_redirects=False):
                    pass

    def free(self, connection: UpstreamConnection) -> None:
        """Keeps an unused connection for the next message."""
        connection.idle_since = time.monotonic()
        self._idle.append(connection)

    def _closed(self, connection: UpstreamConnection) -> None:
        made = self._connections.pop(connection, None)
        if made is not None:
            made.close()

    @contextlib.asynccontextmanager
    async def _open(self, method: str, headers: Mapping[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        self._token.current()
        with _translated():
            async with self._client.request(
                method, self._url, headers={**self._token.headers, **headers}, allow_redirects=False
            ) as response:
                yield response

    @property
    def _connector(self) -> aiohttp.BaseConnector:
        if self._client.connector is None:
            raise RuntimeError("the upstream client is closed")
        return self._client.connector

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._http_client is None:
            raise RuntimeError("the upstream client is not open")
        return self._http_client


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Translates the HTTP client's exceptions to the bridge's, once."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise UpstreamConnectError("Upstream cannot be reached.", detail=_reason(error)) from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise UpstreamDisconnected("Upstream closed the connection.", detail=_reason(error)) from error
    except aiohttp.ClientError as error:
        raise UpstreamProtocolError("Upstream sent invalid HTTP.", detail=_reason(error)) from error


def _reason(error: Exception) -> str:
    """The cause; for a failed connection, the address and the operating system's error text."""
    if not isinstance(error, aiohttp.ClientConnectorError):
        return f"{type(error).__name__}: {error}"
    cause = error.os_error
    # If a name has several addresses, the text of one exception without a number contains the error of each.
    numbers = [cause.errno or 0, *map(int, _error_numbers(str(cause)))]
    words = ", ".join(dict.fromkeys(os.strerror(number) for number in numbers if number > 0))
    return f"{error.host}:{error.port}: {words or cause.strerror or cause}"
