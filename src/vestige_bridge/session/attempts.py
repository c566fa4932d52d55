"""Attempts at exchanges, and how upstream is made to forget one.

Invariant: every reply on the session is read to its end and never waits for a client, because any of
them may carry what belongs to another exchange.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from vestige_bridge.concurrency import Deadlines, Tasks
from vestige_bridge.errors import (
    BridgeError,
    InvalidMessage,
    SessionLost,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from vestige_bridge.http import sse
from vestige_bridge.jsonrpc.builders import build_ping
from vestige_bridge.jsonrpc.messages import Notification
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.multiplexer import Answer, Caller, Multiplexer, Progress, Reply
from vestige_bridge.mcp.pass_through import ClientHeldSession
from vestige_bridge.mcp.versions import LEGACY_VERSIONS
from vestige_bridge.session.exchange import Exchange
from vestige_bridge.upstream.client import Upstream
from vestige_bridge.upstream.connection import UpstreamConnection
from vestige_bridge.upstream.quirks import SERVER_DIED

log = logging.getLogger(__name__)

LINGER_SECONDS: Final = 5.0
"""How long a stream may stay open after the exchange that it was opened for has ended."""

MAX_FORGETTING: Final = 256
"""How many requests upstream may be forgetting at a time; for one more the connection of the oldest is cut."""

RESUME_SECONDS: Final = 1.0
"""How long to wait before a stream is resumed, unless upstream said how long."""

SHORTEST_RESUME_SECONDS: Final = 0.05
LONGEST_RESUME_SECONDS: Final = 30.0


class Observer(NamedTuple):
    """What is called for what concerns a session and not one exchange.

    Attributes:
        answered: an answer has come on the held session.
        session_opened: the head of a reply names a new session; its answer may take long.
        server_died: the process behind a session has ended.
        notified: a notification has come that belongs to no exchange.
    """

    answered: Callable[[], None]
    session_opened: Callable[[str], None]
    server_died: Callable[[HeldSession], None]
    notified: Callable[[Notification], None]


class Attempts:
    """The attempts that are being made, on the held session and on clients' own sessions.

    Parameters:
        upstream: the MCP server.
        tasks: owner of the replies to upstream's own requests.
        observer: who is told what happens.
    """

    def __init__(self, upstream: Upstream, tasks: Tasks, observer: Observer) -> None:
        self._upstream = upstream
        self._tasks = tasks
        self._observer = observer
        self._multiplexer: Multiplexer[Exchange] = Multiplexer()
        self._by_exchange: dict[Exchange, _Attempt] = {}
        self._forgetting: dict[Exchange, _Forgetting] = {}
        self._lingering = Deadlines(LINGER_SECONDS, self.stop_reading)

    @property
    def forgetting(self) -> int:
        """How many requests upstream is being told to forget."""
        return len(self._forgetting)

    def open(self, exchange: Exchange) -> None:
        """Takes an exchange in, so that its client can cancel it."""
        self._router(exchange.own).open(exchange)

    def close(self, exchange: Exchange) -> None:
        """Lets an ended exchange go; the reply to its attempt is read on, for the others, but not for long."""
        self._router(exchange.own).close(exchange)
        attempt = self._by_exchange.get(exchange)
        # An answer that came on another stream leaves a reply that may never come.
        if attempt is not None and attempt.connection.unfinished:
            self._lingering.start(exchange)

    def find(self, caller: Caller, notification: Notification, own: ClientHeldSession | None = None) -> Exchange | None:
        """The exchange that a ``notifications/cancelled`` means, if exactly one is meant."""
        return self._router(own).find(caller, notification)

    def under_way(self, exchange: Exchange) -> HeldSession | None:
        """The session on which an attempt at the exchange is being made."""
        attempt = self._by_exchange.get(exchange)
        return None if attempt is None else attempt.held

    def attempt_now(self, exchange: Exchange, held: HeldSession) -> bool:
        """Sends the request if a connection is free; returns whether it did."""
        connection = self._upstream.take_connection()
        if connection is not None:
            self._begin(exchange, held, connection)
        return connection is not None

    async def attempt(self, exchange: Exchange, held: HeldSession) -> None:
        """Sends the request, on a new connection if none is free.

        Errors:
            UpstreamConnectError: there is no connection; nothing was sent.
        """
        connection = self._upstream.take_connection() or await self._upstream.open_connection()
        if exchange.ended:
            return self._upstream.free(connection)
        self._begin(exchange, held, connection)

    def stop_reading(self, exchange: Exchange) -> None:
        """Ends an attempt whose exchange has ended, and closes its connection."""
        attempt = self._by_exchange.get(exchange)
        if attempt is not None:
            attempt.cut(UpstreamDisconnected("The exchange had ended and its reply had not."))

    async def stop_reading_later(self, exchange: Exchange) -> None:
        """Reads an attempt whose exchange has ended for as long again as that might have taken."""
        await asyncio.sleep(exchange.timeout_seconds)
        self.stop_reading(exchange)

    def forget(self, exchange: Exchange, cancelled: bytes | None, timeout_seconds: float) -> None:
        """Has upstream forget an exchange that is under way and has ended without its answer.

        The exchange's owner is told when upstream has answered or forgotten it, or the time is over. Until then the
        reply is read on; after that its connection is cut.

        Parameters:
            exchange: the exchange.
            cancelled: the ``notifications/cancelled`` for it; ``None`` to wait for the end of its reply instead.
            timeout_seconds: how long upstream has: a server that is busy reads nothing meanwhile.
        """
        attempt, upstream_id = self._by_exchange[exchange], exchange.upstream_id
        if upstream_id is None:
            raise RuntimeError("an exchange under way has an id")
        if len(self._forgetting) >= MAX_FORGETTING:
            oldest, given_up = next(iter(self._forgetting.items()))
            given_up.task.cancel()
            self._end_forgetting(oldest)
        self._lingering.stop(exchange)
        work = self._forget(exchange, upstream_id, attempt.held, cancelled, timeout_seconds)
        forgetting = self._forgetting[exchange] = _Forgetting(attempt.held, self._tasks.start(work))
        forgetting.told = cancelled is not None
        forgetting.task.add_done_callback(lambda _: self._end_forgetting(exchange))

    def leave(self, held: HeldSession) -> None:
        """Forgets nothing more on a session that was given up: it ends, and with it what runs there."""
        for forgetting in list(self._forgetting.values()):
            if forgetting.held is held:
                forgetting.task.cancel()

    def _end_forgetting(self, exchange: Exchange) -> None:
        if self._forgetting.pop(exchange, None) is not None:
            self.stop_reading(exchange)
            exchange.owner.forgotten(exchange)

    async def _forget(
        self, exchange: Exchange, upstream_id: int, held: HeldSession, cancelled: bytes | None, timeout_seconds: float
    ) -> None:
        """Tells upstream that a request was cancelled, and makes it stop waiting for that answer.

        A cancelled request gets no answer, and supergateway would count it as pending for ever: it sends the
        notifications of the whole session to the stream of its oldest pending request. A ``ping`` under the same id
        is answered at once, and with that answer the id is settled. A server that finds the cancellation and that
        ``ping`` in one read takes the one for the other's; so another ``ping`` goes between them, whose answer shows
        that the cancellation was read. Until then the stream of the request is read on, however long that takes: what
        it brings belongs to others.
        """
        # An id that is nobody's: on the held session ids are positive numbers, on a client's own its client's.
        unused = str(-upstream_id) if exchange.own is None else f'"vestige-bridge-{upstream_id}"'
        read, settled = build_ping(unused), build_ping(exchange.spelled_upstream_id)
        self._router(held).hold(exchange)
        try:
            async with asyncio.timeout(timeout_seconds):
                if cancelled is None:
                    await asyncio.Event().wait()
                    return
                try:
                    for message in (cancelled, read, settled):
                        await self.send(message, held, exchange.header_lines, timeout_seconds)
                except (UpstreamError, SessionLost) as error:
                    log.debug("Upstream could not be told of a cancelled request: %s", error)
                    if isinstance(error, SessionLost) or exchange not in self._by_exchange:
                        return
                    # Its reply shows when it has run to its end.
                    self._forgetting[exchange].told = False
                    await asyncio.Event().wait()
        except TimeoutError:
            log.debug("Upstream has not forgotten a cancelled request in time")
        finally:
            self._router(held).release(exchange)

    async def send(self, message: bytes, held: HeldSession, headers: str, timeout_seconds: float) -> None:
        """Sends a message that waits for no answer of its own, and hands out whatever comes in return.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: it was not taken.
        """
        connection = self._upstream.take_connection() or await self._upstream.open_connection()
        delivery = _Delivery(self, held)
        self._upstream.send(connection, message, held.header_lines + headers, delivery)
        try:
            async with asyncio.timeout(timeout_seconds):
                failure = await delivery.over
        except BaseException as error:
            connection.cut(UpstreamDisconnected("Nobody waits for this reply any more."))
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout("Upstream did not take a message in time.") from error
            raise
        if failure is not None:
            raise failure

    async def listen(self, held: HeldSession, position: sse.Position | None) -> sse.Position | None:
        """Reads the session's own stream, which brings what comes when no request is in flight, until it ends.

        Parameters:
            held: the session.
            position: where the stream is resumed; ``None`` for a new one.

        Returns:
            Where it can be resumed, if it can.

        Errors:
            SessionLost, UpstreamError: there is no such stream, or it was cut.
        """
        last_event_id = None if position is None else position.event_id
        async with self._upstream.get(held.headers, last_event_id) as stream:
            async for message in stream.messages():
                self.deliver(message, held)
            return stream.position or position

    def deliver(self, data: bytes, held: HeldSession, arrived_on: Exchange | None = None) -> None:
        """Hands a message of upstream's to whom it belongs.

        Parameters:
            data: the bytes of the message.
            held: the session that it came on.
            arrived_on: the exchange on whose stream it came, if it was one's.

        Errors:
            UpstreamProtocolError: it is no message.
        """
        try:
            routed = self._router(held).route(data, arrived_on)
        except InvalidMessage as error:
            raise UpstreamProtocolError("Upstream answered something that is not MCP.", detail=error.message) from error
        if isinstance(routed, Answer):
            if routed.response.failed and routed.response.error == SERVER_DIED:
                self._cut(routed.call, held)
            else:
                routed.call.answer(routed.data)
                # An answer on a client's own session says nothing of the held one.
                if routed.call.own is None:
                    self._observer.answered()
        elif isinstance(routed, Progress):
            routed.call.take_progress(routed.data)
        elif isinstance(routed, Reply):
            self._tasks.start(self.send(routed.data, held, "", LINGER_SECONDS))
        elif routed.notification is not None:
            self._observer.notified(routed.notification)

    def session_opened(self, exchange: Exchange, session_id: str) -> None:
        """Tells of a session as soon as it is there; ends one that nobody waits for any more."""
        if exchange.ended:
            version = exchange.request.params.get("protocolVersion")
            asked = version.value if version is not None and version.value in LEGACY_VERSIONS else None
            self._tasks.start(self._upstream.delete(HeldSession(session_id, asked).headers))
        elif exchange.own is None:
            self._observer.session_opened(session_id)
        else:
            exchange.wake()

    def attempt_over(self, attempt: _Attempt, failure: BridgeError | None, position: sse.Position | None) -> None:
        """Takes note that the reply to an attempt has ended."""
        exchange = attempt.exchange
        if position is not None and attempt.resumable(failure) and self._waited_for(exchange):
            attempt.resuming = self._tasks.start(self._resume(attempt, position))
            attempt.resuming.add_done_callback(lambda task: self._resumed(attempt, task))
            return
        del self._by_exchange[exchange]
        self._lingering.stop(exchange)
        router = self._router(attempt.held)
        # A server goes on with what it was sent, and what it tells of it comes on another stream.
        router.release(exchange, settled=failure is None or not failure.sent)
        if exchange.ended:
            if self._forgetting and (forgetting := self._forgetting.get(exchange)) is not None:
                forgetting.reply_ended(whole=failure is None)
            return
        router.withdraw(exchange)
        if failure is None:
            failure = (
                UpstreamDisconnected("Upstream ended its stream before the answer.")
                if exchange.streamed
                else UpstreamProtocolError("Upstream gave no answer to the request.")
            )
        exchange.sent = failure.sent or attempt.sent_before
        exchange.owner.attempt_failed(exchange, attempt.held, failure)

    def _waited_for(self, exchange: Exchange) -> bool:
        """Whether an answer is still to come: to its client, or to show that upstream has run it."""
        return not exchange.ended or exchange in self._forgetting

    async def _resume(self, attempt: _Attempt, position: sse.Position) -> BridgeError | None:
        """Reads the rest of a reply that upstream closed, or that was cut (MCP 2025-11-25, resumability)."""
        failure: BridgeError | None = None
        while failure is None and self._waited_for(attempt.exchange):
            seconds = RESUME_SECONDS if position.retry_seconds is None else position.retry_seconds
            await asyncio.sleep(min(max(seconds, SHORTEST_RESUME_SECONDS), LONGEST_RESUME_SECONDS))
            position, failure = await self._read_on(attempt, position)
        return failure

    def _resumed(self, attempt: _Attempt, task: asyncio.Task[BridgeError | None]) -> None:
        attempt.resuming = None
        failed = task.cancelled() or task.exception() is not None
        self.attempt_over(attempt, None if failed else task.result(), None)

    async def _read_on(self, attempt: _Attempt, at: sse.Position) -> tuple[sse.Position, BridgeError | None]:
        """Reads one more part of a reply; returns where the next one begins, or why there is none."""
        try:
            async with self._upstream.get(attempt.held.headers, at.event_id) as stream:
                try:
                    async for message in stream.messages():
                        self.deliver(message, attempt.held, attempt.exchange)
                        if attempt.exchange.ended and attempt.exchange not in self._forgetting:
                            break
                except UpstreamDisconnected as error:
                    log.debug("A resumed stream was cut: %s", error)
                return stream.position or at, None
        except UpstreamDisconnected as error:
            log.debug("A stream was cut before it was resumed: %s", error)
            return at, None
        except (UpstreamError, SessionLost) as error:
            return at, UpstreamDisconnected(
                "A stream that upstream had closed could not be resumed.", detail=str(error)
            )

    def _begin(self, exchange: Exchange, held: HeldSession, connection: UpstreamConnection) -> None:
        attempt = self._by_exchange[exchange] = _Attempt(self, exchange, held, connection)
        exchange.sent = True
        exchange.sent_at = time.perf_counter()
        message = self._router(held).assign(exchange)
        self._upstream.send(connection, message, held.header_lines + exchange.header_lines, attempt)

    def _router(self, held: HeldSession | None) -> Multiplexer[Exchange]:
        """Who says whose the messages of a session are: a client's own session has a router of its own."""
        return held.router if isinstance(held, ClientHeldSession) else self._multiplexer

    def _cut(self, exchange: Exchange, held: HeldSession) -> None:
        """Ends the attempt at an exchange whose answer will not come, because nobody is left to give it."""
        self._observer.server_died(held)
        attempt = self._by_exchange.get(exchange)
        if attempt is not None:
            attempt.cut(UpstreamDisconnected("The MCP server process ended before its answer."))


class _Forgetting:
    """A request that upstream is being told to forget."""

    __slots__ = ("held", "task", "told")

    def __init__(self, held: HeldSession, task: asyncio.Task[None]) -> None:
        self.held = held
        self.task = task
        self.told = True

    def reply_ended(self, *, whole: bool) -> None:
        """Ends it if nothing more can be learnt: the reply was whole, or cut, and upstream could not be told."""
        if whole or not self.told:
            self.task.cancel()


class _Attempt:
    """One attempt at an exchange: the receiver of the reply to it."""

    __slots__ = ("_attempts", "_given_up", "connection", "exchange", "held", "resuming", "sent_before")

    def __init__(
        self, attempts: Attempts, exchange: Exchange, held: HeldSession, connection: UpstreamConnection
    ) -> None:
        self._attempts = attempts
        self.exchange = exchange
        self.held = held
        self.connection = connection
        self.sent_before = exchange.sent
        self.resuming: asyncio.Task[BridgeError | None] | None = None
        self._given_up = False

    def resumable(self, failure: BridgeError | None) -> bool:
        """Whether the reply was only closed or cut, and not by the bridge."""
        return not self._given_up and (failure is None or isinstance(failure, UpstreamDisconnected))

    def cut(self, failure: BridgeError) -> None:
        """Ends the attempt by an error, and its connection with it."""
        self._given_up = True
        if self.resuming is not None:
            self.resuming.cancel()
        else:
            self.connection.cut(failure)

    def begin(self, *, streamed: bool, session_id: str | None) -> None:
        self.exchange.streamed = streamed
        self.exchange.opened_session_id = session_id
        if session_id is not None and self.held.session_id is None:
            self._attempts.session_opened(self.exchange, session_id)

    def take(self, data: bytes) -> None:
        self._attempts.deliver(data, self.held, self.exchange)

    def end(self, failure: BridgeError | None, position: sse.Position | None) -> None:
        self._attempts.attempt_over(self, failure, position)


class _Delivery:
    """The receiver of what comes in return for a message that waits for no answer of its own."""

    def __init__(self, attempts: Attempts, held: HeldSession) -> None:
        self._attempts = attempts
        self._held = held
        self.over: asyncio.Future[BridgeError | None] = asyncio.get_running_loop().create_future()

    def begin(self, *, streamed: bool, session_id: str | None) -> None:
        pass

    def take(self, data: bytes) -> None:
        self._attempts.deliver(data, self._held)

    def end(self, failure: BridgeError | None, position: sse.Position | None) -> None:
        if not self.over.done():
            self.over.set_result(failure)
