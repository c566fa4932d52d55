"""Background work: tasks that have an owner, deadlines that share one timer, and files that are watched.

Invariants: a task is referenced until it ends and is awaited when its owner ends. All deadlines of one object have the
same length, so they expire in the order of their start and only the first is timed: start and stop are one dictionary
operation each. With an event loop timer for each, a request costs 1.1 times the CPU time (`make bench-tricks`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from vestige_bridge.errors import BridgeError

T = TypeVar("T")
log = logging.getLogger(__name__)

FILE_POLL_SECONDS: Final = 1.0
"""How often a watched file is checked for a change."""


class Tasks:
    """The tasks of one owner."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Runs the work in a new task; an error that is never awaited is logged unless it is a ``BridgeError``."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self) -> None:
        """Waits until all tasks end."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def close(self) -> None:
        """Cancels all tasks and waits until they end."""
        running = list(self._running)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, BridgeError):
            log.error("A background task failed", exc_info=error)


class Deadlines(Generic[T]):
    """Deadlines of one length.

    Parameters:
        seconds: the length.
        expire: called with each object that was not stopped in time.

    Attributes:
        seconds: the length.
    """

    def __init__(self, seconds: float, expire: Callable[[T], None]) -> None:
        self.seconds = seconds
        self._expire = expire
        self._due: dict[T, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, thing: T) -> None:
        """Starts the deadline of an object, or restarts it."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._due.pop(thing, None)
        self._due[thing] = due = loop.time() + self.seconds
        if self._timer is None:
            self._timer = loop.call_at(due, self._tick, loop)

    def stop(self, thing: T) -> None:
        """Stops the deadline of an object; does nothing if it has none."""
        self._due.pop(thing, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        expired = []
        for thing, due in self._due.items():
            if due > now:
                self._timer = loop.call_at(due, self._tick, loop)
                break
            expired.append(thing)
        for thing in expired:
            if self._due.pop(thing, None) is not None:
                self._expire(thing)


class FileWatch:
    """Detects changes of a file, including its replacement by another file, as with a mounted Secret.

    Parameters:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] | None = None

    def changed(self) -> bool:
        """Returns whether the file changed since the last call; the first call returns whether it exists."""
        before, self._seen = self._seen, _fingerprint(self.path)
        return self._seen != before

    @asynccontextmanager
    async def watching(self, check: Callable[[], None]) -> AsyncIterator[None]:
        """Calls a function at regular intervals, in the background, within the context.

        Parameters:
            check: reads the file if ``changed()`` says so; it must not raise.
        """
        tasks = Tasks()
        tasks.start(self._poll(check))
        try:
            yield
        finally:
            await tasks.close()

    async def _poll(self, check: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(FILE_POLL_SECONDS)
            check()


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    """A value that differs after every change or replacement of the file; ``None`` without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
