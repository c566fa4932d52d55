"""The bridge with one of the tricks of its hot path undone: `python undone.py FUNCTION`, settings as for the bridge.

`python undone.py --check FUNCTION...` serves nothing. It prints a line for each trick that cannot be undone, because
the tree has no longer what the function replaces, and exits with 1.
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
    """What a function here replaces is no longer there: the trick has moved, or is gone."""


def replaced(path: str, value: Any) -> Any:
    """Replaces what stands at `module:name` or `module:Class.name`, and returns what stood there.

    Errors:
        Vanished: nothing stands there.
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
    """Every message is read by walking through its members."""
    replaced("jsonrpc.parser:scan", lambda _: None)


def make_a_task() -> None:
    """Every request gets a task that sends it."""
    replaced("session.attempts:Attempts.attempt_now", lambda *_: False)


def write_each_line() -> None:
    """Every line of the log is a system call."""

    def take(self: Any, line: str) -> None:
        self._lines.append(f"{line}\n")
        self.flush()

    replaced("logs:GatheringHandler._take", take)


def make_log_records() -> None:
    """A line of the access log is a record of the logging module first."""
    write = import_module("vestige_bridge.logs").write

    def as_record(self: Any, logger: logging.Logger, level: int, message: str, fields: Any) -> None:
        write(logger, level, message, fields)

    replaced("logs:GatheringHandler.write", as_record)


def arm_timers() -> None:
    """Every deadline is a timer of the event loop."""
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
    """The garbage collector looks as often as Python does by default, on all objects."""
    replaced("server.process:GARBAGE_THRESHOLDS", gc.get_threshold())
    gc.freeze = lambda: None


def check(functions: Sequence[str]) -> int:
    """Undoes them all, and says which cannot be undone."""
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
