"""What a read-only principal may ask for.

The law of this room: what is not known to change nothing is refused. A message is judged by what it says and not by how
it is spelled; one that another reader could take for another message is refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NoReturn

from vestige_bridge.errors import Forbidden
from vestige_bridge.lifecycle import REPEATABLE_METHODS, Tool
from vestige_bridge.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.modern import DISCOVER, LISTEN

CALL: Final = "tools/call"

_METHODS: Final = REPEATABLE_METHODS | {
    "initialize",
    "logging/setLevel",
    "resources/subscribe",
    "resources/unsubscribe",
    DISCOVER,
    LISTEN,
}
"""The requests that change nothing but what their own client hears."""

_NOTIFICATIONS: Final = frozenset(
    {
        "notifications/cancelled",
        "notifications/initialized",
        "notifications/progress",
        "notifications/roots/list_changed",
    }
)
"""What a client says about itself and its own requests."""

_MEMBERS: Final = frozenset({"error", "id", "jsonrpc", "method", "params", "result"})
"""All that a JSON-RPC message may hold."""


def require_read_only(message: AnyMessage, tools: Mapping[str, Tool]) -> None:
    """Refuses a message that may change something.

    A response changes nothing by itself: it lets that go on which upstream began for a request that was permitted.

    Parameters:
        message: the message of a read-only principal.
        tools: what upstream's tools announce of themselves.

    Errors:
        Forbidden: it is not known to change nothing.
    """

    def refuse(why: str) -> NoReturn:
        raise Forbidden(
            f"This token is read-only, and {why}.",
            request_id=message.spelled_id if isinstance(message, Request) else None,
        )

    # Other readers of JSON may take a key for one that differs from it in case alone, or for a prototype of the rest.
    if not message.members.keys() <= _MEMBERS:
        refuse("this message holds a member that JSON-RPC does not know")
    if any(key != "name" and key.casefold() == "name" for key in message.params):
        refuse('"params" holds a key that could be read as "name"')
    if isinstance(message, Response):
        return
    if message.method == CALL and isinstance(message, Request):
        tool = tools.get(message.name or "")
        if tool is None or not tool.read_only:
            refuse("this tool does not announce with readOnlyHint that it changes nothing")
    elif message.method not in (_NOTIFICATIONS if isinstance(message, Notification) else _METHODS):
        refuse("this method is not known to change nothing")
