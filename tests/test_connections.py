"""What a client may send before there is a request: little, in time, and refused in JSON when it is no HTTP."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from harness import (
    TOKEN,
    Bridge,
    BridgeProcess,
    Received,
    ScriptedUpstream,
    bridge,
    call_body,
    environment,
    until,
)
from vestige_bridge import server
from vestige_bridge.connection import HEAD_LIMIT_BYTES

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def connected(served: Bridge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the bridge, without anything said on it."""
    host, port = served.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


def split(answer: bytes) -> tuple[bytes, Any]:
    """The head of a raw answer and its JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), json.loads(body)


def called(body: bytes, *, path: bytes = b"/mcp", token: str = TOKEN) -> bytes:
    """A POST as bytes."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %b\r\n"
    return head % (path, token.encode()) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nxxx",
        b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
        GET + b"X: a\x00b\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_in_json(scripted: Bridge, sent: bytes) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write(sent)
        head, error = split(await reader.read())
    assert head.startswith(b"http/1.1 400 ")
    assert b"content-type: application/json" in head
    assert (error["id"], error["error"]["code"]) == (None, -32600)
    assert (await scripted.get("/livez")).status == 200


@pytest.mark.parametrize("piece", [b"a" * 8192, b"a\r\nX: " * 1024], ids=["one line", "many lines"])
async def test_a_head_without_an_end_is_refused_at_its_limit(scripted: Bridge, piece: bytes) -> None:
    async with connected(scripted) as (reader, writer):
        reading = asyncio.create_task(reader.read())
        writer.write(GET + b"X: ")
        sent = 0
        while not reading.done():
            writer.write(piece)
            sent += len(piece)
            assert sent < 2 * HEAD_LIMIT_BYTES
            assert (await scripted.get("/livez")).status == 200
        head, error = split(reading.result())
    assert head.startswith(b"http/1.1 431 ")
    assert error["error"]["code"] == -32600


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
@pytest.mark.parametrize("piece", [b"a" * 8192, b"a\r\nX: " * 1024], ids=["one line", "many lines"])
async def test_trailers_without_an_end_are_cut_off(scripted: Bridge, piece: bytes, token: str) -> None:
    async with connected(scripted) as (reader, writer):
        reading = asyncio.create_task(reader.read())
        head = called(b"", token=token).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        writer.write(head + b"2\r\n{}\r\n0\r\nX: ")
        sent = 0
        while not reading.done():
            writer.write(piece)
            sent += len(piece)
            assert sent < 2 * HEAD_LIMIT_BYTES
            assert (await scripted.get("/livez")).status == 200
        assert reading.result().startswith(b"HTTP/1.1 431 " if token == TOKEN else b"HTTP/1.1 401 ")


async def test_a_body_that_goes_on_behind_its_refusal_spoils_nothing(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        for _ in range(2):
            writer.write(called(b"x" * 20 * HEAD_LIMIT_BYTES, token="wrong"))
            await writer.drain()
            assert b" 401 " in await reader.readuntil(b"not valid")
            await reader.readuntil(b"}}")


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (GET + b"X: ", b"a"),
        (GET + b"Connection: keep-alive\r\n\r\n", b"\r\n"),
        (GET + b"\r\n" + GET, b"X: y\r\n"),
        (b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n", b"x"),
    ],
    ids=[
        "silence",
        "line feeds",
        "half a head",
        "line feeds after an answer",
        "half a second head",
        "body after a 401",
    ],
)
async def test_a_connection_without_a_request_ends_however_busy_it_looks(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, first: bytes, drip: bytes
) -> None:
    monkeypatch.setattr(server, "IDLE_CONNECTION_SECONDS", 1)
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        writer.write(first)
        try:
            while not reader.at_eof():
                writer.write(drip)
                try:
                    async with asyncio.timeout(0.2):
                        await reader.read(4096)
                except TimeoutError:
                    continue
        except ConnectionError:
            pass
        assert (await served.get("/livez")).status == 200


async def test_a_request_that_takes_longer_than_an_idle_connection_may_is_answered(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def hold(received: Received) -> web.StreamResponse:
        await release.wait()
        return received.result({"content": []})

    monkeypatch.setattr(server, "IDLE_CONNECTION_SECONDS", 1)
    upstream.on("tools/call", hold)
    body = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"read"}}'
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        writer.write(called(body % 1) + called(body % 2))
        for _ in range(2):
            async with connected(served) as (idle, _):
                assert await idle.read() == b""
        release.set()
        answers = await reader.readuntil(b'"id": 2')
        assert answers.count(b"HTTP/1.1 200 OK") == 2


async def test_bodies_on_their_way_are_bounded_in_number(upstream: ScriptedUpstream) -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with bridge(upstream.url, MAX_IN_FLIGHT="1") as served, connected(served) as (reader, writer):
        writer.write(called(ping)[:-1])

        async def refused() -> bool:
            async with connected(served) as (other_reader, other_writer):
                other_writer.write(called(ping)[:-1])
                try:
                    answer = await asyncio.wait_for(other_reader.readuntil(b"-32013"), 1)
                except TimeoutError:
                    return False
            return answer.startswith(b"HTTP/1.1 503 ")

        await until(refused)
        assert (await served.post(ping)).status == 200  # what has come whole is on its way no more
        writer.write(ping[-1:])
        assert b"200 OK" in await reader.readuntil(b"result")
        assert (await served.post(ping)).status == 200


@pytest.mark.parametrize("offer", [b"Upgrade: h2c", b"upgrade: websocket", b"UPGRADE: h2c"])
async def test_an_offer_to_speak_another_protocol_is_overlooked(scripted: Bridge, offer: bytes) -> None:
    body = b'{"jsonrpc":"2.0","id":"Upgrade: h2c","method":"ping"}'
    head, _, _ = called(body).partition(b"\r\n\r\n")
    head += b"\r\nConnection: Upgrade, HTTP2-Settings\r\n" + offer + b"\r\nHTTP2-Settings: AAEAAEAA\r\n\r\n"
    async with connected(scripted) as (reader, writer):
        for sent in ([head + body], [head, body], [head, body[:5], body[5:]]):
            for piece in sent:
                writer.write(piece)
                assert (await scripted.get("/livez")).status == 200
            assert b"HTTP/1.1 200 OK" in await reader.readuntil(b'"result": {}}')


SMUGGLED = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("cut", ["nowhere", "in the end of the head", "behind the head"])
@pytest.mark.parametrize("offered", [False, True])
async def test_a_body_that_looks_like_heads_stays_a_body(scripted: Bridge, offered: bool, cut: str) -> None:
    body = b"\r\nupgrade: x" * 200 + b"\r\n\r\n" + SMUGGLED
    head = b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + (b"Connection: upgrade\r\nUpgrade: h2c\r\n" if offered else b"")
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    sent = {
        "nowhere": [head + body],
        "in the end of the head": [head[:-1], head[-1:] + body],
        "behind the head": [head, body],
    }[cut]
    async with connected(scripted) as (reader, writer):
        for piece in sent:
            writer.write(piece)
            assert (await scripted.get("/livez")).status == 200
        writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answers = await reader.read()
    assert b"not_ready" not in answers
    assert b'"ready"' not in answers
    assert re.findall(rb"HTTP/1\.1 (\d+)", answers) == [b"404", b"200"]


async def test_garbage_behind_a_stream_ends_it_and_writes_nothing_into_it(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        head = b"GET /mcp HTTP/1.1\r\nHost: x\r\nMcp-Session-Id: s\r\nAccept: text/event-stream\r\n"
        writer.write(head + b"Authorization: Bearer %b\r\n\r\n" % TOKEN.encode())
        assert b"200 OK" in await reader.readuntil(b"still here")
        writer.write(b"GARBAGE\r\n\r\n")
        assert b"HTTP/1.1" not in await reader.read()


async def test_garbage_behind_a_request_ends_its_connection_without_a_word(upstream: ScriptedUpstream) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", wait)
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        async with connected(served) as (reader, writer):
            writer.write(called(json.dumps(call_body("write")).encode()))
            await until(lambda: upstream.count("tools/call") == 1)
            writer.write(b"GARBAGE\r\n\r\n")
            assert await reader.read() == b""
            allowed.set()
        for _ in range(20):
            async with connected(served) as (reader, writer):
                # Its answer is ready in the turn in which the connection is closed.
                writer.write(GET + b"\r\nGARBAGE\r\n\r\n")
                assert await reader.read() == b""
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    assert "status=499" in log
    assert "Traceback" not in log
