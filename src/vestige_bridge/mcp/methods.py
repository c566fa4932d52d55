"""The methods of MCP: one table, from which every set of method names is derived.

Invariant: no other module lists method names. A method that is not in the table is forwarded, is not logged by name,
is never repeated, and is refused to a read-only principal.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Flag, auto
from types import MappingProxyType
from typing import Final, NamedTuple

from vestige_bridge.jsonrpc.messages import CANCELLED, INITIALIZED, PING
from vestige_bridge.mcp.versions import Era

CALL_TOOL: Final = "tools/call"
DISCOVER: Final = "server/discover"
INITIALIZE: Final = "initialize"
LIST_RESOURCES: Final = "resources/list"
LIST_TOOLS: Final = "tools/list"
LISTEN: Final = "subscriptions/listen"
LOG_MESSAGE: Final = "notifications/message"
NOTIFICATION_PREFIX: Final = "notifications/"
PROGRESS: Final = "notifications/progress"
PROMPTS_CHANGED: Final = "notifications/prompts/list_changed"
READ_RESOURCE: Final = "resources/read"
RESOURCES_CHANGED: Final = "notifications/resources/list_changed"
RESOURCE_UPDATED: Final = "notifications/resources/updated"
SET_LEVEL: Final = "logging/setLevel"
SUBSCRIBE: Final = "resources/subscribe"
SUBSCRIPTION_ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
TOOLS_CHANGED: Final = "notifications/tools/list_changed"
UNSUBSCRIBE: Final = "resources/unsubscribe"


class Is(Flag):
    """The traits of a method.

    Attributes:
        REPEATABLE: running it twice has the same effect as running it once.
        READ_ONLY: it changes only the notifications of its own client.
        CACHEABLE: its modern result contains how long it may be cached.
        MERGED: the bridge merges it: requests of all clients into one upstream, equal notifications into one.
        ABOUT_CLIENT: it describes its client, so on a shared session it is not forwarded.
        LOGGABLE: clients send it, and the log and the metrics may name it.
    """

    REPEATABLE = auto()
    READ_ONLY = auto()
    CACHEABLE = auto()
    MERGED = auto()
    ABOUT_CLIENT = auto()
    LOGGABLE = auto()


class Method(NamedTuple):
    """One method of MCP.

    Attributes:
        traits: its traits.
        era: the only era that has it; ``None`` for both.
        named_by: the parameter that a modern request repeats in the header ``Mcp-Name``.
    """

    traits: Is
    era: Era | None = None
    named_by: str | None = None


_READ: Final = Is.REPEATABLE | Is.READ_ONLY | Is.LOGGABLE
_HEARD: Final = Is.READ_ONLY | Is.MERGED | Is.LOGGABLE
_SAID: Final = Is.READ_ONLY | Is.ABOUT_CLIENT | Is.LOGGABLE

_ABOUT_RESOURCES: Final = frozenset({"completion", "prompts", "resources"})

METHODS: Final[Mapping[str, Method]] = MappingProxyType(
    {
        # Requests of clients.
        CALL_TOOL: Method(Is.LOGGABLE, named_by="name"),
        DISCOVER: Method(Is.READ_ONLY | Is.CACHEABLE | Is.LOGGABLE, Era.MODERN),
        INITIALIZE: Method(Is.READ_ONLY | Is.LOGGABLE, Era.LEGACY),
        LIST_TOOLS: Method(_READ | Is.CACHEABLE),
        LISTEN: Method(Is.READ_ONLY | Is.LOGGABLE, Era.MODERN),
        PING: Method(_READ, Era.LEGACY),
        READ_RESOURCE: Method(_READ | Is.CACHEABLE, named_by="uri"),
        SET_LEVEL: Method(_HEARD, Era.LEGACY),
        SUBSCRIBE: Method(_HEARD, Era.LEGACY),
        UNSUBSCRIBE: Method(_HEARD, Era.LEGACY),
        "completion/complete": Method(_READ),
        "prompts/get": Method(_READ, named_by="name"),
        "prompts/list": Method(_READ | Is.CACHEABLE),
        LIST_RESOURCES: Method(_READ | Is.CACHEABLE),
        "resources/templates/list": Method(_READ | Is.CACHEABLE),
        # Notifications of clients.
        CANCELLED: Method(Is.READ_ONLY | Is.LOGGABLE),
        INITIALIZED: Method(_SAID),
        PROGRESS: Method(_SAID),
        "notifications/roots/list_changed": Method(_SAID),
        # Notifications of upstream.
        PROMPTS_CHANGED: Method(Is.MERGED),
        RESOURCES_CHANGED: Method(Is.MERGED),
        RESOURCE_UPDATED: Method(Is.MERGED),
        TOOLS_CHANGED: Method(Is.MERGED),
    }
)


def is_notification(method: str) -> bool:
    """Whether the name is that of a notification."""
    return method.startswith(NOTIFICATION_PREFIX)


def concerns_tools(method: str) -> bool:
    """Whether the method may be about tools: a server may have more of them, or ignore case."""
    return _feature(method) == "tools"


def concerns_resources(method: str) -> bool:
    """Whether the method may be about resources or prompts, including completion of their arguments."""
    return _feature(method) in _ABOUT_RESOURCES


def _feature(method: str) -> str:
    return method.partition("/")[0].casefold()


def _named(*traits: Is, notification: bool | None = None) -> frozenset[str]:
    wanted = Is(0)
    for trait in traits:
        wanted |= trait
    return frozenset(
        name
        for name, method in METHODS.items()
        if wanted in method.traits and notification in (None, is_notification(name))
    )


REPEATABLE_METHODS: Final = _named(Is.REPEATABLE)
READ_ONLY_REQUESTS: Final = _named(Is.READ_ONLY, notification=False)
READ_ONLY_NOTIFICATIONS: Final = _named(Is.READ_ONLY, notification=True)
CACHEABLE_METHODS: Final = _named(Is.CACHEABLE)
MERGED_REQUESTS: Final = _named(Is.MERGED, notification=False)
MERGED_NOTIFICATIONS: Final = _named(Is.MERGED, notification=True)
LIST_CHANGED_NOTIFICATIONS: Final = MERGED_NOTIFICATIONS - {RESOURCE_UPDATED}
NOTIFICATIONS_ABOUT_CLIENT: Final = _named(Is.ABOUT_CLIENT)
LOGGABLE_METHODS: Final = _named(Is.LOGGABLE)
LEGACY_ONLY_METHODS: Final = frozenset(name for name, method in METHODS.items() if method.era is Era.LEGACY)
NAMED_BY: Final[Mapping[str, str]] = MappingProxyType(
    {name: method.named_by for name, method in METHODS.items() if method.named_by is not None}
)
"""The parameter in the header ``Mcp-Name``, by method (MCP 2026-07-28, basic/transports)."""
