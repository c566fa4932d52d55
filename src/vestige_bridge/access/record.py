"""The record of one HTTP request: what each package learns about it, for the access log and the metrics.

It stands below every package that fills it, so that no import points up; `server/access_log` only prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from vestige_bridge.access.permissions import UNRESTRICTED, Permissions
from vestige_bridge.http import headers

CONNECTION: Final = "vestige_bridge.connection"
"""An extension of the ASGI scope: what the HTTP server can tell of the request's connection, a ``ClientConnection``."""

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
        method: the JSON-RPC method, or ``batch``.
        tool: the tool that is called, if upstream announced it.
        client_left: whether the client was gone before its answer.
        answering: whether the answer has begun.
    """

    headers: headers.Headers
    request_id: str
    principal: str | None = None
    permissions: Permissions = UNRESTRICTED
    method: str | None = None
    tool: str | None = None
    client_left: bool = False
    answering: bool = False
