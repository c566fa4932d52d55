"""Routes notifications of the shared session to the streams of many clients.

Invariants: a client gets the notifications for all clients, and of the others only those it asked for. The data kept
for clients is bounded for each principal, so that none uses the quota of another. The data that waits for a slow reader
is bounded; equal notifications are merged.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.mcp.methods import (
    LIST_CHANGED_NOTIFICATIONS,
    LOG_MESSAGE,
    MERGED_NOTIFICATIONS,
    RESOURCE_UPDATED,
)
from vestige_bridge.mcp.multiplexer import Caller

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""The levels of a log message, the least severe first (RFC 5424, section 6.2.1; MCP 2025-11-25, server/utilities)."""

WAITING_LIMIT_BYTES: Final = 262_144
"""Maximum bytes that wait for a slow reader before the oldest notification is dropped."""

MERGE_SECONDS: Final = 1.0
"""How long a list-changed or resource-updated notification delays equal ones, which are then sent as one."""

MAX_CLIENTS: Final = 16_384
"""Maximum number of clients; at the limit, the least recent client of the principal with the most is removed."""

MAX_URIS: Final = 1_024
"""Maximum number of resources of one client."""

MAX_URIS_OF_PRINCIPAL: Final = 8_192
"""Maximum number of resources of all clients of one principal; each counts once for each client."""

MAX_URIS_OF_ALL: Final = 65_536
"""Maximum number of resources of all clients."""

MAX_URI_CHARACTERS: Final = 2_048

TOO_MANY_RESOURCES: Final = "There are too many subscriptions, or the URI of a resource is too long."


class Listener:
    """One client's stream of notifications.

    Parameters:
        wants: whether the client gets a notification.
        opened: whether notifications are sent at once, or only after ``open`` is called.

    Attributes:
        wants: whether the client gets a notification.
        closed: whether the stream ends after the waiting messages are read.
    """

    def __init__(self, wants: Callable[[Notification], bool], *, opened: bool = True) -> None:
        self.wants = wants
        self.closed = False
        self._opened = opened
        self._waiting: OrderedDict[object, bytes] = OrderedDict()
        self._later: OrderedDict[object, bytes] = OrderedDict()
        self._waiting_bytes = 0
        self._sent: set[object] = set()
        self._merging: asyncio.TimerHandle | None = None
        self._news: asyncio.Future[None] | None = None

    def open(self, first: bytes) -> None:
        """Sends a message, and then those that came until now."""
        key = object()
        self._keep(self._waiting, key, first)
        self._waiting.move_to_end(key, last=False)
        self._opened = True
        self.wake()

    def put(self, notification: Notification | Request) -> None:
        """Adds a notification, or a request from upstream, for the reader; never waits."""
        if self.closed:
            return
        key = _merge_key(notification)
        sent_lately = key in self._sent and key not in self._waiting
        self._keep(self._later if sent_lately else self._waiting, key, notification.encoded())
        if notification.method in MERGED_NOTIFICATIONS:
            self._sent.add(key)
            self._merge_from_now_on()
        self.wake()

    def close(self) -> None:
        """Ends the stream after the waiting messages are read."""
        self.closed = True
        if self._merging is not None:
            self._merging.cancel()
        self._release()
        self.wake()

    def wake(self) -> None:
        """Makes ``next`` return, with ``None`` if there is no message."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> bytes | None:
        """The next notification; ``None`` if the stream is closed or ``wake`` was called. There is one reader."""
        if not self._readable and not self.closed:
            self._news = asyncio.get_running_loop().create_future()
            try:
                await self._news
            finally:
                self._news = None
        if not self._readable:
            return None
        _, data = self._waiting.popitem(last=False)
        self._waiting_bytes -= len(data)
        return data

    @property
    def _readable(self) -> bool:
        return self._opened and bool(self._waiting)

    def _keep(self, messages: OrderedDict[object, bytes], key: object, data: bytes) -> None:
        self._waiting_bytes += len(data) - len(messages.pop(key, b""))
        messages[key] = data
        while self._waiting_bytes > WAITING_LIMIT_BYTES and len(self._waiting) + len(self._later) > 1:
            _, dropped = (self._waiting or self._later).popitem(last=False)
            self._waiting_bytes -= len(dropped)

    def _merge_from_now_on(self) -> None:
        if self._merging is None:
            self._merging = asyncio.get_running_loop().call_later(MERGE_SECONDS, self._send_merged)

    def _send_merged(self) -> None:
        self._merging = None
        self._sent = set(self._later)
        if self._later:
            self._release()
            self._merge_from_now_on()
            self.wake()

    def _release(self) -> None:
        for key, data in self._later.items():
            self._waiting_bytes -= len(self._waiting.pop(key, b""))
            self._waiting[key] = data
        self._later.clear()


@dataclass(slots=True, eq=False)
class _Interests:
    """The notifications that one client asked for.

    Attributes:
        principal: the principal of the client.
        uris: the resources that it subscribed to.
        level: the lowest log level that it gets; it counts while the client listens.
        listener: its stream.
        listens: whether it has a stream, so that its level counts.
    """

    principal: str
    uris: set[str] = field(default_factory=set)
    level: str | None = None
    listener: Listener | None = None
    listens: bool = False

    def include(self, notification: Notification) -> bool:
        if notification.method == RESOURCE_UPDATED:
            return concerns(_string(notification, "uri"), self.uris)
        if notification.method == LOG_MESSAGE:
            level = _string(notification, "level")
            return self.level is not None and level in LEVELS and LEVELS.index(level) >= LEVELS.index(self.level)
        return notification.method in LIST_CHANGED_NOTIFICATIONS


class Listeners:
    """All listeners, and the subscriptions that they need upstream.

    Attributes:
        changed: called with each resource whose first subscription begins or last one ends, and with ``None`` when the
            log level may have changed.
    """

    def __init__(self) -> None:
        self.changed: Callable[[str | None], None] = lambda _: None
        self._clients: dict[str, OrderedDict[Caller, _Interests]] = {}
        self._clients_of_all = 0
        self._others: dict[Listener, _Interests] = {}
        self._wanting: dict[str, set[_Interests]] = {}
        self._uris_of: Counter[str] = Counter()
        self._uris_of_all = 0
        self._levels: Counter[str] = Counter()

    def listen(self, caller: Caller) -> Listener:
        """Opens the stream of a legacy client; its earlier one ends, since each message goes to one stream only."""
        interests = self._interests(caller)
        if interests.listener is not None:
            interests.listener.close()
        interests.listener = Listener(interests.include)
        self._count_level(interests, listens=True)
        self.changed(None)
        return interests.listener

    def add(self, listener: Listener, principal: str, uris: frozenset[str]) -> None:
        """Adds a listener with a filter of its own."""
        interests = self._others[listener] = _Interests(principal, listener=listener)
        for uri in uris:
            self._want(interests, uri)

    def remove(self, caller: Caller | None, listener: Listener) -> None:
        """Removes a listener; the subscriptions of a legacy client stay, since it may reconnect."""
        listener.close()
        other = self._others.pop(listener, None)
        if other is not None:
            self._want_nothing(other)
        interests = None if caller is None else self._find(caller)
        if caller is not None and interests is not None and interests.listener is listener:
            interests.listener = None
            self._count_level(interests, listens=False)
            self.changed(None)
            self._clients[caller.principal].move_to_end(caller)

    def forget(self, caller: Caller) -> None:
        """Removes all subscriptions of a legacy client, and ends its stream."""
        interests = self._find(caller)
        if interests is None:
            return
        clients = self._clients[caller.principal]
        del clients[caller]
        self._clients_of_all -= 1
        if not clients:
            del self._clients[caller.principal]
        self._want_nothing(interests)
        self._count_level(interests, listens=False)
        self.changed(None)
        if interests.listener is not None:
            interests.listener.close()

    def free_quota(self, principal: str, uris: frozenset[str], caller: Caller | None = None) -> bool:
        """Whether a client may subscribe to these resources, too.

        At a limit, clients without a stream are removed, the least recent first: of the same principal for its own
        quota, otherwise of the principal with the most subscriptions.

        Parameters:
            principal: the principal of the client.
            uris: the resources.
            caller: the client, if it is a legacy one.
        """
        interests = None if caller is None else self._find(caller)
        own = interests.uris if interests is not None else set()
        fresh = len(uris - own)
        if len(own) + fresh > MAX_URIS or any(len(uri) > MAX_URI_CHARACTERS for uri in uris):
            return False
        while self._uris_of[principal] + fresh > MAX_URIS_OF_PRINCIPAL:
            if not self._forget_quietest(principal, interests):
                return False
        while self._uris_of_all + fresh > MAX_URIS_OF_ALL:
            if not self._forget_quietest(self._uris_of.most_common(1)[0][0], interests):
                return False
        return True

    def subscribe(self, caller: Caller, uri: str) -> None:
        """Adds a legacy client's subscription to a resource."""
        self._want(self._interests(caller), uri)

    def unsubscribe(self, caller: Caller, uri: str) -> None:
        """Removes a legacy client's subscription to a resource."""
        self._want_no_more(self._interests(caller), uri)

    def unsubscribe_from_all(self, caller: Caller) -> None:
        """Removes all of a legacy client's subscriptions to resources."""
        interests = self._find(caller)
        if interests is not None:
            self._want_nothing(interests)

    def drop(self, uri: str) -> None:
        """Removes all subscriptions to a resource that upstream rejected."""
        for interests in list(self._wanting.get(uri, ())):
            self._want_no_more(interests, uri)

    def narrow(self, listener: Listener, uris: frozenset[str]) -> None:
        """Removes all resources but these from a listener with a filter of its own."""
        interests = self._others.get(listener)
        for uri in () if interests is None else interests.uris - uris:
            self._want_no_more(self._others[listener], uri)

    def set_level(self, caller: Caller, level: str) -> None:
        """Sets the lowest log level for a legacy client."""
        interests = self._interests(caller)
        self._count_level(interests, listens=False)
        interests.level = level
        self._count_level(interests, listens=interests.listener is not None)
        self.changed(None)

    def drop_level(self, level: str) -> None:
        """Removes a log level that upstream rejected from all clients."""
        for clients in self._clients.values():
            for interests in clients.values():
                if interests.level == level:
                    interests.level = None
        del self._levels[level]

    @property
    def uris(self) -> Collection[str]:
        """The resources with a subscription."""
        return self._wanting.keys()

    @property
    def level(self) -> str | None:
        """The least severe log level among the clients that listen; ``None`` if none of them set one."""
        return next((level for level in LEVELS if self._levels[level]), None)

    def publish(self, notification: Notification) -> None:
        """Sends a notification to each listener that wants it."""
        for listener in self._listeners():
            if listener.wants(notification):
                listener.put(notification)

    def close(self) -> None:
        """Ends every stream."""
        for listener in self._listeners():
            listener.close()

    def _listeners(self) -> list[Listener]:
        interests = (it for clients in self._clients.values() for it in clients.values())
        return [*self._others, *(it.listener for it in interests if it.listener is not None)]

    def _find(self, caller: Caller) -> _Interests | None:
        clients = self._clients.get(caller.principal)
        return None if clients is None else clients.get(caller)

    def _interests(self, caller: Caller) -> _Interests:
        """The subscriptions of a legacy client, which becomes the most recent one of its principal."""
        clients = self._clients.setdefault(caller.principal, OrderedDict())
        if caller not in clients:
            clients[caller] = _Interests(caller.principal)
            self._clients_of_all += 1
            if self._clients_of_all > MAX_CLIENTS:
                most = max(self._clients, key=lambda principal: len(self._clients[principal]))
                self._forget_quietest(most, clients[caller], with_uris=False)
        clients.move_to_end(caller)
        return clients[caller]

    def _forget_quietest(self, principal: str, spared: _Interests | None, *, with_uris: bool = True) -> bool:
        """Removes the least recent client of a principal that has no stream; returns whether there was one."""
        clients = self._clients.get(principal)
        for caller, interests in () if clients is None else clients.items():
            if interests.listener is None and interests is not spared and (interests.uris or not with_uris):
                self.forget(caller)
                return True
        return False

    def _want(self, interests: _Interests, uri: str) -> None:
        if uri in interests.uris:
            return
        interests.uris.add(uri)
        self._uris_of[interests.principal] += 1
        self._uris_of_all += 1
        wanting = self._wanting.setdefault(uri, set())
        wanting.add(interests)
        if len(wanting) == 1:
            self.changed(uri)

    def _want_no_more(self, interests: _Interests, uri: str) -> None:
        if uri not in interests.uris:
            return
        interests.uris.remove(uri)
        self._uris_of[interests.principal] -= 1
        self._uris_of_all -= 1
        if not self._uris_of[interests.principal]:
            del self._uris_of[interests.principal]
        wanting = self._wanting[uri]
        wanting.remove(interests)
        if not wanting:
            del self._wanting[uri]
            self.changed(uri)

    def _want_nothing(self, interests: _Interests) -> None:
        for uri in list(interests.uris):
            self._want_no_more(interests, uri)

    def _count_level(self, interests: _Interests, *, listens: bool) -> None:
        """Counts the level of a client while it listens; the others need no log messages from upstream."""
        if interests.level is not None and interests.listens != listens:
            self._levels[interests.level] += 1 if listens else -1
        interests.listens = listens


def concerns(uri: str, uris: Collection[str]) -> bool:
    """Whether a resource is one of these or is inside one of them (MCP 2025-11-25, ResourceUpdatedNotification)."""
    if not uris or uri in uris:
        return bool(uris)
    ends = (index for index, character in enumerate(uri[: MAX_URI_CHARACTERS + 1]) if character in "/?#")
    return any(uri[:end] in uris or uri[: end + 1] in uris for end in ends)


def _merge_key(notification: Notification | Request) -> object:
    """A key that equal notifications share; a notification that cannot be merged has a key of its own."""
    if notification.method == RESOURCE_UPDATED:
        return notification.method, _string(notification, "uri")
    return notification.method if notification.method in LIST_CHANGED_NOTIFICATIONS else object()


def _string(notification: Notification | Request, key: str) -> str:
    value = notification.params.get(key)
    return value.value if value is not None and isinstance(value.value, str) else ""
