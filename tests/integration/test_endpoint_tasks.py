"""Tasks (MCP 2025-11-25) belong to a session, which principals share: in shared mode they are not available."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from harness import Answer, Bridge, Gateway, ScriptedUpstream, bridge
from vestige_bridge.jsonrpc.messages import Request, Response
from vestige_bridge.jsonrpc.parser import parse_body
from vestige_bridge.mcp.lifecycle import read_initialize
from vestige_bridge.mcp.tasks import is_about_tasks, without_task

ANN, BOB = "ann-has-a-long-token", "bob-has-a-long-token"
MODERN = "2026-07-28"
META = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
METHODS = ["tasks/list", "tasks/get", "tasks/result", "tasks/cancel", "tasks/unknown"]
TOPIC = "ann's secret topic"


@pytest.fixture
async def served(shared_gateway: Gateway, tmp_path: Path) -> AsyncIterator[Bridge]:
    """A bridge with two principals in front of server-everything, which supports tasks."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"ann {ANN}\nbob {BOB}\n")
    async with bridge(shared_gateway.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(tokens)) as it:
        yield it


async def ask(served: Bridge, token: str, method: str, **params: Any) -> Answer:
    served.token = token
    return await served.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


async def ask_modern(served: Bridge, token: str, method: str, **params: Any) -> Answer:
    served.token = token
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": params.get("name", "")}
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params | {"_meta": META}}
    return await served.post(body, headers)


async def test_tasks_are_not_offered(served: Bridge) -> None:
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    legacy = (await ask(served, ANN, "initialize", **client)).json["result"]["capabilities"]
    modern = (await ask_modern(served, ANN, "server/discover")).json["result"]["capabilities"]
    assert "tasks" not in legacy
    assert "tasks" not in modern
    assert "tools" in legacy
    assert "tools" in modern


async def test_tasks_cannot_be_created_listed_read_or_cancelled(served: Bridge) -> None:
    research = {"name": "simulate-research-query", "arguments": {"topic": TOPIC}}
    for asking in (ask, ask_modern):
        made = await asking(served, ANN, "tools/call", **research, task={"ttl": 60_000})
        assert "taskId" not in made.body.decode()
        for method in METHODS:
            answer = await asking(served, BOB, method, taskId="any")
            assert answer.status == (200 if asking is ask else 404)
            assert (answer.error["code"], answer.json["id"]) == (-32601, 1)
            assert TOPIC not in answer.body.decode()


async def test_a_task_in_a_batch_is_rejected_by_itself(served: Bridge) -> None:
    answer = await served.post(
        [
            {"jsonrpc": "2.0", "id": 1, "method": "tasks/list"},
            {"jsonrpc": "2.0", "id": 2, "method": "ping"},
        ],
        {"Authorization": f"Bearer {BOB}"},
    )
    refused, pinged = answer.json
    assert refused["error"]["code"] == -32601
    assert pinged["result"] == {}


@pytest.mark.parametrize(
    "task",
    [
        '"task":{"ttl":1},"name":"write"',
        '"name":"write" , "t\\u0061sk" : {"ttl":1}',
        '"name":"write","task":null,"x":1',
        '"name":"write", "arguments":{"task":{}},"task":"x"',
    ],
)
async def test_no_spelling_of_a_task_reaches_upstream(scripted: Bridge, upstream: ScriptedUpstream, task: str) -> None:
    body = f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{{task}}}}}'
    assert (await scripted.post(body.encode())).status == 200
    params = upstream.of("tools/call")[-1].message["params"]
    assert "task" not in params
    assert params["name"] == "write"


@pytest.mark.parametrize("params", ['{"task":{},"task":{}}', '{"Task":{}}', '{"TASK":{},"name":"write"}'])
async def test_a_repeated_or_differently_cased_task_key_is_rejected(scripted: Bridge, params: str) -> None:
    answer = await scripted.post(f'{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}'.encode())
    assert (answer.status, answer.error["code"]) == (400, -32600)


async def test_task_capabilities_of_a_client_are_accepted_and_not_sent_upstream(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    for method in ("notifications/tasks/status", "notifications/own"):
        assert (await scripted.post({"jsonrpc": "2.0", "method": method})).status == 202
    assert upstream.count("notifications/own") == 1
    assert upstream.count("notifications/tasks/status") == 0


async def test_tasks_work_on_a_session_of_its_own(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        opened = await served.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": client})
        assert "tasks" in opened.json["result"]["capabilities"]
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        await served.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, session)
        listed = await served.post({"jsonrpc": "2.0", "id": 1, "method": "tasks/list"}, session)
        assert listed.json["result"]["tasks"] == []


@pytest.mark.parametrize("capabilities", ['{"tasks":{"list":{}},"tools":{}}', '{"tools":{}, "tasks" : {}}', "{}", "[]"])
def test_an_initialize_result_is_kept_without_tasks(capabilities: str) -> None:
    result = f'{{"protocolVersion":"2025-11-25","capabilities":{capabilities},"serverInfo":{{"name":"n"}}}}'
    response = parse_body(f'{{"jsonrpc":"2.0","id":1,"result":{result}}}'.encode())
    assert isinstance(response, Response)
    held = read_initialize(response, "s")
    assert "tasks" not in held.capabilities
    kept = json.loads(held.initialize_result)
    assert "tasks" not in kept["capabilities"]
    assert kept | {"capabilities": None} == json.loads(result) | {"capabilities": None}
    assert ("tools" in kept["capabilities"]) == ("tools" in capabilities)


def test_a_request_without_a_task_is_unchanged() -> None:
    request = parse_body(b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"arguments":{"task":1}}}')
    assert isinstance(request, Request)
    assert without_task(request) is request
    assert not is_about_tasks("tasks")
