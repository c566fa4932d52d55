"""The floor: raw ASGI on uvicorn and one aiohttp POST for each request, and nothing else.

usage: floor.py UPSTREAM_URL PORT
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn

Message = MutableMapping[str, Any]


class Floor:
    """An ASGI application that relays a POST."""

    def __init__(self, upstream_url: str) -> None:
        self._upstream_url = upstream_url
        self._client: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Relays one request."""
        if self._client is None:
            self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        passed = {name: value for name, value in headers if name in {"accept", "content-type", "mcp-session-id"}}
        async with self._client.post(self._upstream_url, data=body, headers=passed) as response:
            answer = await response.read()
            content_type = response.headers.get("Content-Type", "application/json").encode()
            head = [(b"content-type", content_type), (b"content-length", b"%d" % len(answer))]
            await send({"type": "http.response.start", "status": response.status, "headers": head})
            await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(
        Floor(sys.argv[1]),
        port=int(sys.argv[2]),
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
    )
