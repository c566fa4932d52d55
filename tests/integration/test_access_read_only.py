"""A read-only principal can change nothing, whatever it sends and in whichever mode."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import (
    SSE,
    TOOLS,
    Answer,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    call_body,
    environment,
    until,
)

WRITER, READER = "writer-0123456789abcdef", "reader-0123456789abcdef"
MODERN = "2026-07-28"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "reader", "version": "1"}},
}
WRITE = call_body("wait", {"name": "written", "steps": 0}, id="w")
SPELLINGS = [
    json.dumps(WRITE),
    json.dumps(WRITE).replace("method", r"\u006dethod"),
    json.dumps(WRITE).replace("tools/call", r"tools\/c\u0061ll"),
    json.dumps(WRITE).replace('"wait"', r'"w\u0061it"'),
    json.dumps(WRITE).replace('"name": "wait"', '"name": "waits", "name": "wait"'),
    json.dumps(WRITE).replace('"name": "wait"', r'"name": "waits", "n\u0061me": "wait"'),
    json.dumps(WRITE).replace('"method"', '"method": "ping", "method"'),
    json.dumps(WRITE).replace('"method"', '"method": "ping", "Method"'),
    json.dumps(WRITE).replace('"method"', '"result": {}, "METHOD"'),
    json.dumps(WRITE).replace('"id": "w", ', ""),
    json.dumps(WRITE | {"id": None}),
    json.dumps(WRITE | {"params": ["wait"]}),
    f"\n\t {json.dumps(WRITE)} ",
    json.dumps([WRITE]),
    json.dumps([{"jsonrpc": "2.0", "id": 1, "method": "ping"}, WRITE, [WRITE]]),
    json.dumps([WRITE, {"jsonrpc": "2.0", "id": 2, "result": {}}]),
]
"""Ways to call the tool `wait`, which changes the result of `waits`."""


def modern(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the request and the headers of a modern client."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": MODERN,
        "io.modelcontextprotocol/clientInfo": {"name": "reader", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    params = {**body.get("params", {}), "_meta": meta}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": body["method"]}
    return body | {"params": params}, headers | ({"Mcp-Name": params["name"]} if "name" in params else {})


@asynccontextmanager
async def guarded(upstream: str, directory: Path, **variables: str) -> AsyncIterator[tuple[Bridge, Bridge]]:
    """Yields the bridge with the token of the writer and with the token of the reader."""
    file = directory / "tokens"
    file.write_text(f"writer {WRITER}\nreader:read-only {READER}\n")
    async with bridge(upstream, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file), **variables) as served:
        await until(served.ready)
        yield Bridge(served.origin, served.http, WRITER), Bridge(served.origin, served.http, READER)


def refused(answer: Answer, id: Any = "w") -> None:
    """Asserts that the response rejects the call because the token is read-only."""
    assert (answer.status, answer.error["code"], answer.json["id"]) == (403, -32016, id), answer
    assert "This token is read-only" in answer.error["message"]


async def written(served: Bridge, headers: dict[str, str] | None = None) -> bool:
    """Returns whether the tool `wait` has run; each session of per-client mode has a server of its own."""
    return bool(json.loads((await served.call("waits", headers=headers)).text))


@pytest.mark.parametrize("accept", [{}, SSE], ids=["json", "sse"])
async def test_no_spelling_of_a_write_runs_on_the_shared_session(
    features_gateway: Gateway, tmp_path: Path, accept: dict[str, str]
) -> None:
    async with guarded(features_gateway.url, tmp_path) as (writer, reader):
        session = {"Mcp-Session-Id": (await reader.post(INITIALIZE)).headers["Mcp-Session-Id"]}
        for text in SPELLINGS:
            for headers in ({}, session, {"MCP-Protocol-Version": "2025-03-26"}):
                answer = await reader.post(text.encode(), headers | accept)
                assert answer.status in (400, 403) or b"-32016" in answer.body, (text, answer)
        refused(await reader.post(WRITE, accept))
        assert not await written(reader)
        assert (await writer.post(WRITE)).text == "written"
        assert await written(reader)


async def test_no_spelling_of_a_write_runs_in_per_client_mode(features_gateway: Gateway, tmp_path: Path) -> None:
    async with guarded(features_gateway.url, tmp_path, SESSION_MODE="per-client") as (_, reader):
        opened = await reader.post(INITIALIZE, SSE)
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        assert (await reader.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)).status == 202
        for text in SPELLINGS:
            answer = await reader.post(text.encode(), session)
            assert answer.status in (400, 403) or b"-32016" in answer.body, (text, answer)
        refused(await reader.post(WRITE, session))
        allowed, denied = (await reader.post([{"jsonrpc": "2.0", "id": 1, "method": "ping"}, WRITE], session)).json
        assert allowed == {"jsonrpc": "2.0", "id": 1, "result": {}}
        assert (denied["id"], denied["error"]["code"]) == ("w", -32016)
        assert not await written(reader, session)
        pings = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(2)]
        assert (await reader.post(pings, session)).status == 200
        assert (await reader.ask("DELETE", "/mcp", b"", reader.request_headers(session))).status == 204


async def test_a_modern_write_is_rejected_with_any_headers(features_gateway: Gateway, tmp_path: Path) -> None:
    async with guarded(features_gateway.url, tmp_path) as (writer, reader):
        body, headers = modern(WRITE)
        for lies in ({}, {"Mcp-Name": "waits"}, {"Mcp-Method": "tools/list"}, {"MCP-Protocol-Version": "2025-11-25"}):
            refused(await reader.post(body, {**headers, **lies}))
        refused(await reader.post(*modern({"jsonrpc": "2.0", "id": "w", "method": "memory/write"})))
        waits, headers = modern(call_body("waits", id="r"))
        assert json.loads((await reader.post(waits, headers)).text) == {}
        discovered = await reader.post(*modern({"jsonrpc": "2.0", "id": 1, "method": "server/discover"}))
        assert MODERN in discovered.json["result"]["supportedVersions"]
        assert (await writer.post(*modern(WRITE))).text == "written"


async def test_only_the_rejected_members_of_a_batch_get_the_error(features_gateway: Gateway, tmp_path: Path) -> None:
    async with guarded(features_gateway.url, tmp_path) as (_, reader):
        unknown = {"jsonrpc": "2.0", "method": "notifications/write"}
        batch = [{"jsonrpc": "2.0", "id": 1, "method": "ping"}, WRITE, call_body("waits", id=3), unknown]
        answer = await reader.post(batch)
    first, second, third, fourth = answer.json
    assert answer.status == 200
    assert first == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (second["id"], second["error"]["code"]) == ("w", -32016)
    assert (third["id"], third["result"]["content"][0]["text"]) == (3, "{}")
    assert (fourth["id"], fourth["error"]["code"]) == (None, -32016)


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("ping", None),
        ("tools/list", None),
        ("resources/list", None),
        ("resources/templates/list", None),
        ("resources/read", {"uri": "test://static-text"}),
        ("resources/subscribe", {"uri": "test://watched/1"}),
        ("resources/unsubscribe", {"uri": "test://watched/1"}),
        ("prompts/list", None),
        ("prompts/get", {"name": "test_simple_prompt"}),
        ("logging/setLevel", {"level": "error"}),
        (
            "completion/complete",
            {
                "ref": {"type": "ref/prompt", "name": "test_prompt_with_arguments"},
                "argument": {"name": "arg1", "value": "x"},
            },
        ),
        ("tools/call", {"name": "waits"}),
    ],
)
async def test_read_only_requests_are_served(
    features_gateway: Gateway, tmp_path: Path, method: str, params: dict[str, Any] | None
) -> None:
    async with guarded(features_gateway.url, tmp_path) as (_, reader):
        session = {"Mcp-Session-Id": (await reader.post(INITIALIZE)).headers["Mcp-Session-Id"]}
        for name in ("initialized", "cancelled", "progress", "roots/list_changed"):
            taken = await reader.post({"jsonrpc": "2.0", "method": f"notifications/{name}"}, session)
            assert taken.status == 202
        body = {"jsonrpc": "2.0", "id": 1, "method": method} | ({} if params is None else {"params": params})
        assert "result" in (await reader.post(body, session)).json
        assert (await reader.ask("DELETE", "/mcp", b"", reader.request_headers(session))).status == 204


async def test_an_idempotent_tool_is_rejected_for_a_read_only_token(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with guarded(upstream.url, tmp_path) as (writer, reader):
        assert (await reader.call("read")).status == 200
        for tool in ("set", "write", "unknown", ""):
            refused(await reader.call(tool, id="w"))
        assert (await writer.call("set")).status == 200
    called = [received.message["params"]["name"] for received in upstream.of("tools/call")]
    assert called == ["read", "set"]


async def test_a_tool_that_is_no_longer_read_only_is_rejected_after_the_next_list(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream.url, tmp_path) as (writer, reader):
        assert (await reader.call("read")).status == 200

        async def changed(received: Received) -> web.Response:
            return received.result({"tools": [{"name": "read", "inputSchema": {"type": "object"}}]})

        async def announces(received: Received) -> web.StreamResponse:
            result = {"jsonrpc": "2.0", "id": received.message["id"], "result": {}}
            return await received.events({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}, result)

        upstream.on("tools/list", changed)
        upstream.on("resources/list", announces)
        lists = upstream.count("tools/list")
        assert (await writer.post({"jsonrpc": "2.0", "id": 1, "method": "resources/list"})).status == 200
        await until(lambda: upstream.count("tools/list") > lists)

        async def refuses() -> bool:
            return (await reader.call("read")).status == 403

        await until(refuses)


async def test_a_call_is_rejected_before_its_replay_if_the_renewed_session_lacks_the_tool(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream.url, tmp_path) as (_, reader):

        async def changed(received: Received) -> web.Response:
            return received.result({"tools": [tool for tool in TOOLS if tool["name"] != "read"]})

        upstream.on("tools/list", changed)
        upstream.sessions.clear()
        refused(await reader.call("read", id="w"))
        assert upstream.sessions_opened == 2
        assert upstream.count("tools/call") == 1  # the one that the lost session rejected


async def test_without_a_session_a_call_is_not_checked_against_an_empty_tool_list(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"reader:read-only {READER}\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file)}
    async with bridge("http://127.0.0.1:9/mcp", **variables) as served:
        served.token = READER
        answer = await served.call("read", id=5)
        assert (answer.status, answer.error["code"], answer.json["id"]) == (503, -32010, 5)
        assert (await served.post([call_body("read")])).status == 503
        refused(await served.post({"jsonrpc": "2.0", "id": "w", "method": "memory/write"}))


async def test_the_name_of_a_read_only_principal_has_no_suffix(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"reader:read-only {READER}\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file)}
    process = BridgeProcess(environment(upstream.url, **variables))
    async with process.serving() as served:
        served.token = READER
        await until(served.ready)
        assert (await served.call("read")).status == 200
        assert upstream.of("tools/call")[0].http.headers["X-Vestige-Principal"] == "reader"
        process.terminate()
        _, log = await process.ended()
    assert "principal=reader " in log
    assert "read-only" not in log


async def test_a_token_that_becomes_read_only_takes_effect_without_a_restart(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream.url, tmp_path) as (writer, _):
        assert (await writer.call("write")).status == 200
        (tmp_path / "tokens").write_text(f"writer:read-only {WRITER}\n")

        async def refuses() -> bool:
            return (await writer.call("write")).status == 403

        await until(refuses)
        assert (await writer.call("read")).status == 200
