"""The streams of notifications that legacy clients GET: many clients on one session, each hears what concerns it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness import Bridge, ScriptedUpstream, bridge, until
from vestige_bridge import hub


class Ear:
    """A client that listens."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.headers = {"Mcp-Session-Id": session_id}
        self.heard: list[Any] = []
        self.ended = asyncio.Event()
        self.opened = asyncio.Event()

    async def hear(self, served: Bridge) -> None:
        """Keeps every message of the stream."""
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
async def listening(served: Bridge, session_id: str) -> AsyncIterator[Ear]:
    """A client whose stream is open."""
    ear = Ear(session_id)
    task = asyncio.create_task(ear.hear(served))
    try:
        async with asyncio.timeout(10):
            await ear.opened.wait()
        yield ear
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ask(served: Bridge, ear: Ear, method: str, **params: object) -> Any:
    """Sends a request in the ear's session; returns the result."""
    answer = await served.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, ear.headers)
    return answer.json["result"]


async def test_a_subscription_stays_until_its_last_client_is_gone(scripted: Bridge, upstream: ScriptedUpstream) -> None:
    async with listening(scripted, "a") as ann, listening(scripted, "b") as bob:
        for ear in (ann, bob):
            await ask(scripted, ear, "resources/subscribe", uri="memory://x")
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
        await ask(scripted, ann, "logging/setLevel", level="debug")
        await ask(scripted, bob, "logging/setLevel", level="error")
    levels = [json.loads(received.body)["params"]["level"] for received in upstream.of("logging/setLevel")]
    assert levels == ["debug", "debug"]


async def test_a_plain_poster_takes_from_nobody_what_they_want_to_hear(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    poster = Ear("")
    poster.headers = {}
    await until(scripted.ready)
    async with listening(scripted, "a") as ann:
        await ask(scripted, ann, "resources/subscribe", uri="memory://x")
        await ask(scripted, ann, "logging/setLevel", level="debug")
        assert await ask(scripted, poster, "resources/unsubscribe", uri="memory://x") == {}
        assert await ask(scripted, poster, "logging/setLevel", level="emergency") == {}
    assert upstream.count("resources/unsubscribe") == 0
    levels = [json.loads(received.body)["params"]["level"] for received in upstream.of("logging/setLevel")]
    assert levels == ["debug", "debug"]


async def test_more_resources_than_can_be_watched_are_refused(
    scripted: Bridge, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_URIS", 2)
    async with listening(scripted, "a") as ann:
        for uri in ("memory://1", "memory://2", "memory://2"):
            assert await ask(scripted, ann, "resources/subscribe", uri=uri) == {}
        for uri in ("memory://3", "memory://" + "x" * hub.MAX_URI_CHARACTERS):
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
    async with bridge(upstream.url) as served, listening(served, "a") as ear:
        assert served.drain is not None
        await served.drain()
        async with asyncio.timeout(5):
            await ear.ended.wait()
        headers = served.request_headers({**ear.headers, "Accept": "text/event-stream"})
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
