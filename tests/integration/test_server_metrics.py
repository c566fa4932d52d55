"""The metrics have a listener of their own, correct values, and no label values from clients."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from harness import (
    SSE,
    TOKEN,
    Answer,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    environment,
    until,
)

LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}
LONG = "trigger-long-running-operation"


async def scrape(served: Bridge, process: BridgeProcess, path: str = "/metrics", method: str = "GET") -> Answer:
    """Returns the response of the metrics listener."""
    url = f"http://127.0.0.1:{process.metrics_port}{path}"
    async with served.http.request(method, url) as response:
        return Answer(response.status, response.headers, await response.read())


async def test_metrics_are_served_on_a_separate_port(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        await served.call("read")
        answer = await scrape(served, process)
        assert answer.status == 200
        assert answer.headers["Content-Type"].startswith("text/plain")
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.body.decode())
            for sample in family.samples
        }
        assert samples["vestige_bridge_requests_total", "tools/call", "200", "read"] == 1
        assert samples["vestige_bridge_upstream_sessions_opened_total",] == 1
        assert samples["process_resident_memory_bytes",] > 0
        public = await served.get("/metrics")
        assert (public.status, public.error["code"]) == (404, -32600)
        elsewhere = [await scrape(served, process, path) for path in ("/", "/metrics/", "/mcp", "/health")]
        assert [(it.status, it.error["code"]) for it in elsewhere] == [(404, -32600)] * 4
        assert "GET /metrics" in elsewhere[0].error["message"]
        post = await scrape(served, process, method="POST")
        assert (post.status, post.error["code"]) == (405, -32600)


async def test_metrics_are_answered_until_the_drain_is_over(everything_gateway: Gateway) -> None:
    process = BridgeProcess(environment(everything_gateway.url))
    async with process.serving() as served:
        await until(served.ready)
        call = asyncio.create_task(served.call(LONG, {"duration": 2, "steps": 2}))

        async def told(sample: str) -> bool:
            return sample in (await scrape(served, process)).body.decode()

        await until(lambda: told("vestige_bridge_requests_in_flight 1.0"))
        process.terminate()
        await until(lambda: told("vestige_bridge_draining 1.0"))
        assert not call.done()
        assert (await call).status == 200
        status, log = await process.ended()
    assert status == 0
    assert "ERROR" not in log


async def test_the_log_names_the_address_of_the_metrics(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url))
    async with process.serving() as served:
        await until(served.ready)
        process.terminate()
        _, log = await process.ended()
    assert f"Metrics on http://127.0.0.1:{process.metrics_port}/metrics" in log


async def test_the_listener_of_the_metrics_can_be_switched_off(upstream: ScriptedUpstream) -> None:
    process = BridgeProcess(environment(upstream.url, METRICS_PORT="off"))
    async with process.serving() as served:
        await until(served.ready)
        assert (await served.get("/metrics")).status == 404
        listening = [it for it in psutil.Process(process.pid).net_connections() if it.status == psutil.CONN_LISTEN]
        assert [it.laddr.port for it in listening] == [process.port]
        process.terminate()
        status, log = await process.ended()
    assert status == 0
    assert "Metrics on" not in log


async def test_requests_are_counted_by_method_tool_and_status(scripted: Bridge) -> None:
    await scripted.post(LIST)
    await scripted.call("read")
    await scripted.call("invented")
    await scripted.post({"jsonrpc": "2.0", "id": 1, "method": "invented/method"})
    await scripted.post([LIST, LIST])
    await scripted.post(b"{")
    await scripted.post(LIST, {"Authorization": "Bearer wrong"})
    await scripted.get("/livez")
    await scripted.get("/nowhere")
    counted = {
        ("tools/list", "", "200"),
        ("tools/call", "read", "200"),
        ("tools/call", "other", "200"),
        ("other", "", "200"),
        ("batch", "", "200"),
        ("none", "", "400"),
        ("none", "", "401"),
    }
    assert {labels for labels, _ in requests(scripted)} == counted
    assert all(count == 1 for _, count in requests(scripted))


def requests(served: Bridge) -> list[tuple[tuple[str, ...], float]]:
    """Returns the requests by method, tool and status."""
    assert served.metrics is not None
    (family,) = [it for it in served.metrics.collect() if it.name == "vestige_bridge_requests"]
    return [(tuple(sample.labels.values()), sample.value) for sample in family.samples]


async def test_durations_are_those_of_requests_that_were_read(scripted: Bridge) -> None:
    await scripted.call("read")
    await scripted.post(b"{")
    assert scripted.metric("request_duration_seconds_count", method="tools/call", tool="read") == 1
    assert 0 < scripted.metric("request_duration_seconds_sum", method="tools/call", tool="read") < 60
    buckets = [
        scripted.metric("request_duration_seconds_bucket", method="tools/call", tool="read", le=le)
        for le in ("0.001", "120.0", "+Inf")
    ]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 1
    assert scripted.metrics is not None
    assert (
        scripted.metrics.registry.get_sample_value(
            "vestige_bridge_request_duration_seconds_count", {"method": "none", "tool": ""}
        )
        is None
    )


async def test_messages_in_flight_and_waiting_for_the_window_are_counted(everything_gateway: Gateway) -> None:
    async with bridge(everything_gateway.url, UPSTREAM_CONCURRENCY="2") as served:
        await until(served.ready)
        calls = [asyncio.create_task(served.call(LONG, {"duration": 1, "steps": 1}, id=n)) for n in range(5)]
        await until(lambda: served.metric("requests_in_flight") == 5)
        await until(lambda: served.metric("upstream_requests_in_flight") == 2)
        assert served.metric("upstream_requests_in_flight_limit") == 2
        assert served.metric("requests_in_flight_limit") == 512
        await asyncio.gather(*calls)
        assert served.metric("requests_in_flight") == served.metric("upstream_requests_in_flight") == 0
        # Two of the five waited for one call, and one for two: four seconds in all, none of them spent by upstream.
        assert served.metric("upstream_call_duration_seconds_count") == 5
        whole = served.metric("request_duration_seconds_sum", method="tools/call", tool=LONG)
        assert whole - served.metric("upstream_call_duration_seconds_sum") >= 3


async def test_open_streams_are_counted_while_they_are_open(features: Bridge) -> None:
    opened = await features.post(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "1"},
            },
        }
    )
    session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
    headers = features.request_headers({**SSE, **session})
    async with features.http.get(features.url, headers=headers) as response:
        assert response.status == 200
        await until(lambda: features.metric("streams_open") == 1)
    await features.ask("DELETE", "/mcp", b"", features.request_headers(session))
    await until(lambda: features.metric("streams_open") == 0)


async def test_a_lost_session_is_a_replay_and_another_session_opened(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    await until(scripted.ready)
    assert scripted.metric("upstream_sessions_opened_total") == 1
    assert scripted.metric("upstream_state", state="ready") == 1
    upstream.sessions.clear()
    assert (await scripted.call("write")).status == 200
    assert scripted.metric("replays_total") == 1
    assert scripted.metric("upstream_sessions_opened_total") == 2
    assert scripted.metric("upstream_reconnects_total") == 1
    assert scripted.metric("upstream_failures_total", reason="session_lost") == 1
    assert scripted.metric("tools_known") == 3
    assert scripted.metric("upstream_last_answer_age_seconds") < 60
    assert scripted.metric("upstream_info", name="scripted", version="1.2.3") == 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_counted_whatever_status_its_client_saw(upstream: ScriptedUpstream, stream: bool) -> None:
    async def cut(received: Received) -> web.StreamResponse:
        await asyncio.sleep(0.2)
        return received.cut()

    upstream.on("tools/call", cut)
    async with bridge(upstream.url, HEARTBEAT_SECONDS="0.05") as served:
        await until(served.ready)
        answer = await served.call("write", headers=SSE if stream else {})
        assert answer.status == (200 if stream else 502)
        assert served.metric("requests_failed_total", reason="disconnected") == 1
        assert served.metric("requests_failed_total", reason="timeout") == 0
        assert served.metric("upstream_failures_total", reason="disconnected") == 1


async def test_the_sessions_and_the_failures_of_per_client_mode_are_counted(upstream: ScriptedUpstream) -> None:
    async def cut(received: Received) -> web.StreamResponse:
        return received.cut()

    async with bridge(upstream.url, SESSION_MODE="per-client") as served:
        await until(served.ready)
        opened = await served.post(INITIALIZE, SSE)
        session = {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"]}
        assert served.metric("client_sessions_open") == 1
        assert served.metric("upstream_sessions_opened_total") == 1
        upstream.on("tools/call", cut)
        assert (await served.call("write", headers=session)).status == 502
        assert served.metric("requests_failed_total", reason="disconnected") == 1
        assert served.metric("requests_in_flight") == 0
        await served.ask("DELETE", "/mcp", b"", served.request_headers(session))
        assert served.metric("client_sessions_open") == 0


async def test_authentication_failures_are_counted_by_reason(scripted: Bridge) -> None:
    await scripted.ask("POST", "/mcp", LIST, {})
    await scripted.post(LIST, {"Authorization": "Bearer wrong"})
    await scripted.post(LIST, {"Origin": "https://evil.example"})
    assert [
        scripted.metric("auth_failures_total", reason=reason)
        for reason in ("no_token", "wrong_token", "origin", "not_configured")
    ] == [1, 1, 1, 0]


async def test_the_last_use_of_a_token_has_the_name_of_its_principal(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"alice {TOKEN}\nbob another-token\n")
    began = time.time()
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        await served.post(LIST, {"Authorization": f"Bearer {TOKEN}"})
        assert began <= served.metric("token_last_used_timestamp_seconds", principal="alice") <= time.time()
        assert served.metric("token_last_used_timestamp_seconds", principal="bob") == 0
        assert served.metric("token_file_valid") == 1


async def test_before_the_first_answer_there_is_no_age_and_no_name(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    async with bridge("http://127.0.0.1:9/mcp") as served:
        assert served.metrics is not None
        await until(lambda: served.metric("upstream_state", state="down") == 1)
        names = {family.name for family in served.metrics.collect()}
        assert "vestige_bridge_upstream_info" not in names
        assert "vestige_bridge_upstream_last_answer_age_seconds" not in names
        assert served.metric("upstream_sessions_opened_total") == 0
        assert served.metric("upstream_reconnects_total") == 0


async def test_invented_names_create_no_metric_series(scripted: Bridge) -> None:
    await asyncio.gather(
        *(scripted.call(f"invented-{n}") for n in range(50)),
        *(scripted.post({"jsonrpc": "2.0", "id": 1, "method": f"invented/{n}"}) for n in range(50)),
        *(scripted.post(LIST, {"Authorization": f"Bearer invented-{n}"}) for n in range(50)),
    )
    assert {labels for labels, _ in requests(scripted)} == {
        ("tools/call", "other", "200"),
        ("other", "", "200"),
        ("none", "", "401"),
    }


async def test_the_metrics_include_the_process(scripted: Bridge) -> None:
    assert scripted.metrics is not None
    opened = scripted.metrics.registry.get_sample_value("process_open_fds")
    assert opened is not None
    assert 0 < opened <= psutil.Process().num_fds() + 5


async def test_the_backup_metrics_follow_the_status_file_at_each_scrape(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "status.json"
    async with bridge(upstream.url, VESTIGE_BRIDGE_BACKUP_STATUS_FILE=str(file)) as served:
        assert _backups(served) == {"failing": 1}
        file.write_text('{"failing": false, "succeeded_at": null, "due_at": 1795748400}')
        assert _backups(served) == {"failing": 0, "due_timestamp_seconds": 1795748400}
        file.write_text('{"failing": true, "succeeded_at": 1795689412, "due_at": null}')
        assert _backups(served) == {"failing": 1, "last_success_timestamp_seconds": 1795689412}


async def test_without_backups_there_are_no_metrics_of_them(scripted: Bridge) -> None:
    assert _backups(scripted) == {}


def _backups(served: Bridge) -> dict[str, float]:
    assert served.metrics is not None
    samples = [sample for family in served.metrics.collect() for sample in family.samples]
    prefix = "vestige_bridge_backup_"
    return {it.name.removeprefix(prefix): it.value for it in samples if it.name.startswith(prefix)}
