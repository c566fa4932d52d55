"""The memory budget for large answers: those that arrive from upstream, and those that wait for slow clients.

Invariant: together they use about as many bytes as the budget allows. If it is full, answers whose clients read
nothing are ended, the largest first; if all clients make progress, reading from upstream pauses until there is memory.
An ended answer is never silent: its connection is reset, and that is logged and counted.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

LARGE_BYTES: Final = 65_536
"""Answers up to this size are not counted: the limits on requests in flight and connections bound them."""

log = logging.getLogger(__name__)


class Source(Protocol):
    """A connection to upstream on which an answer arrives."""

    def pause_reading(self) -> None:
        """Pauses reading from upstream."""

    def resume_reading(self) -> None:
        """Resumes reading from upstream."""


class Sink(Protocol):
    """A client connection with a waiting answer."""

    def stalled(self, now: float) -> bool:
        """Whether the client has read nothing for a while."""

    def give_up(self, reason: str) -> None:
        """Ends the answer and resets the connection."""


class AnswerBudget:
    """Counts the bytes of large answers and keeps them within a budget.

    Parameters:
        limit_bytes: the budget.

    Attributes:
        limit_bytes: the budget.
        total_bytes: the bytes in use now.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.total_bytes = 0
        self._arriving: dict[Source, int] = {}
        self._waiting: dict[Sink, int] = {}
        self._paused: set[Source] = set()

    def arriving(self, source: Source, size: int) -> None:
        """Counts an answer that arrives.

        Parameters:
            source: its connection.
            size: its bytes so far; 0 at its end.
        """
        self.total_bytes += size - self._arriving.get(source, 0)
        if size:
            self._arriving[source] = size
            if self.total_bytes > self.limit_bytes:
                self._throttle()
        else:
            self._arriving.pop(source, None)
            self._paused.discard(source)
            self._let_arrive()

    def handed_over(self, size: int) -> None:
        """Counts a complete answer until the client connection counts it.

        That is the next event loop iteration. Otherwise reading of others would resume meanwhile: on a busy event loop
        many answers complete within one iteration.

        Parameters:
            size: its bytes; more than ``LARGE_BYTES``.
        """
        self.total_bytes += size
        asyncio.get_running_loop().call_soon(self._counted_elsewhere, size)

    def waiting(self, sink: Sink, size: int) -> None:
        """Counts an answer that waits for its client.

        Parameters:
            sink: its client's connection.
            size: its bytes; 0 when it is sent or ended.
        """
        self.total_bytes += size - self._waiting.pop(sink, 0)
        if size:
            self._waiting[sink] = size
        else:
            self._let_arrive()

    def balance(self, now: float) -> None:
        """Frees memory if the budget is full; to be called periodically.

        Parameters:
            now: the time, in seconds of the event loop's clock.
        """
        while self.total_bytes > self.limit_bytes:
            stalled = [sink for sink in self._waiting if sink.stalled(now)]
            if not stalled:
                break
            largest = max(stalled, key=self._waiting.__getitem__)
            log.info("An answer of %d bytes was ended: its client does not read it", self._waiting[largest])
            self.waiting(largest, 0)
            largest.give_up("unsent_bytes")
        self._let_arrive()

    def _counted_elsewhere(self, size: int) -> None:
        self.total_bytes -= size
        self._let_arrive()

    def _throttle(self) -> None:
        """Pauses reading of large answers; if nothing else can free memory, the largest one continues."""
        furthest = None if self._waiting else max(self._arriving, key=self._arriving.__getitem__)
        for source in self._arriving:
            if source is not furthest and source not in self._paused:
                self._paused.add(source)
                source.pause_reading()
        if furthest in self._paused:
            self._resume(furthest)

    def _let_arrive(self) -> None:
        """Resumes reading if the budget allows it, or if nothing else can free memory."""
        if not self._paused:
            return
        if self.total_bytes > self.limit_bytes:
            return self._throttle()
        for source in list(self._paused):
            self._resume(source)

    def _resume(self, source: Source) -> None:
        self._paused.discard(source)
        source.resume_reading()
