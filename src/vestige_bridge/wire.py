"""The multiplexer put to work: one attempt at an exchange, and making upstream forget one.

The law of this room: every stream of the session is read to its end and never waits for a client, because any of
them may carry what belongs to another exchange.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

from vestige_bridge.errors import BridgeError, InvalidMessage, UpstreamDisconnected, UpstreamProtocolError
from vestige_bridge.exchange import Exchange
from vestige_bridge.jsonrpc import Notification, build_request
from vestige_bridge.lifecycle import HeldSession
from vestige_bridge.multiplexer import Answer, Caller, Multiplexer, Progress, Reply
from vestige_bridge.tasks import Tasks
from vestige_bridge.upstream import Upstream

log = logging.getLogger(__name__)

LINGER_SECONDS: Final = 5.0
"""How long a stream may stay open after the exchange that it was opened for has ended."""

FORGET_SECONDS: Final = 300.0
"""How long upstream may take to forget a request: a server that is busy reads nothing meanwhile."""

_SERVER_DIED: Final = {"code": -32603.0, "message": "MCP server process failed"}
"""What supergateway answers when the process of its MCP server ended; no answer of that server's."""


class Wire:
    """What travels between the bridge and upstream.

    Parameters:
        upstream: the MCP endpoint.
        tasks: owner of the replies to upstream's own requests.
        on_answer: called for each answer.
        on_server_died: called when the process behind a session has ended.
        on_notification: called with each notification that belongs to no exchange.
    """

    def __init__(
        self,
        upstream: Upstream,
        tasks: Tasks,
        *,
        on_answer: Callable[[], None],
        on_server_died: Callable[[HeldSession], None],
        on_notification: Callable[[Notification], None],
    ) -> None:
        self._upstream = upstream
        self._tasks = tasks
        self._on_answer = on_answer
        self._on_server_died = on_server_died
        self._on_notification = on_notification
        self._multiplexer: Multiplexer[Exchange] = Multiplexer()
        self._under_way: dict[Exchange, tuple[HeldSession, asyncio.Timeout]] = {}
        self._cuts: dict[Exchange, BridgeError] = {}

    def open(self, exchange: Exchange) -> None:
        """Takes an exchange in, so that its client can cancel it."""
        self._multiplexer.open(exchange)

    def close(self, exchange: Exchange) -> None:
        """Lets an ended exchange go; the stream of its attempt is read on, for the others, but not for long."""
        self._multiplexer.close(exchange)
        if exchange in self._under_way:
            self._under_way[exchange][1].reschedule(asyncio.get_running_loop().time() + LINGER_SECONDS)

    def find(self, caller: Caller, notification: Notification) -> Exchange | None:
        """The exchange that a ``notifications/cancelled`` means, if exactly one is meant."""
        return self._multiplexer.find(caller, notification)

    def under_way(self, exchange: Exchange) -> HeldSession | None:
        """The session on which an attempt at the exchange is being made."""
        attempt = self._under_way.get(exchange)
        return None if attempt is None else attempt[0]

    async def attempt(self, exchange: Exchange, held: HeldSession) -> None:
        """Sends the request once and reads its stream to the end, handing out whatever comes on it.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: the exchange did not get its answer; it goes on.
        """
        sent_before, exchange.sent = exchange.sent, True
        body = self._multiplexer.assign(exchange)
        failure: BridgeError = UpstreamDisconnected("The MCP endpoint gave no answer.")
        try:
            async with asyncio.timeout(None) as lingering:
                self._under_way[exchange] = held, lingering
                async with self._upstream.post(body, {**exchange.headers, **held.headers}) as reply:
                    exchange.streamed, exchange.opened_session_id = reply.streamed, reply.session_id
                    async for data in reply.messages():
                        self._deliver(data, held)
                failure = reply.without_answer
        except TimeoutError:
            log.debug("A stream stayed open after its exchange had ended and was closed")
        except BridgeError as error:
            failure = error
        finally:
            del self._under_way[exchange]
            self._multiplexer.withdraw(exchange)
        failure = self._cuts.pop(exchange, failure)
        if exchange.ended:
            return
        if not failure.sent:
            exchange.sent = sent_before
        raise failure

    async def forget(self, exchange: Exchange, wire_id: int, held: HeldSession, cancelled: bytes) -> None:
        """Tells upstream that a request was cancelled, and makes it stop waiting for that answer.

        A cancelled request gets no answer, and supergateway would count it as pending for ever: it sends the
        notifications of the whole session to the stream of its oldest pending request. A ``ping`` under the same id
        is answered at once, and with that answer the id is settled. A server that finds the cancellation and that
        ``ping`` in one read takes the one for the other's; so another ``ping`` goes between them, whose answer shows
        that the cancellation was read. Until then the stream of the request is read on, however long that takes: what
        it brings belongs to others.
        """
        if exchange in self._under_way:
            self._under_way[exchange][1].reschedule(None)
        read, settled = (build_request("ping", request_id=it).encoded() for it in (-wire_id, wire_id))
        try:
            async with asyncio.timeout(FORGET_SECONDS):
                for message in (cancelled, read, settled):
                    await self.send(message, held, exchange.headers)
        except (BridgeError, TimeoutError) as error:
            log.debug("Upstream could not be told of a cancelled request: %s", error)

    async def send(self, data: bytes, held: HeldSession, headers: Mapping[str, str]) -> None:
        """Sends a message that waits for no answer of its own, and hands out whatever comes in return.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: it was not taken.
        """
        async with self._upstream.post(data, {**headers, **held.headers}) as reply:
            async for message in reply.messages():
                self._deliver(message, held)
            if reply.refusal is not None:
                raise reply.refusal

    async def listen(self, held: HeldSession) -> None:
        """Reads the session's own stream, which brings what comes when no request is in flight, until it ends.

        Errors:
            SessionLost, UpstreamError: there is no such stream, or it was cut.
        """
        async with self._upstream.get(held.headers) as reply:
            async for message in reply.messages():
                self._deliver(message, held)
            if reply.refusal is not None:
                raise reply.refusal

    def _deliver(self, data: bytes, held: HeldSession) -> None:
        """Hands a message of upstream's to whom it belongs."""
        try:
            routed = self._multiplexer.route(data)
        except InvalidMessage as error:
            raise UpstreamProtocolError(
                "The MCP endpoint answered something that is not MCP.", detail=error.message
            ) from error
        if isinstance(routed, Progress):
            routed.call.take_progress(routed.data)
        elif isinstance(routed, Reply):
            self._tasks.start(self.send(routed.data, held, {}))
        elif isinstance(routed, Answer):
            if routed.response.error == _SERVER_DIED:
                self._cut(routed.call, held)
            else:
                routed.call.answer(routed.response, routed.data)
                self._on_answer()
        elif routed.notification is not None:
            self._on_notification(routed.notification)

    def _cut(self, exchange: Exchange, held: HeldSession) -> None:
        """Ends the attempt at an exchange whose answer will not come, because nobody is left to give it."""
        self._cuts[exchange] = UpstreamDisconnected("The MCP server process ended before its answer.")
        self._on_server_died(held)
        if exchange in self._under_way:
            self._under_way[exchange][1].reschedule(asyncio.get_running_loop().time())
