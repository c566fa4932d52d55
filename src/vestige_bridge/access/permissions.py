"""The permissions and limits of a principal: one value, and one function that checks a message against it.

Invariant: a message is rejected unless it is known to be permitted. The check uses the parsed message, not its
spelling; a message that another parser could read differently is rejected, too.
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
"""The members that a JSON-RPC message may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """The permissions and limits of a principal.

    Attributes:
        read_only: whether it may only send messages that change nothing.
        also_tools: tools that it may call in spite of ``read_only``; ``*`` matches any characters.
        tools: the tools that it may list and call, as such patterns; ``None`` for all.
        resources: whether it may use resources and prompts.
        max_in_flight: the maximum number of its requests in flight; ``None`` for no limit of its own.
        rate: the maximum number of its tool calls in a minute; ``None`` for no limit.
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
        """Whether its messages need a check."""
        return self.read_only or self.tools is not None or not self.resources

    def allows_tool(self, name: object) -> bool:
        """Whether ``tools`` permits it to list and call the tool of that name."""
        if self.tools is None:
            return True
        return _is_among(self.tools, name)

    def require(self, message: AnyMessage, tools: Mapping[str, Tool]) -> None:
        """Rejects a message that the principal may not send.

        A response needs no permission: it continues a request that was permitted.

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
        """The reason why the principal may not send the message, which is not ambiguous."""
        if isinstance(message, Response):
            return None
        call = message if isinstance(message, Request) and message.method == CALL_TOOL else None
        if self.tools is not None:
            if call is not None and not self.allows_tool(call.name):
                return "it may not call this tool"
            if call is None and message.method != LIST_TOOLS and concerns_tools(message.method):
                return "this method may call tools that the token does not permit"
        if not self.resources and (concerns_resources(message.method) or _subscribes(message)):
            return "it may not use resources and prompts"
        if not self.read_only or (call is not None and _is_among(self.also_tools, call.name)):
            return None
        return _why_not_read_only(message, call, tools)


def _ambiguity(message: AnyMessage) -> str | None:
    """The reason why another JSON parser could read the message differently.

    It may ignore the case of keys, or may treat a key as the prototype of the object.
    """
    if not message.members.keys() <= _MEMBERS:
        return "this message has a member that JSON-RPC does not define"
    if any(key != "name" and key.casefold() == "name" for key in message.params):
        return '"params" has a key that could be read as "name"'
    return None


def _why_not_read_only(message: Request | Notification, call: Request | None, tools: Mapping[str, Tool]) -> str | None:
    if call is not None:
        announced = tools.get(call.name or "")
        if announced is None or not announced.read_only:
            return "this tool does not set readOnlyHint"
        return None
    known = READ_ONLY_NOTIFICATIONS if isinstance(message, Notification) else READ_ONLY_REQUESTS
    return None if message.method in known else "this method is not known to be read-only"


def _is_among(patterns: tuple[str, ...], name: object) -> bool:
    return isinstance(name, str) and any(matches(pattern, name) for pattern in patterns)


def matches(pattern: str, name: str) -> bool:
    """Whether a name matches a pattern; each ``*`` matches any characters, or none."""
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
