"""Legacy and modern clients side by side: streams, requests of the server, cancellations, and clients of one era."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import NODE, ROOT, TOKEN, Bridge, Gateway, bridge, call_body, until
from interop.clients import CLIENTS, Kind

MODERN = "2026-07-28"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "eras", "version": "1"}},
}


class Listener:
    """A legacy client with a stream of its own that is subscribed to one resource."""

    def __init__(self, served: Bridge, number: int) -> None:
        self.uri = f"test://watched/{number}"
        self.heard: list[str] = []
        self._served = served
        self._session: dict[str, str] = {}

    async def subscribe(self) -> None:
        answer = await self._served.post(INITIALIZE)
        self._session = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}
        subscribe = {"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": self.uri}}
        assert (await self._served.post(subscribe, self._session)).json["result"] == {}

    async def listen(self, opened: asyncio.Semaphore) -> None:
        headers = self._served.request_headers({**self._session, "Accept": "text/event-stream"})
        async with self._served.http.get(self._served.url, headers=headers) as response:
            assert response.status == 200
            opened.release()
            async for line in response.content:
                if line.startswith(b"data:"):
                    message = json.loads(line[5:])
                    if message["method"] == "notifications/resources/updated":
                        self.heard.append(message["params"]["uri"])


@asynccontextmanager
async def listeners(served: Bridge, count: int) -> AsyncIterator[list[Listener]]:
    """Yields clients that are subscribed and have open streams."""
    clients = [Listener(served, number) for number in range(count)]
    await asyncio.gather(*(client.subscribe() for client in clients))
    opened = asyncio.Semaphore(0)
    listening = [asyncio.create_task(client.listen(opened)) for client in clients]
    try:
        async with asyncio.timeout(30):
            for _ in clients:
                await opened.acquire()
        yield clients
    finally:
        for task in listening:
            task.cancel()
        await asyncio.gather(*listening, return_exceptions=True)


async def test_fifty_clients_get_updates_of_their_own_resource_across_a_restart(
    features: Bridge, features_gateway: Gateway
) -> None:
    async with listeners(features, 50) as clients:

        async def touched() -> bool:
            for client in clients:
                await features.call("touch", {"uri": client.uri})
            return all(client.heard for client in clients)

        assert len(features_gateway.servers) == 1
        await until(touched, 30)
        assert all(set(client.heard) == {client.uri} for client in clients)

        await asyncio.to_thread(features_gateway.kill)
        await asyncio.to_thread(features_gateway.start)
        for client in clients:
            client.heard.clear()
        await until(touched, 60)
        assert all(set(client.heard) == {client.uri} for client in clients)
        assert len(features_gateway.servers) == 1


async def asked(served: Bridge, name: str) -> list[dict[str, Any]]:
    """Runs a real client; returns the results of the tools that send requests to the client."""
    process = await asyncio.create_subprocess_exec(
        *(NODE, ROOT / "tests/clients/typescript_asked.mjs", served.url, TOKEN, name),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(60):
        out, log = await process.communicate()
    assert process.returncode == 0, log.decode()
    answers: list[dict[str, Any]] = json.loads(out)
    return answers


async def test_in_per_client_mode_two_clients_get_their_own_server_requests_concurrently(
    everything_gateway: Gateway,
) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        for name, answers in zip(
            ("anna", "otto"), await asyncio.gather(asked(served, "anna"), asked(served, "otto")), strict=True
        ):
            assert len(answers) == 15
            assert all(name in answer["text"] for answer in answers), answers
            assert not any(answer["isError"] for answer in answers), answers


@pytest.mark.parametrize(
    ("tool", "arguments"), [("test_sampling", {"prompt": "x"}), ("test_elicitation", {}), ("roots", {})]
)
async def test_shared_mode_rejects_server_requests_at_once(
    features: Bridge, tool: str, arguments: dict[str, str]
) -> None:
    async with asyncio.timeout(5):
        answer = await features.call(tool, arguments or {"message": "x"})
    assert answer.status == 200
    assert answer.error["code"] == -32601


def cancellation(body: dict[str, Any]) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": body["id"]}}


async def test_a_legacy_cancel_reaches_the_server_and_only_that_call_is_cancelled(features: Bridge) -> None:
    session = {"Mcp-Session-Id": (await features.post(INITIALIZE)).headers["Mcp-Session-Id"]}
    other = asyncio.create_task(features.call("wait", {"name": "kept", "steps": 20}, id=7))
    body = progressing("stopped", id=7)
    async with asyncio.timeout(30):
        async for message in features.stream(body, session):
            if message.get("method") == "notifications/progress":
                assert (await features.post(cancellation(body), session)).status == 202
        await until(lambda: states(features, {"stopped": "cancelled"}))
        assert (await other).text == "kept"
    assert await states(features, {"stopped": "cancelled", "kept": "done"})


async def test_closing_a_modern_response_stream_cancels_only_that_call(features: Bridge) -> None:
    other = asyncio.create_task(features.call("wait", {"name": "kept", "steps": 20}, id=7))
    async with asyncio.timeout(30):
        stream = features.stream(modern(progressing("stopped", id=7)), modern_headers("tools/call", "wait"))
        async for message in stream:
            assert message["method"] == "notifications/progress"
            break
        await stream.aclose()
        await until(lambda: states(features, {"stopped": "cancelled"}))
        assert (await other).text == "kept"


async def test_a_cancel_reaches_a_server_that_was_busy_when_it_came(
    features: Bridge, features_gateway: Gateway
) -> None:
    session = {"Mcp-Session-Id": (await features.post(INITIALIZE)).headers["Mcp-Session-Id"]}
    body = progressing("busy", id=1)
    (server,) = features_gateway.servers
    async with asyncio.timeout(30):
        async for message in features.stream(body, session):
            if message.get("method") == "notifications/progress":
                server.suspend()
                assert (await features.post(cancellation(body), session)).status == 202
        await asyncio.sleep(0.5)
        server.resume()
        await until(lambda: states(features, {"busy": "cancelled"}))


async def test_progress_reaches_the_next_caller_after_a_cancel(features: Bridge) -> None:
    session = {"Mcp-Session-Id": (await features.post(INITIALIZE)).headers["Mcp-Session-Id"]}
    body = progressing("stopped", id=1)
    async with asyncio.timeout(30):
        async for message in features.stream(body, session):
            if message.get("method") == "notifications/progress":
                await features.post(cancellation(body), session)
        await until(lambda: states(features, {"stopped": "cancelled"}))
        steps = [message async for message in features.stream(progressing("next", id=2, steps=5), session)]
    assert len(steps) >= 6


@pytest.mark.parametrize("kind", [kind for kind in CLIENTS if "modern only" in kind.name], ids=lambda kind: kind.name)
async def test_a_modern_only_client_stores_a_memory_on_one_process(
    kind: Kind, memory_gateway: Gateway, memory_file: Path
) -> None:
    async with bridge(memory_gateway.url) as served, kind.connect(served.url, TOKEN) as client:
        assert await client.show("remember") == "ok"
        assert len(memory_gateway.servers) == 1
    assert "a modern client" in memory_file.read_text()


def progressing(name: str, *, id: Any, steps: int = 300) -> dict[str, Any]:
    """Returns a call that reports progress."""
    body = call_body("wait", {"name": name, "steps": steps}, id=id)
    body["params"]["_meta"] = {"progressToken": "mine"}
    return body


def modern(body: dict[str, Any]) -> dict[str, Any]:
    """Returns the same request with the metadata of a modern client."""
    body["params"]["_meta"] |= {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "eras", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    return body


def modern_headers(method: str, name: str) -> dict[str, str]:
    """Returns the headers with which a modern client mirrors its body."""
    return {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": name}


async def states(served: Bridge, expected: dict[str, str]) -> bool:
    """Returns whether the server reports these states for these calls."""
    seen: dict[str, str] = json.loads((await served.call("waits")).text)
    return expected.items() <= seen.items()
