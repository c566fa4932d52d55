"""`make dev` in a terminal, until Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shlex
import shutil
import socket
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness import NODE, ROOT, SERVER_EVERYTHING, free_port

READY = "Ctrl-C ends both."
PORTS = ("VESTIGE_MCP_PORT", "VESTIGE_BRIDGE_PORT", "VESTIGE_BRIDGE_METRICS_PORT")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the checkout that uses the packages installed in this one."""
    copy = tmp_path / "check out"
    for folder in ("dev", "docker/gateway"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    for file in ("Makefile", "Procfile", "setup.cfg", "pyproject.toml"):
        shutil.copyfile(ROOT / file, copy / file)
    for file in ("setup.cfg", "pyproject.toml", "docker/gateway/package.json", "docker/gateway/package-lock.json"):
        os.utime(copy / file, (0, 0))  # older than the installed packages, so that none is installed again
    (copy / ".venv").symlink_to(ROOT / ".venv")
    (copy / "docker/gateway/node_modules").symlink_to(ROOT / "docker/gateway/node_modules")
    return copy


@pytest.fixture
def ports() -> dict[str, str]:
    """Free ports for both processes."""
    return {variable: str(free_port()) for variable in PORTS}


def clean_environment(variables: dict[str, str]) -> dict[str, str]:
    """Returns the environment without settings and without the variables of an outer make."""
    drop = ("VESTIGE_", "MAKE", "MFLAGS", "GATEWAY_", "COVERAGE_", "NO_PROXY", "no_proxy")
    return {name: value for name, value in os.environ.items() if not name.startswith(drop)} | variables


class Terminal:
    """A terminal in which `make dev` runs."""

    def __init__(self, checkout: Path, variables: dict[str, str]) -> None:
        self.screen = ""
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(checkout)
            os.execvpe("make", ["make", "dev"], clean_environment(variables))

    def read_until(self, text: str, seconds: float) -> None:
        """Reads the screen until it shows the text."""
        over = time.monotonic() + seconds
        os.set_blocking(self._terminal, False)
        while text not in self.screen:
            assert time.monotonic() < over, self.screen
            try:
                self.screen += os.read(self._terminal, 65536).decode()
            except BlockingIOError:
                time.sleep(0.02)
            except OSError as error:  # the other end is closed
                raise AssertionError(self.screen) from error

    def processes(self) -> list[psutil.Process]:
        """Returns make and all its child processes."""
        make = psutil.Process(self._pid)
        return [make, *make.children(recursive=True)]

    def press_ctrl_c(self) -> None:
        """Sends Ctrl-C, and asserts that no process runs after five seconds."""
        processes = self.processes()
        os.write(self._terminal, b"\x03")
        _, left = psutil.wait_procs(processes, timeout=5)
        for process in left:
            process.kill()
        os.close(self._terminal)
        assert not left


@contextmanager
def running(checkout: Path, variables: dict[str, str]) -> Iterator[Terminal]:
    """Runs `make dev` until it is ready; sends Ctrl-C at the end."""
    terminal = Terminal(checkout, variables)
    try:
        terminal.read_until(READY, 60)
        yield terminal
    finally:
        terminal.press_ctrl_c()


def paste(screen: str, change: Callable[[Any], Any] = lambda body: body) -> Any:
    """Sends the request of the curl line on the screen, without curl, which may not be installed."""
    (line,) = [line for line in screen.splitlines() if line.strip().startswith("curl ")]
    _curl, _options, *words = shlex.split(line)
    url, *pairs = words[2:] if words[0] == "--noproxy" else words
    headers = dict(value.split(": ", 1) for flag, value in zip(pairs[::2], pairs[1::2], strict=True) if flag == "-H")
    body = change(json.loads(pairs[pairs.index("-d") + 1]))
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=10) as response:
        return json.load(response)


def run_printed(screen: str, checkout: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Runs the printed line that ends in this command of the bridge, as in a new terminal."""
    (line,) = [line for line in screen.splitlines() if line.endswith(f".venv/bin/vestige-bridge {name}")]
    environ = clean_environment({})
    return subprocess.run(
        line, shell=True, cwd=checkout, env=environ, capture_output=True, text=True, timeout=60, check=False
    )


def calling(tool: str, arguments: dict[str, Any]) -> Callable[[Any], Any]:
    """Returns a change for ``paste``: the body becomes a call of a tool."""
    return lambda body: {**body, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def refused(checkout: Path, variables: dict[str, str]) -> str:
    """Returns the output of `make dev` when it cannot start."""
    done = subprocess.run(
        ["make", "dev"],
        cwd=checkout,
        env=clean_environment(variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_first_start_makes_a_token_once_and_memory_survives_a_restart(checkout: Path, ports: dict[str, str]) -> None:
    entity = {"name": "sky", "entityType": "fact", "observations": ["it is blue"]}
    with running(checkout, ports) as terminal:
        dotenv = checkout / ".env"
        token = dotenv.read_text().removeprefix("VESTIGE_AUTH_TOKEN=").strip()
        assert len(token) > 30
        assert stat.S_IMODE(dotenv.stat().st_mode) == 0o600
        assert f"wrote it to .env: {token}" in terminal.screen
        assert "server-memory" in terminal.screen
        assert "VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY=1" in terminal.screen
        assert len(paste(terminal.screen)["result"]["tools"]) == 9
        paste(terminal.screen, calling("create_entities", {"entities": [entity]}))
    with running(checkout, ports) as terminal:
        assert "Made a token" not in terminal.screen
        graph = paste(terminal.screen, calling("read_graph", {}))["result"]["structuredContent"]
        assert graph["entities"] == [entity]
    assert {file.name for file in (checkout / ".dev").iterdir()} == {"memory.jsonl", "vestige.log"}


def test_the_first_output_has_one_line_per_process_and_no_warnings(checkout: Path, ports: dict[str, str]) -> None:
    with running(checkout, ports) as terminal:
        before, _, after = terminal.screen.partition("Ready:")
    for noise in ("WARNING", "ERROR", "status=", "npm", "[Errno", "Error:"):
        assert noise not in before
    assert before.count("Listening on") == before.count("Vestige connected") == 1
    token = (checkout / ".env").read_text().removeprefix("VESTIGE_AUTH_TOKEN=").strip()
    (line,) = [line.strip() for line in after.splitlines() if line.strip().startswith("claude ")]
    url = f"http://127.0.0.1:{ports['VESTIGE_BRIDGE_PORT']}/mcp"
    assert shlex.split(line) == [
        *("claude", "mcp", "add", "--scope", "user", "--transport", "http", "vestige", url),
        *("--header", f"Authorization: Bearer {token}"),
    ]


def test_the_printed_commands_use_the_chosen_ports(checkout: Path, ports: dict[str, str]) -> None:
    with running(checkout, ports) as terminal:
        doctor = run_printed(terminal.screen, checkout, "doctor")
        clients = run_printed(terminal.screen, checkout, "connect")
    assert doctor.returncode == 0, doctor.stdout
    assert f"http://127.0.0.1:{ports['VESTIGE_MCP_PORT']}/mcp" in doctor.stdout
    assert [line[0] for line in doctor.stdout.splitlines()] == ["✓"] * 7
    assert clients.returncode == 0


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
def test_loopback_never_goes_through_a_proxy(checkout: Path, ports: dict[str, str], variable: str) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    with running(checkout, ports | {variable: nobody, "NO_PROXY": "", "no_proxy": ""}) as terminal:
        assert "curl -sS --noproxy '*' http" in terminal.screen
        assert len(paste(terminal.screen)["result"]["tools"]) == 9


def test_a_dotenv_that_is_not_utf_8_is_one_sentence(checkout: Path, ports: dict[str, str]) -> None:
    (checkout / ".env").write_bytes("VESTIGE_AUTH_TOKEN=x\n".encode("utf-16"))
    said = refused(checkout, ports)
    assert "it is not UTF-8" in said
    assert "Traceback" not in said


@pytest.fixture
def vestige(checkout: Path) -> Path:
    """A `vestige-mcp` in the checkout whose tool `get-env` returns its environment."""
    program = checkout / ".tools/bin/vestige-mcp"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\nexec {shlex.join([str(NODE), str(SERVER_EVERYTHING)])}\n")
    program.chmod(0o755)
    return program


def test_an_installed_vestige_is_used_and_does_not_get_the_bridges_token(
    checkout: Path, ports: dict[str, str], vestige: Path
) -> None:
    with running(checkout, ports) as terminal:
        assert f"Memory: Vestige ({vestige})" in terminal.screen
        assert "UPSTREAM_CONCURRENCY" not in terminal.screen
        seen = paste(terminal.screen, calling("get-env", {}))["result"]["content"][0]["text"]
    environ = json.loads(seen)
    assert environ["HOME"] == str(checkout / ".dev/vestige")
    assert environ["VESTIGE_AUTOPILOT_ENABLED"] == "0"
    assert "VESTIGE_AUTH_TOKEN" not in environ


@pytest.mark.usefixtures("vestige")
def test_the_autopilot_of_vestige_runs_if_configured(checkout: Path, ports: dict[str, str]) -> None:
    with running(checkout, {**ports, "VESTIGE_AUTOPILOT_ENABLED": "1"}) as terminal:
        seen = paste(terminal.screen, calling("get-env", {}))["result"]["content"][0]["text"]
    assert json.loads(seen)["VESTIGE_AUTOPILOT_ENABLED"] == "1"


def test_anonymous_access_makes_no_token(checkout: Path, ports: dict[str, str]) -> None:
    (checkout / ".env").write_text("VESTIGE_ALLOW_ANONYMOUS=true\n")
    with running(checkout, ports) as terminal:
        assert len(paste(terminal.screen)["result"]["tools"]) == 9
        assert "Authorization" not in terminal.screen
    assert "VESTIGE_AUTH_TOKEN" not in (checkout / ".env").read_text()


def test_the_environment_wins_over_dotenv_and_an_existing_file_is_kept(checkout: Path, ports: dict[str, str]) -> None:
    (checkout / ".env").write_text("VESTIGE_BRIDGE_PORT=1\nVESTIGE_BRIDGE_LOG_LEVEL=error")
    with running(checkout, ports) as terminal:
        assert f"http://127.0.0.1:{ports['VESTIGE_BRIDGE_PORT']}/mcp" in terminal.screen
        assert paste(terminal.screen)["result"]
    lines = (checkout / ".env").read_text().splitlines()
    assert lines[:2] == ["VESTIGE_BRIDGE_PORT=1", "VESTIGE_BRIDGE_LOG_LEVEL=error"]
    assert lines[2].startswith("VESTIGE_AUTH_TOKEN=")


def test_a_file_of_tokens_takes_the_place_of_the_token_in_dotenv(
    checkout: Path, ports: dict[str, str], tmp_path: Path
) -> None:
    (checkout / ".env").write_text("VESTIGE_AUTH_TOKEN=a-token-of-an-earlier-start\n")
    tokens, audit = tmp_path / "tokens.toml", tmp_path / "audit.jsonl"
    tokens.write_text(
        '[[token]]\nname = "job"\nsha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"\n'
        '[[token]]\nname = "agents"\ntoken = "a-token-with-rights"\ntools = ["read_*"]\n'
    )
    variables = {"VESTIGE_AUTH_TOKEN_FILE": str(tokens), "VESTIGE_BRIDGE_AUDIT_LOG": str(audit)}
    with running(checkout, ports | variables) as terminal:
        tools = paste(terminal.screen)["result"]["tools"]
        paste(terminal.screen, calling("read_graph", {}))
    assert [tool["name"] for tool in tools] == ["read_graph"]
    (line,) = audit.read_text().splitlines()
    assert (json.loads(line)["principal"], json.loads(line)["tool"]) == ("agents", "read_graph")
    assert (checkout / ".env").read_text() == "VESTIGE_AUTH_TOKEN=a-token-of-an-earlier-start\n"


def test_with_a_file_of_hashes_the_printed_line_has_no_token(
    checkout: Path, ports: dict[str, str], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens.toml"
    digest = hashlib.sha256(b"a-token-of-a-person").hexdigest()
    tokens.write_text(f'[[token]]\nname = "agents"\nsha256 = "{digest}"\n')
    (checkout / ".env").write_text(f"VESTIGE_AUTH_TOKEN_FILE={tokens}\n")
    with running(checkout, ports) as terminal:
        assert "with a token. YOUR-TOKEN stands for it: the file holds hashes." in terminal.screen
        tools = paste(terminal.screen.replace("YOUR-TOKEN", "a-token-of-a-person"))["result"]["tools"]
    assert len(tools) == 9


@pytest.mark.parametrize("variable", PORTS)
def test_a_port_that_is_taken_is_one_sentence_naming_the_variable(
    checkout: Path, ports: dict[str, str], variable: str
) -> None:
    taken = free_port()
    with subprocess.Popen(
        [NODE, "-e", f"require('net').createServer().listen({taken}, '127.0.0.1', () => console.log(1))"],
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        said = refused(checkout, ports | {variable: str(taken)})
        holder.kill()
    assert f"Port {taken} on 127.0.0.1 is not free" in said
    assert f"(Address already in use): set {variable} to another port" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_either_family_has_taken_is_not_free_for_both(
    checkout: Path, ports: dict[str, str], address: str
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as taken:
        port = taken.getsockname()[1]
        said = refused(checkout, ports | {"VESTIGE_BRIDGE_HOST": "::", "VESTIGE_BRIDGE_PORT": str(port)})
    assert f"Port {port} on :: is not free (Address already in use)" in said


def test_a_port_that_is_given_twice_is_one_sentence_naming_both_variables(
    checkout: Path, ports: dict[str, str]
) -> None:
    ports["VESTIGE_BRIDGE_METRICS_PORT"] = ports["VESTIGE_BRIDGE_PORT"]
    assert "VESTIGE_BRIDGE_PORT and VESTIGE_BRIDGE_METRICS_PORT are both" in refused(checkout, ports)


@pytest.mark.parametrize("value", ["many", "0", "70000"])
def test_an_invalid_port_is_one_sentence(checkout: Path, ports: dict[str, str], value: str) -> None:
    assert f"VESTIGE_MCP_PORT is '{value}'" in refused(checkout, ports | {"VESTIGE_MCP_PORT": value})


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (None, "Python 3.11 or newer"),
        ("#!/bin/sh\n[ $1 = -c ] && exit 1\necho Python 3.9.2\n", "Python 3.9.2 is too old"),
        ("#!/bin/sh\ncase $2 in *ensurepip*) exit 1;; esac\n", "apt install python3-venv"),
    ],
    ids=["no python", "an old python", "a python without venv"],
)
def test_a_missing_prerequisite_is_one_sentence_that_names_the_package(
    checkout: Path, tmp_path: Path, script: str | None, sentence: str
) -> None:
    (checkout / ".venv").unlink()
    python = tmp_path / "python"
    if script is not None:
        python.write_text(script)
        python.chmod(0o755)
    said = refused(checkout, {"PYTHON": str(python)})
    assert sentence in said


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1"])
def test_the_gateway_exits_if_it_cannot_listen_on_the_configured_host(host: str) -> None:
    gateway = ROOT / "docker/gateway"
    done = subprocess.run(
        [
            NODE,
            "--import",
            gateway / "bind.js",
            gateway / "node_modules/supergateway/dist/index.js",
            *("--stdio", "true", "--outputTransport", "streamableHttp", "--stateful", "--port", str(free_port())),
        ],
        env={**os.environ, "GATEWAY_HOST": host},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert host in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_gateway_listens_on_loopback_only(checkout: Path, ports: dict[str, str]) -> None:
    with running(checkout, ports) as terminal:
        listening = [
            connection.laddr.ip
            for process in terminal.processes()
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]
    assert listening == ["127.0.0.1"] * len(PORTS)
