"""The compared programs, and how each is started in front of an upstream according to its documentation."""

from __future__ import annotations

import http.server
import os
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.processes import BUILD, ROOT, TOKEN, UPSTREAMS, Failed, Process, free_port, listens, post, running, until

Command = list[str | Path]
PROXIES = Path(__file__).parent / "proxies"
BENCH_PYTHON = ROOT / ".venv-bench/bin/python"
MCP_PROXY = ROOT / ".venv-bench-mcp-proxy/bin/mcp-proxy"
THV = ROOT / ".tools/bin/thv"
NGINX_BINARY = Path("/usr/sbin/nginx")
WRK = Path("/usr/bin/wrk")
INITIALIZE: Mapping[str, Any] = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "bench", "version": "1"},
    },
}


@dataclass(frozen=True)
class Contender:
    """A proxy in front of an upstream.

    Attributes:
        name: its name in the tables.
        command: builds its command line from the URL of upstream, a port and a folder.
        environ: builds its environment variables from the same three.
        headers: additional headers of its clients.
        heavy: whether it is so slow that it needs longer turns.
        discards_log: whether its log goes to /dev/null: a line for each request is part of its cost.
    """

    name: str
    command: Callable[[str, int, Path], Command]
    environ: Callable[[str, int, Path], dict[str, str]] = lambda *_: {}
    headers: tuple[str, ...] = ()
    heavy: bool = False
    discards_log: bool = False


@dataclass(frozen=True)
class Started:
    """A running contender; if it has no process of its own, it is upstream itself."""

    name: str
    port: int
    process: Process | None
    headers: tuple[str, ...] = field(default=())
    heavy: bool = False


BOTH = "Accept: application/json, text/event-stream"
AUTHORIZATION = f"Authorization: Bearer {TOKEN}"


def _nginx(url: str, port: int, folder: Path) -> Command:
    text = (PROXIES / "nginx.conf").read_text()
    upstream_port = url.split(":")[2].partition("/")[0]
    for word, value in {"UPSTREAM_PORT": upstream_port, "PORT": str(port), "TOKEN": TOKEN}.items():
        text = text.replace(word, value)
    (folder / "nginx.conf").write_text(text)
    return [NGINX_BINARY, "-p", folder, "-e", "stderr", "-c", folder / "nginx.conf"]


def _bridge(url: str, port: int, folder: Path, log_format: str = "json") -> dict[str, str]:
    return {
        "VESTIGE_MCP_URL": url,
        "VESTIGE_AUTH_TOKEN": TOKEN,
        "VESTIGE_BRIDGE_PORT": str(port),
        "VESTIGE_BRIDGE_METRICS_PORT": str(free_port()),
        "VESTIGE_BRIDGE_LOG_FORMAT": log_format,
    }


def _mcp_proxy(*options: str) -> Callable[[str, int, Path], Command]:
    """Builds the command of two instances, because it only converts HTTP to stdio and stdio to HTTP."""
    quiet: Command = [MCP_PROXY, "--log-level", "WARNING"]

    def command(url: str, port: int, folder: Path) -> Command:
        return [*quiet, "--port", str(port), *options, "--", *quiet, "--transport", "streamablehttp", url]

    return command


def _toolhive(url: str, port: int, folder: Path) -> Command:
    return [THV, "proxy", "bench", "--target-uri", url.removesuffix("/mcp"), "--port", str(port)]


def _toolhive_environ(url: str, port: int, folder: Path) -> dict[str, str]:
    return {
        "HOME": str(folder),
        "TOOLHIVE_DOCKER_SOCKET": str(folder / "docker.sock"),
        "TOOLHIVE_SKIP_UPDATE_CHECK": "true",
    }


BRIDGE = Contender(
    "bridge",
    lambda *_: [ROOT / ".venv/bin/python", "-m", "vestige_bridge"],
    _bridge,
    headers=(AUTHORIZATION,),
    discards_log=True,
)
BRIDGE_TEXT = replace(BRIDGE, name="bridge, text log", environ=partial(_bridge, log_format="text"))
NGINX = Contender("nginx", _nginx, headers=(AUTHORIZATION,))
FLOOR = Contender("floor", lambda url, port, _: [BENCH_PYTHON, PROXIES / "floor.py", url, str(port)])
STARLETTE = Contender("Starlette", lambda url, port, _: [BENCH_PYTHON, PROXIES / "starlette_route.py", url, str(port)])
FASTMCP = Contender(
    "FastMCP",
    lambda url, port, _: [BENCH_PYTHON, PROXIES / "fastmcp_proxy.py", url, str(port), "stateless"],
    headers=(BOTH,),
    heavy=True,
)
FASTMCP_SESSIONS = Contender(
    "FastMCP", lambda url, port, _: [BENCH_PYTHON, PROXIES / "fastmcp_proxy.py", url, str(port), "sessions"]
)
MCP_PROXY_PAIR = Contender("mcp-proxy", _mcp_proxy("--stateless"), headers=(BOTH,), heavy=True)
MCP_PROXY_SESSIONS = Contender("mcp-proxy", _mcp_proxy())
TOOLHIVE = Contender("ToolHive", _toolhive, _toolhive_environ)


def everybody() -> list[Contender]:
    """Returns all contenders; ToolHive only with PEERS=all, because it must be built and needs its own network."""
    peers = [TOOLHIVE] if os.environ.get("PEERS") == "all" else []
    # Contenders whose figures are compared run one after the other.
    return [NGINX, *peers, BRIDGE, FLOOR, BRIDGE_TEXT, STARLETTE, FASTMCP, MCP_PROXY_PAIR]


@contextmanager
def started(contender: Contender, url: str, **variables: str) -> Iterator[Started]:
    """Starts a contender and waits until it answers; the variables are added to its environment."""
    port = free_port()
    log = BUILD / f"{contender.name}.log"
    with tempfile.TemporaryDirectory(prefix="bench-") as name, container_runtime(Path(name) / "docker.sock"):
        folder = Path(name)
        environ = {**contender.environ(url, port, folder), **variables}
        output = Path(os.devnull) if contender.discards_log else log
        with running(contender.command(url, port, folder), environ, output, folder) as process:
            until(lambda: listens(port), 180, process)
            headers = dict(header.split(": ", 1) for header in contender.headers)
            until(lambda: post(port, INITIALIZE, headers)[0] == 200, 180, process, pause=0.1)
            yield Started(contender.name, port, process, contender.headers, contender.heavy)


@contextmanager
def container_runtime(path: Path) -> Iterator[None]:
    """Serves the ping of a container runtime on a socket, because ToolHive requires one at its start."""

    class Pong(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Api-Version", "1.44")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def address_string(self) -> str:
            return "-"

        def log_message(self, *arguments: object) -> None:
            pass

    with socketserver.ThreadingUnixStreamServer(str(path), Pong) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def complete() -> None:
    """Checks that all tools of a run are installed.

    Errors:
        Failed: one is missing; make installs it.
    """
    needed = [BENCH_PYTHON, MCP_PROXY, BUILD / "load", *UPSTREAMS.values(), NGINX_BINARY, WRK]
    absent = [str(path) for path in needed if not path.exists()]
    if absent:
        raise Failed(f"{', '.join(absent)}: not there. `make bench-tools` installs it.")
