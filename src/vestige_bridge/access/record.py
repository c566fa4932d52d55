"""The record of one HTTP request: the facts that each package adds, for the access log and the metrics.

It is below every package that fills it, so that imports point only down; `server/access_log` only prints it.
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
"""An extension of the ASGI scope: the request's connection, a ``ClientConnection``."""

TRACE: Final = "traceparent"
"""The key of ``_meta`` that contains the trace context (MCP 2026-07-28, basic)."""

OAUTH_PREFIX: Final = "oauth:"
"""The prefix of an identity provider's principals; names in a token file cannot contain a colon."""

OAUTH_LABEL: Final = "oauth"
"""The principal of all of them in the metrics."""

PROBE_PATHS: Final = frozenset({"/health", "/readyz", "/livez"})
ENDPOINT_PATHS: Final = frozenset({"/mcp", "/mcp/"})


class ClientConnection(Protocol):
    """The connection of a request, as the HTTP server offers it."""

    @property
    def client_left(self) -> bool:
        """Whether the client has disconnected."""

    def authenticated(self, principal: str) -> None:
        """Marks the connection as authenticated, so that it may be idle for longer."""

    def whole_body(self) -> bytes | None:
        """The body, if all of it has arrived; ``None`` if it has to be received."""


@dataclass(slots=True)
class AccessRecord:
    """The facts about one HTTP request, added while it is processed.

    Attributes:
        headers: the headers of the request.
        request_id: the id in the log and in the answer.
        principal: the name of the request's token.
        permissions: what that principal may do.
        access_token: the request's OAuth access token, if it has one.
        method: the JSON-RPC method, or ``batch``.
        tool: the tool that is called, if upstream announced it.
        client_left: whether the client disconnected before its answer.
        answering: whether the answer has begun.
        traceparent: the ``traceparent`` in the ``_meta`` of its message, if it has exactly one.
        dispatched: whether one of its messages was accepted, so that the dispatcher completes it.
        calls_taken: how many of its tool calls count for the principal's rate.
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
    calls_taken: int = 0

    @property
    def authenticated(self) -> str:
        """The principal; only after authentication.

        Errors:
            RuntimeError: the request was not authenticated.
        """
        if self.principal is None:
            raise RuntimeError("the request was not authenticated")
        return self.principal

    def trace_id(self, message: AnyMessage | None = None) -> str | None:
        """The id of the trace that the request, or one of its messages, belongs to.

        It comes from the header ``traceparent``, otherwise from the message's ``_meta`` (MCP 2026-07-28, basic).
        """
        own = self.traceparent if message is None else traceparent_of(message)
        if own is None and headers.TRACEPARENT not in self.headers:
            return None
        return headers.trace_id(self.headers.get(headers.TRACEPARENT)) or headers.trace_id(own)


def metrics_label(principal: str) -> str:
    """The label of a principal in the metrics; all principals of an identity provider share one, to limit the count."""
    return OAUTH_LABEL if principal.startswith(OAUTH_PREFIX) else principal


def traceparent_of(message: AnyMessage) -> bytes | None:
    """The ``traceparent`` in the ``_meta`` of a message, if it is an ASCII string."""
    if TRACE not in message.meta_keys:
        return None
    value = message.meta[TRACE].value
    return value.encode() if isinstance(value, str) and value.isascii() else None
