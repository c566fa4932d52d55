"""The bridge without one optimisation of its hot path: `python undone.py FUNCTION`, settings as for the bridge.

`python undone.py --check FUNCTION...` serves nothing. It prints a line for each optimisation that cannot be undone,
because the code that the function replaces no longer exists, and exits with 1.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any


class Vanished(Exception):
    """The code that a function here replaces no longer exists: the optimisation was moved or removed."""


def replaced(path: str, value: Any) -> Any:
    """Replaces the object at `module:name` or `module:Class.name`; returns the original.

    Errors:
        Vanished: there is no such object.
    """
    module, _, names = path.partition(":")
    *owners, name = names.split(".")
    try:
        owner = import_module(f"vestige_bridge.{module}")
        for part in owners:
            owner = getattr(owner, part)
        before = getattr(owner, name)
    except (ImportError, AttributeError) as error:
        raise Vanished(f"vestige_bridge.{path} is not there: {error}") from error
    setattr(owner, name, value)
    return before


def walk_through_members() -> None:
    """Parses every message by walking through its members."""
    replaced("jsonrpc.parser:scan", lambda _: None)


def make_a_task() -> None:
    """Creates a task for every request that sends it."""
    replaced("session.attempts:Attempts.attempt_now", lambda *_: False)


def write_each_line() -> None:
    """Writes every line of the log with its own system call."""

    def take(self: Any, line: str) -> None:
        self._lines.append(f"{line}\n")
        self.flush()

    replaced("logs:GatheringHandler._take", take)


def make_log_records() -> None:
    """Makes a record of the logging module for every line of the access log."""
    write = import_module("vestige_bridge.logs").write

    def as_record(self: Any, logger: logging.Logger, level: int, message: str, fields: Any) -> None:
        write(logger, level, message, fields)

    replaced("logs:GatheringHandler.write", as_record)


def arm_timers() -> None:
    """Makes every deadline a timer of the event loop."""
    timers: dict[Any, asyncio.TimerHandle] = {}

    def stop(self: Any, thing: Any) -> None:
        timer = timers.pop((id(self), thing), None)
        if timer is not None:
            timer.cancel()

    def start(self: Any, thing: Any) -> None:
        stop(self, thing)
        timers[id(self), thing] = asyncio.get_running_loop().call_later(self.seconds, self._expire, thing)

    replaced("concurrency:Deadlines.start", start)
    replaced("concurrency:Deadlines.stop", stop)


def collect_garbage_often() -> None:
    """Runs the garbage collector as often as Python does by default, on all objects."""
    replaced("server.process:GARBAGE_THRESHOLDS", gc.get_threshold())
    gc.freeze = lambda: None


def check(functions: Sequence[str]) -> int:
    """Undoes all of them, and prints which cannot be undone."""
    vanished = 0
    for function in functions:
        try:
            globals()[function]()
        except (Vanished, KeyError) as error:
            vanished = 1
            print(f"{function}: {error}")
    return vanished


def main(arguments: Sequence[str]) -> int:
    """Runs the bridge, or the check."""
    if arguments[0] == "--check":
        return check(arguments[1:])
    globals()[arguments[0]]()
    bridge: int = import_module("vestige_bridge.cli.parser").main([])
    return bridge


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
