"""Tasks (MCP 2025-11-25, basic/utilities/tasks), which are not offered on a shared session.

Every client of a session may list, read and cancel its tasks, so a shared session must have none.
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
    """The request without ``params.task``, which a server without tasks ignores (same section)."""
    if request.task is None:
        return request
    plain = parse_message(without_member(request.text, request.task))
    if not isinstance(plain, Request):
        raise TypeError("the result is not a request")
    return plain


def without_tasks(initialize_result: str) -> str:
    """The InitializeResult without the tasks capability."""
    capabilities = members_of(initialize_result).get("capabilities")
    if capabilities is None or not isinstance(capabilities.value, dict):
        return initialize_result
    tasks = members_of(initialize_result, capabilities.start).get("tasks")
    return initialize_result if tasks is None else without_member(initialize_result, tasks)
