"""Twenty real MCP clients at once on one Vestige process."""

from __future__ import annotations

import asyncio
import json
from itertools import chain
from pathlib import Path

from harness import NODE, ROOT, TOKEN, Bridge, Gateway, bridge, until

WRITES = 20
CLIENTS = {
    "python-1": ([ROOT / ".venv-mcp-1/bin/python", ROOT / "tests/clients/python_1.py"], 10),
    "python-2": ([ROOT / ".venv-mcp-2/bin/python", ROOT / "tests/clients/python_2.py"], 5),
    "typescript-1": ([NODE, ROOT / "tests/clients/typescript_1.mjs"], 5),
}


def names_kept(memory_file: Path) -> list[str]:
    """Returns the names of the memories in the store."""
    return [json.loads(line)["name"] for line in memory_file.read_text().splitlines()]


async def run(served: Bridge, kind: str, command: list[Path], clients: int) -> list[str]:
    """Runs the clients of one kind; returns the names of the memories that were acknowledged."""
    process = await asyncio.create_subprocess_exec(
        *command,
        *(served.url, TOKEN, str(WRITES)),
        *(f"{kind}-{number}" for number in range(clients)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    acknowledged: list[str] = json.loads(out)
    return acknowledged


async def test_twenty_clients_of_three_sdks_share_one_process_and_lose_nothing(
    memory_gateway: Gateway, memory_file: Path
) -> None:
    servers = set()
    async with bridge(memory_gateway.url, UPSTREAM_CONCURRENCY="1") as served:
        await until(served.ready)

        async def watch() -> None:
            while True:
                now = memory_gateway.servers
                assert len(now) == 1, now
                servers.update(now)
                await asyncio.sleep(0.05)

        watching = asyncio.create_task(watch())
        lists = await asyncio.gather(
            *(run(served, kind, command, clients) for kind, (command, clients) in CLIENTS.items())
        )
        assert not watching.done(), watching.exception()
        watching.cancel()
        graph = json.loads((await served.call("read_graph")).text)

    acknowledged = [*chain.from_iterable(lists)]
    assert len(acknowledged) == len(set(acknowledged)) == 400
    assert {entity["name"] for entity in graph["entities"]} == set(acknowledged)
    assert sorted(names_kept(memory_file)) == sorted(acknowledged)
    assert len(servers) == 1


async def test_a_sessionless_client_writes_and_reads_back(memory_gateway: Gateway) -> None:
    entity = {"name": "sky", "entityType": "fact", "observations": ["it is blue"]}
    async with bridge(memory_gateway.url) as served:
        listed = await served.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert "create_entities" in {tool["name"] for tool in listed.json["result"]["tools"]}
        assert (await served.call("create_entities", {"entities": [entity]})).status == 200
    async with bridge(memory_gateway.url) as served:
        found = await served.call("search_nodes", {"query": "blue"})
        assert found.json["result"]["structuredContent"]["entities"] == [entity]
