"""Measures the cost of open streams and large answers, for the bridge and for its other clients."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import aiohttp

from bench import progress
from bench.contenders import BRIDGE, INITIALIZE, Started, started
from bench.figures import Figure
from bench.processes import TOKEN, Failed, Process, upstream
from bench.targets import number
from bench.throughput import Scenario, load

IDLE, SLOW, READERS = 1000, 200, 10
LARGE = 10_000_000
ROUNDS = 3
OTHERS = Scenario("json", 4, 200)
REST_SECONDS = 1.5
PAUSE_SECONDS = 0.3
"""The pause between two large answers."""
IDLE_SECONDS = 16
"""Slightly longer than the heartbeat interval, so that each stream has had one."""
HEADERS = {
    "Authorization": f"Bearer {TOKEN}",
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
}
Row = dict[str, str]


@dataclass(frozen=True)
class Bench:
    """The bridge under test, and a client without limits."""

    it: Started
    http: aiohttp.ClientSession

    @property
    def process(self) -> Process:
        """The bridge's process."""
        if self.it.process is None:
            raise Failed("The bridge has no process.")
        return self.it.process

    @property
    def url(self) -> str:
        """The bridge's MCP endpoint."""
        return f"http://127.0.0.1:{self.it.port}/mcp"

    def call(self, accept: str = HEADERS["Accept"], **arguments: Any) -> Any:
        """Makes a tool call that is in flight within the context."""
        message = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "tools/call",
            "params": {"name": "echo", "arguments": arguments, "_meta": {"progressToken": 1}},
        }
        return self.http.post(self.url, data=json.dumps(message), headers={**HEADERS, "Accept": accept})

    async def at_rest(self) -> float:
        """Returns the resident memory in bytes, once it is stable."""
        await asyncio.sleep(REST_SECONDS)
        return self.process.rss_bytes()

    async def others(self) -> float:
        """Measures the p99 of ordinary clients, in microseconds."""
        said = await asyncio.to_thread(load, self.it, OTHERS, "--seconds", "1.5", "--warm-up", "0.2")
        return said["p99_us"]

    async def compared(self, work: Callable[[asyncio.Event], Awaitable[Any]], under_way: float = 0) -> Figure:
        """Measures the ratio of the other clients' p99 during the work to their p99 just before, in several rounds.

        Parameters:
            work: ends soon after the event is set.
            under_way: seconds until the work has reached the state to measure.
        """
        ratios = []
        for _ in range(ROUNDS):
            await asyncio.sleep(REST_SECONDS)
            alone, stopping = await self.others(), asyncio.Event()
            working = asyncio.ensure_future(work(stopping))
            await asyncio.sleep(under_way)
            ratios.append(await self.others() / alone)
            stopping.set()
            await working
        return Figure.of(ratios)


def measure() -> dict[str, Any]:
    """Measures idle, slow and large streams, one after another, each on its own bridge."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    found: dict[str, Any] = {"rows": []}
    for part in (_idle, _slow, _large, _readers):
        progress.say(f"streams: {part.__name__[1:]}")
        # The window must hold as many slow calls as there are clients; the other settings are the defaults.
        with upstream() as port, started(BRIDGE, _url(port), VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY="256") as it:
            figures, rows = asyncio.run(_with_client(it, part))
        found[part.__name__[1:]] = figures
        found["rows"] += [{"what": what, "measured": measured} for what, measured in rows.items()]
    progress.done()
    return found


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}/mcp"


async def _with_client(
    it: Started, part: Callable[[Bench], Awaitable[tuple[dict[str, Any], Row]]]
) -> tuple[dict[str, Any], Row]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(None)) as http:
        bench = Bench(it, http)
        await bench.others()
        return await part(bench)


async def _idle(bench: Bench) -> tuple[dict[str, Any], Row]:
    """Measures streams that get only heartbeats."""
    before = await bench.at_rest()
    async with AsyncExitStack() as stack:
        streams = []
        for _ in range(IDLE):
            async with bench.http.post(bench.url, data=json.dumps(INITIALIZE), headers=HEADERS) as opened:
                session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
            stream = await stack.enter_async_context(bench.http.get(bench.url, headers={**HEADERS, **session}))
            if stream.status != 200:
                raise Failed(f"A stream was answered {stream.status}.")
            streams.append(stream)
        rss = await bench.at_rest()
        used, began = bench.process.cpu_seconds(), time.monotonic()
        await asyncio.sleep(IDLE_SECONDS)
        busy = (bench.process.cpu_seconds() - used) / (time.monotonic() - began)
        beats = [await asyncio.wait_for(stream.content.readany(), 5) for stream in streams]
    if not all(beat.startswith(b":") for beat in beats):
        raise Failed("A stream had no heartbeat.")
    kib = (rss - before) / IDLE / 1024
    figures = {"kib_each": kib, "rss_mib": rss / 2**20, "cpu_share": busy}
    return figures, {
        f"{IDLE:,} idle streams: memory per stream": f"{number(kib)} KiB",
        f"{IDLE:,} idle streams: resident memory": f"{number(rss / 2**20)} MiB",
        f"{IDLE:,} idle streams: CPU, heartbeats included": f"{busy:.1%} of a core",
    }


async def _slow(bench: Bench) -> tuple[dict[str, Any], Row]:
    """Measures calls that report progress four times a second."""
    steps, pause = 10, 250
    before = await bench.at_rest()
    rss: list[float] = []
    late: list[float] = []

    async def one() -> int:
        async with bench.call(steps=steps, pause=pause) as stream:
            return sum([line.startswith(b"data:") async for line in stream.content])

    async def everybody(stopping: asyncio.Event) -> None:
        while not stopping.is_set():
            began = time.monotonic()
            calls = [asyncio.ensure_future(one()) for _ in range(SLOW)]
            await asyncio.sleep(steps * pause / 2000)
            rss.append(bench.process.rss_bytes())
            if set(await asyncio.gather(*calls)) != {steps + 1}:
                raise Failed("A slow call did not get all its progress.")
            late.append(time.monotonic() - began - (steps + 1) * pause / 1000)

    ratio = await bench.compared(everybody)
    kib = (max(rss) - before) / SLOW / 1024
    figures = {"kib_each": kib, "p99_ratio": ratio.as_json(), "late_seconds": max(late)}
    what = f"{SLOW} calls that report progress for {steps * pause / 1000:.1f} s"
    return figures, {
        f"{what}: memory per call": f"{number(kib)} KiB",
        f"{what}: delay of the last response": f"{number(max(late))} s",
        f"{what}: p99 of the others": _times(ratio),
    }


async def _large(bench: Bench) -> tuple[dict[str, Any], Row]:
    """Measures answers of 10 MB, one at a time."""
    rows: Row = {}
    peaks, kept, ratios = [], [], []
    for form, accept in {"JSON": "application/json", "SSE": HEADERS["Accept"]}.items():

        async def fetch(sse: bool = form == "SSE", accept: str = accept) -> tuple[float, float]:
            began = time.monotonic()
            async with bench.call(accept, bytes=LARGE, sse=sse) as answer:
                start = await answer.content.readany()
                first = time.monotonic() - began
                # Upstream's size includes the bridge's id, which is longer than the client's.
                if len(start) + len(await answer.content.read()) < LARGE - 20:
                    raise Failed("A large answer was cut.")
            return first, time.monotonic() - began

        async def one_by_one(stopping: asyncio.Event, fetch: Callable[[], Awaitable[Any]] = fetch) -> None:
            while not stopping.is_set():
                await fetch()
                await asyncio.sleep(PAUSE_SECONDS)

        rest = await bench.at_rest()
        bench.process.forget_peak()
        first, whole = await fetch()
        peaks.append((bench.process.peak_rss_bytes() - rest) / LARGE)
        kept.append((await bench.at_rest() - rest) / LARGE)
        ratios.append(await bench.compared(one_by_one))
        rows |= {
            f"10 MB response, {form}: time to first byte, to the end": f"{first * 1000:.0f} ms, {whole * 1000:.0f} ms",
            f"10 MB response, {form}: peak memory increase": f"{number(peaks[-1] * LARGE / 1e6)} MB",
            f"10 MB response, {form}: memory increase that remains": f"{number(kept[-1] * LARGE / 1e6)} MB",
            f"10 MB response, {form}: p99 of the others": _times(ratios[-1]),
        }
    worst = max(ratios, key=lambda ratio: ratio.median)
    return {"peak_in_sizes": max(peaks), "kept_in_sizes": max(kept), "p99_ratio": worst.as_json()}, rows


async def _readers(bench: Bench) -> tuple[dict[str, Any], Row]:
    """Measures clients that read a large answer at a megabyte a second."""
    rest = await bench.at_rest()
    bench.process.forget_peak()

    async def read(stopping: asyncio.Event) -> None:
        async with bench.call(bytes=LARGE, sse=True) as answer:
            async for _ in answer.content.iter_chunked(100_000):
                if stopping.is_set():
                    break
                await asyncio.sleep(0.1)

    async def everybody(stopping: asyncio.Event) -> None:
        await asyncio.gather(*(read(stopping) for _ in range(READERS)))

    # By then the answers have arrived from upstream, and clients are reading them.
    ratio = await bench.compared(everybody, under_way=3)
    what = f"{READERS} clients that read 10 MB at 1 MB/s"
    peak = bench.process.peak_rss_bytes() - rest
    return {"peak_mb_each": peak / READERS / 1e6, "p99_ratio": ratio.as_json()}, {
        f"{what}: peak memory increase per client": f"{number(peak / READERS / 1e6)} MB",
        f"{what}: p99 of the others": _times(ratio),
    }


def _times(figure: Figure) -> str:
    return f"{number(figure.median)} × before ({number(figure.low)}–{number(figure.high)})"
