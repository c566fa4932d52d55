"""The bodies that the bridge writes itself: JSON, always."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from vestige_bridge.errors import RENDERINGS, BridgeError
from vestige_bridge.jsonrpc import build_error

RETRY_AFTER_SECONDS: Final = 1


def json_response(
    body: bytes | Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with a JSON body, given as bytes that are JSON already or as a mapping; no cache keeps it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(content, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json")


def error_response(error: BridgeError) -> Response:
    """The answer for an error: its HTTP status, and its error object with the request's own id."""
    status = RENDERINGS[type(error)].status
    headers = dict(error.headers)
    if status == 503:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return json_response(build_error(error, error.request_id), status, headers)
