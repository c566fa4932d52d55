"""One request between its acceptance and its end: its messages and its outcome.

The law of this room: an exchange ends exactly once, by its answer or by an error, and what it holds for a slow reader
is bounded. Taking a message in never waits, so that no reader holds up the stream that carries everybody's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, NamedTuple, Protocol

from vestige_bridge.errors import BridgeError, InvalidMessage, Outcome
from vestige_bridge.held_bytes import LARGE_BYTES
from vestige_bridge.jsonrpc import parse_message
from vestige_bridge.messages import Request, Response
from vestige_bridge.multiplexer import Call, Caller
from vestige_bridge.pass_through import ClientHeldSession

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


class Keeper(Protocol):
    """Who sees exchanges through."""

    def repeatable(self, request: Request) -> bool:
        """Whether running the request twice is as good as once."""

    def exchange_progressed(self, exchange: Exchange) -> None:
        """A step of progress has come."""

    def exchange_ended(self, exchange: Exchange) -> None:
        """The exchange has ended, by its answer or by an error."""


class Exchange(Call):
    """A request between its acceptance and its end.

    Parameters:
        request: the request as its client wrote it.
        caller: whose it is.
        headers: the header lines that go to upstream with it besides the session's own.
        timeout_seconds: how long it may take without an end or a step of progress.
        keeper: who sees it through.
        loop: the event loop.
        own: its client's own upstream session, on which alone it may be sent; ``None`` for the held session.

    Attributes:
        sent: whether upstream may have seen the request, in any attempt.
        streamed: whether upstream answers in an event stream.
        opened_session_id: the session that the reply opened, for an ``initialize``.
        relayed: whether the client was sent an event already, so that nothing may be replayed for it.
        replayed: the kinds of failure after which it was sent again.
        driver: the task that waits for what has to be there before it can be sent.
    """

    __slots__ = (
        "_end",
        "_keeper",
        "_loop",
        "_news",
        "_progress",
        "_progress_bytes",
        "driver",
        "headers",
        "opened_session_id",
        "own",
        "relayed",
        "replayed",
        "sent",
        "streamed",
        "timeout_seconds",
    )

    def __init__(
        self,
        request: Request,
        caller: Caller,
        *,
        headers: str,
        timeout_seconds: float,
        keeper: Keeper,
        loop: asyncio.AbstractEventLoop,
        own: ClientHeldSession | None = None,
    ) -> None:
        super().__init__(request, caller)
        self.own = own
        self.headers = headers
        self.timeout_seconds = timeout_seconds
        self.sent = False
        self.streamed = False
        self.opened_session_id: str | None = None
        self.relayed = False
        self.replayed: tuple[type[BridgeError], ...] = ()
        self.driver: asyncio.Task[None] | None = None
        self._keeper = keeper
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
        return self._keeper.repeatable(self.request)

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
        self._keeper.exchange_progressed(self)
        self.wake()

    def drop_progress(self) -> None:
        """Lets go of the steps of an attempt that failed: another attempt counts them anew."""
        self._progress = None
        self._progress_bytes = 0

    def answer(self, data: bytes) -> None:
        """Ends the exchange by its answer."""
        self._finish(Answered(data, self.streamed))

    def fail(self, error: BridgeError) -> None:
        """Ends the exchange by an error, which then says whether upstream may have seen the request."""
        error.request_id = self.request.spelled_id
        error.data |= {"outcome": self.outcome, "retryable": not self.sent or self.repeatable}
        self._finish(error)

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
            self._keeper.exchange_ended(self)
