"""Writes memories through the Python SDK 2.x, as several clients at once.

usage: python_2.py URL TOKEN COUNT NAME...
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import chain

import httpx2
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client


async def write(url: str, token: str, count: int, name: str) -> list[str]:
    """Writes as one client, which negotiates the era and lists the tools; returns the acknowledged names."""
    acknowledged: list[str] = []
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=60) as http_client,
        Client(streamable_http_client(url, http_client=http_client)) as client,
    ):
        tools = await client.list_tools()
        assert "create_entities" in {tool.name for tool in tools.tools}
        for number in range(count):
            entity = {"name": f"{name}-{number}", "entityType": "memory", "observations": [name]}
            result = await client.call_tool("create_entities", {"entities": [entity]})
            assert not result.is_error, result
            assert result.structured_content == {"entities": [entity]}, result
            acknowledged.append(f"{name}-{number}")
    return acknowledged


async def main(url: str, token: str, count: str, *names: str) -> None:
    """Prints the acknowledged names as one JSON array."""
    lists = await asyncio.gather(*(write(url, token, int(count), name) for name in names))
    print(json.dumps([*chain.from_iterable(lists)]))


asyncio.run(main(*sys.argv[1:]))
