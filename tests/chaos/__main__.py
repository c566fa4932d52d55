"""Injects one fault after another, prints the results, and exits with 1 if one of the zero columns is not zero.

usage: PYTHONPATH=tests python -m chaos chaos|chaos-quick|soak [--seed NUMBER] [--minutes NUMBER] [--only F1 …]
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from chaos.account import ZEROS, Figures
from chaos.canaries import canaries
from chaos.collisions import one_id
from chaos.credentials import credentials
from chaos.fairness import fairness
from chaos.fuzz import fuzz_per_client, fuzz_shared
from chaos.halves import halves
from chaos.mutations import mutations
from chaos.outages import kills, network, restarts
from chaos.quirks import cancellations, streams
from chaos.sessions import hung
from chaos.slowness import slowness
from chaos.soak import soak
from chaos.stack import Run
from chaos.strangers import floods, held, strangers
from chaos.tasks import tasks
from compatibility import BRIDGE_VERSION, package_version, write_section
from harness import ROOT, SERVER_EVERYTHING, SUPERGATEWAY

FAULTS: dict[str, Callable[[Run], Awaitable[Figures]]] = {
    "F1": kills,
    "F2": restarts,
    "F3": one_id,
    "F4": mutations,
    "F5": credentials,
    "F6": soak,
    "F7": slowness,
    "network": network,
    "strangers": strangers,
    "floods": floods,
    "held": held,
    "hung": hung,
    "fuzz-shared": fuzz_shared,
    "fuzz-per-client": fuzz_per_client,
    "streams": streams,
    "cancellations": cancellations,
    "F9": halves,
    "F10": tasks,
    "F11": fairness,
    "F8": canaries,
}
"""The faults in the order of the run; F8 is last, because it searches the files of the others."""

TARGETS = {"chaos": (1.0, 1.0), "chaos-quick": (0.04, 0.2), "soak": (0.2, 25.0)}
"""The targets of ``make``, with their scale and the minutes of their soak."""


async def measure(run: Run, faults: list[str]) -> list[Figures]:
    """Runs each fault; returns its figures."""
    results = []
    for fault in faults:
        began = time.monotonic()
        figures = await FAULTS[fault](run)
        results.append(figures)
        bad = ", ".join(f"{count} {column}" for column, count in figures.zeros.items() if count)
        print(f"{figures.fault}: {bad or 'passed'} after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return results


def table(results: list[Figures]) -> str:
    """Returns a table with a row for each fault, then the other measurements."""
    rows = [["fault", "what was done", "calls", "answered", "correct error", *(f"**{it}**" for it in ZEROS)]]
    rows.append(["---"] * 2 + ["---:"] * (len(rows[0]) - 2))
    for it in results:
        numbers = [it.calls, it.answered, it.told, *(it.zeros[column] for column in ZEROS)]
        rows.append([it.fault, it.done, *(f"{number:,}" for number in numbers)])
    notes = [f"- {it.fault}: {note}." for it in results for note in it.notes]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *notes])


def main() -> int:
    """Runs the faults of a target, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m chaos")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9), help="repeats a run")
    parser.add_argument("--minutes", type=float, help="how long the soak takes")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="these faults alone")
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the table to docs/reliability.md, that of some faults to a part of its own",
    )
    arguments = parser.parse_args()
    scale, minutes = TARGETS[arguments.target]
    section = " ".join([arguments.target, *(arguments.only or ())])
    command = f"make {arguments.target} SEED={arguments.seed}"
    if arguments.only:
        command = f"python -m chaos {arguments.target} --seed {arguments.seed} --only {' '.join(arguments.only)}"
    print(command, file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="vestige-bridge-chaos-"))
    run = Run(arguments.seed, scale, folder, soak_seconds=60 * (arguments.minutes or minutes))
    began = time.monotonic()
    results = asyncio.run(measure(run, arguments.only or list(FAULTS)))
    took = f"`{command}` took {(time.monotonic() - began) / 60:.0f} minutes."
    report = f"{took}\n\n{table(results)}"
    print(report)
    failures = [example for it in results for example in it.examples]
    if any(it.zeros.total() for it in results):
        print(*failures, f"The logs and journals are in {folder}.", sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    if arguments.write:
        packages = [SUPERGATEWAY.parents[1], SERVER_EVERYTHING.parents[2] / "sdk"]
        versions = [BRIDGE_VERSION, *(package_version(it) for it in packages)]
        write_section(section, report, [*versions, f"Python {platform.python_version()}"], ROOT / "docs/reliability.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
