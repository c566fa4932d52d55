"""The errors of the bridge, and the one table of how each is sent to a client.

    BridgeError
    ├── SettingsError                   start-up only: one line per mistake, exit status 2
    ├── InvalidMessage                  the body is not a valid JSON-RPC message
    │   ├── ParseError                  … not even JSON
    │   ├── UnsupportedProtocolVersion
    │   ├── HeaderMismatch              a modern request whose headers and body differ
    │   ├── InvalidParams
    │   └── MethodNotFound
    ├── AuthenticationError             no token, or a wrong one
    ├── KeysUnavailable                 an OAuth token cannot be verified now
    ├── AuthenticationNotConfigured
    ├── Forbidden
    ├── NotFound, MethodNotAllowed, UnsupportedMediaType, BodyTimeout, HeadTooLarge, UnsupportedTransferCoding
    ├── BodyTooLarge
    ├── Overloaded                      too many requests in flight, or draining
    ├── LimitReached                    a limit of the principal, on calls a minute or requests in flight
    ├── AuditFailed                     a call whose line in the audit log cannot be written
    ├── Cancelled                       by the client's own `notifications/cancelled`
    ├── InternalError                   a bug
    ├── SessionLost                     upstream no longer has the session: renew, retry
    └── UpstreamError                   upstream failed
        ├── UpstreamProtocolError       sent something that is not MCP
        │   ├── RequestRefused          refused this one request by its HTTP status
        │   └── NoEventStream           has no event stream for GET
        ├── UpstreamDisconnected        closed the connection after the request was sent
        ├── UpstreamTimeout             no answer in time
        └── UpstreamUnavailable         no session, and none could be opened
            └── UpstreamConnectError    no connection

The text of an error is a sentence for the client, so it never quotes an exception, an address or a token.
``detail`` is only for the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

Outcome = Literal["not_sent", "unknown"]

NOT_SENT: Final[Mapping[str, object]] = MappingProxyType({"outcome": "not_sent", "retryable": True})
"""The ``data`` of an error about a request that was not sent to upstream and may be repeated."""

EXPIRED: Final = "The token has expired."
"""The message for a token that has expired."""


class BridgeError(Exception):
    """An error that the bridge sends to its client.

    Parameters:
        message: a sentence for the client.
        detail: more for the log; never sent to a client.
        data: members of the error object's ``data``.
        headers: HTTP response headers for this error.
        request_id: the id of the request in the client's spelling; ``None`` if it had none.
    """

    sent: bool = True
    """Whether upstream may have received the request when this error ends an attempt."""

    def __init__(
        self,
        message: str,
        *,
        detail: str = "",
        data: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.data: dict[str, object] = dict(data or {})
        self.headers: dict[str, str] = dict(headers or {})
        self.request_id = request_id

    def __str__(self) -> str:
        return f"{self.message} ({self.detail})" if self.detail else self.message


class SettingsError(BridgeError):
    """The settings are not valid.

    Parameters:
        problems: one line each, with the variable, what is wrong with its value and what is allowed.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class InvalidMessage(BridgeError):
    """The body is JSON, but not a valid JSON-RPC 2.0 message (JSON-RPC 2.0, section 4)."""


class ParseError(InvalidMessage):
    """The body is not JSON (RFC 8259)."""


class UnsupportedProtocolVersion(InvalidMessage):
    """The client declares a protocol version that is not supported."""


class HeaderMismatch(InvalidMessage):
    """The headers of a modern request differ from its body (MCP 2026-07-28, basic/transports)."""


class InvalidParams(InvalidMessage):
    """The params lack a required member (JSON-RPC 2.0, section 5.1)."""


class MethodNotFound(InvalidMessage):
    """The method does not exist in the protocol version that the request declares."""


class AuthenticationError(BridgeError):
    """The request carries no valid bearer token (RFC 6750, section 3)."""


class KeysUnavailable(BridgeError):
    """An OAuth token cannot be verified now: there are no signing keys, or too many requests wait for them."""

    sent = False


class AuthenticationNotConfigured(BridgeError):
    """No authentication is configured, so all requests are rejected."""


class Forbidden(BridgeError):
    """The caller is known, or needs no token, but lacks permission."""


class NotFound(BridgeError):
    """There is nothing at this path, or the session was ended by its client."""


class MethodNotAllowed(BridgeError):
    """The path exists, the HTTP method does not."""


class UnsupportedMediaType(BridgeError):
    """The body is not declared as plain ``application/json``."""


class HeadTooLarge(BridgeError):
    """The head of the HTTP request is over the limit."""


class UnsupportedTransferCoding(BridgeError):
    """The body has an unsupported transfer coding (RFC 9112, section 6.1)."""


class BodyTimeout(BridgeError):
    """The body did not arrive in time."""


class BodyTooLarge(BridgeError):
    """The body is over the bridge's limit, or upstream refused it as too large."""

    sent = False


class Overloaded(BridgeError):
    """Too many requests are in flight, or the bridge is draining."""

    sent = False


class LimitReached(BridgeError):
    """The principal has reached its limit of requests in flight or of calls a minute.

    Parameters:
        message: a sentence for the client.
        retry_after_seconds: the time until a retry may succeed (RFC 9110, section 10.2.3).
    """

    sent = False

    def __init__(self, message: str, retry_after_seconds: int, *, request_id: str | None = None) -> None:
        super().__init__(
            message,
            data=NOT_SENT,
            headers={"retry-after": str(retry_after_seconds)},
            request_id=request_id,
        )


class AuditFailed(BridgeError):
    """A call must be recorded in the audit log, and the log cannot be written."""

    sent = False


class Cancelled(BridgeError):
    """The client cancelled the request (MCP 2025-11-25, basic/utilities/cancellation)."""


class InternalError(BridgeError):
    """A bug of the bridge."""


class SessionLost(BridgeError):
    """Upstream no longer recognizes the session; it did not process the request."""

    sent = False


class UpstreamError(BridgeError):
    """Upstream failed."""


class UpstreamProtocolError(UpstreamError):
    """Upstream sent something that is not MCP.

    Parameters:
        sent: ``False`` if the HTTP status proves that the request was refused unread.
    """

    def __init__(self, message: str, *, detail: str = "", sent: bool = True) -> None:
        super().__init__(message, detail=detail)
        self.sent = sent


class RequestRefused(UpstreamProtocolError):
    """Upstream refused the body of this request; the connection and other requests are not affected.

    Parameters:
        message: a sentence for the client.
        detail: more for the log.
    """

    def __init__(self, message: str, *, detail: str = "") -> None:
        super().__init__(message, detail=detail, sent=False)


class NoEventStream(UpstreamProtocolError):
    """Upstream has no event stream for GET (MCP 2025-11-25, basic/transports: HTTP 405)."""


class UpstreamDisconnected(UpstreamError):
    """Upstream closed the connection after the request was sent; it may have run."""


class UpstreamTimeout(UpstreamError):
    """Upstream did not answer in time."""


class UpstreamUnavailable(UpstreamError):
    """There is no session, and none could be opened."""

    sent = False


class UpstreamConnectError(UpstreamUnavailable):
    """No connection to upstream could be opened."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """The HTTP status and the JSON-RPC error code of an error."""

    status: int
    code: int


RENDERINGS: Final[Mapping[type[BridgeError], Rendering]] = MappingProxyType(
    {
        ParseError: Rendering(400, -32700),
        InvalidMessage: Rendering(400, -32600),
        UnsupportedProtocolVersion: Rendering(400, -32022),
        HeaderMismatch: Rendering(400, -32020),
        InvalidParams: Rendering(400, -32602),
        MethodNotFound: Rendering(404, -32601),
        AuthenticationError: Rendering(401, -32015),
        KeysUnavailable: Rendering(503, -32013),
        AuthenticationNotConfigured: Rendering(500, -32603),
        Forbidden: Rendering(403, -32016),
        NotFound: Rendering(404, -32600),
        MethodNotAllowed: Rendering(405, -32600),
        UnsupportedMediaType: Rendering(415, -32600),
        BodyTimeout: Rendering(408, -32600),
        HeadTooLarge: Rendering(431, -32600),
        UnsupportedTransferCoding: Rendering(501, -32600),
        BodyTooLarge: Rendering(413, -32014),
        Overloaded: Rendering(503, -32013),
        LimitReached: Rendering(429, -32018),
        AuditFailed: Rendering(503, -32013),
        Cancelled: Rendering(200, -32017),
        InternalError: Rendering(500, -32603),
        SessionLost: Rendering(503, -32010),
        UpstreamProtocolError: Rendering(502, -32011),
        RequestRefused: Rendering(502, -32011),
        NoEventStream: Rendering(502, -32011),
        UpstreamDisconnected: Rendering(502, -32011),
        UpstreamError: Rendering(502, -32011),
        UpstreamTimeout: Rendering(504, -32012),
        UpstreamUnavailable: Rendering(503, -32010),
        UpstreamConnectError: Rendering(503, -32010),
    }
)

REASONS: Final[Mapping[type[BridgeError], str]] = MappingProxyType(
    {
        AuditFailed: "audit",
        BodyTooLarge: "too_large",
        Cancelled: "cancelled",
        Forbidden: "forbidden",
        InternalError: "bug",
        LimitReached: "limit",
        NotFound: "session_lost",
        NoEventStream: "protocol",
        Overloaded: "overloaded",
        RequestRefused: "refused",
        SessionLost: "session_lost",
        UpstreamConnectError: "connect",
        UpstreamDisconnected: "disconnected",
        UpstreamProtocolError: "protocol",
        UpstreamTimeout: "timeout",
        UpstreamUnavailable: "unavailable",
    }
)
"""The reason of each failure, for probes and metrics."""


def reason_of(error: BridgeError) -> str:
    """The reason of the failure."""
    return REASONS.get(type(error), "unavailable")


def no_failures() -> Counter[str]:
    """A count of zero for each reason."""
    return Counter(dict.fromkeys(REASONS.values(), 0))
