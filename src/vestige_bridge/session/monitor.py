"""The state of the connection to Vestige: a pure fold over outcomes, and the task that watches it.

Invariant: one outcome is enough to change the state, whoever saw it, and no outcome ever ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import BridgeError, SessionLost, no_failures, reason_of

log = logging.getLogger(__name__)

DOWN_AFTER: Final = 3
"""How many failures in a row make a connection count as down."""

TELL_AGAIN_SECONDS: Final = 60.0
"""How often the log repeats that the connection is lost, while its cause stays the same."""

TELL_CHANGE_SECONDS: Final = 1.0
"""How long a cause is told at least before another: under load two may take turns many times a second."""

FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 5.0


class State(StrEnum):
    """How the connection to Vestige stands."""

    CONNECTING = "connecting"
    READY = "ready"
    DEGRADED = "degraded"
    DOWN = "down"


class Health(NamedTuple):
    """What the outcomes so far come to.

    Attributes:
        state: ``connecting`` until the first answer, ``ready`` after an answer, ``degraded`` after a failure,
            ``down`` after several in a row.
        failures: how many outcomes in a row were failures.
        reason: the last failure as a word; ``None`` when the last outcome was an answer.
        answered_at: when the last answer came, in seconds of a monotonic clock.
    """

    state: State = State.CONNECTING
    failures: int = 0
    reason: str | None = None
    answered_at: float | None = None

    def after_answer(self, now: float) -> Health:
        """The health after an answer came."""
        return Health(State.READY, 0, None, now)

    def after_failure(self, reason: str) -> Health:
        """The health after the connection failed."""
        failures = self.failures + 1
        state = State.CONNECTING if self.answered_at is None else State.DEGRADED
        return self._replace(state=State.DOWN if failures >= DOWN_AFTER else state, failures=failures, reason=reason)


class MonitoredSession(Protocol):
    """What is watched: the held session."""

    @property
    def held(self) -> object | None:
        """The session, while there is one."""

    async def connected(self) -> object:
        """Opens the session if there is none."""

    async def check(self) -> None:
        """Asks for a sign of life."""


class Monitor:
    """Folds outcomes into health, and makes one of its own when nobody else does.

    Parameters:
        interval_seconds: the time between two checks while all is well.
        clock: a monotonic clock, in seconds.

    Attributes:
        health: what the outcomes so far come to.
        failures: how often the connection failed, by reason.
        reconnects: how often it came back.
    """

    def __init__(self, interval_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.health = Health()
        self.failures = no_failures()
        self.reconnects = 0
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._wake = asyncio.Event()
        self._lost_at = 0.0
        self._told_at = 0.0
        self._told_reason = ""

    @asynccontextmanager
    async def watching(self, connection: MonitoredSession) -> AsyncIterator[None]:
        """Watches the connection in the background while the context lasts."""
        tasks = Tasks()
        tasks.start(self._run(connection))
        try:
            yield
        finally:
            await tasks.close()

    @property
    def ready(self) -> bool:
        """Whether the last thing that was heard of Vestige was an answer."""
        return self.health.state is State.READY

    @property
    def answer_age_seconds(self) -> float | None:
        """How long ago the last answer came."""
        answered_at = self.health.answered_at
        return None if answered_at is None else round(self._clock() - answered_at, 3)

    def record(self, error: BridgeError | None) -> None:
        """Takes an outcome in: an answer (``None``), or how the connection failed."""
        before = self.health
        if error is None:
            self.health = before.after_answer(self._clock())
            if before.state is not State.READY:
                self.reconnects += before.answered_at is not None
                log.info("Vestige connected")
            return
        self.failures[reason_of(error)] += 1
        self.health = before.after_failure(reason_of(error))
        if before.failures == 0:
            self._lost_at = self._clock()
            self._told_reason = ""
            self._wake.set()
        self._tell(error)

    def _tell(self, error: BridgeError) -> None:
        """Logs why the connection is lost: at once, when the cause changes, and from time to time while it lasts."""
        now, reason = self._clock(), reason_of(error)
        since_told = now - self._told_at
        changed = reason != self._told_reason and (since_told >= TELL_CHANGE_SECONDS or not self._told_reason)
        if not changed and since_told < TELL_AGAIN_SECONDS:
            return
        self._told_at, self._told_reason = now, reason
        what = "Vestige cannot be reached yet" if self.health.answered_at is None else "Vestige connection lost"
        since = f", for {now - self._lost_at:.0f} s now" if now - self._lost_at >= 1 else ""
        log.warning("%s%s: %s", what, since, error)

    async def step(self, connection: MonitoredSession) -> None:
        """One check; an attempt to connect when there is no session, or the check finds it lost."""
        # The session reports each outcome where it is found, since others may be waiting for the same one.
        with suppress(BridgeError):
            if connection.held is not None:
                with suppress(SessionLost):
                    return await connection.check()
            await connection.connected()

    def delay_seconds(self) -> float:
        """How long to wait before the next step: the interval, or an exponential backoff with jitter."""
        failures = self.health.failures
        if failures == 0:
            return self._interval_seconds
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2.0 ** min(failures, 16))
        return random.uniform(FIRST_BACKOFF_SECONDS, longest)  # noqa: S311

    async def _run(self, connection: MonitoredSession) -> None:
        while True:
            self._wake.clear()
            try:
                await self.step(connection)
            except Exception:
                # Whatever a bug does to one check, the next one is made.
                log.exception("A check failed in a way that nobody foresaw")
            try:
                async with asyncio.timeout(self.delay_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                continue
