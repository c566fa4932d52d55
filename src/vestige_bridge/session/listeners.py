"""Who hears which notification: the streams of many clients on the one session.

Invariants: a client hears what concerns the session of all, and of the rest only what it asked for. What is kept for a
client is bounded for each principal, so that none takes the room of another. What waits for a slow reader is bounded;
equal notifications are merged.
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
"""How many bytes wait for a slow reader before the oldest notification is dropped."""

MERGE_SECONDS: Final = 1.0
"""How long after a list-changed or resource-updated notification equal ones are kept, to be told as one."""

MAX_CLIENTS: Final = 16_384
"""How many clients' interests are kept; of the principal with the most, the quietest client is forgotten first."""

MAX_URIS: Final = 1_024
"""How many resources one client may want to hear of."""

MAX_URIS_OF_PRINCIPAL: Final = 8_192
"""How many all clients of one principal may, each counted for each client."""

MAX_URIS_OF_ALL: Final = 65_536
"""How many all clients may."""

MAX_URI_CHARACTERS: Final = 2_048

TOO_MANY_RESOURCES: Final = "So many resources, or one with so long an address, cannot be watched."


class Listener:
    """One client's stream of notifications.

    Parameters:
        wants: whether the client is to hear a notification.
        opened: whether what comes is told at once, and not only after ``open`` was called.

    Attributes:
        wants: whether the client is to hear a notification.
        closed: whether the stream ends once what waits has been read.
    """

    def __init__(self, wants: Callable[[Notification], bool], *, opened: bool = True) -> None:
        self.wants = wants
        self.closed = False
        self._opened = opened
        self._waiting: OrderedDict[object, bytes] = OrderedDict()
        self._later: OrderedDict[object, bytes] = OrderedDict()
        self._waiting_bytes = 0
        self._told: set[object] = set()
        self._merging: asyncio.TimerHandle | None = None
        self._news: asyncio.Future[None] | None = None

    def open(self, first: bytes) -> None:
        """Tells a message, and then what came until now."""
        key = object()
        self._keep(self._waiting, key, first)
        self._waiting.move_to_end(key, last=False)
        self._opened = True
        self.wake()

    def put(self, notification: Notification | Request) -> None:
        """Keeps a notification, or a request of upstream's, for the reader; never waits."""
        if self.closed:
            return
        key = _merge_key(notification)
        told_lately = key in self._told and key not in self._waiting
        self._keep(self._later if told_lately else self._waiting, key, notification.encoded())
        if notification.method in MERGED_NOTIFICATIONS:
            self._told.add(key)
            self._merge_from_now_on()
        self.wake()

    def close(self) -> None:
        """Ends the stream once what waits has been read."""
        self.closed = True
        if self._merging is not None:
            self._merging.cancel()
        self._release()
        self.wake()

    def wake(self) -> None:
        """Has ``next`` return, with nothing if there is nothing."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    async def next(self) -> bytes | None:
        """The next notification; ``None`` when the stream is closed or ``wake`` was called. One waits at a time."""
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

    def _keep(self, place: OrderedDict[object, bytes], key: object, data: bytes) -> None:
        self._waiting_bytes += len(data) - len(place.pop(key, b""))
        place[key] = data
        while self._waiting_bytes > WAITING_LIMIT_BYTES and len(self._waiting) + len(self._later) > 1:
            _, dropped = (self._waiting or self._later).popitem(last=False)
            self._waiting_bytes -= len(dropped)

    def _merge_from_now_on(self) -> None:
        if self._merging is None:
            self._merging = asyncio.get_running_loop().call_later(MERGE_SECONDS, self._tell_merged)

    def _tell_merged(self) -> None:
        self._merging = None
        self._told = set(self._later)
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
    """What one client asked to hear.

    Attributes:
        principal: whose client it is.
        uris: the resources that it wants to hear of.
        level: how severe a log message has to be for it; it counts while the client listens.
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
    """All listeners, and what upstream has to be asked for on their behalf.

    Attributes:
        changed: told of each resource that begins or ceases to be wanted, and of the level (``None``) when it may have
            changed.
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
        """The stream of a legacy client; one that it had before ends, as each message goes to one stream only."""
        interests = self._interests(caller)
        if interests.listener is not None:
            interests.listener.close()
        interests.listener = Listener(interests.include)
        self._count_level(interests, listens=True)
        self.changed(None)
        return interests.listener

    def add(self, listener: Listener, principal: str, uris: frozenset[str]) -> None:
        """Takes in a listener that says itself what it wants."""
        interests = self._others[listener] = _Interests(principal, listener=listener)
        for uri in uris:
            self._want(interests, uri)

    def remove(self, caller: Caller | None, listener: Listener) -> None:
        """Lets a listener go; a legacy client's interests stay, since it may come back for them."""
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
        """Drops all that a legacy client asked for, and ends its stream."""
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

    def make_room(self, principal: str, uris: frozenset[str], caller: Caller | None = None) -> bool:
        """Whether a client may want to hear of these resources, too.

        Where room is needed, clients without a stream are forgotten, the one that was quiet longest first: of the same
        principal for its own quota, otherwise of the principal that wants most.

        Parameters:
            principal: whose client it is.
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
        """Notes that a legacy client wants to hear of a resource."""
        self._want(self._interests(caller), uri)

    def unsubscribe(self, caller: Caller, uri: str) -> None:
        """Notes that a legacy client does not want to hear of a resource any more."""
        self._want_no_more(self._interests(caller), uri)

    def unsubscribe_from_all(self, caller: Caller) -> None:
        """Notes that a legacy client is to hear of no resource any more."""
        interests = self._find(caller)
        if interests is not None:
            self._want_nothing(interests)

    def drop(self, uri: str) -> None:
        """Takes from everybody the interest to hear of a resource that upstream does not tell of."""
        for interests in list(self._wanting.get(uri, ())):
            self._want_no_more(interests, uri)

    def narrow(self, listener: Listener, uris: frozenset[str]) -> None:
        """Takes from a listener that said itself what it wants all resources but these."""
        interests = self._others.get(listener)
        for uri in () if interests is None else interests.uris - uris:
            self._want_no_more(self._others[listener], uri)

    def set_level(self, caller: Caller, level: str) -> None:
        """Notes how severe a log message has to be for a legacy client."""
        interests = self._interests(caller)
        self._count_level(interests, listens=False)
        interests.level = level
        self._count_level(interests, listens=interests.listener is not None)
        self.changed(None)

    def drop_level(self, level: str) -> None:
        """Takes from everybody the interest to hear log messages of a level that upstream does not know."""
        for clients in self._clients.values():
            for interests in clients.values():
                if interests.level == level:
                    interests.level = None
        del self._levels[level]

    @property
    def uris(self) -> Collection[str]:
        """The resources that somebody wants to hear of."""
        return self._wanting.keys()

    @property
    def level(self) -> str | None:
        """The least severe log level among the clients that listen; ``None`` if none of them set one."""
        return next((level for level in LEVELS if self._levels[level]), None)

    def publish(self, notification: Notification) -> None:
        """Gives a notification to each listener that is to hear it."""
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
        """What a legacy client asked for; it is the one of its principal that was quiet for the shortest time now."""
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
        """Forgets the client of a principal that was quiet longest and has no stream; whether there was one."""
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
        """Counts the level of a client while it listens: for the others upstream need not tell anything."""
        if interests.level is not None and interests.listens != listens:
            self._levels[interests.level] += 1 if listens else -1
        interests.listens = listens


def concerns(uri: str, uris: Collection[str]) -> bool:
    """Whether a resource is one of these or lies in one of them (MCP 2025-11-25, ResourceUpdatedNotification)."""
    if not uris or uri in uris:
        return bool(uris)
    ends = (index for index, character in enumerate(uri[: MAX_URI_CHARACTERS + 1]) if character in "/?#")
    return any(uri[:end] in uris or uri[: end + 1] in uris for end in ends)


def _merge_key(notification: Notification | Request) -> object:
    """What equal notifications share; one that is equal to no other has a key of its own."""
    if notification.method == RESOURCE_UPDATED:
        return notification.method, _string(notification, "uri")
    return notification.method if notification.method in LIST_CHANGED_NOTIFICATIONS else object()


def _string(notification: Notification | Request, key: str) -> str:
    value = notification.params.get(key)
    return value.value if value is not None and isinstance(value.value, str) else ""
