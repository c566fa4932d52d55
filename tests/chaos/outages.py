"""Parts are killed, the bridge is stopped, and the network fails, all under load."""

from __future__ import annotations

import asyncio
import statistics
import time
from random import Random

import psutil

from chaos.account import Figures
from chaos.link import Link
from chaos.stack import BridgeProcess, Run, Stack, stack
from harness import until

LONG_CALL_MS = 7000
"""Longer than uvicorn alone would wait when the bridge is stopped."""


async def kills(run: Run) -> Figures:
    """F1: supergateway and its child are killed at random times under 32 callers; the audit log records each call."""
    times = run.times(100)
    done = f"supergateway killed {times} times, the MCP server {times} times, under 32 clients"
    recoveries = []
    async with stack(run, "F1 kills", done, audited=True) as it:
        async with it.load():
            for number in range(2 * times):
                await asyncio.sleep(it.random.uniform(0.05, 0.6))
                if number % 2:
                    await kill_server(it)
                else:
                    await asyncio.to_thread(it.gateway.kill)
                    await asyncio.sleep(it.random.uniform(0, 0.2))
                    await asyncio.to_thread(it.gateway.start)
                # The next kill usually happens while calls are answered, but sometimes while a session is opened.
                if number == 0 or it.random.random() < 0.7:
                    recoveries.append(await _recovery_seconds(it))
        await it.good_request()
        await it.one_server()
        typical, longest = statistics.median(recoveries), max(recoveries)
        it.figures.notes.append(
            f"answers again after a kill, if no other follows: median {typical:.1f} s, at most {longest:.1f} s"
        )
    return it.figures


async def _recovery_seconds(it: Stack) -> float:
    """Measures the time until a call is answered."""
    began, answered = time.monotonic(), it.account.answered
    await until(lambda: it.account.answered > answered, 60)
    return time.monotonic() - began


async def kill_server(it: Stack) -> None:
    """Kills the MCP server behind the gateway; waits for one if there is none."""
    await until(lambda: bool(it.gateway.servers), 30)
    for server in it.gateway.servers:
        try:
            server.kill()
        except psutil.NoSuchProcess:
            continue


async def restarts(run: Run) -> Figures:
    """F2: the bridge is stopped under load; half of the time the next one is already ready behind a front."""
    times = max(2, run.times(20))
    done = f"{times} SIGTERMs to the bridge under 32 clients, {times // 2} with the next bridge ready behind a proxy"
    front = Link()
    async with stack(run, "F2 restarts", done) as it, front.open():
        front.target = it.bridge.port
        url = f"http://127.0.0.1:{front.port}/mcp"
        async with it.load(url=url, pause_seconds=0.01):
            for number in range(times):
                await asyncio.sleep(it.random.uniform(0.1, 0.6))
                await _restart(it, front, rolling=number % 2 == 0, long_calls=0 if number % 5 else 4)
        await it.good_request()
        await it.one_server()
        refused = sum(call.got in ("refused", "cut") for call in it.account.calls.values())
        it.figures.notes.append(f"{refused:,} calls found no running bridge; none of them ran")
    return it.figures


async def _restart(it: Stack, front: Link, *, rolling: bool, long_calls: int) -> None:
    last = it.bridge

    async def start() -> None:
        it.bridge = BridgeProcess(it.run, it.gateway.url, {}, 0 if rolling else last.port)
        await it.bridge.ready(it.http)
        front.target = it.bridge.port

    async with asyncio.TaskGroup() as calls:
        if rolling:
            await start()
        if long_calls:
            for _ in range(long_calls):
                calls.create_task(it.caller(url=last.url).call("write", steps=1, step_ms=LONG_CALL_MS))
            await asyncio.sleep(0.5)
        if (status := await last.stop()) != 0:
            it.figures.blame("failed", f"the bridge ended with status {status} when it was told to stop")
        last.check_log(it.figures)
        if not rolling:
            await start()


async def network(run: Run) -> Figures:
    """The link between the bridge and supergateway is delayed, cut, reset and silenced."""
    times = run.times(10)
    done = f"the link to supergateway delayed, cut, reset and silenced {times} times each, under 32 clients"
    link = Link()
    async with stack(run, "Network", done, link=link, REQUEST_TIMEOUT_SECONDS="3", CHECK_TIMEOUT_SECONDS="1") as it:
        async with it.load():
            for _ in range(times):
                for fail in LINK_FAULTS:
                    await asyncio.sleep(it.random.uniform(0.1, 0.5))
                    await fail(link, it.random)
        await it.good_request()
        await it.one_server()
    return it.figures


async def _delay(link: Link, random: Random) -> None:
    link.delay_seconds = random.uniform(0.05, 0.4)
    await asyncio.sleep(0.5)
    link.delay_seconds = 0


async def _cut(link: Link, random: Random) -> None:
    link.cut_after_bytes = random.randrange(600)
    await asyncio.sleep(0.3)
    link.cut_after_bytes = None
    link.break_all()


async def _reset(link: Link, random: Random) -> None:
    link.reset = True
    link.break_all()
    link.reset = False


async def _silence(link: Link, random: Random) -> None:
    link.swallows = True
    await asyncio.sleep(random.uniform(0.5, 4))
    link.swallows = False
    link.break_all()


LINK_FAULTS = (_delay, _cut, _reset, _silence)
