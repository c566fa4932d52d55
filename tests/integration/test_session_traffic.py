"""Traffic of clients that cannot be installed here; each test names the public description of its case."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from harness import Bridge, Gateway, bridge, call_body

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "traffic", "version": "1"}},
}
LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


async def open_session(served: Bridge, headers: dict[str, str] | None = None) -> dict[str, str]:
    """Opens a session; returns its header."""
    answer = await served.post(INITIALIZE, headers)
    assert answer.status == 200, answer
    return {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"]}


async def test_id_1_on_every_request_of_one_session_that_many_chats_share(features: Bridge) -> None:
    """claude.ai: anthropics/claude-ai-mcp issue 539, modelcontextprotocol/python-sdk issue 3060."""
    session = await open_session(features)
    names = [f"chat-{number}" for number in range(20)]
    answers = await asyncio.gather(
        *(features.call("wait", {"name": name, "steps": 1}, id=1, headers=session) for name in names)
    )
    assert [answer.text for answer in answers] == names
    assert [answer.json["id"] for answer in answers] == [1] * 20


async def test_a_session_id_that_is_never_sent_back(features: Bridge, features_gateway: Gateway) -> None:
    """claude.ai: anthropics/claude-ai-mcp issues 99 and 975."""
    for _ in range(5):
        await open_session(features)
        assert (await features.post({"jsonrpc": "2.0", "method": "notifications/initialized"})).status == 202
        assert (await features.post(LIST)).status == 200
    assert len(features_gateway.servers) == 1


async def test_get_before_post_opens_a_stream_or_is_405_and_never_html(features: Bridge) -> None:
    """Clients that send GET while they connect: twentyhq/twenty pull request 19496, f/prompts.chat 1117."""
    for accept in ("text/event-stream", "application/json", "*/*"):
        async with (
            asyncio.timeout(10),
            features.http.get(features.url, headers=features.request_headers({"Accept": accept})) as response,
        ):
            if response.status == 200:
                assert response.content_type == "text/event-stream"
            else:
                assert response.status in (400, 405)
                assert json.loads(await response.read())["error"]["code"] == -32600
    assert (await features.post(INITIALIZE)).status == 200


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream", "*/*"])
async def test_an_accept_header_with_one_type_is_enough(features: Bridge, accept: str) -> None:
    """Claude Code: anthropics/claude-code issue 45368; ElevenLabs: ComposioHQ/composio issue 2152."""
    answer = await features.post(LIST, {"Accept": accept})
    assert answer.status == 200
    if accept == "text/event-stream":
        assert answer.headers["Content-Type"].partition(";")[0] == accept
        (data,) = [line[5:] for line in answer.body.splitlines() if line.startswith(b"data:")]
        message = json.loads(data)
    else:
        message = answer.json
    assert message["result"]["tools"]


@pytest.mark.parametrize(
    "path",
    [
        "/.well-known/oauth-protected-resource",
        "/.well-known/oauth-protected-resource/mcp",
        "/.well-known/oauth-authorization-server",
        "/.well-known/oauth-authorization-server/mcp",
        "/.well-known/openid-configuration",
        "/mcp/.well-known/oauth-authorization-server",
    ],
)
async def test_a_search_for_an_authorization_server_ends_with_404_and_json(features: Bridge, path: str) -> None:
    """Clients that look for OAuth first: akutishevsky/nutrition-mcp issue 51, jimprosser/obsidian-web-mcp 18."""
    answer = await features.get(path)
    assert answer.status == 404
    assert answer.error["code"] == -32600


async def test_a_session_used_after_its_delete_is_404_and_initialize_begins_another(
    features: Bridge, features_gateway: Gateway
) -> None:
    """modelcontextprotocol/python-sdk issue 1676, sparfenyuk/mcp-proxy issue 149."""
    session = await open_session(features)
    ended = await features.ask("DELETE", "/mcp", b"", features.request_headers(session))
    assert ended.status in (200, 204)
    assert (await features.post(LIST, session)).status == 404
    again = await open_session(features)
    assert again != session
    assert (await features.post(LIST, again)).status == 200
    assert len(features_gateway.servers) == 1


@pytest.mark.parametrize(
    "version",
    [
        {},
        {"mcp-protocol-version": "2025-03-26"},
        {"MCP-PROTOCOL-VERSION": "2025-11-25"},
    ],
)
async def test_the_version_header_may_be_missing_or_spelled_in_any_case(
    features: Bridge, version: dict[str, str]
) -> None:
    """mcp-remote sends none after the handshake: punkpeye/mcp-remote pull request 289; HarperFast/harper issue 1611."""
    session = await open_session(features, version)
    assert (await features.post(LIST, session | version)).status == 200


async def test_a_version_header_before_the_handshake_is_taken(features: Bridge) -> None:
    """The AI SDK and Hermes send their own latest: vercel/ai issue 14413, NousResearch/hermes-agent 14816."""
    await open_session(features, {"mcp-protocol-version": "2025-11-25"})


async def test_twenty_pooled_sessions_with_the_same_ids_keep_their_progress_apart(features: Bridge) -> None:
    """Every client counts from 0 or 1: cloudflare/agents issue 1632."""
    sessions = [await open_session(features) for _ in range(20)]

    async def steps(number: int) -> list[Any]:
        body = call_body("wait", {"name": f"pooled-{number}", "steps": 2}, id=0)
        body["params"]["_meta"] = {"progressToken": 0}
        messages = [message async for message in features.stream(body, sessions[number])]
        assert messages[-1]["id"] == 0
        assert messages[-1]["result"]["content"][0]["text"] == f"pooled-{number}"
        assert {message["params"]["progressToken"] for message in messages[:-1]} <= {0}
        return [message["params"]["progress"] for message in messages[:-1]]

    async with asyncio.timeout(60):
        progress = await asyncio.gather(*(steps(number) for number in range(20)))
    # The last step may come after the response, on another stream, and is dropped then.
    assert all(seen in ([0, 1, 2], [0, 1]) for seen in progress), progress


async def test_a_batch_with_one_id_twice_is_answered_twice(features_gateway: Gateway) -> None:
    """Clients that pool send one id twice in a 2025-03-26 batch: modelcontextprotocol/python-sdk issue 3060."""
    async with bridge(features_gateway.url) as served:
        batch = [call_body("wait", {"name": name, "steps": 0}, id=1) for name in ("one", "two")]
        answers = (await served.post(batch, {"MCP-Protocol-Version": "2025-03-26"})).json
    assert sorted(answer["result"]["content"][0]["text"] for answer in answers) == ["one", "two"]
