"""Real calls to a real bridge and MCP server through nginx and Caddy, as docs/https.md configures them.

Invariant: no time limit, buffer or connection pool of a proxy changes the bridge's responses to a client.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from harness import SSE, TOKEN, Bridge, BridgeProcess, Gateway, call_body, environment, until
from https.fronts import FRONTS, HOST, Front

SILENT_SECONDS = 90
STEPS_A_SECOND = 10
"""The steps per second of the tool ``wait``, which reports them only if its caller requests progress."""

HEARTBEAT_SECONDS = 15
LARGE = 10_000_000
CALLS, AT_ONCE = 1_000, 32
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "https", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "https", "version": "1"}},
}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in FRONTS])
def kind(request: pytest.FixtureRequest) -> str:
    """Returns the name of a proxy."""
    return str(request.param)


@asynccontextmanager
async def behind(kind: str, folder: Path, process: BridgeProcess) -> AsyncIterator[tuple[Bridge, Front]]:
    """Yields a client of a bridge through a proxy, and the proxy."""
    async with process.serving() as direct:
        await until(direct.ready)
        async with FRONTS[kind](folder, process.port) as front, front.client() as http:
            yield Bridge(front.url.removesuffix("/mcp"), http), front


@pytest.fixture
async def served(kind: str, tmp_path: Path, features_gateway: Gateway) -> AsyncIterator[tuple[Bridge, Front]]:
    """Yields a client of a bridge with the default limits, and the proxy; the server has every legacy feature."""
    process = BridgeProcess(environment(features_gateway.url, LOG_LEVEL="error"), cwd=tmp_path)
    async with behind(kind, tmp_path, process) as client:
        yield client


@pytest.fixture
def client(served: tuple[Bridge, Front]) -> Bridge:
    """Returns this client, which uses HTTP/1.1."""
    return served[0]


async def session(client: Bridge) -> dict[str, str]:
    """Opens a session of a legacy client; returns the header with its id."""
    answer = await client.post(INITIALIZE)
    return {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}


async def state_of(client: Bridge, name: str) -> str:
    """Returns the state of a call of ``wait`` on the MCP server."""
    return str(json.loads((await client.call("waits")).text).get(name))


@pytest.mark.timeout(SILENT_SECONDS + 90)
async def test_responses_and_notifications_arrive_after_long_silence(served: tuple[Bridge, Front]) -> None:
    client, front = served

    async def takes_events() -> None:
        """Checks that the proxy buffers nothing: each heartbeat arrives when it is sent."""
        heartbeats: list[float] = []
        began = time.monotonic()
        async with client.http.post(
            client.url, json=silent("events"), headers=client.request_headers(SSE), timeout=FOR_EVER
        ) as response:
            lines = [line async for line in arrivals(response, heartbeats)]
        assert json.loads(lines[-1])["result"]["content"][0]["text"] == "events"
        assert len(heartbeats) >= SILENT_SECONDS // HEARTBEAT_SECONDS - 1
        gaps = [after - before for before, after in itertools.pairwise([began, *heartbeats])]
        assert max(gaps) < HEARTBEAT_SECONDS + 5, gaps

    async def takes_json() -> None:
        async with client.http.post(
            client.url, json=silent("json"), headers=client.request_headers(), timeout=FOR_EVER
        ) as response:
            assert (await response.json())["result"]["content"][0]["text"] == "json"

    async def takes_http_2() -> None:
        process = await curl(front, silent("curl"), SSE, "--http2")
        said = (await process.communicate())[0].decode()
        assert process.returncode == 0
        assert '"text":"curl"' in said
        assert said.endswith("\n2")

    async def listens() -> None:
        own = await session(client)
        subscribe = {"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": "test://watched/1"}}
        assert (await client.post(subscribe, own)).json["result"] == {}
        headers = client.request_headers(own | {"Accept": "text/event-stream"})
        async with client.http.get(client.url, headers=headers, timeout=FOR_EVER) as response:
            messages = arrivals(response, [])
            arriving = asyncio.ensure_future(anext(messages))
            await asyncio.sleep(SILENT_SECONDS)
            assert not arriving.done()
            await client.call("touch", {"uri": "test://watched/1"})
            async with asyncio.timeout(5):
                assert json.loads(await arriving)["params"]["uri"] == "test://watched/1"

    async with asyncio.TaskGroup() as group:
        for one in (takes_events, takes_json, takes_http_2, listens):
            group.create_task(one())


FOR_EVER = aiohttp.ClientTimeout(total=None)


def silent(name: str) -> dict[str, Any]:
    """Returns the body of a long call that reports no progress."""
    return call_body("wait", {"name": name, "steps": SILENT_SECONDS * STEPS_A_SECOND})


async def arrivals(response: aiohttp.ClientResponse, heartbeats: list[float]) -> AsyncIterator[bytes]:
    """Yields the messages of an event stream, and adds the arrival times of its comments to the list."""
    assert response.status == 200, await response.read()
    async for line in response.content:
        if line.startswith(b":"):
            heartbeats.append(time.monotonic())
        elif line.startswith(b"data:") and line[5:].strip():
            yield line[5:]


@pytest.mark.parametrize("headers", [{}, SSE], ids=["JSON", "events"])
async def test_an_answer_of_ten_megabytes_arrives_complete(client: Bridge, headers: dict[str, str]) -> None:
    answer = await client.call("large", {"characters": LARGE}, headers=headers)
    body = answer.body.partition(b"data:")[2] if headers else answer.body
    assert json.loads(body)["result"]["content"][0]["text"] == "x" * LARGE


async def test_a_body_that_is_too_large_is_rejected_by_the_bridge(client: Bridge) -> None:
    body = json.dumps(call_body("test_simple_text", {"characters": "x" * 1_100_000})).encode()
    async with client.http.post(client.url, data=io.BytesIO(body), headers=client.request_headers()) as response:
        assert response.status == 413
        error = (await response.json())["error"]
    assert (error["code"], error["data"]["limit_bytes"]) == (-32014, 1_048_576)


async def test_a_cancelled_call_ends_at_the_server(client: Bridge) -> None:
    own = await session(client)
    calling = asyncio.create_task(client.call("wait", {"name": "cancelled", "steps": 600}, id=7, headers=own))
    await running(client, "cancelled")
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    assert (await client.post(cancel, own)).status == 202
    assert (await calling).error["code"] == -32017
    await until_cancelled(client, "cancelled")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
async def test_a_call_is_cancelled_if_its_client_disconnects(served: tuple[Bridge, Front], version: str) -> None:
    client, front = served
    body = call_body("wait", {"name": "left", "steps": 600})
    body["params"]["_meta"] = MODERN
    era = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": "wait"}
    leaving = await curl(front, body, SSE | era, version)
    await running(client, "left")
    leaving.kill()
    await leaving.communicate()
    await until_cancelled(client, "left")


async def curl(front: Front, body: dict[str, Any], headers: dict[str, str], version: str) -> asyncio.subprocess.Process:
    """Starts curl, which also supports HTTP/2; it prints the HTTP version after the response."""
    sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", **headers}
    return await asyncio.create_subprocess_exec(
        *(
            "curl",
            "--silent",
            "--show-error",
            "--no-buffer",
            version,
            "--noproxy",
            "*",
            "--cacert",
            str(front.authority),
        ),
        *("--resolve", f"{HOST}:{front.port}:127.0.0.1", "--write-out", "%{http_version}", "--data", json.dumps(body)),
        *(f"-H{name}: {value}" for name, value in sent.items()),
        front.url,
        stdout=asyncio.subprocess.PIPE,
    )


async def running(client: Bridge, name: str) -> None:
    """Waits until the MCP server runs the call."""

    async def begun() -> bool:
        return await state_of(client, name) == "running"

    await until(begun)


async def until_cancelled(client: Bridge, name: str) -> None:
    """Waits until the MCP server has cancelled the call; fails if only the next heartbeat shows the proxy the end."""

    async def cancelled() -> bool:
        return await state_of(client, name) == "cancelled"

    await until(cancelled, 10)


def mixed(number: int, chance: random.Random) -> tuple[dict[str, Any], dict[str, str], object]:
    """Returns a call, its headers, and its expected response: a text, another result, or the code of an error."""
    key, characters = f"call {number}", chance.randrange(20_000)
    # All calls use the same few ids.
    request_id, wrong = number % 5, {"Authorization": "Bearer wrong"}
    kinds: list[tuple[dict[str, Any], dict[str, str], object]] = [
        (
            call_body("json_schema_2020_12_tool", {"name": key}, id=request_id),
            {},
            json.dumps({"name": key}, separators=(",", ":")),
        ),
        (call_body("wait", {"name": key, "steps": 0}, id=request_id), {}, key),
        (call_body("large", {"characters": characters}, id=request_id), {}, "x" * characters),
        (call_body("test_error_handling", id=request_id), {}, "This tool intentionally returns an error for testing"),
        ({"jsonrpc": "2.0", "id": request_id, "method": "ping"}, {}, {}),
        ({"jsonrpc": "2.0", "id": request_id, "method": "unknown/method"}, {}, -32601),
        (call_body("wait", {"name": key, "steps": 0}, id=request_id), wrong, -32015),
    ]
    body, headers, expected = chance.choice(kinds)
    return body, headers | chance.choice([{}, SSE]), expected


def id_and_outcome(body: bytes) -> tuple[object, object]:
    """Returns the id of a response (JSON or an event), and its text, other result or error code."""
    text = body.decode()
    message = json.loads(text if text.startswith("{") else text[text.index("data:") + 5 :])
    if "error" in message:
        return message["id"], message["error"]["code"]
    result = message["result"]
    return message["id"], result["content"][0]["text"] if "content" in result else result


async def test_each_of_a_thousand_calls_gets_its_own_answer(client: Bridge) -> None:
    chance, gate = random.Random(20261126), asyncio.Semaphore(AT_ONCE)

    async def call(number: int) -> None:
        body, headers, expected = mixed(number, chance)
        async with gate:
            answer = await client.post(body, headers)
        assert id_and_outcome(answer.body) == (None if answer.status == 401 else body["id"], expected)

    async with asyncio.TaskGroup() as group:
        for number in range(CALLS):
            group.create_task(call(number))


async def test_the_log_has_the_address_of_the_client_and_not_its_forwarded_header(
    kind: str, tmp_path: Path, features_gateway: Gateway
) -> None:
    environ = environment(features_gateway.url, TRUSTED_PROXIES="127.0.0.1", LOG_FORMAT="json")
    process = BridgeProcess(environ, cwd=tmp_path)
    async with behind(kind, tmp_path, process) as (client, front), front.client(local_addr=("127.0.0.7", 0)) as http:
        headers = {"X-Forwarded-For": "192.0.2.1", "Authorization": "Bearer wrong"}
        async with http.post(client.url, json=call_body("waits"), headers=headers) as response:
            assert response.status == 401
        process.terminate()
        _, log = await process.ended()
    (line,) = [json.loads(line) for line in log.splitlines() if '"status": 401' in line]
    assert line["client"] == "127.0.0.7"
