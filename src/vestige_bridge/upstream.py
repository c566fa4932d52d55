"""The MCP endpoint over HTTP: the only room that knows aiohttp. It opens, relays, and translates failure.

The law of this room: no exception of the HTTP client leaves it, and each error says whether upstream can have seen
the request. It never sends anything twice.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp

from vestige_bridge import sse
from vestige_bridge.errors import (
    BodyTooLarge,
    BridgeError,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamProtocolError,
)

KEEP_ALIVE_SECONDS: Final = 3.0
"""Less than the five seconds after which Node.js closes an idle connection: a request must not meet that close."""

DELETE_TIMEOUT_SECONDS: Final = 5.0

_REFUSED_UNREAD: Final = frozenset({401, 403, 405, 406, 415})
_ACCEPT: Final = "application/json, text/event-stream"
_JSON: Final = "application/json"
_NO_SESSION: Final = b"No valid session ID"


class UpstreamReply:
    """The reply to one POST: its head has come, its messages are still to be read.

    Attributes:
        refusal: what its HTTP status means, unless the body turns out to hold the answer; ``None`` for a good status.
    """

    def __init__(
        self, response: aiohttp.ClientResponse, max_answer_bytes: int, refusal: UpstreamProtocolError | None
    ) -> None:
        self._response = response
        self._max_answer_bytes = max_answer_bytes
        self.refusal = refusal

    @property
    def session_id(self) -> str | None:
        """The session that the reply opens (MCP 2025-11-25, basic/transports, session management)."""
        return self._response.headers.get("mcp-session-id")

    @property
    def streamed(self) -> bool:
        """Whether the messages come as an event stream."""
        return self._response.content_type == sse.CONTENT_TYPE

    @property
    def without_answer(self) -> BridgeError:
        """What it means that the reply ended and no answer to its request has come."""
        if self.refusal is not None:
            return self.refusal
        if self.streamed:
            return UpstreamDisconnected("The MCP endpoint ended its stream before the answer.")
        return UpstreamProtocolError("The MCP endpoint gave no answer to the request.")

    async def messages(self) -> AsyncIterator[bytes]:
        """Yields each JSON-RPC message as it arrives, its bytes as upstream wrote them.

        Errors:
            SessionLost: the reply says, as supergateway 3 does, that there is no such session.
            UpstreamDisconnected: the reply was cut.
            UpstreamProtocolError: a message is over the limit.
        """
        with _translated():
            if not self.streamed:
                body = await self._body()
                if self.refusal is not None and _NO_SESSION in body:
                    raise SessionLost("The MCP endpoint does not know the session any more.", detail="HTTP 400")
                if body:
                    yield body
                return
            decoder = sse.EventDecoder(self._max_answer_bytes)
            async for chunk in self._response.content.iter_any():
                try:
                    for event in decoder.feed(chunk):
                        if event.type == "message":
                            yield event.data
                except sse.EventTooLarge as error:
                    raise _too_large(self._max_answer_bytes) from error

    async def _body(self) -> bytes:
        pieces, length = [], 0
        async for piece in self._response.content.iter_any():
            length += len(piece)
            if length > self._max_answer_bytes:
                raise _too_large(self._max_answer_bytes)
            pieces.append(piece)
        return b"".join(pieces)


class ForwardedReply:
    """The reply to a client's own HTTP request, passed on as it is.

    Attributes:
        status: its HTTP status.
        content_type: its media type, lowercase, without parameters.
        session_id: the session that it names.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.content_type
        self.session_id = response.headers.get("mcp-session-id")

    async def read(self) -> bytes:
        """The next bytes of the body as they arrive; none at its end.

        Errors:
            UpstreamDisconnected: the body was cut.
        """
        with _translated():
            return await self._response.content.readany()


class Upstream:
    """One MCP endpoint and the connections to it.

    Parameters:
        url: the address of the MCP endpoint.
        token: the bearer token to show there; empty for none.
        connect_timeout_seconds: how long making a connection may take.
        max_answer_bytes: the largest message that is taken.
    """

    def __init__(self, url: str, *, token: str, connect_timeout_seconds: float, max_answer_bytes: int) -> None:
        self._url = url
        self._token = token
        self._connect_timeout_seconds = connect_timeout_seconds
        self._max_answer_bytes = max_answer_bytes
        self._http_client: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Makes the HTTP client; connects to nothing yet."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "vestige-bridge"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        self._http_client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._connect_timeout_seconds),
            headers=headers,
            auto_decompress=False,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes every connection."""
        await self._client.close()

    @contextlib.asynccontextmanager
    async def post(self, body: bytes, headers: Mapping[str, str]) -> AsyncIterator[UpstreamReply]:
        """Sends one message and opens the reply to it.

        Parameters:
            body: a JSON-RPC message, UTF-8.
            headers: the session's headers and what goes along with this message.

        Errors:
            UpstreamConnectError: no connection; nothing was sent.
            SessionLost: the endpoint does not know the session that the headers name.
            BodyTooLarge: the endpoint refused the body for its length.
            UpstreamDisconnected: the endpoint hung up.
            UpstreamProtocolError: the endpoint answered something that is not MCP.
        """
        async with self._open("POST", {"Content-Type": _JSON, "Accept": _ACCEPT, **headers}, body) as response:
            yield self._reply(response, headers)

    @contextlib.asynccontextmanager
    async def get(self, headers: Mapping[str, str]) -> AsyncIterator[UpstreamReply]:
        """Opens the session's own stream (MCP 2025-11-25, basic/transports, listening for messages).

        Errors:
            As for ``post``.
        """
        async with self._open("GET", {"Accept": sse.CONTENT_TYPE, **headers}, None) as response:
            yield self._reply(response, headers)

    @contextlib.asynccontextmanager
    async def forward(
        self, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[ForwardedReply]:
        """Sends a client's own HTTP request on and opens the reply to it, whatever that is.

        Errors:
            UpstreamConnectError, UpstreamDisconnected, UpstreamProtocolError: there is no whole response.
        """
        content = {} if body is None else {"Content-Type": _JSON}
        async with self._open(method, {"Accept": _ACCEPT, **content, **headers}, body) as response:
            yield ForwardedReply(response)

    async def delete(self, headers: Mapping[str, str]) -> None:
        """Ends the session that the headers name; an endpoint that is gone has ended it already."""
        with contextlib.suppress(BridgeError, TimeoutError), _translated():
            async with asyncio.timeout(DELETE_TIMEOUT_SECONDS):
                async with self._client.delete(self._url, headers=headers, allow_redirects=False):
                    pass

    def _reply(self, response: aiohttp.ClientResponse, headers: Mapping[str, str]) -> UpstreamReply:
        refusal = None
        if not _carries_messages(response):
            refusal = _refusal(response, has_session="mcp-session-id" in headers)
        return UpstreamReply(response, self._max_answer_bytes, refusal)

    @contextlib.asynccontextmanager
    async def _open(
        self, method: str, headers: Mapping[str, str], body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        with _translated():
            async with self._client.request(
                method, self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                yield response

    @property
    def _client(self) -> aiohttp.ClientSession:
        if self._http_client is None:
            raise RuntimeError("the upstream was not entered")
        return self._http_client


def _carries_messages(response: aiohttp.ClientResponse) -> bool:
    """Whether the reply holds messages, or has none to hold (MCP 2025-11-25, basic/transports)."""
    if response.status in (202, 204):
        return True
    return response.status == 200 and response.content_type in (sse.CONTENT_TYPE, _JSON)


def _refusal(response: aiohttp.ClientResponse, *, has_session: bool) -> UpstreamProtocolError:
    """What a reply with another status means, unless its JSON turns out to answer the request.

    Errors:
        SessionLost, BodyTooLarge, UpstreamProtocolError: there is nothing to read.
    """
    status = response.status
    refusal = UpstreamProtocolError(
        "The MCP endpoint answered something that is not MCP.",
        detail=f"HTTP {status}, {response.content_type}",
        sent=status not in _REFUSED_UNREAD,
    )
    if status == 413:
        raise BodyTooLarge("The MCP endpoint refused the body as too large.", data={"layer": "mcp_endpoint"})
    if has_session and status == 404:
        raise SessionLost("The MCP endpoint does not know the session any more.", detail="HTTP 404")
    if response.content_type != _JSON:
        raise refusal
    return refusal


def _too_large(limit_bytes: int) -> UpstreamProtocolError:
    return UpstreamProtocolError(f"The answer is over the limit of {limit_bytes} bytes.")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Turns the HTTP client's exceptions into the bridge's, once."""
    try:
        yield
    except (aiohttp.ConnectionTimeoutError, aiohttp.ClientConnectorError) as error:
        raise UpstreamConnectError("The MCP endpoint cannot be reached.", detail=_reason(error)) from error
    except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
        raise UpstreamDisconnected("The MCP endpoint hung up.", detail=_reason(error)) from error
    except aiohttp.ClientError as error:
        raise UpstreamProtocolError(
            "The MCP endpoint does not speak HTTP as it should.", detail=_reason(error)
        ) from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
