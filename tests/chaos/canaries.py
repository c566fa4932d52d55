"""Puts secrets into all data of clients and of an upstream, and searches for them where they must not be."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import aiohttp

from chaos.account import Figures
from chaos.callers import MODERN_META
from chaos.link import Link
from chaos.stack import Run, Stack, stack
from harness import JSON, SSE

CANARY = "canary"
WRONG_TOKEN = "wrong"
UPSTREAM_TOKEN = "upstream"
PUBLIC_PATHS = ("/health", "/readyz", "/livez", "/nothing", "/metrics")

Planted = tuple[str, dict[str, str], bytes]


async def canaries(run: Run) -> Figures:
    """F8: no secret of this fault or of earlier ones is in a log, a metric or an answer to another client."""
    done = (
        "tokens and memory texts planted in every part of requests and answers; "
        "logs, audit logs and metrics of all faults searched"
    )
    figures = Figures("F8 canaries", done)
    for log_format in ("text", "json"):
        await _plant(run, figures, log_format)
    files = sorted(run.folder.glob("bridge-*"))
    for path in files:
        look_for_secrets(run, figures, path.name, path.read_bytes())
    megabytes = sum(path.stat().st_size for path in files) / 2**20
    figures.notes.append(f"{megabytes:.1f} MB of logs, audit logs and metrics in {len(files)} files searched")
    return figures


def look_for_secrets(run: Run, figures: Figures, where: str, data: bytes, *names: str) -> None:
    """Counts each secret in the data, in plain text or in a common encoding."""
    for name in names or ("token", "memory", CANARY, WRONG_TOKEN, UPSTREAM_TOKEN):
        secret = run.secret(name).encode()
        for spelled in (secret, base64.b64encode(secret)[:24], secret.hex().encode(), secret[:12]):
            if (at := data.find(spelled)) >= 0:
                figures.blame("leaked", f"the secret {name!r} in {where}: {data[max(0, at - 200) : at + 60]!r}")
                break


async def _plant(run: Run, figures: Figures, log_format: str) -> None:
    secret = run.secret(CANARY)
    link = Link(lambda chunk, writer: _answer(secret, chunk, writer))
    upstream_token, fault = run.secret(UPSTREAM_TOKEN), f"F8 canaries-{log_format}"
    # Files with such a name are searched.
    audit = str(run.folder / f"bridge-canaries-{log_format}.audit")
    async with stack(
        run, fault, "", link=link, LOG_FORMAT=log_format, UPSTREAM_TOKEN=upstream_token, AUDIT_LOG=audit
    ) as it:
        for path, headers, body in _requests(run, secret):
            figures.calls += 1
            answer = await _post(it, path, headers, body)
            look_for_secrets(run, figures, f"the answer to {headers}", answer, "token", WRONG_TOKEN, UPSTREAM_TOKEN)
        for path in PUBLIC_PATHS:
            async with it.http.get(it.bridge.url.replace("/mcp", path)) as response:
                data = str(response.headers).encode() + await response.read()
            look_for_secrets(run, figures, path, data)
        await it.good_request()
    figures.calls += it.figures.calls
    figures.answered += it.figures.answered
    figures.zeros += it.figures.zeros
    figures.examples += it.figures.examples


async def _post(it: Stack, path: str, headers: dict[str, str], body: bytes) -> bytes:
    token_header = {"Authorization": f"Bearer {it.run.token}"}
    with suppress(aiohttp.ClientError, TimeoutError):
        async with (
            asyncio.timeout(20),
            it.http.post(
                it.bridge.url.replace("/mcp", path), data=body, headers={**JSON, **token_header, **headers}
            ) as response,
        ):
            return str(response.headers).encode() + await response.read()
    it.figures.blame("unanswered", f"{headers} {body[:200]!r}")
    return b""


def _requests(run: Run, secret: str) -> Iterator[Planted]:
    """Yields requests with a secret in one of their parts."""
    ping = _message("ping")
    wrong = run.secret(WRONG_TOKEN)
    yield "/mcp", {"Authorization": f"Bearer {wrong}"}, ping
    yield "/mcp", {"Authorization": f"Basic {base64.b64encode(wrong.encode()).decode()}"}, ping
    for path in (f"/mcp?token={secret}", f"/{secret}", f"/mcp/{secret}", f"/mcp;{secret}"):
        yield path, {}, ping
    names = ("Cookie", "Content-Type", "Accept", "Mcp-Session-Id", "MCP-Protocol-Version", "Mcp-Method", "Mcp-Name")
    for name in (*names, "Origin", "Content-Encoding", "X-Other", "Last-Event-ID", "X-Vestige-Principal"):
        yield "/mcp", {name: secret}, ping
    yield "/mcp", {"X-Request-Id": f"not fit {secret}"}, ping
    key = f"{secret}-key"
    call = {"name": "write", "arguments": {"key": key}}
    for params in (
        *(call, {**call, "name": secret}, {"name": "read", "arguments": {"key": key, "failing": True}}),
        *({**call, "_meta": {"progressToken": secret}}, {**call, "_meta": {"progressToken": [secret]}}),
        *({secret: 1}, {**call, "_meta": {**MODERN_META, "io.modelcontextprotocol/protocolVersion": secret}}),
    ):
        for headers in ({}, SSE):
            yield "/mcp", headers, _message("tools/call", params)
    for method in ("resources/read", "resources/subscribe", "prompts/get", secret, f"notifications/{secret}"):
        yield "/mcp", {}, _message(method, {"uri": secret, "name": secret})
    yield "/mcp", {}, _message("tools/call", call, id=secret)
    yield "/mcp", {}, _message("notifications/cancelled", {"requestId": secret, "reason": secret}, id=None)
    yield "/mcp", {}, b"[" + _message("tools/call", call) + b"," + _message(secret) + b"]"
    for text in (secret, f'{{"{secret}', f'{{"{secret}":1,"{secret}":2}}', f'{{"jsonrpc":"2.0","id":["{secret}"]}}'):
        yield "/mcp", {}, text.encode()
    for fault in UPSTREAM_ANSWERS:
        for tool in ("write", "read"):
            yield "/mcp", {}, _message("tools/call", {"name": tool, "arguments": {"key": key, "fault": fault}})


def _message(method: str, params: dict[str, Any] | None = None, id: int | str | None = 1) -> bytes:
    message: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "params": params or {}}
    return json.dumps(message if id is None else {**message, "id": id}).encode()


UPSTREAM_ANSWERS = {
    "HTML": "HTTP/1.1 500 Oh\r\nContent-Type: text/html\r\nContent-Length: 60\r\n\r\n<pre>Error: {secret}",
    "JSON": 'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{{"{secret}":1}}',
    "no JSON": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{secret}",
    "no event": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: {secret}\n\n",
    "type": "HTTP/1.1 200 OK\r\nContent-Type: {secret}/{secret}\r\nConnection: close\r\n\r\n{secret}",
    "header": "HTTP/1.1 200 OK\r\nX-{secret}\x00 {secret}\r\nbad {secret}\r\n\r\n",
    "status": "HTTP/1.1 {secret} {secret}\r\n\r\n",
    "no HTTP": "{secret}\r\n\r\n",
    "chunk": "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n{secret}\r\n",
    "length": "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {secret}\r\n\r\n{{}}",
    "redirect": "HTTP/1.1 302 Found\r\nLocation: http://{secret}/\r\nContent-Length: 0\r\n\r\n",
}
"""Invalid answers of an upstream, with a secret in each."""


async def _answer(secret: str, chunk: bytes, writer: asyncio.StreamWriter) -> bool:
    for fault, text in UPSTREAM_ANSWERS.items():
        if f'"fault": "{fault}"'.encode() in chunk:
            writer.write(text.format(secret=secret).encode())
            await writer.drain()
            return True
    return False
