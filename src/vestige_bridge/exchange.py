"""One request on its way to upstream and back: its messages, its deadline and its outcome.

The law of this room: an exchange ends exactly once, by its answer or by an error, and what it holds for a slow reader
is bounded. Taking a message in never waits, so that no reader holds up the stream that carries everybody's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from vestige_bridge.errors import BridgeError, Outcome
from vestige_bridge.jsonrpc import Request, Response
from vestige_bridge.multiplexer import Call, Caller

PROGRESS_LIMIT_BYTES: Final = 262_144
"""How many bytes of progress wait for a slow reader; over it the oldest go, since a newer step supersedes them."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of an exchange that got its answer.

    Attributes:
        response: the response as parsed.
        data: its bytes, with the id that the client gave it.
        streamed: whether upstream sent it in an event stream.
    """

    response: Response
    data: bytes
    streamed: bool


class Exchange(Call):
    """A request between its acceptance and its end.

    Parameters:
        request: the request as its client wrote it.
        caller: whose it is.
        headers: what goes to upstream with it besides the session's own headers.
        repeatable: whether running it twice changes nothing.
        on_end: called once, when the exchange ends.

    Attributes:
        sent: whether upstream may have seen the request, in any attempt.
        streamed: whether upstream answers in an event stream.
        opened_session_id: the session that the reply opened, for an ``initialize``.
        relayed: whether the client was sent an event already, so that nothing may be replayed for it.
    """

    def __init__(
        self,
        request: Request,
        caller: Caller,
        *,
        headers: Mapping[str, str],
        repeatable: bool,
        on_end: Callable[[Exchange], None],
    ) -> None:
        super().__init__(request, caller)
        self.headers = headers
        self.repeatable = repeatable
        self.sent = False
        self.streamed = False
        self.opened_session_id: str | None = None
        self.relayed = False
        self._on_end = on_end
        self._progress: deque[bytes] = deque()
        self._progress_bytes = 0
        self._end: Answered | BridgeError | None = None
        self._news = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None
        self._expire: tuple[float, Callable[[Exchange], None]] | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer or an error has come."""
        return self._end is not None

    @property
    def error(self) -> BridgeError | None:
        """The error that ended it, if one did."""
        return self._end if isinstance(self._end, BridgeError) else None

    @property
    def outcome(self) -> Outcome:
        """``not_sent`` when upstream provably never saw the request in any attempt."""
        return "unknown" if self.sent else "not_sent"

    def set_deadline(self, timeout_seconds: float, expire: Callable[[Exchange], None]) -> None:
        """Has ``expire`` called when that much time passes without an end or a step of progress."""
        self._expire = timeout_seconds, expire
        self._restart_deadline()

    def take_progress(self, data: bytes) -> None:
        """Keeps a step of progress for the reader and starts the deadline anew."""
        self._progress.append(data)
        self._progress_bytes += len(data)
        while self._progress_bytes > PROGRESS_LIMIT_BYTES and len(self._progress) > 1:
            self._progress_bytes -= len(self._progress.popleft())
        self._restart_deadline()
        self._news.set()

    def drop_progress(self) -> None:
        """Lets go of the steps of an attempt that failed: another attempt counts them anew."""
        self._progress.clear()
        self._progress_bytes = 0

    def answer(self, response: Response, data: bytes) -> None:
        """Ends the exchange by its answer."""
        self._finish(Answered(response, data, self.streamed))

    def fail(self, error: BridgeError) -> None:
        """Ends the exchange by an error, which then says whether upstream may have seen the request."""
        error.request_id = self.request.spelled_id
        error.data |= {"outcome": self.outcome, "retryable": not self.sent or self.repeatable}
        self._finish(error)

    async def next(self, timeout_seconds: float | None = None) -> bytes | Answered | None:
        """Waits for what comes next.

        Parameters:
            timeout_seconds: how long to wait.

        Returns:
            A step of progress as bytes, the answer, or ``None`` when nothing came in time.

        Errors:
            BridgeError: the error that ended the exchange.
        """
        while True:
            if self._progress:
                step = self._progress.popleft()
                self._progress_bytes -= len(step)
                return step
            if isinstance(self._end, BridgeError):
                raise self._end
            if self._end is not None:
                return self._end
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._news.wait()
            except TimeoutError:
                return None

    async def result(self) -> Answered:
        """Waits for the answer, whatever progress comes before it.

        Errors:
            BridgeError: the error that ended the exchange.
        """
        while not isinstance(news := await self.next(), Answered):
            pass
        return news

    def _restart_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        if self._expire is not None and not self.ended:
            timeout_seconds, expire = self._expire
            self._deadline = asyncio.get_running_loop().call_later(timeout_seconds, expire, self)

    def _finish(self, end: Answered | BridgeError) -> None:
        if self.ended:
            return
        self._end = end
        if self._deadline is not None:
            self._deadline.cancel()
        self._news.set()
        self._on_end(self)
