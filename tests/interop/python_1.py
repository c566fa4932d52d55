"""The Python SDK 1.x.

usage: python -m interop.python_1 URL TOKEN, or SERVER: the server to start, as JSON. If TOKEN is "sign in", the client
gets a token from the provider that the bridge names.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import mcp.types
from mcp import ClientSession, StdioServerParameters
from mcp.client.auth import OAuthClientProvider
from mcp.client.stdio import stdio_client
from mcp.client.streamable_http import streamablehttp_client
from mcp.shared.auth import OAuthClientMetadata

from interop.consent import METADATA, SIGN_IN, Consent, Storage
from interop.driver import Progress, drive


class Client:
    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def tools(self) -> list[str]:
        return [tool.name for tool in (await self._session.list_tools()).tools]

    async def call(self, tool: str, arguments: dict[str, object], progress: Progress | None = None) -> str:
        async def report(step: float, _total: float | None, _message: str | None) -> None:
            if progress:
                progress(step)

        result = await self._session.call_tool(tool, arguments, progress_callback=report)
        assert not result.isError, result
        text: str = result.content[0].text
        return text

    async def cancel(self, tool: str, arguments: dict[str, object]) -> None:
        # This SDK has no method that cancels a request; its users send the notification themselves.
        started = asyncio.Event()
        request_id = self._session._request_id
        running = asyncio.create_task(self.call(tool, arguments, lambda _: started.set()))
        await started.wait()
        params = mcp.types.CancelledNotificationParams(requestId=request_id)
        cancelled = mcp.types.CancelledNotification(method="notifications/cancelled", params=params)
        await self._session.send_notification(mcp.types.ClientNotification(cancelled))
        running.cancel()


def signing_in(url: str) -> OAuthClientProvider:
    consent = Consent()

    async def called_back() -> tuple[str, str | None]:
        return consent.answer["code"], consent.answer.get("state")

    return OAuthClientProvider(url, OAuthClientMetadata(**METADATA), Storage(), consent.redirect, called_back)


@asynccontextmanager
async def connected(url: str, token: str) -> AsyncIterator[Client]:
    headers = None if token == SIGN_IN else {"Authorization": f"Bearer {token}"}
    auth = signing_in(url) if token == SIGN_IN else None
    async with (
        streamablehttp_client(url, headers=headers, auth=auth) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield Client(session)


@asynccontextmanager
async def started(server: str) -> AsyncIterator[Client]:
    async with (
        stdio_client(StdioServerParameters(**json.loads(server))) as (read, write),
        ClientSession(read, write) as session,
    ):
        await session.initialize()
        yield Client(session)


asyncio.run(drive(started(sys.argv[1]) if len(sys.argv) == 2 else connected(*sys.argv[1:])))
