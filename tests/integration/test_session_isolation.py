"""Many callers on one upstream session: each gets its own response and progress, and no others."""

from __future__ import annotations

import asyncio
import json
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from harness import ROOT, Bridge, Gateway, bridge, call_body, until

LONG = "trigger-long-running-operation"


@pytest.mark.parametrize(
    "spellings", [["1"], ['"1"'], ["1", "1.0"]], ids=["the number 1", "the string 1", "1 and 1.0 mixed"]
)
async def test_five_thousand_requests_with_one_id_on_256_connections_each_get_their_own_answer(
    everything: Bridge, shared_gateway: Gateway, spellings: list[str]
) -> None:
    numbered = iter(enumerate(cycle(spellings)))
    right = 0

    async def caller() -> None:
        nonlocal right
        for number, spelling in numbered:
            if number >= 5000:
                return
            body = json.dumps(call_body("echo", {"message": f"m{number}"}, id="@"))
            answer = await everything.post(body.replace('"@"', spelling).encode())
            assert answer.text == f"Echo: m{number}"
            assert b'"id":%s' % spelling.encode() in answer.body.replace(b" ", b"")
            right += 1

    await asyncio.gather(*(caller() for _ in range(256)))
    assert right == 5000
    await until(lambda: len(shared_gateway.servers) == 1)


def long_call(steps: int, *, seconds: float, id: Any, token: Any = 1) -> dict[str, Any]:
    """Returns a long call; its number of steps identifies its progress notifications."""
    body = call_body(LONG, {"duration": seconds, "steps": steps}, id=id)
    body["params"]["_meta"] = {"progressToken": token}
    return body


async def watch(served: Bridge, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns every message of a response stream."""
    return [message async for message in served.stream(body)]


def assert_own(messages: list[dict[str, Any]], body: dict[str, Any]) -> None:
    """Asserts that a caller got its own progress in order, then its response; the last steps may be missing."""
    steps = body["params"]["arguments"]["steps"]
    *progress, answer = messages
    assert answer["id"] == body["id"]
    assert f"Steps: {steps}." in answer["result"]["content"][0]["text"]
    assert all(step["method"] == "notifications/progress" for step in progress)
    assert all(step["params"]["progressToken"] == 1 for step in progress)
    assert all(step["params"]["total"] == steps for step in progress)
    seen = [step["params"]["progress"] for step in progress]
    assert seen == sorted(set(seen))
    assert set(range(1, steps // 2 + 1)) <= set(seen)


async def test_ten_long_calls_with_one_progress_token_each_get_their_own_progress(everything: Bridge) -> None:
    calls = [long_call(steps, seconds=2, id=1) for steps in range(3, 13)]
    streams = await asyncio.gather(*(watch(everything, call) for call in calls))
    for messages, call in zip(streams, calls, strict=True):
        assert_own(messages, call)


async def test_cancelling_the_oldest_call_leaves_the_others_their_progress(everything: Bridge) -> None:
    oldest = asyncio.create_task(watch(everything, long_call(40, seconds=20, id="oldest")))
    await asyncio.sleep(0.3)
    calls = [long_call(steps, seconds=3, id=steps) for steps in range(3, 12)]
    others = [asyncio.create_task(watch(everything, call)) for call in calls]
    await asyncio.sleep(0.3)
    params = {"requestId": "oldest", "reason": "enough"}
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
    assert (await everything.post(cancelled)).status == 202
    async with asyncio.timeout(2):
        assert all(message.get("id") is None for message in await oldest)
    for stream, call in zip(others, calls, strict=True):
        assert_own(await stream, call)
    late = long_call(4, seconds=1, id="late")
    assert_own(await watch(everything, late), late)


async def test_a_call_that_timed_out_leaves_the_others_their_progress(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, REQUEST_TIMEOUT_SECONDS="4") as served:
        await until(served.ready)
        silent = asyncio.create_task(served.call(LONG, {"duration": 30, "steps": 1}, id="silent"))
        await asyncio.sleep(0.3)
        calls = [long_call(steps, seconds=6, id=steps) for steps in range(6, 15)]
        streams = await asyncio.gather(*(watch(served, call) for call in calls))
        timed_out = await silent
    assert timed_out.status == 504
    assert timed_out.json["id"] == "silent"
    assert timed_out.error["code"] == -32012
    assert timed_out.error["data"]["outcome"] == "unknown"
    for messages, call in zip(streams, calls, strict=True):
        assert_own(messages, call)


async def test_a_call_cancelled_while_the_server_is_busy_leaves_the_others_their_progress(tmp_path: Path) -> None:
    gateway = Gateway(ROOT / "tests/chaos/server.mjs", {"JOURNAL": str(tmp_path / "journal")})
    gateway.start()
    try:
        async with bridge(gateway.url) as served:
            await until(served.ready)
            cancelled = asyncio.create_task(served.call("write", {"key": "a", "steps": 300, "step_ms": 100}, id="a"))
            await asyncio.sleep(0.3)
            busy = asyncio.create_task(served.call("write", {"key": "b", "block_ms": 7000}, id="b"))
            await asyncio.sleep(0.3)
            params = {"requestId": "a"}
            await served.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
            assert (await cancelled).error["code"] == -32017
            assert (await busy).status == 200
            call = call_body("write", {"key": "c", "steps": 3, "step_ms": 100})
            call["params"]["_meta"] = {"progressToken": 1}
            *progress, answer = await watch(served, call)
    finally:
        gateway.stop()
    assert [step["params"]["progress"] for step in progress][:2] == [1, 2]
    assert "result" in answer


async def test_a_cancelled_call_leaves_the_window(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, UPSTREAM_CONCURRENCY="2") as served:
        long, longer = (
            asyncio.create_task(served.call(LONG, {"duration": 30, "steps": 1}, id=it)) for it in ("long", "longer")
        )
        await asyncio.sleep(0.5)
        waiting = asyncio.create_task(served.call("echo", {"message": "next"}, id=2))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        params = {"requestId": "long"}
        await served.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        async with asyncio.timeout(3):
            assert (await waiting).text == "Echo: next"
            cancelled = await long
        longer.cancel()
    assert (cancelled.status, cancelled.error["code"]) == (200, -32017)
    assert cancelled.json["id"] == "long"


async def test_a_cancelled_call_keeps_a_window_of_one_until_it_has_run(shared_gateway: Gateway) -> None:
    # The call's server would answer a ping, and take the next call, while the call runs.
    async with bridge(shared_gateway.url, UPSTREAM_CONCURRENCY="1") as served:
        await until(served.ready)
        began = time.monotonic()
        long = asyncio.create_task(served.call(LONG, {"duration": 2, "steps": 1}, id="long"))
        await until(lambda: served.metric("upstream_requests_in_flight") == 1)
        params = {"requestId": "long"}
        await served.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})
        assert (await long).error["code"] == -32017
        assert (await served.call("echo", {"message": "next"}, id=2)).text == "Echo: next"
        assert time.monotonic() - began >= 2


async def test_a_call_that_waits_in_the_window_can_be_cancelled(shared_gateway: Gateway) -> None:
    async with bridge(shared_gateway.url, UPSTREAM_CONCURRENCY="1") as served:
        first = asyncio.create_task(served.call(LONG, {"duration": 1.5, "steps": 1}, id=1))
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(served.call("echo", {"message": "never"}, id=2))
        await asyncio.sleep(0.2)
        await served.post({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}})
        assert (await waiting).error["code"] == -32017
        assert (await first).status == 200
        assert (await served.call("echo", {"message": "after"})).text == "Echo: after"


async def test_a_cancellation_from_another_session_is_ignored(everything: Bridge) -> None:
    call = asyncio.create_task(everything.call(LONG, {"duration": 1.5, "steps": 1}, id=5))
    await asyncio.sleep(0.3)
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
    assert (await everything.post(cancelled, {"Mcp-Session-Id": "somebody-else"})).status == 202
    assert "completed" in (await call).text


async def test_a_client_that_goes_away_leaves_the_session_in_order(everything: Bridge, shared_gateway: Gateway) -> None:
    for _ in range(5):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await watch(everything, long_call(5, seconds=1, id=1))
    assert (await everything.call("echo", {"message": "still here"})).text == "Echo: still here"
    await until(lambda: len(shared_gateway.servers) == 1)


async def test_progress_is_sent_on_when_it_comes(everything: Bridge) -> None:
    stream = everything.stream(long_call(3, seconds=3, id=1))
    times = [asyncio.get_running_loop().time() async for _ in stream]
    assert times[-1] - times[0] > 1.5


async def test_a_batch_is_answered_in_order_with_each_members_own_answer(everything: Bridge) -> None:
    echo = [call_body("echo", {"message": f"m{n}"}, id=1) for n in range(5)]
    notification = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    batch = [*echo[:3], notification, {"jsonrpc": "1.0"}, *echo[3:]]
    answers = (await everything.post(batch)).json
    texts = [answer["result"]["content"][0]["text"] for answer in answers if "result" in answer]
    assert texts == [f"Echo: m{n}" for n in range(5)]
    assert answers[3]["error"]["code"] == -32600
