"""The state of the connection to Vestige: a pure function of outcomes, and the task that checks it.

Invariant: one outcome is enough to change the state, whichever request caused it, and no outcome ends the process.
"""

from __future__ import annotations

import asyncio
import logging
import math
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
"""How many consecutive failures make a connection ``down``."""

LOG_AGAIN_SECONDS: Final = 60.0
"""How often the log repeats that the connection is lost, while the cause stays the same."""

LOG_CHANGE_SECONDS: Final = 1.0
"""The shortest time between logs of different causes: under load two may alternate many times a second."""

FIRST_BACKOFF_SECONDS: Final = 0.25
LONGEST_BACKOFF_SECONDS: Final = 5.0


class State(StrEnum):
    """The state of the connection to Vestige."""

    CONNECTING = "connecting"
    READY = "ready"
    DEGRADED = "degraded"
    DOWN = "down"


class Health(NamedTuple):
    """The health that results from the outcomes so far.

    Attributes:
        state: ``connecting`` until the first answer, ``ready`` after an answer, ``degraded`` after a failure,
            ``down`` after several in a row.
        failures: the number of consecutive failures.
        reason: the reason of the last failure; ``None`` if the last outcome was an answer.
        answered_at: when the last answer came, in seconds of a monotonic clock.
    """

    state: State = State.CONNECTING
    failures: int = 0
    reason: str | None = None
    answered_at: float | None = None

    def after_answer(self, now: float) -> Health:
        """The health after an answer."""
        return Health(State.READY, 0, None, now)

    def after_failure(self, reason: str) -> Health:
        """The health after a failure of the connection."""
        failures = self.failures + 1
        state = State.CONNECTING if self.answered_at is None else State.DEGRADED
        return self._replace(state=State.DOWN if failures >= DOWN_AFTER else state, failures=failures, reason=reason)


class MonitoredSession(Protocol):
    """The monitored object: the shared session."""

    @property
    def held(self) -> object | None:
        """The session, while there is one."""

    async def connected(self) -> object:
        """Opens the session if there is none."""

    async def check(self) -> None:
        """Sends a check."""


class Monitor:
    """Computes health from outcomes, and runs checks if there are no requests.

    Parameters:
        interval_seconds: the time between two checks while the connection is ready.
        clock: a monotonic clock, in seconds.

    Attributes:
        health: the health that results from the outcomes so far.
        failures: how often the connection failed, by reason.
        reconnects: how often it recovered.
    """

    def __init__(self, interval_seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.health = Health()
        self.failures = no_failures()
        self.reconnects = 0
        self._interval_seconds = interval_seconds
        self._clock = clock
        self._wake = asyncio.Event()
        self._lost_at: float | None = None
        self._logged_at = -math.inf
        self._logged_cause = ""

    @asynccontextmanager
    async def watching(self, connection: MonitoredSession) -> AsyncIterator[None]:
        """Monitors the connection in the background within the context."""
        tasks = Tasks()
        tasks.start(self._run(connection))
        try:
            yield
        finally:
            await tasks.close()

    @property
    def ready(self) -> bool:
        """Whether the last outcome was an answer."""
        return self.health.state is State.READY

    @property
    def answer_age_seconds(self) -> float | None:
        """How long ago the last answer came."""
        answered_at = self.health.answered_at
        return None if answered_at is None else round(self._clock() - answered_at, 3)

    def record(self, error: BridgeError | None) -> None:
        """Records an outcome: an answer (``None``), or the failure of the connection."""
        before = self.health
        if error is None:
            self.health = before.after_answer(self._clock())
            if before.state is not State.READY:
                self._lost_at, self._logged_at = None, -math.inf
                self.reconnects += before.answered_at is not None
                log.info("Vestige connected")
            return
        self.failures[reason_of(error)] += 1
        self.health = before.after_failure(reason_of(error))
        if before.failures == 0:
            self._wake.set()
        self._log_loss(error)

    def _log_loss(self, error: BridgeError) -> None:
        """Logs why the connection is lost: at once, when the cause changes, and at intervals after that."""
        now, cause = self._clock(), str(error)
        if self._lost_at is None:
            self._lost_at = now
        if now - self._logged_at < (LOG_AGAIN_SECONDS if cause == self._logged_cause else LOG_CHANGE_SECONDS):
            return
        self._logged_at, self._logged_cause = now, cause
        what = "Vestige cannot be reached yet" if self.health.answered_at is None else "Vestige connection lost"
        since = f", for {now - self._lost_at:.0f} s now" if now - self._lost_at >= 1 else ""
        log.warning("%s%s: %s", what, since, error)

    async def step(self, connection: MonitoredSession) -> None:
        """Makes one check; connects if there is no session, or the check finds that it is lost."""
        # The session reports each outcome where it occurs, since other tasks may wait for the same one.
        before = self.health
        try:
            if connection.held is not None:
                with suppress(SessionLost):
                    return await connection.check()
            await connection.connected()
        except BridgeError as error:
            # A handshake that hangs has no outcome before the request timeout.
            if self.health is before and self._clock() - self._logged_at >= LOG_AGAIN_SECONDS:
                self._log_loss(error)

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
                # A bug in one check must not prevent the next one.
                log.exception("A check failed unexpectedly")
            try:
                async with asyncio.timeout(self.delay_seconds()):
                    await self._wake.wait()
            except TimeoutError:
                continue
