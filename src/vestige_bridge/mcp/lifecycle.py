"""The lifecycle of a legacy MCP session (MCP 2025-11-25, basic/lifecycle): ``initialize`` and its result.

Invariant: pure functions on messages; nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vestige_bridge import __version__
from vestige_bridge.errors import UpstreamProtocolError
from vestige_bridge.http.headers import PROTOCOL_VERSION, SESSION_ID, header_lines
from vestige_bridge.jsonrpc.builders import build_request
from vestige_bridge.jsonrpc.messages import Request, Response
from vestige_bridge.mcp.methods import INITIALIZE
from vestige_bridge.mcp.tasks import without_tasks
from vestige_bridge.mcp.versions import LATEST_LEGACY_VERSION, LEGACY_VERSIONS


@dataclass(frozen=True, slots=True)
class HeldSession:
    """One upstream session, from its handshake on.

    Attributes:
        session_id: upstream's id; ``None`` for an upstream without sessions.
        protocol_version: the version negotiated with upstream.
        capabilities: upstream's capabilities, from its InitializeResult.
        initialize_result: upstream's InitializeResult, in its spelling.
        server_name: upstream's name, from the same.
        server_version: upstream's version, from the same.
        header_lines: the headers of every message on this session, as text for its head.
    """

    session_id: str | None = None
    protocol_version: str | None = None
    capabilities: Mapping[str, object] = field(default_factory=dict)
    initialize_result: str = ""
    server_name: str = ""
    server_version: str = ""
    header_lines: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "header_lines", header_lines(self.headers))

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every message on this session (MCP 2025-11-25, basic/transports)."""
        named = {SESSION_ID.decode(): self.session_id, PROTOCOL_VERSION.decode(): self.protocol_version}
        return {name: value for name, value in named.items() if value is not None}


def build_initialize() -> Request:
    """The request that opens a session: the latest legacy version, and no client capabilities."""
    return build_request(
        INITIALIZE,
        {
            "protocolVersion": LATEST_LEGACY_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "vestige-bridge", "version": __version__},
        },
    )


def read_initialize(response: Response, session_id: str | None) -> HeldSession:
    """The session that an InitializeResult opens.

    Errors:
        UpstreamProtocolError: upstream refused, or supports no version that the bridge supports.
    """
    result = response.result
    if not isinstance(result, dict):
        raise UpstreamProtocolError(
            "Vestige refused the handshake.", detail=f"error {(response.error or {}).get('code')}"
        )
    version, server, capabilities = (result.get(key) for key in ("protocolVersion", "serverInfo", "capabilities"))
    if version not in LEGACY_VERSIONS or not isinstance(server, dict):
        raise UpstreamProtocolError(
            "Vestige supports none of the MCP versions of the bridge.", detail=f"version {version!r}"
        )
    capabilities = capabilities if isinstance(capabilities, dict) else {}
    return HeldSession(
        session_id=session_id,
        protocol_version=version,
        capabilities={key: value for key, value in capabilities.items() if key != "tasks"},
        initialize_result=without_tasks(response.spelled(response.members["result"])),
        server_name=str(server.get("name", "")),
        server_version=str(server.get("version", "")),
    )
