"""The record of one HTTP request: what each package learns about it, for the access log and the metrics.

It stands below every package that fills it, so that no import points up; `server/access_log` only prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from vestige_bridge.access.permissions import UNRESTRICTED, Permissions
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.messages import AnyMessage

if TYPE_CHECKING:
    from vestige_bridge.access.oauth import AccessToken

CONNECTION: Final = "vestige_bridge.connection"
"""An extension of the ASGI scope: what the HTTP server can tell of the request's connection, a ``ClientConnection``."""

TRACE: Final = "traceparent"
"""The key of ``_meta`` that names a trace (MCP 2026-07-28, basic)."""

OAUTH_PREFIX: Final = "oauth:"
"""How the principals of an identity provider begin; no name in a token file has a colon."""

_OAUTH: Final = "oauth"

PROBE_PATHS: Final = frozenset({"/health", "/readyz", "/livez"})
ENDPOINT_PATHS: Final = frozenset({"/mcp", "/mcp/"})


class ClientConnection(Protocol):
    """What the HTTP server can tell of the connection that a request came on."""

    @property
    def client_left(self) -> bool:
        """Whether the client is gone."""

    def authenticated(self, principal: str) -> None:
        """Takes note that the request carries a valid token, so that the connection may idle for longer."""

    def whole_body(self) -> bytes | None:
        """The body, if it has come whole by now; ``None`` if it is to be received."""


@dataclass(slots=True)
class AccessRecord:
    """What is learnt about one HTTP request on its way.

    Attributes:
        headers: the headers of the request.
        request_id: the id that the log and the answer carry.
        principal: the name of the token that it carries.
        permissions: what that principal may do.
        access_token: the OAuth access token that it carries, if it is one.
        method: the JSON-RPC method, or ``batch``.
        tool: the tool that is called, if upstream announced it.
        client_left: whether the client was gone before its answer.
        answering: whether the answer has begun.
        traceparent: the trace that the one message names to which it belongs.
        dispatched: whether a message of it was accepted, so that somebody sees it through.
    """

    headers: headers.Headers
    request_id: str
    principal: str | None = None
    permissions: Permissions = UNRESTRICTED
    access_token: AccessToken | None = None
    method: str | None = None
    tool: str | None = None
    client_left: bool = False
    answering: bool = False
    traceparent: bytes | None = None
    dispatched: bool = False

    @property
    def authenticated(self) -> str:
        """The principal, behind authentication.

        Errors:
            RuntimeError: the request was not authenticated.
        """
        if self.principal is None:
            raise RuntimeError("the request was not authenticated")
        return self.principal

    def trace_id(self, message: AnyMessage | None = None) -> str | None:
        """The trace that the request, or one message of it, belongs to.

        The header ``traceparent`` names it, otherwise the message's ``_meta`` (MCP 2026-07-28, basic).
        """
        own = self.traceparent if message is None else traceparent_of(message)
        if own is None and headers.TRACEPARENT not in self.headers:
            return None
        return headers.trace_id(self.headers.get(headers.TRACEPARENT)) or headers.trace_id(own)


def metrics_label(principal: str) -> str:
    """How the metrics call a principal: all those of an identity provider, as many as it has users, share a label."""
    return _OAUTH if principal.startswith(OAUTH_PREFIX) else principal


def traceparent_of(message: AnyMessage) -> bytes | None:
    """What the ``_meta`` of a message says of its trace, if that can be one."""
    if TRACE not in message.meta_keys:
        return None
    value = message.meta[TRACE].value
    return value.encode() if isinstance(value, str) and value.isascii() else None
