"""Prints a table of scenarios and targets, and exits with 1 if the bridge does not pass (see verdict.py).

usage: PYTHONPATH=tests python -m conformance [--write]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from compatibility import BRIDGE_VERSION, package_version, write_section
from conformance.suite import SUITE, VERSIONS, native_server, reached, run_suite
from conformance.verdict import (
    DIRECT,
    MODES,
    Outcome,
    Scenario,
    Target,
    excuse_lines,
    gain_lines,
    judge,
    parse_excuses,
    table,
)
from harness import ROOT, SERVER_EVERYTHING, SUPERGATEWAY, Gateway

EXCUSES = Path(__file__).parent / "exceptions.txt"
COMPLETE = "legacy-features"
AT_ONCE = 3


async def measure() -> dict[Target, dict[Scenario, Outcome]]:
    """Runs every scenario on every target."""
    gate = asyncio.Semaphore(AT_ONCE)
    async with AsyncExitStack() as stack:
        upstreams = {}
        for name, script in (("everything", SERVER_EVERYTHING), (COMPLETE, ROOT / "tests/server.mjs")):
            gateway = Gateway(script)
            stack.callback(gateway.stop)
            await asyncio.to_thread(gateway.start)
            upstreams[name] = gateway.url
        upstreams["everything-http"] = await stack.enter_async_context(native_server(SERVER_EVERYTHING))

        async def run(target: Target) -> dict[Scenario, Outcome]:
            async with gate, reached(upstreams[target.server], target.way) as url:
                outcomes: dict[Scenario, Outcome] = {}
                for version in VERSIONS:
                    outcomes |= await run_suite(url, version)
                print(f"{target.server}, {target.way}: done", file=sys.stderr, flush=True)
                return outcomes

        targets = [Target(server, way) for server in upstreams for way in (DIRECT, *MODES)]
        async with asyncio.TaskGroup() as group:
            tasks = {target: group.create_task(run(target)) for target in targets}
    return {target: task.result() for target, task in tasks.items()}


def main() -> int:
    """Runs the suite, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make conformance")
    parser.add_argument("--write", action="store_true", help="write the table to docs/compatibility.md")
    arguments = parser.parse_args()
    results = asyncio.run(measure())
    excuses = parse_excuses(EXCUSES.read_text())
    verdict = judge(results, excuses, COMPLETE)
    report = "\n".join(
        [
            *(table(results), "", "Scenarios that fail directly and pass through the bridge:", ""),
            *gain_lines(verdict.gains),
            *("", "Exceptions:", ""),
            *excuse_lines(excuses),
        ]
    )
    print(report)
    if arguments.write:
        parts = (SUITE.parents[1], SUPERGATEWAY.parents[1], SERVER_EVERYTHING.parents[1])
        write_section("conformance", report, [BRIDGE_VERSION, *(package_version(part) for part in parts)])
    for failure in verdict.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if verdict.failures else 0


if __name__ == "__main__":
    sys.exit(main())
