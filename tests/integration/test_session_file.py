"""After a kill of the bridge, its Vestige process runs at most until the next start of the bridge."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web

from harness import BridgeProcess, Gateway, Received, ScriptedUpstream, bridge, environment, free_port, until
from vestige_bridge.cli.parser import main


async def killed(upstream: str, state: Path) -> None:
    """Kills a bridge that has a session."""
    process = BridgeProcess(environment(upstream, STATE_DIR=str(state)))
    async with process.serving() as served:
        await until(served.ready)
        process.kill()


async def test_the_start_after_a_kill_ends_the_process_that_was_left_over(
    memory_gateway: Gateway, tmp_path: Path
) -> None:
    for _ in range(3):
        await killed(memory_gateway.url, tmp_path)
        [left_over] = memory_gateway.servers
        async with bridge(memory_gateway.url, STATE_DIR=str(tmp_path)) as served:
            await until(served.ready)
            assert (await served.call("read_graph")).status == 200
            psutil.wait_procs([left_over], timeout=5)
            [server] = memory_gateway.servers
            assert server != left_over
        await until(lambda: not memory_gateway.servers)
        assert list(tmp_path.iterdir()) == []


async def test_without_a_state_directory_the_process_stays(memory_gateway: Gateway, tmp_path: Path) -> None:
    process = BridgeProcess(environment(memory_gateway.url), cwd=tmp_path)
    async with process.serving() as served:
        await until(served.ready)
        process.kill()
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        assert len(memory_gateway.servers) == 2
    assert list(tmp_path.iterdir()) == []


async def test_the_session_left_over_is_ended_before_another_is_opened(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    await killed(upstream.url, tmp_path)
    assert upstream.sessions == {"session-1"}
    open_then = []

    async def initialize(received: Received) -> web.StreamResponse:
        open_then.append(set(upstream.sessions))
        return await upstream.answer(received)

    upstream.on("initialize", initialize)
    async with bridge(upstream.url, STATE_DIR=str(tmp_path)) as served:
        await until(served.ready)
        assert json.loads((tmp_path / "session.json").read_text())["session_id"] == "session-2"
    assert open_then == [set()]
    assert not upstream.sessions


async def test_a_bridge_that_is_killed_in_its_handshake_leaves_no_session_either(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async def load_models(received: Received) -> web.StreamResponse:
        upstream.sessions.add("loading")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Mcp-Session-Id": "loading"})
        await response.prepare(received.http)
        await asyncio.sleep(60)
        return response

    upstream.on("initialize", load_models)
    process = BridgeProcess(environment(upstream.url, STATE_DIR=str(tmp_path)))
    async with process.serving():
        await until((tmp_path / "session.json").exists)
        process.kill()
    upstream.on("initialize", upstream.answer)
    async with bridge(upstream.url, STATE_DIR=str(tmp_path)) as served:
        await until(served.ready)
        assert upstream.sessions == {"session-1"}


async def test_a_renewed_session_is_the_one_that_is_kept(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async with bridge(upstream.url, STATE_DIR=str(tmp_path)) as served:
        await until(served.ready)
        upstream.sessions.clear()
        assert (await served.call("read")).status == 200
        assert json.loads((tmp_path / "session.json").read_text())["session_id"] == "session-2"


async def test_a_left_over_session_is_ended_when_upstream_is_reachable_again(
    memory_gateway: Gateway, tmp_path: Path
) -> None:
    await killed(memory_gateway.url, tmp_path)
    memory_gateway.kill()
    async with bridge(memory_gateway.url, STATE_DIR=str(tmp_path)) as served:
        assert (await served.call("read_graph")).status == 503
    assert [path.name for path in tmp_path.iterdir()] == ["session.json"]
    memory_gateway.start()
    async with bridge(memory_gateway.url, STATE_DIR=str(tmp_path)) as served:
        await until(served.ready)
        assert len(memory_gateway.servers) == 1


@pytest.mark.parametrize("change", [{"mcp_url": "http://127.0.0.1:1/mcp"}, {"session_id": "a\nb"}, None])
async def test_an_invalid_file_ends_no_session_and_does_not_prevent_the_start(
    upstream: ScriptedUpstream, tmp_path: Path, change: dict[str, Any] | None
) -> None:
    await killed(upstream.url, tmp_path)
    file = tmp_path / "session.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change) if change else "{")
    async with bridge(upstream.url, STATE_DIR=str(tmp_path)) as served:
        await until(served.ready)
        assert upstream.sessions == {"session-1", "session-2"}
    assert upstream.sessions == {"session-1"}


def test_an_invalid_state_directory_is_one_line_and_exit_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environ = environment(f"http://127.0.0.1:{free_port()}/mcp", STATE_DIR=str(tmp_path / "nowhere"))
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main([]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("VESTIGE_BRIDGE_STATE_DIR: ")
