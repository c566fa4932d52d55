"""Runs the conformance suite, and starts its targets."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import aiohttp

from conformance.verdict import DIRECT, Outcome, Scenario
from harness import NODE, BridgeProcess, free_port, until

SUITE: Final = Path(__file__).parent / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
VERSIONS: Final = ("2025-11-25", "2026-07-28")
SCENARIO_SECONDS: Final = 15
RUN_SECONDS: Final = 300

_SUMMARY: Final = re.compile(r"^[✓✗] ([\w-]+): (\d+) passed, (\d+) failed", re.MULTILINE)
_EXTENSION: Final = re.compile(r"^  [✓✗] ([\w-]+) \(extension\)", re.MULTILINE)


async def run_suite(url: str, version: str, scenario: str | None = None) -> dict[Scenario, Outcome]:
    """Runs all scenarios that a version of MCP requires, or one scenario; returns the outcomes.

    Scenarios of extensions, which no version requires, are omitted.
    """
    chosen = ["--scenario", scenario, "--spec-version", version] if scenario else ["--requirements", version]
    with tempfile.TemporaryDirectory() as folder:
        process = await asyncio.create_subprocess_exec(
            *(NODE, SUITE, "server", "--url", url),
            *(*chosen, "--timeout", str(SCENARIO_SECONDS * 1000)),
            cwd=folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(RUN_SECONDS):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    text = output.decode()
    _, _, summary = text.partition("=== SUMMARY ===")
    if scenario:
        passed, failed = re.findall(r"Passed: (\d+)/\d+, (\d+) failed", text)[0]
        return {Scenario(version, scenario): Outcome(int(passed), int(failed))}
    extensions = set(_EXTENSION.findall(summary))
    outcomes = {
        Scenario(version, name): Outcome(int(passed), int(failed))
        for name, passed, failed in _SUMMARY.findall(summary)
        if name not in extensions
    }
    if not outcomes:
        raise RuntimeError(f"The suite did not finish:\n{text[-2000:]}")
    return outcomes


@asynccontextmanager
async def native_server(script: Path) -> AsyncIterator[str]:
    """Starts server-everything with its own HTTP server; yields its URL."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(NODE, script, "streamableHttp"),
        env={"PORT": str(port)},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}/mcp"
    try:
        async with aiohttp.ClientSession() as http:

            async def listens() -> bool:
                try:
                    async with http.get(url):
                        return True
                except aiohttp.ClientConnectionError:
                    return False

            await until(listens, 30)
        yield url
    finally:
        process.terminate()
        await process.wait()


@asynccontextmanager
async def reached(upstream: str, way: str) -> AsyncIterator[str]:
    """Yields the URL at which the suite reaches a server: directly, or through a bridge in a session mode."""
    if way == DIRECT:
        yield upstream
        return
    environ = {
        "VESTIGE_MCP_URL": upstream,
        # The suite cannot send a token.
        "VESTIGE_ALLOW_ANONYMOUS": "true",
        "VESTIGE_BRIDGE_PORT": str(free_port()),
        "VESTIGE_BRIDGE_SESSION_MODE": way,
        "VESTIGE_BRIDGE_METRICS_PORT": str(free_port()),
        "VESTIGE_BRIDGE_LOG_LEVEL": "error",
    }
    async with BridgeProcess(environ).serving() as served:
        await until(served.ready, 30)
        yield served.url
