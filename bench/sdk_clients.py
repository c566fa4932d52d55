"""Clients of the Python SDK that write concurrently, and again after a restart of their server.

usage: sdk_clients.py URL TOKEN TOOL CLIENTS WRITES

It prints one line of JSON when all clients have written, waits for a line on standard input, and prints a second line
with the number of clients that could write again by themselves. TOOL is the writing tool: create_entities or
smart_ingest.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

CONNECT_SECONDS = 60
ANSWER_SECONDS = 60
WRITING_SECONDS = 20
"""No write begins after this time: slow writes need not finish to be counted."""
RECOVERY_SECONDS = 15


@dataclass
class Tally:
    """The results of all clients together."""

    connected: int = 0
    acknowledged: list[str] = field(default_factory=list)
    milliseconds: list[float] = field(default_factory=list)
    wrong: int = 0
    failed: int = 0
    hung: int = 0
    went_on: int = 0


def entity(name: str) -> dict[str, Any]:
    """Returns the arguments for server-memory, and its expected result."""
    return {"entities": [{"name": name, "entityType": "memory", "observations": [f"what {name} saw"]}]}


TOOLS: dict[str, tuple[Callable[[str], dict[str, Any]], Callable[[str, Any], bool]]] = {
    "create_entities": (entity, lambda name, result: bool(result.structured_content == entity(name))),
    "smart_ingest": (lambda name: {"content": f"{name} was here"}, lambda _name, _result: True),
}
"""The arguments of a write, and the check of its result: Vestige's result does not contain the text."""


class Everybody:
    """A barrier that opens when each client has arrived."""

    def __init__(self, names: list[str]) -> None:
        self._missing = set(names)
        self._event = asyncio.Event()

    def add(self, name: str) -> None:
        """Records that a client has arrived; repeated calls have no effect."""
        self._missing.discard(name)
        if not self._missing:
            self._event.set()

    async def wait(self) -> None:
        """Waits for the last client."""
        await self._event.wait()


class Group:
    """Clients that begin at the same time."""

    def __init__(self, url: str, token: str, tool: str, names: list[str]) -> None:
        self.tally = Tally()
        self._url, self._token, self._tool = url, token, tool
        self._arguments, self._own = TOOLS[tool]
        self._names = names
        self._ready, self._written = Everybody(names), Everybody(names)
        self._begin, self._again = asyncio.Event(), asyncio.Event()

    async def run(self, writes: int) -> None:
        """Runs both phases."""
        clients = [asyncio.create_task(self._client(name, writes)) for name in self._names]
        await self._ready.wait()
        began = time.monotonic()
        self._begin.set()
        await self._written.wait()
        self._print({**vars(self.tally), "seconds": time.monotonic() - began})
        await asyncio.to_thread(sys.stdin.readline)
        self._again.set()
        await asyncio.wait(clients, timeout=RECOVERY_SECONDS + 5)
        self._print({"went_on": self.tally.went_on})

    async def _client(self, name: str, writes: int) -> None:
        """Runs one client and catches its errors; a client that cannot connect is not waited for."""
        try:
            headers = {"Authorization": f"Bearer {self._token}"}
            async with httpx2.AsyncClient(headers=headers, timeout=ANSWER_SECONDS + 5) as http_client:
                client = Client(streamable_http_client(self._url, http_client=http_client), mode="legacy")
                async with asyncio.timeout(CONNECT_SECONDS):
                    await client.__aenter__()
                    await client.list_tools()
                self.tally.connected += 1
                self._ready.add(name)
                await self._begin.wait()
                deadline = time.monotonic() + WRITING_SECONDS
                for number in range(writes):
                    if time.monotonic() < deadline:
                        await self._write(client, f"{name}-{number}")
                self._written.add(name)
                await self._again.wait()
                await self._recover(client, f"{name}-again")
                await client.__aexit__(None, None, None)
        except Exception as error:  # noqa: BLE001 - after any error of the SDK, the client takes no further part
            print(f"{name}: {error!r:.200}", file=sys.stderr)
        finally:
            self._ready.add(name)
            self._written.add(name)

    async def _write(self, client: Client, name: str) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                result = await client.call_tool(self._tool, self._arguments(name))
        except TimeoutError:
            self.tally.hung += 1
        except Exception as error:  # noqa: BLE001 - an error is a figure here
            self.tally.failed += 1
            print(f"{name}: {error!r:.200}", file=sys.stderr)
        else:
            if result.is_error:
                self.tally.failed += 1
            elif not self._own(name, result):
                self.tally.wrong += 1
            else:
                self.tally.acknowledged.append(name)
                self.tally.milliseconds.append((time.monotonic() - began) * 1000)

    async def _recover(self, client: Client, name: str) -> None:
        """Retries a write on the same connection for some time, as an agent would."""
        deadline = time.monotonic() + RECOVERY_SECONDS
        while time.monotonic() < deadline:
            before = len(self.tally.acknowledged)
            async with asyncio.timeout(RECOVERY_SECONDS):
                await self._write(client, name)
            if len(self.tally.acknowledged) > before:
                self.tally.went_on += 1
                return
            await asyncio.sleep(1)

    def _print(self, said: dict[str, Any]) -> None:
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    url, token, tool, clients, writes = sys.argv[1:]
    asyncio.run(Group(url, token, tool, [f"client-{number}" for number in range(int(clients))]).run(int(writes)))
    sys.stdout.flush()
    os._exit(0)  # clients whose server has ended need no shutdown
