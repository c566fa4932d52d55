"""Input before a complete request: limited in size and time, and rejected in JSON if it is not HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
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
from vestige_bridge.server import app, connections, http_protocol
from vestige_bridge.server.http_protocol import HEAD_LIMIT_BYTES
from vestige_bridge.server.request_cycle import DISCARD_BYTES

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"


@asynccontextmanager
async def connected(served: Bridge) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Yields an open connection to the bridge."""
    host, port = served.origin.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            yield reader, writer
    finally:
        writer.close()


def split(answer: bytes) -> tuple[bytes, Any]:
    """Returns the head of a raw response and its JSON."""
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.lower(), json.loads(body)


def called(body: bytes, *, path: bytes = b"/mcp", token: str = TOKEN) -> bytes:
    """Returns a POST as bytes."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nAuthorization: Bearer %b\r\n"
    return head % (path, token.encode()) + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    "sent",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nxxx",
        b"GET /livez HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
        b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x y\r\n\r\n",
        b"GET /livez HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET /livez#x HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 1, 1\r\n\r\nx",
        b"POST /mcp HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: x\r\nA: b\rc\r\n\r\n",
        b"GET /livez HTTP/1.1\nHost: x\n\n",
        GET + b"X: a\x00b\r\n\r\n",
    ],
)
async def test_invalid_http_is_rejected_with_a_json_error(scripted: Bridge, sent: bytes) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write(sent)
        head, error = split(await reader.read())
    assert head.startswith(b"http/1.1 400 ")
    assert b"content-type: application/json" in head
    assert (error["id"], error["error"]["code"]) == (None, -32600)
    assert (await scripted.get("/livez")).status == 200


@pytest.mark.parametrize("piece", [b"a" * 8192, b"a\r\nX: " * 1024], ids=["one line", "many lines"])
async def test_an_endless_request_head_answers_431_at_the_limit(scripted: Bridge, piece: bytes) -> None:
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


async def test_a_head_over_the_limit_that_ends_in_a_later_read_answers_431(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write(GET + b"X: " + b"a" * (HEAD_LIMIT_BYTES - len(GET) - 3))
        await until(lambda: scripted.metric("incomplete_head_bytes") == HEAD_LIMIT_BYTES)
        writer.write(b"a" * 1_000 + b"\r\n\r\n")
        head, _ = split(await reader.read())
    assert head.startswith(b"http/1.1 431 ")


async def test_a_client_that_disconnects_after_surplus_bytes_is_noticed(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url, HEARTBEAT_SECONDS="3600"))
    async with process.serving() as served:
        await until(served.ready)

        async def open_streams(number: int) -> None:
            async def counted() -> bool:
                async with served.http.get(f"http://127.0.0.1:{process.metrics_port}/metrics") as response:
                    return f"vestige_bridge_streams_open {number}.0" in await response.text()

            await until(counted)

        _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        fields = f"Host: x\r\nAuthorization: Bearer {TOKEN}\r\nMcp-Session-Id: s\r\nAccept: text/event-stream\r\n\r\n"
        writer.write(b"GET /mcp HTTP/1.1\r\n" + fields.encode())
        await open_streams(1)
        writer.write(b"\r\n")
        await open_streams(1)
        writer.close()
        await open_streams(0)


@pytest.mark.parametrize("token", [TOKEN, "wrong"])
@pytest.mark.parametrize("piece", [b"a" * 8192, b"a\r\nX: " * 1024], ids=["one line", "many lines"])
async def test_endless_trailers_are_rejected_at_their_limit(scripted: Bridge, piece: bytes, token: str) -> None:
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


async def test_the_rest_of_a_rejected_body_is_discarded_up_to_a_limit(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        for _ in range(2):
            writer.write(called(b"x" * DISCARD_BYTES, token="wrong"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 401 ")
            assert b"connection: close" not in head
            await reader.readuntil(b"}}")
        writer.write(called(b"x" * 20 * HEAD_LIMIT_BYTES, token="wrong"))
        head, error = split(await reader.read())
        assert head.startswith(b"http/1.1 401 ")
        assert b"connection: close" in head
        assert error["error"]["code"] == -32015


async def test_a_body_in_chunks_that_goes_on_behind_its_refusal_closes_the_connection(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write(called(b"", token="wrong").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
        head, _ = split(await reader.read())
        assert head.startswith(b"http/1.1 401 ")
        assert b"connection: close" in head


async def test_expect_100_continue_is_answered_only_for_an_accepted_body(scripted: Bridge) -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    expecting = (b"\r\nContent-Length", b"\r\nExpect: 100-continue\r\nContent-Length")
    async with connected(scripted) as (reader, writer):
        writer.write(called(ping).replace(*expecting)[: -len(ping)])
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(ping)
        assert (await reader.readuntil(b"{}}")).startswith(b"HTTP/1.1 200 ")
        writer.write(called(ping, token="wrong").replace(*expecting)[: -len(ping)])
        head, _ = split(await reader.read())
        assert head.startswith(b"http/1.1 401 ")
        assert b"connection: close" in head


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\nabc", 405),
        (b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (GET + b"X: y\r\n" * 200 + b"\r\n", 431),
    ],
)
async def test_unsupported_requests_are_rejected_with_specific_statuses(
    scripted: Bridge, sent: bytes, status: int
) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write(sent)
        head, error = split(await reader.read())
    assert head.startswith(b"http/1.1 %d " % status)
    assert b"connection: close" in head
    assert error["error"]["code"] == -32600


async def test_an_http_1_0_client_gets_a_stream_without_chunks(scripted: Bridge) -> None:
    body = json.dumps(call_body("read")).encode()
    sent = called(body).replace(b"HTTP/1.1", b"HTTP/1.0").replace(b"Host: x", b"Accept: text/event-stream")
    async with connected(scripted) as (reader, writer):
        writer.write(sent)
        answer = await reader.read()
    head, _, stream = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"transfer-encoding" not in head
    assert stream.startswith(b"event: message\ndata: ")


@pytest.mark.parametrize("field", [b"Authorization: Bearer %b" % TOKEN.encode(), b"Content-Type: application/json"])
async def test_a_header_field_in_the_trailers_is_ignored(scripted: Bridge, field: bytes) -> None:
    fields = {b"Authorization: Bearer %b" % TOKEN.encode(), b"Content-Type: application/json"} - {field}
    head = b"POST /mcp HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" + b"".join(it + b"\r\n" for it in fields)
    body = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with connected(scripted) as (reader, writer):
        writer.write(b"%b\r\n%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (head, len(body), body, field))
        assert (await reader.readuntil(b"\r\n")).split()[1] in (b"401", b"415")


async def test_a_pipelined_request_is_dropped_and_its_connection_closed_after_the_answer(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        writer.write((GET + b"\r\n") * 1000)
        head, body = split(await reader.read())
    assert body == {"status": "alive"}
    assert b"connection: close" in head


async def test_a_malformed_request_after_a_slow_call_does_not_change_its_response(upstream: ScriptedUpstream) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", wait)
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        writer.write(called(json.dumps(call_body("write")).encode()))
        await until(lambda: upstream.count("tools/call") == 1)
        writer.write(b"GARBAGE\r\n\r\n")
        assert (await served.get("/livez")).status == 200
        allowed.set()
        head, answer = split(await reader.read())
    assert head.startswith(b"http/1.1 200 ")
    assert b"connection: close" in head
    assert "result" in answer
    assert upstream.count("tools/call") == 1


async def test_a_client_that_closes_its_side_has_left(upstream: ScriptedUpstream) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", wait)
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        await until(served.ready)
        writer.write(called(json.dumps(call_body("write")).encode()))
        await until(lambda: upstream.count("tools/call") == 1)
        writer.write_eof()
        assert await reader.read() == b""
        allowed.set()
        await until(lambda: served.metric("requests_in_flight") == 0)
        await until(served.ready)
        assert served.metric("requests_total", method="tools/call", tool="write", status="499") == 1


async def test_clients_that_close_when_the_answer_arrives_are_no_error(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    left = asyncio.Event()

    async def answer_late(received: Received) -> web.StreamResponse:
        await left.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", answer_late)
    async with bridge(upstream.url, UPSTREAM_CONCURRENCY="128") as served:
        writers = []
        for number in range(100):
            async with connected(served) as (_, writer):
                writer.write(called(json.dumps(call_body("read", id=number)).encode()))
                await writer.drain()
                if number < 50:
                    await until(lambda expected=number + 1: upstream.count("tools/call") >= expected)
                    writers.append(writer)
        left.set()
        await until(lambda: served.metric("requests_in_flight") == 0)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


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
async def test_a_connection_without_an_authenticated_request_is_closed_despite_single_bytes(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch, first: bytes, drip: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "UNAUTHENTICATED_IDLE_SECONDS", 1)
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


async def test_a_request_that_takes_longer_than_the_idle_timeout_is_answered(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def hold(received: Received) -> web.StreamResponse:
        await release.wait()
        return received.result({"content": []})

    monkeypatch.setattr(http_protocol, "UNAUTHENTICATED_IDLE_SECONDS", 1)
    upstream.on("tools/call", hold)
    body = b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"read"}}'
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        writer.write(called(body % 1))
        for _ in range(2):
            async with connected(served) as (idle, _):
                assert await idle.read() == b""
        release.set()
        assert (await reader.readuntil(b'"id": 1')).startswith(b"HTTP/1.1 200 OK")


async def test_the_number_of_bodies_being_received_is_limited(upstream: ScriptedUpstream) -> None:
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
        assert (await served.post(ping)).status == 200  # a complete body is no longer counted
        writer.write(ping[-1:])
        assert b"200 OK" in await reader.readuntil(b"result")
        assert (await served.post(ping)).status == 200


@pytest.mark.parametrize("offer", [b"Upgrade: h2c", b"upgrade: websocket", b"UPGRADE: h2c"])
async def test_an_upgrade_header_is_ignored(scripted: Bridge, offer: bytes) -> None:
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
async def test_request_heads_inside_a_body_are_not_parsed_as_requests(
    scripted: Bridge, offered: bool, cut: str
) -> None:
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


async def test_garbage_after_a_stream_request_is_discarded_and_not_answered(scripted: Bridge) -> None:
    async with connected(scripted) as (reader, writer):
        head = b"GET /mcp HTTP/1.1\r\nHost: x\r\nMcp-Session-Id: s\r\nAccept: text/event-stream\r\n"
        writer.write(head + b"Authorization: Bearer %b\r\n\r\n" % TOKEN.encode())
        assert b"200 OK" in await reader.readuntil(b"still here")
        writer.write(b"GARBAGE\r\n\r\n")
        assert (await scripted.get("/livez")).status == 200
        assert scripted.drain is not None
        await scripted.drain()
        assert b"HTTP/1.1" not in await reader.read()


@pytest.mark.parametrize("lead", [b"", b"\r\n\r\n", GET + b"\r\n"], ids=["first", "after empty lines", "second"])
async def test_an_offered_protocol_upgrade_is_ignored_wherever_the_request_is_split(
    scripted: Bridge, lead: bytes
) -> None:
    body = b'{"jsonrpc":"2.0","id":"h2c","method":"ping"}'
    request = called(body).replace(b"\r\nContent-Length", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length")
    async with connected(scripted) as (reader, writer):
        if lead.startswith(b"GET"):
            writer.write(lead)
            assert b"200 OK" in await reader.readuntil(b'alive"}\n')
            lead = b""
        for cut in (1, 100, len(request) - len(body) - 1, len(request) - 3):
            for piece in (lead + request[:cut], request[cut:]):
                writer.write(piece)
                assert (await scripted.get("/livez")).status == 200
            assert (await reader.readuntil(b'"result": {}}')).startswith(b"HTTP/1.1 200 OK")


async def test_a_client_that_reads_nothing_is_reset_after_the_send_timeout(upstream: ScriptedUpstream) -> None:
    async def large(received: Received) -> web.StreamResponse:
        return received.result({"content": [{"type": "text", "text": "x" * 16_000_000}]})

    upstream.on("tools/call", large)
    async with bridge(upstream.url, SEND_TIMEOUT_SECONDS="1") as served, connected(served) as (_, writer):
        writer.write(called(json.dumps(call_body("read")).encode()))
        await until(lambda: served.metric("unread_answers_ended_total", reason="send_timeout") == 1, 30)
        await until(lambda: served.metric("unsent_bytes") == 0)
        assert (await served.get("/livez")).status == 200


async def test_unread_responses_share_a_budget_and_other_clients_get_their_responses(
    upstream: ScriptedUpstream,
) -> None:
    async def large(received: Received) -> web.StreamResponse:
        return received.result({"content": [{"type": "text", "text": "x" * 16_000_000}]})

    upstream.on("tools/call", large)
    async with bridge(upstream.url, UNSENT_BYTES="20000000") as served:
        async with connected(served) as (_, first), connected(served) as (_, second), connected(served) as (_, third):
            for writer in (first, second, third):
                writer.write(called(json.dumps(call_body("read")).encode()))
            await until(lambda: served.metric("unread_answers_ended_total", reason="unsent_bytes") >= 1, 20)
            answer = await served.call("write")
        assert len(answer.text) == 16_000_000
        await until(lambda: served.metric("unsent_bytes") == 0)


async def test_connections_of_unauthenticated_clients_are_closed_first_at_the_limit(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "connection_limit", lambda _: 8)
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with bridge(upstream.url) as served, contextlib.AsyncExitStack() as stack:
        reader, writer = await stack.enter_async_context(connected(served))
        writer.write(called(ping))
        assert b"200 OK" in await reader.readuntil(b"{}}")
        clients = [await stack.enter_async_context(connected(served)) for _ in range(30)]
        await until(lambda: served.metric("client_connections_closed_for_room_total") >= 20)
        assert served.metric("client_connections") <= 8
        writer.write(called(ping))
        assert b"200 OK" in await reader.readuntil(b"{}}")
        assert (await served.get("/livez")).status == 200
        assert await clients[0][0].read() == b""


async def test_a_connection_with_a_request_in_flight_is_never_closed_for_another(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", wait)
    monkeypatch.setattr(app, "connection_limit", lambda _: 4)
    async with bridge(upstream.url) as served, contextlib.AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connected(served)) for _ in range(4)]
        for number, (_, writer) in enumerate(busy):
            writer.write(called(json.dumps(call_body("write", id=number)).encode()))
        await until(lambda: upstream.count("tools/call") == 4)
        reader, _ = await stack.enter_async_context(connected(served))
        head, error = split(await reader.read())
        assert head.startswith(b"http/1.1 503 ")
        assert error["error"]["code"] == -32013
        assert served.metric("client_connections_refused_total") == 1
        allowed.set()
        for reader, _ in busy:
            assert b"200 OK" in await reader.readuntil(b'"result"')


async def test_a_connection_that_carried_a_token_may_idle_for_the_keep_alive_time(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "UNAUTHENTICATED_IDLE_SECONDS", 0.5)
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with bridge(upstream.url, KEEP_ALIVE_SECONDS="60") as served, connected(served) as (reader, writer):
        writer.write(called(ping))
        assert b"200 OK" in await reader.readuntil(b"{}}")
        for _ in range(2):
            async with connected(served) as (client, _):
                assert await client.read() == b""
        writer.write(called(ping))
        assert b"200 OK" in await reader.readuntil(b"{}}")


def address_of(served: Bridge) -> tuple[str, int]:
    """Returns the host and the port of the bridge."""
    host, port = served.origin.removeprefix("http://").split(":")
    return host, int(port)


async def test_an_unauthenticated_client_that_pipelines_and_never_reads_is_disconnected(
    upstream: ScriptedUpstream,
) -> None:
    async with bridge(upstream.url) as served:
        with socket.create_connection(address_of(served)) as client:
            client.setblocking(False)
            client.send((GET + b"\r\n") * 500)
            await until(lambda: served.metric("client_connections") == 1)
            # The client neither reads nor closes: the bridge waits for it only as long as for the rest of a request.
            await until(lambda: served.metric("client_connections") == 0)


async def test_a_client_that_keeps_sending_after_its_rejection_is_disconnected(scripted: Bridge) -> None:
    sent = 0
    with socket.create_connection(address_of(scripted)) as client:
        client.setblocking(False)
        client.send(b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\n")
        async with asyncio.timeout(15):
            while True:
                try:
                    sent += client.send(b"x" * 65_536)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                except ConnectionError:
                    break
                else:
                    await asyncio.sleep(0)
    # What the bridge discarded, and the contents of the buffers of both sockets.
    assert sent < http_protocol.LINGER_BYTES + 2**25


async def test_an_incomplete_head_times_out_before_an_idle_connection(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)
    async with bridge(upstream.url) as served, connected(served) as (reader, writer):
        writer.write(called(b'{"jsonrpc":"2.0","id":1,"method":"ping"}'))
        assert b"200 OK" in await reader.readuntil(b"}}")
        writer.write(GET[:10])
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""


async def test_incomplete_heads_are_bounded_over_all_connections(
    scripted: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "ARRIVING_HEADS_BYTES", 1_000)
    half = GET + b"X: " + b"x" * 700
    async with connected(scripted) as (_, first), connected(scripted) as (reader, second):
        first.write(half)
        await until(lambda: scripted.metric("incomplete_head_bytes") > 0)
        second.write(half)
        head, error = split(await reader.read())
    assert head.startswith(b"http/1.1 503 ")
    assert error["error"]["code"] == -32013
