"""What a principal may do: one value, and the one function that asks it.

Invariant: what is not known to be permitted is refused. A message is judged by what it says and not by how it is
spelled; one that another reader could take for another message is refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from vestige_bridge.errors import Forbidden
from vestige_bridge.jsonrpc.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.mcp.methods import CALL_TOOL, READ_ONLY_NOTIFICATIONS, READ_ONLY_REQUESTS
from vestige_bridge.mcp.tools import Tool

_MEMBERS: Final = frozenset({"error", "id", "jsonrpc", "method", "params", "result"})
"""All that a JSON-RPC message may hold."""


@dataclass(frozen=True, slots=True)
class Permissions:
    """What a principal may do.

    Attributes:
        read_only: whether it may only send messages that change nothing.
    """

    read_only: bool = False

    @property
    def unrestricted(self) -> bool:
        """Whether no message has to be examined."""
        return not self.read_only

    def require(self, message: AnyMessage, tools: Mapping[str, Tool]) -> None:
        """Refuses a message that the principal may not send.

        A response changes nothing by itself: it continues what upstream began for a request that was permitted.

        Parameters:
            message: the principal's message.
            tools: the tools that upstream announced, by name.

        Errors:
            Forbidden: the message is not known to be permitted.
        """
        if self.unrestricted:
            return

        def refuse(why: str) -> NoReturn:
            raise Forbidden(
                f"This token is read-only, and {why}.",
                request_id=message.spelled_id if isinstance(message, Request) else None,
            )

        # Other JSON readers may take a key for one that differs from it in case alone, or for a prototype of the rest.
        if not message.members.keys() <= _MEMBERS:
            refuse("this message holds a member that JSON-RPC does not know")
        if any(key != "name" and key.casefold() == "name" for key in message.params):
            refuse('"params" holds a key that could be read as "name"')
        if isinstance(message, Response):
            return
        if message.method == CALL_TOOL and isinstance(message, Request):
            tool = tools.get(message.name or "")
            if tool is None or not tool.read_only:
                refuse("this tool does not announce with readOnlyHint that it changes nothing")
        elif message.method not in (
            READ_ONLY_NOTIFICATIONS if isinstance(message, Notification) else READ_ONLY_REQUESTS
        ):
            refuse("this method is not known to change nothing")


UNRESTRICTED: Final = Permissions()
READ_ONLY: Final = Permissions(read_only=True)
