"""The clients, how each is started, and how it is given a behaviour to run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from harness import NODE, ROOT

HERE: Final = Path(__file__).parent
MODERN: Final = "2026-07-28"
ANSWER_SECONDS: Final = 40


class Connected(Protocol):
    """A client that runs behaviours by name."""

    async def show(self, behaviour: str) -> str:
        """Runs a behaviour; returns ``ok``, ``n/a REASON`` or ``failed REASON``."""


def desktop_server(url: str, token: str, home: Path) -> dict[str, object]:
    """Returns the server that `vestige-bridge connect claude-desktop` configures Claude Desktop to start.

    Parameters:
        url: the endpoint of the bridge.
        token: the token, which is written to the file that the printed instructions name.
        home: the home directory.
    """
    command = [str(ROOT / ".venv/bin/vestige-bridge"), "connect", "claude-desktop", "--url", url]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}
    environ |= {"HOME": str(home), "VESTIGE_AUTH_TOKEN": token}
    said = subprocess.run(command, env=environ, cwd=home, capture_output=True, text=True, check=True).stdout
    (write_token,) = [line for line in said.splitlines() if line.strip().startswith("(umask")]
    subprocess.run(["sh", "-c", write_token], env=environ, check=True)
    server: dict[str, object] = json.loads(said[said.index("{") :])["mcpServers"]["vestige"]
    return server


@dataclass(frozen=True)
class Kind:
    """One release of a client.

    Attributes:
        name: its name in the table.
        connect: starts it with the URL and the token.
    """

    name: str
    connect: Callable[[str, str], AbstractAsyncContextManager[Connected]]


class _Process:
    """A client in its own process, which reads behaviours from its standard input."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def show(self, behaviour: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(f"{behaviour}\n".encode())
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while line := (await self._process.stdout.readline()).decode().strip():
                    if line.startswith(("ok", "n/a", "failed")):
                        return line
        except TimeoutError:
            return f"failed no answer in {ANSWER_SECONDS} s"
        assert self._process.stderr is not None
        log = (await self._process.stderr.read()).decode().strip()
        return f"failed it ended: {log[-300:]}"


@asynccontextmanager
async def _process(
    command: tuple[Path | str, ...], arguments: tuple[str, ...], url: str, token: str
) -> AsyncIterator[_Process]:
    async with _started((*command, url, token, *arguments)) as process:
        yield process


@asynccontextmanager
async def _started(command: tuple[Path | str, ...]) -> AsyncIterator[_Process]:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=HERE.parent,
    )
    try:
        yield _Process(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.communicate()
        if process.returncode is None:
            process.kill()
            await process.wait()


@asynccontextmanager
async def _by_stdio(
    command: tuple[Path | str, ...], arguments: tuple[str, ...], url: str, token: str
) -> AsyncIterator[_Process]:
    """Starts a client that starts `vestige-bridge stdio`; an empty token precedes the additional arguments, if any."""
    with tempfile.TemporaryDirectory() as home:
        server = json.dumps(await asyncio.to_thread(desktop_server, url, token, Path(home)))
        words = (server, "", *arguments) if arguments else (server,)
        async with _started((*command, *words)) as process:
            yield process


class _Inspector:
    """The Inspector's command-line interface, which opens a new connection for each command."""

    def __init__(self, package: str, url: str, token: str) -> None:
        launcher = HERE / "node_modules" / package / "clients/launcher/build/index.js"
        header = f"Authorization: Bearer {token}"
        self._command = [str(NODE), str(launcher), "--cli", url, "--transport", "http", "--header", header]

    async def _run(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *(*self._command, *arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                out, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise RuntimeError(log.decode().strip()[-300:])
        return out.decode()

    async def _call(self, tool: str, *arguments: str) -> str:
        pairs = [word for argument in arguments for word in ("--tool-arg", argument)]
        result = json.loads(await self._run("--method", "tools/call", "--tool-name", tool, *pairs))
        text: str = result["content"][0]["text"]
        return text

    async def show(self, behaviour: str) -> str:
        try:
            return await self._show(behaviour)
        except (RuntimeError, TimeoutError, ValueError, KeyError) as error:
            return f"failed {type(error).__name__} {' '.join(str(error).split())}"

    async def _show(self, behaviour: str) -> str:
        match behaviour:
            case "connect" | "call":
                done = await self._call("test_simple_text") == "This is a simple text response for testing."
            case "list":
                tools = json.loads(await self._run("--method", "tools/list"))["tools"]
                done = "test_simple_text" in {tool["name"] for tool in tools}
            case "200 kB":
                done = await self._call("large", "characters=200000") == "x" * 200_000
            case "20 at once":
                return "n/a its load test prints times, not responses"
            case _:
                return "n/a its command line has no option for it"
        return "ok" if done else "failed another answer"


@asynccontextmanager
async def _inspector(package: str, url: str, token: str) -> AsyncIterator[_Inspector]:
    yield _Inspector(package, url, token)


def _python(name: str, venv: str, module: str, *arguments: str) -> Kind:
    command = (ROOT / f".venv-mcp-{venv}/bin/python", "-m", f"interop.{module}")
    return Kind(name, partial(_process, command, arguments))


def _node(name: str, script: str, *arguments: str) -> Kind:
    return Kind(name, partial(_process, (NODE, HERE / script), arguments))


def _python_by_stdio(name: str, venv: str, module: str) -> Kind:
    command = (ROOT / f".venv-mcp-{venv}/bin/python", "-m", f"interop.{module}")
    return Kind(f"{name}, stdio", partial(_by_stdio, command, ()))


def _node_by_stdio(name: str, script: str, package: str) -> Kind:
    return Kind(f"{name}, stdio", partial(_by_stdio, (NODE, HERE / script), (package,)))


CLIENTS: Final = (
    _python("Python mcp 2.3.0", "2", "python_2"),
    _python("Python mcp 2.3.0, modern only", "2", "python_2", MODERN),
    _python("Python mcp 2.2.0", "2-previous", "python_2"),
    _python("Python mcp 1.30.0", "1", "python_1"),
    _python("Python mcp 1.29.1", "1-previous", "python_1"),
    _python("FastMCP 4.1.6", "fastmcp", "fastmcp_client"),
    _python("FastMCP 4.1.4", "fastmcp-previous", "fastmcp_client"),
    _node("TypeScript client 2.4.0", "typescript_2.mjs", "@modelcontextprotocol/client"),
    _node("TypeScript client 2.4.0, modern only", "typescript_2.mjs", "@modelcontextprotocol/client", MODERN),
    _node("TypeScript client 2.3.1", "typescript_2.mjs", "client-previous"),
    _node("TypeScript sdk 1.32.2", "typescript_1.mjs", "@modelcontextprotocol/sdk"),
    _node("TypeScript sdk 1.32.1", "typescript_1.mjs", "sdk-previous"),
    _python_by_stdio("Python mcp 2.3.0", "2", "python_2"),
    _python_by_stdio("Python mcp 1.30.0", "1", "python_1"),
    _python_by_stdio("FastMCP 4.1.6", "fastmcp", "fastmcp_client"),
    _node_by_stdio("TypeScript client 2.4.0", "typescript_2.mjs", "@modelcontextprotocol/client"),
    _node_by_stdio("TypeScript sdk 1.32.2", "typescript_1.mjs", "@modelcontextprotocol/sdk"),
    Kind("Inspector --cli 2.12.0", partial(_inspector, "inspector-newest")),
    Kind("Inspector --cli 2.11.0", partial(_inspector, "inspector-previous")),
)

BUILT_CLIENTS: Final = (
    Kind("Go SDK 1.8.0", partial(_process, (HERE / "go/interop-newest",), ())),
    Kind("Go SDK 1.7.0", partial(_process, (HERE / "go/interop-previous",), ())),
)

THAT_SIGN_IN: Final = (
    _python("Python mcp 2.3.0", "2", "python_2"),
    _node("TypeScript sdk 1.32.2", "typescript_1.mjs", "@modelcontextprotocol/sdk"),
)
"""The clients that test signing in by default: one for each language."""

ALL_THAT_SIGN_IN: Final = (
    *THAT_SIGN_IN,
    _python("Python mcp 2.3.0, modern only", "2", "python_2", MODERN),
    _python("Python mcp 1.30.0", "1", "python_1"),
    _node("TypeScript client 2.4.0", "typescript_2.mjs", "@modelcontextprotocol/client"),
    _node("TypeScript client 2.4.0, modern only", "typescript_2.mjs", "@modelcontextprotocol/client", MODERN),
)
