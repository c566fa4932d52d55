"""The audit log: one line of JSON for each tool call, and for each rejected message of an authenticated principal.

Invariants: no request waits for the destination, unless the audit is required. A line contains the principal, the
time, the tool and the outcome, never arguments or results; a tool is named only if upstream announced it.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from vestige_bridge.access.audit_writer import AuditWriter
from vestige_bridge.access.record import AccessRecord
from vestige_bridge.errors import (
    NOT_SENT,
    REASONS,
    RENDERINGS,
    AuditFailed,
    BridgeError,
    Forbidden,
    LimitReached,
    SettingsError,
)
from vestige_bridge.http import headers
from vestige_bridge.jsonrpc.messages import AnyMessage, Request, Response
from vestige_bridge.logs import timestamp
from vestige_bridge.mcp.methods import CALL_TOOL, LOGGABLE_METHODS
from vestige_bridge.settings import Settings

OTHER: Final = "other"
"""Replaces a method or a tool that only the client names."""

INVALID: Final = "invalid"
"""The reason of a message that was rejected because it is invalid, if its error has no reason of its own."""

LONGEST_TOOL: Final = 128
"""Maximum number of characters of a tool's name in a line: the maximum of MCP 2025-11-25, server/tools."""


@dataclass(frozen=True, slots=True)
class AuditedCall:
    """A call of a tool between its acceptance and its end.

    Attributes:
        members: the members of its line that are known before its end.
        accepted_at: when it was accepted, in seconds of ``time.perf_counter``.
    """

    members: dict[str, object]
    accepted_at: float


class AuditLog:
    """The audit log.

    Parameters:
        destination: the path of a file, which is appended to, or ``-`` for standard output.
        required: whether a tool call must not be made if its line cannot be written.

    Attributes:
        required: the same.
        writer: writes the lines.

    Errors:
        OSError: the destination cannot be opened.
    """

    def __init__(self, destination: str, *, required: bool) -> None:
        self.required = required
        self.writer = AuditWriter(destination)

    @classmethod
    def from_settings(cls, settings: Settings) -> AuditLog | None:
        """The audit log that the settings configure; ``None`` if they configure none.

        Errors:
            SettingsError: its destination cannot be opened.
        """
        if not settings.audit_log:
            return None
        try:
            return cls(settings.audit_log, required=settings.audit_required)
        except OSError as error:
            problem = f"VESTIGE_BRIDGE_AUDIT_LOG: {settings.audit_log} cannot be opened: {error.strerror}."
            raise SettingsError([problem]) from error

    async def __aenter__(self) -> Self:
        """Starts the writer."""
        self.writer.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Writes the queued lines, for a bounded time."""
        await self.writer.close()

    def require(self, request_id: str | None = None) -> None:
        """Rejects a call whose line cannot be written.

        Errors:
            AuditFailed: the audit is required, and its destination cannot be written now.
        """
        if self.required and self.writer.failing:
            raise AuditFailed(
                "The audit log cannot be written; no tool is called.",
                data=NOT_SENT,
                request_id=request_id,
            )

    def accepted(self, record: AccessRecord, request: Request, *, known: bool) -> AuditedCall:
        """Begins the record of an accepted call.

        Parameters:
            record: the access record of its HTTP request.
            request: the call.
            known: whether upstream announced the tool; other names are not logged.
        """
        return AuditedCall(_members(record, request, known=known), time.perf_counter())

    def ended(
        self,
        call: AuditedCall,
        *,
        error: BridgeError | None,
        tool: str | None = None,
        is_error: bool | None = None,
        sent: bool = False,
        replayed: bool = False,
    ) -> asyncio.Future[bool] | None:
        """Writes the line of a finished call.

        Parameters:
            call: the call.
            error: the error that ended it, if one did.
            tool: the tool, if upstream has announced it since.
            is_error: ``isError`` of upstream's answer; ``None`` without an answer.
            sent: whether upstream may have received it.
            replayed: whether it was sent again.

        Returns:
            Whether the line was written, once that is known; ``None`` unless the audit is required.
        """
        members = call.members if tool is None else {**call.members, "tool": tool[:LONGEST_TOOL]}
        if isinstance(error, Forbidden) and not sent:
            return self._write({**members, **_refusal(error)})
        return self._write(
            {
                **members,
                "isError": is_error,
                "outcome": "answered" if error is None else "unknown" if sent else "not_sent",
                "reason": None if error is None else _reason(error),
                "replayed": replayed,
                "milliseconds": round((time.perf_counter() - call.accepted_at) * 1000, 1),
            }
        )

    def refused(self, record: AccessRecord, message: AnyMessage, error: BridgeError, *, known: bool) -> None:
        """Writes the line of a rejected message, if it is a tool call or was rejected by permissions or limits.

        Parameters:
            record: the access record of its HTTP request.
            message: the message.
            error: the reason.
            known: whether upstream announced the tool that it calls.
        """
        if isinstance(error, Forbidden | LimitReached):
            self._write({**_members(record, message, known=known), **_refusal(error)})
        elif isinstance(message, Request) and message.method == CALL_TOOL:
            self.ended(self.accepted(record, message, known=known), error=error)

    def refused_unread(self, record: AccessRecord, error: BridgeError) -> None:
        """Writes the line of a request that was rejected before its body was read."""
        self._write({**_members(record, None, known=False), **_refusal(error)})

    def _write(self, members: dict[str, object]) -> asyncio.Future[bool] | None:
        return self.writer.put(f"{json.dumps(members)}\n".encode(), receipt=self.required)


def _members(record: AccessRecord, message: AnyMessage | None, *, known: bool) -> dict[str, object]:
    """All members of a line; those about the end of a call are still ``None``."""
    method = None if message is None or isinstance(message, Response) else message.method
    tool = None
    if isinstance(message, Request) and method == CALL_TOOL:
        tool = (message.name or "")[:LONGEST_TOOL] if known else OTHER
    return {
        "time": timestamp(time.time()),
        "audit": "call",
        "principal": record.principal,
        "agent": record.headers.text(headers.AGENT_ID),
        "session": record.headers.text(headers.SESSION_ID),
        "request_id": record.request_id,
        "trace_id": record.trace_id(message),
        "method": method if method is None or method in LOGGABLE_METHODS else OTHER,
        "tool": tool,
        "isError": None,
        "outcome": None,
        "reason": None,
        "replayed": False,
        "milliseconds": None,
    }


def _reason(error: BridgeError) -> str:
    return REASONS.get(type(error), INVALID)


def _refusal(error: BridgeError) -> dict[str, object]:
    """The members that differ in the line of a rejected message."""
    return {
        "audit": "refusal",
        "outcome": "refused",
        "reason": _reason(error),
        "status": RENDERINGS[type(error)].status,
    }
