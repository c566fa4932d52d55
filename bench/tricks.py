"""What each trick of the hot path is worth: the bridge beside itself with that trick undone, in interleaved rounds."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, PROXIES, Command, Started, started
from bench.figures import Cell, summary
from bench.processes import ROOT, Failed, upstream
from bench.throughput import FORMS, Plan, Scenario, turn

UNDONE = PROXIES / "undone.py"
PYTHON = ROOT / ".venv/bin/python"
PLAN = Plan((Scenario("sse", 32, 200), Scenario("sse, Go", 32, 200)), 7, 0.8, 1)
"""What SDK clients send and supergateway answers, with both upstreams: the one in C favours what gathers work."""

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
    """The CPU time of a request without each trick, against the bridge as it is in the same round.

    Errors:
        Failed: a trick is no longer in the tree.
    """
    require_all(list(TRICKS.values()))
    with ExitStack() as stack:
        bridges = [(scenario, _bridges(stack, FORMS[scenario.form].upstream)) for scenario in PLAN.scenarios]
        rounds: list[dict[Cell, dict[str, float]]] = []
        for number in range(PLAN.rounds):
            rounds.append({})
            for scenario, name, it in [(scenario, *pair) for scenario, them in bridges for pair in them.items()]:
                progress.say(f"round {number + 1}/{PLAN.rounds}: {scenario.form}, {name}")
                rounds[-1][name, scenario.form, scenario.connections, scenario.size] = turn(it, scenario, PLAN)
    progress.done()
    return {"rounds": PLAN.rounds, "seconds": PLAN.seconds, "cells": summary(rounds, BRIDGE.name)}


def require_all(functions: list[str]) -> None:
    """Every trick can be undone in this tree.

    Errors:
        Failed: one can't. It has moved, and its function needs the new place, or it is gone, and both go, too.
    """
    done = subprocess.run([PYTHON, UNDONE, "--check", *functions], capture_output=True, check=False, text=True)
    if done.returncode:
        raise Failed(
            f"{done.stdout}{done.stderr}Say in bench/proxies/undone.py where that is now, "
            "or remove the function there and its line in TRICKS (bench/tricks.py)."
        )


def _bridges(stack: ExitStack, language: str) -> dict[str, Started]:
    """The bridge as it is, and without each trick, in front of one upstream."""
    url = f"http://127.0.0.1:{stack.enter_context(upstream(language))}/mcp"
    bridges = {BRIDGE.name: stack.enter_context(started(BRIDGE, url))}
    for trick, function in TRICKS.items():
        progress.say(f"starting the bridge without: {trick}")
        command: Command = [PYTHON, UNDONE, function]
        undone = replace(BRIDGE, command=lambda *_, it=command: it)
        bridges[trick] = stack.enter_context(started(undone, url))
    return bridges
