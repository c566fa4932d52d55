"""Admission: requests over the limit are rejected at once, and a slot is free when upstream has finished."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from harness import Bridge, Received, ScriptedUpstream, bridge, until
from integration.test_endpoint_sessions import initialize
from vestige_bridge.session import attempts

NOTE = {"jsonrpc": "2.0", "method": "notifications/of-our-own"}


def cancellation(request_id: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}


class Hanging:
    """A script that receives messages and answers none until it is released."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.upstream = upstream
        self.released = asyncio.Event()
        self.held = self.most = 0

    async def __call__(self, received: Received) -> web.StreamResponse:
        self.held += 1
        self.most = max(self.most, self.held)
        try:
            await self.released.wait()
        finally:
            self.held -= 1
        return await self.upstream.answer(received)


async def test_a_stop_ends_a_notification_once_however_often_it_is_repeated(upstream: ScriptedUpstream) -> None:
    hanging = Hanging(upstream)
    upstream.on(NOTE["method"], hanging)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        post = asyncio.create_task(served.post(NOTE))
        await until(lambda: hanging.held == 1)
        assert served.metrics is not None
        while not post.done():
            # Also between the end of the time limit and that of the task.
            served.metrics._dispatcher._stop_in_flight()
            await asyncio.sleep(0)
        assert (await post).status == 504
        hanging.released.set()


async def test_notifications_count_as_in_flight_and_take_slots(upstream: ScriptedUpstream) -> None:
    hanging = Hanging(upstream)
    upstream.on(NOTE["method"], hanging)
    async with bridge(upstream.url, MAX_IN_FLIGHT="4", UPSTREAM_CONCURRENCY="1") as served:
        await until(served.ready)
        posts = [asyncio.create_task(served.post(NOTE)) for _ in range(50)]
        await until(lambda: sum(post.done() for post in posts) == 46)
        assert served.metric("requests_in_flight") == 4
        assert served.metric("upstream_requests_in_flight") == 1
        assert (await served.post(cancellation(1))).status == 202
        hanging.released.set()
        answers = [await post for post in posts]
    assert sorted(answer.status for answer in answers) == [202] * 4 + [503] * 46
    assert hanging.most == 1


async def test_a_notification_is_refused_while_the_bridge_drains(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url) as served:
        await until(served.ready)
        assert served.drain is not None
        await served.drain()
        answer = await served.post(NOTE)
        assert (answer.status, answer.error["data"]["outcome"]) == (503, "not_sent")
        assert (await served.post(cancellation(1))).status == 202
    assert upstream.count(str(NOTE["method"])) == 0


MODERN = {
    "MCP-Protocol-Version": "2026-07-28",
    "Mcp-Method": "tools/call",
    "Mcp-Name": "read",
}
MODERN_CALL = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/call",
    "params": {
        "name": "read",
        "arguments": {},
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    },
}
BATCH = [NOTE, {"jsonrpc": "2.0", "id": 1, "method": "ping"}]


@pytest.mark.parametrize(
    ("body", "headers", "fit"),
    [(initialize("2025-11-25"), {}, 2), (MODERN_CALL, MODERN, 2), (BATCH, {}, 1), (NOTE, {}, 2)],
    ids=["initialize", "modern", "batch", "notification"],
)
async def test_messages_that_wait_for_a_session_count_as_in_flight(
    upstream: ScriptedUpstream, body: Any, headers: dict[str, str], fit: int
) -> None:
    hanging = Hanging(upstream)
    upstream.on("initialize", hanging)
    async with bridge(upstream.url, MAX_IN_FLIGHT="2", CONNECT_TIMEOUT_SECONDS="30") as served:
        posts = [asyncio.create_task(served.post(body, headers)) for _ in range(20)]
        await until(lambda: sum(post.done() for post in posts) == 20 - fit)
        assert served.metric("requests_in_flight") == 2
        hanging.released.set()
        answers = [await post for post in posts]
        assert sorted(answer.status for answer in answers)[fit:] == [503] * (20 - fit)
        assert served.metric("requests_in_flight") == 0


async def test_a_timed_out_call_keeps_its_slot_at_most_for_another_timeout(
    upstream: ScriptedUpstream,
) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(
        upstream.url, UPSTREAM_CONCURRENCY="1", CHECK_INTERVAL_SECONDS="60", REQUEST_TIMEOUT_SECONDS="0.5"
    ) as served:
        await until(served.ready)
        assert (await served.call("write", id="a")).status == 504
        upstream.scripts.pop("tools/call")
        assert served.metric("upstream_requests_in_flight") == 1
        await until(lambda: served.metric("upstream_requests_in_flight") == 0)
        assert (await served.call("write", id="b")).status == 200
        await until(lambda: hanging.held == 0)


async def cancelled_call(served: Bridge, upstream: ScriptedUpstream, id: Any) -> None:
    call = asyncio.create_task(served.call("write", id=id))
    before = upstream.count("tools/call")
    await until(lambda: upstream.count("tools/call") > before)
    await served.post(cancellation(id))
    assert (await call).error["code"] == -32017


async def test_a_cancelled_call_keeps_its_slot_until_upstream_has_answered_it(upstream: ScriptedUpstream) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(upstream.url, UPSTREAM_CONCURRENCY="1", CHECK_INTERVAL_SECONDS="60") as served:
        await until(served.ready)
        await cancelled_call(served, upstream, "a")
        following = asyncio.create_task(served.call("write", id="b"))
        await until(lambda: served.metric("requests_in_flight") == 1)
        assert served.metric("upstream_requests_forgetting") == 1
        assert upstream.count("tools/call") == 1
        hanging.released.set()
        assert (await following).status == 200
        assert hanging.most == 1
        await until(lambda: served.metric("upstream_requests_in_flight") == 0)
        # A server may send no response to a cancelled call; the bridge could not tell when it ends.
        assert upstream.count("notifications/cancelled") == 0


async def test_a_cancelled_call_keeps_its_slot_until_upstream_has_forgotten_it(upstream: ScriptedUpstream) -> None:
    hanging, forgetting = Hanging(upstream), Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(upstream.url, UPSTREAM_CONCURRENCY="2", CHECK_INTERVAL_SECONDS="60") as served:
        await until(served.ready)
        upstream.on("notifications/cancelled", forgetting)
        for request_id in ("a", "b"):
            await cancelled_call(served, upstream, request_id)
        following = asyncio.create_task(served.call("write", id="c"))
        await until(lambda: served.metric("requests_in_flight") == 1)
        assert served.metric("upstream_requests_forgetting") == 2
        assert upstream.count("tools/call") == 2
        forgetting.released.set()
        await until(lambda: upstream.count("tools/call") == 3)
        hanging.released.set()
        assert (await following).status == 200


@pytest.mark.parametrize("refused", [True, False], ids=["refuses", "takes and never forgets"])
async def test_a_cancelled_call_keeps_its_slot_at_most_for_another_request_timeout(
    upstream: ScriptedUpstream, refused: bool
) -> None:
    async def refuse(received: Received) -> web.StreamResponse:
        return web.Response(status=500)

    hanging, forgetting = Hanging(upstream), Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(
        upstream.url, UPSTREAM_CONCURRENCY="2", CHECK_INTERVAL_SECONDS="60", REQUEST_TIMEOUT_SECONDS="1.5"
    ) as served:
        await until(served.ready)
        upstream.on("notifications/cancelled", refuse if refused else forgetting)
        await cancelled_call(served, upstream, "a")
        upstream.scripts.pop("tools/call")
        assert served.metric("upstream_requests_in_flight") == 1
        await until(lambda: served.metric("upstream_requests_in_flight") == 0)
        assert (await served.call("write", id="b")).status == 200
        # The connection of the call was cut.
        await until(lambda: hanging.held == 0)
        hanging.released.set()
        forgetting.released.set()


async def test_the_number_of_cancelled_requests_that_keep_slots_is_limited(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "MAX_FORGETTING", 3)
    hanging, forgetting = Hanging(upstream), Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="60") as served:
        await until(served.ready)
        upstream.on("notifications/cancelled", forgetting)
        for number in range(20):
            await cancelled_call(served, upstream, number)
        assert served.metric("upstream_requests_forgetting") == 3
        assert served.metric("upstream_requests_in_flight") == 3
        await until(lambda: (hanging.held, forgetting.held) == (3, 3))
        hanging.released.set()
        forgetting.released.set()


async def test_a_hanging_reply_is_closed_when_its_response_came_on_another_stream(
    upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(upstream)
    calls: list[Received] = []

    async def answer_elsewhere(received: Received) -> web.StreamResponse:
        calls.append(received)
        if len(calls) == 1:
            return await hanging(received)
        return await received.events(
            *({"jsonrpc": "2.0", "id": call.message["id"], "result": {"content": []}} for call in calls)
        )

    upstream.on("tools/call", answer_elsewhere)
    async with bridge(upstream.url) as served:
        await until(served.ready)
        first = asyncio.create_task(served.call("write", id=1))
        await until(lambda: hanging.held == 1)
        assert (await served.call("write", id=2)).status == 200
        assert (await first).status == 200
        await until(lambda: hanging.held == 0, attempts.LINGER_SECONDS + 10)
