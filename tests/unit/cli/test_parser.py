from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import vestige_bridge
from vestige_bridge import __version__
from vestige_bridge.cli.parser import main
from vestige_bridge.settings import describe


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sets a temporary working directory, and removes the bridge's variables from the environment."""
    monkeypatch.chdir(tmp_path)
    for variable, _, _ in describe():
        monkeypatch.delenv(variable, raising=False)


def test_help_names_every_variable_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    for variable, default, _ in describe():
        assert f"{variable} (default: {default or 'none'})" in shown
    assert max(map(len, shown.splitlines())) <= 100


def test_version_is_the_version_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"vestige-bridge {__version__}\n"


def test_an_unknown_command_is_exit_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["start"])
    assert exited.value.code == 2
    assert "start" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["serve"]])
def test_mistakes_are_a_line_each_on_standard_error_and_exit_status_2(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIGE_BRIDGE_PORT", "http")
    Path(".env").write_text("VESTIGE_BRIDGE_PORT=0\nVESTIGE_MCP_URL=nowhere\nVESTIGE_BRIDGE_HOST\n")
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert [line.partition(":")[0] for line in shown.err.splitlines()] == ["VESTIGE_MCP_URL", "VESTIGE_BRIDGE_PORT"]


def test_the_doctor_names_a_mistake_in_the_settings_and_makes_no_other_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIGE_MCP_URL", "nowhere")
    assert main(["doctor"]) == 1
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("✗ settings      VESTIGE_MCP_URL: ")
    assert len(others) == 6
    assert all(line.endswith("not checked: settings did not pass") for line in others)


def test_a_quiet_doctor_prints_nothing_for_wrong_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VESTIGE_BRIDGE_PORT", "none")
    assert main(["doctor", "--quiet"]) == 1
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1000", "soon"])
def test_an_invalid_timeout_is_exit_status_2(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["doctor", f"--timeout={seconds}"])
    assert exited.value.code == 2
    assert f"{seconds!r} is not a number of seconds greater than 0 and at most 600" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "tools", "call", "connect", "stdio"])
def test_the_help_of_a_command_shows_how_it_is_used(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([command, "--help"])
    assert exited.value.code == 0
    shown = capsys.readouterr().out
    assert f"\n  vestige-bridge {command}" in shown
    assert "VESTIGE_AUTH_TOKEN" in shown
    assert "exit status" in shown or command not in ("doctor", "call")
    assert max(map(len, shown.splitlines())) <= 120


@pytest.mark.parametrize("arguments", [["--version"], ["doctor", "--quiet"], ["connect", "codex"], ["stdio"]])
def test_commands_that_do_not_serve_import_no_server_package(arguments: list[str]) -> None:
    code = f"""
import sys
from contextlib import suppress
from vestige_bridge.__main__ import main
with suppress(SystemExit):
    main({arguments!r})
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "VESTIGE_BRIDGE_PORT": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    imported = done.stdout.splitlines()[-1].split()
    assert "vestige_bridge" in imported
    servers = {"aiohttp", "httptools", "prometheus_client", "starlette", "uvicorn", "uvloop"}
    assert not (servers if arguments == ["stdio"] else servers | {"asyncio"}) & set(imported)


@pytest.mark.parametrize(
    "content",
    ["VESTIGE_BRIDGE_PORT=1\n".encode("utf-16"), "VESTIGE_BRIDGE_PORT=1\n".encode("utf-16-le"), b"NAME=Z\xfcrich\n"],
    ids=["utf-16", "utf-16 without a mark", "latin-1"],
)
@pytest.mark.parametrize("arguments", [[], ["tools"], ["stdio"]])
def test_a_dotenv_that_is_not_utf_8_is_a_sentence_and_exit_status_2(
    content: bytes, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").write_bytes(content)
    assert main(arguments) == 2
    assert capsys.readouterr().err == ".env: it is not UTF-8; save it as UTF-8.\n"


def test_a_dotenv_with_a_byte_order_mark_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_text("VESTIGE_BRIDGE_PORT=http\n", "utf-8-sig")
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("VESTIGE_BRIDGE_PORT: 'http'")


def test_a_dotenv_that_is_a_folder_is_ignored() -> None:
    Path(".env").mkdir()
    assert main(["connect"]) == 0


def test_a_dotenv_that_cannot_be_read_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(".env").symlink_to("/proc/self/mem")  # a file that even root cannot read from its beginning
    assert main(["tools"]) == 2
    assert capsys.readouterr().err.startswith(".env: it cannot be read: ")


def started(*arguments: str, redirection: str = "", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Runs the command in a shell that redirects its streams."""
    command = shlex.join([sys.executable, "-m", "vestige_bridge", *arguments])
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHON"))}
    return subprocess.run(
        ["sh", "-c", f"exec {command} {redirection}"],
        env={**environ, **variables},
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_help_replaces_characters_that_the_terminal_cannot_encode() -> None:
    done = started("call", "--help", PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"vestige-bridge call" in done.stdout
    done = started("--help", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Authorization: Bearer ?" in done.stdout


@pytest.mark.parametrize("redirection", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_not_an_error(redirection: str) -> None:
    done = started("connect", redirection=redirection)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.startswith(b"claude-code") is (">&-" not in redirection.replace("2>&-", ""))


def test_an_unknown_attribute_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError):
        vestige_bridge.__getattr__("__author__")
