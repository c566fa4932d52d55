"""One client's own upstream session, in per-client mode: its owner, its use, and its stream.

Invariant: only the principal that opened it may use it, and it is not idle while a request or a stream is open on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from dataclasses import replace

from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import BridgeError, Overloaded, SessionLost, UpstreamError, UpstreamTimeout
from vestige_bridge.http import sse
from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.mcp.pass_through import ClientHeldSession, PassThrough
from vestige_bridge.mcp.versions import LEGACY_VERSIONS
from vestige_bridge.session.attempts import Attempts
from vestige_bridge.session.exchange import Answered, Exchange
from vestige_bridge.session.listeners import Listener
from vestige_bridge.upstream.client import EventStream, Upstream

log = logging.getLogger(__name__)


class ClientSession:
    """The upstream session of one client (MCP 2025-11-25, basic/transports, session management).

    Parameters:
        principal: the principal that opened it.
        attempts: delivers the messages of its stream.
        upstream: opens its stream.
        tasks: owner of the task that reads the stream.

    Attributes:
        held: the upstream session; its id and its version are known once ``initialize`` is answered.
        used_at: when it was last in use, in seconds of the event loop's clock.
        listening: whether its client has its stream open.
    """

    def __init__(self, principal: str, attempts: Attempts, upstream: Upstream, tasks: Tasks) -> None:
        self.principal = principal
        self.held = ClientHeldSession(router=PassThrough[Exchange](self._inspect))
        self.used_at = 0.0
        self.listening = False
        self._attempts = attempts
        self._upstream = upstream
        self._tasks = tasks
        self._in_use = 0
        self._listener = _new_listener()
        self._opened: asyncio.Future[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._position: sse.Position | None = None

    def idle_since(self, seconds: float) -> bool:
        """Whether nothing has been open on it since that time of the event loop's clock."""
        return self._in_use == 0 and self.held.router.idle and self.used_at <= seconds

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps it from being idle."""
        self._in_use += 1
        try:
            yield
        finally:
            self._in_use -= 1
            self.used_at = asyncio.get_running_loop().time()

    def named(self, session_id: str, request: Request) -> None:
        """Stores the id that upstream gave it in reply to an ``initialize``, and the version that was requested."""
        asked = request.params.get("protocolVersion")
        version = asked.value if asked is not None and asked.value in LEGACY_VERSIONS else None
        self.held = replace(self.held, session_id=session_id, protocol_version=version)

    def negotiated(self, answered: Answered) -> None:
        """Stores the version of upstream's InitializeResult; every later message carries it."""
        result = answered.response.result
        version = result.get("protocolVersion") if isinstance(result, dict) else None
        if version in LEGACY_VERSIONS:
            self.held = replace(self.held, protocol_version=version)

    async def listen(self, timeout_seconds: float) -> Listener:
        """Opens the session's stream; an earlier stream of its client ends.

        Parameters:
            timeout_seconds: how long upstream may take to open its own.

        Errors:
            SessionLost: upstream answered 404, which means that the session is lost, or that it has no streams.
            UpstreamError: upstream has no such stream, or did not open it.
            Overloaded: all streams were ended meanwhile.
        """
        if self.listening:
            self._detach()
        self.listening, listener = True, self._listener
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_future()
            self._reading = self._tasks.start(self._read(self._opened, timeout_seconds))
        try:
            await asyncio.shield(self._opened)
        except BaseException:
            self.stop_listening(listener)
            raise
        return listener

    def stop_listening(self, listener: Listener) -> None:
        """Ends the stream, unless another has replaced it."""
        if listener is self._listener:
            self.end_stream()

    def end_stream(self) -> None:
        """Ends the stream; its client may open it again."""
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self._opened = None
        if self.listening:
            self._detach()

    def _detach(self) -> None:
        """Ends the client's stream; later messages wait for the next one, within the limits of a listener."""
        self._listener.close()
        self._listener = _new_listener()
        self.listening = False

    async def _read(self, opened: asyncio.Future[None], timeout_seconds: float) -> None:
        """Reads upstream's stream to its end, and then ends the client's."""
        failure: BridgeError = Overloaded("All streams were ended; open this one again.")
        try:
            async with contextlib.AsyncExitStack() as exits:
                async with asyncio.timeout(timeout_seconds):
                    stream = await self._open_upstreams(exits)
                opened.set_result(None)
                try:
                    async for message in stream.messages():
                        self._attempts.deliver(message, self.held)
                finally:
                    self._position = stream.position
        except TimeoutError:
            failure = UpstreamTimeout("Upstream did not open the stream in time.")
        except BridgeError as error:
            failure = error
        finally:
            if self._opened is opened:
                self.end_stream()
            if not opened.done():
                opened.set_exception(failure)
                # Its caller may no longer wait.
                opened.exception()

    async def _open_upstreams(self, exits: contextlib.AsyncExitStack) -> EventStream:
        """Upstream's stream, resumed after its last event, so that events that upstream stored meanwhile are not lost.

        See MCP 2025-11-25, basic/transports, resumability.

        Errors:
            SessionLost, UpstreamError: upstream opened none.
        """
        position, self._position = self._position, None
        if position is not None:
            try:
                return await exits.enter_async_context(self._upstream.get(self.held.headers, position.event_id))
            except (SessionLost, UpstreamError) as error:
                log.debug("A client's stream could not be resumed: %s", error)
        return await exits.enter_async_context(self._upstream.get(self.held.headers))

    def _inspect(self, message: Notification | Request) -> None:
        self._listener.put(message)


def _new_listener() -> Listener:
    return Listener(lambda _: True)
