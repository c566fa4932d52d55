"""Sends one HTTP request, for the commands, and names the reason if there is no answer.

Invariants: no exception of the standard library is raised to a caller, no redirect is followed, and no error contains a
token.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from vestige_bridge.http import sse

TIMEOUT_SECONDS: Final = 10.0
"""How long a connection, or an answer that needs no call of a tool, may take."""

TLS_TIMEOUT_SECONDS: Final = 2.0
"""How long the check may take whether a server that does not answer plain HTTP uses TLS."""

MAX_ANSWER_BYTES: Final = 2**30

_JSON: Final = "application/json"

Members = Mapping[str, Any]
Kind = Literal[
    "unresolved", "refused", "unreached", "late", "http", "https", "certificate", "refused_tls", "cut", "other"
]


class ClientError(Exception):
    """A request without a usable answer; the text is the reason.

    Attributes:
        may_have_run: whether the server may have received and run the request.
    """

    may_have_run = False


class NoAnswer(ClientError):
    """There is no HTTP answer.

    Parameters:
        found: the reason.
        kind: the reason as a word; ``http`` and ``https`` are the scheme that the URL should have.
    """

    def __init__(self, found: str, kind: Kind) -> None:
        super().__init__(found)
        self.kind = kind


class NotMcp(ClientError):
    """The answer is HTTP, but not MCP."""


class Refused(ClientError):
    """The answer is an error object.

    Parameters:
        status: the HTTP status of the answer.
        error: the error object.

    Attributes:
        code: the error's code.
    """

    def __init__(self, status: int, error: Members) -> None:
        super().__init__(str(error.get("message") or "The error has no message."))
        self.status = status
        self.code = error.get("code")
        data = error.get("data")
        self.may_have_run = isinstance(data, dict) and data.get("outcome") == "unknown"


@dataclass(frozen=True, slots=True)
class HttpReply:
    """A whole HTTP response."""

    status: int
    content_type: str
    location: str
    body: bytes

    def json(self) -> Members:
        """The members of the body if it is a JSON object, otherwise none."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    def messages(self) -> Iterator[Members]:
        """The JSON-RPC messages in the body, which is one message or an event stream."""
        if self.content_type == sse.CONTENT_TYPE:
            for event in sse.EventDecoder(MAX_ANSWER_BYTES).feed(self.body):
                yield from _members(event.data)
        else:
            yield from _members(self.body)

    def __str__(self) -> str:
        """A description for use in a sentence."""
        if self.location:
            return f"HTTP {self.status}, a redirect to {self.location}"
        return f"HTTP {self.status}, {self.content_type if self.body else 'empty'}"


def fetch(
    method: str,
    url: str,
    message: Members | None = None,
    *,
    token: str = "",
    session_id: str = "",
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> HttpReply:
    """Sends an HTTP request and waits for the whole response.

    Parameters:
        method: GET or POST.
        url: the URL.
        message: the JSON-RPC message to send.
        token: the token to send; empty for none.
        session_id: the id of the MCP session; empty for none.
        timeout_seconds: how long the connection may take, and then each part of the response.

    Errors:
        NoAnswer: there is no response.
    """
    headers = _bearer(token) | ({"Mcp-Session-Id": session_id} if session_id else {})
    with (
        closing(open_connection(url, timeout_seconds)) as connection,
        closing(_opened(connection, method, url, message, headers)) as response,
    ):
        return _whole(response, url)


def converse(
    url: str, message: Members, *, token: str, timeout_seconds: float, silence_seconds: float | None
) -> Iterator[tuple[int, Members]]:
    """POSTs a JSON-RPC message and yields each message of the response, with the HTTP status before it.

    Parameters:
        url: the URL.
        message: the message to send.
        token: the token to send; empty for none.
        timeout_seconds: how long making the connection may take.
        silence_seconds: how long the server may send nothing after that; ``None`` for no limit.

    Errors:
        NoAnswer: there is no response, or it is incomplete.
        NotMcp: the response is not MCP.
    """
    with closing(open_connection(url, timeout_seconds)) as connection, _sent():
        connection.sock.settimeout(silence_seconds)
        with closing(_opened(connection, "POST", url, message, _bearer(token))) as response:
            if response.headers.get_content_type() == sse.CONTENT_TYPE:
                decoder = sse.EventDecoder(MAX_ANSWER_BYTES)
                while piece := next_piece(response, url):
                    for event in decoder.feed(piece):
                        yield from ((response.status, message) for message in _members(event.data))
                return
            reply = _whole(response, url)
            messages = list(reply.messages())
            if not messages:
                raise NotMcp(f"the answer is not MCP: {reply}")
            yield from ((reply.status, message) for message in messages)


@contextmanager
def _sent() -> Iterator[None]:
    """Marks the errors of a request that the server may have received."""
    try:
        yield
    except ClientError as error:
        error.may_have_run = True
        raise


def is_event_stream(url: str, timeout_seconds: float) -> bool:
    """Whether the answer to GET is an event stream; its body is not read.

    Errors:
        NoAnswer: no HTTP server answers.
    """
    with (
        closing(open_connection(url, timeout_seconds)) as connection,
        closing(_opened(connection, "GET", url, None, {})) as response,
    ):
        return response.status == 200 and response.headers.get_content_type() == sse.CONTENT_TYPE


def connect(url: str, timeout_seconds: float) -> None:
    """Opens a connection and closes it.

    Errors:
        NoAnswer: there is no connection.
    """
    parts = urlsplit(url)
    address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    with translated(url, f"no connection within {timeout_seconds:g} s", late="unreached"):
        socket.create_connection(address, timeout_seconds).close()


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def open_connection(url: str, timeout_seconds: float) -> http.client.HTTPConnection:
    """Opens a connection, with TLS for https.

    Parameters:
        url: the address.
        timeout_seconds: how long it may take; the limit stays in force for the connection until it is changed.

    Errors:
        NoAnswer: there is no connection.
    """
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_seconds)
    with translated(url, f"no connection within {timeout_seconds:g} s", late="unreached"):
        try:
            connection.connect()
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError as error:
            # Only a TLS server sends an alert (RFC 8446, section 6).
            if "ALERT" not in (error.reason or ""):
                raise NoAnswer("the server does not use TLS", "http") from error
            raise
    return connection


def _opened(
    connection: http.client.HTTPConnection,
    method: str,
    url: str,
    message: Members | None,
    headers: Mapping[str, str],
) -> http.client.HTTPResponse:
    """Sends the request and waits for the head of the response."""
    parts = urlsplit(url)
    content = {} if message is None else {"Content-Type": _JSON}
    sent = {"Accept": f"{_JSON}, {sse.CONTENT_TYPE}", "User-Agent": "vestige-bridge", **content, **headers}
    body = None if message is None else json.dumps(message).encode()
    with translated(url, "connected, but no answer came in time"):
        connection.request(method, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""), body, sent)
        return connection.getresponse()


def next_piece(response: http.client.HTTPResponse, url: str) -> bytes:
    """Waits for the next bytes of a response; empty at its end.

    Errors:
        NoAnswer: the response is incomplete.
    """
    with translated(url, "no more data came in time"):
        return response.read1(65536)


def _whole(response: http.client.HTTPResponse, url: str) -> HttpReply:
    with translated(url, "the answer was not complete in time"):
        body = response.read(MAX_ANSWER_BYTES)
    if response.length:
        raise NoAnswer("the answer is incomplete", "cut")
    location = response.headers.get("location", "") if 300 <= response.status < 400 else ""
    reply = HttpReply(response.status, response.headers.get_content_type(), location, body)
    if reply.status == 400 and not reply.json() and url.startswith("http:") and _speaks_tls(url):
        raise NoAnswer("the server uses TLS", "https")
    return reply


@contextmanager
def translated(url: str, when_late: str, late: Kind = "late") -> Iterator[None]:
    """Translates exceptions of the standard library."""
    try:
        yield
    except (socket.gaierror, UnicodeError) as error:
        raise NoAnswer(f"the name {urlsplit(url).hostname} does not resolve", "unresolved") from error
    except TimeoutError as error:
        raise NoAnswer(when_late, late) from error
    except ConnectionRefusedError as error:
        raise NoAnswer("connection refused, nothing listens there", "refused") from error
    except ssl.SSLCertVerificationError as error:
        raise NoAnswer(f"the certificate is not valid: {error.verify_message}", "certificate") from error
    except ssl.SSLError as error:
        raise NoAnswer("the server uses TLS and rejected this client", "refused_tls") from error
    except (OSError, http.client.HTTPException) as error:
        if url.startswith("http:") and _speaks_tls(url):
            raise NoAnswer("the server uses TLS", "https") from error
        if isinstance(error, ConnectionError | http.client.IncompleteRead):
            raise NoAnswer("the connection was closed without an answer", "cut") from error
        raise NoAnswer(getattr(error, "strerror", None) or "the server does not use HTTP", "other") from error


def _speaks_tls(url: str) -> bool:
    parts = urlsplit(url)
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 80), TLS_TIMEOUT_SECONDS) as connection:
            context.wrap_socket(connection).close()
    except OSError:
        return False
    return True


def _members(body: bytes) -> list[Members]:
    """The JSON-RPC message in the bytes, if they are one."""
    try:
        message = json.loads(body)
    except ValueError:
        return []
    return [message] if isinstance(message, dict) and message.get("jsonrpc") == "2.0" else []
