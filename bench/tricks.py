"""What each trick of the hot path is worth: the bridge beside itself with that trick undone, in interleaved rounds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, PROXIES, started
from bench.figures import Cell, summary
from bench.processes import ROOT, upstream
from bench.throughput import Plan, Scenario, turn

UNDONE = PROXIES / "undone.py"
SCENARIO = Scenario("sse", 32, 200)
"""What SDK clients send and supergateway answers."""

PLAN = Plan((SCENARIO,), 7, 0.8, 1)


TRICKS = {
    "messages are read at a glance": "walk_through_members",
    "no task for a request": "make_a_task",
    "one timer for many deadlines": "arm_timers",
    "lines of the log are gathered": "write_each_line",
    "no log record for an access line": "make_log_records",
    "the garbage collector looks seldom": "collect_garbage_often",
}
"""The tricks, and the function in that file that undoes each."""


def measure() -> dict[str, Any]:
    """The CPU time of a request without each trick, against the bridge as it is in the same round."""
    python = ROOT / ".venv/bin/python"
    with upstream() as port, ExitStack() as stack:
        url = f"http://127.0.0.1:{port}/mcp"
        bridges = {BRIDGE.name: stack.enter_context(started(BRIDGE, url))}
        for trick, function in TRICKS.items():
            progress.say(f"starting the bridge without: {trick}")
            command: list[str | Path] = [python, UNDONE, function]
            undone = replace(BRIDGE, command=lambda *_, it=command: it)
            bridges[trick] = stack.enter_context(started(undone, url))
        rounds: list[dict[Cell, dict[str, float]]] = []
        for number in range(PLAN.rounds):
            rounds.append({})
            for name, it in bridges.items():
                progress.say(f"round {number + 1}/{PLAN.rounds}: {name}")
                rounds[-1][name, SCENARIO.form, SCENARIO.connections, SCENARIO.size] = turn(it, SCENARIO, PLAN)
    progress.done()
    return {"rounds": PLAN.rounds, "seconds": PLAN.seconds, "cells": summary(rounds, BRIDGE.name)}
