"""The bridge with one of the tricks of its hot path undone: `python undone.py FUNCTION`, settings as for the bridge."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from typing import Any

from vestige_bridge import __main__, jsonrpc, logs, server
from vestige_bridge.deadlines import Deadlines
from vestige_bridge.wire import Wire


def walk_through_members() -> None:
    """Every message is read by walking through its members."""
    jsonrpc.scan = lambda _: None  # type: ignore[assignment, attr-defined]


def make_a_task() -> None:
    """Every request gets a task that sends it."""
    Wire.attempt_now = lambda *_: False  # type: ignore[method-assign]


def write_each_line() -> None:
    """Every line of the log is a system call."""

    def take(self: logs.GatheringHandler, line: str) -> None:
        self._lines.append(f"{line}\n")
        self.flush()

    logs.GatheringHandler._take = take  # type: ignore[method-assign]  # noqa: SLF001


def make_log_records() -> None:
    """A line of the access log is a record of the logging module first."""

    def write(self: logs.GatheringHandler, logger: logging.Logger, level: int, message: str, fields: Any) -> None:
        logs.write(logger, level, message, fields)

    logs.GatheringHandler.write = write  # type: ignore[method-assign]


def arm_timers() -> None:
    """Every deadline is a timer of the event loop."""
    timers: dict[Any, asyncio.TimerHandle] = {}

    def stop(self: Deadlines[Any], thing: Any) -> None:
        timer = timers.pop((id(self), thing), None)
        if timer is not None:
            timer.cancel()

    def start(self: Deadlines[Any], thing: Any) -> None:
        stop(self, thing)
        timers[id(self), thing] = asyncio.get_running_loop().call_later(self.seconds, self._expire, thing)

    Deadlines.start, Deadlines.stop = start, stop  # type: ignore[method-assign]


def collect_garbage_often() -> None:
    """The garbage collector looks as often as Python has it, at everything."""
    server.GARBAGE_THRESHOLDS = gc.get_threshold()  # type: ignore[misc]
    gc.freeze = lambda: None


if __name__ == "__main__":
    globals()[sys.argv.pop()]()
    sys.exit(__main__.main([]))
