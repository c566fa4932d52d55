"""Measures requests per second, CPU, latency and memory of all contenders, in interleaved rounds."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench import progress
from bench.contenders import BOTH, BRIDGE, BRIDGE_TEXT, FLOOR, Started, everybody, started
from bench.figures import Cell, difference, ratio, summary
from bench.processes import BUILD, UPSTREAMS, Failed, upstream

JSON_ACCEPT = "Accept: application/json"
NONE = "none"


@dataclass(frozen=True)
class Form:
    """The form of the answer to a call.

    Attributes:
        sse: whether upstream answers with an event stream.
        accept: what the client accepts.
        upstream: the language of the upstream.
    """

    sse: bool
    accept: str
    upstream: str = "C"


FORMS = {
    "json": Form(sse=False, accept=JSON_ACCEPT),
    "sse": Form(sse=True, accept=BOTH),
    "sse as json": Form(sse=True, accept=JSON_ACCEPT),
    "json, Go": Form(sse=False, accept=JSON_ACCEPT, upstream="Go"),
    "sse, Go": Form(sse=True, accept=BOTH, upstream="Go"),
}


@dataclass(frozen=True)
class Scenario:
    """One kind of load, and its contenders.

    Attributes:
        form: one of `FORMS`.
        connections: how many requests are in flight at a time.
        size: the bytes of the request's body and of the answer's.
        names: the contenders; empty for all of them.
    """

    form: str
    connections: int
    size: int
    names: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Plan:
    """The extent of a run.

    Attributes:
        rounds: the number of turns of every contender in every scenario.
        seconds: the length of a turn.
        heavy_requests: the requests of each connection of a heavy contender, instead of a time.
    """

    scenarios: tuple[Scenario, ...]
    rounds: int
    seconds: float
    heavy_requests: int


PAIR = frozenset({NONE, FLOOR.name, BRIDGE.name})
ALONE = frozenset({BRIDGE.name})
EVERYBODY = tuple(Scenario(form, 32, 200) for form in ("json", "sse"))
LOGS = PAIR | {BRIDGE_TEXT.name}
ON_GO = tuple(Scenario(form, 32, 200, LOGS) for form in ("json, Go", "sse, Go"))
CONNECTIONS = tuple(Scenario("json", connections, 200, PAIR) for connections in (1, 256))
COLLAPSED = (Scenario("sse as json", 32, 200, ALONE),)
MATRIX = tuple(
    Scenario(form, connections, size, PAIR)
    for form in ("json", "sse")
    for size in (200, 10_000, 1_000_000)
    for connections in (1, 32, 256)
    if (connections, size) != (32, 200)
)
PLANS = {
    "smoke": Plan((Scenario("json", 32, 200), Scenario("json, Go", 32, 200, LOGS)), 2, 0.5, 1),
    "quick": Plan(EVERYBODY + ON_GO + CONNECTIONS + COLLAPSED, 5, 0.6, 2),
    "standard": Plan(EVERYBODY + ON_GO + CONNECTIONS + COLLAPSED, 15, 0.6, 2),
    "full": Plan(EVERYBODY + ON_GO + MATRIX + COLLAPSED, 5, 1.5, 4),
}


def measure(plan: Plan) -> dict[str, Any]:
    """Runs the plan; tables, charts and targets are made from the result.

    Errors:
        Failed: a contender did not start, or gave wrong answers.
    """
    with ExitStack() as stack:
        contenders = {language: _started(stack, language, plan) for language in UPSTREAMS}
        rounds: list[dict[Cell, dict[str, float]]] = []
        for number in range(plan.rounds):
            rounds.append({})
            for scenario in plan.scenarios:
                for it in contenders[FORMS[scenario.form].upstream]:
                    if scenario.names and it.name not in scenario.names:
                        continue
                    cell = (it.name, scenario.form, scenario.connections, scenario.size)
                    rounds[-1][cell] = turn(it, scenario, plan)
                    rate = rounds[-1][cell]["requests_per_second"]
                    where = f"round {number + 1}/{plan.rounds}, {_described(scenario)}"
                    progress.say(f"{where}: {it.name} {rate:,.0f}/s")
    progress.done()
    return {
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "cells": summary(rounds, FLOOR.name),
        "targets": _targets(rounds),
    }


def _started(stack: ExitStack, language: str, plan: Plan) -> list[Started]:
    """Starts the upstream in that language, and in front of it each contender with a scenario in the plan."""
    scenarios = [scenario for scenario in plan.scenarios if FORMS[scenario.form].upstream == language]
    if not scenarios:
        return []
    port = stack.enter_context(upstream(language))
    it = [Started(NONE, port, None)]
    for contender in everybody():
        if any(not scenario.names or contender.name in scenario.names for scenario in scenarios):
            progress.say(f"starting {contender.name}, upstream in {language}")
            it.append(stack.enter_context(started(contender, f"http://127.0.0.1:{port}/mcp")))
    return it


def load(it: Started, scenario: Scenario, *duration: str, **arguments: Any) -> dict[str, float]:
    """Runs one turn of the load tool; returns its figures.

    Parameters:
        duration: the load tool's options that bound the turn.
        arguments: additional arguments of the calls.

    Errors:
        Failed: an answer was wrong.
    """
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        file.write(call(scenario, **arguments))
        file.flush()
        done = subprocess.run(
            [
                *(BUILD / "load", "--connections", str(scenario.connections)),
                *(*duration, str(it.port), file.name, *headers(it, scenario)),
            ],
            capture_output=True,
            check=False,
            text=True,
        )
    if done.returncode:
        raise Failed(f"The load tool: {done.stderr}")
    said: dict[str, float] = json.loads(done.stdout)
    if said["errors"] or not said["total"]:
        raise Failed(f"{it.name}, {_described(scenario)}: {said['errors']:.0f} wrong answers. {done.stderr}")
    return said


def headers(it: Started, scenario: Scenario) -> list[str]:
    """Returns the headers of a client of this contender in this scenario, without the content type."""
    return list(it.headers) if BOTH in it.headers else [*it.headers, FORMS[scenario.form].accept]


def call(scenario: Scenario, **arguments: Any) -> bytes:
    """Returns the body of a call in this scenario, with additional arguments."""
    return body(scenario.size, {"bytes": scenario.size, "sse": FORMS[scenario.form].sse, **arguments})


def body(size: int, arguments: dict[str, Any]) -> bytes:
    """Returns a tool call of exactly this many bytes, or the smallest possible; the load tool increments its id."""
    message = {
        "jsonrpc": "2.0",
        "id": 1_000_000,
        "method": "tools/call",
        "params": {"name": "echo", "arguments": {**arguments, "text": ""}},
    }
    empty = json.dumps(message, separators=(",", ":")).encode()
    return empty.replace(b'"text":""', b'"text":"' + b"x" * (size - len(empty)) + b'"')


def turn(it: Started, scenario: Scenario, plan: Plan) -> dict[str, float]:
    """Runs one turn of a contender; returns the load tool's figures, and the resources that the processes used."""
    # Opening many connections on both sides of a proxy takes some time.
    duration: tuple[str, ...] = ("--seconds", str(plan.seconds), "--warm-up", str(0.1 + scenario.connections / 400))
    if it.heavy:
        duration = ("--requests", str(plan.heavy_requests * scenario.connections))
    before = it.process.cpu_seconds() if it.process else 0.0
    said = load(it, scenario, *duration)
    taken = {name: said[name] for name in ("requests_per_second", "p50_us", "p99_us", "p999_us")}
    if it.process:
        it.process.alive()
        taken["cpu_us"] = (it.process.cpu_seconds() - before) / said["total"] * 1e6
        taken["rss_mib"] = it.process.rss_bytes() / 2**20
    return taken


def _targets(rounds: Sequence[dict[Cell, dict[str, float]]]) -> dict[str, Any]:
    """Returns the figures for the targets P1 to P3."""
    bridge, text, floor, none = ((it, "json", 32, 200) for it in (BRIDGE.name, BRIDGE_TEXT.name, FLOOR.name, NONE))
    fastmcp, toolhive = (("FastMCP", "json", 32, 200), ("ToolHive", "json", 32, 200))
    figures = {
        "P1": ratio(rounds, bridge, floor, "cpu_us"),
        "P1 text": ratio(rounds, text, floor, "cpu_us"),
        "P1 Go": ratio(rounds, _on_go(bridge), _on_go(floor), "cpu_us"),
        "P1 Go text": ratio(rounds, _on_go(text), _on_go(floor), "cpu_us"),
        "P2": ratio(rounds, bridge, fastmcp, "requests_per_second"),
        "P2b": ratio(rounds, bridge, toolhive, "cpu_us"),
        "P3": difference(rounds, _at_one(bridge), _at_one(none), "p50_us"),
    }
    return {name: figure.as_json() for name, figure in figures.items() if figure}


def _at_one(cell: Cell) -> Cell:
    name, form, _, size = cell
    return name, form, 1, size


def _on_go(cell: Cell) -> Cell:
    name, form, connections, size = cell
    return name, f"{form}, Go", connections, size


def _described(scenario: Scenario) -> str:
    return f"{scenario.form}, {scenario.connections} connections, {scenario.size:,} B"
