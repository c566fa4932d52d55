"""The window: who has a place with upstream, who waits for one, and whose turn is next.

Invariants: at most ``places`` places are taken at a time, and nobody waits while one is free. Places go round the
principals that wait, and within a principal round its sessions; within a session the order of arrival stays. So a
principal that sends one request now and then waits for one turn of another's, however many that one sends. What need
not wait costs no more than an entry in a set.
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

MAX_PRINCIPALS_TOLD: Final = 256
"""How many principals have metrics of their own; the waits of all others count as those of ``other``."""

_OTHER: Final = "other"


class Rounds(Generic[K]):
    """An order of keys that wait, in rounds: each key that waits has one turn in each round.

    A key that begins to wait has its turn in the current round, unless it had one in it already; then it has it in the
    next round. At most as many keys may join a round as waited when it began, or ``LEAST_JOINING`` if that is more. The
    others join the next round, so that every round ends.
    """

    def __init__(self) -> None:
        self._due: OrderedDict[K, None] = OrderedDict()
        self._later: OrderedDict[K, None] = OrderedDict()
        self._had_turn: set[K] = set()
        self._room = LEAST_JOINING

    def join(self, key: K) -> None:
        """Begins to wait."""
        if key in self._had_turn or not self._room:
            self._later[key] = None
        else:
            self._due[key] = None
            self._room -= 1

    def leave(self, key: K) -> None:
        """Ceases to wait."""
        self._due.pop(key, None)
        self._later.pop(key, None)
        if not self._due and not self._later:
            self._begin()

    def first(self) -> K:
        """Whose turn it is, out of those who wait; it ceases to wait."""
        if not self._due:
            self._due, self._later = self._later, self._due
            self._begin()
        key, _ = self._due.popitem(last=False)
        self._had_turn.add(key)
        return key

    def _begin(self) -> None:
        self._had_turn.clear()
        self._room = max(len(self._due), LEAST_JOINING)


@dataclass(slots=True)
class _Line(Generic[T]):
    """What one principal waits for.

    Attributes:
        sessions: what waits, by session, in the order of arrival.
        rounds: the sessions.
        arrivals: all that waits, the newest last.
    """

    sessions: dict[str | None, OrderedDict[T, None]] = field(default_factory=dict)
    rounds: Rounds[str | None] = field(default_factory=Rounds)
    arrivals: OrderedDict[T, None] = field(default_factory=OrderedDict)


class _Waiting(NamedTuple):
    """Who waits, and since when, in seconds of ``time.perf_counter``."""

    caller: Caller
    since: float


@dataclass(slots=True)
class Waits:
    """What came of the waits of one principal, by now.

    Attributes:
        count: how many of its things got their place after they had to wait.
        seconds: how long those waited, all together.
        made_way: how many ceased to wait to make room for another principal's.
    """

    count: int = 0
    seconds: float = 0.0
    made_way: int = 0


class Window(Generic[T]):
    """The places with upstream.

    Parameters:
        places: how many there are.
        begin: called with each thing that gets its place after it had to wait.

    Attributes:
        waits: what came of the waits of each principal; those beyond ``MAX_PRINCIPALS_TOLD`` are counted together.
    """

    def __init__(self, places: int, begin: Callable[[T], None]) -> None:
        self.waits: dict[str, Waits] = {}
        self._places = places
        self._begin = begin
        self._taken: set[T] = set()
        self._waiting: dict[T, _Waiting] = {}
        self._lines: dict[str, _Line[T]] = {}
        self._rounds: Rounds[str] = Rounds()

    @property
    def taken(self) -> int:
        """How many places are taken."""
        return len(self._taken)

    @property
    def waiting(self) -> Mapping[str, int]:
        """How many things of each principal wait."""
        return {principal: len(line.arrivals) for principal, line in self._lines.items()}

    @property
    def waiting_told(self) -> Mapping[str, int]:
        """The same for the metrics: principals beyond ``MAX_PRINCIPALS_TOLD`` are counted together."""
        told = Counter(dict.fromkeys(self.waits, 0))
        for principal, count in self.waiting.items():
            label = metrics_label(principal)
            told[label if label in self.waits else _OTHER] += count
        return told

    def enter(self, thing: T, caller: Caller) -> bool:
        """Takes a place if one is free, otherwise waits for a turn.

        Parameters:
            thing: what needs the place.
            caller: whose it is.

        Returns:
            Whether it has its place already.
        """
        if len(self._taken) < self._places:
            self._taken.add(thing)
            return True
        self._wait(thing, caller)
        return False

    def leave(self, thing: T) -> None:
        """Gives a place back to who is next, or ceases to wait for one; nothing happens to what has neither."""
        if thing in self._taken:
            self._taken.remove(thing)
            if self._lines:
                self._begin(self._next())
        elif thing in self._waiting:
            self._forget(thing)

    def make_way(self, principal: str) -> T:
        """Has the newest thing of a principal that waits cease to wait, and returns it."""
        thing = next(reversed(self._lines[principal].arrivals))
        self._forget(thing)
        self._told(principal).made_way += 1
        return thing

    def _wait(self, thing: T, caller: Caller) -> None:
        self._waiting[thing] = _Waiting(caller, time.perf_counter())
        self._told(caller.principal)
        line = self._lines.get(caller.principal)
        if line is None:
            line = self._lines[caller.principal] = _Line()
            self._rounds.join(caller.principal)
        line.arrivals[thing] = None
        if caller.session_id not in line.sessions:
            line.sessions[caller.session_id] = OrderedDict()
            line.rounds.join(caller.session_id)
        line.sessions[caller.session_id][thing] = None

    def _next(self) -> T:
        """What gets the place that is free, out of all that waits."""
        principal = self._rounds.first()
        line = self._lines[principal]
        session_id = line.rounds.first()
        thing = next(iter(line.sessions[session_id]))
        self._remove(thing, line, session_id)
        # Whose turn it was waits for the next round with what is left.
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

    def _remove(self, thing: T, line: _Line[T], session_id: str | None) -> None:
        del line.arrivals[thing]
        del line.sessions[session_id][thing]
        if not line.sessions[session_id]:
            del line.sessions[session_id]

    def _count(self, principal: str, seconds: float) -> None:
        waits = self._told(principal)
        waits.count += 1
        waits.seconds += seconds

    def _told(self, principal: str) -> Waits:
        label = metrics_label(principal)
        told = label if label in self.waits or len(self.waits) < MAX_PRINCIPALS_TOLD else _OTHER
        return self.waits.setdefault(told, Waits())
