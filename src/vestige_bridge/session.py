"""The held MCP session: handshake, renewal, replay.

The law of this room: there is one upstream session at a time. A request is sent again only when it provably was not
processed, or when running it twice changes nothing. Whoever waits for a session waits for the same handshake.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Final, Self

from vestige_bridge.deadlines import Deadlines
from vestige_bridge.errors import (
    BridgeError,
    Cancelled,
    InternalError,
    Overloaded,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
    no_failures,
    reason_of,
)
from vestige_bridge.exchange import Answered, Exchange
from vestige_bridge.hub import Hub
from vestige_bridge.jsonrpc import build_notification, build_request
from vestige_bridge.lifecycle import (
    REPEATABLE_METHODS,
    HeldSession,
    Tool,
    build_initialize,
    read_initialize,
    read_tool,
    read_tool_page,
)
from vestige_bridge.messages import Notification, Request
from vestige_bridge.multiplexer import Caller
from vestige_bridge.permission import CALL, require_read_only
from vestige_bridge.settings import Settings
from vestige_bridge.state import SessionFile
from vestige_bridge.subscriptions import Subscriptions, Wish
from vestige_bridge.tasks import Tasks
from vestige_bridge.upstream import Upstream
from vestige_bridge.wire import Wire

log = logging.getLogger(__name__)

REDISCOVERY_DELAY_SECONDS: Final = 1.0
"""How long announcements of changed tools are gathered before upstream is asked for the list again."""

LISTEN_AGAIN_SECONDS: Final = 1.0
"""How long to wait before the session's own stream is opened again after it ended."""

_REPLAYED: Final = (SessionLost, UpstreamConnectError, UpstreamDisconnected)
_BRIDGE: Final = Caller("vestige-bridge")
_MAX_TOOL_PAGES: Final = 100


class Session:
    """The one session with upstream, and every request that travels on it.

    Parameters:
        upstream: the MCP endpoint.
        settings: limits and timeouts.
        report: told of each answer (``None``) and of each failure of the connection.
        file: where the upstream session is written down.

    Attributes:
        held: the upstream session, while there is one.
        tools: the tools that upstream announced, by their names.
        hub: who hears which notification.
        subscriptions: what upstream is asked to tell on their behalf.
        sessions_opened: how many upstream sessions were opened so far.
        replays: how many times a request was sent again.
        failures: how many requests of clients ended without an answer, by reason.
        draining: whether new requests are refused.
    """

    _loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings,
        report: Callable[[BridgeError | None], None],
        file: SessionFile,
    ) -> None:
        self.held: HeldSession | None = None
        self.tools: Mapping[str, Tool] = MappingProxyType({})
        self.hub = Hub()
        self.sessions_opened = 0
        self.replays = 0
        self.failures = no_failures()
        self.draining = False
        self._upstream = upstream
        self._settings = settings
        self._report = report
        self._file = file
        self._tasks = Tasks()
        self.subscriptions = Subscriptions(self.hub, self._tasks, self.connected, self._ask_for_clients)
        self._wire = Wire(upstream, self._tasks, self)
        self._deadlines: dict[float, Deadlines[Exchange]] = {}
        self._in_flight: set[Exchange] = set()
        self._in_window: set[Exchange] = set()
        self._waiting: dict[Exchange, None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._connecting: asyncio.Task[HeldSession] | None = None
        self._rediscovering: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Opens nothing: the upstream session is opened when somebody needs it."""
        self._loop = asyncio.get_running_loop()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends what is still in flight, then the upstream session."""
        self._stop_in_flight()
        await self._tasks.close()
        if self.held is not None:
            await self._upstream.delete(self.held.headers)
            self.held = None
        self._file.forget()

    @property
    def in_flight(self) -> int:
        """How many requests of clients are in flight, those that wait in the window included."""
        return len(self._in_flight)

    @property
    def with_upstream(self) -> int:
        """How many of them have a place in the window."""
        return len(self._in_window)

    def request(self, request: Request, caller: Caller, headers: str) -> Exchange:
        """Accepts a client's request and sees it through; the exchange says how it goes.

        Parameters:
            request: any request but ``initialize``.
            caller: whose it is.
            headers: the header lines that go to upstream with it.
        """
        exchange = self._open(request, caller, headers, self._settings.request_timeout_seconds)
        self._in_flight.add(exchange)
        self._idle.clear()
        if len(self._in_window) < self._settings.upstream_concurrency:
            self._in_window.add(exchange)
            # Not before all that came in this turn has been read: writes one after the other find upstream awake, and
            # a request costs a tenth less CPU time than if each were made at once.
            self._loop.call_soon(self._send_on_held, exchange)
        else:
            self._waiting[exchange] = None
        return exchange

    def request_to_hear(self, request: Request, caller: Caller, wish: Wish) -> Exchange:
        """Accepts a client's request to be told of something; it needs no place in the window.

        Parameters:
            request: the request.
            caller: whose it is.
            wish: what it asks for.
        """
        exchange = self._open(request, caller, "", self._settings.request_timeout_seconds)
        self._in_flight.add(exchange)
        self._idle.clear()
        self.subscriptions.serve(exchange, wish)
        return exchange

    def admit(self, requests: int) -> None:
        """Refuses what there is no room for.

        Parameters:
            requests: how many requests came together.

        Errors:
            Overloaded: the bridge is draining, or has too many requests in flight.
        """
        data = {"outcome": "not_sent", "retryable": True}
        if self.draining:
            raise Overloaded("The bridge is shutting down.", data=data)
        if len(self._in_flight) + requests > self._settings.max_in_flight:
            raise Overloaded("Too many requests are in flight.", data=data)

    def cancel(self, caller: Caller, notification: Notification) -> bool:
        """Ends the request that a client's ``notifications/cancelled`` means.

        Returns:
            Whether it meant exactly one of that caller's requests in flight.
        """
        exchange = self._wire.find(caller, notification)
        if exchange is None:
            return False
        cancelled = notification.spliced((notification.params["requestId"], str(exchange.wire_id)))
        exchange.fail(Cancelled("The client cancelled the request."))
        self._withdraw(exchange, cancelled)
        return True

    def abandon(self, exchange: Exchange, reason: str) -> None:
        """Ends a request whose client does not want its answer any more.

        Parameters:
            exchange: the request.
            reason: a sentence for upstream.
        """
        if not exchange.ended:
            exchange.fail(Cancelled("The client cancelled the request."))
            self._withdraw(exchange, _cancelled(exchange, reason))

    async def notify(self, notification: Notification, headers: str) -> None:
        """Passes a client's notification on.

        Errors:
            UpstreamError: it could not be passed on.
        """
        with suppress(SessionLost):
            return await self._notify_once(notification, headers)
        try:
            return await self._notify_once(notification, headers)
        except SessionLost as error:
            raise _unavailable("The MCP endpoint keeps refusing its own session.", str(error)) from error

    async def connected(self) -> HeldSession:
        """The upstream session; opens one if there is none. All who wait share one handshake.

        Errors:
            UpstreamUnavailable: none could be opened within the connect timeout.
        """
        if self.held is not None:
            return self.held
        if self._connecting is None or self._connecting.done():
            self._connecting = self._tasks.start(self._connect())
        try:
            async with asyncio.timeout(self._settings.connect_timeout_seconds):
                return await asyncio.shield(self._connecting)
        except TimeoutError:
            raise _unavailable("Vestige is still starting.", "the handshake takes its time") from None
        except UpstreamConnectError as error:
            raise _unavailable(error.message, error.detail) from error
        except BridgeError as error:
            raise _unavailable("No session with Vestige could be opened.", str(error)) from error

    async def check(self) -> None:
        """Asks upstream for a sign of life on the held session; opens none.

        Errors:
            BridgeError: there is none.
        """
        if self.held is None:
            raise UpstreamUnavailable("There is no session with Vestige.")
        await self._ask(self.held, "ping", timeout_seconds=self._settings.check_timeout_seconds)

    async def discover_tools(self) -> None:
        """Asks upstream for its tools on the held session; opens none.

        Errors:
            BridgeError: upstream did not say.
        """
        if self.held is None:
            raise UpstreamUnavailable("There is no session with Vestige.")
        await self._discover(self.held, self._settings.check_timeout_seconds)

    async def drain(self, timeout_seconds: float) -> None:
        """Takes no more requests and waits for those in flight; those that do not end in time are answered 504."""
        self.draining = True
        self.hub.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        self._stop_in_flight()

    def repeatable(self, request: Request) -> bool:
        """Whether running the request twice is as good as once."""
        if request.method == CALL:
            return self.tools.get(request.name or "", Tool()).repeatable
        return request.method in REPEATABLE_METHODS

    def answered(self) -> None:
        """Takes note of an answer."""
        # Before the handshake is over an answer promises nothing to anybody.
        if self.held is not None:
            self._report(None)

    def attempt_failed(self, exchange: Exchange, held: HeldSession, error: BridgeError) -> None:
        """Makes another attempt where it can do no harm; the bridge's own requests are made once."""
        if isinstance(error, SessionLost):
            self._lose(held)
        if exchange in self._in_flight and isinstance(error, _REPLAYED):
            self._report(error)
            harmless = not error.sent or (exchange.repeatable and not exchange.relayed)
            if harmless and type(error) not in exchange.replayed:
                exchange.replayed += (type(error),)
                exchange.drop_progress()
                self.replays += 1
                log.debug("Replaying a request: %s", error)
                return self._send(exchange, self.held)
        exchange.fail(error)

    def session_opened(self, session_id: str) -> None:
        """Writes the session down before its handshake is over, which may take minutes while models are loaded."""
        self._file.keep(HeldSession(session_id))

    def server_died(self, held: HeldSession) -> None:
        """Gives up a session that nobody serves any more."""
        self._lose(held)

    def notified(self, notification: Notification) -> None:
        """Hands a notification to those who listen, and asks for the tools again if they changed."""
        self.hub.publish(notification)
        changed = notification.method == "notifications/tools/list_changed"
        if changed and (self._rediscovering is None or self._rediscovering.done()):
            self._rediscovering = self._tasks.start(self._rediscover())

    def exchange_progressed(self, exchange: Exchange) -> None:
        """Starts the time of the exchange anew."""
        if not exchange.ended:
            self._deadlines[exchange.timeout_seconds].start(exchange)

    def exchange_ended(self, exchange: Exchange) -> None:
        """Lets an exchange go, and the next one in the window."""
        self._wire.close(exchange)
        self._deadlines[exchange.timeout_seconds].stop(exchange)
        if exchange in self._in_flight:
            self._in_flight.remove(exchange)
            if exchange.error is not None:
                self.failures[reason_of(exchange.error)] += 1
            if not self._in_flight:
                self._idle.set()
        self._waiting.pop(exchange, None)
        if exchange in self._in_window:
            self._in_window.remove(exchange)
            if self._waiting:
                following = next(iter(self._waiting))
                del self._waiting[following]
                self._in_window.add(following)
                # In a turn of its own, since this one may be the end of many, one after another.
                self._loop.call_soon(self._send_on_held, following)

    def _open(self, request: Request, caller: Caller, headers: str, timeout_seconds: float) -> Exchange:
        exchange = Exchange(
            request,
            caller,
            headers=headers,
            timeout_seconds=timeout_seconds,
            keeper=self,
            loop=self._loop,
        )
        self._wire.open(exchange)
        if timeout_seconds not in self._deadlines:
            self._deadlines[timeout_seconds] = Deadlines(timeout_seconds, self._expire)
        self._deadlines[timeout_seconds].start(exchange)
        return exchange

    def _send_on_held(self, exchange: Exchange) -> None:
        self._send(exchange, self.held)

    def _send(self, exchange: Exchange, held: HeldSession | None) -> None:
        """Sends the request at once if it can be; a task is made only where something has to be waited for."""
        if exchange.ended:
            return
        try:
            if held is not None:
                self._require_permitted(exchange)
                if self._wire.attempt_now(exchange, held):
                    return
        except BridgeError as error:
            return exchange.fail(error)
        exchange.driver = self._tasks.start(self._send_later(exchange, held))

    async def _send_later(self, exchange: Exchange, held: HeldSession | None) -> None:
        """Sends the request when there is a session and a connection."""
        try:
            if held is None:
                held = await self.connected()
                self._require_permitted(exchange)
            await self._wire.attempt(exchange, held)
        except UpstreamConnectError as error:
            if held is None:
                raise
            self.attempt_failed(exchange, held, error)
        except BridgeError as error:
            exchange.fail(error)
        except Exception:
            exchange.fail(InternalError("The bridge failed."))
            raise

    def _require_permitted(self, exchange: Exchange) -> None:
        """Asks once more, because a renewed session may have brought other tools since the request was let in."""
        if exchange.caller.read_only:
            require_read_only(exchange.request, self.tools)

    def _stop_in_flight(self) -> None:
        for exchange in list(self._in_flight):
            exchange.fail(UpstreamTimeout("The bridge had to stop before the answer came."))

    def _expire(self, exchange: Exchange) -> None:
        exchange.fail(UpstreamTimeout("No answer came in time."))
        self._withdraw(exchange, _cancelled(exchange, "No answer came in time."))

    def _withdraw(self, exchange: Exchange, cancelled: bytes) -> None:
        """Stops the work on an exchange that ended without an answer, and has upstream stop, too."""
        held, wire_id = self._wire.under_way(exchange), exchange.wire_id
        if held is not None and wire_id is not None:
            forgetting = self._tasks.start(self._wire.forget(exchange, wire_id, held, cancelled))
            forgetting.add_done_callback(lambda _: self._wire.stop_reading(exchange))
        elif exchange.driver is not None:
            exchange.driver.cancel()

    async def _notify_once(self, notification: Notification, headers: str) -> None:
        held = await self.connected()
        try:
            await self._wire.send(notification.encoded(), held, headers, self._settings.request_timeout_seconds)
        except SessionLost as error:
            self._lose(held)
            self._report(error)
            raise

    def _lose(self, held: HeldSession) -> None:
        if self.held is not held:
            return
        self.held = None
        if self._listening is not None:
            self._listening.cancel()
        self.subscriptions.end()

    async def _connect(self) -> HeldSession:
        try:
            held = await self._handshake()
        except BridgeError as error:
            self._report(error)
            raise
        self.held = held
        self.sessions_opened += 1
        self._report(None)
        self._listening = self._tasks.start(self._listen(held))
        self.subscriptions.begin(held)
        return held

    async def _handshake(self) -> HeldSession:
        """Opens an upstream session (MCP 2025-11-25, basic/lifecycle).

        It may take as long as a request may: an MCP server that loads its models first must not be started again and
        again by those who cannot wait. What a bridge that was killed left open is ended first.
        """
        if self._file.left_over is not None:
            await self._upstream.delete(self._file.left_over.headers)
        timeout_seconds = self._settings.request_timeout_seconds
        held = HeldSession()
        exchange = self._open(build_initialize(), _BRIDGE, "", timeout_seconds)
        self._send(exchange, held)
        try:
            answered = await exchange.result()
            held = read_initialize(answered.response, exchange.opened_session_id)
            self._file.keep(held)
            await self._wire.send(build_notification("notifications/initialized"), held, "", timeout_seconds)
            await self._discover(held, timeout_seconds)
        except BaseException:
            if exchange.opened_session_id is not None:
                await self._upstream.delete(HeldSession(exchange.opened_session_id, held.protocol_version).headers)
                self._file.forget()
            raise
        return held

    async def _ask(
        self, held: HeldSession, method: str, params: Mapping[str, object] | None = None, *, timeout_seconds: float
    ) -> Answered:
        """Sends a request of the bridge's own, outside the window, once."""
        exchange = self._open(build_request(method, params), _BRIDGE, "", timeout_seconds)
        self._send(exchange, held)
        return await exchange.result()

    async def _discover(self, held: HeldSession, timeout_seconds: float) -> None:
        tools: dict[str, Tool] = {}
        cursor: object = None
        for _ in range(_MAX_TOOL_PAGES):
            params = None if cursor is None else {"cursor": cursor}
            response = (await self._ask(held, "tools/list", params, timeout_seconds=timeout_seconds)).response
            page = read_tool_page(response)
            tools |= {tool["name"]: read_tool(tool) for tool in page.get("tools", [])}
            cursor = page.get("nextCursor")
            if not isinstance(cursor, str):
                break
        if held is not self.held or tools.keys() != self.tools.keys():
            log.info("Vestige tools discovered (%d): %s", len(tools), ", ".join(tools))
        self.tools = MappingProxyType(tools)

    async def _listen(self, held: HeldSession) -> None:
        """Keeps the session's own stream open, if upstream has one."""
        while self.held is held:
            try:
                await self._wire.listen(held)
            except SessionLost as error:
                self._report(error)
                return self._lose(held)
            except UpstreamProtocolError as error:
                log.debug("Upstream has no stream of its own: %s", error)
                return None
            except UpstreamError as error:
                log.debug("Upstream's own stream was cut: %s", error)
            await asyncio.sleep(LISTEN_AGAIN_SECONDS)

    async def _ask_for_clients(self, held: HeldSession, method: str, params: Mapping[str, object]) -> Answered:
        return await self._ask(held, method, params, timeout_seconds=self._settings.request_timeout_seconds)

    async def _rediscover(self) -> None:
        await asyncio.sleep(REDISCOVERY_DELAY_SECONDS)
        # What is announced from here on may not be in the list that is about to come, so it is asked for again.
        self._rediscovering = None
        with suppress(BridgeError):
            await self.discover_tools()


def _unavailable(message: str, detail: str) -> UpstreamUnavailable:
    """What those are told who wait for a session: nothing was sent, so they may try again."""
    return UpstreamUnavailable(message, detail=detail, data={"outcome": "not_sent", "retryable": True})


def _cancelled(exchange: Exchange, reason: str) -> bytes:
    """The bridge's own ``notifications/cancelled`` (MCP 2025-11-25, basic/utilities/cancellation)."""
    return build_notification("notifications/cancelled", {"requestId": exchange.wire_id, "reason": reason})
