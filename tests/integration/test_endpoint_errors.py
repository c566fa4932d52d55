"""For every fault, the client gets a JSON error with its own id, and the session stays usable."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import web

from harness import JSON, SSE, TOKEN, Bridge, Received, ScriptedUpstream, bridge, call_body, until

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
LIMIT = 1_048_576


@pytest.fixture(autouse=True)
async def the_session_still_works(scripted: Bridge, upstream: ScriptedUpstream) -> AsyncIterator[None]:
    """Checks after each test that the same upstream session serves the next client."""
    yield
    upstream.scripts.clear()
    assert (await scripted.call("write", {"after": True})).status == 200
    assert len(upstream.sessions) == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", -32700),
        (b"{", -32700),
        (b"not json", -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"n":NaN}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"n":Infinity}}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"\xff\xfe"}', -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping"} {}', -32700),
        (b"[" * 100_000, -32700),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":' + b"[" * 100_000 + b"]" * 100_000 + b"}", -32700),
        (b"[]", -32600),
        (b"null", -32600),
        (b'"x"', -32600),
        (b"1", -32600),
        (b"{}", -32600),
        (b'{"jsonrpc":"1.0"}', -32600),
        (b'{"jsonrpc":"1.0","id":1,"method":"ping"}', -32600),
        (b'{"id":1,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":{},"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":true,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":[1],"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":7}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"result":{}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"x"}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"\\u0069d":2,"method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","method":"ping"}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","name":"write"}}', -32600),
        (b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":{},"_meta":{}}}', -32600),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_not_a_json_rpc_message_answers_400(
    scripted: Bridge, upstream: ScriptedUpstream, body: bytes, code: int
) -> None:
    answer = await scripted.post(body)
    assert answer.status == 400
    assert answer.error["code"] == code
    assert answer.json["jsonrpc"] == "2.0"
    assert answer.error["message"]
    assert not upstream.count("ping")


@pytest.mark.parametrize("spelled", [b'"mine"', b"1.0", b"123456789012345678901"])
async def test_an_error_carries_the_id_of_its_request_as_spelled(scripted: Bridge, spelled: bytes) -> None:
    answer = await scripted.post(b'{"jsonrpc":"1.0","method":"ping","id":%s}' % spelled)
    assert answer.status == 400
    assert b'"id":' + spelled in answer.body.replace(b'": ', b'":')


@pytest.mark.parametrize("chunked", [False, True], ids=["with Content-Length", "without"])
async def test_a_body_over_the_limit_answers_413(scripted: Bridge, chunked: bool) -> None:
    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    def padded(size: int) -> bytes:
        start = b'{"jsonrpc":"2.0","id":1,"method":"ping","params":{"x":"'
        return start + b"x" * (size - len(start) - 3) + b'"}}'

    for size, status in ((LIMIT, 200), (LIMIT + 1, 413)):
        data: Any = chunks(padded(size)) if chunked else io.BytesIO(padded(size))
        async with scripted.http.post(scripted.url, data=data, headers=scripted.request_headers()) as response:
            assert response.status == status
            answer = await response.json()
    assert answer["error"]["code"] == -32014
    assert answer["error"]["data"]["limit_bytes"] == LIMIT


async def test_a_413_of_the_upstream_says_which_layer_refused(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async def refuse(received: Received) -> web.Response:
        return web.Response(status=413, text="<html>Payload Too Large</html>", content_type="text/html")

    upstream.on("tools/call", refuse)
    answer = await scripted.call("write", id="big")
    assert (answer.status, answer.error["code"], answer.json["id"]) == (413, -32014, "big")
    assert answer.error["data"]["layer"] != "bridge"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonx"},
        {"Content-Encoding": "gzip"},
    ],
)
async def test_another_content_type_or_encoding_answers_415(scripted: Bridge, headers: dict[str, str]) -> None:
    body = json.dumps(PING).encode()
    data = gzip.compress(body) if "Content-Encoding" in headers else body
    answer = await scripted.post(data, headers)
    assert (answer.status, answer.error["code"]) == (415, -32600)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_is_taken_however_its_type_is_spelled(scripted: Bridge, content_type: str) -> None:
    assert (await scripted.post(PING, {"Content-Type": content_type})).status == 200


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH"])
async def test_another_method_answers_405_and_names_those_that_are_served(scripted: Bridge, method: str) -> None:
    answer = await scripted.ask(method, "/mcp", b"", scripted.request_headers())
    assert answer.status == 405
    assert answer.error["code"] == -32600
    assert "POST" in answer.headers["Allow"]


@pytest.mark.parametrize("path", ["/", "/mcp/x", "/sse", "/docs", "/openapi.json", "/health/"])
async def test_another_path_answers_404_that_names_the_endpoint(scripted: Bridge, path: str) -> None:
    answer = await scripted.get(path)
    assert answer.status == 404
    assert b"/mcp" in answer.body
    assert answer.json


async def test_the_endpoint_with_a_slash_is_the_same_and_nothing_redirects(scripted: Bridge) -> None:
    answer = await scripted.ask("POST", "/mcp/", PING, scripted.request_headers())
    assert answer.json == {"jsonrpc": "2.0", "id": 1, "result": {}}


@pytest.mark.parametrize(
    "reply",
    [
        web.Response(text="<html>hello</html>", content_type="text/html"),
        web.Response(text="{", content_type="application/json"),
        web.Response(text="", content_type="application/json"),
        web.Response(text="[]", content_type="application/json"),
        web.Response(text='{"jsonrpc":"2.0","id":"of nobody","result":{}}', content_type="application/json"),
        web.Response(text="data: {\n\n", content_type="text/event-stream"),
        web.Response(text="", content_type="text/event-stream"),
        web.Response(status=500, text="<html>Traceback</html>", content_type="text/html"),
        web.Response(status=202),
        web.Response(status=301, headers={"Location": "http://127.0.0.1:9/"}),
    ],
    ids=lambda reply: f"{reply.status} {reply.content_type} {reply.text}",
)
async def test_an_invalid_upstream_reply_is_502(
    scripted: Bridge, upstream: ScriptedUpstream, reply: web.Response
) -> None:
    async def answer_nonsense(_received: Received) -> web.StreamResponse:
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)

    upstream.on("tools/call", answer_nonsense)
    answer = await scripted.call("write", id="mine")
    assert answer.status == 502
    assert answer.json["id"] == "mine"
    assert answer.error["code"] == -32011
    assert answer.error["data"]["outcome"] == "unknown"
    assert b"html" not in answer.body


async def test_an_answer_over_the_limit_is_502(upstream: ScriptedUpstream) -> None:
    async def reply_at_length(received: Received) -> web.StreamResponse:
        if received.message["params"]["name"] == "read":
            return await received.events({"jsonrpc": "2.0", "id": received.message["id"], "result": "x" * 20_000})
        return received.result("x" * 20_000)

    upstream.on("tools/call", reply_at_length)
    async with bridge(upstream.url, MAX_ANSWER_BYTES="10000") as served:
        for tool in ("write", "read"):
            answer = await served.call(tool)
            assert (answer.status, answer.error["code"]) == (502, -32011)


async def test_too_many_requests_in_flight_answer_503_at_once(upstream: ScriptedUpstream) -> None:
    hanging = asyncio.Event()

    async def hang(received: Received) -> web.StreamResponse:
        await hanging.wait()
        return received.result({})

    upstream.on("tools/call", hang)
    async with bridge(upstream.url, MAX_IN_FLIGHT="4", UPSTREAM_CONCURRENCY="2") as served:
        calls = [asyncio.create_task(served.call("write", id=n)) for n in range(4)]
        await until(lambda: upstream.count("tools/call") == 2)
        async with asyncio.timeout(5):
            refused = await served.call("write", id="fifth")
        assert upstream.count("tools/call") == 2
        hanging.set()
        assert [(await call).status for call in calls] == [200] * 4
    assert (refused.status, refused.error["code"], refused.json["id"]) == (503, -32013, "fifth")
    assert refused.headers["Retry-After"]
    assert refused.error["data"] == {"outcome": "not_sent", "retryable": True}


async def test_a_body_cut_short_by_its_client_never_reaches_upstream(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    host, port = scripted.origin.removeprefix("http://").split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: 500\r\n\r\n" % TOKEN.encode() + json.dumps(PING).encode()
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert (await scripted.post(PING)).status == 200
    assert upstream.count("ping") <= 2


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("text/event-stream", True),
        ("application/json, text/event-stream", True),
        ("text/event-stream;q=0.5", True),
        ("*/*", False),
        (None, False),
        ("application/json", False),
        ("application/json, text/event-stream;q=0", False),
        ("text/html", False),
    ],
)
async def test_an_upstream_stream_is_streamed_or_collapsed_as_the_client_accepts(
    scripted: Bridge, upstream: ScriptedUpstream, accept: str | None, streamed: bool
) -> None:
    async def stream(received: Received) -> web.StreamResponse:
        return await received.events({"jsonrpc": "2.0", "id": received.message["id"], "result": {"ok": True}})

    upstream.on("tools/call", stream)
    headers = scripted.request_headers({} if accept is None else {"Accept": accept})
    skip = {"Accept"} if accept is None else set()
    async with scripted.http.post(
        scripted.url, data=json.dumps(call_body("read")), headers=headers, skip_auto_headers=skip
    ) as response:
        assert response.content_type == ("text/event-stream" if streamed else "application/json")
        body = await response.read()
    if streamed:
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.headers["X-Accel-Buffering"] == "no"
    assert b'"ok": true' in body


async def test_a_silent_stream_is_kept_open_by_comments(upstream: ScriptedUpstream) -> None:
    enough = asyncio.Event()

    async def silent(received: Received) -> web.StreamResponse:
        response = await received.events()
        await enough.wait()
        result = {"jsonrpc": "2.0", "id": received.message["id"], "result": {}}
        await response.write(f"data: {json.dumps(result)}\n\n".encode())
        return response

    upstream.on("tools/call", silent)
    async with bridge(upstream.url, HEARTBEAT_SECONDS="0.1") as served:
        headers = {**JSON, **SSE, "Authorization": f"Bearer {TOKEN}"}
        async with served.http.post(served.url, json=call_body("read"), headers=headers) as response:
            comments = 0
            async with asyncio.timeout(5):
                async for line in response.content:
                    comments += line.startswith(b":")
                    if comments == 3:
                        enough.set()
                    if line.startswith(b"data:"):
                        break
    assert comments >= 3


async def test_a_failure_of_a_tool_is_relayed_as_its_result(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async def fail(received: Received) -> web.StreamResponse:
        return received.result({"content": [], "isError": True})

    upstream.on("tools/call", fail)
    answer = await scripted.call("write")
    assert (answer.status, answer.json["result"]["isError"]) == (200, True)


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
async def test_answers_over_the_limit_do_not_add_up(upstream: ScriptedUpstream, content_type: str) -> None:
    limit = 2**20

    async def flood(received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(received.http)
        with suppress(ConnectionError):
            await response.write(b"data: ")
            for _ in range(2 * limit // 2**14):
                await response.write(b"x" * 2**14)
        return response

    upstream.on("tools/call", flood)
    async with bridge(upstream.url, MAX_ANSWER_BYTES=str(limit)) as served:
        await served.call("write")
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(10):
                assert (await served.call("write")).error["code"] == -32011
            held_bytes, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held_bytes < 5 * limit
