"""The checks of each message before it is dispatched: its principal's permissions, its rate limit, and the audit.

Invariant: a message is checked before any of it goes upstream. Each rejected message of an authenticated principal
gets one line in the audit log.
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
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.exchange import Exchange
from vestige_bridge.session.session import Session

Judged = AnyMessage | BridgeError
"""A permitted message, or the reason why it is not permitted."""


class Gate:
    """Checks the messages of clients.

    Parameters:
        session: the shared session, with the list of tools.
        dispatcher: where a message waits for that session.
        audit: the audit log; ``None`` for none.

    Attributes:
        judges_all: whether the messages of all principals need a check, not only of those with limits.
        refusals: the number of rejected messages, by principal and reason.
    """

    def __init__(self, session: Session, dispatcher: Dispatcher, audit: AuditLog | None) -> None:
        self.refusals: Counter[tuple[str, str]] = Counter()
        self._session = session
        self._dispatcher = dispatcher
        self._audit = audit
        self._rates = RateLimits(time.monotonic)
        dispatcher.call_not_sent = self._give_back
        self.judges_all = audit is not None and audit.required

    async def judge(self, record: AccessRecord, messages: Sequence[Judged]) -> list[Judged]:
        """Checks a principal's messages; the result has the error in place of each message that is not permitted.

        Errors:
            UpstreamUnavailable: the check of a call needs the list of tools, and there is no session to read it from.
            Overloaded, LimitReached: too many requests are in flight to wait for a session.
        """
        calls = any(isinstance(message, Request) and message.method == CALL_TOOL for message in messages)
        if calls and record.permissions.read_only and self._session.held is None:
            await self._dispatcher.connected(record, Caller(record.authenticated))
        return [self._judged(record, message) for message in messages]

    def note(self, record: AccessRecord, messages: Sequence[Judged], error: BridgeError) -> None:
        """Counts rejected messages, and writes their audit lines unless a message of their request was accepted.

        Parameters:
            record: the access record of their HTTP request.
            messages: the messages.
            error: the reason.
        """
        if isinstance(error, Forbidden | LimitReached):
            self._count(record, error)
        if record.dispatched:
            return
        for _ in range(record.calls_taken):
            self._rates.give_back(record.authenticated, record.permissions.rate or 1)
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
        record.calls_taken += rate is not None

    def _give_back(self, exchange: Exchange) -> None:
        """Does not count a call that was never sent."""
        if exchange.permissions.rate is not None:
            self._rates.give_back(exchange.caller.principal, exchange.permissions.rate)

    def refuse(self, record: AccessRecord, message: AnyMessage, error: BridgeError) -> None:
        """Counts one message that was rejected on its own, and writes its line in the audit log."""
        if isinstance(error, Forbidden | LimitReached):
            self._count(record, error)
        self._write_down(record, message, error)

    def _count(self, record: AccessRecord, error: BridgeError) -> None:
        principal = metrics_label(record.authenticated)
        self.refusals[principal, "forbidden" if isinstance(error, Forbidden) else "limit"] += 1

    def _write_down(self, record: AccessRecord, message: AnyMessage, error: BridgeError) -> None:
        """Writes a line into the audit log.

        A call that is rejected because the log cannot be written gets none: such lines would displace the
        lines of finished calls.
        """
        if isinstance(error, AuditFailed):
            self._dispatcher.failures[reason_of(error)] += 1
        elif self._audit is not None:
            known = isinstance(message, Request) and message.name in self._session.catalog.tools
            self._audit.refused(record, message, error, known=known)
