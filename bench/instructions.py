"""Instructions per request, counted by valgrind: a figure that does not depend on a clock or on other load.

One connection at a time is used, after as many warm-up requests as are counted. The guard compares the ratio of the
bridge's count to the floor's in the same run, because the absolute counts change with every Python version.
"""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import oauth, progress
from bench.contenders import BRIDGE, FLOOR, Contender, Started, started
from bench.processes import BUILD, Failed, upstream
from bench.throughput import Scenario, load

STORED = Path(__file__).parent / "instructions.json"
TOLERANCE = 0.05
REQUESTS = 200
MOST_FOR_OAUTH = 1.05
"""The maximum ratio of the instructions of a request with a verified JWT to those with a plain token."""

FORMS = ("json", "sse", "sse as json")
UNHURRIED = {
    "PYTHONHASHSEED": "0",
    "VESTIGE_BRIDGE_CONNECT_TIMEOUT_SECONDS": "60",
    "VESTIGE_BRIDGE_CHECK_TIMEOUT_SECONDS": "60",
    "VESTIGE_BRIDGE_CHECK_INTERVAL_SECONDS": "3600",
}
"""So long that no check is counted: under valgrind the bridge is fifty times slower."""


def measure() -> dict[str, Any]:
    """Counts the floor's and the bridge's instructions, and compares them with the stored limits."""
    # In parallel, because other load does not change the count of instructions.
    with upstream() as port, oauth.contender() as with_oauth, ThreadPoolExecutor() as threads:
        contenders = (FLOOR, BRIDGE, with_oauth)
        found = threads.map(lambda contender: _counts(contender, f"http://127.0.0.1:{port}/mcp"), contenders)
        counts = {
            f"{contender.name}, {form}": count
            for contender, forms in zip(contenders, found, strict=True)
            for form, count in forms.items()
        }
    progress.done()
    ratios = {form: round(counts[f"bridge, {form}"] / counts[f"floor, {form}"], 4) for form in FORMS}
    with_jwt = round(counts[f"{oauth.NAME}, json"] / counts["bridge, json"], 4)
    return {"per_request": counts, "ratios": ratios, "with_jwt": with_jwt, "stored": stored()}


def stored() -> dict[str, float]:
    """Returns the stored limits of the ratios, by form."""
    kept: dict[str, float] = json.loads(STORED.read_text()) if STORED.exists() else {}
    return kept


def store(ratios: dict[str, float]) -> None:
    """Stores the measured ratios as the new limits."""
    STORED.write_text(json.dumps(ratios, indent=1) + "\n")


def too_many(found: dict[str, Any]) -> list[str]:
    """Returns a sentence for each form of request above its stored limit, and for a JWT that costs too much."""
    with_jwt = found.get("with_jwt", 1.0)
    return [
        f"A request with a verified JWT costs {with_jwt} times the instructions of one with a plain token."
        for _ in range(with_jwt > MOST_FOR_OAUTH)
    ] + [
        f"A request ({form}) costs {ratio} times the floor's instructions; {found['stored'][form]} are stored."
        for form, ratio in found["ratios"].items()
        if form in found["stored"] and ratio > found["stored"][form] * (1 + TOLERANCE)
    ]


def fewer(found: dict[str, Any]) -> list[str]:
    """Returns a sentence for each form in which a request costs so little that the limit is too loose."""
    return [
        f"A request ({form}) costs {ratio} times the floor's instructions, and {found['stored'][form]} are stored: "
        "`make bench-instructions WRITE=--write` stores it."
        for form, ratio in found["ratios"].items()
        if form in found["stored"] and ratio < found["stored"][form] * (1 - TOLERANCE)
    ]


def _counts(contender: Contender, url: str) -> dict[str, float]:
    out = BUILD / f"callgrind-{contender.name.replace(', ', '-')}"
    valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
    watched = replace(contender, command=lambda *place: [*valgrind, *contender.command(*place)])
    progress.say(f"starting {contender.name} under valgrind")
    # The cost of a token is the same for every form.
    forms = FORMS[:1] if contender.name == oauth.NAME else FORMS
    with started(watched, url, **UNHURRIED) as it:
        counts = {}
        for number, form in enumerate(forms, start=1):
            counts[form] = _count(it, form, Path(f"{out}.{number}"))
            progress.say(f"{contender.name}, {form}: {counts[form]:,.0f} instructions a request")
    return counts


def _count(it: Started, form: str, dump: Path) -> float:
    scenario = Scenario(form, 1, 200)
    load(it, scenario, "--requests", str(REQUESTS))
    _control(it, "--zero")
    load(it, scenario, "--requests", str(REQUESTS))
    dump.unlink(missing_ok=True)
    _control(it, "--dump")
    for line in dump.read_text().splitlines():
        if line.startswith("summary:"):
            return int(line.split()[1]) / REQUESTS
    raise Failed(f"{dump} has no summary.")


def _control(it: Started, order: str) -> None:
    if it.process is None:
        raise Failed(f"{it.name} has no process to watch.")
    subprocess.run(["callgrind_control", order, str(it.process.pid)], check=True, capture_output=True)
