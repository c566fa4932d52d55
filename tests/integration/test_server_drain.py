"""A bridge that is told to stop finishes the requests that it accepted, then exits."""

from __future__ import annotations

import asyncio
import signal

import psutil
import pytest
from aiohttp import web

from harness import BridgeProcess, Gateway, Received, ScriptedUpstream, environment, free_port, until

LONG = "trigger-long-running-operation"


async def test_sigterm_under_32_callers_answers_every_accepted_request(everything_gateway: Gateway) -> None:
    process = BridgeProcess(environment(everything_gateway.url))
    async with process.serving() as served:
        await until(served.ready)
        calls = [
            asyncio.create_task(served.call(LONG, {"duration": 2, "steps": 2}, id=f"caller-{n}")) for n in range(32)
        ]
        (server,) = everything_gateway.servers
        await asyncio.sleep(0.7)
        process.terminate()

        async def refused() -> bool:
            return (await served.get("/readyz")).status == 503

        await until(refused)
        late = await served.call("echo", {"message": "late"}, id="late")
        assert (late.status, late.error["code"]) == (503, -32013)
        for n, call in enumerate(calls):
            answer = await call
            assert answer.status == 200, answer
            assert answer.json["id"] == f"caller-{n}"
        status, _ = await process.ended()
    assert status == 0
    psutil.wait_procs([server], timeout=5)
    assert not everything_gateway.servers


async def test_a_request_that_outlasts_the_drain_gets_an_error(everything_gateway: Gateway) -> None:
    process = BridgeProcess(environment(everything_gateway.url, DRAIN_SECONDS="1"))
    async with process.serving() as served:
        await until(served.ready)
        call = asyncio.create_task(served.call(LONG, {"duration": 60, "steps": 1}, id="long"))
        await asyncio.sleep(0.5)
        process.terminate()
        answer = await call
        status, _ = await process.ended(10)
    assert status == 0
    assert answer.json["id"] == "long"
    assert answer.error["data"]["outcome"] == "unknown"


async def test_a_bridge_stops_at_once_when_nothing_is_in_flight(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        process.terminate()
        status, _ = await process.ended(5)
    assert status == 0


async def test_sighup_drains_like_sigterm(upstream: ScriptedUpstream) -> None:
    allowed = asyncio.Event()

    async def wait(received: Received) -> web.StreamResponse:
        await allowed.wait()
        return await upstream.answer(received)

    upstream.on("tools/call", wait)
    # Under nohup, SIGHUP is ignored, and the bridge would inherit that.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        process = BridgeProcess(environment(upstream.url))
    finally:
        signal.signal(signal.SIGHUP, before)
    async with process.serving() as served:
        await until(served.ready)
        calling = asyncio.create_task(served.call("write"))
        await until(lambda: upstream.count("tools/call") == 1)
        process.terminate(signal.SIGHUP)

        async def refused() -> bool:
            return (await served.get("/readyz")).status == 503

        await until(refused)
        allowed.set()
        assert (await calling).status == 200
        status, _ = await process.ended()
    assert status == 0
    assert not upstream.sessions


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_a_bridge_on_every_address_answers_on_both_families(upstream: ScriptedUpstream, host: str) -> None:
    process = BridgeProcess(environment(upstream.url, HOST="::"))
    async with process.serving() as served:
        served.origin = f"http://{host}:{process.port}"
        assert (await served.get("/livez")).status == 200


async def test_a_bridge_stops_although_upstream_is_gone() -> None:
    process = BridgeProcess(environment(f"http://127.0.0.1:{free_port()}/mcp"))
    async with process.serving():
        process.terminate()
        status, _ = await process.ended(10)
    assert status == 0


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VESTIGE_MCP_URL", "ftp://x"),
        ("VESTIGE_BRIDGE_PORT", "many"),
        ("VESTIGE_BRIDGE_DRAIN_SECONDS", "-1"),
        ("VESTIGE_ALLOW_ANONYMOUS", "perhaps"),
    ],
)
async def test_a_bad_setting_is_one_line_that_names_it_and_exit_status_2(variable: str, value: str) -> None:
    process = BridgeProcess(environment("http://127.0.0.1:9/mcp", LOG_LEVEL="info") | {variable: value})
    status, log = await process.ended()
    assert status == 2
    assert len(log.splitlines()) == 1
    assert variable in log


@pytest.mark.parametrize("variable", ["VESTIGE_BRIDGE_PORT", "VESTIGE_BRIDGE_METRICS_PORT"])
async def test_a_port_that_is_taken_is_one_line_and_exit_status_1(everything_gateway: Gateway, variable: str) -> None:
    port = str(everything_gateway.port)
    process = BridgeProcess(environment(everything_gateway.url) | {variable: port})
    status, log = await process.ended()
    assert status == 1
    assert len(log.splitlines()) == 1
    assert variable in log
    assert port in log
