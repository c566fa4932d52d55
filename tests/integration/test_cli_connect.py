"""`vestige-bridge connect`: what it prints for each client, and the page generated from the same texts."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
from generate import generated

from harness import ROOT, TOKEN, Bridge, until
from vestige_bridge import __version__
from vestige_bridge.cli import connect
from vestige_bridge.cli.client_catalog import BY_KEY, CLIENTS, PROXIES
from vestige_bridge.cli.connect import page
from vestige_bridge.cli.parser import SHELLS, main

GOLDEN = ROOT / "tests/golden/connect"
URL = "https://vestige.example.com"


def connected(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Returns the output of the command."""
    assert main(["connect", *words]) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty home and working directory; inherited settings of the bridge are unset."""
    for variable in [name for name in os.environ if name.startswith("VESTIGE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("key", BY_KEY)
def test_what_is_printed_for_a_client_is_the_golden_text(
    key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    monkeypatch.setenv("VESTIGE_AUTH_TOKEN", TOKEN)
    monkeypatch.setattr(connect, "OWNER", "")
    said = connected(capsys, key, "--url", f"{URL}/mcp", "--token-env", "TEAM_TOKEN")
    assert TOKEN not in said
    said = (
        said.replace(f"-{__version__}.tgz", "-0.0.0.tgz")
        .replace(str(home), "/home/you")
        .replace(str(ROOT / ".venv/bin/"), "/opt/vestige-bridge/bin")
    )
    golden = GOLDEN / f"{key}.txt"
    if os.environ.get("WRITE"):
        golden.write_text(said)
    assert said == golden.read_text()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "proxy", "option"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:9", "--noproxy '*' "),
        ("http://[::1]:8000", "http://127.0.0.1:9", "--noproxy '*' "),
        ("http://127.0.0.1:8000", "", ""),
        ("https://vestige.example.com", "http://127.0.0.1:9", ""),
    ],
)
@pytest.mark.usefixtures("home")
def test_curl_uses_no_proxy_for_this_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, url: str, proxy: str, option: str
) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", proxy)
    assert f"curl -sS {option}{url}/mcp" in connected(capsys, "curl", "--url", url)


def test_every_golden_text_belongs_to_a_client() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == BY_KEY.keys()


def test_without_a_client_it_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = connected(capsys).splitlines()
    assert [line.split()[0] for line in lines[: len(BY_KEY)]] == list(BY_KEY)


def test_without_an_address_the_one_of_the_settings_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VESTIGE_BRIDGE_PORT", "8123")
    monkeypatch.setenv("VESTIGE_BRIDGE_HOST", "0.0.0.0")
    assert " http://127.0.0.1:8123/mcp " in connected(capsys, "claude-code")


@pytest.mark.parametrize("words", [["emacs"], ["codex", "--token-env", "a b"], ["codex", "--url", "here"]])
def test_invalid_arguments_of_connect_are_exit_status_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["connect", *words])
    assert exited.value.code == 2


def test_text_for_a_json_file_is_json() -> None:
    texts = [step.text for client in CLIENTS for step in client.steps if step.language == "json"]
    assert texts
    assert all(json.loads(text) for text in texts)


def test_a_client_says_how_it_is_tested_or_which_page_it_comes_from() -> None:
    assert [client.key for client in CLIENTS if not client.tested and not client.source] == []
    assert [client.key for client in CLIENTS if client.tested and not client.in_command] == []
    assert {client.tested.partition(":")[0] for client in CLIENTS} == {"Tested", "Partly tested", ""}


def test_the_generated_page_is_up_to_date() -> None:
    assert [str(file) for file, text in generated() if file.read_text() != text] == []
    assert page() == (ROOT / "docs/clients.md").read_text()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_completion_of_a_shell_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert "vestige-bridge" in said
    assert all(command in said for command in ("connect", "stdio", "doctor", "--token-env"))


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("con", ["connect"]), ("connect claude-", ["claude-code", "claude-desktop"]), ("doctor --qu", ["--quiet"])],
)
def test_bash_completes_commands_clients_and_options(typed: str, completed: list[str]) -> None:
    words = ["vestige-bridge", *typed.split()]
    script = f"""
source {shlex.quote(str(ROOT / "src/vestige_bridge/cli/completions/bash"))}
COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}
_shtab_vestige_bridge vestige-bridge {shlex.quote(words[-1])} {shlex.quote(words[-2])}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == completed


async def test_the_line_for_curl_gets_an_answer(
    everything: Bridge, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request is sent without curl, which may not be installed."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    await until(everything.ready)
    said = connected(capsys, "curl", "--url", everything.origin)
    line = said[said.index("curl -sS") :].replace("\\\n", "").replace("$VESTIGE_AUTH_TOKEN", TOKEN)
    _curl, _silent, url, *pairs = shlex.split(line)
    headers = dict(value.split(": ", 1) for flag, value in zip(pairs[::2], pairs[1::2], strict=True) if flag == "-H")
    answer = await everything.ask("POST", "/mcp", pairs[pairs.index("-d") + 1].encode(), headers)
    assert url == everything.url
    assert answer.json["result"]["tools"]
