"""Measures the saving of each optimisation of the hot path, with the bridge without it, in many short turns.

Each of these turns follows one of the unmodified bridge, and is compared only with it: on a shared machine the speed
of a CPU changes within seconds by more than one optimisation saves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, PROXIES, Command, Started, started
from bench.figures import Cell, Round, summary
from bench.processes import ROOT, Failed, upstream
from bench.throughput import FORMS, Plan, Scenario, turn

UNDONE = PROXIES / "undone.py"
PYTHON = ROOT / ".venv/bin/python"
PLAN = Plan((Scenario("sse", 32, 200), Scenario("sse, Go", 32, 200)), 25, 0.4, 1)
"""The forms that SDK clients and supergateway use, with both upstreams: the one in C favours batched work."""

TRICKS = {
    "messages are read by one call of the JSON decoder": "walk_through_members",
    "no task for a request": "make_a_task",
    "one timer for many deadlines": "arm_timers",
    "lines of the log are gathered": "write_each_line",
    "no log record for an access line": "make_log_records",
    "the garbage collector runs rarely": "collect_garbage_often",
}
"""The optimisations, and the function in undone.py that undoes each."""


def measure() -> dict[str, Any]:
    """Measures the CPU time of a request without each optimisation, compared with the unmodified bridge just before.

    Errors:
        Failed: an optimisation is no longer in the code.
    """
    require_all(list(TRICKS.values()))
    pairs: dict[Cell, list[Round]] = {}
    with ExitStack() as stack:
        bridges = {scenario: _bridges(stack, FORMS[scenario.form].upstream) for scenario in PLAN.scenarios}
        for number in range(PLAN.rounds):
            for scenario, them in bridges.items():
                for trick in TRICKS:
                    progress.say(f"round {number + 1}/{PLAN.rounds}: {scenario.form}, without: {trick}")
                    pair = {_cell(name, scenario): turn(them[name], scenario, PLAN) for name in (BRIDGE.name, trick)}
                    pairs.setdefault(_cell(trick, scenario), []).append(pair)
    progress.done()
    return {"rounds": PLAN.rounds, "seconds": PLAN.seconds, "cells": cells(pairs)}


def cells(pairs: Mapping[Cell, Sequence[Round]]) -> list[dict[str, Any]]:
    """Returns the unmodified bridge over all turns of a scenario, and each variant compared with the turns before it.

    Parameters:
        pairs: for the cell of each variant, rounds with this cell and the one of the unmodified bridge.
    """
    as_it_is: dict[Cell, list[Round]] = {}
    for (_, form, connections, size), rounds in pairs.items():
        base = (BRIDGE.name, form, connections, size)
        as_it_is.setdefault(base, []).extend({base: it[base]} for it in rounds)
    alone = [entry for rounds in as_it_is.values() for entry in summary(rounds, BRIDGE.name)]
    without = [entry for rounds in pairs.values() for entry in summary(rounds, BRIDGE.name)]
    return alone + [entry for entry in without if entry["contender"] != BRIDGE.name]


def _cell(name: str, scenario: Scenario) -> Cell:
    return name, scenario.form, scenario.connections, scenario.size


def require_all(functions: list[str]) -> None:
    """Checks that every optimisation can be undone in this version of the code.

    Errors:
        Failed: one cannot. Update its function if the code has moved; remove both if the optimisation is gone.
    """
    done = subprocess.run([PYTHON, UNDONE, "--check", *functions], capture_output=True, check=False, text=True)
    if done.returncode:
        raise Failed(
            f"{done.stdout}{done.stderr}Update its function in bench/proxies/undone.py, "
            "or remove the function and its line in TRICKS (bench/tricks.py)."
        )


def _bridges(stack: ExitStack, language: str) -> dict[str, Started]:
    """Starts the unmodified bridge, and a bridge without each optimisation, in front of one upstream."""
    url = f"http://127.0.0.1:{stack.enter_context(upstream(language))}/mcp"
    bridges = {BRIDGE.name: stack.enter_context(started(BRIDGE, url))}
    for trick, function in TRICKS.items():
        progress.say(f"starting the bridge without: {trick}")
        command: Command = [PYTHON, UNDONE, function]
        undone = replace(BRIDGE, command=lambda *_, it=command: it)
        bridges[trick] = stack.enter_context(started(undone, url))
    return bridges
