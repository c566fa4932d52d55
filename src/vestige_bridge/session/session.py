"""The shared MCP session: it is opened when it is needed, given up when it is lost, and opened again.

Invariant: there is one upstream session at a time, and all that wait for it share one handshake. A session that is
given up is ended upstream, and a lost session is not replaced faster than `pacing` permits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Final, Self

from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import (
    NOT_SENT,
    BridgeError,
    NoEventStream,
    RequestRefused,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamUnavailable,
)
from vestige_bridge.http import sse
from vestige_bridge.jsonrpc.builders import build_notification
from vestige_bridge.jsonrpc.messages import INITIALIZED, PING, Notification
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.lifecycle import HeldSession, build_initialize, read_initialize
from vestige_bridge.mcp.methods import TOOLS_CHANGED
from vestige_bridge.session.attempts import Attempts, Observer
from vestige_bridge.session.exchange import Answered
from vestige_bridge.session.listeners import Listeners
from vestige_bridge.session.pacing import Pacing
from vestige_bridge.session.sender import Sender
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.session.subscriptions import Subscriptions
from vestige_bridge.session.tool_catalog import ToolCatalog
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.client import Upstream

log = logging.getLogger(__name__)

LISTEN_AGAIN_SECONDS: Final = 1.0
"""How long to wait before the session's own stream is opened again after it ended."""

LONGEST_LISTEN_AGAIN_SECONDS: Final = 60.0
"""The longest wait while upstream rejects the stream repeatedly."""


class Session:
    """The shared session with upstream.

    Parameters:
        upstream: the MCP server.
        settings: limits and timeouts.
        report: called with each outcome: ``None`` for an answer, or the failure of the connection.
        file: the file that stores the upstream session.

    Attributes:
        held: the upstream session, while there is one.
        catalog: the tools that upstream listed.
        listeners: the clients' streams of notifications.
        subscriptions: the subscriptions that the bridge makes upstream for them.
        attempts: the attempts at requests, on this and on clients' own sessions.
        sender: sends requests on a session.
        report: called with each outcome.
        sessions_opened: how many upstream sessions were opened.
        stream_failures: how often the session's own event stream was rejected or interrupted.
    """

    def __init__(
        self,
        upstream: Upstream,
        settings: Settings,
        report: Callable[[BridgeError | None], None],
        file: SessionFile,
    ) -> None:
        self.held: HeldSession | None = None
        self.report = report
        self.sessions_opened = 0
        self.stream_failures = 0
        self._upstream = upstream
        self._settings = settings
        self._file = file
        self._tasks = Tasks()
        self._endings = Tasks()
        self._pacing = Pacing()
        observer = Observer(self._answered, self._opened, self._server_died, self._notified)
        self.attempts = Attempts(upstream, self._tasks, observer)
        self.sender = Sender(
            self.attempts,
            self._tasks,
            settings.request_timeout_seconds,
            serial=settings.upstream_concurrency == 1,
        )
        self.catalog = ToolCatalog(self._ask, self._tasks)
        self.listeners = Listeners()
        self.subscriptions = Subscriptions(self.listeners, self._tasks, self.connected, self._ask_for_clients)
        self._connecting: asyncio.Task[HeldSession] | None = None
        self._listening: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Opens nothing: the upstream session is opened when it is needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends all tasks, then the upstream session."""
        await self._tasks.close()
        await self._endings.finish()
        if self.held is not None:
            await self._upstream.delete(self.held.headers)
            self.held = None
        self._file.forget()

    @property
    def stateless(self) -> bool:
        """Whether upstream gave no session id, so that each request may start a process there."""
        return self.held is not None and self.held.session_id is None

    async def connected(self) -> HeldSession:
        """The upstream session; opens one if there is none. All that wait share one handshake.

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
            raise _unavailable("Vestige is still starting.", "the handshake is not complete") from None
        except UpstreamConnectError as error:
            raise _unavailable(error.message, error.detail) from error
        except BridgeError as error:
            raise _unavailable("No session with Vestige could be opened.", str(error)) from error

    async def check(self) -> None:
        """Sends upstream a ``ping`` on the shared session; opens none.

        Errors:
            BridgeError: there is no session, or no answer.
        """
        await self._ask(self._require_held(), PING, None, self._settings.check_timeout_seconds)

    async def discover_tools(self) -> None:
        """Reads upstream's list of tools on the shared session; opens none.

        Errors:
            BridgeError: upstream did not answer.
        """
        await self.catalog.read(self._require_held(), self._settings.check_timeout_seconds)

    def note_failure(self, held: HeldSession, error: BridgeError) -> None:
        """Reports a connection failure where it occurs; a failure that ends the session also gives it up.

        Parameters:
            held: the session on which it occurred.
            error: the failure.
        """
        if isinstance(error, SessionLost):
            self._lose(held, error)
        elif self.held is held and isinstance(error, UpstreamError) and not isinstance(error, RequestRefused):
            self.report(error)

    def _require_held(self) -> HeldSession:
        if self.held is None:
            raise UpstreamUnavailable("There is no session with Vestige.")
        return self.held

    def _answered(self) -> None:
        # An answer before the end of the handshake does not mean that the session is usable.
        if self.held is not None:
            self.report(None)

    def _opened(self, session_id: str) -> None:
        """Stores the session before its handshake ends: that may take minutes while the server loads models."""
        self._file.keep(HeldSession(session_id))

    def _server_died(self, held: HeldSession) -> None:
        self._lose(held, UpstreamDisconnected("The MCP server process ended."))

    def _notified(self, notification: Notification) -> None:
        """Publishes a notification, and reads the list of tools again if it changed."""
        self.listeners.publish(notification)
        if notification.method == TOOLS_CHANGED:
            self.catalog.refresh_soon(self.discover_tools)

    def _lose(self, held: HeldSession, error: BridgeError) -> None:
        """Gives a session up, reports the reason, and ends the session upstream."""
        if self.held is not held:
            return
        self.held = None
        self._pacing.lost()
        if self._listening is not None:
            self._listening.cancel()
        self.subscriptions.end()
        self.attempts.leave(held)
        if held.session_id is not None:
            self._endings.start(self._upstream.delete(held.headers))
        self.report(error)

    async def _connect(self) -> HeldSession:
        await asyncio.sleep(self._pacing.delay_seconds())
        try:
            held, tools_changed = await self._handshake()
        except BridgeError as error:
            self.report(error)
            raise
        self.held = held
        self.sessions_opened += 1
        self.report(None)
        if held.session_id is None:
            log.warning(
                "Upstream gave no session id: each request may start a process; start supergateway with --stateful"
            )
        if tools_changed:
            notification = parse_message(build_notification(TOOLS_CHANGED).decode())
            if isinstance(notification, Notification):
                self.listeners.publish(notification)
        self._listening = self._tasks.start(self._listen(held))
        self.subscriptions.begin(held)
        return held

    async def _handshake(self) -> tuple[HeldSession, bool]:
        """Opens an upstream session (MCP 2025-11-25, basic/lifecycle); returns whether its tools differ.

        Its time limit is that of a request: an impatient client must not restart the handshake of an MCP server that
        loads its models first. A session that was left open by a killed bridge is ended first.
        """
        if self._file.left_over is not None:
            await self._upstream.delete(self._file.left_over.headers)
        timeout_seconds = self._settings.request_timeout_seconds
        held = HeldSession()
        exchange = self.sender.open_once(build_initialize(), timeout_seconds)
        self._pacing.opened()
        self.sender.send(exchange, held)
        try:
            answered = await exchange.result()
            held = read_initialize(answered.response, exchange.opened_session_id)
            self._file.keep(held)
            await self.attempts.send(build_notification(INITIALIZED), held, "", timeout_seconds)
            tools_changed = await self.catalog.read(held, timeout_seconds, opening=True)
        except BaseException:
            self._pacing.failed(reached=exchange.sent)
            if exchange.opened_session_id is not None:
                await self._upstream.delete(HeldSession(exchange.opened_session_id, held.protocol_version).headers)
                self._file.forget()
            raise
        return held, tools_changed

    async def _ask(
        self, held: HeldSession, method: str, params: Mapping[str, object] | None, timeout_seconds: float
    ) -> Answered:
        """Sends a request of the bridge's own, once, without a slot of the window."""
        try:
            return await self.sender.ask(held, method, params, timeout_seconds)
        except BridgeError as error:
            if isinstance(error, SessionLost):
                self._lose(held, error)
            elif self.held is held:
                self.report(error)
            raise

    async def _ask_for_clients(self, held: HeldSession, method: str, params: Mapping[str, object]) -> Answered:
        return await self._ask(held, method, params, self._settings.request_timeout_seconds)

    async def _listen(self, held: HeldSession) -> None:
        """Keeps the session's own stream open, if upstream has one (MCP 2025-11-25, basic/transports)."""
        position: sse.Position | None = None
        refusals = 0
        while self.held is held:
            try:
                position = await self.attempts.listen(held, position)
                refusals = 0
            except NoEventStream as error:
                return log.debug("%s", error)
            except SessionLost:
                # 404 means that there is no such stream, or no such session: a ping distinguishes them.
                self.stream_failures += 1
                if await self._answers(held):
                    return log.debug("Upstream has no event stream for GET")
                position, refusals = None, refusals + 1
            except UpstreamError as error:
                log.debug("Upstream's own stream was rejected or interrupted: %s", error)
                self.stream_failures += 1
                position, refusals = None, refusals + 1
            longest = min(LONGEST_LISTEN_AGAIN_SECONDS, LISTEN_AGAIN_SECONDS * 2.0 ** min(refusals, 16))
            await asyncio.sleep(random.uniform(LISTEN_AGAIN_SECONDS, longest))  # noqa: S311

    async def _answers(self, held: HeldSession) -> bool:
        """Whether upstream answers on the session; a session that is unknown upstream is given up."""
        try:
            await self._ask(held, PING, None, self._settings.check_timeout_seconds)
        except BridgeError:
            return False
        return True


def _unavailable(message: str, detail: str) -> UpstreamUnavailable:
    """The error for requests that wait for a session: nothing was sent, so they may be retried."""
    return UpstreamUnavailable(message, detail=detail, data=NOT_SENT)
