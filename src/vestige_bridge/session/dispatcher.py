"""The requests and notifications of clients: admission, the window, replays, cancellation and the drain.

Invariants: at most ``upstream_concurrency`` messages are with upstream at a time, and at most ``max_in_flight`` are
admitted. A request is sent again only if it provably was not processed, or if running it twice changes nothing. Where
there is no more room, the principal with the most requests makes way for one with fewer.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from vestige_bridge.access.audit import AuditedCall, AuditLog
from vestige_bridge.access.permissions import UNRESTRICTED
from vestige_bridge.access.record import AccessRecord
from vestige_bridge.access.responses import RETRY_AFTER_SECONDS
from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import (
    REASONS,
    AuditFailed,
    BridgeError,
    Cancelled,
    InternalError,
    InvalidMessage,
    LimitReached,
    NotFound,
    Overloaded,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamTimeout,
    UpstreamUnavailable,
    no_failures,
    reason_of,
)
from vestige_bridge.jsonrpc.builders import build_cancelled
from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import CALL_TOOL, REPEATABLE_METHODS
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.mcp.pass_through import ClientHeldSession
from vestige_bridge.mcp.tools import Tool, reports_error
from vestige_bridge.session.durations import Durations
from vestige_bridge.session.exchange import Exchange, Owner
from vestige_bridge.session.session import Session
from vestige_bridge.session.subscriptions import Interest
from vestige_bridge.session.window import Window
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

_REPLAYED: Final = (SessionLost, UpstreamConnectError, UpstreamDisconnected)
_NO_HINTS: Final = Tool()


class Admission:
    """Spans among what is in flight, held for messages that have to wait before they can be sent.

    A context manager: what was not handed on to a request is released at its end.

    Parameters:
        release: called with the principal and the number of places that are given back.
        principal: whose messages they are.
        places: how many are held.
    """

    __slots__ = ("_principal", "_release", "places")

    def __init__(self, release: Callable[[str, int], None], principal: str, places: int) -> None:
        self._release = release
        self._principal = principal
        self.places = places

    def __enter__(self) -> Self:
        """Holds the places."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives back what is still held."""
        self.give_back(self.places)

    def give_back(self, places: int) -> None:
        """Gives places back that are not needed any more."""
        self.places -= places
        self._release(self._principal, places)


class _Turn:
    """A notification that waits for its place in the window.

    Parameters:
        admission: where its place among what is in flight is held.
        come: done when it may be sent, or when it may not.
    """

    __slots__ = ("_admission", "_come")

    def __init__(self, admission: Admission, come: asyncio.Future[None]) -> None:
        self._admission = admission
        self._come = come

    def __await__(self) -> Generator[Any, None, None]:
        return self._come.__await__()

    def begin(self) -> None:
        """Says that it may be sent."""
        if not self._come.done():
            self._come.set_result(None)

    def refuse(self, error: BridgeError) -> None:
        """Says that it may not; its place is free at once, not when the task that waits here has noticed."""
        self._admission.give_back(1)
        if not self._come.done():
            self._come.set_exception(error)


class Dispatcher:
    """Every message of a client that goes to upstream, from its admission to its end.

    Parameters:
        session: the held session.
        settings: limits and timeouts.
        audit: the audit log; ``None`` for none.

    Attributes:
        window: the places with upstream, and who waits for one.
        replays: how many times a request was sent again.
        call_durations: how long upstream took for the calls of tools that it answered.
        failures: how many requests of clients ended without an answer, by reason.
        draining: whether new requests are refused.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(self, session: Session, settings: Settings, audit: AuditLog | None = None) -> None:
        self.window: Window[Exchange | _Turn] = Window(settings.upstream_concurrency, self._begin)
        self.replays = 0
        self.call_durations = Durations()
        self.failures = no_failures()
        self.draining = False
        self._session = session
        self._attempts = session.attempts
        self._sender = session.sender
        self._settings = settings
        self._audit = audit
        self._asks_audit = audit is not None and audit.required
        self._tasks = Tasks()
        self._owner = Owner(
            self.repeatable, self._sender.progressed, self._ended, self._attempt_failed, self._forgotten
        )
        self._in_flight: set[Exchange] = set()
        self._in_flight_of: dict[str, int] = {}
        self._reserved = 0
        self._passing_on: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def __aenter__(self) -> Self:
        """Sends nothing until it is asked to."""
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends what is still in flight."""
        self._stop_in_flight()
        await self._tasks.close()

    @property
    def in_flight(self) -> int:
        """How many requests and notifications of clients are in flight, those that wait included."""
        return len(self._in_flight) + self._reserved

    def request(
        self,
        request: Request,
        caller: Caller,
        header_lines: str,
        record: AccessRecord,
        admission: Admission | None = None,
        *,
        own: ClientHeldSession | None = None,
    ) -> Exchange:
        """Accepts a client's request and sees it through; the exchange says how it goes.

        Parameters:
            request: any request; ``initialize`` only on a client's own session.
            caller: whose it is.
            header_lines: the header lines that go to upstream with it.
            record: what is known of its HTTP request, its principal's permissions among it.
            admission: where its place is held already; ``None`` takes one now.
            own: the client's own session, if it has one; it is never renewed.

        Errors:
            Overloaded: there is no room for it.
            LimitReached: its principal has as many in flight as it may.
        """
        exchange = self._open(request, caller, header_lines, record, admission, own=own)
        if self.window.enter(exchange, caller):
            # Not before all that came in this turn has been read: writes one after the other find upstream awake, and
            # a request costs a tenth less CPU time than if each were made at once.
            self._loop.call_soon(self._send, exchange)
        return exchange

    def request_to_hear(
        self,
        request: Request,
        caller: Caller,
        interest: Interest,
        record: AccessRecord,
        admission: Admission | None = None,
    ) -> Exchange:
        """Accepts a client's request to be told of something; it needs no place in the window.

        Parameters:
            request: the request.
            caller: whose it is.
            interest: what it asks for.
            record: what is known of its HTTP request.
            admission: where its place is held already; ``None`` takes one now.

        Errors:
            Overloaded: there is no room for it.
            LimitReached: its principal has as many in flight as it may.
        """
        exchange = self._open(request, caller, "", record, admission)
        self._session.subscriptions.serve(exchange, interest)
        return exchange

    def admit(self, record: AccessRecord, messages: int = 1) -> Admission:
        """Takes places for messages that have to wait before they can be sent, and holds them.

        Parameters:
            record: what is known of their HTTP request.
            messages: how many requests and notifications came together.

        Errors:
            InvalidMessage: they are more than may ever be in flight.
            Overloaded: the bridge is draining, or has too many messages in flight.
            LimitReached: their principal has as many in flight as it may.
        """
        principal = record.authenticated
        if messages > 1:
            self._require_small_batch(record, messages)
        self._require_room(principal, record, messages)
        self._reserved += messages
        self._count(principal, messages)
        if messages:
            self._idle.clear()
        return Admission(self._release, principal, messages)

    def cancel(self, caller: Caller, notification: Notification, own: ClientHeldSession | None = None) -> bool:
        """Ends the request that a client's ``notifications/cancelled`` means.

        Parameters:
            caller: whose notification it is.
            notification: the notification.
            own: the client's own session, if it came on one.

        Returns:
            Whether it meant exactly one of that caller's requests in flight.
        """
        exchange = self._attempts.find(caller, notification, own)
        if exchange is None:
            return False
        cancelled = notification.spliced((notification.params["requestId"], exchange.spelled_upstream_id))
        self._sender.withdraw(exchange, Cancelled("The client cancelled the request."), cancelled)
        return True

    def abandon(self, exchange: Exchange, reason: str) -> None:
        """Ends a request whose client does not want its answer any more.

        Parameters:
            exchange: the request.
            reason: a sentence for upstream.
        """
        if not exchange.ended:
            cancelled = build_cancelled(exchange.spelled_upstream_id, reason)
            self._sender.withdraw(exchange, Cancelled("The client cancelled the request."), cancelled)

    async def pass_on(self, message: bytes, own: ClientHeldSession, header_lines: str) -> None:
        """Passes a message on that waits for no answer, on a client's own session.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: it was not taken.
        """
        timeout_seconds = self._settings.request_timeout_seconds
        sending = self._tasks.start(self._attempts.send(message, own, header_lines, timeout_seconds))
        self._passing_on.add(sending)
        sending.add_done_callback(self._passing_on.discard)
        await asyncio.wait([sending])
        if sending.cancelled():
            raise UpstreamTimeout("The bridge had to stop before upstream took the message.")
        sending.result()

    async def notify(
        self,
        notification: Notification,
        caller: Caller,
        header_lines: str,
        admission: Admission,
        own: ClientHeldSession | None = None,
    ) -> None:
        """Passes a client's notification on. It takes a place in the window.

        Parameters:
            notification: the notification.
            caller: whose it is.
            header_lines: the header lines that go to upstream with it.
            admission: where its place among what is in flight is held.
            own: the client's own session, if it came on one; it is never renewed.

        Errors:
            Overloaded: it had to make way for another principal's.
            SessionLost: upstream has ended the client's own session.
            UpstreamError, BodyTooLarge: it could not be passed on.
        """
        turn = _Turn(admission, self._loop.create_future())
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                if not self.window.enter(turn, caller):
                    await turn
                if own is None:
                    return await self._notify_on_held(notification, header_lines)
            await self.pass_on(notification.encoded(), own, header_lines)
        except TimeoutError:
            raise UpstreamTimeout("Upstream did not take a notification in time.") from None
        finally:
            self.window.leave(turn)

    async def drain(self, timeout_seconds: float) -> None:
        """Takes no more requests and waits for those in flight; those that do not end in time are answered 504."""
        self.draining = True
        self._session.listeners.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
                while self._passing_on:
                    await asyncio.wait(self._passing_on)
        self._stop_in_flight()

    def repeatable(self, request: Request) -> bool:
        """Whether running the request twice is as good as once."""
        if request.method == CALL_TOOL:
            return self._session.catalog.tools.get(request.name or "", _NO_HINTS).repeatable
        return request.method in REPEATABLE_METHODS

    def _open(
        self,
        request: Request,
        caller: Caller,
        header_lines: str,
        record: AccessRecord,
        admission: Admission | None,
        *,
        own: ClientHeldSession | None = None,
    ) -> Exchange:
        """Takes a request in."""
        if admission is None:
            principal = caller.principal
            self._require_room(principal, record, 1)
            self._in_flight_of[principal] = self._in_flight_of.get(principal, 0) + 1
        else:
            admission.places -= 1
            self._reserved -= 1
        exchange = Exchange(
            request,
            caller,
            header_lines=header_lines,
            timeout_seconds=self._settings.request_timeout_seconds,
            owner=self._owner,
            loop=self._loop,
            permissions=record.permissions,
            own=own,
        )
        record.dispatched = True
        if self._audit is not None and request.method == CALL_TOOL:
            known = request.name in self._session.catalog.tools
            exchange.audited = self._audit.accepted(record, request, known=known)
        self._sender.open(exchange)
        self._in_flight.add(exchange)
        self._idle.clear()
        return exchange

    def _release(self, principal: str, places: int) -> None:
        self._reserved -= places
        self._count(principal, -places)
        if not self._in_flight and not self._reserved:
            self._idle.set()

    def _require_small_batch(self, record: AccessRecord, messages: int) -> None:
        """A batch that can never be admitted is no matter of waiting."""
        own = record.permissions.max_in_flight
        most = self._settings.max_in_flight if own is None else min(own, self._settings.max_in_flight)
        if messages > most:
            raise InvalidMessage(f"At most {most} messages of a batch may be in flight; this one has {messages}.")

    def _require_room(self, principal: str, record: AccessRecord, messages: int) -> None:
        if self.draining:
            raise _overloaded("The bridge is shutting down.")
        most = record.permissions.max_in_flight
        if most is not None and self._in_flight_of.get(principal, 0) + messages > most:
            raise LimitReached(f"This token may have {most} requests in flight.", RETRY_AFTER_SECONDS)
        excess = len(self._in_flight) + self._reserved + messages - self._settings.max_in_flight
        if excess > 0:
            self._make_room(principal, messages, excess)

    def _make_room(self, newcomer: str, messages: int, excess: int) -> None:
        """Refuses the newest waiting requests of those principals that have the most in flight.

        Parameters:
            newcomer: the principal that needs room; only those that have more than it then has make way.
            messages: for how many messages.
            excess: how many have to make way.

        Errors:
            Overloaded: that many cannot; then nothing was refused.
        """
        waiting = self.window.waiting
        largest = [(-self._in_flight_of[it], it) for it in waiting if it != newcomer]
        heapq.heapify(largest)
        own = self._in_flight_of.get(newcomer, 0) + messages
        taken: Counter[str] = Counter()
        for _ in range(excess):
            while largest and taken[largest[0][1]] == waiting[largest[0][1]]:
                heapq.heappop(largest)
            if not largest or -largest[0][0] < own:
                raise _overloaded("Too many requests are in flight.")
            in_flight, principal = largest[0]
            taken[principal] += 1
            heapq.heapreplace(largest, (in_flight + 1, principal))
        for principal in taken.elements():
            error = _overloaded("Too many requests of this principal wait, and others need room.")
            refused = self.window.make_way(principal)
            if isinstance(refused, Exchange):
                refused.fail(error)
            else:
                refused.refuse(error)

    def _count(self, principal: str, messages: int) -> None:
        """Counts what a principal has in flight."""
        in_flight = self._in_flight_of.get(principal, 0) + messages
        if in_flight:
            self._in_flight_of[principal] = in_flight
        else:
            self._in_flight_of.pop(principal, None)

    def _begin(self, following: Exchange | _Turn) -> None:
        """Sends what got its place after it had to wait."""
        if isinstance(following, Exchange):
            # In a turn of its own, since this one may be the end of many, one after another.
            self._loop.call_soon(self._send, following)
        else:
            following.begin()

    def _send(self, exchange: Exchange) -> None:
        """Sends the request on its session; a task waits for that session if there is none."""
        held = exchange.own or self._session.held
        if held is None:
            if not exchange.ended:
                exchange.driver = self._tasks.start(self._send_when_connected(exchange))
        elif (exchange.permissions is UNRESTRICTED and not self._asks_audit) or self._permitted(exchange):
            self._sender.send(exchange, held)

    async def _send_when_connected(self, exchange: Exchange) -> None:
        try:
            await self._session.connected()
            exchange.driver = None
            self._send(exchange)
        except BridgeError as error:
            exchange.fail(error)
        except Exception:
            exchange.fail(InternalError("The bridge failed."))
            raise

    def _permitted(self, exchange: Exchange) -> bool:
        """Asks once more, because much may have changed since the request was let in.

        A renewed session may have brought other tools, and the audit log may be one that cannot be written any more.
        """
        try:
            exchange.permissions.require(exchange.request, self._session.catalog.tools)
            if self._audit is not None and exchange.audited is not None:
                self._audit.require()
        except BridgeError as error:
            exchange.fail(error)
            return False
        return True

    def _ended(self, exchange: Exchange) -> None:
        """Lets an exchange go, and the next one in the window."""
        self._sender.close(exchange)
        self._in_flight.remove(exchange)
        principal = exchange.caller.principal
        if self._in_flight_of[principal] == 1:
            del self._in_flight_of[principal]
        else:
            self._in_flight_of[principal] -= 1
        if exchange.audited is not None:
            self._write_down(exchange, exchange.audited)
        if exchange.error is not None:
            self.failures[reason_of(exchange.error)] += 1
        elif exchange.request.method == CALL_TOOL:
            self.call_durations.observe(time.perf_counter() - exchange.sent_at)
        if not self._in_flight and not self._reserved:
            self._idle.set()
        if not exchange.forgetting:
            self.window.leave(exchange)

    def _forgotten(self, exchange: Exchange) -> None:
        """Gives the place in the window back that an exchange kept after its end."""
        exchange.forgetting = False
        self.window.leave(exchange)

    def _write_down(self, exchange: Exchange, call: AuditedCall) -> None:
        """Writes the line of a call that has ended into the audit log."""
        if self._audit is None:
            return
        answered, name = exchange.answered, exchange.request.name
        exchange.receipt = self._audit.ended(
            call,
            error=exchange.error,
            # A call that was accepted before the tools were known is named as soon as they are.
            tool=name if name in self._session.catalog.tools else None,
            is_error=None if answered is None else reports_error(answered.data),
            sent=exchange.sent,
            replayed=bool(exchange.replayed),
        )
        if exchange.receipt is not None and answered is not None:
            exchange.receipt.add_done_callback(self._count_unwritten)

    def _count_unwritten(self, receipt: asyncio.Future[bool]) -> None:
        """Counts an answer that its client does not get, because its line could not be written."""
        if not receipt.cancelled() and not receipt.result():
            self.failures[REASONS[AuditFailed]] += 1

    def _attempt_failed(self, exchange: Exchange, held: HeldSession, error: BridgeError) -> None:
        """Makes another attempt where it can do no harm."""
        if exchange.own is not None and isinstance(error, SessionLost):
            return exchange.fail(NotFound("Upstream has ended this session; send initialize to begin another."))
        if exchange.own is None:
            self._session.note_failure(held, error)
        elif isinstance(error, UpstreamConnectError):
            # What else happens to one client's session says nothing of the held one.
            self._session.report(error)
        if isinstance(error, _REPLAYED):
            harmless = not error.sent or (exchange.repeatable and not exchange.relayed)
            if harmless and type(error) not in exchange.replayed:
                exchange.replayed += (type(error),)
                exchange.drop_progress()
                self.replays += 1
                log.debug("Replaying a request: %s", error)
                return self._send(exchange)
        exchange.fail(error)

    def _stop_in_flight(self) -> None:
        for sending in self._passing_on:
            sending.cancel()
        for exchange in list(self._in_flight):
            exchange.fail(UpstreamTimeout("The bridge had to stop before the answer came."))

    async def _notify_on_held(self, notification: Notification, header_lines: str) -> None:
        """Passes a notification on; a session that is lost is renewed once."""
        try:
            with suppress(SessionLost):
                return await self._notify_once(notification, header_lines)
            await self._notify_once(notification, header_lines)
        except SessionLost as error:
            raise UpstreamUnavailable(
                "Upstream keeps refusing its own session.",
                detail=str(error),
                data={"outcome": "not_sent", "retryable": True},
            ) from error

    async def _notify_once(self, notification: Notification, header_lines: str) -> None:
        held = await self._session.connected()
        timeout_seconds = self._settings.request_timeout_seconds
        try:
            await self._attempts.send(notification.encoded(), held, header_lines, timeout_seconds)
        except BridgeError as error:
            self._session.note_failure(held, error)
            raise


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, data={"outcome": "not_sent", "retryable": True})
