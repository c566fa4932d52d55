"""Compares the benchmarks' load tool with wrk: the same upstreams and bridges, in interleaved rounds of one run."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, WRK, Started, started
from bench.figures import Figure
from bench.processes import Failed, upstream
from bench.throughput import FORMS, NONE, Scenario, call, headers, load

SCENARIOS = tuple(Scenario(form, 32, 200) for form in ("json", "json, Go"))
ROUNDS = 5
SECONDS = 2


@dataclass(frozen=True)
class Pair:
    """The requests per second of both tools, one value for each round."""

    it: Started
    scenario: Scenario
    load: list[float] = field(default_factory=list)
    wrk: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Returns the result as JSON; the ratio is computed within each round."""
        ratios = [one / other for one, other in zip(self.load, self.wrk, strict=True)]
        figures = {"load": self.load, "wrk": self.wrk, "load_to_wrk": ratios}
        cell = {"contender": self.it.name, "form": self.scenario.form, "connections": self.scenario.connections}
        return cell | {name: Figure.of(values).as_json() for name, values in figures.items()}


def measure() -> dict[str, Any]:
    """Measures the requests per second by each tool, directly to upstream and through the bridge.

    Errors:
        Failed: an answer was wrong.
    """
    with _pairs() as pairs:
        for number in range(ROUNDS):
            for pair in pairs:
                progress.say(f"round {number + 1}/{ROUNDS}: load and wrk, {pair.it.name}, {pair.scenario.form}")
                said = load(pair.it, pair.scenario, "--seconds", str(SECONDS), "--warm-up", "0.2")
                pair.load.append(said["requests_per_second"])
                pair.wrk.append(_wrk(pair.it, pair.scenario))
    progress.done()
    return {"rounds": ROUNDS, "seconds": SECONDS, "cells": [pair.as_json() for pair in pairs]}


@contextmanager
def _pairs() -> Iterator[list[Pair]]:
    with ExitStack() as stack:
        pairs = []
        for scenario in SCENARIOS:
            port = stack.enter_context(upstream(FORMS[scenario.form].upstream))
            bridge = stack.enter_context(started(BRIDGE, f"http://127.0.0.1:{port}/mcp"))
            pairs += [Pair(Started(NONE, port, None), scenario), Pair(bridge, scenario)]
        yield pairs


def _wrk(it: Started, scenario: Scenario) -> float:
    """Measures the requests per second by wrk; all have the same id, because wrk cannot change it without a script."""
    fields = dict(header.split(": ", 1) for header in headers(it, scenario)) | {"Content-Type": "application/json"}
    assignments = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in fields.items()]
    body = json.dumps(call(scenario).decode())
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write("\n".join(['wrk.method = "POST"', f"wrk.body = {body}", *assignments]))
        script.flush()
        done = subprocess.run(
            [
                *(WRK, "--threads", "1", "--connections", str(scenario.connections), "--duration", f"{SECONDS}s"),
                *("--script", script.name, f"http://127.0.0.1:{it.port}/mcp"),
            ],
            capture_output=True,
            check=False,
            text=True,
        )
    rate = re.search(r"^Requests/sec: +([0-9.]+)", done.stdout, re.MULTILINE)
    if done.returncode or not rate or "Non-2xx" in done.stdout or "Socket errors" in done.stdout:
        raise Failed(f"wrk, {it.name}, {scenario.form}: {done.stdout}{done.stderr}")
    return float(rate.group(1))
