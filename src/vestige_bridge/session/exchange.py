"""One request between its acceptance and its end: its messages and its outcome.

Invariant: an exchange ends exactly once, by its answer or by an error, and what it holds for a slow reader
is bounded. Taking a message in never waits, so that no reader holds up the stream that carries everybody's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from vestige_bridge.access.audit import AuditedCall
from vestige_bridge.access.permissions import UNRESTRICTED, Permissions
from vestige_bridge.errors import AuditFailed, BridgeError, InvalidMessage, Outcome, UpstreamProtocolError
from vestige_bridge.jsonrpc.messages import Request, Response
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.methods import LIST_TOOLS
from vestige_bridge.mcp.multiplexer import Call, Caller
from vestige_bridge.mcp.pass_through import ClientHeldSession
from vestige_bridge.mcp.tools import without_tools
from vestige_bridge.upstream.answer_budget import LARGE_BYTES

PROGRESS_LIMIT_BYTES: Final = 262_144
"""How many bytes of progress wait for a slow reader; over it the oldest go, since a newer step supersedes them."""


class Answered(NamedTuple):
    """The end of an exchange that got its answer.

    Attributes:
        data: the bytes of the response, with the id that the client gave the request.
        streamed: whether upstream sent it in an event stream.
    """

    data: bytes
    streamed: bool

    @property
    def response(self) -> Response:
        """The response, parsed.

        Errors:
            InvalidMessage: it is none.
        """
        message = parse_message(self.data.decode())
        if not isinstance(message, Response):
            raise InvalidMessage("This is not a response.")
        return message


_TAKEN: Final = Answered(b"", streamed=False)
"""Stands for an answer that its reader has: a large one is held once, by whoever sends it."""


class Owner(NamedTuple):
    """What is called for the exchanges that somebody sees through.

    Attributes:
        repeatable: whether running a request twice is as good as once.
        progressed: a step of progress has come.
        ended: the exchange has ended, by its answer or by an error.
        attempt_failed: an attempt has ended, and the exchange has neither its answer nor another end.
        forgotten: upstream has answered or forgotten an exchange that ended without its answer, or had its time for it.
    """

    repeatable: Callable[[Request], bool]
    progressed: Callable[[Exchange], None]
    ended: Callable[[Exchange], None]
    attempt_failed: Callable[[Exchange, HeldSession, BridgeError], None]
    forgotten: Callable[[Exchange], None]


class Exchange(Call):
    """A request between its acceptance and its end.

    Parameters:
        request: the request as its client wrote it.
        caller: whose it is.
        header_lines: the header lines that go to upstream with it besides the session's own.
        timeout_seconds: how long it may take without an end or a step of progress.
        owner: who sees it through.
        loop: the event loop.
        permissions: what its principal may do.
        own: its client's own upstream session, on which alone it may be sent; ``None`` for the held session.

    Attributes:
        sent: whether upstream may have seen the request, in any attempt.
        sent_at: when the last attempt began, in seconds of ``time.perf_counter``.
        streamed: whether upstream answers in an event stream.
        opened_session_id: the session that the reply opened, for an ``initialize``.
        relayed: whether the client was sent an event already, so that nothing may be replayed for it.
        replayed: the kinds of failure after which it was sent again.
        forgetting: whether it ended without its answer and upstream is being told to forget it.
        driver: the task that waits for a session or a connection, before it can be sent.
        audited: what the audit log says of it; ``None`` if nothing.
        receipt: says whether its line in the audit log was written; ``None`` where its answer does not wait for that.
    """

    __slots__ = (
        "_end",
        "_loop",
        "_news",
        "_progress",
        "_progress_bytes",
        "audited",
        "driver",
        "forgetting",
        "header_lines",
        "opened_session_id",
        "own",
        "owner",
        "permissions",
        "receipt",
        "relayed",
        "replayed",
        "sent",
        "sent_at",
        "streamed",
        "timeout_seconds",
    )

    def __init__(
        self,
        request: Request,
        caller: Caller,
        *,
        header_lines: str,
        timeout_seconds: float,
        owner: Owner,
        loop: asyncio.AbstractEventLoop,
        permissions: Permissions = UNRESTRICTED,
        own: ClientHeldSession | None = None,
    ) -> None:
        super().__init__(request, caller)
        self.own = own
        self.header_lines = header_lines
        self.timeout_seconds = timeout_seconds
        self.sent = False
        self.sent_at = 0.0
        self.streamed = False
        self.opened_session_id: str | None = None
        self.relayed = False
        self.replayed: tuple[type[BridgeError], ...] = ()
        self.driver: asyncio.Task[None] | None = None
        self.audited: AuditedCall | None = None
        self.receipt: asyncio.Future[bool] | None = None
        self.owner = owner
        self.permissions = permissions
        self.forgetting = False
        self._loop = loop
        self._progress: deque[bytes] | None = None
        self._progress_bytes = 0
        self._end: Answered | BridgeError | None = None
        self._news: asyncio.Future[None] | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer or an error has come."""
        return self._end is not None

    @property
    def repeatable(self) -> bool:
        """Whether running it twice is as good as once, as far as is known by now."""
        return self.owner.repeatable(self.request)

    @property
    def error(self) -> BridgeError | None:
        """The error that ended it, if one did."""
        return self._end if isinstance(self._end, BridgeError) else None

    @property
    def answered(self) -> Answered | None:
        """The answer that ended it, if one did."""
        return self._end if isinstance(self._end, Answered) else None

    @property
    def outcome(self) -> Outcome:
        """``not_sent`` when upstream provably never saw the request in any attempt."""
        return "unknown" if self.sent else "not_sent"

    def take_progress(self, data: bytes) -> None:
        """Keeps a step of progress for the reader."""
        if self._progress is None:
            self._progress = deque()
        self._progress.append(data)
        self._progress_bytes += len(data)
        while self._progress_bytes > PROGRESS_LIMIT_BYTES and len(self._progress) > 1:
            self._progress_bytes -= len(self._progress.popleft())
        self.owner.progressed(self)
        self.wake()

    def drop_progress(self) -> None:
        """Lets go of the steps of an attempt that failed: another attempt counts them anew."""
        self._progress = None
        self._progress_bytes = 0

    def answer(self, data: bytes) -> None:
        """Ends the exchange by its answer, as far as its principal may see it."""
        if self.permissions is not UNRESTRICTED and self._lists_tools:
            try:
                data = without_tools(data, None if self.permissions.tools is None else self.permissions.allows_tool)
            except (ValueError, RecursionError, InvalidMessage) as error:
                # What cannot be read cannot be cut, and is not for a principal with an allow-list as it is.
                if self.permissions.tools is not None:
                    failure = UpstreamProtocolError("Upstream's list of tools cannot be read.", detail=repr(error))
                    return self.fail(failure)
        self._finish(Answered(data, self.streamed))

    def fail(self, error: BridgeError) -> None:
        """Ends the exchange by an error, which then says whether upstream may have seen the request."""
        self._finish(self._told(error))

    async def next(self) -> bytes | Answered | None:
        """Waits for what comes next; there is one reader at a time.

        Returns:
            A step of progress as bytes, the answer, or ``None`` when ``wake`` was called.

        Errors:
            BridgeError: the error that ended the exchange.
        """
        if not self._progress and self._end is None:
            await self._wait()
        if self._progress:
            step = self._progress.popleft()
            self._progress_bytes -= len(step)
            return step
        end = self._end
        # The receipt is not this reader's alone, and not its to cancel.
        if self.receipt is not None and not await asyncio.shield(self.receipt):
            if isinstance(end, BridgeError):
                raise end
            raise self._told(AuditFailed("The call was made, but it could not be written into the audit log."))
        if isinstance(end, BridgeError):
            raise end
        if end is not None and len(end.data) > LARGE_BYTES:
            self._end = _TAKEN
        return end

    async def opened(self) -> str | None:
        """Waits until the head of a reply names the session that it opens, or the end has come without one."""
        while self.opened_session_id is None and self._end is None:
            await self._wait()
        return self.opened_session_id

    async def result(self) -> Answered:
        """Waits for the answer, whatever progress comes before it.

        Errors:
            BridgeError: the error that ended the exchange.
        """
        while not isinstance(news := await self.next(), Answered):
            pass
        return news

    def wake(self) -> None:
        """Has ``next`` return, with nothing if there is nothing."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def _lists_tools(self) -> bool:
        """Whether its answer could hold a list of tools that is not for its principal, or not for all.

        On a client's own session the ids are its client's: an answer may be a late one, to a list of tools that had the
        same id before, or the result of a task. No other result of MCP has such a member.
        """
        if self.request.method == LIST_TOOLS:
            return self.permissions.tools is not None or not self.permissions.shares_lists
        return self.own is not None and self.permissions.tools is not None

    def _told(self, error: BridgeError) -> BridgeError:
        """The error, with what it says of the request."""
        error.request_id = self.request.spelled_id
        error.data |= {"outcome": self.outcome, "retryable": not self.sent or self.repeatable}
        return error

    async def _wait(self) -> None:
        self._news = self._loop.create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _finish(self, end: Answered | BridgeError) -> None:
        if self._end is None:
            self._end = end
            self.wake()
            self.owner.ended(self)
