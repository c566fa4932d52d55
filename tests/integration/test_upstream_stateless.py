"""Modern clients (2026-07-28) on a real supergateway and a server that implements only the legacy era."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from aiohttp import web

from harness import SSE, Answer, Bridge, Gateway, Received, ScriptedUpstream, bridge, until
from vestige_bridge.http.sse import HEARTBEAT
from vestige_bridge.session.listeners import MAX_URIS

VERSION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
LONG = "trigger-long-running-operation"


def request(method: str, *, id: Any = 1, **params: Any) -> dict[str, Any]:
    """Returns a self-contained request."""
    meta = {f"{PREFIX}protocolVersion": VERSION, f"{PREFIX}clientCapabilities": {}} | params.pop("_meta", {})
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": params | {"_meta": meta}}


def mirrored(body: dict[str, Any]) -> dict[str, str]:
    """Returns the headers that mirror the body."""
    name = body["params"].get("name", body["params"].get("uri"))
    headers = {"MCP-Protocol-Version": VERSION, "Mcp-Method": body["method"]}
    return headers if name is None else headers | {"Mcp-Name": name}


async def ask(served: Bridge, method: str, **params: Any) -> Answer:
    """Sends a modern request."""
    body = request(method, **params)
    return await served.post(body, mirrored(body))


async def test_a_client_without_a_handshake_discovers_lists_and_calls(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url) as served:
        discovered = (await ask(served, "server/discover")).json["result"]
        assert VERSION in discovered["supportedVersions"]
        assert discovered["_meta"][f"{PREFIX}serverInfo"]["name"] == "mcp-servers/everything"
        listed = (await ask(served, "tools/list")).json["result"]
        assert (listed["resultType"], listed["ttlMs"], listed["cacheScope"]) == ("complete", 0, "private")
        assert "echo" in {tool["name"] for tool in listed["tools"]}
        called = await ask(served, "tools/call", name="echo", arguments={"message": "hi"}, id="\u00e9")
        assert called.json["id"] == "\u00e9"
        assert called.json["result"]["resultType"] == "complete"
        assert called.text == "Echo: hi"


async def test_both_eras_share_one_session(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url) as served:
        answers = await asyncio.gather(
            *(ask(served, "tools/call", name="echo", arguments={"message": f"m{n}"}) for n in range(20)),
            *(served.call("echo", {"message": f"l{n}"}) for n in range(20)),
        )
        assert [answer.text for answer in answers] == [f"Echo: {era}{n}" for era in "ml" for n in range(20)]
        assert len(everything_gateway.servers) == 1


async def test_progress_comes_with_the_clients_token(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url) as served:
        await until(served.ready)
        body = request("tools/call", name=LONG, arguments={"duration": 1, "steps": 3}, _meta={"progressToken": "mine"})
        messages = [message async for message in served.stream(body, mirrored(body))]
    assert {message["params"]["progressToken"] for message in messages[:-1]} == {"mine"}
    assert len(messages) > 1
    assert messages[-1]["result"]["resultType"] == "complete"


async def test_closing_the_response_cancels_the_request_upstream(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, UPSTREAM_CONCURRENCY="2") as served:
        await until(served.ready)
        body = request("tools/call", name=LONG, arguments={"duration": 60, "steps": 60}, _meta={"progressToken": 1})
        headers = served.request_headers({**SSE, **mirrored(body)})
        for _ in range(2):
            async with served.http.post(served.url, data=json.dumps(body).encode(), headers=headers) as response:
                assert b"event" in await response.content.readline()
        async with asyncio.timeout(10):
            # Both slots are free again, though the tools would have run for a minute.
            assert (await ask(served, "tools/call", name="echo", arguments={"message": "next"})).text == "Echo: next"


async def test_a_subscription_is_acknowledged_and_then_gets_updates(shared_gateway: Gateway) -> None:
    uri = "demo://resource/dynamic/text/77"
    wanted = {"toolsListChanged": True, "resourceSubscriptions": [uri], "unknown": True}
    async with bridge(shared_gateway.url) as served:
        body = request("subscriptions/listen", id="sub", notifications=wanted)
        messages = served.stream(body, mirrored(body))
        async with asyncio.timeout(30):
            acknowledged = await anext(messages)
            assert acknowledged["method"] == "notifications/subscriptions/acknowledged"
            assert acknowledged["params"]["notifications"] == {"toolsListChanged": True, "resourceSubscriptions": [uri]}
            await served.call("toggle-subscriber-updates")
            async for message in messages:
                assert message["params"]["_meta"][f"{PREFIX}subscriptionId"] == "sub"
                if message["method"] == "notifications/resources/updated":
                    assert message["params"]["uri"] == uri
                    break
            await served.call("toggle-subscriber-updates")


async def test_a_slow_upstream_does_not_delay_the_first_byte_of_a_stream(upstream: ScriptedUpstream) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow(received: Received) -> web.StreamResponse:
        asked.set()
        await answer.wait()
        error = {"code": -32602, "message": "unknown"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    async def opens(received: Received) -> web.StreamResponse:
        upstream.sessions.add("s")
        result = {
            "protocolVersion": "2025-11-25",
            "capabilities": {"resources": {"subscribe": True}},
            "serverInfo": {"name": "slow", "version": "1"},
        }
        response = received.result(result)
        response.headers["Mcp-Session-Id"] = "s"
        return response

    upstream.on("initialize", opens)
    upstream.on("resources/subscribe", slow)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        body = request("subscriptions/listen", id="s", notifications={"resourceSubscriptions": ["memory://x"]})
        headers = served.request_headers({**SSE, **mirrored(body)})
        async with asyncio.timeout(10), served.http.post(served.url, json=body, headers=headers) as response:
            assert await response.content.readany() == HEARTBEAT
            await asked.wait()
            answer.set()
            event = await response.content.readuntil(b"}\n")
    acknowledged = json.loads(event.partition(b"data: ")[2])
    assert acknowledged["params"]["notifications"] == {"resourceSubscriptions": []}


async def test_a_subscription_that_the_bridge_ends_gets_its_result(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url) as served:
        body = request("subscriptions/listen", id=5, notifications={})
        messages = served.stream(body, mirrored(body))
        async with asyncio.timeout(20):
            await anext(messages)
            assert served.drain is not None
            await served.drain()
            result = await anext(messages)
    assert (result["id"], result["result"]["resultType"]) == (5, "complete")


@pytest.mark.parametrize(
    ("body", "changed", "status", "code"),
    [
        (request("tools/list"), {"Mcp-Method": "tools/call"}, 400, -32020),
        (request("tools/list"), {"MCP-Protocol-Version": "2025-11-25"}, 400, -32020),
        (request("tools/list", _meta={f"{PREFIX}clientCapabilities": 1}), {}, 400, -32602),
        (request("tools/list", _meta={f"{PREFIX}protocolVersion": "v9"}), {"MCP-Protocol-Version": "v9"}, 400, -32022),
        (request("initialize"), {}, 404, -32601),
        (request("unknown/method"), {}, 404, -32601),
        (request("notifications/x"), {}, 404, -32601),
        (request("tools/call", name="echo", inputResponses={}), {}, 400, -32602),
        (request("subscriptions/listen"), {}, 400, -32602),
        (request("resources/read", uri="demo://no/such"), {}, 400, -32602),
    ],
)
async def test_requests_that_violate_the_specification_are_rejected(
    everything: Bridge, body: dict[str, Any], changed: dict[str, str], status: int, code: int
) -> None:
    answer = await everything.post(body, mirrored(body) | changed)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert answer.json["id"] == 1


async def test_no_legacy_session_id_can_cancel_a_modern_request(features: Bridge) -> None:
    calling = asyncio.create_task(ask(features, "tools/call", name="wait", arguments={"name": "w", "steps": 5}, id="w"))

    async def runs() -> bool:
        return "running" in (await features.call("waits")).text

    await until(runs)
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "w"}}
    for headers in ({}, {"Mcp-Session-Id": VERSION}, {"Mcp-Session-Id": f" {VERSION}"}):
        assert (await features.post(cancelled, headers)).status == 202
    assert (await calling).text == "w"


async def test_more_resources_than_can_be_watched_are_refused(everything: Bridge) -> None:
    wanted = {"resourceSubscriptions": [f"demo://resource/{number}" for number in range(MAX_URIS + 1)]}
    answer = await everything.post(
        request("subscriptions/listen", notifications=wanted),
        {**SSE, "MCP-Protocol-Version": VERSION, "Mcp-Method": "subscriptions/listen"},
    )
    assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32602, 1)


async def test_a_subscription_without_an_event_stream_is_rejected(everything: Bridge) -> None:
    answer = await ask(everything, "subscriptions/listen", notifications={})
    assert (answer.status, answer.error["code"]) == (400, -32600)


async def test_notifications_responses_batches_and_get_of_the_modern_era(scripted: Bridge) -> None:
    headers = {"MCP-Protocol-Version": VERSION}
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await scripted.post(notification, headers)).status == 202
    assert (await scripted.post({"jsonrpc": "2.0", "id": 1, "result": {}}, headers)).status == 400
    assert (await scripted.post([request("tools/list")], headers)).status == 400
    opened = await scripted.ask("GET", "/mcp", b"", scripted.request_headers({**SSE, **headers}))
    assert opened.status == 405
