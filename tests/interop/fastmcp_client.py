"""FastMCP's client.

usage: python -m interop.fastmcp_client URL TOKEN, or SERVER: the server to start, as JSON
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import fastmcp
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport

from interop.driver import Progress, drive


class Client:
    def __init__(self, client: fastmcp.Client) -> None:
        self._client = client

    async def tools(self) -> list[str]:
        return [tool.name for tool in await self._client.list_tools()]

    async def call(self, tool: str, arguments: dict[str, object], progress: Progress | None = None) -> str:
        async def report(step: float, _total: float | None, _message: str | None) -> None:
            if progress:
                progress(step)

        result = await self._client.call_tool(tool, arguments, progress_handler=report)
        text: str = result.content[0].text
        return text

    async def cancel(self, tool: str, arguments: dict[str, object]) -> None:
        started = asyncio.Event()
        running = asyncio.create_task(self.call(tool, arguments, lambda _: started.set()))
        await started.wait()
        running.cancel()


@asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[Client]:
    transport = StreamableHttpTransport(url, headers={"Authorization": f"Bearer {token}"})
    async with fastmcp.Client(transport) as client:
        yield Client(client)


@asynccontextmanager
async def started(server: str) -> AsyncIterator[Client]:
    async with fastmcp.Client(StdioTransport(**json.loads(server))) as client:
        yield Client(client)


asyncio.run(drive(started(sys.argv[1]) if len(sys.argv) == 2 else connected(*sys.argv[1:])))
