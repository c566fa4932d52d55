"""HTTP responses that the bridge creates; their bodies are JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

from starlette.responses import Response

from vestige_bridge.errors import RENDERINGS, BridgeError
from vestige_bridge.jsonrpc.builders import build_error

RETRY_AFTER_SECONDS: Final = 1


def json_response(
    body: bytes | Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """An answer with a JSON body that must not be cached.

    Parameters:
        body: encoded JSON, or a mapping; a mapping gets a line feed at its end, for terminals.
        status: the HTTP status.
        headers: more headers.
    """
    content = body if isinstance(body, bytes) else f"{json.dumps(body)}\n".encode()
    return Response(content, status, {"cache-control": "no-store", **(headers or {})}, media_type="application/json")


def error_response(error: BridgeError) -> Response:
    """The answer for an error: its HTTP status, and its error object with the request's own id."""
    status = RENDERINGS[type(error)].status
    headers = dict(error.headers)
    if status == 503:
        headers.setdefault("retry-after", str(RETRY_AFTER_SECONDS))
    return json_response(build_error(error, error.request_id), status, headers)
