"""What the log contains about requests, and what it must never contain."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web

from harness import (
    JSON,
    SSE,
    TOKEN,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    call_body,
    environment,
    free_port,
    until,
)
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION

CANARY = "canary-7fK2"
UPSTREAM_TOKEN = f"upstream-{CANARY}"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


async def call_with_canaries(served: Bridge) -> None:
    """Sends canaries in every part of a request that must not be logged."""
    await served.call("write", {CANARY: CANARY})
    await served.call(CANARY, {}, id=CANARY)
    await served.call("write", {"text": CANARY}, headers=SSE)
    await served.post({"jsonrpc": "2.0", "id": CANARY, "method": CANARY, "params": {"name": CANARY}})
    await served.post({"jsonrpc": "2.0", "method": f"notifications/{CANARY}", "params": {CANARY: CANARY}})
    await served.post([call_body("write", {"text": CANARY}), {CANARY: CANARY}, CANARY])
    for spoilt in (f'{{"{CANARY}"', f'"{CANARY}"', f'{{"jsonrpc":"2.0","id":{{"{CANARY}":1}},"method":"ping"}}'):
        await served.post(spoilt.encode())
    await served.post(b"\xff" + CANARY.encode())
    await served.post({"jsonrpc": "2.0", "id": 1, "result": {"text": CANARY}})
    await served.ask("POST", f"/mcp?token={CANARY}", call_body("read"), served.request_headers())
    await served.ask("GET", f"/{CANARY}?{CANARY}=1", b"", {})
    await served.ask("POST", "/mcp", CANARY.encode(), served.request_headers({"Content-Type": f"text/{CANARY}"}))
    for authorization in (f"Bearer {CANARY}", f"Basic {CANARY}", CANARY):
        await served.ask("POST", "/mcp", call_body("read"), {**JSON, "Authorization": authorization})
    for header in ("Cookie", "Origin", "X-Vestige-Principal", "Mcp-Session-Id", "Traceparent"):
        await served.call("read", headers={header: CANARY})
    await served.call(
        "read", headers={"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Name": CANARY, "Mcp-Method": CANARY}
    )


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_client_content_is_logged_at_any_level(upstream: ScriptedUpstream, log_format: str) -> None:
    variables = {"LOG_LEVEL": "debug", "LOG_FORMAT": log_format, "UPSTREAM_TOKEN": UPSTREAM_TOKEN}
    process = BridgeProcess(environment(upstream.url, **variables))
    async with process.serving() as served:
        await until(served.ready)
        await call_with_canaries(served)
        process.terminate()
        _, log = await process.ended()
    assert log.count("request_id") > 20
    assert CANARY not in log
    assert TOKEN not in log


def html(received: Received) -> web.Response:
    return web.Response(text=f"<p>{CANARY}</p>", content_type="text/html", status=500)


def refused(received: Received) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": CANARY}}, status=400)


def spoilt(received: Received) -> web.Response:
    return web.Response(text=f'{{"jsonrpc":"2.0","{CANARY}', content_type="application/json")


def another_answer(received: Received) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": CANARY, "result": {"text": CANARY}})


def error(received: Received) -> web.Response:
    return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": {"code": 1, "message": CANARY}})


@pytest.mark.parametrize("answer", [html, refused, spoilt, another_answer, error])
async def test_no_upstream_content_is_logged_at_any_level(
    upstream: ScriptedUpstream, answer: Callable[[Received], web.Response]
) -> None:
    async def script(received: Received) -> web.Response:
        return answer(received)

    upstream.on("tools/call", script)
    process = BridgeProcess(environment(upstream.url, LOG_LEVEL="debug", REQUEST_TIMEOUT_SECONDS="1"))
    async with process.serving() as served:
        await until(served.ready)
        await served.call("read")
        await served.call("write", headers=SSE)
        process.terminate()
        _, log = await process.ended()
    assert "tools/call" in log
    assert CANARY not in log


async def test_a_line_leads_from_a_trace_to_its_request_and_back(everything_gateway: Gateway) -> None:
    process = BridgeProcess(environment(everything_gateway.url, LOG_FORMAT="json"))
    async with process.serving() as served:
        await until(served.ready)
        answer = await served.call("echo", {"message": "hello"}, headers={"Traceparent": TRACEPARENT})
        process.terminate()
        _, log = await process.ended()
    (line,) = [entry for entry in map(json.loads, log.splitlines()) if "trace_id" in entry]
    assert line["trace_id"] == TRACE_ID
    assert line["request_id"] == answer.headers["X-Request-Id"]
    assert (line["method"], line["tool"], line["principal"], line["status"]) == ("tools/call", "echo", "default", 200)


TRACED = {"Traceparent": TRACEPARENT, "X-Request-Id": "r-1"}


async def post_plain(served: Bridge) -> None:
    await served.call("read", headers=TRACED)


async def post_for_a_stream(served: Bridge) -> None:
    await served.call("read", headers=TRACED | SSE)


async def post_batch(served: Bridge) -> None:
    await served.post([call_body("read")], TRACED)


async def post_in_a_session(served: Bridge) -> None:
    opened = await served.post(INITIALIZE, TRACED | SSE)
    await served.call("read", headers=TRACED | SSE | {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]})


async def post_modern(served: Bridge) -> None:
    body = call_body("read")
    prefix = "io.modelcontextprotocol/"
    body["params"]["_meta"] = {f"{prefix}protocolVersion": LATEST_MODERN_VERSION, f"{prefix}clientCapabilities": {}}
    headers = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": "tools/call", "Mcp-Name": "read"}
    await served.post(body, TRACED | SSE | headers)


@pytest.mark.parametrize("mode", ["shared", "per-client"])
@pytest.mark.parametrize("ask", [post_plain, post_for_a_stream, post_batch, post_in_a_session, post_modern])
async def test_the_trace_and_the_request_id_go_to_the_upstream(
    upstream: ScriptedUpstream, ask: Callable[[Bridge], Awaitable[None]], mode: str
) -> None:
    async with bridge(upstream.url, SESSION_MODE=mode) as served:
        await ask(served)
    (received,) = upstream.of("tools/call")
    assert received.http.headers.getall("traceparent") == [TRACEPARENT]
    assert received.http.headers.getall("X-Request-Id") == ["r-1"]


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_a_port_that_is_taken_is_one_line_of_the_log(upstream: ScriptedUpstream, log_format: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = BridgeProcess(environment(upstream.url, PORT=str(port), LOG_FORMAT=log_format))
        status, log = await process.ended()
    assert status == 1
    (line,) = log.splitlines()
    sentence = (
        f"Cannot listen on 127.0.0.1 port {port}: Address already in use. "
        "Choose another VESTIGE_BRIDGE_HOST or VESTIGE_BRIDGE_PORT."
    )
    if log_format == "json":
        said = json.loads(line)
        assert (said["level"], said["message"]) == ("error", sentence)
    else:
        assert line.endswith(f"ERROR   {sentence}")


async def test_a_variable_that_is_no_setting_is_a_warning_and_the_bridge_serves(upstream: ScriptedUpstream) -> None:
    variables = {"VESTIGE_BRIDGE_PROT": "1", "VESTIGE_BRIDGE_SERVICE_HOST": "10.0.0.1"}
    process = BridgeProcess(environment(upstream.url) | variables)
    async with process.serving():
        process.terminate()
        status, log = await process.ended()
    assert status in (0, -15)
    (warning,) = [line for line in log.splitlines() if "WARNING" in line and "not a setting" in line]
    assert warning.endswith("VESTIGE_BRIDGE_PROT is not a setting and is ignored. Did you mean VESTIGE_BRIDGE_PORT?")
    assert "SERVICE_HOST" not in log


async def test_a_bridge_whose_standard_error_is_closed_serves(upstream: ScriptedUpstream) -> None:
    command = ["sh", "-c", f"exec {shlex.join([sys.executable, '-m', 'vestige_bridge'])} 2>&-"]
    async with BridgeProcess(environment(upstream.url), command).serving() as served:
        await until(served.ready)
        assert (await served.call("read")).status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_an_unreachable_upstream_is_logged_with_the_system_error(
    caplog: pytest.LogCaptureFixture, host: str
) -> None:
    port = free_port()
    async with bridge(f"http://{host}:{port}/mcp"):
        await until(lambda: "cannot be reached yet" in caplog.text)
    (line,) = [record.getMessage() for record in caplog.records if "cannot be reached yet" in record.getMessage()]
    assert line.endswith(f"Upstream cannot be reached. ({host}:{port}: Connection refused)")


async def test_a_name_that_does_not_resolve_is_logged_without_python_syntax(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bridge("http://vestige.invalid:3100/mcp"):
        await until(lambda: "cannot be reached yet" in caplog.text)
    assert "(vestige.invalid:3100: " in caplog.text
    assert "Errno" not in caplog.text
