"""The held MCP session: handshake, renewal, replay.

The law of this room: there is one upstream session at a time. A request is sent again only when it provably was not
processed, or when running it twice changes nothing. Whoever waits for a session waits for the same handshake.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from vestige_bridge import sse
from vestige_bridge.deadlines import Deadlines
from vestige_bridge.errors import (
    BridgeError,
    Cancelled,
    InternalError,
    NoEventStream,
    NotFound,
    Overloaded,
    RequestRefused,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnavailable,
    no_failures,
    reason_of,
)
from vestige_bridge.exchange import Answered, Exchange
from vestige_bridge.hub import Hub
from vestige_bridge.jsonrpc import build_cancelled, build_notification, build_request, parse_message
from vestige_bridge.lifecycle import (
    INITIALIZE,
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
from vestige_bridge.pacing import Pacing
from vestige_bridge.pass_through import ClientHeldSession
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

LONGEST_LISTEN_AGAIN_SECONDS: Final = 60.0
"""How long to wait at most, while upstream refuses it again and again."""

_REPLAYED: Final = (SessionLost, UpstreamConnectError, UpstreamDisconnected)
_BRIDGE: Final = Caller("vestige-bridge")
_MAX_TOOL_PAGES: Final = 100
_TOOLS_CHANGED: Final = "notifications/tools/list_changed"


class Admission:
    """Places among what is in flight, held for messages that have to wait before they can be sent.

    A context manager: what was not handed on to a request is released at its end.

    Parameters:
        release: called with the number of places that are given back.
        places: how many are held.
    """

    __slots__ = ("_release", "places")

    def __init__(self, release: Callable[[int], None], places: int) -> None:
        self._release = release
        self.places = places

    def __enter__(self) -> Self:
        """Holds the places."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Gives back what is still held."""
        places, self.places = self.places, 0
        self._release(places)


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
        stream_failures: how often the session's own event stream was refused or cut.
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
        self.stream_failures = 0
        self.draining = False
        self._upstream = upstream
        self._settings = settings
        self._report = report
        self._file = file
        self._tasks = Tasks()
        self._endings = Tasks()
        self._pacing = Pacing()
        self.subscriptions = Subscriptions(self.hub, self._tasks, self.connected, self._ask_for_clients)
        self._wire = Wire(upstream, self._tasks, self)
        self._deadlines: dict[float, Deadlines[Exchange]] = {}
        self._in_flight: set[Exchange] = set()
        self._in_window: set[Exchange | asyncio.Future[None]] = set()
        self._waiting: dict[Exchange | asyncio.Future[None], None] = {}
        self._keeping_place: set[Exchange] = set()
        self._reserved = 0
        self._listed: list[Mapping[str, Any]] | None = None
        self._catalog_problem = ""
        self._passing_on: set[asyncio.Task[None]] = set()
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
        await self._endings.finish()
        if self.held is not None:
            await self._upstream.delete(self.held.headers)
            self.held = None
        self._file.forget()

    @property
    def in_flight(self) -> int:
        """How many requests and notifications of clients are in flight, those that wait included."""
        return len(self._in_flight) + self._reserved

    @property
    def with_upstream(self) -> int:
        """How many places in the window are taken, those of requests that upstream has not forgotten yet included."""
        return len(self._in_window)

    @property
    def forgetting(self) -> int:
        """How many requests ended without their answer and are being forgotten by upstream."""
        return self._wire.forgetting

    @property
    def stateless(self) -> bool:
        """Whether upstream gave no session id, so that each request may start a process there."""
        return self.held is not None and self.held.session_id is None

    def request(
        self,
        request: Request,
        caller: Caller,
        headers: str,
        admission: Admission | None = None,
        own: ClientHeldSession | None = None,
    ) -> Exchange:
        """Accepts a client's request and sees it through; the exchange says how it goes.

        Parameters:
            request: any request; ``initialize`` only on a client's own session.
            caller: whose it is.
            headers: the header lines that go to upstream with it.
            admission: where its place is held already; ``None`` takes one now.
            own: the client's own session, if it has one; it is never renewed.

        Errors:
            Overloaded: there is no room for it.
        """
        self._take_place(admission)
        exchange = self._open(request, caller, headers, self._settings.request_timeout_seconds, own)
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

    def request_to_hear(
        self, request: Request, caller: Caller, wish: Wish, admission: Admission | None = None
    ) -> Exchange:
        """Accepts a client's request to be told of something; it needs no place in the window.

        Parameters:
            request: the request.
            caller: whose it is.
            wish: what it asks for.
            admission: where its place is held already; ``None`` takes one now.

        Errors:
            Overloaded: there is no room for it.
        """
        self._take_place(admission)
        exchange = self._open(request, caller, "", self._settings.request_timeout_seconds)
        self._in_flight.add(exchange)
        self._idle.clear()
        self.subscriptions.serve(exchange, wish)
        return exchange

    def _take_place(self, admission: Admission | None) -> None:
        if admission is None:
            self._require_room(1)
        else:
            admission.places -= 1
            self._reserved -= 1

    def admit(self, messages: int = 1) -> Admission:
        """Takes places for messages that have to wait before they can be sent, and holds them.

        Parameters:
            messages: how many requests and notifications came together.

        Errors:
            Overloaded: the bridge is draining, or has too many messages in flight.
        """
        self._require_room(messages)
        self._reserved += messages
        if messages:
            self._idle.clear()
        return Admission(self._release, messages)

    def _release(self, places: int) -> None:
        self._reserved -= places
        if not self._in_flight and not self._reserved:
            self._idle.set()

    def _require_room(self, messages: int) -> None:
        if self.draining:
            raise _overloaded("The bridge is shutting down.")
        if len(self._in_flight) + self._reserved + messages > self._settings.max_in_flight:
            raise _overloaded("Too many requests are in flight.")

    def cancel(self, caller: Caller, notification: Notification, own: ClientHeldSession | None = None) -> bool:
        """Ends the request that a client's ``notifications/cancelled`` means.

        Parameters:
            caller: whose notification it is.
            notification: the notification.
            own: the client's own session, if it came on one.

        Returns:
            Whether it meant exactly one of that caller's requests in flight.
        """
        exchange = self._wire.find(caller, notification, own)
        if exchange is None:
            return False
        cancelled = notification.spliced((notification.params["requestId"], exchange.spelled_wire_id))
        self._withdraw(exchange, Cancelled("The client cancelled the request."), cancelled)
        return True

    def abandon(self, exchange: Exchange, reason: str) -> None:
        """Ends a request whose client does not want its answer any more.

        Parameters:
            exchange: the request.
            reason: a sentence for upstream.
        """
        if not exchange.ended:
            cancelled = build_cancelled(exchange.spelled_wire_id, reason)
            self._withdraw(exchange, Cancelled("The client cancelled the request."), cancelled)

    async def pass_on(self, message: bytes, own: ClientHeldSession, headers: str) -> None:
        """Passes a message on that waits for no answer, on a client's own session.

        Errors:
            SessionLost, UpstreamError, BodyTooLarge: it was not taken.
        """
        sending = self._tasks.start(self._wire.send(message, own, headers, self._settings.request_timeout_seconds))
        self._passing_on.add(sending)
        sending.add_done_callback(self._passing_on.discard)
        await asyncio.wait([sending])
        if sending.cancelled():
            raise UpstreamTimeout("The bridge had to stop before upstream took the message.")
        sending.result()

    def deliver(self, data: bytes, own: ClientHeldSession) -> None:
        """Hands out a message that came on the stream of a client's own session.

        Errors:
            UpstreamProtocolError: it is no message.
        """
        self._wire.deliver(data, own)

    async def notify(self, notification: Notification, headers: str) -> None:
        """Passes a client's notification on; its caller holds an `Admission` for it. It takes a place in the window.

        Errors:
            UpstreamError: it could not be passed on.
        """
        turn: asyncio.Future[None] = self._loop.create_future()
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                await self._turn(turn)
                with suppress(SessionLost):
                    return await self._notify_once(notification, headers)
                return await self._notify_once(notification, headers)
        except SessionLost as error:
            raise _unavailable("Upstream keeps refusing its own session.", str(error)) from error
        except TimeoutError:
            raise UpstreamTimeout("Upstream did not take a notification in time.") from None
        finally:
            self._waiting.pop(turn, None)
            self._leave_window(turn)

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
                while self._passing_on:
                    await asyncio.wait(self._passing_on)
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
        if exchange not in self._in_flight:
            return exchange.fail(error)
        if exchange.own is not None and isinstance(error, SessionLost):
            return exchange.fail(NotFound("Upstream has ended this session; send initialize to begin another."))
        if exchange.own is None:
            self._note_failure(held, error)
        elif isinstance(error, UpstreamConnectError):
            # What else happens to one client's session says nothing of the held one.
            self._report(error)
        if isinstance(error, _REPLAYED):
            harmless = not error.sent or (exchange.repeatable and not exchange.relayed)
            if harmless and type(error) not in exchange.replayed:
                exchange.replayed += (type(error),)
                exchange.drop_progress()
                self.replays += 1
                log.debug("Replaying a request: %s", error)
                return self._send(exchange, exchange.own or self.held)
        exchange.fail(error)

    def session_opened(self, session_id: str) -> None:
        """Writes the session down before its handshake is over, which may take minutes while models are loaded."""
        self._file.keep(HeldSession(session_id))

    def server_died(self, held: HeldSession) -> None:
        """Gives up a session that nobody serves any more."""
        self._lose(held, UpstreamDisconnected("The MCP server process ended."))

    def forgotten(self, exchange: Exchange) -> None:
        """Gives the place in the window back that an exchange kept after its end."""
        self._keeping_place.discard(exchange)
        self._leave_window(exchange)

    def notified(self, notification: Notification) -> None:
        """Hands a notification to those who listen, and asks for the tools again if they changed."""
        self.hub.publish(notification)
        changed = notification.method == _TOOLS_CHANGED
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
            if not self._in_flight and not self._reserved:
                self._idle.set()
        self._waiting.pop(exchange, None)
        if exchange not in self._keeping_place:
            self._leave_window(exchange)

    async def _turn(self, turn: asyncio.Future[None]) -> None:
        """Waits for a place in the window."""
        if len(self._in_window) < self._settings.upstream_concurrency:
            self._in_window.add(turn)
        else:
            self._waiting[turn] = None
            await turn

    def _leave_window(self, leaving: Exchange | asyncio.Future[None]) -> None:
        if leaving not in self._in_window:
            return
        self._in_window.remove(leaving)
        if not self._waiting:
            return
        following = next(iter(self._waiting))
        del self._waiting[following]
        self._in_window.add(following)
        if isinstance(following, Exchange):
            # In a turn of its own, since this one may be the end of many, one after another.
            self._loop.call_soon(self._send_on_held, following)
        elif not following.done():
            following.set_result(None)

    def _open(
        self,
        request: Request,
        caller: Caller,
        headers: str,
        timeout_seconds: float,
        own: ClientHeldSession | None = None,
    ) -> Exchange:
        exchange = Exchange(
            request,
            caller,
            headers=headers,
            timeout_seconds=timeout_seconds,
            keeper=self,
            loop=self._loop,
            own=own,
        )
        self._wire.open(exchange)
        if timeout_seconds not in self._deadlines:
            self._deadlines[timeout_seconds] = Deadlines(timeout_seconds, self._expire)
        self._deadlines[timeout_seconds].start(exchange)
        return exchange

    def _send_on_held(self, exchange: Exchange) -> None:
        self._send(exchange, exchange.own or self.held)

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
        for sending in self._passing_on:
            sending.cancel()
        for exchange in list(self._in_flight):
            exchange.fail(UpstreamTimeout("The bridge had to stop before the answer came."))

    def _expire(self, exchange: Exchange) -> None:
        error = UpstreamTimeout("No answer came in time.")
        self._withdraw(exchange, error, build_cancelled(exchange.spelled_wire_id, "No answer came in time."))

    def _withdraw(self, exchange: Exchange, error: BridgeError, cancelled: bytes) -> None:
        """Ends an exchange without an answer, and has upstream stop, too; until then it keeps its place."""
        if self._wire.under_way(exchange) is not None:
            if exchange.request.method == INITIALIZE:
                # It must not be cancelled (MCP 2025-11-25, basic/utilities/cancellation); its session is ended.
                exchange.fail(error)
                self._tasks.start(self._wire.stop_reading_later(exchange))
                return
            if exchange in self._in_window:
                self._keeping_place.add(exchange)
            exchange.fail(error)
            self._wire.forget(exchange, cancelled, self._settings.request_timeout_seconds)
            return
        exchange.fail(error)
        if exchange.driver is not None:
            exchange.driver.cancel()

    async def _notify_once(self, notification: Notification, headers: str) -> None:
        held = await self.connected()
        try:
            await self._wire.send(notification.encoded(), held, headers, self._settings.request_timeout_seconds)
        except BridgeError as error:
            self._note_failure(held, error)
            raise

    def _note_failure(self, held: HeldSession, error: BridgeError) -> None:
        """Reports a failure of the connection where it is found; one that ends the session gives it up, too."""
        if isinstance(error, SessionLost):
            self._lose(held, error)
        elif self.held is held and isinstance(error, UpstreamError) and not isinstance(error, RequestRefused):
            self._report(error)

    def _lose(self, held: HeldSession, error: BridgeError) -> None:
        """Gives a session up, reports why, and has upstream end it."""
        if self.held is not held:
            return
        self.held = None
        self._pacing.lost()
        if self._listening is not None:
            self._listening.cancel()
        self.subscriptions.end()
        self._wire.leave(held)
        if held.session_id is not None:
            self._endings.start(self._upstream.delete(held.headers))
        self._report(error)

    async def _connect(self) -> HeldSession:
        await asyncio.sleep(self._pacing.delay_seconds())
        before = self._listed
        try:
            held = await self._handshake()
        except BridgeError as error:
            self._report(error)
            raise
        self.held = held
        self.sessions_opened += 1
        self._report(None)
        if held.session_id is None:
            log.warning("Upstream gave no session id: each request may start a process there; run it with sessions")
        if before is not None and before != self._listed:
            self._publish_tools_changed()
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
        self._pacing.opened()
        self._send(exchange, held)
        try:
            answered = await exchange.result()
            held = read_initialize(answered.response, exchange.opened_session_id)
            self._file.keep(held)
            await self._wire.send(build_notification("notifications/initialized"), held, "", timeout_seconds)
            await self._discover(held, timeout_seconds)
        except BaseException:
            self._pacing.failed(reached=exchange.sent)
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
        try:
            return await exchange.result()
        except BridgeError as error:
            if isinstance(error, SessionLost):
                self._lose(held, error)
            elif self.held is held:
                self._report(error)
            raise

    async def _discover(self, held: HeldSession, timeout_seconds: float) -> None:
        listed: list[Mapping[str, Any]] = []
        cursors: set[str | None] = set()
        cursor: str | None = None
        problem = ""
        while cursor not in cursors and len(cursors) < _MAX_TOOL_PAGES:
            cursors.add(cursor)
            params = None if cursor is None else {"cursor": cursor}
            response = (await self._ask(held, "tools/list", params, timeout_seconds=timeout_seconds)).response
            page = read_tool_page(response)
            listed += page.tools
            problem = problem or page.problem
            if page.next_cursor is None:
                break
            cursor = page.next_cursor
        if problem and problem != self._catalog_problem:
            log.warning("%s", problem)
        self._catalog_problem = problem
        if problem and not listed and held is self.held:
            # What it announced before may still be there.
            return
        self._listed = listed
        tools = {tool["name"]: read_tool(tool) for tool in listed}
        if held is not self.held or tools.keys() != self.tools.keys():
            log.info("Vestige tools discovered (%d): %s", len(tools), ", ".join(tools))
        self.tools = MappingProxyType(tools)

    async def _listen(self, held: HeldSession) -> None:
        """Keeps the session's own stream open, if upstream has one (MCP 2025-11-25, basic/transports)."""
        position: sse.Position | None = None
        refusals = 0
        while self.held is held:
            try:
                position = await self._wire.listen(held, position)
                refusals = 0
            except NoEventStream as error:
                return log.debug("%s", error)
            except SessionLost:
                # It says that there is no such stream, or no such session: an answer on the session tells.
                self.stream_failures += 1
                if await self._answers(held):
                    return log.debug("Upstream has no event stream for GET")
                position, refusals = None, refusals + 1
            except UpstreamError as error:
                log.debug("Upstream's own stream was refused or cut: %s", error)
                self.stream_failures += 1
                position, refusals = None, refusals + 1
            longest = min(LONGEST_LISTEN_AGAIN_SECONDS, LISTEN_AGAIN_SECONDS * 2.0 ** min(refusals, 16))
            await asyncio.sleep(random.uniform(LISTEN_AGAIN_SECONDS, longest))  # noqa: S311

    async def _answers(self, held: HeldSession) -> bool:
        """Whether upstream answers on the session; if it does not know it any more, the session is given up."""
        try:
            await self._ask(held, "ping", timeout_seconds=self._settings.check_timeout_seconds)
        except BridgeError:
            return False
        return True

    def _publish_tools_changed(self) -> None:
        notification = parse_message(build_notification(_TOOLS_CHANGED).decode())
        if isinstance(notification, Notification):
            self.hub.publish(notification)

    async def _ask_for_clients(self, held: HeldSession, method: str, params: Mapping[str, object]) -> Answered:
        return await self._ask(held, method, params, timeout_seconds=self._settings.request_timeout_seconds)

    async def _rediscover(self) -> None:
        await asyncio.sleep(REDISCOVERY_DELAY_SECONDS)
        # What is announced from here on may not be in the list that is about to come, so it is asked for again.
        self._rediscovering = None
        with suppress(BridgeError):
            await self.discover_tools()


def _overloaded(message: str) -> Overloaded:
    return Overloaded(message, data={"outcome": "not_sent", "retryable": True})


def _unavailable(message: str, detail: str) -> UpstreamUnavailable:
    """What those are told who wait for a session: nothing was sent, so they may try again."""
    return UpstreamUnavailable(message, detail=detail, data={"outcome": "not_sent", "retryable": True})
