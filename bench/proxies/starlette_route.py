"""The simplest proxy in Python: a Starlette route and one aiohttp POST for each request.

usage: starlette_route.py UPSTREAM_URL PORT
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PASSED = ("accept", "content-type", "mcp-session-id")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    """Opens the HTTP client, and closes it with the application."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
        app.state.client = client
        yield


async def relay(request: Request) -> Response:
    """Relays one request."""
    headers = {name: value for name, value in request.headers.items() if name in PASSED}
    async with request.app.state.client.post(sys.argv[1], data=await request.body(), headers=headers) as response:
        return Response(await response.read(), response.status, media_type=response.headers.get("Content-Type"))


if __name__ == "__main__":
    uvicorn.run(
        Starlette(routes=[Route("/mcp", relay, methods=["POST"])], lifespan=lifespan),
        port=int(sys.argv[2]),
        http="httptools",
        loop="uvloop",
        ws="none",
        access_log=False,
        log_level="warning",
    )
