"""Failures of upstream do not reach clients: a crash costs at most an error object."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from typing import Any

import aiohttp
import pytest

from harness import Bridge, BridgeProcess, Gateway, Received, ScriptedUpstream, bridge, environment, free_port, until
from integration.test_endpoint_sessions import PING, initialize
from vestige_bridge.server import probes


class Outage:
    """Responses to callers and to a probe while supergateway is killed and restarted."""

    def __init__(self, served: Bridge) -> None:
        self.served = served
        self.restarted_at = float("inf")
        self.good_at: list[float] = []
        self.readiness: list[tuple[float, int]] = []
        self.failures = 0

    async def call_until_it_is_over(self, name: int) -> None:
        """Calls in one session until some time after the restart; each response must be the client's own."""
        session_id = (await self.served.post(initialize("2025-06-18"))).headers["Mcp-Session-Id"]
        number = after = 0
        while after < 3:
            number += 1
            text, asked_at = f"{name}-{number}", time.monotonic()
            headers = {"Mcp-Session-Id": session_id}
            answer = await self.served.call("echo", {"message": text}, id=name, headers=headers)
            assert answer.json["id"] == name
            if answer.status == 200:
                assert answer.text == f"Echo: {text}"
                if asked_at > self.restarted_at:
                    after += 1
                    self.good_at.append(time.monotonic())
            else:
                assert answer.error["data"]["outcome"] in ("not_sent", "unknown")
                self.failures += 1
                await asyncio.sleep(0.1)

    async def probe(self) -> None:
        """Requests /readyz repeatedly."""
        while True:
            asked_at = time.monotonic()
            self.readiness.append((asked_at, (await self.served.get("/readyz")).status))
            await asyncio.sleep(0.05)


async def test_clients_go_on_after_supergateway_was_killed_and_started_again(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, CHECK_INTERVAL_SECONDS="1") as served:
        await until(served.ready)
        outage = Outage(served)
        probing = asyncio.create_task(outage.probe())
        callers = [asyncio.create_task(outage.call_until_it_is_over(name)) for name in range(32)]
        await asyncio.sleep(1)
        await asyncio.to_thread(everything_gateway.kill)
        await asyncio.sleep(3)
        await asyncio.to_thread(everything_gateway.start)
        outage.restarted_at = time.monotonic()
        async with asyncio.timeout(60):
            await asyncio.gather(*callers)
        await until(lambda: outage.readiness[-1][1] == 200, 2)
        assert not probing.done(), probing.exception()
        probing.cancel()
        assert len(everything_gateway.servers) == 1

    assert outage.failures > 0
    assert any(status == 503 for at, status in outage.readiness if at < outage.restarted_at)
    ready_at = next(at for at, status in outage.readiness if status == 200 and at > outage.restarted_at)
    assert ready_at < min(outage.good_at) + 1


async def test_the_next_call_is_answered_after_the_mcp_server_was_killed(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url) as served:
        assert (await served.call("echo", {"message": "before"})).text == "Echo: before"
        (before,) = everything_gateway.servers
        before.send_signal(signal.SIGKILL)
        before.wait()
        answers = await asyncio.gather(*(served.call("echo", {"message": str(n)}, id=n) for n in range(20)))
        assert [answer.text for answer in answers] == [f"Echo: {n}" for n in range(20)]
        (after,) = everything_gateway.servers
        assert after != before


async def test_a_lost_session_is_renewed_by_one_handshake_for_all_who_wait(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await scripted.post(PING)
    upstream.sessions.clear()
    answers = await asyncio.gather(*(scripted.call("write", {"n": n}, id=n) for n in range(30)))
    assert [json.loads(answer.text) for answer in answers] == [{"n": n} for n in range(30)]
    assert upstream.sessions_opened == 2


async def test_the_session_refusal_of_supergateway_3_is_renewed_too(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await scripted.post(PING)

    async def refuse(received: Received) -> Any:
        if received.http.headers["Mcp-Session-Id"] != "session-1":
            return await upstream.answer(received)
        error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
        return aiohttp.web.json_response({"jsonrpc": "2.0", "error": error, "id": None}, status=400)

    upstream.on("tools/call", refuse)
    answer = await scripted.call("write", {"n": 1})
    assert json.loads(answer.text) == {"n": 1}
    assert upstream.sessions_opened == 2


async def test_without_upstream_the_bridge_answers_503_not_sent_and_keeps_running() -> None:
    async with bridge(f"http://127.0.0.1:{free_port()}/mcp") as served:
        answer = await served.call("write", id="mine")
        ready, health, alive = [await served.get(path) for path in ("/readyz", "/health", "/livez")]
    assert answer.status == 503
    assert answer.headers["Retry-After"]
    assert answer.json["id"] == "mine"
    assert answer.error["code"] == -32010
    assert answer.error["data"] == {"outcome": "not_sent", "retryable": True}
    assert (ready.status, health.status, alive.status) == (503, 503, 200)
    assert b"127.0.0.1" not in answer.body + ready.body + health.body


async def test_a_bridge_that_started_first_becomes_ready_when_upstream_comes(everything_gateway: Gateway) -> None:
    everything_gateway.stop()
    async with bridge(everything_gateway.url) as served:
        assert (await served.get("/readyz")).status == 503
        await asyncio.to_thread(everything_gateway.start)
        await until(served.ready, 15)


async def test_a_request_triggers_a_reconnect_at_once(everything_gateway: Gateway) -> None:
    everything_gateway.stop()
    async with bridge(everything_gateway.url) as served:
        for _ in range(5):
            assert (await served.call("echo", {"message": "no"})).status == 503
        await asyncio.to_thread(everything_gateway.start)
        assert (await served.call("echo", {"message": "yes"})).text == "Echo: yes"


async def test_readyz_answers_at_once_while_upstream_hangs(upstream: ScriptedUpstream) -> None:
    hanging = asyncio.Event()

    async def hang(received: Received) -> Any:
        await hanging.wait()
        return received.result({})

    upstream.on("initialize", hang)
    async with bridge(upstream.url, CONNECT_TIMEOUT_SECONDS="1") as served:
        calls = [asyncio.create_task(served.call("write", id=n)) for n in range(3)]
        async with asyncio.timeout(1):
            assert (await served.get("/readyz")).status == 503
        assert [(await call).status for call in calls] == [503, 503, 503]
        assert upstream.count("initialize") == 1
        hanging.set()


async def test_a_failed_check_flips_readiness_and_an_answer_flips_it_back(upstream: ScriptedUpstream) -> None:
    async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="0.2", CHECK_TIMEOUT_SECONDS="0.2") as served:
        await until(served.ready)
        hanging = asyncio.Event()

        async def hang(received: Received) -> Any:
            await hanging.wait()
            return received.result({})

        async def not_ready() -> bool:
            return not await served.ready()

        upstream.on("ping", hang)
        await until(not_ready)
        assert (await served.get("/readyz")).json["state"] in ("degraded", "down")

        async def ready_after_an_answer() -> bool:
            assert (await served.call("write")).status == 200
            return await served.ready()

        await until(ready_after_an_answer)
        hanging.set()


async def test_health_requests_within_a_second_share_one_upstream_check(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await until(scripted.ready)
    before = upstream.count("tools/list")
    answers = await asyncio.gather(*(scripted.get("/health") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    assert upstream.count("tools/list") == before + 1
    assert answers[0].json["status"] == "ok"
    assert answers[0].json["vestige"] == {"name": "scripted", "version": "1.2.3"}
    assert answers[0].json["tools"] == 3


async def test_health_requests_over_a_limit_do_not_wait_for_the_check(
    scripted: Bridge, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MAX_WAITING", 3)
    await until(scripted.ready)
    released = asyncio.Event()

    async def hang(received: Received) -> Any:
        await released.wait()
        return received.result({"tools": []})

    upstream.on("tools/list", hang)
    waiting = [asyncio.create_task(scripted.get("/health")) for _ in range(20)]
    await until(lambda: sum(it.done() for it in waiting) == 17)
    assert {it.result().status for it in waiting if it.done()} == {200}
    released.set()
    assert {(await it).status for it in waiting} == {200}


async def test_a_lost_connection_its_cause_and_its_return_are_in_the_log(everything_gateway: Gateway) -> None:
    process = BridgeProcess(environment(everything_gateway.url, CHECK_INTERVAL_SECONDS="0.2"))
    async with process.serving() as served:
        await until(served.ready)
        await asyncio.to_thread(everything_gateway.kill)

        async def refused_several_times() -> bool:
            async with served.http.get(f"http://127.0.0.1:{process.metrics_port}/metrics") as response:
                text = await response.text()
            found = re.search(r'^vestige_bridge_upstream_failures_total{reason="connect"} (.+)$', text, re.MULTILINE)
            return found is not None and float(found[1]) >= 4

        await until(refused_several_times, 30)
        await asyncio.to_thread(everything_gateway.start)
        await until(served.ready, 15)
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    # One line for each cause: a connection that was cut, the refused ones, and the session that is rejected later.
    causes = [line.partition(": ")[2] for line in log.splitlines() if "Vestige connection lost" in line]
    assert len(set(causes)) == len(causes) <= 3
    assert f"Upstream cannot be reached. (127.0.0.1:{everything_gateway.port}: Connection refused)" in causes
    assert log.count("Vestige connected") == 2
    assert "Vestige tools discovered (" in log
