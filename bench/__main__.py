"""The command line of the benchmarks; the Makefile's targets call it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from bench import contenders, instructions, memory, progress, report, results, start, streams, throughput
from bench.processes import BUILD, Failed

Measures = dict[str, Callable[[], dict[str, Any]]]


def _plan(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: throughput.measure(throughput.PLANS[name])


RUNS: dict[str, Measures] = {
    "smoke": {"throughput": _plan("smoke"), "start": start.measure, "instructions": instructions.measure},
    "instructions": {"instructions": instructions.measure},
    "quick": {"throughput": _plan("quick"), "start": start.measure},
    "standard": {
        "throughput": _plan("standard"),
        "start": start.measure,
        "streams": streams.measure,
        "instructions": instructions.measure,
    },
    "memory": {"memory": memory.measure},
    "streams": {"streams": streams.measure},
    "full": {"throughput": _plan("full"), "start": start.measure},
}


def main() -> int:
    """Measures what the run names, keeps it, and prints it with the targets.

    Returns:
        The exit status: 1 when something did not work, or when a request costs more instructions than it did.
    """
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("run", choices=[*RUNS, "report"], help="report prints what earlier runs have found")
    parser.add_argument("--write", action="store_true", help="store the instructions per request as what they may be")
    options = parser.parse_args()
    try:
        contenders.missing()
        for part, measure in RUNS.get(options.run, {}).items():
            results.write(part, measure(), results.command_line())
    except Failed as error:
        progress.done()
        print(error, file=sys.stderr)
        return 1
    found = results.read()
    print(report.everything(found, list(RUNS.get(options.run, found))))
    print(f"The results are in {BUILD.relative_to(BUILD.parent.parent)}/.")
    if "instructions" not in RUNS.get(options.run, {}):
        return 0
    if options.write:
        instructions.store(found["instructions"]["ratios"])
    more = [] if options.write else instructions.too_many(found["instructions"])
    print(*more, sep="\n", file=sys.stderr)
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
