"""Attempts at exchanges, and how the bridge makes upstream release the id of a cancelled request.

Invariant: every reply on the session is read to its end and never waits for a client, because a reply may contain
messages of other exchanges.
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
"""Maximum number of requests that upstream is releasing; for one more, the connection of the oldest is closed."""

RESUME_SECONDS: Final = 1.0
"""How long to wait before a stream is resumed, unless upstream specified a time."""

SHORTEST_RESUME_SECONDS: Final = 0.05
LONGEST_RESUME_SECONDS: Final = 30.0


class Observer(NamedTuple):
    """Callbacks for events of a session, as opposed to those of one exchange.

    Attributes:
        answered: an answer came on the shared session.
        session_opened: the head of a reply names a new session; its answer may take long.
        server_died: the process behind a session has ended.
        notified: a notification came that belongs to no exchange.
    """

    answered: Callable[[], None]
    session_opened: Callable[[str], None]
    server_died: Callable[[HeldSession], None]
    notified: Callable[[Notification], None]


class Attempts:
    """The current attempts, on the shared session and on clients' own sessions.

    Parameters:
        upstream: the MCP server.
        tasks: owner of the replies to upstream's own requests.
        observer: callbacks for session events.
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
        """The number of requests that upstream is releasing."""
        return len(self._forgetting)

    def open(self, exchange: Exchange) -> None:
        """Registers an exchange, so that its client can cancel it."""
        self._router(exchange.own).open(exchange)

    def close(self, exchange: Exchange) -> None:
        """Removes an ended exchange; its reply is still read for the others, for ``LINGER_SECONDS`` at most."""
        self._router(exchange.own).close(exchange)
        attempt = self._by_exchange.get(exchange)
        # If the answer came on another stream, the end of this reply may never come.
        if attempt is not None and attempt.connection.unfinished:
            self._lingering.start(exchange)

    def find(self, caller: Caller, notification: Notification, own: ClientHeldSession | None = None) -> Exchange | None:
        """The exchange that a ``notifications/cancelled`` refers to, if it is exactly one."""
        return self._router(own).find(caller, notification)

    def session_of(self, exchange: Exchange) -> HeldSession | None:
        """The session of the current attempt at the exchange."""
        attempt = self._by_exchange.get(exchange)
        return None if attempt is None else attempt.held

    def attempt_now(self, exchange: Exchange, held: HeldSession) -> bool:
        """Sends the request if a connection is free; returns whether it was sent."""
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
            attempt.cut(UpstreamDisconnected("The exchange ended before its reply."))

    async def stop_reading_later(self, exchange: Exchange) -> None:
        """Stops reading an attempt of an ended exchange after another full request timeout."""
        await asyncio.sleep(exchange.timeout_seconds)
        self.stop_reading(exchange)

    def forget(self, exchange: Exchange, cancelled: bytes | None, timeout_seconds: float) -> None:
        """Makes upstream release the id of an exchange that ended without its answer during an attempt.

        ``forgotten`` of the exchange's owner is called when upstream has answered or released it, or after the timeout.
        Until then the reply is read; after that its connection is closed.

        Parameters:
            exchange: the exchange.
            cancelled: the ``notifications/cancelled`` for it; ``None`` to wait for the end of its reply instead.
            timeout_seconds: the time limit; a busy server reads nothing meanwhile.
        """
        attempt, upstream_id = self._by_exchange[exchange], exchange.upstream_id
        if upstream_id is None:
            raise RuntimeError("an exchange has an id during an attempt")
        if len(self._forgetting) >= MAX_FORGETTING:
            oldest, given_up = next(iter(self._forgetting.items()))
            given_up.task.cancel()
            self._end_forgetting(oldest)
        self._lingering.stop(exchange)
        work = self._forget(exchange, upstream_id, attempt.held, cancelled, timeout_seconds)
        forgetting = self._forgetting[exchange] = _Forgetting(attempt.held, self._tasks.start(work))
        forgetting.notified = cancelled is not None
        forgetting.task.add_done_callback(lambda _: self._end_forgetting(exchange))

    def leave(self, held: HeldSession) -> None:
        """Stops this work on a lost session: its end also ends the requests on it."""
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
        """Sends upstream a cancellation, and makes supergateway stop waiting for the answer.

        A cancelled request gets no answer, and supergateway would count it as pending for ever: it sends the
        notifications of the whole session to the stream of its oldest pending request. A ``ping`` with the same id is
        answered at once, and that answer settles the id. A server that finds the cancellation and that ``ping`` in one
        read cancels the ``ping``. Another ``ping`` is therefore sent between them; its answer shows that the
        cancellation was read. Until then the stream of the request is read without a time limit of its own: its
        messages belong to other exchanges.
        """
        # An id that no request has: on the shared session ids are positive numbers, on its own the client chooses them.
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
                    log.debug("A cancellation could not be sent to upstream: %s", error)
                    if isinstance(error, SessionLost) or exchange not in self._by_exchange:
                        return
                    # The end of its reply shows that it has ended.
                    self._forgetting[exchange].notified = False
                    await asyncio.Event().wait()
        except TimeoutError:
            log.debug("Upstream did not release a cancelled request in time")
        finally:
            self._router(held).release(exchange)

    async def send(self, message: bytes, held: HeldSession, headers: str, timeout_seconds: float) -> None:
        """Sends a message that expects no answer, and delivers the messages of the reply.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: upstream did not accept it.
        """
        connection = self._upstream.take_connection() or await self._upstream.open_connection()
        delivery = _Delivery(self, held)
        self._upstream.send(connection, message, held.header_lines + headers, delivery)
        try:
            async with asyncio.timeout(timeout_seconds):
                failure = await delivery.over
        except BaseException as error:
            connection.cut(UpstreamDisconnected("The bridge no longer waits for this reply."))
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout("Upstream did not accept a message in time.") from error
            raise
        if failure is not None:
            raise failure

    async def listen(self, held: HeldSession, position: sse.Position | None) -> sse.Position | None:
        """Reads the session's own stream until it ends; it carries messages that come while no request is in flight.

        Parameters:
            held: the session.
            position: where to resume the stream; ``None`` for a new one.

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
        """Delivers a message from upstream to its recipient.

        Parameters:
            data: the bytes of the message.
            held: the session that it came on.
            arrived_on: the exchange on whose stream it came, if any.

        Errors:
            UpstreamProtocolError: it is not a message.
        """
        try:
            routed = self._router(held).route(data, arrived_on)
        except InvalidMessage as error:
            raise UpstreamProtocolError("Upstream sent something that is not MCP.", detail=error.message) from error
        if isinstance(routed, Answer):
            if routed.response.failed and routed.response.error == SERVER_DIED:
                self._cut(routed.call, held)
            else:
                routed.call.answer(routed.data)
                # An answer on a client's own session does not show that the shared session works.
                if routed.call.own is None:
                    self._observer.answered()
        elif isinstance(routed, Progress):
            routed.call.take_progress(routed.data)
        elif isinstance(routed, Reply):
            self._tasks.start(self.send(routed.data, held, "", LINGER_SECONDS))
        elif routed.notification is not None:
            self._observer.notified(routed.notification)

    def session_opened(self, exchange: Exchange, session_id: str) -> None:
        """Reports a session as soon as its id is known; ends it if its exchange has already ended."""
        if exchange.ended:
            version = exchange.request.params.get("protocolVersion")
            asked = version.value if version is not None and version.value in LEGACY_VERSIONS else None
            self._tasks.start(self._upstream.delete(HeldSession(session_id, asked).headers))
        elif exchange.own is None:
            self._observer.session_opened(session_id)
        else:
            exchange.wake()

    def attempt_over(self, attempt: _Attempt, failure: BridgeError | None, position: sse.Position | None) -> None:
        """Ends an attempt, or resumes its reply."""
        exchange = attempt.exchange
        if position is not None and attempt.resumable(failure) and self._waited_for(exchange):
            attempt.resuming = self._tasks.start(self._resume(attempt, position))
            attempt.resuming.add_done_callback(lambda task: self._resumed(attempt, task))
            return
        del self._by_exchange[exchange]
        self._lingering.stop(exchange)
        router = self._router(attempt.held)
        # The server still runs a request that it received, and sends that request's messages on another stream.
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
        """Whether an answer is still expected, by the client or to show that upstream has run the request."""
        return not exchange.ended or exchange in self._forgetting

    async def _resume(self, attempt: _Attempt, position: sse.Position) -> BridgeError | None:
        """Reads the rest of a reply that upstream closed or that was interrupted (MCP 2025-11-25, resumability)."""
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
        """Reads the next part of a reply; returns the position after it, or why there is none."""
        try:
            async with self._upstream.get(attempt.held.headers, at.event_id) as stream:
                try:
                    async for message in stream.messages():
                        self.deliver(message, attempt.held, attempt.exchange)
                        if attempt.exchange.ended and attempt.exchange not in self._forgetting:
                            break
                except UpstreamDisconnected as error:
                    log.debug("A resumed stream was interrupted: %s", error)
                return stream.position or at, None
        except UpstreamDisconnected as error:
            log.debug("A stream was interrupted before it was resumed: %s", error)
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
        """The router of the session's messages: each client's own session has its own."""
        return held.router if isinstance(held, ClientHeldSession) else self._multiplexer

    def _cut(self, exchange: Exchange, held: HeldSession) -> None:
        """Ends the attempt at an exchange whose answer cannot come, because the server process has ended."""
        self._observer.server_died(held)
        attempt = self._by_exchange.get(exchange)
        if attempt is not None:
            attempt.cut(UpstreamDisconnected("The MCP server process ended before its answer."))


class _Forgetting:
    """A request whose id upstream is releasing."""

    __slots__ = ("held", "notified", "task")

    def __init__(self, held: HeldSession, task: asyncio.Task[None]) -> None:
        self.held = held
        self.task = task
        self.notified = True

    def reply_ended(self, *, whole: bool) -> None:
        """Ends the wait if the reply was complete, or the cancellation could not be sent."""
        if whole or not self.notified:
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
        """Whether the reply was only closed or interrupted, and not by the bridge."""
        return not self._given_up and (failure is None or isinstance(failure, UpstreamDisconnected))

    def cut(self, failure: BridgeError) -> None:
        """Ends the attempt with an error, and closes its connection."""
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
    """The receiver of the reply to a message that expects no answer."""

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
