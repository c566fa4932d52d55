"""Load with faults for a configurable time: no resource may grow."""

from __future__ import annotations

import asyncio
import time

from chaos.account import Figures
from chaos.outages import kill_server
from chaos.stack import Run, Stack, stack

RESTS = 6
SHORTEST_SECONDS = 8
GROWTH_DESCRIPTORS = 8
GROWTH_TASKS = 8
GROWTH_MEGABYTES = 16


async def soak(run: Run) -> Figures:
    """F6: callers of every kind while the MCP server is killed repeatedly, with pauses for measurements."""
    minutes = f"{run.soak_seconds / 60:.1f}"
    done = f"16 clients for {minutes} minutes, the MCP server or supergateway killed every few seconds"
    async with stack(run, "F6 soak", done) as it:
        rests = []
        stretches = min(RESTS, max(2, int(run.soak_seconds / SHORTEST_SECONDS)))
        for _ in range(stretches):
            await _work(it, run.soak_seconds / stretches)
            await it.one_server()
            rests.append(await it.at_rest())
            it.account.settle(it.figures)
        growth = [last - first for first, last in zip(rests[0], rests[-1], strict=True)]
        names = ("descriptors", "megabytes", "tasks")
        for name, grown, bound in zip(names, growth, (GROWTH_DESCRIPTORS, GROWTH_MEGABYTES, GROWTH_TASKS), strict=True):
            if grown > bound:
                it.figures.blame("grown", f"{grown} more {name}, {bound} allowed")
            values = ", ".join(f"{rest[names.index(name)]:.0f}" for rest in rests)
            it.figures.notes.append(f"{name} of the bridge at each pause without load: {values}")
        await it.good_request()
    return it.figures


async def _work(it: Stack, seconds: float) -> None:
    end = time.monotonic() + seconds
    async with it.load(16, pause_seconds=0.02):
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, it.random.uniform(1, 6)))
            if it.random.random() < 0.3:
                await asyncio.to_thread(it.gateway.kill)
                await asyncio.to_thread(it.gateway.start)
            else:
                await kill_server(it)
    await it.good_request()
