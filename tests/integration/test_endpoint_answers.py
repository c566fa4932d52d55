"""What responses disclose: each error is provoked and checked for confidential content."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from harness import JSON, SSE, TOKEN, Answer, Bridge, Received, ScriptedUpstream, bridge, call_body, free_port, until
from vestige_bridge import __version__
from vestige_bridge.errors import RENDERINGS
from vestige_bridge.server.http_protocol import HEAD_LIMIT_BYTES
from vestige_bridge.session.dispatcher import Dispatcher

UPSTREAM_TOKEN = "a-token-for-upstream"
SECRET = "a-secret-of-upstream"
TELLING = re.compile(
    rb"Traceback|File \"|\w+(?:Error|Exception)\b|uvicorn|starlette|aiohttp|python|httptools|site-packages"
    rb"|vestige_bridge[./]|127\.0\.0\.1|localhost",
    re.IGNORECASE,
)
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
MODERN = "2026-07-28"


async def fails_with_a_page(received: Received) -> web.StreamResponse:
    """Fails like supergateway: with a page that contains a stack trace."""
    page = f"<pre>Error: {SECRET}\n at /srv/{SECRET}.js:1 {received.http.url}</pre>"
    return web.Response(status=500, text=page, content_type="text/html")


async def is_too_large(received: Received) -> web.StreamResponse:
    return web.Response(status=413, text=SECRET)


async def hangs_up(received: Received) -> web.StreamResponse:
    return received.cut()


async def hangs(received: Received) -> web.StreamResponse:
    await asyncio.sleep(30)
    return received.result({})


def modern(method: str, **changes: str) -> tuple[dict[str, Any], dict[str, str]]:
    meta = {"io.modelcontextprotocol/protocolVersion": MODERN, "io.modelcontextprotocol/clientCapabilities": {}}
    headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, **changes}
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"_meta": meta}}, headers


async def never_ends() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(30)


async def asked_with_an_unknown_coding(served: Bridge) -> Answer:
    """Sends a transfer coding that no HTTP client of the tests can send; returns the response."""
    host, port = served.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n")
    async with asyncio.timeout(10):
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    status_line, *lines = head.decode().split("\r\n")
    headers: CIMultiDict[str] = CIMultiDict([(line.split(": ")[0], line.split(": ", 1)[1]) for line in lines])
    return Answer(int(status_line.split()[1]), headers, body)


class Provoked:
    """A bridge, and the ways to provoke its errors."""

    def __init__(self, served: Bridge, upstream: ScriptedUpstream) -> None:
        self._served = served
        self._upstream = upstream

    async def by_the_request(self) -> AsyncIterator[Answer]:
        """Yields the responses to faulty requests."""
        served = self._served
        yield await served.post(b"{")
        yield await served.post(b"[]")
        yield await served.post(PING, {"MCP-Protocol-Version": "1999-01-01"})
        yield await served.post(*modern("tools/list", **{"Mcp-Method": "ping"}))
        yield await served.post({**PING, "method": "tools/list"}, {"MCP-Protocol-Version": MODERN})
        yield await served.post(*modern("resources/subscribe"))
        yield await served.post(PING, {"Content-Type": "text/plain"})
        yield await served.post(b" " * 2000)
        yield await served.ask("POST", "/mcp", PING, JSON)
        yield await served.post(PING, {"Authorization": "Bearer no"})
        yield await served.post(PING, {"Origin": "https://evil.example"})
        yield await served.ask("PUT", "/mcp", b"", served.request_headers())
        yield await served.ask("POST", "/readyz", b"", {})
        for path in ("/", "/sse", "/metrics", "/docs", "/.env", "/mcp/../etc/passwd", "/mcp%00", "/%ff"):
            yield await served.get(path)
        yield await served.post(PING, {"X": "x" * HEAD_LIMIT_BYTES, "Y": "y" * 2 * HEAD_LIMIT_BYTES})
        sent = served.request_headers()
        async with served.http.post(served.url, data=never_ends(), headers=sent) as response:
            yield Answer(response.status, response.headers, await response.read())
        yield await asked_with_an_unknown_coding(served)

    async def by_upstream(self) -> AsyncIterator[Answer]:
        """Yields the responses to failures of upstream, as JSON and as event streams."""
        for script in (fails_with_a_page, is_too_large, hangs_up, hangs):
            self._upstream.on("tools/call", script)
            yield await self._served.call("write")
            yield await self._served.call("write", headers=SSE)
        self._upstream.on("tools/call", hangs)
        calling = asyncio.create_task(self._served.call("write", id="c"))
        await until(lambda: b'"write"' in self._upstream.received[-1].body)
        yield await self._served.post(
            {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c"}}
        )
        yield await calling
        self._upstream.scripts.clear()

    async def while_it_drains(self) -> AsyncIterator[Answer]:
        """Yields the responses of a draining bridge."""
        assert self._served.drain is not None
        await self._served.drain()
        yield await self._served.post(PING)
        yield await self._served.get("/readyz")


async def provoked(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncGenerator[tuple[Answer, int], None]:
    """Yields each response with the port of upstream, which it must not contain."""
    closed = free_port()
    async with AsyncExitStack() as stack:
        variables = {"UPSTREAM_TOKEN": UPSTREAM_TOKEN, "REQUEST_TIMEOUT_SECONDS": "0.5", "MAX_BODY_BYTES": "1000"}
        served = await stack.enter_async_context(bridge(upstream.url, **variables))
        unconfigured = await stack.enter_async_context(bridge(upstream.url, VESTIGE_AUTH_TOKEN=""))
        alone = await stack.enter_async_context(bridge(f"http://127.0.0.1:{closed}/{SECRET}"))
        tokens = tmp_path / "tokens.toml"
        tokens.write_text(f'[[token]]\nname = "limited"\ntoken = "{TOKEN}"\nrate = 1\n')
        file = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tokens)}
        limited = await stack.enter_async_context(bridge(upstream.url, **file))
        await until(served.ready)
        port = int(upstream.url.split(":")[2].split("/")[0])
        errors = Provoked(served, upstream)
        async for answer in errors.by_the_request():
            yield answer, port
        async for answer in errors.by_upstream():
            yield answer, port
        for _ in range(2):
            yield await limited.post(call_body("write"), {"Authorization": f"Bearer {TOKEN}"}), port
        for path in ("/health", "/readyz", "/livez"):
            yield await alone.get(path), closed
        yield await alone.post(PING), closed
        for answer in (await unconfigured.post(PING), await unconfigured.get("/readyz")):
            yield answer, port
        with monkeypatch.context() as planted:
            planted.setattr(Dispatcher, "request", None)  # simulates a bug: it cannot be called
            yield await served.post(PING), port
        async for answer in errors.while_it_drains():
            yield answer, port


async def test_error_responses_contain_no_secrets_versions_addresses_or_stack_traces(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen = set()
    async with aclosing(provoked(upstream, monkeypatch, tmp_path)) as answers:
        async for answer, port in answers:
            said = b"\n".join([answer.body, *(f"{name}: {value}".encode() for name, value in answer.headers.items())])
            for secret in (TOKEN, UPSTREAM_TOKEN, SECRET, __version__, f":{port}"):
                assert secret.encode() not in said, answer
            assert not TELLING.search(said), answer
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "Server" not in answer.headers
            if answer.headers.get("Content-Type") == "text/event-stream":
                assert answer.headers["Cache-Control"] == "no-cache"
                assert b"data: " in answer.body
            elif answer.status != 202:
                assert answer.json
                assert answer.headers["Cache-Control"] == "no-store"
                if "error" in answer.json:
                    seen.add((answer.status, answer.error["code"]))
    assert seen == {(rendering.status, rendering.code) for rendering in RENDERINGS.values()}


async def test_successful_responses_have_nosniff_and_forbid_caching(scripted: Bridge) -> None:
    answers = [await scripted.post(PING), await scripted.post([PING]), await scripted.post(PING, SSE)]
    answers += [await scripted.get(path) for path in ("/health", "/readyz", "/livez")]
    for answer in answers:
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in answer.headers
        assert answer.headers["Cache-Control"] in ("no-store", "no-cache")


async def test_responses_to_a_foreign_origin_have_no_cors_headers(scripted: Bridge) -> None:
    for path in ("/mcp", "/health", "/readyz", "/nothing"):
        answer = await scripted.ask("GET", path, b"", scripted.request_headers({"Origin": "https://evil.example"}))
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]


@pytest.mark.parametrize("path", ["/health", "/readyz", "/livez"])
async def test_the_response_of_a_probe_ends_with_a_line_feed(scripted: Bridge, path: str) -> None:
    await until(scripted.ready)
    answer = await scripted.get(path)
    assert answer.body.endswith(b"}\n")
    assert int(answer.headers["Content-Length"]) == len(answer.body)
