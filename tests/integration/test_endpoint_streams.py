"""Streams that legacy clients GET: many clients on one session, each gets its own notifications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import Bridge, Received, ScriptedUpstream, bridge, until
from vestige_bridge.session import listeners


class Client:
    """A client that reads its stream."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.headers = {"Mcp-Session-Id": session_id}
        self.heard: list[Any] = []
        self.ended = asyncio.Event()
        self.opened = asyncio.Event()

    async def listen(self, served: Bridge) -> None:
        """Collects every message of the stream."""
        headers = served.request_headers({**self.headers, "Accept": "text/event-stream"})
        async with served.http.get(served.url, headers=headers) as response:
            assert response.status == 200, await response.read()
            assert response.content_type == "text/event-stream"
            assert response.headers["Cache-Control"] == "no-cache"
            async for line in response.content:
                self.opened.set()
                if line.startswith(b"data:"):
                    self.heard.append(json.loads(line[5:]))
        self.ended.set()


@asynccontextmanager
async def listening(served: Bridge, session_id: str) -> AsyncIterator[Client]:
    """Yields a client whose stream is open."""
    client = Client(session_id)
    task = asyncio.create_task(client.listen(served))
    try:
        async with asyncio.timeout(10):
            await client.opened.wait()
        yield client
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(served: Bridge, client: Client, method: str, **params: object) -> Any:
    """Sends a request in the session of the client; returns the result."""
    answer = await served.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, client.headers)
    return answer.json["result"]


async def test_a_subscription_stays_until_its_last_client_is_gone(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async with listening(scripted, "a") as ann, listening(scripted, "b") as bob:
        for client in (ann, bob):
            await ask(scripted, client, "resources/subscribe", uri="memory://x")
        assert await ask(scripted, ann, "resources/unsubscribe", uri="memory://x") == {}
        assert upstream.count("resources/unsubscribe") == 0
        await scripted.ask("DELETE", "/mcp", b"", scripted.request_headers(bob.headers))
        await until(lambda: upstream.count("resources/unsubscribe") == 1)
        async with asyncio.timeout(5):
            await bob.ended.wait()


async def test_upstream_is_asked_for_the_least_severe_level_of_all(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    async with listening(scripted, "a") as ann, listening(scripted, "b") as bob:
        await ask(scripted, bob, "logging/setLevel", level="error")
        await ask(scripted, ann, "logging/setLevel", level="debug")
        assert levels(upstream) == ["error", "debug"]


def levels(upstream: ScriptedUpstream) -> list[str]:
    """Returns the levels that were requested from upstream."""
    return [json.loads(received.body)["params"]["level"] for received in upstream.of("logging/setLevel")]


async def test_the_level_rises_again_when_its_last_client_leaves(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url) as served:
        async with listening(served, "b") as bob:
            await ask(served, bob, "logging/setLevel", level="error")
            async with listening(served, "a") as ann:
                await ask(served, ann, "logging/setLevel", level="debug")
                assert levels(upstream) == ["error", "debug"]
            await until(lambda: levels(upstream) == ["error", "debug", "error"])
            async with listening(served, "a"):
                await until(lambda: levels(upstream)[3:] == ["debug"])
                await served.ask("DELETE", "/mcp", b"", served.request_headers(ann.headers))
                await until(lambda: levels(upstream)[4:] == ["error"])
        await until(lambda: levels(upstream)[5:] == ["emergency"])


async def test_fast_changes_of_subscriptions_leave_upstream_in_the_requested_state(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    last = "memory://29"
    async with listening(scripted, "a") as ann, listening(scripted, "b") as bob:
        for number in range(30):
            await ask(scripted, ann, "resources/subscribe", uri=f"memory://{number}")
        unsubscribing = [ask(scripted, ann, "resources/unsubscribe", uri=f"memory://{number}") for number in range(30)]
        subscribing = ask(scripted, bob, "resources/subscribe", uri=last)
        assert await asyncio.gather(*unsubscribing, subscribing) == [{}] * 31
        await until(lambda: upstream.count("resources/unsubscribe") >= 29)
        about_last = [it.method for it in upstream.received if it.message.get("params", {}).get("uri") == last]
        assert about_last[-1] == "resources/subscribe"


async def test_a_resource_that_upstream_refuses_is_refused_and_not_asked_for_again(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        if received.message["params"]["uri"] == "memory://good":
            return received.result({})
        error = {"code": -32002, "message": "Resource not found"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    upstream.on("resources/subscribe", refuse)
    async with listening(scripted, "a") as ann:
        assert await ask(scripted, ann, "resources/subscribe", uri="memory://good") == {}
        body = {"jsonrpc": "2.0", "id": "x", "method": "resources/subscribe", "params": {"uri": "memory://bad"}}
        answer = await scripted.post(body, ann.headers)
        assert (answer.status, answer.json["id"]) == (200, "x")
        assert answer.error == {"code": -32002, "message": "Resource not found"}
        upstream.sessions.clear()
        assert (await scripted.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status == 200
        await until(lambda: upstream.count("resources/subscribe") == 3)
    asked = [received.message["params"]["uri"] for received in upstream.of("resources/subscribe")]
    assert asked == ["memory://good", "memory://bad", "memory://good"]


async def test_subscriptions_and_the_level_are_restored_on_a_renewed_session(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    async with listening(scripted, "a") as ann:
        await ask(scripted, ann, "resources/subscribe", uri="memory://x")
        await ask(scripted, ann, "logging/setLevel", level="notice")
        upstream.sessions.clear()
        assert await ask(scripted, ann, "resources/subscribe", uri="memory://y") == {}
        await until(lambda: levels(upstream) == ["notice", "notice"])
    asked = [received.message["params"]["uri"] for received in upstream.of("resources/subscribe")]
    assert asked[0] == "memory://x"
    assert sorted(asked[-2:]) == ["memory://x", "memory://y"]
    assert upstream.sessions_opened == 2


async def test_subscriptions_in_a_batch_are_answered_member_by_member(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    wishes = [("logging/setLevel", {"level": "loud"}), ("resources/subscribe", {"uri": 1}), ("resources/subscribe", {})]
    wishes += [("resources/subscribe", {"uri": "memory://x"}), ("resources/unsubscribe", {"uri": "memory://x"})]
    batch = [
        {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
        for number, (method, params) in enumerate(wishes)
    ]
    answer = await scripted.post(batch, {"Mcp-Session-Id": "a"})
    assert [(it["id"], it["result"]) for it in answer.json] == [(number, {}) for number in range(5)]
    # The bridge forwards requests with invalid params: upstream decides whether to reject them.
    assert levels(upstream) == ["loud"]


async def test_a_subscription_that_upstream_does_not_answer_is_504_and_can_be_cancelled(
    upstream: ScriptedUpstream,
) -> None:
    released = asyncio.Event()

    async def hang(received: Received) -> web.StreamResponse:
        await released.wait()
        return received.result({})

    upstream.on("resources/subscribe", hang)
    async with bridge(upstream.url, REQUEST_TIMEOUT_SECONDS="0.5") as served, listening(served, "a") as ann:
        body = {"jsonrpc": "2.0", "id": 7, "method": "resources/subscribe", "params": {"uri": "memory://x"}}
        answer = await served.post(body, ann.headers)
        assert (answer.status, answer.error["code"], answer.json["id"]) == (504, -32012, 7)
        released.set()
        assert (await served.post(body, ann.headers)).json["result"] == {}


async def test_an_update_of_a_part_of_a_subscribed_resource_reaches_the_client(features: Bridge) -> None:
    async with listening(features, "a") as ann:
        await ask(features, ann, "resources/subscribe", uri="test://watched/dir")
        await features.call("touch_part", {"uri": "test://watched/dir", "part": "/note.txt"})
        await until(lambda: [it["params"]["uri"] for it in ann.heard] == ["test://watched/dir/note.txt"])


async def test_list_changed_notifications_caused_by_200_lists_are_merged(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    async def change(received: Received) -> web.StreamResponse:
        changed = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}
        return await received.events(changed, {"jsonrpc": "2.0", "id": received.message["id"], "result": {"tools": []}})

    upstream.on("tools/list", change)
    async with listening(scripted, "a") as ann:
        for _ in range(200):
            await ask(scripted, ann, "tools/list")
        heard = len(ann.heard)
        await until(lambda: len(ann.heard) > heard)
    # A few lists take a few seconds on a busy machine; there must not be one notification for each list.
    assert heard < 100


async def test_one_principal_cannot_use_up_the_subscriptions_of_all(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 20)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_ALL", 30)
    tokens = tmp_path / "tokens"
    tokens.write_text("ann ann-has-a-long-token\nbob bob-has-a-long-token\n")
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(tokens)) as served:
        for session in range(50):
            served.token = "ann-has-a-long-token"
            invented = Client(f"invented-{session}")
            for number in range(4):
                assert await ask(served, invented, "resources/subscribe", uri=f"memory://{session}/{number}") == {}
        served.token = "bob-has-a-long-token"
        for number in range(15):
            assert await ask(served, Client("bob"), "resources/subscribe", uri=f"memory://bob/{number}") == {}


async def test_a_sessionless_client_does_not_change_subscriptions_or_log_levels_of_others(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    poster = Client("")
    poster.headers = {}
    await until(scripted.ready)
    async with listening(scripted, "a") as ann:
        await ask(scripted, ann, "resources/subscribe", uri="memory://x")
        await ask(scripted, ann, "logging/setLevel", level="debug")
        assert await ask(scripted, poster, "resources/unsubscribe", uri="memory://x") == {}
        assert await ask(scripted, poster, "logging/setLevel", level="emergency") == {}
        assert upstream.count("resources/unsubscribe") == 0
        assert levels(upstream) == ["debug"]


async def test_more_resources_than_can_be_watched_are_refused(
    scripted: Bridge, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS", 2)
    async with listening(scripted, "a") as ann:
        for uri in ("memory://1", "memory://2", "memory://2"):
            assert await ask(scripted, ann, "resources/subscribe", uri=uri) == {}
        for uri in ("memory://3", "memory://" + "x" * listeners.MAX_URI_CHARACTERS):
            body = {"jsonrpc": "2.0", "id": 7, "method": "resources/subscribe", "params": {"uri": uri}}
            answer = await scripted.post(body, ann.headers)
            assert (answer.status, answer.error["code"], answer.json["id"]) == (400, -32602, 7)
    asked = {json.loads(received.body)["params"]["uri"] for received in upstream.of("resources/subscribe")}
    assert asked == {"memory://1", "memory://2"}


async def test_a_second_stream_of_a_session_ends_the_first(scripted: Bridge) -> None:
    async with listening(scripted, "a") as first, listening(scripted, "a") as second:
        async with asyncio.timeout(5):
            await first.ended.wait()
        assert not second.ended.is_set()


async def test_streams_end_when_the_bridge_drains(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url) as served, listening(served, "a") as client:
        assert served.drain is not None
        await served.drain()
        async with asyncio.timeout(5):
            await client.ended.wait()
        headers = served.request_headers({**client.headers, "Accept": "text/event-stream"})
        assert (await served.ask("GET", "/mcp", b"", headers)).status == 503


async def test_a_silent_stream_has_heartbeats(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, HEARTBEAT_SECONDS="0.05") as served:
        headers = served.request_headers({"Mcp-Session-Id": "a", "Accept": "text/event-stream"})
        async with asyncio.timeout(5), served.http.get(served.url, headers=headers) as response:
            lines = [await response.content.readline() for _ in range(6)]
    assert [line for line in lines if line.strip()] == [b": still here\n"] * 3


async def test_a_stream_needs_a_session(scripted: Bridge) -> None:
    answer = await scripted.ask("GET", "/mcp", b"", scripted.request_headers({"Accept": "text/event-stream"}))
    assert (answer.status, answer.error["code"]) == (400, -32600)
    assert "initialize" in answer.error["message"]


async def test_an_ended_session_has_no_stream(scripted: Bridge) -> None:
    headers = scripted.request_headers({"Mcp-Session-Id": "a", "Accept": "text/event-stream"})
    assert (await scripted.ask("DELETE", "/mcp", b"", headers)).status == 204
    assert (await scripted.ask("GET", "/mcp", b"", headers)).status == 404


async def test_the_stream_of_a_client_that_leaves_ends_at_once(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, HEARTBEAT_SECONDS="3600") as served:
        async with listening(served, "a"):
            await until(lambda: served.metric("streams_open") == 1)
        await until(lambda: served.metric("streams_open") == 0)
