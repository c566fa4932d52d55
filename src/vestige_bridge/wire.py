"""The multiplexer put to work: attempts at exchanges, and making upstream forget one.

The law of this room: every reply on the session is read to its end and never waits for a client, because any of
them may carry what belongs to another exchange.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final, Protocol

from vestige_bridge.deadlines import Deadlines
from vestige_bridge.errors import (
    BridgeError,
    InvalidMessage,
    UpstreamDisconnected,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from vestige_bridge.exchange import Exchange
from vestige_bridge.jsonrpc import build_ping
from vestige_bridge.lane import Lane
from vestige_bridge.lifecycle import HeldSession
from vestige_bridge.messages import Notification
from vestige_bridge.modern import LEGACY_VERSIONS
from vestige_bridge.multiplexer import Answer, Caller, Multiplexer, Progress, Reply
from vestige_bridge.pass_through import ClientHeldSession
from vestige_bridge.tasks import Tasks
from vestige_bridge.upstream import Upstream

log = logging.getLogger(__name__)

LINGER_SECONDS: Final = 5.0
"""How long a stream may stay open after the exchange that it was opened for has ended."""

FORGET_SECONDS: Final = 300.0
"""How long upstream may take to forget a request: a server that is busy reads nothing meanwhile."""

_SERVER_DIED: Final = {"code": -32603.0, "message": "MCP server process failed"}
"""What supergateway answers when the process of its MCP server ended; no answer of that server's."""


class Observer(Protocol):
    """Who is told what happens on the wire."""

    def answered(self) -> None:
        """An answer has come."""

    def attempt_failed(self, exchange: Exchange, held: HeldSession, error: BridgeError) -> None:
        """An attempt has ended, and the exchange has neither its answer nor another end."""

    def session_opened(self, session_id: str) -> None:
        """The head of a reply names a new session; its answer may take long."""

    def server_died(self, held: HeldSession) -> None:
        """The process behind a session has ended."""

    def notified(self, notification: Notification) -> None:
        """A notification has come that belongs to no exchange."""


class Wire:
    """What travels between the bridge and upstream.

    Parameters:
        upstream: the MCP endpoint.
        tasks: owner of the replies to upstream's own requests.
        observer: who is told what happens.
    """

    def __init__(self, upstream: Upstream, tasks: Tasks, observer: Observer) -> None:
        self._upstream = upstream
        self._tasks = tasks
        self._observer = observer
        self._multiplexer: Multiplexer[Exchange] = Multiplexer()
        self._attempts: dict[Exchange, _Attempt] = {}
        self._lingering = Deadlines(LINGER_SECONDS, self.stop_reading)

    def open(self, exchange: Exchange) -> None:
        """Takes an exchange in, so that its client can cancel it."""
        self._router(exchange.own).open(exchange)

    def close(self, exchange: Exchange) -> None:
        """Lets an ended exchange go; the reply to its attempt is read on, for the others, but not for long."""
        self._router(exchange.own).close(exchange)
        attempt = self._attempts.get(exchange)
        # What is no stream is at its end when it is handed out.
        if attempt is not None and attempt.lane.streaming:
            self._lingering.start(exchange)

    def find(self, caller: Caller, notification: Notification, own: ClientHeldSession | None = None) -> Exchange | None:
        """The exchange that a ``notifications/cancelled`` means, if exactly one is meant."""
        return self._router(own).find(caller, notification)

    def under_way(self, exchange: Exchange) -> HeldSession | None:
        """The session on which an attempt at the exchange is being made."""
        attempt = self._attempts.get(exchange)
        return None if attempt is None else attempt.held

    def attempt_now(self, exchange: Exchange, held: HeldSession) -> bool:
        """Sends the request if a connection is free; returns whether it did."""
        lane = self._upstream.take_lane()
        if lane is not None:
            self._begin(exchange, held, lane)
        return lane is not None

    async def attempt(self, exchange: Exchange, held: HeldSession) -> None:
        """Sends the request, on a new connection if none is free.

        Errors:
            UpstreamConnectError: there is no connection; nothing was sent.
        """
        lane = self._upstream.take_lane() or await self._upstream.open_lane()
        if exchange.ended:
            return self._upstream.free(lane)
        self._begin(exchange, held, lane)

    def stop_reading(self, exchange: Exchange) -> None:
        """Ends an attempt whose exchange has ended, and closes its connection."""
        attempt = self._attempts.get(exchange)
        if attempt is not None:
            attempt.lane.cut(UpstreamDisconnected("The exchange had ended and its reply had not."))

    async def stop_reading_later(self, exchange: Exchange) -> None:
        """Reads an attempt whose exchange has ended for as long again as that might have taken."""
        await asyncio.sleep(exchange.timeout_seconds)
        self.stop_reading(exchange)

    async def forget(self, exchange: Exchange, wire_id: int, held: HeldSession, cancelled: bytes) -> None:
        """Tells upstream that a request was cancelled, and makes it stop waiting for that answer.

        A cancelled request gets no answer, and supergateway would count it as pending for ever: it sends the
        notifications of the whole session to the stream of its oldest pending request. A ``ping`` under the same id
        is answered at once, and with that answer the id is settled. A server that finds the cancellation and that
        ``ping`` in one read takes the one for the other's; so another ``ping`` goes between them, whose answer shows
        that the cancellation was read. Until then the stream of the request is read on, however long that takes: what
        it brings belongs to others.
        """
        self._lingering.stop(exchange)
        # An id that is nobody's: on the held session ids are positive numbers, on a client's own its client's.
        unused = str(-wire_id) if exchange.own is None else f'"vestige-bridge-{wire_id}"'
        read, settled = build_ping(unused), build_ping(exchange.spelled_wire_id)
        self._router(held).hold(exchange)
        try:
            async with asyncio.timeout(FORGET_SECONDS):
                for message in (cancelled, read, settled):
                    await self.send(message, held, exchange.headers, FORGET_SECONDS)
        except (BridgeError, TimeoutError) as error:
            log.debug("Upstream could not be told of a cancelled request: %s", error)
        finally:
            self._router(held).release(exchange)

    async def send(self, message: bytes, held: HeldSession, headers: str, timeout_seconds: float) -> None:
        """Sends a message that waits for no answer of its own, and hands out whatever comes in return.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: it was not taken.
        """
        lane = self._upstream.take_lane() or await self._upstream.open_lane()
        delivery = _Delivery(self, held)
        self._upstream.send(lane, message, held.header_lines + headers, delivery)
        try:
            async with asyncio.timeout(timeout_seconds):
                failure = await delivery.over
        except BaseException as error:
            lane.cut(UpstreamDisconnected("Nobody waits for this reply any more."))
            if isinstance(error, TimeoutError):
                raise UpstreamTimeout("The MCP endpoint did not take a message in time.") from error
            raise
        if failure is not None:
            raise failure

    async def listen(self, held: HeldSession) -> None:
        """Reads the session's own stream, which brings what comes when no request is in flight, until it ends.

        Errors:
            SessionLost, UpstreamError: there is no such stream, or it was cut.
        """
        async with self._upstream.get(held.headers) as stream:
            async for message in stream.messages():
                self.deliver(message, held)

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
            raise UpstreamProtocolError(
                "The MCP endpoint answered something that is not MCP.", detail=error.message
            ) from error
        if isinstance(routed, Answer):
            if routed.response.failed and routed.response.error == _SERVER_DIED:
                self._cut(routed.call, held)
            else:
                routed.call.answer(routed.response, routed.data)
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

    def attempt_over(self, attempt: _Attempt, failure: BridgeError | None) -> None:
        """Takes note that the reply to an attempt has ended."""
        exchange = attempt.exchange
        del self._attempts[exchange]
        self._lingering.stop(exchange)
        router = self._router(attempt.held)
        router.release(exchange)
        if exchange.ended:
            return
        router.withdraw(exchange)
        if failure is None:
            failure = (
                UpstreamDisconnected("The MCP endpoint ended its stream before the answer.")
                if exchange.streamed
                else UpstreamProtocolError("The MCP endpoint gave no answer to the request.")
            )
        exchange.sent = failure.sent or attempt.sent_before
        self._observer.attempt_failed(exchange, attempt.held, failure)

    def _begin(self, exchange: Exchange, held: HeldSession, lane: Lane) -> None:
        attempt = self._attempts[exchange] = _Attempt(self, exchange, held, lane)
        exchange.sent = True
        message = self._router(held).assign(exchange)
        self._upstream.send(lane, message, held.header_lines + exchange.headers, attempt)

    def _router(self, held: HeldSession | None) -> Multiplexer[Exchange]:
        """Who says whose the messages of a session are: a client's own session has a router of its own."""
        return held.router if isinstance(held, ClientHeldSession) else self._multiplexer

    def _cut(self, exchange: Exchange, held: HeldSession) -> None:
        """Ends the attempt at an exchange whose answer will not come, because nobody is left to give it."""
        self._observer.server_died(held)
        attempt = self._attempts.get(exchange)
        if attempt is not None:
            attempt.lane.cut(UpstreamDisconnected("The MCP server process ended before its answer."))


class _Attempt:
    """One attempt at an exchange: the receiver of the reply to it."""

    __slots__ = ("_wire", "exchange", "held", "lane", "sent_before")

    def __init__(self, wire: Wire, exchange: Exchange, held: HeldSession, lane: Lane) -> None:
        self._wire = wire
        self.exchange = exchange
        self.held = held
        self.lane = lane
        self.sent_before = exchange.sent

    def begin(self, *, streamed: bool, session_id: str | None) -> None:
        self.exchange.streamed = streamed
        self.exchange.opened_session_id = session_id
        if session_id is not None and self.held.session_id is None:
            self._wire.session_opened(self.exchange, session_id)

    def take(self, data: bytes) -> None:
        self._wire.deliver(data, self.held, self.exchange)

    def end(self, failure: BridgeError | None) -> None:
        self._wire.attempt_over(self, failure)


class _Delivery:
    """The receiver of what comes in return for a message that waits for no answer of its own."""

    def __init__(self, wire: Wire, held: HeldSession) -> None:
        self._wire = wire
        self._held = held
        self.over: asyncio.Future[BridgeError | None] = asyncio.get_running_loop().create_future()

    def begin(self, *, streamed: bool, session_id: str | None) -> None:
        pass

    def take(self, data: bytes) -> None:
        self._wire.deliver(data, self._held)

    def end(self, failure: BridgeError | None) -> None:
        if not self.over.done():
            self.over.set_result(failure)
