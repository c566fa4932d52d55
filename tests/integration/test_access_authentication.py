"""Without a valid token no client has access, and no header breaks the bridge."""

from __future__ import annotations

import asyncio
import logging

import pytest
from multidict import CIMultiDict

from harness import JSON, TOKEN, Bridge, BridgeProcess, ScriptedUpstream, bridge, environment, until

PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {TOKEN.upper()}"},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer"},
        {"Authorization": ""},
        {"Authorization": f"Bearer {TOKEN[:-1]}"},
        {"Authorization": f"Bearer {TOKEN}x"},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
    ],
)
async def test_wrong_credentials_answer_401_with_a_challenge(
    scripted: Bridge, upstream: ScriptedUpstream, headers: dict[str, str]
) -> None:
    answer = await scripted.ask("POST", "/mcp", PING, {**JSON, **headers})
    assert answer.status == 401
    assert answer.error["code"] == -32015
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert not upstream.count("tools/call")


async def test_the_challenge_has_the_rfc_6750_error_for_a_wrong_token_but_not_for_a_missing_one(
    scripted: Bridge,
) -> None:
    wrong = await scripted.post(PING, {"Authorization": "Bearer wrong"})
    missing = await scripted.ask("POST", "/mcp", PING, JSON)
    assert 'error="invalid_token"' in wrong.headers["WWW-Authenticate"]
    assert "error" not in missing.headers["WWW-Authenticate"]


async def test_two_authorization_headers_answer_401_although_one_is_right(scripted: Bridge) -> None:
    pairs = CIMultiDict([*JSON.items(), ("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer other")])
    async with scripted.http.post(scripted.url, json=PING, headers=pairs) as response:
        assert response.status == 401


@pytest.mark.parametrize("value", [b"Bearer \xff\xfe", "Bearer tökén".encode(), "Bearer \uff54".encode()])
async def test_non_ascii_bytes_in_the_authorization_header_answer_401(scripted: Bridge, value: bytes) -> None:
    host, port = scripted.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        b"Authorization: " + value + b"\r\nContent-Length: 2\r\n\r\n{}"
    )
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path",
    ["/mcp", "/mcp/", "/mcp%0A", "/mcp/%0a", "/%6dcp", "/mcp?x=/livez", "/mcp#/livez", "http://x/mcp", "/./mcp"],
)
async def test_no_path_spelling_or_method_bypasses_authentication(
    scripted: Bridge, upstream: ScriptedUpstream, path: str, method: str
) -> None:
    await until(scripted.ready)
    received = len(upstream.received)
    host, port = scripted.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write"}}'
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    async with asyncio.timeout(5):
        answer = await reader.read()
    writer.close()
    other = path in ("/./mcp", "/mcp%0A", "/mcp/%0a")
    status = 400 if "#" in path else 404 if other else 401
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert len(upstream.received) == received


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_right_token_is_served_in_any_spelling_of_the_scheme(scripted: Bridge, scheme: str) -> None:
    answer = await scripted.post(PING, {"Authorization": f"{scheme} {TOKEN}"})
    assert answer.status == 200
    assert answer.json == {"jsonrpc": "2.0", "id": 7, "result": {}}


async def test_a_configured_token_that_ends_in_a_newline_works(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN=f"{TOKEN}\n") as served:
        assert (await served.post(PING, {"Authorization": f"Bearer {TOKEN}"})).status == 200


@pytest.mark.parametrize("token", ["", "  \n"])
async def test_without_authentication_settings_everything_except_livez_answers_500(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, token: str
) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN=token) as served:
        answers = [await served.post(PING), await served.get("/health"), await served.get("/readyz")]
        alive = await served.get("/livez")
    assert [answer.status for answer in answers] == [500, 500, 500]
    assert all(b"Authentication not configured" in answer.body for answer in answers)
    assert answers[0].error["code"] == -32603
    assert alive.status == 200
    sentence = next(record.getMessage() for record in caplog.records if "not configured" in record.getMessage())
    assert "VESTIGE_AUTH_TOKEN" in sentence
    assert "VESTIGE_ALLOW_ANONYMOUS" in sentence


async def test_anonymous_access_is_open_and_logged_as_a_warning(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_ALLOW_ANONYMOUS="true") as served:
        assert (await served.post(PING)).status == 200
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("VESTIGE_ALLOW_ANONYMOUS" in warning for warning in warnings)


@pytest.mark.parametrize(("token", "warned"), [("secret-of-15-ch", True), ("secret-of-16-chr", False)])
async def test_a_short_token_is_logged_as_a_warning_without_showing_it(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture, token: str, warned: bool
) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN=token):
        pass
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("A token of default has fewer than 16 characters" in warning for warning in warnings) is warned
    assert not any(token in record.getMessage() for record in caplog.records)


async def test_a_token_together_with_anonymous_access_is_one_line_at_the_start() -> None:
    process = BridgeProcess(environment("http://127.0.0.1:9/mcp", VESTIGE_ALLOW_ANONYMOUS="true"))
    status, log = await process.ended()
    assert status == 2
    assert len(log.splitlines()) == 1
    assert "VESTIGE_ALLOW_ANONYMOUS" in log


async def test_a_clients_token_and_principal_header_are_not_forwarded(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await scripted.post(PING, {"X-Vestige-Principal": "root", "X-Agent-Id": "agent-7"})
    received = upstream.of("ping")[-1].http.headers
    assert "Authorization" not in received
    assert received.getall("X-Vestige-Principal") == ["default"]
    assert received["X-Agent-Id"] == "agent-7"


async def test_the_bridge_sends_its_own_token_to_upstream(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, UPSTREAM_TOKEN="for-upstream") as served:
        assert (await served.post(PING)).status == 200
    assert {received.http.headers["Authorization"] for received in upstream.received} == {"Bearer for-upstream"}


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:8000.evil.example"),
        *("http://[::1].evil.example", "http://evil.example@127.0.0.1", "http://127.0.0.1/", "file://localhost"),
    ],
)
async def test_a_foreign_origin_answers_403(scripted: Bridge, origin: str) -> None:
    answer = await scripted.post(PING, {"Origin": origin})
    assert (answer.status, answer.error["code"]) == (403, -32016)
    assert "Access-Control-Allow-Origin" not in answer.headers


async def test_a_loopback_origin_with_another_host_answers_403(scripted: Bridge) -> None:
    assert (await scripted.post(PING, {"Origin": "http://localhost:3000"})).status == 200
    assert (await scripted.post(PING, {"Origin": "http://localhost:3000", "Host": "evil.example"})).status == 403


async def test_an_allowed_origin_gets_cors_headers_and_its_preflight_answered(upstream: ScriptedUpstream) -> None:
    origin = "https://app.example.com"
    async with bridge(upstream.url, ALLOWED_ORIGINS=origin) as served:
        answer = await served.post(PING, {"Origin": origin})
        asking = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        preflight = await served.ask("OPTIONS", "/mcp", b"", asking)
    assert answer.status == 200
    assert answer.headers["Access-Control-Allow-Origin"] == origin
    assert "mcp-session-id" in answer.headers["Access-Control-Expose-Headers"].lower()
    assert preflight.status == 204
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()


@pytest.mark.parametrize(
    "path", ["/.well-known/oauth-protected-resource", "/.well-known/oauth-authorization-server/mcp"]
)
async def test_oauth_metadata_is_404_in_json(scripted: Bridge, path: str) -> None:
    answer = await scripted.get(path)
    assert answer.status == 404
    assert answer.json


async def test_the_log_never_holds_a_token_an_argument_or_a_query(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url, LOG_LEVEL="debug"))
    async with process.serving() as served:
        await until(served.ready)
        await served.call("write", {"text": "a-secret-argument"})
        await served.ask("POST", "/mcp?key=a-secret-query", PING, served.request_headers())
        await served.post(PING, {"Authorization": "Bearer a-secret-guess"})
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    assert "method=tools/call tool=write principal=default" in log
    assert "a-secret" not in log
    assert TOKEN not in log


async def test_a_request_id_is_returned_or_made(scripted: Bridge) -> None:
    assert (await scripted.post(PING, {"X-Request-Id": "mine-1"})).headers["X-Request-Id"] == "mine-1"
    first, second = [(await scripted.post(PING)).headers["X-Request-Id"] for _ in range(2)]
    assert first != second
