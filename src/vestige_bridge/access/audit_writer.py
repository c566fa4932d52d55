"""The writer of the audit log: a queue of lines, and the thread that writes them.

Invariants: ``put`` never waits for the destination; a line is written whole and once, in the order of the ``put``
calls; the queue is bounded in lines and in bytes, and lines that do not fit are counted. A line counts as written when
the operating system has accepted it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

from vestige_bridge.concurrency import Deadlines

log = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = "-"
"""The destination that is not a file."""

MAX_QUEUED_LINES: Final = 16_384
MAX_QUEUED_BYTES: Final = 16_777_216
"""Maximum number of queued lines, and of their bytes."""

LINES_AT_ONCE: Final = 64
"""Maximum number of lines in one write to a file."""

SLOW_SECONDS: Final = 5.0
"""How long a line may wait before the destination counts as failing."""

RETRY_SECONDS: Final = 1.0
"""How long to wait before a failed write is repeated."""

CLOSE_SECONDS: Final = 5.0
"""The time limit for writing the queued lines when the bridge stops."""


@dataclass(slots=True, eq=False)
class _Line:
    """A queued line, and the future that gets the result of writing it."""

    data: bytes
    receipt: asyncio.Future[bool] | None
    overdue: bool = False


class AuditWriter:
    """Writes lines in a thread, so that a slow disk or a full pipe does not block the event loop.

    Parameters:
        destination: the path of a file, which is appended to, or ``-`` for standard output.

    Attributes:
        written: the number of lines that were written.
        lost: the number of lines that were dropped.

    Errors:
        OSError: the destination cannot be opened.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(self, destination: str) -> None:
        self.written = 0
        self.lost = 0
        self._path = None if destination == STANDARD_OUTPUT else destination
        self._destination = _Destination(self._path)
        self._lines: deque[_Line] = deque()
        self._queued_bytes = 0
        self._written_bytes = 0
        self._changed = threading.Condition()
        self._closing_by: float | None = None
        self._reopening = False
        self._failed = False
        self._full = False
        self._overdue = 0
        self._waiting: Deadlines[_Line] = Deadlines(SLOW_SECONDS, self._waited_too_long)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)

    @property
    def queued(self) -> int:
        """The number of queued lines."""
        return len(self._lines)

    @property
    def failing(self) -> bool:
        """Whether the last write failed, a line has waited for too long, or the queue is full."""
        return self._failed or self._full or bool(self._overdue)

    def start(self) -> None:
        """Starts the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """Writes the queued lines, for a bounded time, and ends the thread."""
        with self._changed:
            self._closing_by = time.monotonic() + CLOSE_SECONDS
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        with self._changed:
            left = list(self._lines)
            self._lines.clear()
        self._resolve(left, written=False)
        if left:
            self.lost += len(left)
            log.error("%d lines of the audit log were not written", len(left))

    def reopen(self) -> None:
        """Opens the file again, after another program moved it away. A signal handler may call it."""
        with suppress(AttributeError, RuntimeError):  # not started, or the loop has ended
            self._loop.call_soon_threadsafe(self._ask_to_reopen)

    def put(self, data: bytes, *, receipt: bool = False) -> asyncio.Future[bool] | None:
        """Queues a line; a line that does not fit into the queue is dropped and counted.

        Parameters:
            data: the line, with the line feed at its end.
            receipt: whether the caller needs the result.

        Returns:
            Whether it was written, once that is known; ``None`` without a receipt.
        """
        line = _Line(data, self._loop.create_future() if receipt else None)
        if not self._has_room(MAX_QUEUED_LINES, MAX_QUEUED_BYTES - len(data)):
            self.lost += 1
            if not self._full:
                self._full = True
                log.error("Lines of the audit log are lost: the queue is full")
            self._resolve([line], written=False)
            return line.receipt
        self._waiting.start(line)
        with self._changed:
            self._lines.append(line)
            self._queued_bytes += len(data)
            self._changed.notify()
        return line.receipt

    def _has_room(self, lines: int, queued_bytes: int) -> bool:
        return len(self._lines) < lines and self._queued_bytes <= queued_bytes

    def _ask_to_reopen(self) -> None:
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def _resolve(self, lines: Sequence[_Line], *, written: bool) -> None:
        """Reports to waiting callers whether lines were written."""
        for line in lines:
            self._waiting.stop(line)
            if line.receipt is not None and not line.receipt.done():
                line.receipt.set_result(written)

    def _waited_too_long(self, line: _Line) -> None:
        """Counts a line that the destination did not accept in time; the line stays in the queue."""
        if not self.failing:
            log.error("The audit log is written too slowly")
        line.overdue = True
        self._overdue += 1
        self._resolve([line], written=False)

    def _note_success(self, lines: Sequence[_Line]) -> None:
        failing = self.failing
        self.written += len(lines)
        self._resolve(lines, written=True)
        self._failed = False
        self._overdue -= sum(line.overdue for line in lines)
        # Only at half of the limit: with one free slot the queue would be full again at once, and log that each time.
        self._full = self._full and not self._has_room(MAX_QUEUED_LINES // 2, MAX_QUEUED_BYTES // 2)
        if failing and not self.failing:
            log.info("The audit log can be written again; %d lines were lost since the start", self.lost)

    def _note_failure(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            log.error("The audit log cannot be written: %s", error.strerror)
        # The lines stay in the queue, because they record finished calls; their callers wait no longer.
        with self._changed:
            lines = list(self._lines)
        self._resolve(lines, written=False)

    def _note_reopened(self, error: OSError | None) -> None:
        if error is None:
            log.info("The audit log was opened again")
        else:
            log.error("The audit log cannot be opened again (%s); the old file stays in use", error.strerror)

    # The methods below run in the thread.

    def _run(self) -> None:
        failed = False
        while self._wait(failed):
            failed = not self._write_some()
        self._destination.close()

    def _wait(self, failed: bool) -> bool:
        """Waits until there is something to do; returns whether the thread is to continue.

        Parameters:
            failed: whether the last write failed, so that the next one is delayed.
        """
        with self._changed:
            last_time = self._closing_by is not None
            if failed:
                self._changed.wait_for(self._is_called, RETRY_SECONDS)
            else:
                self._changed.wait_for(lambda: self._lines or self._is_called())
            reopening, self._reopening = self._reopening, False
            closing_by = self._closing_by
        if reopening:
            self._reopen()
        if closing_by is None:
            return True
        # When the bridge stops, a failed destination is tried once more, and a full one until the time limit.
        return bool(self._lines) and not (failed and last_time) and time.monotonic() < closing_by

    def _is_called(self) -> bool:
        return self._reopening or self._closing_by is not None

    def _write_some(self) -> bool:
        """Writes one batch of lines; returns whether there was no failure."""
        with self._changed:
            lines = list(islice(self._lines, LINES_AT_ONCE))
        try:
            self._write(lines)
        except BlockingIOError:
            self._destination.wait(RETRY_SECONDS)
        except OSError as error:
            self._tell(self._note_failure, error)
            return False
        return True

    def _write(self, lines: Sequence[_Line]) -> None:
        """Writes lines, or a part of them; a later call writes the rest of a line.

        Errors:
            OSError: nothing could be written.
        """
        data = self._destination.piece([line.data for line in lines])
        if not data:
            return
        written_bytes = self._written_bytes + self._destination.write(data, self._written_bytes)
        whole = []
        for line in lines:
            if written_bytes < len(line.data):
                break
            written_bytes -= len(line.data)
            whole.append(line)
        with self._changed:
            self._written_bytes = written_bytes
            for line in whole:
                # ``close`` has removed the lines that it gave up.
                if self._lines and self._lines[0] is line:
                    self._lines.popleft()
                    self._queued_bytes -= len(line.data)
        if whole:
            self._tell(self._note_success, whole)

    def _reopen(self) -> None:
        if self._path is None:
            return
        if self._written_bytes:
            # The rest of a line is written to the file with its beginning, if that file accepts it.
            with suppress(OSError, IndexError):
                self._write([self._lines[0]])
        try:
            opened = _Destination(self._path)
        except OSError as error:
            return self._tell(self._note_reopened, error)
        self._destination.close()
        # Otherwise the new file gets the whole line.
        self._destination, self._written_bytes = opened, 0
        self._tell(self._note_reopened, None)

    def _tell(self, note: Callable[..., None], what: object) -> None:
        """Calls a method in the event loop's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(note, what)


class _Destination:
    """The destination of the lines: a file that is appended to, or standard output.

    Only a file gets many lines in one write: on a pipe with other writers, a write is atomic only up to ``PIPE_BUF``
    bytes (POSIX, write).

    Parameters:
        path: the path of the file; ``None`` for standard output.

    Errors:
        OSError: it cannot be opened.
    """

    def __init__(self, path: str | None) -> None:
        self._owned = path is not None
        # Without O_NONBLOCK, opening a named pipe without a reader would block the start.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._descriptor = _standard_output() if path is None else os.open(path, flags, 0o600)
        self._is_file = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._begins = b"\n" if path is not None and self._is_file and _ends_torn(path) else b""

    def piece(self, lines: Sequence[bytes]) -> bytes:
        """The first lines, as many as may be written at once."""
        if self._is_file:
            return b"".join(lines)
        length, count = 0, 0
        for line in lines:
            length += len(line)
            if length > select.PIPE_BUF and count:
                break
            count += 1
        return b"".join(lines[:count])

    def write(self, data: bytes, start: int) -> int:
        """Writes the data from an offset on; returns the number of bytes that were written.

        Errors:
            OSError: none were.
        """
        if self._begins:
            # Ends the incomplete line of an earlier process, so that the next line starts on its own.
            os.write(self._descriptor, self._begins)
            self._begins = b""
        return os.write(self._descriptor, memoryview(data)[start:])

    def wait(self, seconds: float) -> None:
        """Waits until the destination is writable, up to a time limit."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        poll.poll(seconds * 1000)

    def close(self) -> None:
        """Closes a file."""
        if self._owned:
            with suppress(OSError):
                os.close(self._descriptor)


def _standard_output() -> int:
    """The descriptor of standard output.

    Errors:
        OSError: the process was started without one.
    """
    if sys.__stdout__ is None:
        raise OSError(9, "it is closed")
    return 1


def _ends_torn(path: str) -> bool:
    """Whether the last line of a file is incomplete, if the file can be read."""
    with suppress(OSError), Path(path).open("rb") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    return False
