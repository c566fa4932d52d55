"""Builds the JSON-RPC 2.0 messages of the bridge: one function for each kind of envelope.

An id, a result and parameters are given as JSON text, so that an id keeps its spelling.
"""

from __future__ import annotations

from collections.abc import Mapping

from vestige_bridge.errors import RENDERINGS, BridgeError
from vestige_bridge.jsonrpc.messages import CANCELLED, PING, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.jsonrpc.spans import dump


def build_request(method: str, params: Mapping[str, object] | None = None) -> Request:
    """Builds a request of the bridge's own; the multiplexer assigns the id with which it is sent."""
    request = parse_message(_envelope("0", method, "" if params is None else dump(params)))
    if not isinstance(request, Request):
        raise TypeError("the result is not a request")
    return request


def build_ping(spelled_id: str) -> bytes:
    """Builds a ``ping`` of the bridge's own (MCP 2025-11-25, basic/utilities/ping).

    Parameters:
        spelled_id: its id, as JSON text.
    """
    return _envelope(spelled_id, PING).encode()


def build_notification(method: str, spelled_params: str = "") -> bytes:
    """Builds a notification.

    Parameters:
        method: its method.
        spelled_params: its parameters, as JSON text; empty for none.
    """
    return _envelope("", method, spelled_params).encode()


def build_cancelled(spelled_id: str, reason: str) -> bytes:
    """Builds a ``notifications/cancelled`` of the bridge's own (MCP 2025-11-25, basic/utilities/cancellation).

    Parameters:
        spelled_id: the id of the request upstream, in its spelling.
        reason: a sentence for upstream.
    """
    return build_notification(CANCELLED, f'{{"requestId":{spelled_id},"reason":{dump(reason)}}}')


def build_result(spelled_id: str, spelled_result: str) -> bytes:
    """Builds a response with a result, both given as JSON text."""
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"result":{spelled_result}}}'.encode()


def build_error(error: BridgeError, spelled_id: str | None) -> bytes:
    """Builds the response for an error of the bridge (JSON-RPC 2.0, section 5.1).

    Parameters:
        error: the error.
        spelled_id: the id of the request, as JSON text; ``None`` becomes ``null``.
    """
    members: dict[str, object] = {"code": RENDERINGS[type(error)].code, "message": error.message}
    if error.data:
        members["data"] = error.data
    return _error(spelled_id or "null", members)


def build_method_not_found(spelled_id: str) -> bytes:
    """Builds the response to a request that is not supported (JSON-RPC 2.0, section 5.1)."""
    return _error(spelled_id, {"code": -32601, "message": "Method not found"})


def _envelope(spelled_id: str, method: str, spelled_params: str = "") -> str:
    """A request, or a notification if it has no id."""
    request_id = f'"id":{spelled_id},' if spelled_id else ""
    params = f',"params":{spelled_params}' if spelled_params else ""
    return f'{{"jsonrpc":"2.0",{request_id}"method":{dump(method)}{params}}}'


def _error(spelled_id: str, members: Mapping[str, object]) -> bytes:
    return f'{{"jsonrpc":"2.0","id":{spelled_id},"error":{dump(members)}}}'.encode()
