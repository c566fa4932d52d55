"""Tasks (MCP 2025-11-25, basic/utilities/tasks), which are not offered on a session that principals share.

Whoever is on a session may list, read and cancel its tasks, so on a shared session there can be none.
"""

from __future__ import annotations

from typing import Final

from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.jsonrpc.spans import members_of, without_member

_PREFIXES: Final = ("tasks/", "notifications/tasks/")


def is_about_tasks(method: str) -> bool:
    """Whether a request or a notification is about tasks."""
    return method.startswith(_PREFIXES)


def without_task(request: Request) -> Request:
    """The request without ``params.task``, which a server without tasks has to ignore (same section)."""
    if request.task is None:
        return request
    plain = parse_message(without_member(request.text, request.task))
    if not isinstance(plain, Request):
        raise TypeError("a request stays a request")
    return plain


def without_tasks(initialize_result: str) -> str:
    """The InitializeResult of an upstream whose tasks are not offered."""
    capabilities = members_of(initialize_result).get("capabilities")
    if capabilities is None or not isinstance(capabilities.value, dict):
        return initialize_result
    tasks = members_of(initialize_result, capabilities.start).get("tasks")
    return initialize_result if tasks is None else without_member(initialize_result, tasks)
