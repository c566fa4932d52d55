"""Per-client mode: each legacy client has an upstream session of its own, and is asked what upstream asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from harness import SSE, Answer, Bridge, Gateway, Received, ScriptedUpstream, bridge, until

INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


@pytest.fixture
async def own(shared_gateway: Gateway) -> AsyncIterator[Bridge]:
    """A bridge in per-client mode in front of server-everything."""
    async with bridge(shared_gateway.url, SESSION_MODE="per-client") as served:
        yield served


async def initialize(served: Bridge, capabilities: dict[str, Any] | None = None) -> dict[str, str]:
    """Opens a session; returns the headers that name it."""
    params = INITIALIZE | {"capabilities": capabilities or {}}
    answer = await served.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, SSE)
    assert answer.status == 200, answer
    headers = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    taken = await served.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)
    assert taken.status == 202
    return headers


async def delete(served: Bridge, headers: dict[str, str]) -> Answer:
    """Ends a session."""
    return await served.ask("DELETE", "/mcp", b"", served.request_headers(headers))


async def sampled(served: Bridge, headers: dict[str, str], text: str) -> str:
    """Calls the tool that asks its client for a sample, answers with the text, and returns what the tool says."""
    arguments = {"prompt": "say it", "maxTokens": 5}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params = {"name": "trigger-sampling-request", "arguments": arguments}
    async for message in served.stream(body | {"params": params}, headers):
        if message.get("method") == "sampling/createMessage":
            sample = {"role": "assistant", "content": {"type": "text", "text": text}, "model": "m"}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": sample}
            assert (await served.post(answer, headers)).status == 202
        if "result" in message:
            return json.dumps(message["result"])
    raise AssertionError("the stream ended without the tool's answer")


async def test_two_clients_are_asked_at_the_same_time_with_the_same_ids(own: Bridge) -> None:
    first, second = await initialize(own, {"sampling": {}}), await initialize(own, {"sampling": {}})
    async with asyncio.timeout(30):
        told = await asyncio.gather(sampled(own, first, "from the first"), sampled(own, second, "from the second"))
    assert "from the first" in told[0]
    assert "from the second" in told[1]


async def test_in_shared_mode_upstream_is_refused_at_once(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async def asks(received: Any) -> Any:
        question = {"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage", "params": {}}
        result = {"jsonrpc": "2.0", "id": json.loads(received.body)["id"], "result": {}}
        return await received.events(question, result)

    upstream.on("tools/call", asks)
    assert (await scripted.call("any")).status == 200
    await until(lambda: any(b'"q"' in it.body and b"-32601" in it.body for it in upstream.received))


async def test_a_session_serves_its_own_principal_only(shared_gateway: Gateway, tmp_path: Any) -> None:
    file = tmp_path / "tokens"
    file.write_text("ann ann-token-0123456789\nbob bob-token-0123456789\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": "per-client"}
    async with bridge(shared_gateway.url, **variables) as served:
        served.token = "ann-token-0123456789"
        headers = await initialize(served)
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert (await served.post(ping, headers)).status == 200
        served.token = "bob-token-0123456789"
        assert (await served.post(ping, headers)).status == 404
        assert (await delete(served, headers)).status == 404
        served.token = "ann-token-0123456789"
        assert (await delete(served, headers)).status == 204
        assert (await served.post(ping, headers)).status == 404


async def test_a_session_id_that_upstream_gives_twice_stays_with_its_first_principal(
    upstream: ScriptedUpstream, tmp_path: Any
) -> None:
    async def opens_the_same(received: Received) -> web.StreamResponse:
        upstream.sessions_opened = 0
        return await upstream.answer(received)

    upstream.on("initialize", opens_the_same)
    file = tmp_path / "tokens"
    file.write_text("ann ann-token-0123456789\nbob bob-token-0123456789\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": "per-client"}
    async with bridge(upstream.url, **variables) as served:
        ann = Bridge(served.origin, served.http, "ann-token-0123456789")
        bob = Bridge(served.origin, served.http, "bob-token-0123456789")
        headers = await initialize(ann)
        opened = await bob.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}, SSE)
        assert opened.headers["Mcp-Session-Id"] == headers["Mcp-Session-Id"]
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert [(await it.post(ping, headers)).status for it in (ann, bob)] == [200, 404]


async def test_an_unknown_session_is_404_and_a_plain_poster_is_served(own: Bridge) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await own.post(ping, {"Mcp-Session-Id": "never-seen"})).status == 404
    assert (await own.post(ping)).json == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (await delete(own, {})).status == 400


async def test_an_answer_is_json_for_a_client_that_takes_no_stream(own: Bridge) -> None:
    headers = await initialize(own)
    answer = await own.call("echo", {"message": "plain"}, id="x", headers=headers)
    assert (answer.json["id"], answer.text) == ("x", "Echo: plain")
    batch = [{"jsonrpc": "2.0", "id": 1, "method": "ping"}]
    assert (await own.post(batch, headers)).status == 200


async def test_more_sessions_than_the_limit_are_refused(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, SESSION_MODE="per-client", MAX_CLIENT_SESSIONS="1") as served:
        headers = await initialize(served)
        body = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": {}}
        refused = await served.post(body, SSE)
        assert (refused.status, refused.error["code"], refused.json["id"]) == (503, -32013, 7)
        assert refused.error["data"] == {"outcome": "not_sent", "retryable": True}
        assert (await delete(served, headers)).status == 204
        assert await initialize(served)


async def test_an_idle_session_is_ended(everything_gateway: Gateway) -> None:
    variables = {"SESSION_MODE": "per-client", "CLIENT_SESSION_IDLE_SECONDS": "3"}
    async with bridge(everything_gateway.url, **variables) as served:
        await until(served.ready)
        headers = await initialize(served)
        await until(lambda: len(everything_gateway.servers) == 1)
        assert (await served.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)).status == 404


async def test_every_session_is_ended_when_the_bridge_stops(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        await until(served.ready)
        await initialize(served)
        await initialize(served)
        assert len(everything_gateway.servers) == 3
        assert served.drain is not None
        await served.drain()
        assert (await served.post({"jsonrpc": "2.0", "id": 1, "method": "initialize"}, SSE)).status == 503
    await until(lambda: not everything_gateway.servers)


async def test_a_clients_own_stream_brings_what_comes_when_nothing_is_in_flight(own: Bridge) -> None:
    headers = await initialize(own)
    uri = "demo://resource/dynamic/text/5"
    subscribe = {"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": uri}}
    sent = own.request_headers({**headers, "Accept": "text/event-stream"})
    async with asyncio.timeout(30), own.http.get(own.url, headers=sent) as response:
        assert response.status == 200
        assert (await own.post(subscribe, headers)).status == 200
        await own.call("toggle-subscriber-updates", headers=headers)
        async for line in response.content:
            if b"notifications/resources/updated" in line:
                assert uri.encode() in line
                break
        async with own.http.get(own.url, headers=sent) as second:
            assert second.status == 200
            await response.read()
            async for line in second.content:
                if b"notifications/resources/updated" in line:
                    break
    assert (await delete(own, headers)).status == 204


async def test_a_clients_own_stream_ends_when_upstream_is_killed(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        sent = served.request_headers({**await initialize(served), "Accept": "text/event-stream"})
        async with asyncio.timeout(30), served.http.get(served.url, headers=sent) as response:
            await response.content.readuntil(b"still here")
            await asyncio.to_thread(everything_gateway.kill)
            assert b"error" not in await response.read()


async def test_a_timeout_is_told_and_upstream_hears_of_it(upstream: ScriptedUpstream) -> None:
    hanging = asyncio.Event()

    async def hang(received: Any) -> Any:
        response = await received.events()
        await hanging.wait()
        return response

    async with bridge(
        upstream.url, SESSION_MODE="per-client", REQUEST_TIMEOUT_SECONDS="0.3", HEARTBEAT_SECONDS="0.1"
    ) as served:
        await until(served.ready)
        headers = await initialize(served)
        upstream.on("tools/call", hang)
        answer = await served.call("any", id="slow", headers={**headers, **SSE})
        assert b"-32012" in answer.body
        assert b'"slow"' in answer.body
        await until(lambda: upstream.count("notifications/cancelled") == 1)
        hanging.set()


async def test_what_is_not_mcp_answers_502_and_too_much_413(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, SESSION_MODE="per-client", MAX_IN_FLIGHT="1") as served:
        await until(served.ready)
        headers = await initialize(served)
        for status, expected, code in ((500, 502, -32011), (413, 413, -32014)):
            upstream.on("tools/call", html(status))
            answer = await served.call("any", id=3, headers=headers)
            assert (answer.status, answer.error["code"], answer.json["id"]) == (expected, code, 3)


def html(status: int) -> Any:
    """A script that answers with a page."""

    async def script(received: Any) -> Any:
        return web.Response(status=status, text="<html>", content_type="text/html")

    return script
