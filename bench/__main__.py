"""The command line of the benchmarks; the Makefile's targets call it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from bench import contenders, progress, report, results, start, throughput
from bench.processes import BUILD, Failed

Measures = dict[str, Callable[[], dict[str, Any]]]


def _plan(name: str) -> Callable[[], dict[str, Any]]:
    return lambda: throughput.measure(throughput.PLANS[name])


RUNS: dict[str, Measures] = {
    "smoke": {"throughput": _plan("smoke"), "start": start.measure},
    "quick": {"throughput": _plan("quick"), "start": start.measure},
    "standard": {"throughput": _plan("standard"), "start": start.measure},
    "full": {"throughput": _plan("full"), "start": start.measure},
}


def main() -> int:
    """Measures what the run names, keeps it, and prints every table that there is, the targets last."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("run", choices=[*RUNS, "report"])
    run: str = parser.parse_args().run
    try:
        contenders.missing()
        for part, measure in RUNS.get(run, {}).items():
            results.write(part, measure(), results.command_line())
    except Failed as error:
        progress.done()
        print(error, file=sys.stderr)
        return 1
    print(report.everything(results.read()))
    print(f"The results are in {BUILD.relative_to(BUILD.parent.parent)}/.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
