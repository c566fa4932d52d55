"""What a principal may do, and how much of it: one value, and the one function that asks it.

Invariant: what is not known to be permitted is refused. A message is judged by what it says and not by how it is
spelled; one that another reader could take for another message is refused, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from vestige_bridge.errors import Forbidden
from vestige_bridge.jsonrpc.messages import AnyMessage, Notification, Request, Response
from vestige_bridge.mcp.methods import (
    CALL_TOOL,
    LIST_TOOLS,
    LISTEN,
    READ_ONLY_NOTIFICATIONS,
    READ_ONLY_REQUESTS,
    concerns_resources,
    concerns_tools,
)
from vestige_bridge.mcp.modern import subscribes_to_resources
from vestige_bridge.mcp.tools import Tool

_MEMBERS: Final = frozenset({"error", "id", "jsonrpc", "method", "params", "result"})
"""All that a JSON-RPC message may hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What a principal may do, and how much of it.

    Attributes:
        read_only: whether it may only send messages that change nothing.
        also_tools: the tools that it may call nevertheless, with ``*`` for any characters.
        tools: the tools that it may list and call, in the same form; ``None`` for all.
        resources: whether it may use resources and prompts.
        max_in_flight: how many requests it may have in flight; ``None`` for as many as the bridge takes.
        rate: how many calls of tools it may make in a minute; ``None`` for any number.
        shares_lists: whether all principals see the same tools, so that a list may be cached for all of them.
    """

    read_only: bool = False
    also_tools: tuple[str, ...] = ()
    tools: tuple[str, ...] | None = None
    resources: bool = True
    max_in_flight: int | None = None
    rate: int | None = None
    shares_lists: bool = field(default=True, compare=False)

    @property
    def limited(self) -> bool:
        """Whether its messages have to be examined."""
        return self.read_only or self.tools is not None or not self.resources

    def allows_tool(self, name: object) -> bool:
        """Whether it may see and call the tool of that name, as far as ``tools`` says."""
        if self.tools is None:
            return True
        return _is_among(self.tools, name)

    def require(self, message: AnyMessage, tools: Mapping[str, Tool]) -> None:
        """Refuses a message that the principal may not send.

        A response changes nothing by itself: it continues what upstream began for a request that was permitted.

        Parameters:
            message: the principal's message.
            tools: the tools that upstream announced, by name.

        Errors:
            Forbidden: the message is not known to be permitted.
        """
        why = (_ambiguity(message) or self._why_not(message, tools)) if self.limited else None
        if why is not None:
            what = "This token is read-only" if self.read_only else "The rights of this token are limited"
            request_id = message.spelled_id if isinstance(message, Request) else None
            raise Forbidden(f"{what}, and {why}.", request_id=request_id)

    def _why_not(self, message: AnyMessage, tools: Mapping[str, Tool]) -> str | None:
        """Why the principal may not send the message, which has one meaning only."""
        if isinstance(message, Response):
            return None
        call = message if isinstance(message, Request) and message.method == CALL_TOOL else None
        if self.tools is not None:
            if call is not None and not self.allows_tool(call.name):
                return "this tool is not one that it may call"
            if call is None and message.method != LIST_TOOLS and concerns_tools(message.method):
                return "this method is not known to call no other tool than it may"
        if not self.resources and (concerns_resources(message.method) or _subscribes(message)):
            return "it may not use resources and prompts"
        if not self.read_only or (call is not None and _is_among(self.also_tools, call.name)):
            return None
        return _why_not_read_only(message, call, tools)


def _ambiguity(message: AnyMessage) -> str | None:
    """Why another JSON reader could take the message for another one.

    It may take a key for one that differs from it in case alone, or for a prototype of the rest.
    """
    if not message.members.keys() <= _MEMBERS:
        return "this message holds a member that JSON-RPC does not know"
    if any(key != "name" and key.casefold() == "name" for key in message.params):
        return '"params" holds a key that could be read as "name"'
    return None


def _why_not_read_only(message: Request | Notification, call: Request | None, tools: Mapping[str, Tool]) -> str | None:
    if call is not None:
        announced = tools.get(call.name or "")
        if announced is None or not announced.read_only:
            return "this tool does not announce with readOnlyHint that it changes nothing"
        return None
    known = READ_ONLY_NOTIFICATIONS if isinstance(message, Notification) else READ_ONLY_REQUESTS
    return None if message.method in known else "this method is not known to change nothing"


def _is_among(patterns: tuple[str, ...], name: object) -> bool:
    return isinstance(name, str) and any(matches(pattern, name) for pattern in patterns)


def matches(pattern: str, name: str) -> bool:
    """Whether a name fits a pattern in which each ``*`` stands for any characters, none included."""
    first, *rest = pattern.split("*")
    if not rest:
        return name == pattern
    *middle, last = rest
    position, end = len(first), len(name) - len(last)
    if position > end or not name.startswith(first) or not name.endswith(last):
        return False
    for part in middle:
        position = name.find(part, position, end)
        if position < 0:
            return False
        position += len(part)
    return True


def _subscribes(message: Request | Notification) -> bool:
    return message.method == LISTEN and isinstance(message, Request) and subscribes_to_resources(message)


UNRESTRICTED: Final = Permissions()
READ_ONLY: Final = Permissions(read_only=True)
