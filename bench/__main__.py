"""The command line of the benchmarks; targets of the Makefile run it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from bench import (
    calls,
    contenders,
    crosscheck,
    instructions,
    memory,
    profile,
    progress,
    publish,
    report,
    results,
    start,
    streams,
    throughput,
    tricks,
    unread,
)
from bench.processes import BUILD, Failed

Parts = dict[str, Callable[[], dict[str, Any]]]


def _throughput(plan: str) -> Parts:
    return {"throughput": partial(throughput.measure, throughput.PLANS[plan])}


START: Parts = {"start": start.measure}
STREAMS: Parts = {"streams": streams.measure}
MEMORY: Parts = {"memory": memory.measure}
INSTRUCTIONS: Parts = {"instructions": instructions.measure}
TRICKS: Parts = {"tricks": tricks.measure}
UNREAD: Parts = {"unread": unread.measure}
CALLS: Parts = {"calls": calls.measure}
PROFILE: Parts = {"profile": profile.measure}
CROSSCHECK: Parts = {"crosscheck": crosscheck.measure}
RUNS: dict[str, Parts] = {
    "quick": _throughput("quick") | START,
    "standard": _throughput("standard") | START | STREAMS | UNREAD | INSTRUCTIONS | CALLS | CROSSCHECK | PROFILE,
    "full": _throughput("full"),
    "smoke": _throughput("smoke") | START | {"unread": partial(unread.measure, clients=6)} | CALLS | INSTRUCTIONS,
    "streams": STREAMS | UNREAD,
    "memory": MEMORY,
    "instructions": INSTRUCTIONS,
    "tricks": TRICKS,
    "calls": CALLS,
    "crosscheck": CROSSCHECK,
    "profile": PROFILE,
    "all": _throughput("standard")
    | START
    | STREAMS
    | UNREAD
    | MEMORY
    | INSTRUCTIONS
    | CALLS
    | CROSSCHECK
    | PROFILE
    | TRICKS,
}


def main() -> int:
    """Runs the benchmark, stores its result, and prints it with the targets.

    Returns:
        The exit status: 1 if something failed, or if a request costs more instructions than the stored limit.
    """
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("run", choices=[*RUNS, "report", "publish"], help="the last two use results of earlier runs")
    parser.add_argument("--write", action="store_true", help="store the instructions per request as the new limit")
    options = parser.parse_args()
    if options.run == "publish":
        publish.publish()
        return 0
    parts = RUNS.get(options.run, {})
    try:
        for part, measure in parts.items():
            contenders.complete()
            results.write(part, measure(), results.command_line())
    except Failed as error:
        progress.done()
        print(error, file=sys.stderr)
        return 1
    found = results.read()
    print(report.everything(found, list(parts or found)))
    print(f"The results are in {BUILD.relative_to(BUILD.parent.parent)}/.")
    return _guard(found["instructions"], write=options.write) if "instructions" in parts else 0


def _guard(found: dict[str, Any], *, write: bool) -> int:
    if write:
        instructions.store(found["ratios"])
        return 0
    for sentence in instructions.fewer(found):
        print(sentence)
    more = instructions.too_many(found)
    for sentence in more:
        print(sentence, file=sys.stderr)
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
