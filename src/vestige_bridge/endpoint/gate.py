"""What is asked about each message before it is served: its principal's rights, its calls in a minute, and the audit.

Invariant: a message is judged before anything of it goes upstream, and what is refused to an authenticated principal
gets its line in the audit log, once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.rate_limits import RateLimits
from vestige_bridge.access.record import AccessRecord, metrics_label
from vestige_bridge.errors import AuditFailed, BridgeError, Forbidden, LimitReached, reason_of
from vestige_bridge.jsonrpc.messages import AnyMessage, Request
from vestige_bridge.mcp.methods import CALL_TOOL
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.session import Session

Judged = AnyMessage | BridgeError
"""A message that may be served, or why it may not."""


class Gate:
    """Judges the messages of clients.

    Parameters:
        session: the held session, which knows the tools.
        dispatcher: where a message waits for that session.
        audit: the audit log; ``None`` for none.

    Attributes:
        judges_all: whether the messages of all principals have to be judged, not only of those with limits.
        refusals: how many messages were refused to each principal, by its name and what it may not exceed or do.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher, audit: AuditLog | None) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()
        self._session = session
        self._dispatcher = dispatcher
        self._audit = audit
        self._rates = RateLimits(time.monotonic)
        self.judges_all = audit is not None and audit.required

    async def judge(self, record: AccessRecord, messages: Sequence[Judged]) -> list[Judged]:
        """What a principal sends, with the reason in the place of each message that it may not send.

        Errors:
            UpstreamUnavailable: it calls a tool that has to be known, and there is no session to know the tools by.
            Overloaded, LimitReached: nor is there room to wait for one.
        """
        calls = any(isinstance(message, Request) and message.method == CALL_TOOL for message in messages)
        if calls and record.permissions.read_only and self._session.held is None:
            with self._dispatcher.admit(record):
                await self._session.connected()
        return [self._judged(record, message) for message in messages]

    def note(self, record: AccessRecord, messages: Sequence[Judged], error: BridgeError) -> None:
        """Takes note of messages that were refused; a line is written of those of which none had been accepted.

        Parameters:
            record: what is known of their HTTP request.
            messages: the messages, or the one.
            error: why.
        """
        if isinstance(error, Forbidden | LimitReached):
            self._count(record, error)
        if record.dispatched:
            return
        for message in messages:
            if not isinstance(message, BridgeError):
                self._write_down(record, message, error)

    def _judged(self, record: AccessRecord, message: Judged) -> Judged:
        try:
            if not isinstance(message, BridgeError):
                record.permissions.require(message, self._session.catalog.tools)
                if isinstance(message, Request) and message.method == CALL_TOOL:
                    if self._audit is not None:
                        self._audit.require(message.spelled_id)
                    self._require_rate(record, message)
        except BridgeError as error:
            return error
        return message

    def _require_rate(self, record: AccessRecord, call: Request) -> None:
        rate = record.permissions.rate
        seconds = 0 if rate is None else self._rates.take(record.authenticated, rate)
        if seconds:
            raise LimitReached(f"This token may call {rate} tools in a minute.", seconds, request_id=call.spelled_id)

    def refuse(self, record: AccessRecord, message: AnyMessage, error: BridgeError) -> None:
        """Takes note of one message that was refused by itself."""
        if isinstance(error, Forbidden | LimitReached):
            self._count(record, error)
        self._write_down(record, message, error)

    def _count(self, record: AccessRecord, error: BridgeError) -> None:
        principal = metrics_label(record.authenticated)
        self.refusals[principal, "forbidden" if isinstance(error, Forbidden) else "limit"] += 1

    def _write_down(self, record: AccessRecord, message: AnyMessage, error: BridgeError) -> None:
        """Writes a line into the audit log.

        A call that is refused because the log cannot be written gets none: such lines would take the room of those that
        say what was done.
        """
        if isinstance(error, AuditFailed):
            self._dispatcher.failures[reason_of(error)] += 1
        elif self._audit is not None:
            known = isinstance(message, Request) and message.name in self._session.catalog.tools
            self._audit.refused(record, message, error, known=known)
