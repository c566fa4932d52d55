"""How the bridge reacts when upstream ends or rejects the shared session: one session at a time, no lost response."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness import SERVER_MEMORY, SUPERGATEWAY_3, Gateway, Received, ScriptedUpstream, bridge, until
from integration.test_endpoint_streams import listening

NO_SESSION = {"code": -32000, "message": "Bad Request: No valid session ID provided"}


class Listening(ScriptedUpstream):
    """A scripted upstream whose GET and DELETE are scripted, too."""

    def __init__(self) -> None:
        self.got: list[web.Request] = []
        self.ended: list[str] = []
        self.statuses: list[int] = []
        self.streams: list[list[str]] = []
        super().__init__()

    async def _get(self, http: web.Request) -> Any:
        self.got.append(http)
        if self.streams:
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(http)
            for event in self.streams.pop(0):
                await response.write(event.encode())
            return response
        return web.Response(status=self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])

    async def _delete(self, http: web.Request) -> web.Response:
        self.ended.append(http.headers.get("Mcp-Session-Id", ""))
        return await super()._delete(http)


@pytest.fixture
async def upstream() -> AsyncIterator[Listening]:
    scripted = Listening()
    scripted.statuses = [405]
    async with TestServer(scripted.app, host="127.0.0.1") as server:
        scripted.url = str(server.make_url("/mcp"))
        yield scripted


async def test_404_on_get_keeps_the_session_if_a_ping_is_answered(upstream: Listening) -> None:
    upstream.statuses = [404]
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60") as served:
        await until(lambda: upstream.count("ping") == 1)
        assert await served.ready()
        assert (await served.call("write")).status == 200
        assert (upstream.sessions_opened, len(upstream.got)) == (1, 1)


async def test_404_on_get_is_a_loss_when_a_ping_is_refused_too(upstream: Listening) -> None:
    upstream.statuses = [404, 405]

    async def forget(received: Received) -> web.StreamResponse:
        upstream.sessions.discard("session-1")
        return await upstream.answer(received)

    upstream.on("ping", forget)
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60") as served:
        await until(lambda: upstream.sessions_opened == 2)
        await until(served.ready)
        assert upstream.ended == ["session-1"]


@pytest.mark.parametrize("status", [503, 409, 429, 400, 200])
async def test_a_stream_that_is_refused_for_a_while_is_asked_for_again_and_counted(
    upstream: Listening, status: int
) -> None:
    upstream.statuses = [status, 405]
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60") as served:
        await until(lambda: len(upstream.got) == 2)
        assert served.metric("upstream_stream_failures_total") == 1
        assert upstream.sessions_opened == 1


@pytest.mark.parametrize("status", [405, 501])
async def test_an_upstream_without_a_stream_is_not_asked_again(upstream: Listening, status: int) -> None:
    upstream.statuses = [status]
    async with bridge(upstream.url) as served:
        await until(lambda: len(upstream.got) == 1)
        await until(served.ready)
        assert served.metric("upstream_stream_failures_total") == 0


async def test_repeatedly_lost_sessions_are_reopened_once_a_second_and_each_is_ended(upstream: Listening) -> None:
    opened_at: list[float] = []

    async def refuse(received: Received) -> web.StreamResponse:
        return web.Response(status=404)

    async def open_session(received: Received) -> web.StreamResponse:
        opened_at.append(asyncio.get_running_loop().time())
        return await upstream.answer(received)

    upstream.on("tools/call", refuse)
    upstream.on("initialize", open_session)
    async with bridge(upstream.url, CONNECT_TIMEOUT_SECONDS="1") as served:
        while len(opened_at) < 3:
            assert (await served.call("write")).status == 503
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(opened_at))
    assert upstream.ended == [f"session-{number}" for number in range(1, upstream.sessions_opened + 1)]


@pytest.mark.parametrize("status", [500, 400, 422, 403, 404, 413])
async def test_an_error_object_with_the_requests_id_is_its_answer_whatever_the_status(
    upstream: Listening, status: int
) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        error = {"code": -32602, "message": f"bad argument: {NO_SESSION['message']}"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error}, status=status)

    upstream.on("tools/call", refuse)
    async with bridge(upstream.url) as served:
        answer = await served.call("write", id="mine")
        assert (answer.status, answer.json["id"], answer.error["code"]) == (200, "mine", -32602)
        assert (upstream.count("tools/call"), upstream.sessions_opened) == (1, 1)


@pytest.mark.parametrize(
    "refusal",
    [
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32000, "message": f"x {NO_SESSION['message']}"}},
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": NO_SESSION["message"]}},
        {"jsonrpc": "2.0", "id": None, "error": {**NO_SESSION, "data": 1}},
        {"jsonrpc": "2.0", "id": 10**6, "error": NO_SESSION},
        {"error": NO_SESSION},
    ],
)
async def test_an_error_that_only_resembles_a_lost_session_does_not_renew_it(
    upstream: Listening, refusal: dict[str, Any]
) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        return web.json_response(refusal, status=400)

    upstream.on("tools/call", refuse)
    async with bridge(upstream.url) as served:
        answer = await served.call("write")
        assert (answer.status, answer.error["code"]) == (502, -32011)
        assert (upstream.count("tools/call"), upstream.sessions_opened) == (1, 1)


async def test_a_real_supergateway_3_that_was_started_again_is_renewed() -> None:
    gateway = Gateway(SERVER_MEMORY, supergateway=SUPERGATEWAY_3)
    gateway.start()
    try:
        async with bridge(gateway.url, CHECK_INTERVAL_SECONDS="60") as served:
            await until(served.ready)
            await asyncio.to_thread(gateway.kill)
            await asyncio.to_thread(gateway.start)
            assert (await served.call("read_graph")).status == 200
    finally:
        gateway.stop()


@pytest.mark.parametrize("status", [400, 406, 415, 422])
async def test_a_refusal_in_plain_text_names_its_status_and_was_not_sent(upstream: Listening, status: int) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        return web.Response(status=status, text="Failed to parse the request body as JSON")

    upstream.on("tools/call", refuse)
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60") as served:
        await until(served.ready)
        answer = await served.call("write")
        assert (answer.status, answer.error["code"]) == (502, -32011)
        assert str(status) in answer.error["message"]
        assert answer.error["data"] == {"outcome": "not_sent", "retryable": True}
        assert await served.ready()


async def test_listening_clients_are_notified_of_other_tools_of_a_new_session(upstream: Listening) -> None:
    tools: list[dict[str, Any]] = [{"name": "one", "inputSchema": {}}]

    async def list_tools(received: Received) -> web.StreamResponse:
        return received.result({"tools": tools})

    upstream.on("tools/list", list_tools)
    async with bridge(upstream.url) as served, listening(served, "a") as ear:
        await until(served.ready)
        upstream.sessions.clear()
        assert (await served.call("one")).status == 200
        tools.append({"name": "two", "inputSchema": {}})
        upstream.sessions.clear()
        assert (await served.call("one")).status == 200
        await until(lambda: bool(ear.heard))
    assert len(ear.heard) == 1
    assert ear.heard[0]["method"] == "notifications/tools/list_changed"
    assert upstream.sessions_opened == 3


async def test_a_502_and_a_session_found_lost_by_a_tool_list_flip_readiness(upstream: Listening) -> None:
    silent = asyncio.Event()

    async def hang(received: Received) -> web.StreamResponse:
        await silent.wait()
        return await upstream.answer(received)

    async def fail(received: Received) -> web.StreamResponse:
        return web.Response(status=500, text="no")

    async def announce(received: Received) -> web.StreamResponse:
        upstream.sessions.clear()
        changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        return await received.events(changed, {"jsonrpc": "2.0", "id": received.message["id"], "result": {}})

    async def not_ready() -> bool:
        return not await served.ready()

    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60", CHECK_TIMEOUT_SECONDS="60") as served:
        await until(served.ready)
        upstream.on("ping", hang)
        upstream.on("tools/call", fail)
        assert (await served.call("write")).status == 502
        assert await not_ready()
        upstream.scripts.clear()
        silent.set()
        await until(served.ready)
        upstream.on("initialize", hang)
        silent.clear()
        upstream.on("tools/call", announce)
        assert (await served.call("write")).status == 200
        await until(not_ready)
        assert (await served.get("/readyz")).json["reason"] == "session_lost"
        silent.set()
        upstream.scripts.clear()
        await until(served.ready)


async def test_a_cursor_that_repeats_ends_the_list(upstream: Listening) -> None:
    async def repeat(received: Received) -> web.StreamResponse:
        return received.result({"tools": [], "nextCursor": "again"})

    upstream.on("tools/list", repeat)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        assert upstream.count("tools/list") == 2


async def test_an_invalid_tool_is_skipped_with_one_warning(
    upstream: Listening, caplog: pytest.LogCaptureFixture
) -> None:
    async def list_odd(received: Received) -> web.StreamResponse:
        return received.result({"tools": [None, {"name": "good"}, {"name": 7}]})

    upstream.on("tools/list", list_odd)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        for _ in range(2):
            assert (await served.get("/health")).json["tools"] == 1
            await asyncio.sleep(1.1)
    assert caplog.text.count("2 tools without a name") == 1


async def test_an_upstream_that_cannot_list_its_tools_is_served_without_a_catalogue(upstream: Listening) -> None:
    async def fail(received: Received) -> web.StreamResponse:
        error = {"code": -32603, "message": "no"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    upstream.on("tools/list", fail)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        assert (await served.call("write")).status == 200
        upstream.scripts.clear()
        assert (await served.get("/health")).json["tools"] == 3
        upstream.on("tools/list", fail)
        await asyncio.sleep(1.1)
        assert (await served.get("/health")).json["tools"] == 3


async def test_a_handshake_that_times_out_is_not_cancelled(upstream: Listening) -> None:
    hanging = asyncio.Event()

    async def hang(received: Received) -> web.StreamResponse:
        await hanging.wait()
        return received.result({})

    upstream.on("initialize", hang)
    async with bridge(upstream.url, REQUEST_TIMEOUT_SECONDS="0.3") as served:
        await until(lambda: served.metric("upstream_failures_total", reason="timeout") >= 2)
        hanging.set()
    assert upstream.count("notifications/cancelled") == 0
    assert upstream.count("ping") == 0


async def test_an_upstream_without_sessions_is_a_warning(upstream: Listening, caplog: pytest.LogCaptureFixture) -> None:
    async def answer(received: Received) -> web.StreamResponse:
        response = await upstream.answer(received)
        del response.headers["Mcp-Session-Id"]
        return response

    async def serve(received: Received) -> web.StreamResponse:
        return web.Response(status=202) if "id" not in received.message else received.result({"tools": []})

    upstream.on("initialize", answer)
    for method in ("notifications/initialized", "tools/list", "ping"):
        upstream.on(method, serve)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        assert (await served.get("/readyz")).json["upstream_sessions"] is False
        assert served.metric("upstream_stateless") == 1
    assert "no session id" in caplog.text


@pytest.mark.parametrize("tool", ["read", "write"])
async def test_a_stream_that_upstream_closes_before_the_answer_is_resumed(upstream: Listening, tool: str) -> None:
    async def prime_and_close(received: Received) -> web.StreamResponse:
        answer = {"jsonrpc": "2.0", "id": received.message["id"], "result": {"content": []}}
        upstream.streams += [["id: 2\ndata:\n\n"], [f"id: 3\ndata: {json.dumps(answer)}\n\n"]]
        response = await received.events()
        await response.write(b"id: 1\nretry: 50\ndata:\n\n")
        return response

    async with bridge(upstream.url) as served:
        await until(served.ready)
        await until(lambda: len(upstream.got) == 1)
        upstream.on("tools/call", prime_and_close)
        answer = await served.call(tool)
        assert (answer.status, answer.json["result"]) == (200, {"content": []})
        assert upstream.count("tools/call") == 1
        assert [http.headers.get("Last-Event-ID") for http in upstream.got] == [None, "1", "2"]


async def test_a_stream_that_cannot_be_resumed_is_an_unknown_outcome_for_a_write(upstream: Listening) -> None:
    async def prime_and_close(received: Received) -> web.StreamResponse:
        response = await received.events()
        await response.write(b"id: 1\nretry: 50\ndata:\n\n")
        return response

    upstream.on("tools/call", prime_and_close)
    async with bridge(upstream.url) as served:
        answer = await served.call("write")
        assert (answer.status, answer.error["data"]["outcome"]) == (502, "unknown")
        assert upstream.count("tools/call") == 1
