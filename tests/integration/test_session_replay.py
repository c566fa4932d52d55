"""A request is sent again only if that is provably harmless; the scripted upstream counts the attempts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from harness import Bridge, Received, ScriptedUpstream, bridge, call_body, until


@pytest.fixture
async def steady(upstream: ScriptedUpstream) -> AsyncIterator[Bridge]:
    """A connected bridge that no periodic check disturbs."""
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60", REQUEST_TIMEOUT_SECONDS="10") as served:
        await until(served.ready)
        upstream.received.clear()
        yield served


def cut_once(upstream: ScriptedUpstream, method: str) -> None:
    """Makes upstream cut the connection once, after it received the request."""

    async def cut(received: Received) -> web.StreamResponse:
        if upstream.count(method) == 1:
            return received.cut()
        return await upstream.answer(received)

    upstream.on(method, cut)


async def test_a_write_cut_after_sending_is_not_sent_again(steady: Bridge, upstream: ScriptedUpstream) -> None:
    cut_once(upstream, "tools/call")
    answer = await steady.call("write", {"n": 1}, id="w")
    assert upstream.count("tools/call") == 1
    assert answer.status == 502
    assert answer.json["id"] == "w"
    assert answer.error["code"] == -32011
    assert answer.error["data"] == {"outcome": "unknown", "retryable": False}


@pytest.mark.parametrize("tool", ["read", "set"])
async def test_a_call_whose_annotations_allow_it_is_sent_again(
    steady: Bridge, upstream: ScriptedUpstream, tool: str
) -> None:
    cut_once(upstream, "tools/call")
    answer = await steady.call(tool, {"n": 1})
    assert upstream.count("tools/call") == 2
    assert json.loads(answer.text) == {"n": 1}


async def test_a_read_that_was_accepted_before_the_tools_were_known_is_sent_again(upstream: ScriptedUpstream) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/list", wait)
    cut_once(upstream, "tools/call")
    async with bridge(upstream.url) as served, asyncio.timeout(10):
        await until(lambda: upstream.count("tools/list") == 1)
        call = asyncio.create_task(served.call("read", {"n": 1}))
        await asyncio.wait([call], timeout=0.2)
        allowed.set()
        assert json.loads((await call).text) == {"n": 1}
    assert upstream.count("tools/call") == 2


async def test_a_list_cut_after_sending_is_sent_again(steady: Bridge, upstream: ScriptedUpstream) -> None:
    cut_once(upstream, "tools/list")
    answer = await steady.post({"jsonrpc": "2.0", "id": 9, "method": "tools/list"})
    assert answer.status == 200
    assert len(answer.json["result"]["tools"]) == 3
    assert upstream.count("tools/list") == 2


async def test_a_list_that_is_cut_each_time_ends_in_an_error(steady: Bridge, upstream: ScriptedUpstream) -> None:
    async def cut(received: Received) -> web.Response:
        return received.cut()

    upstream.on("resources/list", cut)
    answer = await steady.post({"jsonrpc": "2.0", "id": 9, "method": "resources/list"})
    assert answer.status == 502
    assert answer.error["data"] == {"outcome": "unknown", "retryable": True}
    assert upstream.count("resources/list") == 2


async def test_a_write_that_a_lost_session_refused_is_sent_again_once(
    steady: Bridge, upstream: ScriptedUpstream
) -> None:
    upstream.sessions.clear()
    answer = await steady.call("write", {"n": 1})
    assert json.loads(answer.text) == {"n": 1}
    assert upstream.count("tools/call") == 2
    assert upstream.count("initialize") == 1


async def test_a_death_of_the_server_is_an_unknown_outcome_for_a_write(
    steady: Bridge, upstream: ScriptedUpstream
) -> None:
    async def died(received: Received) -> web.StreamResponse:
        error = {"code": -32603, "message": "MCP server process failed"}
        return await received.events({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    upstream.on("tools/call", died)
    answer = await steady.call("write", {"n": 1}, id="w")
    assert answer.status == 502
    assert answer.error["data"] == {"outcome": "unknown", "retryable": False}
    assert upstream.count("tools/call") == 1


async def test_a_stream_cut_before_its_answer_ends_with_an_error_object(
    steady: Bridge, upstream: ScriptedUpstream
) -> None:
    async def cut_after_progress(received: Received) -> web.StreamResponse:
        token = received.message["params"]["_meta"]["progressToken"]
        params = {"progressToken": token, "progress": 1}
        await received.events({"jsonrpc": "2.0", "method": "notifications/progress", "params": params})
        return received.cut()

    upstream.on("tools/call", cut_after_progress)
    body = call_body("read", id="r")
    body["params"]["_meta"] = {"progressToken": "mine"}
    progress, last = [message async for message in steady.stream(body)]
    assert progress["params"] == {"progressToken": "mine", "progress": 1}
    assert last["id"] == "r"
    assert last["error"]["data"]["outcome"] == "unknown"
    assert upstream.count("tools/call") == 1


async def test_a_timeout_of_a_write_answers_504_with_the_outcome_unknown(upstream: ScriptedUpstream) -> None:
    hanging = asyncio.Event()

    async def hang(received: Received) -> Any:
        await hanging.wait()
        return received.result({})

    upstream.on("tools/call", hang)
    async with bridge(upstream.url, REQUEST_TIMEOUT_SECONDS="0.5") as served:
        answer = await served.call("write", id="w")
        hanging.set()
    assert (answer.status, answer.error["code"]) == (504, -32012)
    assert answer.error["data"] == {"outcome": "unknown", "retryable": False}
    assert upstream.count("tools/call") == 1


async def test_a_response_on_another_callers_stream_reaches_its_own_caller(
    steady: Bridge, upstream: ScriptedUpstream
) -> None:
    calls: list[Received] = []
    both = asyncio.Barrier(2)

    async def crossed(received: Received) -> web.StreamResponse:
        calls.append(received)
        await both.wait()
        (other,) = (call for call in calls if call is not received)
        text = json.dumps(other.message["params"]["arguments"])
        result = {"content": [{"type": "text", "text": text}]}
        response = await received.events({"jsonrpc": "2.0", "id": other.message["id"], "result": result})
        await both.wait()
        return response

    upstream.on("tools/call", crossed)
    one, two = await asyncio.gather(steady.call("write", {"n": 1}), steady.call("write", {"n": 2}))
    assert (json.loads(one.text), json.loads(two.text)) == ({"n": 1}, {"n": 2})


async def test_a_request_of_upstream_is_answered_by_the_bridge(steady: Bridge, upstream: ScriptedUpstream) -> None:
    answered = asyncio.Event()

    async def ask_first(received: Received) -> web.StreamResponse:
        if "method" not in received.message:
            answered.set()
            return web.Response(status=202)
        response = await received.events({"jsonrpc": "2.0", "id": "up-1", "method": "ping"})
        await answered.wait()
        result = {"jsonrpc": "2.0", "id": received.message["id"], "result": {"content": []}}
        await response.write(f"data: {json.dumps(result)}\n\n".encode())
        return response

    upstream.on("tools/call", ask_first)
    upstream.on("", ask_first)
    answer = await steady.call("write")
    assert answer.json["result"] == {"content": []}
    (reply,) = upstream.of("")
    assert reply.message["id"] == "up-1"
