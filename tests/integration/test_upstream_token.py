"""The bridge's token for upstream, from a file that Vestige rewrites at each start."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from aiohttp import web

from harness import Received, ScriptedUpstream, bridge, environment, until
from integration.doctor_setups import Patient, near
from integration.test_cli_doctor import examine
from vestige_bridge import concurrency
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


def shown(upstream: ScriptedUpstream) -> list[str | None]:
    """Returns the credentials that the bridge sent to upstream, oldest first."""
    return [received.http.headers.get("Authorization") for received in upstream.received]


async def test_a_token_from_a_file_goes_upstream_without_its_line_break(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("of-this-start\n")
    async with bridge(upstream.url, UPSTREAM_TOKEN_FILE=str(file)) as served:
        assert (await served.post(PING)).status == 200
    assert set(shown(upstream)) == {"Bearer of-this-start"}


async def test_a_file_that_appears_after_the_start_connects_the_bridge(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    async with bridge(upstream.url, UPSTREAM_TOKEN_FILE=str(file), CONNECT_TIMEOUT_SECONDS="1") as served:
        assert (await served.post(PING)).status == 503
        assert shown(upstream) == []
        file.write_text("at-last")
        assert (await served.post(PING)).status == 200
    assert set(shown(upstream)) == {"Bearer at-last"}


@pytest.mark.usefixtures("watched_closely")
async def test_a_changed_file_is_read_while_connections_stay_open(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")

    async with bridge(upstream.url, UPSTREAM_TOKEN_FILE=str(file)) as served:

        async def shows_the_second() -> bool:
            await served.post(PING)
            return shown(upstream)[-1] == "Bearer second"

        await served.post(PING)
        file.write_text("second")
        await until(shows_the_second)


@pytest.mark.usefixtures("watched_closely")
@pytest.mark.parametrize("content", ["", " \n", "two words", "schlüssel", None])
async def test_an_invalid_or_missing_file_changes_nothing(
    content: str | None, upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("good")
    with caplog.at_level(logging.ERROR):
        async with bridge(upstream.url, UPSTREAM_TOKEN_FILE=str(file)) as served:
            await served.post(PING)
            if content is None:
                file.unlink()
            else:
                file.write_text(content)
            await until(lambda: "the previous token is kept" in caplog.text)
            assert (await served.post(PING)).status == 200
    assert set(shown(upstream)) == {"Bearer good"}


def test_a_token_and_its_file_at_once_are_refused() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ(environment("http://127.0.0.1:1/mcp", UPSTREAM_TOKEN="a", UPSTREAM_TOKEN_FILE="/b"))
    assert "only one of them is allowed" in refused.value.problems[0]


async def native(received: Received) -> web.StreamResponse:
    """Answers a ping without a session, or on an unknown one, as a Vestige that serves HTTP itself."""
    if received.http.headers.get("Authorization") != "Bearer of-this-start":
        return web.Response(status=401, text="Missing Authorization header")
    if "Mcp-Session-Id" in received.http.headers:
        return web.Response(status=404, text="Session not found or expired")
    return web.Response(status=400, text="Missing or invalid Mcp-Session-Id header")


async def test_the_doctor_recognises_a_native_vestige(
    upstream: ScriptedUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.write_text("of-this-start\n")
    async with bridge(upstream.url, UPSTREAM_TOKEN_FILE=str(file)) as served:
        await until(served.ready)
        upstream.on("ping", native)
        patient = near(upstream.url, served)
        told = {**patient.environ, "VESTIGE_BRIDGE_UPSTREAM_TOKEN_FILE": str(file)}
        await examine(Patient(told))
        said = capsys.readouterr().out
        assert "is an MCP server that keeps sessions" in said
        assert "of-this-start" not in said
        file.unlink()
        assert await examine(Patient(told)) == 1
        assert "There is no token for Vestige yet" in capsys.readouterr().out


@pytest.fixture
def watched_closely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(concurrency, "FILE_POLL_SECONDS", 0.01)
