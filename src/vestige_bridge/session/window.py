"""The window: its slots, and the fair order in which waiting messages get one.

Invariants: at most ``slots`` slots are taken at a time, and no message waits while one is free. Slots go round-robin to
the waiting principals, and within a principal round-robin to its sessions; within a session in the order of arrival. So
a principal that sends a single request waits for at most one turn of each other principal, however many requests that
principal sends. A message that need not wait costs one entry in a set.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from vestige_bridge.access.record import metrics_label
from vestige_bridge.mcp.multiplexer import Caller

K = TypeVar("K", bound=Hashable)
T = TypeVar("T", bound=Hashable)

LEAST_JOINING: Final = 64
"""How many keys may join a round, if it began with fewer."""

MAX_PRINCIPAL_LABELS: Final = 256
"""How many principals have their own metrics; the waits of all others are counted as ``other``."""

_OTHER: Final = "other"


class Rounds(Generic[K]):
    """A round-robin order of waiting keys: each has one turn in each round.

    A key that begins to wait has its turn in the current round, or in the next one if it already had one. At most as
    many keys may join a round as waited when it began, or ``LEAST_JOINING`` if that is more. The others join the next
    round, so that every round ends.
    """

    def __init__(self) -> None:
        self._due: OrderedDict[K, None] = OrderedDict()
        self._later: OrderedDict[K, None] = OrderedDict()
        self._had_turn: set[K] = set()
        self._joins_left = LEAST_JOINING

    def join(self, key: K) -> None:
        """Adds a key."""
        if key in self._had_turn or not self._joins_left:
            self._later[key] = None
        else:
            self._due[key] = None
            self._joins_left -= 1

    def leave(self, key: K) -> None:
        """Removes a key."""
        self._due.pop(key, None)
        self._later.pop(key, None)
        if not self._due and not self._later:
            self._begin()

    def first(self) -> K:
        """Removes and returns the key whose turn is next."""
        if not self._due:
            self._due, self._later = self._later, self._due
            self._begin()
        key, _ = self._due.popitem(last=False)
        self._had_turn.add(key)
        return key

    def _begin(self) -> None:
        self._had_turn.clear()
        self._joins_left = max(len(self._due), LEAST_JOINING)


@dataclass(slots=True)
class _Queue(Generic[T]):
    """The waiting messages of one principal.

    Attributes:
        sessions: the messages by session, in the order of arrival.
        rounds: the sessions.
        arrivals: all messages, the newest last.
    """

    sessions: dict[str | None, OrderedDict[T, None]] = field(default_factory=dict)
    rounds: Rounds[str | None] = field(default_factory=Rounds)
    arrivals: OrderedDict[T, None] = field(default_factory=OrderedDict)


class _Waiting(NamedTuple):
    """The client of a waiting message, and when it began to wait, in seconds of ``time.perf_counter``."""

    caller: Caller
    since: float


@dataclass(slots=True)
class Waits:
    """Statistics of the waits of one principal.

    Attributes:
        count: how many messages got a slot after a wait.
        seconds: how long those waited in total.
        made_way: how many were rejected for a message of another principal.
    """

    count: int = 0
    seconds: float = 0.0
    made_way: int = 0


class Window(Generic[T]):
    """The slots of the window.

    Parameters:
        slots: the number of slots.
        begin: called with each message that gets a slot after a wait.

    Attributes:
        waits: the statistics by principal; those beyond ``MAX_PRINCIPAL_LABELS`` are counted together.
    """

    def __init__(self, slots: int, begin: Callable[[T], None]) -> None:
        self.waits: dict[str, Waits] = {}
        self._slots = slots
        self._begin = begin
        self._taken: set[T] = set()
        self._waiting: dict[T, _Waiting] = {}
        self._lines: dict[str, _Queue[T]] = {}
        self._rounds: Rounds[str] = Rounds()

    @property
    def taken(self) -> int:
        """The number of taken slots."""
        return len(self._taken)

    @property
    def waiting(self) -> Mapping[str, int]:
        """The number of waiting messages by principal."""
        return {principal: len(line.arrivals) for principal, line in self._lines.items()}

    @property
    def waiting_by_label(self) -> Mapping[str, int]:
        """The same for the metrics: principals beyond ``MAX_PRINCIPAL_LABELS`` are counted together."""
        counts = Counter(dict.fromkeys(self.waits, 0))
        for principal, count in self.waiting.items():
            label = metrics_label(principal)
            counts[label if label in self.waits else _OTHER] += count
        return counts

    def enter(self, thing: T, caller: Caller) -> bool:
        """Takes a slot if one is free, otherwise waits for one.

        Parameters:
            thing: the message that needs the slot.
            caller: its client.

        Returns:
            Whether it has a slot now.
        """
        if len(self._taken) < self._slots:
            self._taken.add(thing)
            return True
        self._wait(thing, caller)
        return False

    def leave(self, thing: T) -> None:
        """Releases a slot, or stops waiting for one; does nothing for a message that does neither."""
        if thing in self._taken:
            self._taken.remove(thing)
            if self._lines:
                self._begin(self._next())
        elif thing in self._waiting:
            self._forget(thing)

    def reject_newest(self, principal: str) -> T:
        """Removes and returns the newest waiting message of a principal."""
        thing = next(reversed(self._lines[principal].arrivals))
        self._forget(thing)
        self._waits_of(principal).made_way += 1
        return thing

    def _wait(self, thing: T, caller: Caller) -> None:
        self._waiting[thing] = _Waiting(caller, time.perf_counter())
        self._waits_of(caller.principal)
        line = self._lines.get(caller.principal)
        if line is None:
            line = self._lines[caller.principal] = _Queue()
            self._rounds.join(caller.principal)
        line.arrivals[thing] = None
        if caller.session_id not in line.sessions:
            line.sessions[caller.session_id] = OrderedDict()
            line.rounds.join(caller.session_id)
        line.sessions[caller.session_id][thing] = None

    def _next(self) -> T:
        """The waiting message that gets the free slot."""
        principal = self._rounds.first()
        line = self._lines[principal]
        session_id = line.rounds.first()
        thing = next(iter(line.sessions[session_id]))
        self._remove(thing, line, session_id)
        # The principal and the session wait for the next round with their remaining messages.
        if session_id in line.sessions:
            line.rounds.join(session_id)
        if line.arrivals:
            self._rounds.join(principal)
        else:
            del self._lines[principal]
            self._rounds.leave(principal)
        self._count(principal, time.perf_counter() - self._waiting.pop(thing).since)
        self._taken.add(thing)
        return thing

    def _forget(self, thing: T) -> None:
        caller = self._waiting.pop(thing).caller
        line = self._lines[caller.principal]
        self._remove(thing, line, caller.session_id)
        if caller.session_id not in line.sessions:
            line.rounds.leave(caller.session_id)
        if not line.arrivals:
            del self._lines[caller.principal]
            self._rounds.leave(caller.principal)

    def _remove(self, thing: T, line: _Queue[T], session_id: str | None) -> None:
        del line.arrivals[thing]
        del line.sessions[session_id][thing]
        if not line.sessions[session_id]:
            del line.sessions[session_id]

    def _count(self, principal: str, seconds: float) -> None:
        waits = self._waits_of(principal)
        waits.count += 1
        waits.seconds += seconds

    def _waits_of(self, principal: str) -> Waits:
        label = metrics_label(principal)
        name = label if label in self.waits or len(self.waits) < MAX_PRINCIPAL_LABELS else _OTHER
        return self.waits.setdefault(name, Waits())
