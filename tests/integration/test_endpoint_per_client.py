"""Per-client mode: each legacy client has its own upstream session and gets the requests of upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from harness import (
    SSE,
    Answer,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    call_body,
    environment,
    until,
)

INITIALIZE = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}


@pytest.fixture
async def own(shared_gateway: Gateway) -> AsyncIterator[Bridge]:
    """A bridge in per-client mode in front of server-everything."""
    async with bridge(shared_gateway.url, SESSION_MODE="per-client") as served:
        yield served


async def initialize(served: Bridge, capabilities: dict[str, Any] | None = None) -> dict[str, str]:
    """Opens a session; returns its headers."""
    params = INITIALIZE | {"capabilities": capabilities or {}}
    answer = await served.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}, SSE)
    assert answer.status == 200, answer
    headers = {"Mcp-Session-Id": answer.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-06-18"}
    taken = await served.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, headers)
    assert taken.status == 202
    return headers


async def delete(served: Bridge, headers: dict[str, str]) -> Answer:
    """Ends a session."""
    return await served.ask("DELETE", "/mcp", b"", served.request_headers(headers))


async def sampled(served: Bridge, headers: dict[str, str], text: str) -> str:
    """Calls a tool that requests sampling, answers that request with the text, and returns the tool's result."""
    arguments = {"prompt": "say it", "maxTokens": 5}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    params = {"name": "trigger-sampling-request", "arguments": arguments}
    async for message in served.stream(body | {"params": params}, headers):
        if message.get("method") == "sampling/createMessage":
            sample = {"role": "assistant", "content": {"type": "text", "text": text}, "model": "m"}
            answer = {"jsonrpc": "2.0", "id": message["id"], "result": sample}
            assert (await served.post(answer, headers)).status == 202
        if "result" in message:
            return json.dumps(message["result"])
    raise AssertionError("the stream ended without the tool's answer")


async def test_two_clients_are_asked_at_the_same_time_with_the_same_ids(own: Bridge) -> None:
    first, second = await initialize(own, {"sampling": {}}), await initialize(own, {"sampling": {}})
    async with asyncio.timeout(30):
        told = await asyncio.gather(sampled(own, first, "from the first"), sampled(own, second, "from the second"))
    assert "from the first" in told[0]
    assert "from the second" in told[1]


async def test_in_shared_mode_upstream_is_refused_at_once(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async def asks(received: Any) -> Any:
        question = {"jsonrpc": "2.0", "id": "q", "method": "sampling/createMessage", "params": {}}
        result = {"jsonrpc": "2.0", "id": json.loads(received.body)["id"], "result": {}}
        return await received.events(question, result)

    upstream.on("tools/call", asks)
    assert (await scripted.call("any")).status == 200
    await until(lambda: any(b'"q"' in it.body and b"-32601" in it.body for it in upstream.received))


async def test_a_session_serves_its_own_principal_only(shared_gateway: Gateway, tmp_path: Any) -> None:
    file = tmp_path / "tokens"
    file.write_text("ann ann-token-0123456789\nbob bob-token-0123456789\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": "per-client"}
    async with bridge(shared_gateway.url, **variables) as served:
        served.token = "ann-token-0123456789"
        headers = await initialize(served)
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert (await served.post(ping, headers)).status == 200
        served.token = "bob-token-0123456789"
        assert (await served.post(ping, headers)).status == 404
        assert (await delete(served, headers)).status == 404
        served.token = "ann-token-0123456789"
        assert (await delete(served, headers)).status == 204
        assert (await served.post(ping, headers)).status == 404


async def test_a_session_id_that_upstream_gives_twice_stays_with_its_first_principal(
    upstream: ScriptedUpstream, tmp_path: Any
) -> None:
    async def opens_the_same(received: Received) -> web.StreamResponse:
        upstream.sessions_opened = 0
        return await upstream.answer(received)

    upstream.on("initialize", opens_the_same)
    file = tmp_path / "tokens"
    file.write_text("ann ann-token-0123456789\nbob bob-token-0123456789\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": "per-client"}
    async with bridge(upstream.url, **variables) as served:
        ann = Bridge(served.origin, served.http, "ann-token-0123456789")
        bob = Bridge(served.origin, served.http, "bob-token-0123456789")
        headers = await initialize(ann)
        opened = await bob.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": INITIALIZE}, SSE)
        assert opened.headers["Mcp-Session-Id"] == headers["Mcp-Session-Id"]
        ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
        assert [(await it.post(ping, headers)).status for it in (ann, bob)] == [200, 404]


async def test_an_unknown_session_is_404_and_a_sessionless_client_is_served(own: Bridge) -> None:
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    assert (await own.post(ping, {"Mcp-Session-Id": "never-seen"})).status == 404
    assert (await own.post(ping)).json == {"jsonrpc": "2.0", "id": 1, "result": {}}
    assert (await delete(own, {})).status == 400


async def test_an_answer_is_json_for_a_client_that_takes_no_stream(own: Bridge) -> None:
    headers = await initialize(own)
    answer = await own.call("echo", {"message": "plain"}, id="x", headers=headers)
    assert (answer.json["id"], answer.text) == ("x", "Echo: plain")
    batch = [{"jsonrpc": "2.0", "id": 1, "method": "ping"}]
    assert (await own.post(batch, headers)).status == 200


async def test_more_sessions_than_the_limit_are_refused(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, SESSION_MODE="per-client", MAX_CLIENT_SESSIONS="1") as served:
        headers = await initialize(served)
        body = {"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": {}}
        refused = await served.post(body, SSE)
        assert (refused.status, refused.error["code"], refused.json["id"]) == (503, -32013, 7)
        assert refused.error["data"] == {"outcome": "not_sent", "retryable": True}
        assert (await delete(served, headers)).status == 204
        assert await initialize(served)


async def test_an_idle_session_is_ended(everything_gateway: Gateway) -> None:
    variables = {"SESSION_MODE": "per-client", "CLIENT_SESSION_IDLE_SECONDS": "3"}
    async with bridge(everything_gateway.url, **variables) as served:
        await until(served.ready)
        headers = await initialize(served)
        await until(lambda: len(everything_gateway.servers) == 1)
        assert (await served.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)).status == 404


async def test_every_session_is_ended_when_the_bridge_stops(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        await until(served.ready)
        await initialize(served)
        await initialize(served)
        assert len(everything_gateway.servers) == 3
        assert served.drain is not None
        await served.drain()
        assert (await served.post({"jsonrpc": "2.0", "id": 1, "method": "initialize"}, SSE)).status == 503
    await until(lambda: not everything_gateway.servers)


async def test_a_clients_own_stream_carries_messages_while_nothing_is_in_flight(own: Bridge) -> None:
    headers = await initialize(own)
    uri = "demo://resource/dynamic/text/5"
    subscribe = {"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": uri}}
    sent = own.request_headers({**headers, "Accept": "text/event-stream"})
    async with asyncio.timeout(30), own.http.get(own.url, headers=sent) as response:
        assert response.status == 200
        assert (await own.post(subscribe, headers)).status == 200
        await own.call("toggle-subscriber-updates", headers=headers)
        async for line in response.content:
            if b"notifications/resources/updated" in line:
                assert uri.encode() in line
                break
        async with own.http.get(own.url, headers=sent) as second:
            assert second.status == 200
            await response.read()
            async for line in second.content:
                if b"notifications/resources/updated" in line:
                    break
    assert (await delete(own, headers)).status == 204


async def test_a_clients_own_stream_ends_when_upstream_is_killed(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        sent = served.request_headers({**await initialize(served), "Accept": "text/event-stream"})
        async with asyncio.timeout(30), served.http.get(served.url, headers=sent) as response:
            await response.content.readuntil(b"still here")
            await asyncio.to_thread(everything_gateway.kill)
            assert b"error" not in await response.read()


async def test_a_timeout_is_reported_and_upstream_gets_a_cancellation(upstream: ScriptedUpstream) -> None:
    hanging = asyncio.Event()

    async def hang(received: Any) -> Any:
        response = await received.events()
        await hanging.wait()
        return response

    async with bridge(
        upstream.url, SESSION_MODE="per-client", REQUEST_TIMEOUT_SECONDS="0.3", HEARTBEAT_SECONDS="0.1"
    ) as served:
        await until(served.ready)
        headers = await initialize(served)
        upstream.on("tools/call", hang)
        answer = await served.call("any", id="slow", headers={**headers, **SSE})
        assert b"-32012" in answer.body
        assert b'"slow"' in answer.body
        await until(lambda: upstream.count("notifications/cancelled") == 1)
        hanging.set()


async def test_a_reply_that_is_not_mcp_answers_502_and_a_large_body_413(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, SESSION_MODE="per-client", MAX_IN_FLIGHT="1") as served:
        await until(served.ready)
        headers = await initialize(served)
        for status, expected, code in ((500, 502, -32011), (413, 413, -32014)):
            upstream.on("tools/call", html(status))
            answer = await served.call("any", id=3, headers=headers)
            assert (answer.status, answer.error["code"], answer.json["id"]) == (expected, code, 3)


def html(status: int) -> Any:
    """Returns a script that answers with an HTML page."""

    async def script(received: Any) -> Any:
        return web.Response(status=status, text="<html>", content_type="text/html")

    return script


STREAM = {"Accept": "text/event-stream"}
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


@asynccontextmanager
async def scripted_mode(upstream: ScriptedUpstream, **variables: str) -> AsyncIterator[Bridge]:
    """Yields a bridge in per-client mode in front of the scripted upstream."""
    async with bridge(upstream.url, SESSION_MODE="per-client", **variables) as served:
        await until(served.ready)
        yield served


def answering(status: int, content_type: str = "text/plain", text: str = "no") -> Any:
    """Returns a script that answers with a status and a body that is not MCP."""

    async def script(received: Any) -> Any:
        return web.Response(status=status, text=text, content_type=content_type)

    return script


class Hanging:
    """A script that sends nothing, not even a head, until it is released."""

    def __init__(self) -> None:
        self.came = 0
        self._let_go = asyncio.Event()

    async def __call__(self, received: Received) -> web.StreamResponse:
        self.came += 1
        await self._let_go.wait()
        return web.Response(status=404)

    def let_go(self) -> None:
        """Releases the script."""
        self._let_go.set()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    """A script that hangs until the test ends."""
    script = Hanging()
    yield script
    script.let_go()


def opening(id: Any) -> dict[str, Any]:
    """Returns the request that opens a session."""
    return {"jsonrpc": "2.0", "id": id, "method": "initialize", "params": INITIALIZE}


@pytest.mark.parametrize("accept", [{}, SSE], ids=["json", "sse"])
async def test_hung_initializes_answer_504_and_a_later_one_succeeds(
    upstream: ScriptedUpstream, hanging: Hanging, accept: dict[str, str]
) -> None:
    async with scripted_mode(upstream, MAX_CLIENT_SESSIONS="3", REQUEST_TIMEOUT_SECONDS="0.5") as served:
        upstream.on("initialize", hanging)
        for number in range(2):
            ids = [f"hung-{number}-{it}" for it in range(3)]
            answers = await asyncio.gather(*(served.post(opening(it), accept) for it in ids))
            assert [it.json["id"] for it in answers] == ids
            for answer in answers:
                assert (answer.status, answer.error["code"]) == (504, -32012)
                assert answer.error["data"] == {"outcome": "unknown", "retryable": False}
        del upstream.scripts["initialize"]
        assert await initialize(served)
        assert upstream.count("notifications/cancelled") == 0


async def test_a_session_whose_initialize_hangs_after_its_head_is_ended(upstream: ScriptedUpstream) -> None:
    let_go = asyncio.Event()

    async def hang(received: Received) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Mcp-Session-Id": "half-open"})
        await response.prepare(received.http)
        await let_go.wait()
        return response

    async with scripted_mode(upstream, REQUEST_TIMEOUT_SECONDS="0.5", HEARTBEAT_SECONDS="0.1") as served:
        upstream.on("initialize", hang)
        answer = await served.post(opening("half"), SSE)
        assert (answer.status, answer.headers["Mcp-Session-Id"]) == (200, "half-open")
        assert b": still here" in answer.body
        assert b"-32012" in answer.body
        await until(lambda: [it["Mcp-Session-Id"] for it in upstream.deletes] == ["half-open"])
        assert upstream.deletes[0]["MCP-Protocol-Version"] == "2025-06-18"
        let_go.set()
        assert (await served.post(PING, {"Mcp-Session-Id": "half-open"})).status == 404


async def test_a_session_that_upstream_opens_too_late_is_ended(upstream: ScriptedUpstream) -> None:
    go_on = asyncio.Event()

    async def come_late(received: Received) -> web.StreamResponse:
        await go_on.wait()
        return await upstream.answer(received)

    async with scripted_mode(upstream, REQUEST_TIMEOUT_SECONDS="1") as served:
        upstream.on("initialize", come_late)
        assert (await served.post(opening(1), SSE)).status == 504
        go_on.set()
        await until(lambda: len(upstream.deletes) == 1)
        assert upstream.deletes[0]["Mcp-Session-Id"] == "session-2"
        assert upstream.deletes[0]["MCP-Protocol-Version"] == "2025-06-18"
        assert upstream.sessions == {"session-1"}


async def test_a_client_that_leaves_during_its_initialize_leaves_a_session_that_ends(
    upstream: ScriptedUpstream,
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        began.set()
        await go_on.wait()
        return await upstream.answer(received)

    async with scripted_mode(upstream, CLIENT_SESSION_IDLE_SECONDS="0.5") as served:
        upstream.on("initialize", wait)
        posting = asyncio.create_task(served.post(opening(1), SSE))
        await began.wait()
        posting.cancel()
        go_on.set()
        await until(lambda: bool(upstream.deletes))
        assert served.metric("client_sessions_open") == 0


@pytest.mark.parametrize("accept", [{}, SSE], ids=["json", "sse"])
async def test_a_call_without_a_reply_is_504_and_upstream_gets_its_id_in_a_cancellation(
    upstream: ScriptedUpstream, hanging: Hanging, accept: dict[str, str]
) -> None:
    async with scripted_mode(upstream, REQUEST_TIMEOUT_SECONDS="0.5") as served:
        headers = await initialize(served)
        upstream.on("tools/call", hanging)
        answer = await served.call("write", id="slow", headers={**headers, **accept})
        assert (answer.status, answer.error["code"], answer.json["id"]) == (504, -32012, "slow")
        assert answer.error["data"] == {"outcome": "unknown", "retryable": False}
        assert (await served.call("read", id=2, headers=headers)).error["data"]["retryable"]
        await until(lambda: upstream.count("notifications/cancelled") == 2)
        named = [it.message["params"]["requestId"] for it in upstream.of("notifications/cancelled")]
        assert named == ["slow", 2]
        sessions = {it.http.headers["Mcp-Session-Id"] for it in upstream.of("notifications/cancelled")}
        assert sessions == {headers["Mcp-Session-Id"]}


async def test_an_id_that_timed_out_can_be_used_again_at_once(upstream: ScriptedUpstream, hanging: Hanging) -> None:
    async with scripted_mode(upstream, REQUEST_TIMEOUT_SECONDS="0.5") as served:
        headers = await initialize(served)
        upstream.on("tools/call", hanging)
        assert (await served.call("write", id=1, headers=headers)).status == 504
        del upstream.scripts["tools/call"]
        for number in range(20):
            answer = await served.call("write", {"number": number}, id=1, headers=headers)
            assert (answer.json["id"], json.loads(answer.text)) == (1, {"number": number})


async def test_a_cancellation_is_answered_and_reaches_upstream_unchanged(
    upstream: ScriptedUpstream, hanging: Hanging
) -> None:
    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("tools/call", hanging)
        calling = asyncio.create_task(served.call("write", id=1.0, headers=headers))
        await until(lambda: hanging.came == 1)
        spelled = b'{"jsonrpc":"2.0", "method":"notifications/cancelled", "params":{"requestId":1.0, "reason":"no"}}'
        assert (await served.post(spelled, headers)).status == 202
        assert (await calling).error["code"] == -32017
        await until(lambda: upstream.count("notifications/cancelled") == 1)
        assert upstream.of("notifications/cancelled")[0].body == spelled
        # A cancellation of a request that is not in flight is accepted and not sent to upstream.
        assert (await served.post(spelled, headers)).status == 202
        assert upstream.count("notifications/cancelled") == 1


async def test_a_drain_ends_what_is_in_flight_in_json(upstream: ScriptedUpstream, hanging: Hanging) -> None:
    process = BridgeProcess(environment(upstream.url, SESSION_MODE="per-client", DRAIN_SECONDS="1"))
    async with process.serving() as served:
        await until(served.ready)
        headers = await initialize(served)
        listening_headers = await initialize(served)
        for method in ("tools/call", "notifications/x"):
            upstream.on(method, hanging)
        upstream.on("GET", stream_of_nothing)
        notifying = asyncio.create_task(served.post({"jsonrpc": "2.0", "method": "notifications/x"}, headers))
        calling = asyncio.create_task(served.call("write", id="long", headers=headers))
        sent = served.request_headers({**listening_headers, **STREAM})
        async with served.http.get(served.url, headers=sent) as stream:
            assert stream.status == 200
            upstream.on("GET", hanging)
            opening_stream = asyncio.create_task(
                served.ask("GET", "/mcp", b"", served.request_headers({**headers, **STREAM}))
            )
            await until(lambda: hanging.came >= 3)
            process.terminate()
            assert b"error" not in await stream.read()
        unopened = await opening_stream
        assert (unopened.status, unopened.error["code"]) == (503, -32013)
        answer = await calling
        assert (answer.status, answer.error["code"], answer.json["id"]) == (504, -32012, "long")
        assert answer.error["data"]["outcome"] == "unknown"
        notified = await notifying
        assert (notified.status, notified.error["code"]) == (504, -32012)
        status, log = await process.ended(20)
    assert status == 0
    assert "Traceback" not in log
    assert {it["Mcp-Session-Id"] for it in upstream.deletes} == {f"session-{number}" for number in (1, 2, 3)}


async def stream_of_nothing(received: Received) -> web.StreamResponse:
    """Opens an event stream without events."""
    response = await received.events()
    await until(lambda: received.http.transport is None or received.http.transport.is_closing(), 60)
    return response


@pytest.mark.parametrize("session_id", ["x" * 257, "x" * 4096, "with space ", "caf\u00e9", ""])
async def test_a_session_id_that_was_not_issued_answers_404_in_per_client_mode(
    upstream: ScriptedUpstream, session_id: str
) -> None:
    async with scripted_mode(upstream) as served:
        before = len(upstream.received)
        headers = {"Mcp-Session-Id": session_id}
        for body in (call_body("write"), [call_body("write")], {"jsonrpc": "2.0", "method": "notifications/x"}):
            answer = await served.post(body, headers)
            assert (answer.status, answer.error["code"]) == (404, -32600)
        for method in ("GET", "DELETE"):
            answer = await served.ask(method, "/mcp", b"", served.request_headers({**headers, **STREAM}))
            assert (answer.status, answer.error["code"]) == (404, -32600)
        assert not [it for it in upstream.received[before:] if it.method != "ping"]


async def test_a_long_session_id_of_upstream_works(upstream: ScriptedUpstream) -> None:
    token = "eyJ" + "x" * 1000

    async def open_with_token(received: Received) -> web.StreamResponse:
        response = await upstream.answer(received)
        response.headers["Mcp-Session-Id"] = token
        upstream.sessions.add(token)
        return response

    async with scripted_mode(upstream) as served:
        upstream.on("initialize", open_with_token)
        headers = await initialize(served)
        assert headers["Mcp-Session-Id"] == token
        assert (await served.call("write", {"a": 1}, headers=headers)).text == '{"a": 1}'
        assert (await delete(served, headers)).status == 204
        assert [it["Mcp-Session-Id"] for it in upstream.deletes] == [token]


@pytest.mark.parametrize("status", [401, 403])
async def test_401_and_403_of_upstream_answer_502_without_a_challenge(upstream: ScriptedUpstream, status: int) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        headers = {"WWW-Authenticate": 'Bearer resource_metadata="https://example.com"'}
        error = {"jsonrpc": "2.0", "id": None, "error": {"code": -32001, "message": "Unauthorized"}}
        return web.json_response(error, status=status, headers=headers)

    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        for method in ("initialize", "tools/call", "notifications/x"):
            upstream.on(method, refuse)
        notification = {"jsonrpc": "2.0", "method": "notifications/x"}
        answers = [
            await served.post(opening(5), SSE),
            await served.call("write", id=5, headers=headers),
            await served.post(notification, headers),
        ]
        for answer in answers:
            assert (answer.status, answer.error["code"]) == (502, -32011)
            assert "WWW-Authenticate" not in answer.headers
        assert [it.json["id"] for it in answers] == [5, 5, None]
        assert all(it.error["data"] == {"outcome": "not_sent", "retryable": True} for it in answers[:2])
        upstream.on("GET", refuse)
        assert (await served.ask("GET", "/mcp", b"", served.request_headers({**headers, **STREAM}))).status == 502


async def test_a_batch_gets_all_responses_from_an_upstream_without_batches(upstream: ScriptedUpstream) -> None:
    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        batch = [call_body("write", {"n": 0}, id=0), {"jsonrpc": "2.0", "method": "notifications/x"}]
        batch += [{"jsonrpc": "2.0", "id": "bad"}, opening("again"), call_body("read", {"n": 1}, id="b")]
        for accept in ({}, SSE):
            answer = await served.post(batch, {**headers, **accept})
            told = {it["id"]: it for it in answer.json}
            assert json.loads(told[0]["result"]["content"][0]["text"]) == {"n": 0}
            assert json.loads(told["b"]["result"]["content"][0]["text"]) == {"n": 1}
            assert told["bad"]["error"]["code"] == told["again"]["error"]["code"] == -32600
            assert len(answer.json) == 4
        assert upstream.count("notifications/x") == 2
        assert (await served.post([{"jsonrpc": "2.0", "method": "notifications/x"}], headers)).status == 202


async def test_a_batch_on_a_real_server_gets_all_its_answers(own: Bridge) -> None:
    headers = await initialize(own)
    batch = [call_body("echo", {"message": str(number)}, id=number) for number in range(5)]
    for accept in ({}, SSE):
        body = (await own.post(batch, {**headers, **accept})).body
        answers = json.loads(body if not accept or body.startswith(b"[") else body.partition(b"data: ")[2])
        assert [it["id"] for it in answers] == list(range(5))
        assert [it["result"]["content"][0]["text"] for it in answers] == [f"Echo: {number}" for number in range(5)]


async def test_every_message_and_the_delete_carry_the_version_that_was_negotiated(upstream: ScriptedUpstream) -> None:
    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        session = {"Mcp-Session-Id": headers["Mcp-Session-Id"]}
        await served.call("write", headers=session)
        await served.call("write", headers={**session, "MCP-Protocol-Version": "2025-03-26"})
        assert [it.http.headers["MCP-Protocol-Version"] for it in upstream.of("tools/call")] == ["2025-06-18"] * 2
        assert (await delete(served, session)).status == 204
        (ended,) = upstream.deletes
        assert ended["Mcp-Session-Id"] == session["Mcp-Session-Id"]
        assert ended["MCP-Protocol-Version"] == "2025-06-18"


async def test_messages_are_untouched_in_both_directions(upstream: ScriptedUpstream) -> None:
    answer = b'{ "jsonrpc":"2.0","result":{"n":1.0,"\\u0061":"\\/"} ,"id":1.50 }'

    async def answer_so(received: Received) -> web.StreamResponse:
        return web.Response(body=answer, content_type="application/json")

    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("tools/call", answer_so)
        params = b'{"name":"write","arguments":{"x":1e2},"_meta":{"progressToken":7.0}}'
        body = b'{"params" : %s, "method":"tools/call","id":1.50,"jsonrpc":"2.0"}' % params
        assert (await served.post(body, headers)).body == answer
        assert upstream.of("tools/call")[0].body == body


async def test_two_calls_with_one_id_each_get_their_own_response(upstream: ScriptedUpstream) -> None:
    both = asyncio.Event()

    async def wait_for_both(received: Received) -> web.StreamResponse:
        if upstream.count("tools/call") == 2:
            both.set()
        await both.wait()
        return await upstream.answer(received)

    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("tools/call", wait_for_both)
        calls = [served.call("write", {"n": number}, id=1, headers=headers) for number in range(2)]
        for number, answer in enumerate(await asyncio.gather(*calls)):
            assert (answer.json["id"], json.loads(answer.text)) == (1, {"n": number})


async def test_a_silent_call_gets_heartbeats(upstream: ScriptedUpstream, hanging: Hanging) -> None:
    async with scripted_mode(upstream, HEARTBEAT_SECONDS="0.1") as served:
        headers = await initialize(served)
        upstream.on("tools/call", hanging)
        sent = served.request_headers({**headers, **SSE})
        async with served.http.post(served.url, json=call_body("write"), headers=sent) as response:
            await response.content.readuntil(b": still here\n\n")
            await response.content.readuntil(b": still here\n\n")


async def test_the_in_flight_limit_counts_requests_but_not_responses_of_clients(
    upstream: ScriptedUpstream, hanging: Hanging
) -> None:
    async with scripted_mode(upstream, MAX_IN_FLIGHT="2") as served:
        headers = await initialize(served)
        upstream.on("tools/call", hanging)
        calls = [asyncio.create_task(served.call("write", id=it, headers=headers)) for it in range(2)]
        await until(lambda: hanging.came == 2)
        assert served.metric("requests_in_flight") == 2
        for refused in (
            await served.call("write", id=9, headers=headers),
            await served.post([call_body("write", id=9)], headers),
            await served.post(opening(9), SSE),
        ):
            assert (refused.status, refused.error["code"]) == (503, -32013)
        assert (await served.call("write")).status == 503
        assert (await served.post([call_body("write", id=it) for it in range(3)], headers)).status == 400
        response = {"jsonrpc": "2.0", "id": 5, "result": {}}
        assert (await served.post(response, headers)).status == 202
        assert [it.body for it in upstream.received if b'"result"' in it.body] == [json.dumps(response).encode()]
        hanging.let_go()
        await asyncio.gather(*calls)


async def test_a_window_of_one_slot_is_shared_by_all_sessions(upstream: ScriptedUpstream) -> None:
    overlapping = most = 0

    async def count(received: Received) -> web.StreamResponse:
        nonlocal overlapping, most
        overlapping += 1
        most = max(most, overlapping)
        await asyncio.sleep(0)
        overlapping -= 1
        return await upstream.answer(received)

    async with scripted_mode(upstream, UPSTREAM_CONCURRENCY="1") as served:
        sessions = [await initialize(served) for _ in range(3)]
        upstream.on("tools/call", count)
        answers = await asyncio.gather(*(served.call("write", headers=sessions[n % 3]) for n in range(30)))
        assert {it.status for it in answers} == {200}
    assert most == 1


async def test_notifications_take_slots_of_the_common_window(upstream: ScriptedUpstream, hanging: Hanging) -> None:
    note = {"jsonrpc": "2.0", "method": "notifications/of-our-own"}
    async with scripted_mode(upstream, UPSTREAM_CONCURRENCY="1", MAX_IN_FLIGHT="8") as served:
        sessions = [await initialize(served) for _ in range(2)]
        upstream.on(note["method"], hanging)
        posts = [asyncio.create_task(served.post(note, sessions[number % 2])) for number in range(20)]
        await until(lambda: sum(post.done() for post in posts) == 12)
        assert served.metric("requests_in_flight") == 8
        assert served.metric("upstream_requests_in_flight") == hanging.came == 1
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
        assert (await served.post(cancelled, sessions[0])).status == 202
        upstream.scripts.pop(note["method"])
        hanging.let_go()
        statuses = sorted([(await post).status for post in posts])
    # The script answers the notification that upstream got first; 404 on a session means that it is lost.
    assert statuses.count(503) == 12


@pytest.mark.parametrize("streamed", [False, True])
async def test_an_answer_over_the_limit_is_502(upstream: ScriptedUpstream, streamed: bool) -> None:
    async def answer_much(received: Received) -> web.StreamResponse:
        result = {"jsonrpc": "2.0", "id": received.message["id"], "result": {"x": "x" * 20_000}}
        return await received.events(result) if streamed else web.json_response(result)

    async with scripted_mode(upstream, MAX_ANSWER_BYTES="10000") as served:
        headers = await initialize(served)
        upstream.on("tools/call", answer_much)
        answer = await served.call("write", id="much", headers=headers)
        assert (answer.status, answer.error["code"], answer.json["id"]) == (502, -32011, "much")


async def test_a_slow_reader_delays_no_other_client(upstream: ScriptedUpstream) -> None:
    async def answer_much(received: Received) -> web.StreamResponse:
        return received.result({"x": "x" * 20_000_000})

    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("tools/call", answer_much)
        sent = served.request_headers(headers)
        async with served.http.post(served.url, json=call_body("write"), headers=sent) as slow:
            del upstream.scripts["tools/call"]
            assert (await served.call("write", {"n": 1}, id=2, headers=headers)).text == '{"n": 1}'
            assert len((await slow.json())["result"]["x"]) == 20_000_000


async def test_a_session_that_upstream_has_ended_is_404_from_then_on(upstream: ScriptedUpstream) -> None:
    async with scripted_mode(upstream) as served:
        headers, kept = await initialize(served), await initialize(served)
        upstream.sessions.discard(headers["Mcp-Session-Id"])
        lost = await served.call("write", id="lost", headers=headers)
        assert (lost.status, lost.error["code"], lost.json["id"]) == (404, -32600, "lost")
        assert lost.error["data"]["outcome"] == "not_sent"
        seen = len(upstream.of("tools/call"))
        assert (await served.call("write", headers=headers)).status == 404
        assert len(upstream.of("tools/call")) == seen
        assert (await served.call("write", headers=kept)).status == 200
        assert served.metric("client_sessions_open") == 1
        upstream.sessions.discard(kept["Mcp-Session-Id"])
        assert (await served.post({"jsonrpc": "2.0", "method": "notifications/x"}, kept)).status == 404
        assert served.metric("client_sessions_open") == 0
        # The shared session is another one.
        assert await served.ready()
        assert (await served.call("write")).status == 200


async def test_a_read_that_was_cut_is_sent_again_and_a_write_is_not(upstream: ScriptedUpstream) -> None:
    async def cut_once(received: Received) -> web.StreamResponse:
        del upstream.scripts["tools/call"]
        return received.cut()

    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("tools/call", cut_once)
        assert (await served.call("read", {"n": 1}, headers=headers)).text == '{"n": 1}'
        upstream.on("tools/call", cut_once)
        cut = await served.call("write", id="w", headers=headers)
        assert (cut.status, cut.json["id"]) == (502, "w")
        assert cut.error["data"] == {"outcome": "unknown", "retryable": False}
        assert upstream.count("tools/call") == 3


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_an_upstream_without_streams_is_405_and_ends_no_session(upstream: ScriptedUpstream, status: int) -> None:
    async with scripted_mode(upstream) as served:
        headers = await initialize(served)
        upstream.on("GET", answering(status, "text/html", "Cannot GET /mcp"))
        sent = served.request_headers({**headers, **STREAM})
        for _ in range(2):
            refused = await served.ask("GET", "/mcp", b"", sent)
            assert (refused.status, refused.error["code"]) == (405, -32600)
            assert (await served.post(PING, headers)).status == 200
        upstream.sessions.discard(headers["Mcp-Session-Id"])
        lost = await served.ask("GET", "/mcp", b"", sent)
        assert lost.status == (404 if status == 404 else 405)


async def test_an_upstream_that_does_not_open_the_stream_is_504(upstream: ScriptedUpstream, hanging: Hanging) -> None:
    async with scripted_mode(upstream, REQUEST_TIMEOUT_SECONDS="0.5") as served:
        headers = await initialize(served)
        upstream.on("GET", hanging)
        answer = await served.ask("GET", "/mcp", b"", served.request_headers({**headers, **STREAM}))
        assert (answer.status, answer.error["code"]) == (504, -32012)
        assert served.metric("streams_open") == 0


async def test_a_session_is_not_idle_while_its_stream_is_open(upstream: ScriptedUpstream) -> None:
    async with scripted_mode(upstream, CLIENT_SESSION_IDLE_SECONDS="1", HEARTBEAT_SECONDS="0.2") as served:
        upstream.on("GET", stream_of_nothing)
        listener, clock = await initialize(served), await initialize(served)
        sent = served.request_headers({**listener, **STREAM})
        async with served.http.get(served.url, headers=sent) as stream:
            assert stream.status == 200
            # By now, another session of the same age has been idle for too long.
            await until(lambda: clock["Mcp-Session-Id"] not in upstream.sessions)
            assert (await served.post(PING, listener)).status == 200
        await until(lambda: listener["Mcp-Session-Id"] not in upstream.sessions)
        assert (await served.post(PING, listener)).status == 404


async def test_the_stream_of_a_client_that_leaves_ends_at_once(upstream: ScriptedUpstream) -> None:
    async with scripted_mode(upstream, HEARTBEAT_SECONDS="3600") as served:
        upstream.on("GET", stream_of_nothing)
        sent = served.request_headers({**await initialize(served), **STREAM})
        for _ in range(2):
            async with served.http.get(served.url, headers=sent) as stream:
                assert stream.status == 200
                await until(lambda: served.metric("streams_open") == 1)
            await until(lambda: served.metric("streams_open") == 0)


async def test_a_server_request_to_a_client_that_accepts_json_comes_on_its_stream(upstream: ScriptedUpstream) -> None:
    question = {"jsonrpc": "2.0", "id": 1, "method": "elicitation/create", "params": {}}
    answered = asyncio.Event()

    async def ask(received: Received) -> web.StreamResponse:
        response = await received.events(question)
        await answered.wait()
        result = {"jsonrpc": "2.0", "id": received.message["id"], "result": {}}
        await response.write(f"data: {json.dumps(result)}\n\n".encode())
        return response

    async with scripted_mode(upstream) as served:
        upstream.on("GET", stream_of_nothing)
        headers = await initialize(served)
        upstream.on("tools/call", ask)
        calling = asyncio.create_task(served.call("write", id=1, headers=headers))
        await until(lambda: upstream.count("tools/call") == 1)
        sent = served.request_headers({**headers, **STREAM})
        async with asyncio.timeout(10), served.http.get(served.url, headers=sent) as stream:
            line = await stream.content.readuntil(b"}\n")
            assert json.loads(line.partition(b"data: ")[2]) == question
            response = {"jsonrpc": "2.0", "id": 1, "result": {"action": "decline"}}
            assert (await served.post(response, headers)).status == 202
            answered.set()
            assert (await calling).json == {"jsonrpc": "2.0", "id": 1, "result": {}}


async def test_a_clients_own_stream_is_resumed_behind_its_last_event(upstream: ScriptedUpstream) -> None:
    told: list[str | None] = []

    async def tell(received: Received) -> web.StreamResponse:
        told.append(received.http.headers.get("Last-Event-ID"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(received.http)
        note = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": len(told)}}
        await response.write(f"id: {len(told)}\ndata: {json.dumps(note)}\n\n".encode())
        return response

    async with scripted_mode(upstream, CHECK_INTERVAL_SECONDS="60") as served:
        headers = await initialize(served)
        upstream.on("GET", tell)
        told.clear()
        sent = served.request_headers({**headers, **STREAM})
        for number in (1, 2):
            async with asyncio.timeout(10), served.http.get(served.url, headers=sent) as stream:
                assert f'"data": {number}' in (await stream.text())
    assert told == [None, "1"]


async def test_a_second_stream_replaces_the_first(upstream: ScriptedUpstream) -> None:
    opened: list[str] = []

    async def stream(received: Received) -> web.StreamResponse:
        opened.append(received.http.headers["Mcp-Session-Id"])
        return await stream_of_nothing(received)

    async with scripted_mode(upstream) as served:
        upstream.on("GET", stream)
        headers = await initialize(served)
        sent = served.request_headers({**headers, **STREAM})
        async with (
            served.http.get(served.url, headers=sent) as first,
            served.http.get(served.url, headers=sent) as second,
        ):
            assert (first.status, second.status) == (200, 200)
            assert b"error" not in await first.read()
        assert opened.count(headers["Mcp-Session-Id"]) == 1


async def test_an_initialize_that_upstream_refuses_leaves_no_session(upstream: ScriptedUpstream) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        error = {"jsonrpc": "2.0", "id": received.message["id"], "error": {"code": -32602, "message": "no"}}
        return web.json_response(error, headers={"Mcp-Session-Id": "refused"})

    async with scripted_mode(upstream) as served:
        upstream.on("initialize", refuse)
        assert (await served.post(opening(1), SSE)).error["code"] == -32602
        await until(lambda: [it["Mcp-Session-Id"] for it in upstream.deletes] == ["refused"])
        assert served.metric("client_sessions_open") == 0


async def test_upstream_that_cannot_be_reached_is_503_and_not_sent(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, SESSION_MODE="per-client") as served:
        headers = await initialize(served)
        await asyncio.to_thread(everything_gateway.kill)
        for body, sent in ((opening("o"), SSE), (call_body("echo", id="c"), headers)):
            answer = await served.post(body, sent)
            assert (answer.status, answer.error["code"], answer.json["id"]) == (503, -32010, body["id"])
            assert answer.error["data"] == {"outcome": "not_sent", "retryable": True}
        assert not await served.ready()
        await asyncio.to_thread(everything_gateway.start)
        assert (await served.post(call_body("echo", id="c"), headers)).status == 404
        assert await initialize(served)
