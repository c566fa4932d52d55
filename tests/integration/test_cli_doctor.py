"""`vestige-bridge doctor` names the layer that fails, and leaves no process or session behind."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from harness import ROOT, Bridge, Gateway, Received, ScriptedUpstream, bridge, environment, free_port, until
from identity_provider import IdentityProvider
from integration.doctor_setups import HASHED, SETUPS, Patient, Setup, answering, entry, hang, listening, near
from vestige_bridge.cli import doctor
from vestige_bridge.cli.parser import main
from vestige_bridge.server.probes import SHARED_SECONDS

PAGE = ROOT / "docs/doctor.md"
HEADING = "| layer | problem | message |\n|---|---|---|\n"
LAYERS = ["settings", "address", "bridge", "token", "upstream", "Vestige", "read"]
PROVIDER = "provider"
"""The layer that the doctor shows only with OAuth."""

TIMEOUT_SECONDS = 2.0


async def examine(patient: Patient, *, as_json: bool = False) -> int:
    """Runs the doctor, which prints to standard output; returns its exit status."""
    return await asyncio.to_thread(
        doctor.run,
        patient.environ,
        url=patient.url,
        timeout_seconds=TIMEOUT_SECONDS,
        as_json=as_json,
        token_env=patient.token_env,
    )


def marks(said: str) -> dict[str, str]:
    """Returns the mark of each layer."""
    return {line[2:16].strip(): line[0] for line in said.splitlines()}


def documented() -> dict[tuple[str, str], str]:
    """Returns the line that the page shows for each set-up."""
    rows = re.findall(r"^\| (.*?) \| (.*?) \| `(.*)` \|$", PAGE.read_text().partition(HEADING)[2], re.MULTILINE)
    return {(layer, name): line for layer, name, line in rows}


def general(line: str, patient: Patient, directory: Path) -> str:
    """Returns the line with fixed values for ports, directories and times."""
    ports = {patient.environ.get("VESTIGE_BRIDGE_PORT", ""): "8000", (patient.url or "").rpartition(":")[2]: "8000"}
    ports[re.sub(r".*:(\d+).*", r"\1", patient.environ.get("VESTIGE_MCP_URL", ""))] = "3100"
    ports[patient.provider.rpartition(":")[2]] = "9000"
    for port, shown in ports.items():
        line = re.sub(rf":{port}\b", f":{shown}", line) if port else line
    return re.sub(r"\(\d+ ms\)", "(… ms)", line.replace(str(directory), "/etc/vestige"))


def write_down(setup: Setup, line: str) -> None:
    """Writes the line of a set-up to the page."""
    with PAGE.open("r+") as page:
        fcntl.flock(page, fcntl.LOCK_EX)
        lines = documented() | {(setup.layer, setup.name): line}
        rows = [f"| {it.layer} | {it.name} | `{lines.get((it.layer, it.name), '')}` |\n" for it in SETUPS]
        text = page.read().partition(HEADING)[0]
        page.seek(0)
        page.write("".join([text, HEADING, *rows]))
        page.truncate()


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: f"{setup.layer}: {setup.name}")
async def test_the_layer_that_is_broken_is_named_as_the_page_shows(
    setup: Setup, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with setup.make(tmp_path) as patient:
        assert await examine(patient) == 1
        lines = capsys.readouterr().out.splitlines()
        assert all(line.isprintable() for line in lines)
        assert len(lines) == len(LAYERS) - (patient.url is not None) + bool(patient.provider)
        line = next(line for line in lines if line.startswith("✗"))
        assert line[2:16].strip() == setup.layer
        line = general(line[16:], patient, tmp_path)
    if os.environ.get("WRITE"):
        write_down(setup, line)
    assert documented().get((setup.layer, setup.name)) == line


def test_the_page_shows_every_set_up_and_no_other() -> None:
    assert list(documented()) == [(setup.layer, setup.name) for setup in SETUPS]
    assert {setup.layer for setup in SETUPS} == {*LAYERS, PROVIDER}


async def test_without_faults_each_layer_is_ticked_and_no_second_server_is_started(
    memory_gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        servers = memory_gateway.servers
        assert await examine(near(memory_gateway.url, served)) == 0
        said = capsys.readouterr().out
        assert marks(said) == dict.fromkeys(LAYERS, "✓")
        assert "read_graph was answered" in said
        assert "lists 9 tools" in said
        assert memory_gateway.servers == servers
        assert served.token is not None
        assert served.token not in said


async def test_a_bridge_elsewhere_is_examined_without_the_settings_of_this_machine(
    memory_gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        here = {"VESTIGE_MCP_URL": "nowhere", "VESTIGE_BRIDGE_PORT": "none", "VESTIGE_BRIDGE_STATE_DIR": "/nowhere"}
        assert await examine(Patient({**here, "VESTIGE_AUTH_TOKEN": str(served.token)}, served.origin)) == 0
    layers = [layer for layer in LAYERS if layer != "upstream"]
    assert marks(capsys.readouterr().out) == dict.fromkeys(layers, "✓")


async def test_an_oauth_token_is_examined_here_and_from_elsewhere(
    memory_gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = [*LAYERS[:3], PROVIDER, *LAYERS[3:]]
    async with IdentityProvider().serving() as provider:
        variables = provider.variables()
        async with bridge(memory_gateway.url, **variables) as served:
            await until(served.ready)
            await until(lambda: served.metric("oauth_keys") > 0)
            here = {**near(memory_gateway.url, served, **variables).environ, "ACCESS_TOKEN": provider.token()}
            assert await examine(Patient(here, None, "ACCESS_TOKEN")) == 0
            near_by = capsys.readouterr().out
            assert await examine(Patient({"VESTIGE_AUTH_TOKEN": provider.token()}, served.origin)) == 0
            elsewhere = capsys.readouterr().out
            assert await examine(Patient(here)) == 0
            without = capsys.readouterr().out
            assert await examine(Patient({**here, "ACCESS_TOKEN": "two words"}, None, "ACCESS_TOKEN")) == 1
            assert await examine(Patient(here, None, "NOT_SET")) == 1
    assert marks(near_by) == dict.fromkeys(layers, "✓")
    assert marks(elsewhere) == {layer: "✓" for layer in layers if layer != "upstream"}
    assert f"{provider.issuer} has 1 signing keys" in near_by
    assert marks(without) == {**dict.fromkeys(layers, "✓"), "token": "-", "read": "-"}
    assert "--token-env NAME" in without
    assert "NOT_SET: it contains no token" in capsys.readouterr().out
    assert provider.token().split(".")[1] not in near_by + elsewhere


async def test_a_provider_whose_first_metadata_url_answers_html_is_found_as_the_bridge_finds_it(
    memory_gateway: Gateway, capsys: pytest.CaptureFixture[str]
) -> None:
    async with IdentityProvider().serving() as provider:
        provider.page = b"<html>This page is for browsers.</html>"
        provider.serves = "/.well-known/openid-configuration"
        async with bridge(memory_gateway.url, **provider.variables()) as served:
            await until(served.ready)
            await until(lambda: served.metric("oauth_keys") > 0)
            here = near(memory_gateway.url, served, **provider.variables()).environ
            token = {"ACCESS_TOKEN": provider.token()}
            assert await examine(Patient({**here, **token}, None, "ACCESS_TOKEN")) == 0
    assert f"{provider.issuer} has 1 signing keys" in capsys.readouterr().out


async def test_a_bridge_with_anonymous_access_needs_no_token(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_ALLOW_ANONYMOUS="true") as served:
        await until(served.ready)
        assert await examine(near(upstream.url, served, VESTIGE_AUTH_TOKEN="", VESTIGE_ALLOW_ANONYMOUS="yes")) == 0
    assert marks(capsys.readouterr().out) == dict.fromkeys(LAYERS, "✓")


async def test_the_first_token_of_a_file_is_sent_to_the_bridge(
    upstream: ScriptedUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "token"
    tokens.write_text("doctor:read-only the-first\nother the-second\n")
    file = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tokens)}
    async with bridge(upstream.url, **file) as served:
        await until(served.ready)
        assert await examine(near(upstream.url, served, **file)) == 0
    assert "the-first" not in capsys.readouterr().out


async def test_a_file_of_hashes_leaves_only_the_token_unexamined(
    upstream: ScriptedUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokens.toml").write_text(entry("agents", HASHED))
    file = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tmp_path / "tokens.toml")}
    async with bridge(upstream.url, **file) as served:
        await until(served.ready)
        assert await examine(near(upstream.url, served, **file)) == 0
    said = capsys.readouterr().out
    assert marks(said) == {**dict.fromkeys(LAYERS, "✓"), "token": "-", "read": "-"}
    assert "VESTIGE_AUTH_TOKEN set to it and VESTIGE_AUTH_TOKEN_FILE empty" in said


@pytest.mark.parametrize(
    ("rights", "asked"),
    [
        ([], "read was answered"),
        (["read_only = true"], "read was answered"),
        (['tools = ["write"]'], "resources/list was answered"),
        (["tools = []", "resources = false"], "ping was answered"),
        (["read_only = true", "tools = []", "resources = false", "rate = 1", "max_in_flight = 1"], "ping was answered"),
    ],
)
async def test_a_principal_with_few_permissions_gets_no_fault(
    upstream: ScriptedUpstream, tmp_path: Path, capsys: pytest.CaptureFixture[str], rights: list[str], asked: str
) -> None:
    (tmp_path / "tokens.toml").write_text(entry("agents", HASHED, *rights))
    file = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tmp_path / "tokens.toml")}
    async with bridge(upstream.url, **file) as served:
        await until(served.ready)
        assert await examine(near(upstream.url, served, VESTIGE_AUTH_TOKEN=HASHED)) == 0
    said = capsys.readouterr().out
    assert marks(said) == dict.fromkeys(LAYERS, "✓")
    assert asked in said
    assert HASHED not in said


async def test_the_json_document_has_the_same_results(
    upstream: ScriptedUpstream, scripted: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    await until(scripted.ready)
    assert await examine(near(upstream.url, scripted), as_json=True) == 0
    well = json.loads(capsys.readouterr().out)
    assert (well["ok"], well["failed"]) == (True, [])
    assert [layer["layer"] for layer in well["layers"]] == LAYERS
    assert await examine(near(upstream.url, scripted, VESTIGE_AUTH_TOKEN="wrong"), as_json=True) == 1
    ill = json.loads(capsys.readouterr().out)
    assert (ill["ok"], ill["failed"]) == (False, ["token"])
    by_layer = {layer["layer"]: layer for layer in ill["layers"]}
    assert by_layer["token"].keys() == {"layer", "status", "found", "remedy", "milliseconds"}
    assert "VESTIGE_AUTH_TOKEN" in by_layer["token"]["remedy"]
    assert by_layer["read"]["status"] == "not_asked"


async def test_without_a_bridge_it_makes_one_handshake_and_ends_it(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await examine(near(upstream.url)) == 1
    said = capsys.readouterr().out
    assert marks(said) == dict(zip(LAYERS, "✓✗--✓✓-", strict=True))
    assert "scripted 1.2.3 lists 3 tools" in said
    assert upstream.sessions_opened == 1
    assert not upstream.sessions


async def test_without_a_bridge_and_an_upstream_vestige_is_not_examined(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await examine(near(f"http://127.0.0.1:{free_port()}/mcp")) == 1
    assert marks(capsys.readouterr().out) == dict(zip(LAYERS, "✓✗--✗--", strict=True))


@pytest.mark.parametrize("answer", [{"tools": []}, None])
async def test_a_failed_handshake_is_reported(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str], answer: dict[str, Any] | None
) -> None:
    async def answer_badly(received: Received) -> Any:
        return received.cut() if answer is None else received.result(answer)

    upstream.on("tools/list", answer_badly)
    assert await examine(near(upstream.url)) == 1
    assert marks(capsys.readouterr().out) == dict(zip(LAYERS, "✓✗--✓✗-", strict=True))
    assert not upstream.sessions


async def test_a_bridge_that_does_not_answer_is_not_treated_as_missing(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async with listening(hang) as authority:
        assert await examine(Patient(environment(upstream.url, PORT=authority.rpartition(":")[2]))) == 1
    assert marks(capsys.readouterr().out) == dict(zip(LAYERS, "✓✓✗-✓--", strict=True))
    assert upstream.sessions_opened == 0


@pytest.mark.parametrize("asked", ["resources/list", "ping"])
async def test_without_a_read_only_tool_another_request_is_sent(
    upstream: ScriptedUpstream, scripted: Bridge, capsys: pytest.CaptureFixture[str], asked: str
) -> None:
    async def list_tools(received: Received) -> Any:
        writes = {"name": "write", "inputSchema": {"type": "object"}}
        reads = {"name": "read", "inputSchema": {"required": ["id"]}, "annotations": {"readOnlyHint": True}}
        return received.result({"tools": [writes, reads]})

    async def reject(received: Received) -> Any:
        error = {"code": -32601, "message": "Method not found"}
        return web.json_response({"jsonrpc": "2.0", "id": received.message["id"], "error": error})

    upstream.on("tools/list", list_tools)
    if asked == "ping":
        upstream.on("resources/list", reject)
    await until(scripted.ready)
    assert await examine(near(upstream.url, scripted)) == 0
    assert f"read          {asked} was answered" in capsys.readouterr().out
    assert upstream.count("tools/call") == 0


async def test_control_characters_from_vestige_do_not_reach_the_terminal(
    upstream: ScriptedUpstream, scripted: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fail(received: Received) -> Any:
        return received.result({"isError": True, "content": [{"type": "text", "text": "no\n\x1b[2Jdisk"}]})

    upstream.on("tools/call", fail)
    await until(scripted.ready)
    assert await examine(near(upstream.url, scripted)) == 1
    assert "read was answered with an error: no\ufffd\ufffd[2Jdisk" in capsys.readouterr().out


async def test_quiet_says_by_its_exit_status_alone_whether_the_bridge_is_healthy(
    upstream: ScriptedUpstream, scripted: Bridge, capsys: pytest.CaptureFixture[str]
) -> None:
    async def quiet(url: str) -> int:
        return await asyncio.to_thread(main, ["doctor", "--quiet", "--url", url])

    await until(scripted.ready)
    lists = upstream.count("tools/list")
    assert await quiet(scripted.origin) == 0
    assert upstream.count("tools/list") == lists + 1
    upstream.on("tools/list", answering(500))
    await asyncio.sleep(SHARED_SECONDS)  # for so long, all clients get the same response
    assert await quiet(scripted.origin) == 1
    assert await quiet(f"http://127.0.0.1:{free_port()}") == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("status", "found"),
    [(429, "/mcp answers HTTP 429, text/plain"), (None, "the connection was closed without an answer")],
)
async def test_a_proxy_that_rejects_every_token_is_reported(
    capsys: pytest.CaptureFixture[str], status: int | None, found: str
) -> None:
    async def be_alive(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "state": "ready"})

    async def reject_tokens(request: web.Request) -> web.Response:
        if status is None:
            assert request.transport is not None
            request.transport.abort()
        return web.Response(status=status or 200, text="No.")

    app = web.Application()
    app.add_routes([web.get("/livez", be_alive), web.get("/readyz", be_alive), web.post("/mcp", reject_tokens)])
    async with TestServer(app, host="127.0.0.1") as front:
        assert await examine(Patient({}, str(front.make_url("")).rstrip("/"))) == 1
    lines = capsys.readouterr().out.splitlines()
    assert found in next(line for line in lines if line.startswith("✗ token"))


async def test_without_the_upstream_url_the_result_of_the_bridge_is_used(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async with bridge(upstream.url) as served:
        await until(served.ready)
        told = {name: value for name, value in near(upstream.url, served).environ.items() if name != "VESTIGE_MCP_URL"}
        assert await examine(Patient(told)) == 0
        said = capsys.readouterr().out
        assert marks(said) == {**dict.fromkeys(LAYERS, "✓"), "upstream": "-"}
        assert "VESTIGE_MCP_URL is not set here" in said


async def test_an_upstream_token_that_only_a_connected_bridge_has_is_no_fault(
    upstream: ScriptedUpstream, capsys: pytest.CaptureFixture[str]
) -> None:
    async def ping(received: Received) -> web.StreamResponse:
        known = received.http.headers.get("Authorization") == "Bearer of-upstream"
        return received.result({}) if known else web.Response(status=401)

    upstream.on("ping", ping)
    async with bridge(upstream.url, UPSTREAM_TOKEN="of-upstream") as served:
        await until(served.ready)
        assert await examine(near(upstream.url, served)) == 0
        assert "upstream requires a token that the doctor does not have" in capsys.readouterr().out
        assert await examine(near(upstream.url, served, UPSTREAM_TOKEN="another")) == 1
    assert "does not accept the token (HTTP 401)" in capsys.readouterr().out
