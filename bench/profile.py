"""A profile of the bridge's CPU time: py-spy samples its stack under load."""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, started
from bench.processes import ROOT, Failed, upstream
from bench.throughput import Scenario, load

SCENARIO = Scenario("json", 32, 200)
SECONDS = 10
SAMPLES_A_SECOND = 500
PACKAGE = "vestige_bridge/"
WRITES = ("HttpProtocol.write", "UpstreamConnection.send")
"""The functions that call the transport's write, which is a system call."""


def measure() -> dict[str, Any]:
    """The share of each stack end, under load.

    Errors:
        Failed: py-spy could not sample the process.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, upstream() as port:
        file = Path(folder) / "stacks"
        with started(BRIDGE, f"http://127.0.0.1:{port}/mcp") as it:
            if it.process is None:
                raise Failed("The bridge has no process.")
            load(it, SCENARIO, "--seconds", "2")
            progress.say("looking at the bridge's stack")
            pressing = threading.Thread(target=load, args=(it, SCENARIO, "--seconds", str(SECONDS + 2)))
            pressing.start()
            looked = subprocess.run(
                [
                    *(ROOT / ".venv-bench/bin/py-spy", "record", "--format", "raw", "--output", file),
                    *("--rate", str(SAMPLES_A_SECOND), "--duration", str(SECONDS), "--pid", str(it.process.pid)),
                ],
                capture_output=True,
                check=False,
                text=True,
            )
            pressing.join()
        if looked.returncode:
            raise Failed(f"py-spy cannot look at the bridge: {looked.stderr.strip()}")
        stacks = file.read_text().splitlines()
    progress.done()
    return {"seconds": SECONDS, "samples": sum(map(_count, stacks)), "shares": shares(stacks)}


def shares(stacks: Iterable[str]) -> dict[str, float]:
    """The shares of all samples by the end of their stacks, the largest first.

    Parameters:
        stacks: lines of frames, outermost first, separated by semicolons, and their number of samples.
    """
    ends: Counter[str] = Counter()
    for stack in stacks:
        ends[_place(stack.rpartition(" ")[0].rpartition(";")[2])] += _count(stack)
    return {place: count / ends.total() for place, count in ends.most_common()}


def _count(stack: str) -> int:
    return int(stack.rpartition(" ")[2])


def _place(frame: str) -> str:
    """The part to which a frame, such as ``send (vestige_bridge/upstream/connection.py:7)``, belongs."""
    function, _, where = frame.partition(" (")
    if function in WRITES:
        return "writing to sockets"
    if where.startswith(PACKAGE):
        return f"`{where.removeprefix(PACKAGE).partition('/')[0].partition('.')[0]}`"
    if function == "Runner.run":
        return "the event loop, reading from sockets included"
    return "libraries"
