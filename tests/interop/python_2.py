"""The Python SDK 2.x, in the era ERA, or in the one that it negotiates.

usage: python -m interop.python_2 URL TOKEN [ERA], or SERVER: the server to start, as JSON. If TOKEN is "sign in", the
client gets a token from the provider that the bridge names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx2
import mcp.client
from mcp.client.auth import OAuthClientProvider
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata

from interop.consent import METADATA, SIGN_IN, Consent, Storage
from interop.driver import Progress, drive


class Client:
    def __init__(self, client: mcp.client.Client) -> None:
        self._client = client

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self._client.list_tools()).tools]

    async def call(self, tool: str, arguments: dict[str, object], progress: Progress | None = None) -> str:
        async def report(step: float, _total: float | None, _message: str | None) -> None:
            if progress:
                progress(step)

        result = await self._client.call_tool(tool, arguments, progress_callback=report)
        assert not result.is_error, result
        text: str = result.content[0].text
        return text

    async def cancel(self, tool: str, arguments: dict[str, object]) -> None:
        started = asyncio.Event()
        running = asyncio.create_task(self.call(tool, arguments, lambda _: started.set()))
        await started.wait()
        running.cancel()


def signing_in(url: str) -> OAuthClientProvider:
    consent = Consent()

    async def called_back() -> AuthorizationCodeResult:
        return AuthorizationCodeResult(**consent.answer)

    return OAuthClientProvider(url, OAuthClientMetadata(**METADATA), Storage(), consent.redirect, called_back)


@asynccontextmanager
async def connected(url: str, token: str, era: str = "auto") -> AsyncIterator[Client]:
    headers = None if token == SIGN_IN else {"Authorization": f"Bearer {token}"}
    auth = signing_in(url) if token == SIGN_IN else None
    async with (
        httpx2.AsyncClient(headers=headers, auth=auth, timeout=60) as http_client,
        mcp.client.Client(streamable_http_client(url, http_client=http_client), mode=era) as client,
    ):
        yield Client(client)


@asynccontextmanager
async def started(server: str) -> AsyncIterator[Client]:
    async with mcp.client.Client(stdio_client(StdioServerParameters(**json.loads(server)))) as client:
        yield Client(client)


asyncio.run(drive(started(sys.argv[1]) if len(sys.argv) == 2 else connected(*sys.argv[1:])))
