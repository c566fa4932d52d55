"""Sends requests: each has an exchange, a deadline, and attempts, until its end.

Invariant: the owner of an exchange is called exactly once at its end. This module does not decide whether or when a
request is sent, or whether it is sent again: the exchange's owner does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from vestige_bridge.concurrency import Deadlines, Tasks
from vestige_bridge.errors import BridgeError, InternalError, UpstreamConnectError, UpstreamTimeout
from vestige_bridge.jsonrpc.builders import build_cancelled, build_request
from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import INITIALIZE
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session.attempts import Attempts
from vestige_bridge.session.exchange import Answered, Exchange, Owner

_BRIDGE = Caller("vestige-bridge")


class Sender:
    """Sends requests, enforces their deadlines, and withdraws them.

    Parameters:
        attempts: makes the attempts.
        tasks: owner of the tasks that wait for a connection.
        forget_seconds: the time limit for upstream to release a request that ended without its answer.
        serial: whether requests must not overlap: then no cancellation is sent, and the end of the reply shows that the
            request has ended. An answer to ``ping`` would not show whether the request still runs.
    """

    def __init__(self, attempts: Attempts, tasks: Tasks, forget_seconds: float, *, serial: bool) -> None:
        self._attempts = attempts
        self._tasks = tasks
        self._forget_seconds = forget_seconds
        self._serial = serial
        self._deadlines: dict[float, Deadlines[Exchange]] = {}
        self._once = Owner(
            repeatable=lambda _: False,
            progressed=self.progressed,
            ended=self.close,
            attempt_failed=lambda exchange, _, error: exchange.fail(error),
            forgotten=lambda _: None,
        )

    def open(self, exchange: Exchange) -> None:
        """Registers an exchange and starts its deadline; sends nothing."""
        self._attempts.open(exchange)
        seconds = exchange.timeout_seconds
        if seconds not in self._deadlines:
            self._deadlines[seconds] = Deadlines(seconds, self._expire)
        self._deadlines[seconds].start(exchange)

    def progressed(self, exchange: Exchange) -> None:
        """Restarts the deadline of an exchange."""
        if not exchange.ended:
            self._deadlines[exchange.timeout_seconds].start(exchange)

    def close(self, exchange: Exchange) -> None:
        """Removes an ended exchange."""
        self._attempts.close(exchange)
        self._deadlines[exchange.timeout_seconds].stop(exchange)

    def send(self, exchange: Exchange, held: HeldSession) -> None:
        """Sends the request at once if a connection is free; otherwise a task waits for one."""
        if exchange.ended:
            return
        try:
            if self._attempts.attempt_now(exchange, held):
                return
        except BridgeError as error:
            return exchange.fail(error)
        exchange.driver = self._tasks.start(self._send_later(exchange, held))

    async def ask(
        self, held: HeldSession, method: str, params: Mapping[str, object] | None, timeout_seconds: float
    ) -> Answered:
        """Sends a request of the bridge's own, once, and waits for its answer.

        Errors:
            BridgeError: there was no answer.
        """
        exchange = self.open_once(build_request(method, params), timeout_seconds)
        self.send(exchange, held)
        return await exchange.result()

    def open_once(self, request: Request, timeout_seconds: float) -> Exchange:
        """Opens the exchange of a request of the bridge's own; it is never sent again."""
        loop = asyncio.get_running_loop()
        exchange = Exchange(
            request, _BRIDGE, header_lines="", timeout_seconds=timeout_seconds, owner=self._once, loop=loop
        )
        self.open(exchange)
        return exchange

    def withdraw(self, exchange: Exchange, error: BridgeError, cancelled: bytes) -> None:
        """Ends an exchange without an answer, and cancels it upstream; ``forgetting`` is set if that takes time.

        Parameters:
            exchange: the exchange.
            error: the error that ends it.
            cancelled: the ``notifications/cancelled`` for upstream.
        """
        under_way = self._attempts.session_of(exchange) is not None
        # initialize must not be cancelled (MCP 2025-11-25, basic/utilities/cancellation); its session is ended instead.
        exchange.forgetting = under_way and exchange.request.method != INITIALIZE
        exchange.fail(error)
        if exchange.forgetting:
            self._attempts.forget(exchange, None if self._serial else cancelled, self._forget_seconds)
        elif under_way:
            self._tasks.start(self._attempts.stop_reading_later(exchange))
        elif exchange.driver is not None:
            exchange.driver.cancel()

    def _expire(self, exchange: Exchange) -> None:
        reason = "No answer came in time."
        self.withdraw(exchange, UpstreamTimeout(reason), build_cancelled(exchange.spelled_upstream_id, reason))

    async def _send_later(self, exchange: Exchange, held: HeldSession) -> None:
        """Sends the request when there is a connection."""
        try:
            await self._attempts.attempt(exchange, held)
        except UpstreamConnectError as error:
            exchange.owner.attempt_failed(exchange, held, error)
        except BridgeError as error:
            exchange.fail(error)
        except Exception:
            exchange.fail(InternalError("The bridge failed."))
            raise
