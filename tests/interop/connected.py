"""Connects clients by the instructions of `vestige-bridge connect`, and lists the tools; exits with 1 if one fails.

`--all` includes the agents that are distributed as programs. They contact their vendors, so such a run needs a network
namespace with only loopback.

usage: PYTHONPATH=tests python -m interop.connected [--all]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from harness import NODE, ROOT, SERVER_MEMORY, TOKEN, Bridge, Gateway, bridge, until
from interop.clients import HERE
from vestige_bridge.cli.client_catalog import BY_KEY, TOKEN_VARIABLE, Target

AGENTS: Final = HERE / "agents/node_modules"
OPENCLAW: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vestige-bridge"
TOOL: Final = "read_graph"
SECONDS: Final = 120


class Person:
    """A user with a new home directory, who follows the printed instructions.

    Parameters:
        home: the home directory, and the working directory.
        url: the endpoint of the bridge.
    """

    def __init__(self, home: Path, url: str) -> None:
        self.home = home
        self.url = url
        self._target = Target(url, TOKEN_VARIABLE, str(ROOT / ".venv/bin/vestige-bridge"), str(home))
        (home / "bin").mkdir()

    def instructions(self, key: str) -> list[str]:
        """Returns the instructions for a client that need no release, in order."""
        return [self._target.filled(step.text) for step in BY_KEY[key].steps_for(owner="")]

    def install(self, name: str, *command: Path | str) -> None:
        """Adds a command to the directory that comes first in ``PATH``."""
        script = self.home / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.join(map(str, command))} "$@"\n')
        script.chmod(0o755)

    async def run(self, *command: Path | str) -> str:
        """Runs a command; returns its standard output."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("VESTIGE_", "COVERAGE_"))
        }
        path = f"{self.home / 'bin'}:{os.environ['PATH']}"
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=self.home,
            env={**inherited, "HOME": str(self.home), "PATH": path, "NO_COLOR": "1", TOKEN_VARIABLE: TOKEN},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(SECONDS):
                out, log = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {log.decode().strip()[-500:]}")
        return out.decode()


def python(key: str, venv: str) -> Callable[[Person], Awaitable[None]]:
    """Returns a function that connects a Python library by the script for it."""

    async def connect(person: Person) -> None:
        (script,) = person.instructions(key)
        names = await person.run(ROOT / f".venv-mcp-{venv}/bin/python", "-c", script)
        assert TOOL in names.split(), names

    return connect


async def typescript(person: Person) -> None:
    (script,) = person.instructions("typescript")
    (person.home / "node_modules").symlink_to(ROOT / "tests/node_modules")
    (person.home / "tools.mjs").write_text(script)
    names = await person.run(NODE, "tools.mjs")
    assert TOOL in names.split(), names


async def inspector(person: Person) -> None:
    (line,) = person.instructions("inspector")
    launcher = HERE / "node_modules/inspector-newest/clients/launcher/build/index.js"
    # The package is already installed here; npx would download it.
    person.install("inspector", NODE, launcher)
    tools = json.loads(
        await person.run("sh", "-c", line.replace("npx -y @modelcontextprotocol/inspector", "inspector"))
    )
    assert TOOL in [tool["name"] for tool in tools["tools"]], tools


async def curl(person: Person) -> None:
    (line,) = person.instructions("curl")
    answer = json.loads(await person.run("sh", "-c", line))
    assert TOOL in [tool["name"] for tool in answer["result"]["tools"]], answer


async def claude_code(person: Person) -> None:
    (program,) = AGENTS.glob("@anthropic-ai/claude-code-*/claude")
    person.install("claude", program)
    add, check = person.instructions("claude-code")
    await person.run("sh", "-c", add)
    said = await person.run("sh", "-c", check)
    assert f"vestige: {person.url} (HTTP) - ✔ Connected" in said, said
    assert TOKEN not in (person.home / ".claude.json").read_text()


async def codex(person: Person) -> None:
    (program,) = AGENTS.glob("@openai/codex-*/vendor/*/bin/codex")
    person.install("codex", program)
    add, check = person.instructions("codex")
    await person.run("sh", "-c", add)
    transport = json.loads(await person.run("sh", "-c", f"{check} --json"))["transport"]
    assert (transport["url"], transport["bearer_token_env_var"]) == (person.url, TOKEN_VARIABLE), transport


async def openclaw(person: Person) -> None:
    (home,) = await asyncio.to_thread(lambda: list(OPENCLAW.glob("openclaw-*/")))
    person.install("openclaw", home / "bin/node", home / "node_modules/openclaw/openclaw.mjs")
    config, check = person.instructions("openclaw")
    (person.home / ".openclaw").mkdir()
    (person.home / ".openclaw/openclaw.json").write_text(config)
    said = await person.run("sh", "-c", check)
    assert "- vestige: 9 tools" in said, said


CONNECTED: Final = {
    "python": python("python", "2"),
    "python-1": python("python-1", "1"),
    "fastmcp": python("fastmcp", "fastmcp"),
    "typescript": typescript,
    "inspector": inspector,
    "curl": curl,
}
AGENTS_CONNECTED: Final = {"claude-code": claude_code, "codex": codex, "openclaw": openclaw}


async def attempt(key: str, connect: Callable[[Person], Awaitable[None]], served: Bridge) -> bool:
    """Connects a client by the printed instructions; returns whether that succeeded."""
    with tempfile.TemporaryDirectory(prefix="vestige-bridge-") as home:
        try:
            await connect(Person(Path(home), served.url))
        except (AssertionError, RuntimeError, TimeoutError, ValueError, KeyError) as error:
            print(f"✗ {key}: {type(error).__name__} {error}", flush=True)
            return False
    print(f"✓ {key}", flush=True)
    return True


async def measure(*, agents: bool) -> bool:
    """Connects all clients; returns whether all succeeded."""
    clients = {**CONNECTED, **(AGENTS_CONNECTED if agents else {})}
    with tempfile.TemporaryDirectory(prefix="vestige-bridge-") as folder:
        gateway = Gateway(SERVER_MEMORY, {"MEMORY_FILE_PATH": f"{folder}/memory.jsonl"})
        await asyncio.to_thread(gateway.start)
        try:
            async with bridge(gateway.url) as served:
                await until(served.ready)
                connected = [await attempt(key, connect, served) for key, connect in clients.items()]
                assert served.drain is not None
                await served.drain()  # ends streams that clients left open
                return all(connected)
        finally:
            await asyncio.to_thread(gateway.stop)


def main() -> int:
    """Connects the clients, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make interop")
    parser.add_argument("--all", action="store_true", help="also the agents, which are large")
    return 0 if asyncio.run(measure(agents=parser.parse_args().all)) else 1


if __name__ == "__main__":
    sys.exit(main())
