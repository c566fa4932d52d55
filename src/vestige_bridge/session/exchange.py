"""One request from its admission to its end: its messages and its outcome.

Invariant: an exchange ends exactly once, by its answer or by an error, and the memory it uses for a slow reader
is bounded. Adding a message never waits, so that no reader delays a stream that other exchanges share.
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
"""Maximum bytes of progress kept for a slow reader; over it the oldest are dropped: a newer step supersedes them."""


class Answered(NamedTuple):
    """The end of an exchange that was answered.

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
            InvalidMessage: it is not a response.
        """
        message = parse_message(self.data.decode())
        if not isinstance(message, Response):
            raise InvalidMessage("This is not a response.")
        return message


_TAKEN: Final = Answered(b"", streamed=False)
"""Replaces an answer that its reader has taken, so that a large answer is in memory once."""


class Owner(NamedTuple):
    """Callbacks for exchanges.

    Attributes:
        repeatable: whether a request may run twice without harm.
        progressed: a step of progress came.
        ended: the exchange has ended, by its answer or by an error.
        attempt_failed: an attempt has ended, and the exchange has not.
        forgotten: upstream has answered or released an exchange that ended without its answer, or its time is over.
    """

    repeatable: Callable[[Request], bool]
    progressed: Callable[[Exchange], None]
    ended: Callable[[Exchange], None]
    attempt_failed: Callable[[Exchange, HeldSession, BridgeError], None]
    forgotten: Callable[[Exchange], None]


class Exchange(Call):
    """A request from its admission to its end.

    Parameters:
        request: the request as its client wrote it.
        caller: its client.
        header_lines: its header lines for upstream, without the session's own.
        timeout_seconds: the time limit without an end or a step of progress.
        owner: the callbacks.
        loop: the event loop.
        permissions: the permissions of its principal.
        own: its client's own upstream session, the only one on which it may be sent; ``None`` for the shared session.

    Attributes:
        sent: whether upstream may have received the request, in any attempt.
        sent_at: when the last attempt began, in seconds of ``time.perf_counter``.
        streamed: whether upstream answers in an event stream.
        opened_session_id: the session that the reply opened, for an ``initialize``.
        relayed: whether the client already received an event, so that the request must not be sent again.
        replayed: the kinds of failure after which it was sent again.
        forgetting: whether it ended without its answer and upstream is still releasing its id.
        driver: the task that waits for a session or a connection before it is sent.
        audited: its audit record; ``None`` if it is not audited.
        receipt: whether its audit line was written; ``None`` if its answer does not wait for that.
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
        """Whether it may run twice without harm, by the tools that are known now."""
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
        """``not_sent`` if upstream provably never received the request."""
        return "unknown" if self.sent else "not_sent"

    def take_progress(self, data: bytes) -> None:
        """Adds a step of progress for the reader."""
        if self._progress is None:
            self._progress = deque()
        self._progress.append(data)
        self._progress_bytes += len(data)
        while self._progress_bytes > PROGRESS_LIMIT_BYTES and len(self._progress) > 1:
            self._progress_bytes -= len(self._progress.popleft())
        self.owner.progressed(self)
        self.wake()

    def drop_progress(self) -> None:
        """Drops the steps of a failed attempt: the next attempt starts from the beginning."""
        self._progress = None
        self._progress_bytes = 0

    def answer(self, data: bytes) -> None:
        """Ends the exchange by its answer, without the tools that are hidden from its principal."""
        if self.permissions is not UNRESTRICTED and self._lists_tools:
            try:
                data = without_tools(data, None if self.permissions.tools is None else self.permissions.allows_tool)
            except (ValueError, RecursionError, InvalidMessage) as error:
                # A list that cannot be parsed cannot be filtered, so a principal with an allow-list must not get it.
                if self.permissions.tools is not None:
                    failure = UpstreamProtocolError("Upstream's list of tools is not valid.", detail=repr(error))
                    return self.fail(failure)
        self._finish(Answered(data, self.streamed))

    def fail(self, error: BridgeError) -> None:
        """Ends the exchange by an error, and adds to it whether upstream may have received the request."""
        self._finish(self._with_request_data(error))

    async def next(self) -> bytes | Answered | None:
        """Waits for the next event; there is one reader at a time.

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
        # Others wait for the receipt too, so this reader must not cancel it.
        if self.receipt is not None and not await asyncio.shield(self.receipt):
            if isinstance(end, BridgeError):
                raise end
            raise self._with_request_data(
                AuditFailed("The call was made, but it could not be written into the audit log.")
            )
        if isinstance(end, BridgeError):
            raise end
        if end is not None and len(end.data) > LARGE_BYTES:
            self._end = _TAKEN
        return end

    async def opened(self) -> str | None:
        """Waits for the id of the session that the reply opens, or for the end."""
        while self.opened_session_id is None and self._end is None:
            await self._wait()
        return self.opened_session_id

    async def result(self) -> Answered:
        """Waits for the answer and skips progress.

        Errors:
            BridgeError: the error that ended the exchange.
        """
        while not isinstance(news := await self.next(), Answered):
            pass
        return news

    def wake(self) -> None:
        """Makes ``next`` return, with ``None`` if there is no event."""
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    @property
    def _lists_tools(self) -> bool:
        """Whether its answer may list tools that are hidden from its principal, or from other principals.

        On its own session the client chooses the ids: an answer may be a late one, to a list of tools that had the same
        id before, or the result of a task. No other result of MCP has such a member.
        """
        if self.request.method == LIST_TOOLS:
            return self.permissions.tools is not None or not self.permissions.shares_lists
        return self.own is not None and self.permissions.tools is not None

    def _with_request_data(self, error: BridgeError) -> BridgeError:
        """The error, with the data of the request."""
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
