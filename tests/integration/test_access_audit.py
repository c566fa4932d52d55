"""The audit log has one line for each tool call, whatever its outcome, and writing it delays no request."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import (
    ROOT,
    SSE,
    TOOLS,
    Bridge,
    BridgeProcess,
    Received,
    ScriptedUpstream,
    bridge,
    call_body,
    environment,
    until,
)
from integration.test_session_admission import NOTE, Hanging
from vestige_bridge.access import audit_writer
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION

CANARY = "canary-7fK2"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
ALICE, BOB, READER = "alice-0123456789abcdef", "bob-0123456789abcdef", "reader-0123456789abcdef"
TOKENS = f"""
[[token]]
name = "alice"
token = "{ALICE}"

[[token]]
name = "bob"
token = "{BOB}"
tools = ["read"]
resources = false
rate = 2
max_in_flight = 3

[[token]]
name = "reader"
token = "{READER}"
read_only = true
"""


def lines(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of the log, all of which must be complete."""
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


async def written(path: Path, count: int) -> list[dict[str, Any]]:
    """Waits for at least ``count`` lines; returns all lines."""
    await until(lambda: path.read_text().count("\n") >= count)
    return lines(path)


def told(line: dict[str, Any]) -> tuple[Any, ...]:
    """Returns the fields of a line that say how the call ended."""
    return line["tool"], line["outcome"], line["reason"]


def modern(body: dict[str, Any], **meta: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the request and the headers of a modern client."""
    prefix = "io.modelcontextprotocol/"
    meta |= {f"{prefix}protocolVersion": LATEST_MODERN_VERSION, f"{prefix}clientCapabilities": {}}
    headers = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": body["method"]}
    if "name" in body["params"]:
        headers["Mcp-Name"] = body["params"]["name"]
    return body | {"params": {**body["params"], "_meta": meta}}, headers


def principals(directory: Path) -> dict[str, str]:
    """Returns the variables of a bridge for three principals with different permissions."""
    (directory / "tokens.toml").write_text(TOKENS)
    return {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(directory / "tokens.toml")}


def seen_by(served: Bridge, token: str) -> Bridge:
    """Returns the bridge with the token of another client."""
    return Bridge(served.origin, served.http, token, metrics=served.metrics)


def ask_shell(command: str, directory: Path) -> str:
    """Returns the output of a shell command."""
    return subprocess.run(["bash", "-c", command], cwd=directory, check=True, capture_output=True, text=True).stdout


async def open_session(served: Bridge) -> dict[str, str]:
    """Opens a session of a legacy client; returns its header."""
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    opened = await served.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, SSE)
    return {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}


async def post_plain(served: Bridge) -> None:
    await served.call("write")


async def post_for_a_stream(served: Bridge) -> None:
    await served.call("write", headers=SSE)


async def post_in_a_session(served: Bridge) -> None:
    session = await open_session(served)
    await served.call("write", headers=session)


async def post_modern(served: Bridge) -> None:
    await served.post(*modern(call_body("write")))


async def post_batch(served: Bridge) -> None:
    await served.post([call_body("write"), {"jsonrpc": "2.0", "id": 2, "method": "ping"}])


async def post_batch_in_a_session(served: Bridge) -> None:
    session = await open_session(served)
    await served.post([call_body("write"), {"jsonrpc": "2.0", "id": 2, "method": "ping"}], session)


@pytest.mark.parametrize("mode", ["shared", "per-client"])
@pytest.mark.parametrize(
    "ask", [post_plain, post_for_a_stream, post_in_a_session, post_modern, post_batch, post_batch_in_a_session]
)
async def test_a_call_has_one_line_in_every_mode(
    upstream: ScriptedUpstream, tmp_path: Path, ask: Callable[[Bridge], Awaitable[None]], mode: str
) -> None:
    async with bridge(upstream.url, SESSION_MODE=mode, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        served.headers |= {"X-Agent-Id": "researcher", "X-Request-Id": "r-1", "Traceparent": TRACEPARENT}
        await ask(served)
    (line,) = lines(tmp_path / "audit")
    assert line.pop("time").endswith("Z")
    assert line.pop("milliseconds") > 0
    assert (line.pop("session") is not None) is ask.__name__.endswith("in_a_session")
    assert line == {
        "audit": "call",
        "principal": "default",
        "agent": "researcher",
        "request_id": "r-1",
        "trace_id": TRACE_ID,
        "method": "tools/call",
        "tool": "write",
        "isError": False,
        "outcome": "answered",
        "reason": None,
        "replayed": False,
    }


async def test_only_calls_have_lines(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        session = await open_session(served)
        for method in ("ping", "tools/list", "resources/read", "unknown"):
            await served.post({"jsonrpc": "2.0", "id": 1, "method": method}, session)
        await served.post({"jsonrpc": "2.0", "method": "notifications/x"})
        for body in (b"{", b"[]", b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"write"}}'):
            await served.post(body)
        assert (await served.ask("DELETE", "/mcp", b"", served.request_headers(session))).status == 204
    assert lines(tmp_path / "audit") == []


async def test_a_client_without_a_valid_token_has_no_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        for token in (None, "wrong"):
            assert (await seen_by(served, token or "").call("write")).status == 401
        assert (await served.call("write", headers={"Origin": "https://evil.example"})).status == 403
    assert lines(tmp_path / "audit") == []


async def test_a_line_says_whether_the_tool_failed(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    deep: Any = [{"isError": True}]
    for _ in range(60):
        deep = [deep, {"isError": not deep}]
    results = [
        {"content": [], "isError": True},
        {"content": [{"type": "text", "text": '"isError":true'}], "isError": False},
        {"content": [], "structuredContent": deep},
        {"structuredContent": deep, "content": [], "isError": True},
        {"content": [{"type": "text", "text": 'a"\\' * 2_000_000}], "isError": True},
        {"content": [{"type": "text", "text": 'a"\\' * 2_000_000}], "structuredContent": deep},
    ]

    async def answer(received: Received) -> web.StreamResponse:
        number = received.message["params"]["arguments"]["number"]
        if number == len(results):
            error = {"code": -32602, "message": CANARY}
            return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})
        return received.result(results[number])

    upstream.on("tools/call", answer)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        for number in range(len(results) + 1):
            assert (await served.call("write", {"number": number})).status == 200
    said = lines(tmp_path / "audit")
    assert [line["isError"] for line in said] == [True, False, False, True, True, False, True]
    assert {line["outcome"] for line in said} == {"answered"}


async def test_a_replayed_call_has_one_line_with_its_replay(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def cut_fourth(received: Received) -> web.StreamResponse:
        return received.cut() if upstream.count("tools/call") == 4 else await upstream.answer(received)

    upstream.on("tools/call", cut_fourth)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        upstream.sessions.clear()
        for tool in ("write", "write", "read"):
            assert (await served.call(tool)).status == 200
    assert upstream.count("tools/call") == 5
    assert [(*told(line), line["replayed"]) for line in lines(tmp_path / "audit")] == [
        ("write", "answered", None, True),
        ("write", "answered", None, False),
        ("read", "answered", None, True),
    ]


async def test_a_call_with_an_unknown_outcome_is_logged_as_unknown(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def fail(received: Received) -> web.StreamResponse:
        tool = received.message["params"]["name"]
        if tool == "write":
            return received.cut()
        if tool == "set":
            return web.Response(status=413)
        await asyncio.Event().wait()
        raise AssertionError

    upstream.on("tools/call", fail)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), REQUEST_TIMEOUT_SECONDS="0.5") as served:
        await until(served.ready)
        answers = [await served.call(tool) for tool in ("write", "set", "read")]
    said = lines(tmp_path / "audit")
    assert [told(line) for line in said] == [
        ("write", "unknown", "disconnected"),
        ("set", "not_sent", "too_large"),
        ("read", "unknown", "timeout"),
    ]
    assert [answer.error["data"]["outcome"] for answer in (answers[0], answers[2])] == ["unknown", "unknown"]


async def test_cancelled_and_abandoned_calls_have_their_lines(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        session = await open_session(served)
        cancelled = asyncio.create_task(served.call("write", headers=session))
        await until(lambda: hanging.held == 1)
        cancellation = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        await served.post(cancellation, session)
        assert (await cancelled).error["code"] == -32017
        for number, (body, headers) in enumerate((modern(call_body("read")), (call_body("set"), {}))):
            leaving = asyncio.create_task(served.post(body, headers))
            await until(lambda number=number: upstream.count("tools/call") == 2 + number)
            leaving.cancel()
            await asyncio.wait([leaving])
        await written(tmp_path / "audit", 2)
        hanging.released.set()
        said = await written(tmp_path / "audit", 3)
    assert sorted(map(told, said)) == [
        ("read", "unknown", "cancelled"),
        ("set", "answered", None),
        ("write", "unknown", "cancelled"),
    ]


async def test_a_call_rejected_before_admission_has_a_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), MAX_IN_FLIGHT="2") as served:
        await until(served.ready)
        first = [asyncio.create_task(served.call("write", id=number)) for number in range(2)]
        await until(lambda: hanging.held == 2)
        plain = await served.call("read")
        batch = await served.post([call_body("set"), call_body("nothing")])
        refused = await served.post(*modern(call_body("read")))
        assert [answer.status for answer in (plain, batch, refused)] == [503] * 3
        before = await written(tmp_path / "audit", 4)
        hanging.released.set()
        await asyncio.gather(*first)
        body, headers = modern(call_body("read"))
        assert (await served.post(body, {**headers, "Mcp-Name": "write"})).status == 400
        assert (await served.post([body, call_body("set")], headers)).status == 400
        session = await open_session(served)
        await served.ask("DELETE", "/mcp", b"", served.request_headers(session))
        assert (await served.call("read", headers=session)).status == 404
        assert (await served.post([call_body("read")], session)).status == 404
    assert sorted(map(told, before)) == sorted(
        [(tool, "not_sent", "overloaded") for tool in ("read", "set", "other", "read")]
    )
    after = lines(tmp_path / "audit")[4:]
    assert [told(line) for line in after] == [
        *[("write", "answered", None)] * 2,
        ("read", "not_sent", "invalid"),
        ("read", "not_sent", "invalid"),
        ("set", "not_sent", "invalid"),
        *[("read", "not_sent", "session_lost")] * 2,
    ]


async def test_a_call_before_the_first_session_names_its_tool_at_its_end(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    opening = asyncio.Event()

    async def open_late(received: Received) -> web.StreamResponse:
        await opening.wait()
        return await upstream.answer(received)

    upstream.on("initialize", open_late)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        calling = asyncio.create_task(served.call("write"))
        await until(lambda: upstream.count("initialize") == 1)
        opening.set()
        assert (await calling).status == 200
    assert [told(line) for line in lines(tmp_path / "audit")] == [("write", "answered", None)]


async def test_a_call_without_upstream_was_not_sent(tmp_path: Path) -> None:
    async with bridge("http://127.0.0.1:9/mcp", AUDIT_LOG=str(tmp_path / "audit")) as served:
        assert (await served.call("write")).status == 503
        assert (await served.post(*modern(call_body("write")))).status == 503
    said = lines(tmp_path / "audit")
    assert [line["outcome"] for line in said] == ["not_sent"] * 2
    assert {line["tool"] for line in said} == {"other"}


async def test_each_refusal_of_a_principal_has_a_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), **principals(tmp_path)) as served:
        await until(served.ready)
        bob, reader = seen_by(served, BOB), seen_by(served, READER)
        resource = {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": f"file:///{CANARY}"}}
        for answer in (await bob.call("write"), await bob.post(resource), await reader.call("set")):
            assert answer.status == 403
        assert (await reader.post({"jsonrpc": "2.0", "id": 1, "method": f"x/{CANARY}"})).status == 403
        assert (await reader.post({"jsonrpc": "2.0", "method": "notifications/x"})).status == 403
        batch = await bob.post([call_body("read", id=1), call_body("write", id=2), call_body(CANARY, id=3)])
        assert batch.status == 200
        assert (await bob.call("read")).status == 200
        assert (await bob.call("read")).status == 429
        assert (await bob.post([call_body("read")])).status == 200
        too_large = [{"jsonrpc": "2.0", "id": number, "method": "ping"} for number in range(4)]
        assert (await bob.post(too_large)).status == 400
    assert CANARY not in (tmp_path / "audit").read_text()
    said = lines(tmp_path / "audit")
    calls = [line for line in said if line["audit"] == "call"]
    assert [(line["principal"], *told(line)) for line in calls] == [("bob", "read", "answered", None)] * 2
    refusals = [
        (line["principal"], line["method"], line["tool"], line["reason"], line["status"])
        for line in said
        if line["audit"] == "refusal"
    ]
    assert {line["outcome"] for line in said if line["audit"] == "refusal"} == {"refused"}
    assert Counter(refusals) == Counter(
        [
            ("bob", "tools/call", "write", "forbidden", 403),
            ("bob", "resources/read", None, "forbidden", 403),
            ("reader", "tools/call", "set", "forbidden", 403),
            ("reader", "other", None, "forbidden", 403),
            ("reader", "other", None, "forbidden", 403),
            ("bob", "tools/call", "write", "forbidden", 403),
            ("bob", "tools/call", "other", "forbidden", 403),
            *[("bob", "tools/call", "read", "limit", 429)] * 2,
        ]
    )


async def test_a_call_rejected_after_a_renewal_has_one_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def announce_nothing(received: Received) -> web.StreamResponse:
        return received.result({"tools": [{**tool, "annotations": {}} for tool in TOOLS]})

    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), **principals(tmp_path)) as served:
        await until(served.ready)
        upstream.on("tools/list", announce_nothing)
        upstream.sessions.clear()
        answer = await seen_by(served, READER).call("read")
        assert answer.status == 403
    (line,) = lines(tmp_path / "audit")
    assert (line["audit"], *told(line), line["status"]) == ("refusal", "read", "refused", "forbidden", 403)
    assert upstream.count("tools/call") == 1


async def test_a_line_contains_no_content_of_the_call(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def answer(received: Received) -> web.StreamResponse:
        return received.result({"content": [{"type": "text", "text": CANARY}], CANARY: CANARY, "isError": True})

    upstream.on("tools/call", answer)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), **principals(tmp_path)) as served:
        await until(served.ready)
        for token in (ALICE, BOB, READER):
            client = seen_by(served, token)
            await client.call("read", {CANARY: CANARY}, id=CANARY)
            await client.call(
                CANARY, headers={"Cookie": CANARY, "Traceparent": CANARY, "X-Request-Id": f"not {CANARY}"}
            )
            await client.post(*modern(call_body("read", {"text": CANARY}), progressToken=CANARY, traceparent=CANARY))
            await client.post({"jsonrpc": "2.0", "id": CANARY, "method": CANARY, "params": {CANARY: CANARY}})
            await client.post([call_body("write", {"text": CANARY}), {"jsonrpc": "2.0", "id": 1, "result": CANARY}])
            await client.ask("POST", f"/mcp?{CANARY}", call_body("read"), client.request_headers())
    text = (tmp_path / "audit").read_text()
    assert text.count("\n") > 15
    assert CANARY not in text
    assert not any(token in text for token in (ALICE, BOB, READER))


@pytest.mark.parametrize("where", ["header", "meta", "both"])
async def test_the_trace_of_a_request_is_in_both_logs(upstream: ScriptedUpstream, tmp_path: Path, where: str) -> None:
    body, headers = modern(call_body("read"), **({} if where == "header" else {"traceparent": TRACEPARENT}))
    if where == "header":
        headers["Traceparent"] = TRACEPARENT
    elif where == "both":
        headers["Traceparent"], body["params"]["_meta"]["traceparent"] = TRACEPARENT, TRACEPARENT.replace("0af", "1af")
    process = BridgeProcess(environment(upstream.url, LOG_FORMAT="json", AUDIT_LOG=str(tmp_path / "audit")))
    async with process.serving() as served:
        await until(served.ready)
        assert (await served.post(body, headers)).status == 200
        process.terminate()
        _, log = await process.ended()
    (line,) = lines(tmp_path / "audit")
    (access,) = [entry for entry in map(json.loads, log.splitlines()) if entry.get("method") == "tools/call"]
    assert line["trace_id"] == access["trace_id"] == TRACE_ID
    assert line["request_id"] == access["request_id"]
    (received,) = upstream.of("tools/call")
    assert received.message["params"].get("_meta", {}).get("traceparent") == body["params"]["_meta"].get("traceparent")


async def test_calls_that_the_drain_ends_have_their_lines(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    settings = {"DRAIN_SECONDS": "0.5", "UPSTREAM_CONCURRENCY": "1", "AUDIT_LOG": str(tmp_path / "audit")}
    process = BridgeProcess(environment(upstream.url, **settings))
    async with process.serving() as served:
        await until(served.ready)
        calls = [asyncio.create_task(served.call("write", id=number)) for number in range(3)]
        await until(lambda: hanging.held == 1)

        async def all_wait() -> bool:
            async with served.http.get(f"http://127.0.0.1:{process.metrics_port}/metrics") as response:
                return "vestige_bridge_requests_in_flight 3.0" in await response.text()

        await until(all_wait)
        process.terminate()
        answers = [await call for call in calls]
        status, _ = await process.ended()
    assert status == 0
    said = sorted(told(line) for line in lines(tmp_path / "audit"))
    assert said == [*[("write", "not_sent", "timeout")] * 2, ("write", "unknown", "timeout")]
    assert sorted(answer.error["data"]["outcome"] for answer in answers) == [outcome for _, outcome, _ in said]


async def test_a_call_abandoned_before_admission_has_a_line(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def open_never(received: Received) -> web.StreamResponse:
        await asyncio.Event().wait()
        raise AssertionError

    upstream.on("initialize", open_never)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit"), CONNECT_TIMEOUT_SECONDS="60") as served:
        calling = asyncio.create_task(served.post(*modern(call_body("write"))))
        await until(lambda: served.metric("requests_in_flight") == 1)
    await asyncio.wait([calling])
    assert [told(line) for line in lines(tmp_path / "audit")] == [("other", "not_sent", "timeout")]
    assert calling.cancelled() or calling.exception() or calling.result().status >= 500


async def test_a_bug_before_a_call_is_accepted_leaves_a_line(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(message: object, headers: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("vestige_bridge.endpoint.modern_clients.require_valid", fail)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit")) as served:
        await until(served.ready)
        assert (await served.post(*modern(call_body("write")))).status == 500
    assert [told(line) for line in lines(tmp_path / "audit")] == [("write", "not_sent", "bug")]


async def test_a_full_device_loses_no_request(upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture) -> None:
    async with bridge(upstream.url, AUDIT_LOG="/dev/full") as served:
        await until(served.ready)
        answers = await asyncio.gather(*(served.call("write", id=number) for number in range(200)))
        assert {answer.status for answer in answers} == {200}
        await until(lambda: served.metric("audit_failing") == 1)
        assert (await served.call("write")).status == 200
        assert served.metric("audit_lines_waiting") == 201
        assert served.metric("audit_lines_written_total") == served.metric("audit_lines_lost_total") == 0
    assert caplog.text.count("The audit log cannot be written: No space left on device") == 1
    assert "201 lines of the audit log were not written" in caplog.text


class Destination:
    """A path that leads to a full device, and after ``take_lines`` to a file."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "audit"
        self.file = directory / "file"
        self.file.touch()
        self.path.symlink_to("/dev/full")

    def take_lines(self) -> None:
        """Makes the path lead to the file, which the bridge has to open again."""
        self.path.unlink()
        self.path.symlink_to(self.file)


async def test_a_required_audit_refuses_calls_while_the_log_cannot_be_written(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    destination = Destination(tmp_path)
    settings = {"AUDIT_LOG": str(destination.path), "AUDIT_REQUIRED": "true"}
    process = BridgeProcess(environment(upstream.url, **settings))
    async with process.serving() as served:
        await until(served.ready)
        first = await served.call("write", id="first")
        assert (first.status, first.error["code"], first.json["id"]) == (503, -32013, "first")
        assert first.error["data"] == {"outcome": "unknown", "retryable": False}
        assert upstream.count("tools/call") == 1
        session = await open_session(served)
        asked: list[tuple[Any, dict[str, str]]] = [(call_body("write"), {}), (call_body("read"), session)]
        for body, headers in [*asked, modern(call_body("read"))]:
            refused = await served.post(body, headers)
            assert (refused.status, refused.error["code"]) == (503, -32013)
            assert refused.error["data"] == {"outcome": "not_sent", "retryable": True}
            assert "Retry-After" in refused.headers
        member, pong = (await served.post([call_body("write"), {"jsonrpc": "2.0", "id": 2, "method": "ping"}])).json
        assert member["error"]["data"]["outcome"] == "not_sent"
        assert pong["result"] == {}
        assert upstream.count("tools/call") == 1
        async with served.http.get(f"http://127.0.0.1:{process.metrics_port}/metrics") as response:
            assert 'vestige_bridge_requests_failed_total{reason="audit"} 5.0' in await response.text()
        destination.take_lines()
        process.terminate(signal.SIGUSR1)

        async def answered() -> bool:
            return (await served.call("write", id="later")).status == 200

        await until(answered)
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    said = lines(destination.file)
    assert [told(line) for line in said] == [("write", "answered", None)] * 2
    assert log.count("The audit log cannot be written") == log.count("The audit log can be written again") == 1


async def test_a_required_audit_withholds_a_response_on_a_stream_too(upstream: ScriptedUpstream) -> None:
    async def progress_first(received: Received) -> web.StreamResponse:
        token = received.message["params"]["_meta"]["progressToken"]
        step = {"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}}
        return await received.events(step, {"jsonrpc": "2.0", "id": received.message["id"], "result": {"text": CANARY}})

    upstream.on("tools/call", progress_first)
    async with bridge(upstream.url, AUDIT_LOG="/dev/full", AUDIT_REQUIRED="true") as served:
        await until(served.ready)
        body = call_body("read")
        body["params"]["_meta"] = {"progressToken": "p"}
        step, last = [message async for message in served.stream(body)]
    assert step["method"] == "notifications/progress"
    assert last["error"]["code"] == -32013
    assert last["error"]["data"] == {"outcome": "unknown", "retryable": True}


async def test_a_call_that_waits_for_its_turn_is_not_sent_once_the_required_log_fails(
    upstream: ScriptedUpstream,
) -> None:
    turns = asyncio.Semaphore(0)

    async def answer_in_turn(received: Received) -> web.StreamResponse:
        await turns.acquire()
        return await upstream.answer(received)

    upstream.on("tools/call", answer_in_turn)
    async with bridge(upstream.url, AUDIT_LOG="/dev/full", AUDIT_REQUIRED="true", UPSTREAM_CONCURRENCY="1") as served:
        await until(served.ready)
        calls = [asyncio.create_task(served.call("write", id=number)) for number in range(3)]
        await until(lambda: upstream.count("tools/call") == 1 and served.metric("requests_in_flight") == 3)
        turns.release()
        await until(lambda: upstream.count("tools/call") == 2 and served.metric("audit_failing") == 1)
        turns.release()
        answers = [await call for call in calls]
        assert served.metric("requests_failed_total", reason="audit") == 3
    assert {answer.status for answer in answers} == {503}
    assert sorted(answer.error["data"]["outcome"] for answer in answers) == ["not_sent", "unknown", "unknown"]
    assert upstream.count("tools/call") == 2


async def test_answers_of_a_required_audit_come_once_their_lines_are_written(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit"
    async with bridge(upstream.url, AUDIT_LOG=str(path), AUDIT_REQUIRED="true") as served:
        await until(served.ready)

        async def call(number: int) -> None:
            answer = await served.call("write", id=number, headers={"X-Request-Id": f"r-{number}"})
            assert answer.status == 200
            assert f'"r-{number}"' in path.read_text()

        await asyncio.gather(*map(call, range(50)))
    assert Counter(line["request_id"] for line in lines(path)) == Counter(f"r-{number}" for number in range(50))


async def test_a_client_that_leaves_while_its_line_is_written_affects_no_other(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_writer, "SLOW_SECONDS", 0.5)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "pipe"), AUDIT_REQUIRED="true") as served:
        await until(served.ready)
        calls = [asyncio.create_task(served.call("write", id=number)) for number in range(400)]
        await until(lambda: served.metric("audit_lines_waiting") > 0)
        for call in calls[200:]:
            call.cancel()
        answers = await asyncio.gather(*calls[:200])
        assert {answer.status for answer in answers} <= {200, 503}
        read = b""

        def emptied() -> bool:
            nonlocal read
            with suppress(BlockingIOError):
                while part := os.read(reader, 65536):
                    read += part
            return served.metric("audit_lines_waiting") == 0

        await until(emptied)
        assert (await served.call("write")).status == 200
        await until(emptied)
    os.close(reader)
    said = [json.loads(line) for line in read.splitlines()]
    assert max(Counter(line["request_id"] for line in said).values()) == 1
    assert sum(line["outcome"] == "answered" for line in said) == upstream.count("tools/call")


async def test_an_audit_pipe_without_a_reader_delays_no_request(
    upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_writer, "SLOW_SECONDS", 0.2)
    monkeypatch.setattr(audit_writer, "CLOSE_SECONDS", 0.2)
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "pipe")) as served:
        await until(served.ready)
        answers = await asyncio.gather(*(served.call("write", id=number) for number in range(500)))
        assert {answer.status for answer in answers} == {200}
        assert (await served.ready()) is True
        await until(lambda: served.metric("audit_failing") == 1)
        assert (await served.call("write")).status == 200
    assert caplog.text.count("The audit log is written too slowly") == 1
    os.close(reader)


async def test_sigusr1_after_a_rename_writes_to_a_new_file_and_loses_nothing(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "audit"
    process = BridgeProcess(environment(upstream.url, AUDIT_LOG=str(path), LOG_LEVEL="warning"))
    async with process.serving() as served:
        await until(served.ready)
        stopped = asyncio.Event()
        sent = 0

        async def load() -> None:
            nonlocal sent
            while not stopped.is_set():
                sent += 1
                number = sent
                assert (await served.call("write", headers={"X-Request-Id": f"r-{number}"})).status == 200

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(load())
            for number in range(5):
                before = sent
                await until(lambda before=before: sent > before + 20)
                path.rename(tmp_path / f"audit.{number}")
                process.terminate(signal.SIGUSR1)
                await until(path.exists)
            stopped.set()
        process.terminate()
        status, _ = await process.ended()
    assert status == 0
    files = [*sorted(tmp_path.glob("audit.*")), path]
    said = [line["request_id"] for file in files for line in lines(file)]
    assert Counter(said) == Counter(f"r-{number}" for number in range(1, sent + 1))
    assert all(lines(file) for file in files[:-1])


async def test_sigusr1_does_not_end_a_bridge_without_an_audit_log(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        process.terminate(signal.SIGUSR1)
        assert (await served.call("write")).status == 200
        process.terminate()
        status, _ = await process.ended()
    assert status == 0


async def test_a_drain_answers_a_batch_whose_notification_upstream_does_not_accept(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    hanging = Hanging(upstream)
    upstream.on(str(NOTE["method"]), hanging)
    process = BridgeProcess(environment(upstream.url, DRAIN_SECONDS="0.5", AUDIT_LOG=str(tmp_path / "audit")))
    async with process.serving() as served:
        await until(served.ready)
        batch = asyncio.create_task(served.post([call_body("write", id=1), NOTE, call_body("write", id=2), NOTE]))
        single = asyncio.create_task(served.post(NOTE))
        await until(lambda: hanging.held == 2)
        process.terminate()
        answer = await batch
        assert (answer.status, (await single).status) == (200, 504)
        status, _ = await process.ended()
    assert status == 0
    assert sorted((it["id"] or 0, it.get("error", {}).get("code")) for it in answer.json if it["id"]) == [
        (1, None),
        (2, None),
    ]
    assert [it["error"]["code"] for it in answer.json if it["id"] is None] == [-32012, -32013]
    assert [told(line) for line in lines(tmp_path / "audit")] == [("write", "answered", None)] * 2


async def test_a_dash_writes_the_audit_log_to_standard_output_and_not_the_other_log(upstream: ScriptedUpstream) -> None:
    read_end, write_end = os.pipe()
    process = BridgeProcess(environment(upstream.url, AUDIT_LOG="-", LOG_FORMAT="json"), stdout=write_end)
    os.close(write_end)
    async with process.serving() as served:
        await until(served.ready)
        for number in range(3):
            assert (await served.call("write", headers={"X-Request-Id": f"r-{number}"})).status == 200
        process.terminate(signal.SIGUSR1)
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    with os.fdopen(read_end) as output:
        said = [json.loads(line) for line in output]
    assert [(line["audit"], line["request_id"]) for line in said] == [("call", f"r-{number}") for number in range(3)]
    logged = [json.loads(line) for line in log.splitlines()]
    assert len([line for line in logged if line["message"] == "request" and line.get("method") == "tools/call"]) == 3
    assert not any("audit" in line for line in logged)


async def test_the_documented_jq_commands_report_the_calls_of_a_principal(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Without jq on the machine, the test checks only the lines and the number of commands."""
    page = (ROOT / "docs/operations.md").read_text().partition("\n## Audit")[2].partition("\n## ")[0]
    commands = re.findall(r"^jq .*(?:\n  .*)*", page, re.MULTILINE)
    async with bridge(upstream.url, AUDIT_LOG=str(tmp_path / "audit.log"), **principals(tmp_path)) as served:
        await until(served.ready)
        for token, tool in ((ALICE, "write"), (BOB, "read"), (BOB, "write"), (READER, "read"), (BOB, "read")):
            await seen_by(served, token).call(tool)
    said = lines(tmp_path / "audit.log")
    bobs = [line for line in said if line["principal"] == "bob" and line["method"] == "tools/call"]
    assert [(line["tool"], line["outcome"]) for line in bobs] == [
        ("read", "answered"),
        ("write", "refused"),
        ("read", "answered"),
    ]
    table = "".join("\t".join([line["time"], line["tool"], line["outcome"]]) + "\n" for line in bobs)
    counted = Counter((line["tool"], line["outcome"]) for line in bobs)
    counts = "".join(
        "\t".join([tool, outcome, str(count)]) + "\n" for (tool, outcome), count in sorted(counted.items())
    )
    assert len(commands) == 3
    if shutil.which("jq") is None:
        return
    answers = [ask_shell(command, tmp_path) for command in commands]
    assert answers[:2] == [table, counts]
    assert [json.loads(line)["outcome"] for line in answers[2].splitlines()] == ["refused"]


async def test_a_standard_output_without_a_reader_delays_neither_requests_nor_the_exit(
    upstream: ScriptedUpstream,
) -> None:
    read_end, write_end = os.pipe()
    process = BridgeProcess(environment(upstream.url, AUDIT_LOG="-", LOG_LEVEL="warning"), stdout=write_end)
    os.close(write_end)
    async with process.serving() as served:
        await until(served.ready)
        answers = await asyncio.gather(*(served.call("write", id=number) for number in range(400)))
        assert {answer.status for answer in answers} == {200}
        process.terminate()
        status, log = await process.ended()
    with os.fdopen(read_end) as output:
        said = [json.loads(line) for line in output]
    assert status == 0
    assert 100 < len(said) < 400
    assert f"{400 - len(said)} lines of the audit log were not written" in log


async def test_a_required_audit_without_a_destination_is_one_line_and_exit_status_2() -> None:
    status, log = await BridgeProcess(environment("http://127.0.0.1:9/mcp", AUDIT_REQUIRED="true")).ended()
    assert status == 2
    (line,) = log.splitlines()
    assert "VESTIGE_BRIDGE_AUDIT_REQUIRED: true without VESTIGE_BRIDGE_AUDIT_LOG" in line


@pytest.mark.parametrize("name", ["", "nothing/audit"])
async def test_a_file_that_cannot_be_opened_is_one_line_and_exit_status_2(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    status, log = await BridgeProcess(environment("http://127.0.0.1:9/mcp", AUDIT_LOG=str(path))).ended()
    assert status == 2
    (line,) = log.splitlines()
    assert f"VESTIGE_BRIDGE_AUDIT_LOG: {path} cannot be opened: " in line


async def test_a_standard_output_that_is_closed_is_one_line_and_exit_status_2() -> None:
    command = ["sh", "-c", 'exec "$0" -m vestige_bridge >&-', sys.executable]
    status, log = await BridgeProcess(environment("http://127.0.0.1:9/mcp", AUDIT_LOG="-"), command).ended()
    assert status == 2
    (line,) = log.splitlines()
    assert "VESTIGE_BRIDGE_AUDIT_LOG: - cannot be opened: it is closed." in line
