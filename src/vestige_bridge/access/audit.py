"""The audit log: one line of JSON for each call of a tool, and for each refusal of an authenticated principal.

Invariants: no request waits for the destination, unless the audit is required; a line is written whole and once; what
was not written is counted. A line names who, when, which tool and how it ended, never what was said.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from types import TracebackType
from typing import Final, NamedTuple, Self

from vestige_bridge.access.record import AccessRecord
from vestige_bridge.errors import REASONS, RENDERINGS, AuditFailed, BridgeError, Forbidden, LimitReached, SettingsError
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.messages import AnyMessage, Request, Response
from vestige_bridge.logs import timestamp
from vestige_bridge.mcp.methods import CALL_TOOL, LOGGABLE_METHODS
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = "-"
"""The destination that is no file."""

OTHER: Final = "other"
"""Stands for a method or a tool that only a client says to exist."""

MAX_QUEUED_LINES: Final = 16_384
"""How many lines may wait to be written; a line has at most about 1,500 bytes."""

RETRY_SECONDS: Final = 1.0
"""How long to wait before what could not be written is tried again."""

LINES_AT_ONCE: Final = 64
"""How many lines are written in one piece."""

CLOSE_SECONDS: Final = 5.0
"""How long the lines that wait may take when the bridge stops."""


class _Entry(NamedTuple):
    """A line that is to be written, and who waits to hear whether it was."""

    data: bytes
    receipt: asyncio.Future[bool] | None


@dataclass(frozen=True, slots=True)
class AuditedCall:
    """What the line of a call says of it besides its end.

    Attributes:
        members: what its line says of it before its end.
        accepted_at: when it was accepted, in seconds of ``time.perf_counter``.
    """

    members: dict[str, object]
    accepted_at: float


class AuditLog:
    """The audit log; a thread writes it, so that a slow disk or a full pipe holds up nobody.

    Parameters:
        destination: the path of a file, which is appended to, or ``-`` for standard output.
        required: whether a call that cannot be written down must not be made.

    Attributes:
        required: the same.
        written: how many lines were written.
        lost: how many lines were not written.
        failing: whether the last attempt to write failed.

    Errors:
        OSError: the file cannot be opened.
    """

    def __init__(self, destination: str, *, required: bool) -> None:
        self.required = required
        self.written = 0
        self.lost = 0
        self.failing = False
        self._path = None if destination == STANDARD_OUTPUT else destination
        self._descriptor = 1 if self._path is None else _open(self._path)
        self._entries: deque[_Entry] = deque()
        self._written_bytes = 0
        self._changed = threading.Condition()
        self._closing = False
        self._reopening = False
        self._losing = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> AuditLog | None:
        """The audit log that the settings ask for; ``None`` if they ask for none.

        Errors:
            SettingsError: its file cannot be opened.
        """
        if not settings.audit_log:
            return None
        try:
            return cls(settings.audit_log, required=settings.audit_required)
        except OSError as error:
            problem = f"VESTIGE_BRIDGE_AUDIT_LOG: {settings.audit_log} cannot be opened: {error.strerror}."
            raise SettingsError([problem]) from error

    async def __aenter__(self) -> Self:
        """Starts the thread."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes what waits, for a bounded time."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        if self._entries:
            self.lost += len(self._entries)
            log.error("%d lines of the audit log were not written", len(self._entries))

    @property
    def queued(self) -> int:
        """How many lines wait to be written."""
        return len(self._entries)

    def require(self, request_id: str | None = None) -> None:
        """Refuses a call that could not be written down.

        Errors:
            AuditFailed: the audit is required, and its destination takes no lines now.
        """
        if self.required and (self.failing or len(self._entries) >= MAX_QUEUED_LINES):
            raise AuditFailed("The audit log cannot be written; no tool is called.", sent=False, request_id=request_id)

    def accepted(self, record: AccessRecord, request: Request, *, known: bool) -> AuditedCall:
        """Takes note of a call that was accepted.

        Parameters:
            record: what is known of its HTTP request.
            request: the call.
            known: whether upstream announced the tool; a name that a client made up is in no line.
        """
        return AuditedCall(_members(record, request, known=known), time.perf_counter())

    def ended(
        self,
        call: AuditedCall,
        *,
        error: BridgeError | None,
        is_error: bool | None,
        sent: bool,
        replayed: bool,
    ) -> asyncio.Future[bool] | None:
        """Writes the line of a call that is over.

        Parameters:
            call: the call.
            error: the error that ended it, if one did.
            is_error: whether upstream's answer says that it failed; ``None`` without an answer.
            sent: whether upstream may have seen it.
            replayed: whether it was sent again.

        Returns:
            Whether the line was written, once that is known; ``None`` unless the audit is required.
        """
        if isinstance(error, Forbidden):
            return self._write({**call.members, **_refusal(error)})
        return self._write(
            {
                **call.members,
                "isError": is_error,
                "outcome": "answered" if error is None else "unknown" if sent else "not_sent",
                "reason": None if error is None else REASONS.get(type(error)),
                "replayed": replayed,
                "milliseconds": round((time.perf_counter() - call.accepted_at) * 1000, 1),
            }
        )

    def refused(self, record: AccessRecord, message: AnyMessage, error: BridgeError, *, known: bool) -> None:
        """Writes the line of a message that was not accepted, if it is one that gets a line.

        Parameters:
            record: what is known of its HTTP request.
            message: the message.
            error: why.
            known: whether upstream announced the tool that it calls.
        """
        if isinstance(error, AuditFailed):
            return
        call = AuditedCall(_members(record, message, known=known), time.perf_counter())
        if isinstance(error, Forbidden | LimitReached):
            self._write({**call.members, **_refusal(error)})
        elif isinstance(message, Request) and message.method == CALL_TOOL:
            self.ended(call, error=error, is_error=None, sent=False, replayed=False)

    def reopen(self) -> None:
        """Opens the file anew, after another program moved it away."""
        with self._changed:
            self._reopening = True
            self._changed.notify()

    def _write(self, members: dict[str, object]) -> asyncio.Future[bool] | None:
        """Hands a line to the thread; what there is no room for is counted."""
        receipt = asyncio.get_running_loop().create_future() if self.required else None
        if len(self._entries) >= MAX_QUEUED_LINES:
            self.lost += 1
            if not self._losing:
                self._losing = True
                log.error("The audit log takes lines too slowly: lines are lost until it keeps up")
            if receipt is not None:
                receipt.set_result(False)
            return receipt
        with self._changed:
            self._entries.append(_Entry(f"{json.dumps(members)}\n".encode(), receipt))
            self._changed.notify()
        return receipt

    # What follows up to the next comment runs in the thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._entries or self._closing or self._reopening):
                    self._changed.wait()
                entries = list(islice(self._entries, LINES_AT_ONCE))
                reopening, self._reopening = self._reopening, False
                if self._closing and not entries:
                    return
            if reopening:
                self._reopen()
            try:
                self._write_out(entries)
            except BlockingIOError:
                select.select([], [self._descriptor], [], RETRY_SECONDS)
            except OSError as error:
                self._tell(self._note_failure, error)
                with self._changed:
                    self._changed.wait_for(lambda: self._closing or self._reopening, RETRY_SECONDS)
                    if self._closing:
                        return

    def _write_out(self, entries: Sequence[_Entry]) -> None:
        """Writes lines, or a part of them: the rest of a line follows it later.

        Errors:
            OSError: the destination takes nothing.
        """
        data = b"".join([entry.data for entry in entries])
        if not data:
            return
        written_bytes = self._written_bytes + os.write(self._descriptor, memoryview(data)[self._written_bytes :])
        whole = 0
        while whole < len(entries) and len(entries[whole].data) <= written_bytes:
            written_bytes -= len(entries[whole].data)
            whole += 1
        self._written_bytes = written_bytes
        with self._changed:
            for _ in range(whole):
                self._entries.popleft()
        self._tell(self._note_success, entries[:whole])

    def _reopen(self) -> None:
        if self._path is None:
            return
        try:
            opened = _open(self._path)
        except OSError as error:
            return self._tell(self._note_not_reopened, error)
        os.close(self._descriptor)
        # A line that stands half in the old file stands whole in the new one.
        self._descriptor, self._written_bytes = opened, 0

    def _tell(self, note: Callable[..., None], what: object) -> None:
        """Has the event loop's thread take note of something."""
        with suppress(RuntimeError):  # the loop has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(note, what)

    # What follows runs in the event loop's thread again.

    def _note_success(self, entries: Sequence[_Entry]) -> None:
        self.written += len(entries)
        if self.failing or (self._losing and len(self._entries) < MAX_QUEUED_LINES // 2):
            log.info("The audit log is written again; %d lines were lost since the start", self.lost)
            self.failing = self._losing = False
        for entry in entries:
            if entry.receipt is not None and not entry.receipt.done():
                entry.receipt.set_result(True)

    def _note_failure(self, error: OSError) -> None:
        if not self.failing:
            self.failing = True
            log.error("The audit log cannot be written: %s", error.strerror)
        # The lines wait, as they say what happened; those who wait for them do not.
        if self.required:
            with self._changed:
                receipts = [entry.receipt for entry in self._entries if entry.receipt is not None]
            for receipt in receipts:
                if not receipt.done():
                    receipt.set_result(False)

    def _note_not_reopened(self, error: OSError) -> None:
        log.error("The audit log cannot be opened again (%s); the old file is written on", error.strerror)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _members(record: AccessRecord, message: AnyMessage, *, known: bool) -> dict[str, object]:
    """All members of a line; those that say how the message ended are those of a call that has not ended."""
    method = None if isinstance(message, Response) else message.method
    calls = isinstance(message, Request) and method == CALL_TOOL
    return {
        "time": timestamp(time.time()),
        "audit": "call",
        "principal": record.principal,
        "agent": record.headers.text(headers.AGENT_ID),
        "session": record.headers.text(headers.SESSION_ID),
        "request_id": record.request_id,
        "trace_id": record.trace_id(message),
        "method": method if method is None or method in LOGGABLE_METHODS else OTHER,
        "tool": None if not calls else message.name if known and isinstance(message, Request) else OTHER,
        "isError": None,
        "outcome": None,
        "reason": None,
        "replayed": False,
        "milliseconds": None,
    }


def _refusal(error: BridgeError) -> dict[str, object]:
    """The members by which the line of a refusal differs."""
    status = RENDERINGS[type(error)].status
    return {"audit": "refusal", "outcome": "refused", "reason": REASONS.get(type(error)), "status": status}
