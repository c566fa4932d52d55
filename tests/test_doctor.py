"""`vestige-bridge doctor` names the layer that fails, and leaves nothing running behind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web

from harness import Bridge, Gateway, Received, ScriptedUpstream, bridge, environment, free_port, until
from vestige_bridge import doctor


async def examine(upstream: str, served: Bridge | None = None, *, quiet: bool = False, **variables: str) -> int:
    """The doctor's exit status; what it prints goes to standard output."""
    port = served.origin.rpartition(":")[2] if served else str(free_port())
    environ = environment(upstream, **variables) | {"VESTIGE_BRIDGE_PORT": port}
    return await asyncio.to_thread(doctor.run, environ, quiet=quiet)


def marks(said: str) -> dict[str, str]:
    """The mark of each layer."""
    return {line[2:16].strip(): line[0] for line in said.splitlines()}


async def test_when_all_is_well_each_layer_is_ticked(
    shared_gateway: Gateway, everything: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    await until(everything.ready)
    servers = shared_gateway.servers
    assert await examine(shared_gateway.url, everything) == 0
    said = capsys.readouterr().out
    assert marks(said) == {"settings": "✓", "bridge": "✓", "MCP endpoint": "✓", "Vestige": "✓"}
    assert "tools" in said
    assert shared_gateway.servers == servers


async def test_without_a_bridge_it_makes_one_handshake_and_ends_it(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await examine(upstream.url) == 1
    said = capsys.readouterr().out
    assert marks(said) == {"settings": "✓", "bridge": "✗", "MCP endpoint": "✓", "Vestige": "✓"}
    assert "scripted 1.2.3 lists 3 tools" in said
    assert upstream.sessions_opened == 1
    assert not upstream.sessions


async def test_without_an_endpoint_it_says_what_to_start(capsys: pytest.CaptureFixture[str]) -> None:
    upstream = f"http://127.0.0.1:{free_port()}/mcp"
    async with bridge(upstream) as served:
        assert await examine(upstream, served) == 1
    said = capsys.readouterr().out
    assert marks(said) == {"settings": "✓", "bridge": "✓", "MCP endpoint": "✗", "Vestige": "✗"}
    assert "VESTIGE_MCP_URL" in said


async def test_without_anything_only_the_settings_are_ticked(capsys: pytest.CaptureFixture[str]) -> None:
    assert await examine(f"http://127.0.0.1:{free_port()}/mcp") == 1
    assert list(marks(capsys.readouterr().out).values()) == ["✓", "✗", "✗", "✗"]


@pytest.mark.parametrize(
    ("status", "text", "sentence"),
    [
        (404, "", "is not there (HTTP 404)"),
        (500, "", "fails with HTTP 500"),
        (200, "<html>hello</html>", "does not speak MCP"),
        (200, "[]", "does not speak MCP"),
    ],
)
async def test_an_endpoint_that_is_none_is_told_from_one_that_is_gone(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str], status: int, text: str, sentence: str
) -> None:
    async def answer_something_else(_received: Received) -> Any:
        return web.Response(status=status, text=text, content_type="text/html")

    upstream.on("ping", answer_something_else)
    assert await examine(upstream.url) == 1
    assert sentence in capsys.readouterr().out


async def test_a_bridge_without_authentication_is_named(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="") as served:
        assert await examine(upstream.url, served) == 1
    said = capsys.readouterr().out
    assert marks(said)["bridge"] == "✗"
    assert "VESTIGE_AUTH_TOKEN" in said


async def test_something_else_on_the_port_is_no_bridge(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    port = upstream.url.split(":")[2].split("/")[0]
    environ = environment(upstream.url) | {"VESTIGE_BRIDGE_PORT": port}
    assert await asyncio.to_thread(doctor.run, environ, quiet=False) == 1
    assert "something else than the bridge" in capsys.readouterr().out


async def test_settings_that_are_wrong_end_the_walk(capsys: pytest.CaptureFixture[str]) -> None:
    assert await examine("ftp://x") == 1
    said = capsys.readouterr().out
    assert marks(said) == {"settings": "✗"}
    assert "VESTIGE_MCP_URL" in said


async def test_quiet_says_by_its_exit_status_alone_whether_the_bridge_is_healthy(
    upstream: ScriptedUpstream, scripted: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    await until(scripted.ready)
    assert await examine(upstream.url, scripted, quiet=True) == 0
    assert await examine(upstream.url, quiet=True) == 1
    assert await examine("ftp://x", quiet=True) == 1
    assert capsys.readouterr().out == ""
