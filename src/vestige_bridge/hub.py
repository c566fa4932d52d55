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

MERGE_SECONDS: Final = 1.0
"""How long after a list-changed or resource-updated notification equal ones are kept, to be told as one."""

MAX_CLIENTS: Final = 16_384
"""How many clients' wishes are remembered; of the principal with the most, the quietest client is forgotten first."""

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
        if notification.method in LIST_CHANGED or notification.method == RESOURCE_UPDATED:
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
class _Wishes:
    """What one client asked to hear.

    Attributes:
        principal: whose client it is.
        uris: the resources that it wants to hear of.
        level: how severe a log message has to be for it; it counts while somebody may listen.
        listener: its stream.
        left: whether its stream ended and it did not come back for another.
    """

    principal: str
    uris: set[str] = field(default_factory=set)
    level: str | None = None
    listener: Listener | None = None
    left: bool = False

    def include(self, notification: Notification) -> bool:
        if notification.method == RESOURCE_UPDATED:
            return concerns(_string(notification, "uri"), self.uris)
        if notification.method == LOG_MESSAGE:
            level = _string(notification, "level")
            return self.level is not None and level in LEVELS and LEVELS.index(level) >= LEVELS.index(self.level)
        return notification.method in LIST_CHANGED


class Hub:
    """All listeners, and what upstream has to be asked for on their behalf.

    Attributes:
        changed: told of each resource that begins or ceases to be wanted, and of the level (``None``) when it may have
            changed.
    """

    def __init__(self) -> None:
        self.changed: Callable[[str | None], None] = lambda _: None
        self._clients: dict[str, OrderedDict[Caller, _Wishes]] = {}
        self._clients_of_all = 0
        self._others: dict[Listener, _Wishes] = {}
        self._wanting: dict[str, set[_Wishes]] = {}
        self._uris_of: Counter[str] = Counter()
        self._uris_of_all = 0
        self._levels: Counter[str] = Counter()

    def listen(self, caller: Caller) -> Listener:
        """The stream of a legacy client; one that it had before ends, as each message goes to one stream only."""
        wishes = self._wishes(caller)
        if wishes.listener is not None:
            wishes.listener.close()
        wishes.listener = Listener(wishes.include)
        self._count_level(wishes, left=False)
        self.changed(None)
        return wishes.listener

    def add(self, listener: Listener, principal: str, uris: frozenset[str]) -> None:
        """Takes in a listener that says itself what it wants."""
        wishes = self._others[listener] = _Wishes(principal, listener=listener)
        for uri in uris:
            self._want(wishes, uri)

    def remove(self, caller: Caller | None, listener: Listener) -> None:
        """Lets a listener go; a legacy client's wishes stay, since it may come back for them."""
        listener.close()
        other = self._others.pop(listener, None)
        if other is not None:
            self._want_nothing(other)
        wishes = None if caller is None else self._find(caller)
        if caller is not None and wishes is not None and wishes.listener is listener:
            wishes.listener = None
            self._count_level(wishes, left=True)
            self.changed(None)
            self._clients[caller.principal].move_to_end(caller)

    def forget(self, caller: Caller) -> None:
        """Drops all that a legacy client asked for, and ends its stream."""
        wishes = self._find(caller)
        if wishes is None:
            return
        clients = self._clients[caller.principal]
        del clients[caller]
        self._clients_of_all -= 1
        if not clients:
            del self._clients[caller.principal]
        self._want_nothing(wishes)
        self._count_level(wishes, left=True)
        self.changed(None)
        if wishes.listener is not None:
            wishes.listener.close()

    def make_room(self, principal: str, uris: frozenset[str], caller: Caller | None = None) -> bool:
        """Whether a client may want to hear of these resources, too.

        Where room is needed, clients without a stream are forgotten, the one that was quiet longest first: of the same
        principal for its own quota, otherwise of the principal that wants most.

        Parameters:
            principal: whose client it is.
            uris: the resources.
            caller: the client, if it is a legacy one.
        """
        wishes = None if caller is None else self._find(caller)
        own = wishes.uris if wishes is not None else set()
        fresh = len(uris - own)
        if len(own) + fresh > MAX_URIS or any(len(uri) > MAX_URI_CHARACTERS for uri in uris):
            return False
        while self._uris_of[principal] + fresh > MAX_URIS_OF_PRINCIPAL:
            if not self._forget_quietest(principal, wishes):
                return False
        while self._uris_of_all + fresh > MAX_URIS_OF_ALL:
            if not self._forget_quietest(self._uris_of.most_common(1)[0][0], wishes):
                return False
        return True

    def subscribe(self, caller: Caller, uri: str) -> None:
        """Notes that a legacy client wants to hear of a resource."""
        self._want(self._wishes(caller), uri)

    def unsubscribe(self, caller: Caller, uri: str) -> None:
        """Notes that a legacy client does not want to hear of a resource any more."""
        self._want_no_more(self._wishes(caller), uri)

    def drop(self, uri: str) -> None:
        """Takes from everybody the wish to hear of a resource that upstream does not tell of."""
        for wishes in list(self._wanting.get(uri, ())):
            self._want_no_more(wishes, uri)

    def narrow(self, listener: Listener, uris: frozenset[str]) -> None:
        """Takes from a listener that said itself what it wants all resources but these."""
        wishes = self._others.get(listener)
        for uri in () if wishes is None else wishes.uris - uris:
            self._want_no_more(self._others[listener], uri)

    def set_level(self, caller: Caller, level: str) -> None:
        """Notes how severe a log message has to be for a legacy client."""
        wishes = self._wishes(caller)
        self._count_level(wishes, left=True)
        wishes.level = level
        self._count_level(wishes, left=False)
        self.changed(None)

    def drop_level(self, level: str) -> None:
        """Takes from everybody the wish to hear log messages of a level that upstream does not know."""
        for clients in self._clients.values():
            for wishes in clients.values():
                if wishes.level == level:
                    wishes.level = None
        del self._levels[level]

    @property
    def streams_open(self) -> int:
        """How many clients are listening."""
        return len(self._listeners())

    @property
    def uris(self) -> Collection[str]:
        """The resources that somebody wants to hear of."""
        return self._wanting.keys()

    @property
    def level(self) -> str | None:
        """The least severe level that somebody asked for who may listen."""
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
        wishes = (it for clients in self._clients.values() for it in clients.values())
        return [*self._others, *(it.listener for it in wishes if it.listener is not None)]

    def _find(self, caller: Caller) -> _Wishes | None:
        clients = self._clients.get(caller.principal)
        return None if clients is None else clients.get(caller)

    def _wishes(self, caller: Caller) -> _Wishes:
        """What a legacy client asked for; it is the one of its principal that was quiet for the shortest time now."""
        clients = self._clients.setdefault(caller.principal, OrderedDict())
        if caller not in clients:
            clients[caller] = _Wishes(caller.principal)
            self._clients_of_all += 1
            if self._clients_of_all > MAX_CLIENTS:
                most = max(self._clients, key=lambda principal: len(self._clients[principal]))
                self._forget_quietest(most, clients[caller], with_uris=False)
        clients.move_to_end(caller)
        return clients[caller]

    def _forget_quietest(self, principal: str, spared: _Wishes | None, *, with_uris: bool = True) -> bool:
        """Forgets the client of a principal that was quiet longest and has no stream; whether there was one."""
        clients = self._clients.get(principal)
        for caller, wishes in () if clients is None else clients.items():
            if wishes.listener is None and wishes is not spared and (wishes.uris or not with_uris):
                self.forget(caller)
                return True
        return False

    def _want(self, wishes: _Wishes, uri: str) -> None:
        if uri in wishes.uris:
            return
        wishes.uris.add(uri)
        self._uris_of[wishes.principal] += 1
        self._uris_of_all += 1
        wanting = self._wanting.setdefault(uri, set())
        wanting.add(wishes)
        if len(wanting) == 1:
            self.changed(uri)

    def _want_no_more(self, wishes: _Wishes, uri: str) -> None:
        if uri not in wishes.uris:
            return
        wishes.uris.remove(uri)
        self._uris_of[wishes.principal] -= 1
        self._uris_of_all -= 1
        if not self._uris_of[wishes.principal]:
            del self._uris_of[wishes.principal]
        wanting = self._wanting[uri]
        wanting.remove(wishes)
        if not wanting:
            del self._wanting[uri]
            self.changed(uri)

    def _want_nothing(self, wishes: _Wishes) -> None:
        for uri in list(wishes.uris):
            self._want_no_more(wishes, uri)

    def _count_level(self, wishes: _Wishes, *, left: bool) -> None:
        """Counts the level of a client that may listen, and does not count that of one that left."""
        if wishes.level is not None and wishes.left != left:
            self._levels[wishes.level] += -1 if left else 1
        wishes.left = left


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
    return notification.method if notification.method in LIST_CHANGED else object()


def _string(notification: Notification | Request, key: str) -> str:
    value = notification.params.get(key)
    return value.value if value is not None and isinstance(value.value, str) else ""
