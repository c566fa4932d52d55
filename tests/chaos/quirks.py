"""Upstreams that answer GET with every status, and cancelled calls that never end: no resource may grow."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp

from chaos.account import CANCELLED, Figures
from chaos.link import Link
from chaos.outages import kill_server
from chaos.stack import BridgeProcess, Run, Stack, stack
from harness import JSON, Received, call_body
from integration.doctor_setups import scripted_upstream

GET_STATUSES = (404, 405, 501, 503, 409, 429, 400, 200)
WINDOW = 32
AT_ONCE = 64
TIMEOUT_SECONDS = 2
DESCRIPTORS = 2 * WINDOW + 2 * AT_ONCE + 16
"""The limit of additional descriptors: two for each slot of the window, two for each client, and a margin."""


async def streams(run: Run) -> Figures:
    """Upstream answers GET with each status under load; none may make the bridge open sessions repeatedly."""
    seconds = max(3.0, 10 * run.scale)
    done = f"GET answered with {', '.join(map(str, GET_STATUSES))} for {seconds:.0f} s each, under 8 clients"
    status = GET_STATUSES[0]

    async def answer_get(chunk: bytes, writer: asyncio.StreamWriter) -> bool:
        if not chunk.startswith(b"GET "):
            return False
        writer.write(b"HTTP/1.1 %d No\r\nContent-Type: text/plain\r\nContent-Length: 0\r\n\r\n" % status)
        await writer.drain()
        return True

    async with stack(run, "GET statuses", done, link=Link(answer_get)) as it:
        for status in GET_STATUSES:
            await _with_status(it, status, seconds)
        await it.good_request()
        await it.one_server()
    return it.figures


async def _with_status(it: Stack, status: int, seconds: float) -> None:
    before, began = it.account.handshakes(), time.monotonic()
    await kill_server(it)
    async with it.load(8, pause_seconds=0.02):
        await asyncio.sleep(seconds)
    opened, allowed = it.account.handshakes() - before, 2 + time.monotonic() - began
    if opened > allowed or (status != 404 and opened > 2):
        it.figures.blame("grown", f"{opened} sessions in {seconds:.0f} s while GET was answered {status}")
    await it.bridge.ready(it.http)


async def cancellations(run: Run) -> Figures:
    """Thousands of calls are cancelled, and upstream neither answers nor releases them."""
    times = run.times(4000)
    figures = Figures("Cancelled calls", f"{times} calls cancelled that upstream never ends, {AT_ONCE} at a time")
    settled = asyncio.Event()
    async with scripted_upstream() as upstream:

        async def hang(received: Received) -> aiohttp.web.StreamResponse:
            await settled.wait()
            return await upstream.answer(received)

        settings = {"REQUEST_TIMEOUT_SECONDS": str(TIMEOUT_SECONDS), "UPSTREAM_CONCURRENCY": str(WINDOW)}
        bridge = BridgeProcess(run, upstream.url, settings)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            await bridge.ready(http)
            before = most = bridge.descriptors
            upstream.on("tools/call", hang)
            upstream.on("notifications/cancelled", hang)
            for first in range(0, times, AT_ONCE):
                numbers = range(first, min(first + AT_ONCE, times))
                await asyncio.gather(*(_cancelled(run, bridge, http, number, figures) for number in numbers))
                most = max(most, bridge.descriptors)
            figures.notes.append(f"{before} descriptors before, {most} at most")
            if most - before > DESCRIPTORS:
                figures.blame("grown", f"{most - before} more descriptors, {DESCRIPTORS} allowed")
            upstream.scripts.clear()
            settled.set()
            await _good(run, bridge, http, figures)
        if (status := await bridge.stop()) != 0:
            figures.blame("failed", f"the bridge ended with status {status}")
        bridge.check_log(figures)
    return figures


async def _cancelled(
    run: Run, bridge: BridgeProcess, http: aiohttp.ClientSession, number: int, figures: Figures
) -> None:
    """Makes a call and cancels it: it must end at once, whether it was sent to upstream or waited."""
    figures.calls += 1
    calling = asyncio.create_task(_post(run, bridge, http, call_body("write", id=number)))
    await asyncio.sleep(0.05)
    params = {"requestId": number}
    await _post(run, bridge, http, {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS + 10):
            message = await calling
    except TimeoutError:
        return figures.blame("unanswered", f"the cancelled call {number}")
    # On a busy machine a cancellation may overtake its call, which then times out.
    if message.get("id") != number or message.get("error", {}).get("code") not in (CANCELLED, -32012):
        return figures.blame("wrong", f"the cancelled call {number} got {message}")
    figures.told += 1


async def _good(run: Run, bridge: BridgeProcess, http: aiohttp.ClientSession, figures: Figures) -> None:
    figures.calls += 1
    for _ in range(5):
        message = await _post(run, bridge, http, call_body("write", id="good"))
        if "result" in message:
            figures.answered += 1
            return
    figures.blame("failed", f"a good request afterwards: {message}")


async def _post(
    run: Run, bridge: BridgeProcess, http: aiohttp.ClientSession, body: dict[str, object]
) -> dict[str, Any]:
    headers = {**JSON, "Authorization": f"Bearer {run.token}"}
    async with http.post(bridge.url, data=json.dumps(body).encode(), headers=headers) as response:
        message: dict[str, Any] = json.loads(await response.read() or b"{}")
        return message
