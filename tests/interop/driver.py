"""Puts one connected MCP client through behaviours, as it is told on standard input.

It reads one behaviour a line and answers each with one line: ``ok``, ``n/a REASON`` or ``failed REASON``. The client
stays connected between the lines, so what restarts the bridge or the upstream does so between two of them.
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
    """What each client can do, in its own words."""

    async def tools(self) -> list[str]:
        """The names of the tools."""

    async def call(self, tool: str, arguments: dict[str, object], progress: Progress | None = None) -> str:
        """The text of a tool's answer."""

    async def cancel(self, tool: str, arguments: dict[str, object]) -> None:
        """Calls a tool, and cancels the call at its first progress."""


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
    """Serves standard input until its end."""
    async with client as connected:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            try:
                async with asyncio.timeout(30):
                    await BEHAVIOURS[line](connected)
                print("ok", flush=True)
            except Exception as error:  # noqa: BLE001 - whatever a client raises is what it shows
                print("failed", type(error).__name__, " ".join(str(error).split())[:300], flush=True)
