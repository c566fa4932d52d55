"""Writes memories through the Python SDK 1.x, as several clients at once.

usage: python_1.py URL TOKEN COUNT NAME...
"""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import chain

from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client


async def write(url: str, token: str, count: int, name: str) -> list[str]:
    """Writes as one client, which initialises and lists the tools; returns the acknowledged names."""
    acknowledged: list[str] = []
    async with (
        streamablehttp_client(url, headers={"Authorization": f"Bearer {token}"}) as (read, send, _),
        ClientSession(read, send) as session,
    ):
        await session.initialize()
        tools = await session.list_tools()
        assert "create_entities" in {tool.name for tool in tools.tools}
        for number in range(count):
            entity = {"name": f"{name}-{number}", "entityType": "memory", "observations": [name]}
            result = await session.call_tool("create_entities", {"entities": [entity]})
            assert not result.isError, result
            assert result.structuredContent == {"entities": [entity]}, result
            acknowledged.append(f"{name}-{number}")
    return acknowledged


async def main(url: str, token: str, count: str, *names: str) -> None:
    """Prints the acknowledged names as one JSON array."""
    lists = await asyncio.gather(*(write(url, token, int(count), name) for name in names))
    print(json.dumps([*chain.from_iterable(lists)]))


asyncio.run(main(*sys.argv[1:]))
