"""Measures the cost of one warm tools/call in Python calls: their number, modules, and changes between modules.

The bridge runs unmodified, on its real server; a profile hook in its process records every Python call.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, PROXIES, Started, started
from bench.processes import ROOT, Failed, until, upstream
from bench.throughput import Scenario, call, headers

FORMS = {form: Scenario(form, 1, 200) for form in ("json", "sse", "sse as json")}
PACKAGE = "vestige_bridge"
WARM_UP, REQUESTS = 200, 25
SETTLED_SECONDS = 0.01
"""The time after an answer in which the bridge finishes its work for it, such as the log line."""
UNDISTURBED = {"VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS": "3600"}


def measure() -> dict[str, Any]:
    """Counts the calls for each form of answer on a keep-alive connection, after warm-up requests."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, upstream() as port:
        file = Path(folder) / "calls"
        python: list[str | Path] = [ROOT / ".venv/bin/python", PROXIES / "counted.py", file]
        counted = replace(BRIDGE, command=lambda *_: python)
        with started(counted, f"http://127.0.0.1:{port}/mcp", **UNDISTURBED) as it:
            forms = {form: _counts(it, scenario, file) for form, scenario in FORMS.items()}
    progress.done()
    return {"requests": REQUESTS, "forms": forms}


def counts(modules: Sequence[str]) -> dict[str, int]:
    """Counts the calls of a request, given by module and in order; for libraries, only the calls are counted."""
    own = [name for name in modules if name.partition(".")[0] == PACKAGE]
    return {
        "calls": len(own),
        "modules": len(set(own)),
        "changes": sum(one != other for one, other in pairwise(own)),
        "calls_with_libraries": len(modules),
    }


def _counts(it: Started, scenario: Scenario, file: Path) -> dict[str, int]:
    """Returns the lowest counts of several requests: in some of them a timer fires, such as uvicorn's main loop."""
    connection = http.client.HTTPConnection("127.0.0.1", it.port, timeout=10)
    for _ in range(WARM_UP):
        _request(connection, it, scenario)
    _since(it, file)
    found = []
    for _ in range(REQUESTS):
        _request(connection, it, scenario)
        found.append(counts(_since(it, file)))
    connection.close()
    return min(found, key=lambda one: one["calls_with_libraries"])


def _request(connection: http.client.HTTPConnection, it: Started, scenario: Scenario) -> None:
    fields = dict(header.split(": ", 1) for header in headers(it, scenario))
    connection.request("POST", "/mcp", call(scenario), {**fields, "Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200 or b'"result"' not in answer.read():
        raise Failed(f"A call was answered {answer.status}.")


def _since(it: Started, file: Path) -> list[str]:
    """Returns the modules of the calls since the previous query."""
    if it.process is None:
        raise Failed("The bridge has no process.")
    time.sleep(SETTLED_SECONDS)
    file.unlink(missing_ok=True)
    os.kill(it.process.pid, signal.SIGUSR2)
    until(lambda: file.exists() and file.read_text().endswith("\n"), 5, it.process)
    modules: list[str] = json.loads(file.read_text())
    return modules
