"""A principal that posts more than the limits allow, beside one that makes one call at a time."""

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
SLOTS: Final = (1, 8)
POSTS: Final = 2_000
LEAST_POSTS: Final = 200
IN_FLIGHT: Final = 512
"""The default limit."""

TIMED_CALLS: Final = 400
LEAST_TIMED_CALLS: Final = 200
MOST_BATCHES: Final = 20
"""This many batches are enough to show that a call waits for a whole batch."""

MOST_TIMES: Final = 3
"""The limit of the ratio of the p99 during the other principal's calls to the p99 alone."""

SHORT_MOST_TIMES: Final = 10
"""The same for a short run on a busy machine; in the order of arrival the ratio is over 20."""

RATED_CALLS: Final = 400
LEAST_RATED_CALLS: Final = 80
STRETCHES: Final = 4
LEAST_RATE: Final = 0.9
"""The minimum throughput of a principal alone with fair turns, as a share of that in the order of arrival."""

SHORT_LEAST_RATE: Final = 0.5
"""The same for a short run."""

PAUSE_SECONDS: Final = 0.001
"""The pause between two POSTs: longer than the driver needs for one, so that they do not delay the timed calls."""

PATIENCE_SECONDS: Final = 150
"""The time that a client waits: longer than the bridge waits by default."""

UPSTREAM: Final = ROOT / "tests/chaos/upstream.mjs"


class TimedUpstream(Gateway):
    """An upstream that needs very little CPU time, so that the bridge is the bottleneck on a small machine.

    Parameters:
        journal: the file in which it records each call.
    """

    def __init__(self, journal: Path) -> None:
        super().__init__(UPSTREAM)
        self._journal = journal

    @property
    def arguments(self) -> list[str | Path]:
        """The command line."""
        environ = (f"JOURNAL={self._journal}", f"MILLISECONDS={CALL_MILLISECONDS}")
        return ["env", *environ, NODE, UPSTREAM, str(self.port)]


class Client:
    """A client of one principal, with one connection for each of its concurrent calls.

    Parameters:
        it: the parts of the run.
        token: its token.
    """

    def __init__(self, it: Stack, token: str) -> None:
        self._it = it
        self._token = token
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def __aenter__(self) -> Self:
        """Returns itself; connections are opened when they are needed."""
        return self

    async def __aexit__(self, *error: object) -> None:
        """Closes the connections."""
        for _, writer in self._idle:
            await self._close(writer)

    async def call(self) -> Call:
        """POSTs a call, and waits for its answer."""
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
        """Makes a call that must be answered; returns its duration in seconds."""
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
    """F11: a principal with one call at a time waits for one turn of the other, and the other loses no throughput."""
    posts = max(LEAST_POSTS, run.times(POSTS))
    windows = " and ".join(map(str, SLOTS))
    done = f"{posts:,} calls of {CALL_MILLISECONDS} ms posted 1 ms apart by one principal, one at a time by another"
    figures = Figures("F11 fair turns", f"{done}, in windows of {windows}, repeated")
    for slots in SLOTS:
        async with (
            _two_principals(run, "", slots, posts) as in_turns,
            _two_principals(run, "first_come_first_served", slots, posts) as by_arrival,
        ):
            await _beside(in_turns, slots, posts)
            await _alone(in_turns, by_arrival, slots)
        figures.add(in_turns.figures)
        figures.add(by_arrival.figures)
    return figures


@asynccontextmanager
async def _two_principals(run: Run, order: str, slots: int, posts: int) -> AsyncIterator[Stack]:
    """Yields the parts, with a bridge for two principals that assigns slots in the given order."""
    name = f"F11 window of {slots} {order or 'in turns'}"
    file = run.folder / "tokens-of-two"
    file.write_text(f"batch {run.token}\nother {_other_token(run)}\n")
    # A short run has a short queue, so that the admitted share of its POSTs is the same as with the defaults.
    limit = str(IN_FLIGHT * posts // POSTS)
    async with stack(
        dataclasses.replace(run, defect=order or run.defect),
        name,
        name,
        upstream=TimedUpstream,
        VESTIGE_AUTH_TOKEN="",
        VESTIGE_AUTH_TOKEN_FILE=str(file),
        UPSTREAM_CONCURRENCY=str(slots),
        MAX_IN_FLIGHT=limit,
        REQUEST_TIMEOUT_SECONDS="120",
        LOG_LEVEL="info",
    ) as it:
        yield it


async def _beside(it: Stack, slots: int, posts: int) -> None:
    """Times the calls of one principal, alone and beside the posts of the other."""
    number = max(LEAST_TIMED_CALLS, it.run.times(TIMED_CALLS))
    alone: list[float] = []
    beside: list[float] = []
    batches = 0
    async with Client(it, _other_token(it.run)) as client:
        while len(beside) < number and batches < MOST_BATCHES:
            if len(alone) <= len(beside):
                # Measured between the batches, so that other load on the machine affects both figures equally.
                alone += [await client.timed() for _ in range(number // 2)]
            batch = asyncio.create_task(_batch(it, posts))
            batches += 1
            await asyncio.sleep(posts // 4 * PAUSE_SECONDS)
            while not batch.done():
                beside.append(await client.timed())
            await batch
    times = _within(beside, 99) / _within(alone, 99)
    it.figures.notes.append(
        f"window of {slots}: without a batch {len(alone)} calls, p50 {_within(alone, 50) * 1000:.1f} ms, "
        f"p99 {_within(alone, 99) * 1000:.1f} ms; with {batches} times {posts:,} posts {len(beside)} calls, "
        f"p50 {_within(beside, 50) * 1000:.1f} ms, p99 {_within(beside, 99) * 1000:.1f} ms, {times:.1f} times as long"
    )
    if times > (MOST_TIMES if it.run.scale >= 1 else SHORT_MOST_TIMES):
        it.figures.blame(
            "unanswered", f"window of {slots}: the p99 of the other principal is {times:.1f} times as long"
        )


async def _batch(it: Stack, posts: int) -> None:
    """POSTs calls, and waits for all answers; a call that was rejected must get such an error, and must not run."""
    async with Client(it, it.run.token) as client, asyncio.TaskGroup() as group:
        for _ in range(posts):
            group.create_task(client.call())
            await asyncio.sleep(PAUSE_SECONDS)


async def _alone(in_turns: Stack, by_arrival: Stack, slots: int) -> None:
    """Measures the throughput of one principal with more calls than slots, in either order."""
    calls = max(LEAST_RATED_CALLS, in_turns.run.times(RATED_CALLS)) * slots
    seconds = {it.figures.fault: 0.0 for it in (in_turns, by_arrival)}
    for _ in range(STRETCHES):
        for it in (in_turns, by_arrival):
            seconds[it.figures.fault] += await _seconds(it, calls // STRETCHES, at_once=4 * slots)
    fair, before = (calls / it for it in seconds.values())
    in_turns.figures.notes.append(
        f"window of {slots}: throughput of the batch alone {fair:.1f} calls/s in turns, "
        f"{before:.1f} calls/s in the order of arrival"
    )
    if fair < (LEAST_RATE if in_turns.run.scale >= 1 else SHORT_LEAST_RATE) * before:
        in_turns.figures.blame("failed", f"window of {slots}: {fair:.1f} calls a second, {before:.1f} before")


async def _seconds(it: Stack, calls: int, at_once: int) -> float:
    """Makes calls, all of which must be answered; returns their duration."""
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
    """Returns the percentile of the durations."""
    return statistics.quantiles(took, n=100)[percent - 1]
