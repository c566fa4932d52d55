"""Runs behaviours, whose names it reads from standard input, on one connected MCP client.

It reads one behaviour per line, and writes one line for each: ``ok``, ``n/a REASON`` or ``failed REASON``. The client
stays connected between the lines, so that the bridge or the upstream can be restarted between two behaviours.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

Progress = Callable[[float], None]
LARGE = 200_000
AT_ONCE = 20


class Client(Protocol):
    """The common interface of all client libraries."""

    async def tools(self) -> list[str]:
        """Returns the names of the tools."""

    async def call(self, tool: str, arguments: dict[str, object], progress: Progress | None = None) -> str:
        """Calls a tool; returns the text of its result."""

    async def cancel(self, tool: str, arguments: dict[str, object]) -> None:
        """Calls a tool, and cancels the call after its first progress notification."""


async def listed(client: Client) -> None:
    assert "test_simple_text" in await client.tools()


async def called(client: Client) -> None:
    assert await client.call("test_simple_text", {}) == "This is a simple text response for testing."


async def progressed(client: Client) -> None:
    steps: list[float] = []
    assert await client.call("wait", {"name": "progress", "steps": 3}, steps.append) == "progress"
    assert steps == sorted(steps)
    assert len(steps) >= 3, steps


async def cancelled(client: Client) -> None:
    await client.cancel("wait", {"name": "cancel", "steps": 300})
    for _ in range(50):
        if '"cancel":"cancelled"' in await client.call("waits", {}):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("the server never learnt of it")


async def got_large(client: Client) -> None:
    assert await client.call("large", {"characters": LARGE}) == "x" * LARGE


async def called_at_once(client: Client) -> None:
    names = [f"call-{number}" for number in range(AT_ONCE)]
    assert await asyncio.gather(*(client.call("wait", {"name": name, "steps": 1}) for name in names)) == names


async def remembered(client: Client) -> None:
    assert {"create_entities", "read_graph"} <= set(await client.tools())
    entity = {"name": "a modern client", "entityType": "client", "observations": ["was here"]}
    await client.call("create_entities", {"entities": [entity]})
    assert "a modern client" in await client.call("read_graph", {})


BEHAVIOURS = {
    "connect": called,
    "list": listed,
    "call": called,
    "progress": progressed,
    "cancel": cancelled,
    "200 kB": got_large,
    "20 at once": called_at_once,
    "remember": remembered,
}


async def drive(client: AbstractAsyncContextManager[Client]) -> None:
    """Connects the client, and runs the behaviours from standard input until its end."""
    async with client as connected:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            try:
                async with asyncio.timeout(30):
                    await BEHAVIOURS[line](connected)
                print("ok", flush=True)
            except Exception as error:  # noqa: BLE001 - any error of a client is its result
                print("failed", type(error).__name__, " ".join(str(error).split())[:300], flush=True)
