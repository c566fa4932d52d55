"""A principal that posts more than there is room for, beside one that makes one call at a time."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, Self

from chaos.account import Call, Figures
from chaos.stack import Run, Stack, stack
from harness import NODE, ROOT, Gateway

CALL_MILLISECONDS: Final = 20
PLACES: Final = (1, 8)
POSTS: Final = 2_000
LEAST_POSTS: Final = 200
IN_FLIGHT: Final = 512
"""The default limit."""

TIMED_CALLS: Final = 400
LEAST_TIMED_CALLS: Final = 200
MOST_BATCHES: Final = 20
"""Where each call waits for the whole batch, as many as these show it."""

MOST_TIMES: Final = 3
"""How many times as long as alone 99 % of the calls may take beside those of the other principal."""

SHORT_MOST_TIMES: Final = 10
"""The same for a short form, which runs beside whatever else a machine does: in the order of arrival it is over 20."""

RATED_CALLS: Final = 400
LEAST_RATED_CALLS: Final = 80
STRETCHES: Final = 4
LEAST_RATE: Final = 0.9
"""How much of the calls a second that the order of arrival gives a principal alone it has to get in turns."""

SHORT_LEAST_RATE: Final = 0.5
"""The same for a short form."""

PAUSE_SECONDS: Final = 0.001
"""Between two posts: longer than the driver takes for one, so that it does not delay the calls that it times."""

PATIENCE_SECONDS: Final = 150
"""Longer than the bridge waits by default."""

UPSTREAM: Final = ROOT / "tests/chaos/upstream.mjs"


class TimedUpstream(Gateway):
    """An upstream that costs next to nothing, so that on a small machine the bridge is waited for, and not it.

    Parameters:
        journal: where it writes each call down.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(UPSTREAM)
        self._journal = journal

    @property
    def arguments(self) -> list[str | Path]:
        """How it is started."""
        environ = (f"JOURNAL={self._journal}", f"MILLISECONDS={CALL_MILLISECONDS}")
        return ["env", *environ, NODE, UPSTREAM, str(self.port)]


class Client:
    """One principal, with as many connections as it has calls at a time.

    Parameters:
        it: the parts.
        token: its token.
    """

    def __init__(self, it: Stack, token: str) -> None:
        self._it = it
        self._token = token
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        """Connects when it calls."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes its connections."""
        for _, writer in self._idle:
            await self._close(writer)

    async def call(self) -> Call:
        """Posts a call, and waits for its answer."""
        call = self._it.account.open("write", "1")
        connection = (
            self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._it.bridge.port)
        )
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                call.take(*await self._exchange(call, *connection))
        except TimeoutError:
            await self._close(connection[1])
        except (OSError, EOFError):
            call.got = "cut"
            await self._close(connection[1])
        else:
            self._idle.append(connection)
        return call

    async def timed(self) -> float:
        """Makes a call that has to be answered; returns how long it took, in seconds."""
        began = time.monotonic()
        call = await self.call()
        if call.got != "answer":
            self._it.figures.blame("failed", f"a call that was not too many got no answer: {call.got} {call.error}")
        return time.monotonic() - began

    async def _close(self, writer: asyncio.StreamWriter) -> None:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    async def _exchange(
        self, call: Call, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[int, bytes]:
        params = f'{{"name":"{call.tool}","arguments":{{"key":"{call.key}"}}}}'
        body = f'{{"jsonrpc":"2.0","id":{call.spelled_id},"method":"tools/call","params":{params}}}'
        lines = (
            *("POST /mcp HTTP/1.1", "Host: localhost", "Content-Type: application/json"),
            *(f"Authorization: Bearer {self._token}", f"Content-Length: {len(body)}"),
        )
        writer.write("\r\n".join([*lines, "", body]).encode())
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = re.findall(rb"(?i)\ncontent-length: (\d+)", head)
        return int(head[9:12]), await reader.readexactly(int(length))


async def fairness(run: Run) -> Figures:
    """F11: whoever makes one call at a time waits for one turn of the other, and the other loses nothing by it."""
    posts = max(LEAST_POSTS, run.times(POSTS))
    windows = " and ".join(map(str, PLACES))
    done = f"{posts:,} calls of {CALL_MILLISECONDS} ms posted at once by one principal, one at a time by another"
    figures = Figures("F11 fair turns", f"{done}, in windows of {windows}, repeated")
    for places in PLACES:
        async with (
            _two_principals(run, "", places, posts) as in_turns,
            _two_principals(run, "first_come_first_served", places, posts) as by_arrival,
        ):
            await _beside(in_turns, places, posts)
            await _alone(in_turns, by_arrival, places)
        figures.add(in_turns.figures)
        figures.add(by_arrival.figures)
    return figures


@asynccontextmanager
async def _two_principals(run: Run, order: str, places: int, posts: int) -> AsyncIterator[Stack]:
    """The parts, with a bridge that knows two principals and gives places in turns, or in another order."""
    name = f"F11 window of {places} {order or 'in turns'}"
    file = run.folder / "tokens-of-two"
    file.write_text(f"batch {run.token}\nother {_other_token(run)}\n")
    # A short form has a short queue: as many of its posts find room as of all of them with the defaults.
    limit = str(IN_FLIGHT * posts // POSTS)
    async with stack(
        dataclasses.replace(run, defect=order or run.defect),
        name,
        name,
        upstream=TimedUpstream,
        VESTIGE_AUTH_TOKEN="",
        VESTIGE_AUTH_TOKEN_FILE=str(file),
        UPSTREAM_CONCURRENCY=str(places),
        MAX_IN_FLIGHT=limit,
        REQUEST_TIMEOUT_SECONDS="120",
        LOG_LEVEL="info",
    ) as it:
        yield it


async def _beside(it: Stack, places: int, posts: int) -> None:
    """Times the calls of one principal, alone and beside the posts of the other."""
    number = max(LEAST_TIMED_CALLS, it.run.times(TIMED_CALLS))
    alone: list[float] = []
    beside: list[float] = []
    batches = 0
    async with Client(it, _other_token(it.run)) as client:
        while len(beside) < number and batches < MOST_BATCHES:
            if len(alone) <= len(beside):
                # Between the batches, so that whatever else the machine does falls on both alike.
                alone += [await client.timed() for _ in range(number // 2)]
            batch = asyncio.create_task(_batch(it, posts))
            batches += 1
            await asyncio.sleep(posts // 4 * PAUSE_SECONDS)
            while not batch.done():
                beside.append(await client.timed())
            await batch
    times = _within(beside, 99) / _within(alone, 99)
    it.figures.notes.append(
        f"window of {places}: without a batch {len(alone)} calls, p50 {_within(alone, 50) * 1000:.1f} ms, "
        f"p99 {_within(alone, 99) * 1000:.1f} ms; with {batches} times {posts:,} posts {len(beside)} calls, "
        f"p50 {_within(beside, 50) * 1000:.1f} ms, p99 {_within(beside, 99) * 1000:.1f} ms, {times:.1f} times as long"
    )
    if times > (MOST_TIMES if it.run.scale >= 1 else SHORT_MOST_TIMES):
        it.figures.blame(
            "unanswered", f"window of {places}: the p99 of the other principal is {times:.1f} times as long"
        )


async def _batch(it: Stack, posts: int) -> None:
    """Posts so many calls, and waits for all of their answers: those that found no room say so, and did not run."""
    async with Client(it, it.run.token) as client, asyncio.TaskGroup() as group:
        for _ in range(posts):
            group.create_task(client.call())
            await asyncio.sleep(PAUSE_SECONDS)


async def _alone(in_turns: Stack, by_arrival: Stack, places: int) -> None:
    """Counts how many calls a second a principal gets that has more to ask than there are places, in either order."""
    calls = max(LEAST_RATED_CALLS, in_turns.run.times(RATED_CALLS)) * places
    seconds = {it.figures.fault: 0.0 for it in (in_turns, by_arrival)}
    for _ in range(STRETCHES):
        for it in (in_turns, by_arrival):
            seconds[it.figures.fault] += await _seconds(it, calls // STRETCHES, at_once=4 * places)
    fair, before = (calls / it for it in seconds.values())
    in_turns.figures.notes.append(
        f"window of {places}: throughput of the batch alone {fair:.1f} calls/s in turns, "
        f"{before:.1f} calls/s in the order of arrival"
    )
    if fair < (LEAST_RATE if in_turns.run.scale >= 1 else SHORT_LEAST_RATE) * before:
        in_turns.figures.blame("failed", f"window of {places}: {fair:.1f} calls a second, {before:.1f} before")


async def _seconds(it: Stack, calls: int, at_once: int) -> float:
    """How long a principal takes for so many calls, all of which have to be answered."""
    left = iter(range(calls))
    began = time.monotonic()
    async with Client(it, it.run.token) as client:

        async def post() -> None:
            for _ in left:
                await client.timed()

        await asyncio.gather(*(post() for _ in range(at_once)))
    return time.monotonic() - began


def _other_token(run: Run) -> str:
    return run.secret("other-token")


def _within(took: list[float], percent: int) -> float:
    """In how many seconds so many of all were over."""
    return statistics.quantiles(took, n=100)[percent - 1]
