"""Sessions of legacy clients: they survive every restart, and each has the client's version."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web

from harness import Bridge, BridgeProcess, Received, ScriptedUpstream, bridge, environment, until

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def initialize(version: str) -> dict[str, Any]:
    """Returns the initialize request of a client."""
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    return {"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": params}


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
async def test_initialize_is_answered_from_the_shared_session_in_the_clients_version(
    scripted: Bridge, upstream: ScriptedUpstream, version: str
) -> None:
    answer = await scripted.post(initialize(version))
    assert answer.json["id"] == "hello"
    assert answer.json["result"]["protocolVersion"] == version
    assert answer.json["result"]["serverInfo"] == {"name": "scripted", "version": "1.2.3"}
    assert answer.headers["Mcp-Session-Id"]
    assert upstream.count("initialize") == 1


async def test_initialize_with_an_unknown_version_is_offered_the_latest(scripted: Bridge) -> None:
    answer = await scripted.post(initialize("1999-01-01"))
    assert answer.json["result"]["protocolVersion"] == "2025-11-25"


async def test_each_client_gets_a_session_id_of_its_own(scripted: Bridge) -> None:
    ids = {(await scripted.post(initialize("2025-11-25"))).headers["Mcp-Session-Id"] for _ in range(20)}
    assert len(ids) == 20
    assert all(it.isascii() and it.isprintable() and " " not in it for it in ids)


async def test_a_session_id_from_before_a_restart_is_served(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url) as before:
        session_id = (await before.post(initialize("2025-06-18"))).headers["Mcp-Session-Id"]
    async with bridge(upstream.url) as after:
        assert (await after.post(PING, {"Mcp-Session-Id": session_id})).status == 200


async def test_a_session_id_that_the_bridge_never_saw_is_served(scripted: Bridge) -> None:
    assert (await scripted.post(PING, {"Mcp-Session-Id": "never-seen"})).status == 200


async def test_a_session_that_its_client_ended_is_404_and_the_shared_one_stays(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    session_id = (await scripted.post(initialize("2025-11-25"))).headers["Mcp-Session-Id"]
    mine = scripted.request_headers({"Mcp-Session-Id": session_id})
    assert (await scripted.ask("DELETE", "/mcp", b"", mine)).status in (200, 204)
    answer = await scripted.post(PING, {"Mcp-Session-Id": session_id})
    assert answer.status == 404
    assert answer.error["code"] == -32600
    assert (await scripted.post(PING)).status == 200
    assert upstream.sessions_opened == 1
    assert len(upstream.sessions) == 1


async def test_client_state_notifications_are_accepted_and_not_forwarded(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    for method in ("notifications/initialized", "notifications/roots/list_changed", "notifications/progress"):
        assert (await scripted.post({"jsonrpc": "2.0", "method": method})).status == 202
    await scripted.post(PING)
    methods = [received.method for received in upstream.received]
    assert methods.count("notifications/initialized") == 1
    assert "notifications/roots/list_changed" not in methods
    assert "notifications/progress" not in methods


async def test_requests_travel_with_the_bridges_session_and_the_negotiated_version(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await scripted.post(PING, {"Mcp-Session-Id": "mine", "MCP-Protocol-Version": "2025-03-26", "Accept": "text/html"})
    received = upstream.of("ping")[-1].http.headers
    assert received["Mcp-Session-Id"] == "session-1"
    assert received["MCP-Protocol-Version"] == "2025-11-25"
    assert "application/json" in received["Accept"]
    assert "text/event-stream" in received["Accept"]


async def test_a_request_with_an_unknown_version_gets_the_supported_versions(scripted: Bridge) -> None:
    answer = await scripted.post(
        {"jsonrpc": "2.0", "id": 3, "method": "server/discover", "params": {}},
        {"MCP-Protocol-Version": "2031-01-01", "Mcp-Method": "server/discover"},
    )
    assert answer.status == 400
    assert answer.json["id"] == 3
    assert answer.error["code"] == -32022
    assert answer.error["data"]["requested"] == "2031-01-01"
    assert {"2026-07-28", "2025-11-25"} <= set(answer.error["data"]["supported"])


async def test_the_upstream_session_is_ended_when_the_bridge_stops(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        assert len(upstream.sessions) == 1
        process.terminate()
        status, _ = await process.ended()
    assert status == 0
    assert not upstream.sessions


async def test_a_list_changed_before_the_first_answer_breaks_nothing(upstream: ScriptedUpstream) -> None:
    async def early_notification(received: Any) -> Any:
        changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        tools = {"jsonrpc": "2.0", "id": received.message["id"], "result": {"tools": [{"name": "late"}]}}
        return await received.events(changed, tools)

    upstream.on("tools/list", early_notification)
    async with bridge(upstream.url) as served:
        answer = await served.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert answer.json == {"jsonrpc": "2.0", "id": 1, "result": {"tools": [{"name": "late"}]}}
    assert upstream.sessions_opened == 1


async def test_tools_are_read_page_by_page(upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture) -> None:
    async def pages(received: Any) -> Any:
        cursor = received.message.get("params", {}).get("cursor")
        page = {"tools": [{"name": f"tool-{cursor or 0}"}]}
        return received.result(page if cursor == "1" else {**page, "nextCursor": "1"})

    upstream.on("tools/list", pages)
    caplog.set_level("INFO")
    async with bridge(upstream.url) as served:
        await until(served.ready)
        health = await served.get("/health")
    assert health.status == 200
    assert health.json["tools"] == 2
    assert "Vestige tools discovered (2): tool-0, tool-1" in caplog.text


async def test_a_deep_check_that_finds_the_session_lost_renews_it(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    await until(scripted.ready)
    upstream.sessions.clear()
    health = await scripted.get("/health")
    assert (health.status, health.json["status"], health.json["tools"]) == (200, "ok", 3)
    assert upstream.sessions_opened == 2


async def test_a_deep_check_says_so_when_no_session_can_be_opened(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        return web.Response(status=503, text="not yet")

    await until(scripted.ready)
    upstream.sessions.clear()
    upstream.on("initialize", refuse)
    health = await scripted.get("/health")
    assert (health.status, health.json["status"], health.json["tools"]) == (503, "unavailable", None)


async def test_initialize_without_a_shared_session_is_retryable(upstream: ScriptedUpstream) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        return web.Response(status=503, text="not yet")

    upstream.on("initialize", refuse)
    async with bridge(upstream.url) as served:
        answer = await served.post(initialize("2025-06-18"))
    assert (answer.status, answer.error["code"], answer.json["id"]) == (503, -32010, "hello")
    assert answer.error["data"] == {"outcome": "not_sent", "retryable": True}
    assert answer.headers["Retry-After"]


async def test_an_upstream_that_rejects_initialize_is_503_and_logged(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def unknown(received: Received) -> web.StreamResponse:
        error = {"code": -32601, "message": "Method not found"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error}, status=404)

    upstream.on("initialize", unknown)
    async with bridge(upstream.url) as served:
        answer = await served.call("any", id=9)
    assert (answer.status, answer.error["code"], answer.json["id"]) == (503, -32010, 9)
    assert "refused the handshake" in caplog.text
