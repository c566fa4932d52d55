"""The modern era of MCP (2026-07-28): which requests declare it.

The bridge speaks the legacy versions only. It says so in the words of the modern specification, so that a client of
both eras falls back to the handshake (MCP 2026-07-28, basic/versioning).
"""

from __future__ import annotations

from typing import Final

from vestige_bridge.errors import UnsupportedProtocolVersion
from vestige_bridge.jsonrpc import AnyMessage, Request

LEGACY_VERSIONS: Final = ("2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05")
"""The protocol versions that begin with a handshake, newest first."""

_DECLARED_VERSION: Final = "io.modelcontextprotocol/protocolVersion"


def require_legacy(message: AnyMessage, header: str | None) -> None:
    """Refuses a message that declares a version which is not spoken here.

    Parameters:
        message: the client's message; a modern one declares its version in ``params._meta``.
        header: the value of ``MCP-Protocol-Version``, if it was sent.

    Errors:
        UnsupportedProtocolVersion: with ``supported`` and ``requested``.
    """
    declared = message.meta.get(_DECLARED_VERSION)
    for version in (header, None if declared is None else str(declared.value)):
        if version is not None and version not in LEGACY_VERSIONS:
            raise UnsupportedProtocolVersion(
                "This protocol version is not spoken here; start with an initialize request of a supported one.",
                data={"supported": list(LEGACY_VERSIONS), "requested": version[:64]},
                request_id=message.spelled_id if isinstance(message, Request) else None,
            )
