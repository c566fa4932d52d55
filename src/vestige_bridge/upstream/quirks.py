"""Recognizes two responses that only supergateway (releases 3 and 4) sends.

Invariant: they are recognized by status and structure, never by a phrase within bytes that another program wrote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

SERVER_DIED: Final[Mapping[str, Any]] = {"code": -32603.0, "message": "MCP server process failed"}
"""The error object with which supergateway 4 answers when its MCP server process has ended."""

_SESSION_REFUSAL: Final = {
    "jsonrpc": "2.0",
    "error": {"code": -32000, "message": "Bad Request: No valid session ID provided"},
    "id": None,
}
_MAX_REFUSAL_BYTES: Final = 1_024


def refuses_session(body: bytes) -> bool:
    """Whether a body with HTTP status 400 is supergateway 3's response for an unknown session."""
    if len(body) > _MAX_REFUSAL_BYTES:
        return False
    try:
        return bool(json.loads(body) == _SESSION_REFUSAL)
    except (ValueError, RecursionError):
        return False
