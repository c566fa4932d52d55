"""Prints a table of clients and behaviours, and exits with 1 if a client fails a behaviour that it supports.

usage: PYTHONPATH=tests python -m interop [--write] [--all]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable
from contextlib import AsyncExitStack

from compatibility import BRIDGE_VERSION, package_version, write_section
from harness import ROOT, SUPERGATEWAY, TOKEN, BridgeProcess, Gateway, environment, free_port, until
from interop.clients import BUILT_CLIENTS, CLIENTS, Kind

BEHAVIOURS = ("connect", "list", "call", "progress", "cancel", "200 kB", "20 at once")
BRIDGE_RESTARTED = "bridge restarted"
UPSTREAM_RESTARTED = "upstream restarted"
AT_ONCE = 2
CLIENT_SECONDS = 120


async def run_behaviours(kind: Kind) -> dict[str, str]:
    """Tests a client; returns its results by behaviour. It stays connected while bridge and upstream are restarted."""
    answers: dict[str, str] = {}
    gateway = Gateway(ROOT / "tests/server.mjs")
    await asyncio.to_thread(gateway.start)
    environ = environment(gateway.url, PORT=str(free_port()), LOG_LEVEL="error")
    url = f"http://127.0.0.1:{environ['VESTIGE_BRIDGE_PORT']}/mcp"
    try:
        async with asyncio.timeout(CLIENT_SECONDS), AsyncExitStack() as stack:
            first = BridgeProcess(environ)
            async with first.serving() as served:
                await until(served.ready)
                client = await stack.enter_async_context(kind.connect(url, TOKEN))
                for behaviour in BEHAVIOURS:
                    answers[behaviour] = await client.show(behaviour)
                first.terminate()
                await first.ended()
            async with BridgeProcess(environ).serving() as served:
                await until(served.ready)
                answers[BRIDGE_RESTARTED] = await client.show("call")
                await asyncio.to_thread(gateway.kill)
                await asyncio.to_thread(gateway.start)
                answers[UPSTREAM_RESTARTED] = await client.show("call")
                await stack.aclose()
    except TimeoutError:
        pass
    finally:
        await asyncio.to_thread(gateway.stop)
    return answers


async def measure(kinds: Iterable[Kind]) -> dict[str, dict[str, str]]:
    """Returns the results of each client by behaviour."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def run(kind: Kind) -> dict[str, str]:
        async with gate:
            answers = await run_behaviours(kind)
            print(f"{kind.name}: done", file=sys.stderr, flush=True)
            return answers

    async with asyncio.TaskGroup() as group:
        tasks = {kind.name: group.create_task(run(kind)) for kind in kinds}
    return {name: task.result() for name, task in tasks.items()}


def judge(results: dict[str, dict[str, str]]) -> tuple[str, list[str]]:
    """Returns the table, with a note for each behaviour that a client does not support, and the failures."""
    columns = [*BEHAVIOURS, BRIDGE_RESTARTED, UPSTREAM_RESTARTED]
    rows = [["client", *columns], ["---"] * (len(columns) + 1)]
    failures: list[str] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, answers in results.items():
        words = []
        for column in columns:
            word, _, reason = answers.get(column, "failed it did not answer").partition(" ")
            words.append({"ok": "✓", "failed": "✗"}.get(word, word))
            if word == "n/a":
                reasons.setdefault((column, reason), []).append(name)
            elif word != "ok":
                failures.append(f"{name}, {column}: {reason or word}")
        rows.append([name, *words])
    notes = [f"- *{column}*: n/a for {', '.join(names)}: {reason}." for (column, reason), names in reasons.items()]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *notes]), failures


def main() -> int:
    """Runs the tests, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make interop")
    parser.add_argument("--write", action="store_true", help="write the table to docs/compatibility.md")
    parser.add_argument("--all", action="store_true", help="also the clients that were built before")
    arguments = parser.parse_args()
    report, failures = judge(asyncio.run(measure([*CLIENTS, *(BUILT_CLIENTS if arguments.all else ())])))
    print(report)
    if arguments.write:
        write_section("interop", report, [BRIDGE_VERSION, package_version(SUPERGATEWAY.parents[1])])
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
