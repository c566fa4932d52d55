"""Who hears which notification: the streams of many clients on the one session.

The law of this room: a client hears what concerns the session of all, and of the rest only what it asked for. What
waits for a slow reader is bounded; a newer notification of the same kind makes the waiting one superfluous.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from vestige_bridge.messages import Notification, Request
from vestige_bridge.multiplexer import Caller

LIST_CHANGED: Final = frozenset(
    {
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/tools/list_changed",
    }
)
RESOURCE_UPDATED: Final = "notifications/resources/updated"
LOG_MESSAGE: Final = "notifications/message"

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""The levels of a log message, the least severe first (RFC 5424, section 6.2.1; MCP 2025-11-25, server/utilities)."""

WAITING_LIMIT_BYTES: Final = 262_144
"""How many bytes wait for a slow reader before the oldest notification is dropped."""

MAX_CLIENTS: Final = 16_384
"""How many clients' wishes are remembered; the one that was quiet longest is forgotten first."""

MAX_URIS: Final = 1_024
"""How many resources one client may want to hear of."""

MAX_URIS_OF_ALL: Final = 65_536
"""How many all of them may, each counted for each client."""

MAX_URI_CHARACTERS: Final = 2_048

TOO_MANY_RESOURCES: Final = "So many resources, or one with so long an address, cannot be watched."


class Listener:
    """One client's stream of notifications.

    Parameters:
        wants: whether the client is to hear a notification.
    """

    def __init__(self, wants: Callable[[Notification], bool]) -> None:
        self.wants = wants
        self.closed = False
        self._waiting: OrderedDict[object, bytes] = OrderedDict()
        self._waiting_bytes = 0
        self._news: asyncio.Future[None] | None = None

    def put(self, notification: Notification | Request) -> None:
        """Keeps a notification, or a request of upstream's, for the reader; never waits."""
        data = notification.encoded()
        key = data if notification.method in LIST_CHANGED | {RESOURCE_UPDATED} else object()
        self._drop(key)
        self._waiting[key] = data
        self._waiting_bytes += len(data)
        while self._waiting_bytes > WAITING_LIMIT_BYTES and len(self._waiting) > 1:
            self._drop(next(iter(self._waiting)))
        self.wake()

    def close(self) -> None:
        """Ends the stream once what waits has been read."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Has ``next`` return, with nothing if there is nothing."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> bytes | None:
        """The next notification; ``None`` when the stream is closed or ``wake`` was called. One waits at a time."""
        if not self._waiting and not self.closed:
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None
        if not self._waiting:
            return None
        _, data = self._waiting.popitem(last=False)
        self._waiting_bytes -= len(data)
        return data

    def _drop(self, key: object) -> None:
        self._waiting_bytes -= len(self._waiting.pop(key, b""))


@dataclass(slots=True)
class _Wishes:
    """What one legacy client asked to hear."""

    uris: set[str] = field(default_factory=set)
    level: str | None = None
    listener: Listener | None = None

    def include(self, notification: Notification) -> bool:
        if notification.method == RESOURCE_UPDATED:
            return _string(notification, "uri") in self.uris
        if notification.method == LOG_MESSAGE:
            level = _string(notification, "level")
            return self.level is not None and level in LEVELS and LEVELS.index(level) >= LEVELS.index(self.level)
        return notification.method in LIST_CHANGED


class Hub:
    """All listeners, and what upstream has to be asked for on their behalf."""

    def __init__(self) -> None:
        self._clients: OrderedDict[Caller, _Wishes] = OrderedDict()
        self._others: dict[Listener, frozenset[str]] = {}

    def listen(self, caller: Caller) -> Listener:
        """The stream of a legacy client; one that it had before ends, as each message goes to one stream only."""
        wishes = self._wishes(caller)
        if wishes.listener is not None:
            wishes.listener.close()
        wishes.listener = Listener(wishes.include)
        return wishes.listener

    def add(self, listener: Listener, uris: frozenset[str]) -> None:
        """Takes in a listener that says itself what it wants."""
        self._others[listener] = uris

    def remove(self, caller: Caller | None, listener: Listener) -> None:
        """Lets a listener go; a legacy client's wishes stay, since it may come back for them."""
        listener.close()
        self._others.pop(listener, None)
        wishes = None if caller is None else self._clients.get(caller)
        if wishes is not None and wishes.listener is listener:
            wishes.listener = None

    def forget(self, caller: Caller) -> None:
        """Drops all that a legacy client asked for, and ends its stream."""
        wishes = self._clients.pop(caller, None)
        if wishes is not None and wishes.listener is not None:
            wishes.listener.close()

    def has_room(self, uris: frozenset[str], caller: Caller | None = None) -> bool:
        """Whether a client, a legacy one if it is named, may want to hear of these resources, too."""
        wishes = None if caller is None else self._clients.get(caller)
        of_all = sum(len(it.uris) for it in self._clients.values()) + sum(map(len, self._others.values()))
        return (
            len(uris if wishes is None else uris | wishes.uris) <= MAX_URIS
            and of_all + len(uris) <= MAX_URIS_OF_ALL
            and all(len(uri) <= MAX_URI_CHARACTERS for uri in uris)
        )

    def subscribe(self, caller: Caller, uri: str) -> None:
        """Notes that a legacy client wants to hear of a resource."""
        self._wishes(caller).uris.add(uri)

    def unsubscribe(self, caller: Caller, uri: str) -> None:
        """Notes that a legacy client does not want to hear of a resource any more."""
        self._wishes(caller).uris.discard(uri)

    def set_level(self, caller: Caller, level: str) -> None:
        """Notes how severe a log message has to be for a legacy client."""
        self._wishes(caller).level = level

    @property
    def streams_open(self) -> int:
        """How many clients are listening."""
        return len(self._others) + sum(it.listener is not None for it in self._clients.values())

    @property
    def uris(self) -> frozenset[str]:
        """The resources that somebody wants to hear of."""
        wanted = [wishes.uris for wishes in self._clients.values()]
        return frozenset().union(*wanted, *self._others.values())

    @property
    def level(self) -> str | None:
        """The least severe level that somebody asked for."""
        asked = [wishes.level for wishes in self._clients.values() if wishes.level is not None]
        return min(asked, key=LEVELS.index, default=None)

    def publish(self, notification: Notification) -> None:
        """Gives a notification to each listener that is to hear it."""
        listeners = [*self._others, *(it.listener for it in self._clients.values() if it.listener is not None)]
        for listener in listeners:
            if listener.wants(notification):
                listener.put(notification)

    def close(self) -> None:
        """Ends every stream."""
        for listener in [*self._others, *(it.listener for it in self._clients.values() if it.listener is not None)]:
            listener.close()

    def _wishes(self, caller: Caller) -> _Wishes:
        wishes = self._clients.pop(caller, None) or _Wishes()
        self._clients[caller] = wishes
        if len(self._clients) > MAX_CLIENTS:
            quiet = next((it for it, wishes in self._clients.items() if wishes.listener is None), None)
            if quiet is not None:
                del self._clients[quiet]
        return wishes


def _string(notification: Notification, key: str) -> str:
    value = notification.params.get(key)
    return value.value if value is not None and isinstance(value.value, str) else ""
