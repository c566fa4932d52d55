"""Input that strict parsers reject is corrected where that changes no meaning, and otherwise rejected at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness import SSE, Bridge, Gateway, ScriptedUpstream, bridge

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
}
MODERN_HEADERS = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "write"}
HALF = (
    rb'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write","arguments":{"k\uDE00":"half \ud83d@"}}}'
)
WHOLE = HALF.replace(rb"\uDE00", rb"\ufffd").replace(rb"\ud83d", rb"\ufffd")
LARGE = "x" * 700_000


def arguments(body: bytes) -> Any:
    return json.loads(body)["params"]["arguments"]


@pytest.mark.parametrize(
    "filling", ["", r"\ud83d\ude00\\\\ud83d", LARGE], ids=["alone", "beside a pair", "in a large body"]
)
async def test_an_unpaired_surrogate_is_replaced_in_requests_to_upstream(
    scripted: Bridge, upstream: ScriptedUpstream, filling: str
) -> None:
    body = HALF.replace(b"@", filling.encode())
    modern = json.loads(body)
    modern["params"]["_meta"] = META
    assert (await scripted.post(body)).status == 200
    assert (await scripted.post(b"[" + body + b"]")).status == 200
    assert (await scripted.post(json.dumps(modern).encode(), MODERN_HEADERS)).status == 200
    shared, batch, stateless = upstream.of("tools/call")
    whole = WHOLE.replace(b"@", filling.encode())
    prefix, suffix = whole.split(b'"id":1')
    for received in (shared, batch):
        assert received.body.startswith(prefix)
        assert received.body.endswith(suffix)
    assert arguments(stateless.body) == arguments(whole)
    assert rb"\udc" not in stateless.body.lower()


async def test_half_a_character_in_a_notification_is_replaced(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    body = rb'{"jsonrpc":"2.0","method":"notifications/own","params":{"a":"\uDBFF"}}'
    assert (await scripted.post(body)).status == 202
    (received,) = upstream.of("notifications/own")
    assert received.body == body.replace(rb"\uDBFF", rb"\ufffd")


async def test_half_a_character_is_replaced_on_a_session_of_its_own(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, SESSION_MODE="per-client") as served:
        params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        opened = await served.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}
        await served.post(b"\xef\xbb\xbf" + HALF.replace(b"@", b""), session)
        null = b'{"jsonrpc":"2.0","id":2,"method":"ping","params":null}'
        await served.post(null, session)
    assert upstream.of("tools/call")[-1].body == WHOLE.replace(b"@", b"")
    assert upstream.of("ping")[-1].body == b'{"jsonrpc":"2.0","id":2,"method":"ping"}'


async def test_a_message_nested_too_deeply_is_refused_at_once_with_its_id(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    for levels in (98, 99, 5_000):
        nested = b"[" * levels + b"]" * levels
        body = b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"write","a":%s},"id":"deep"}' % nested
        answer = await scripted.post(body)
        if levels == 98:
            assert answer.status == 200
        else:
            assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32700, "deep")
    assert upstream.count("tools/call") == 1


@pytest.mark.parametrize("value", ["2025-11-25, 2025-11-25", "2025-11-25,2025-11-25 ,\t2025-11-25"])
async def test_a_repeated_version_header_counts_once(scripted: Bridge, value: str) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await scripted.post(ping, {"MCP-Protocol-Version": value})).status == 200


async def test_repeated_headers_of_the_modern_era_count_once(scripted: Bridge) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "write", "_meta": META}}
    twice = {name: f"{value}, {value}" for name, value in MODERN_HEADERS.items()}
    assert (await scripted.post(body, twice)).status == 200
    for name, value in MODERN_HEADERS.items():
        answer = await scripted.post(body, MODERN_HEADERS | {name: f"{value}, other"})
        assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32020, 1)


@pytest.mark.parametrize("value", ["2025-11-25, 2025-06-18", "2025-11-25, 2026-07-28", "1999-01-01"])
@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_versions_that_differ_or_are_unknown_are_refused(scripted: Bridge, method: str, value: str) -> None:
    headers = scripted.request_headers({**SSE, "MCP-Protocol-Version": value, "Mcp-Session-Id": "mine"})
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}' if method == "POST" else b""
    answer = await scripted.ask(method, "/mcp", body, headers)
    assert (answer.status, answer.error["code"]) == (400, -32022)
    assert answer.error["data"]["requested"] == value


@pytest.mark.parametrize("params", ["x", 1, True])
async def test_params_that_are_no_object_are_refused(scripted: Bridge, params: Any) -> None:
    answer = await scripted.post({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": params})
    assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32600, 7)


async def test_null_params_are_not_sent_to_upstream(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    answer = await scripted.post(b'{"jsonrpc":"2.0","id":7,"params":null,"method":"prompts/list"}')
    assert answer.status == 200
    assert upstream.of("prompts/list")[-1].message.keys() == {"jsonrpc", "id", "method"}


async def test_a_body_with_a_byte_order_mark_is_taken(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    answer = await scripted.post(b'\xef\xbb\xbf{"jsonrpc":"2.0","id":7,"method":"ping"}')
    assert answer.json["id"] == 7
    assert upstream.of("ping")[-1].body.startswith(b"{")


async def test_an_initialized_notification_with_an_id_is_accepted_as_a_notification(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    body = {"jsonrpc": "2.0", "id": 5, "method": "notifications/initialized"}
    for sent in (body, [body]):
        answer = await scripted.post(sent)
        assert (answer.status, answer.body) == (202, b"")
    assert upstream.count("notifications/initialized") == 1


async def test_halves_of_characters_reach_a_real_server_whole(features_gateway: Gateway) -> None:
    async with bridge(features_gateway.url) as served:
        body = rb'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":'
        body += rb'{"name":"json_schema_2020_12_tool","arguments":{"name":"half \ud83d","\uDC00":"\ud83d\ude00"}}}'
        answer = await served.post(body)
        assert json.loads(answer.text) == {"name": "half \ufffd", "\ufffd": "\U0001f600"}
