"""Slow readers, slow writers and a slow upstream: they must not delay other clients, and memory must be bounded."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from chaos.account import Figures
from chaos.link import Link
from chaos.stack import Run, Stack, stack

AT_ONCE = 20
FLOODS_AT_ONCE = 4
PROBES = 4
LEAST_SECONDS = 3
LATE_SECONDS = 2.0
MAX_ANSWER_BYTES = 8 * 2**20
GROWTH_MEGABYTES = 100
LARGE_CHARACTERS = 1_000_000


async def misbehave(chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    """Answers instead of upstream if a call requests a fault; returns whether it did."""
    for name, answer in UPSTREAM_FAULTS.items():
        if f'"fault": "{name}"'.encode() in chunk:
            await answer(writer)
            return True
    return False


async def _trickle(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
    for byte in itertools.cycle(b": one byte a second\n"):
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(1)


async def _header_without_end(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for number in itertools.count():
        writer.write(b"X-%d: more to come\r\n" % number)
        await writer.drain()
        await asyncio.sleep(0.1)


async def _gigabyte_event(writer: asyncio.StreamWriter) -> None:
    await _gigabyte(writer, b"text/event-stream\r\n\r\ndata: ")


async def _gigabyte_json(writer: asyncio.StreamWriter) -> None:
    await _gigabyte(writer, b'application/json\r\n\r\n{"jsonrpc":"2.0","id":"')


async def _gigabyte(writer: asyncio.StreamWriter, start: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: " + start)
    for _ in range(2**30 // 2**16):
        writer.write(b"x" * 2**16)
        await writer.drain()
        await asyncio.sleep(0.002)


UPSTREAM_FAULTS: dict[str, Callable[[asyncio.StreamWriter], Awaitable[None]]] = {
    "a byte a second": _trickle,
    "a header without end": _header_without_end,
    "1 GB in an event": _gigabyte_event,
    "1 GB of JSON": _gigabyte_json,
}


async def slowness(run: Run) -> Figures:
    """F7: slow clients and a slow upstream, beside a few callers whose calls are timed."""
    done = f"slow readers, writers and upstreams, {AT_ONCE} at a time, beside {PROBES} clients"
    link = Link(misbehave)
    seconds = max(1, 6 * run.scale)
    limit = str(MAX_ANSWER_BYTES)
    async with stack(run, "F7 slowness", done, link=link, REQUEST_TIMEOUT_SECONDS="4", MAX_ANSWER_BYTES=limit) as it:
        await probe(it, 1)
        it.figures.notes.append(f"alone: {await probe(it, seconds)}")
        before = it.bridge.megabytes
        for name, party in _parties(it).items():
            number = FLOODS_AT_ONCE if "1 GB" in name else AT_ONCE
            async with peak(it) as most, all_the_time(party, number):
                probed = await probe(it, max(seconds, LEAST_SECONDS))
            grown = most[0] - before
            it.figures.notes.append(f"with {number} of *{name}*: {probed}, memory +{grown:.0f} MB")
            if grown > GROWTH_MEGABYTES:
                it.figures.blame("grown", f"{name}: {grown:.0f} MB more, {GROWTH_MEGABYTES} allowed")
        await it.good_request()
        await it.one_server()
    return it.figures


def _parties(it: Stack) -> dict[str, Callable[[], Awaitable[object]]]:
    upstream = {
        f"upstream that sends {name}": lambda name=name: it.caller().call("write", fault=name)
        for name in UPSTREAM_FAULTS
    }
    return {
        "slow reader": lambda: _slow_reader(it),
        "slow writer": lambda: _slow_writer(it),
        "slow upstream": lambda: it.caller().call("write", steps=1, step_ms=2000),
        **upstream,
    }


@asynccontextmanager
async def all_the_time(party: Callable[[], Awaitable[object]], number: int) -> AsyncIterator[None]:
    """Keeps this number of parties running within the context, each again and again; the last ones run to their end."""
    stopped = asyncio.Event()

    async def again() -> None:
        while not stopped.is_set():
            await party()

    async with asyncio.TaskGroup() as group:
        for _ in range(number):
            group.create_task(again())
        await asyncio.sleep(1)
        try:
            yield
        finally:
            stopped.set()


async def probe(it: Stack, seconds: float) -> str:
    """Makes calls one after another for a time; returns a summary of their durations."""
    took: list[float] = []
    end = time.monotonic() + seconds

    async def call() -> None:
        while time.monotonic() < end:
            began = time.monotonic()
            await it.caller().call()
            took.append(time.monotonic() - began)

    await asyncio.gather(*(call() for _ in range(PROBES)))
    for late in took:
        if late > LATE_SECONDS:
            it.figures.blame("unanswered", f"a call beside took {late:.1f} s")
    median, *_, last = statistics.quantiles(took, n=100)[49:]
    return f"{len(took):,} calls, p50 {median * 1000:.1f} ms, p99 {last * 1000:.1f} ms"


@asynccontextmanager
async def peak(it: Stack) -> AsyncIterator[list[float]]:
    """Measures the peak memory of the bridge within the context."""
    most = [0.0]

    async def watch() -> None:
        while True:
            most[0] = max(most[0], it.bridge.megabytes)
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    try:
        yield most
    finally:
        watching.cancel()


async def _slow_reader(it: Stack) -> None:
    """Requests a large answer, and reads slowly."""
    call = it.account.open("read", "1")
    call.got = "left"
    body = it.caller().body(call, characters=LARGE_CHARACTERS)
    reader, writer = await asyncio.open_connection("127.0.0.1", it.bridge.port, limit=1024)
    with suppress(OSError):
        writer.write(_head(it, len(body)) + body)
        for _ in range(20):
            await reader.read(100)
            await asyncio.sleep(0.1)
    writer.transport.abort()


async def _slow_writer(it: Stack) -> None:
    """Sends its body byte by byte, and does not complete it."""
    call = it.account.open("read", "1")
    call.got = "left"
    body = it.caller().body(call)
    _, writer = await asyncio.open_connection("127.0.0.1", it.bridge.port)
    with suppress(OSError):
        writer.write(_head(it, len(body)))
        for byte in body[:40]:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)
    writer.close()


def _head(it: Stack, length: int) -> bytes:
    lines = (
        *("POST /mcp HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Accept: text/event-stream"),
        *(f"Authorization: Bearer {it.run.token}", f"Content-Length: {length}"),
    )
    return "\r\n".join([*lines, "", ""]).encode()
