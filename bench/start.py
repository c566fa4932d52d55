"""Measures the time from the bridge's start until it is ready, with a running upstream."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

from bench import progress
from bench.contenders import BRIDGE
from bench.figures import Figure
from bench.processes import ROOT, TOKEN, free_port, running, until, upstream

ROUNDS = 7


def measure() -> dict[str, Any]:
    """Starts the bridge several times, one after another."""
    with upstream() as port:
        seconds = [_start(f"http://127.0.0.1:{port}/mcp", number) for number in range(ROUNDS)]
    progress.done()
    return {"rounds": ROUNDS, "seconds": Figure.of(seconds).as_json()}


def _start(url: str, number: int) -> float:
    port = free_port()
    began = time.monotonic()
    with running(BRIDGE.command(url, port, ROOT), BRIDGE.environ(url, port, ROOT)) as process:
        until(lambda: ready(port), 60, process, pause=0.002)
        seconds = time.monotonic() - began
    progress.say(f"start {number + 1}/{ROUNDS}: ready after {seconds:.2f} s")
    return seconds


def ready(port: int) -> bool:
    """Whether the bridge on that port is ready."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/readyz", headers={"Authorization": f"Bearer {TOKEN}"})
    try:
        with urllib.request.urlopen(request, timeout=1) as response:  # noqa: S310
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
