"""Progress output of a run: one line that changes on a terminal, and occasional lines elsewhere."""

from __future__ import annotations

import sys
import time

PAUSE_SECONDS = 5.0
"""The pause between two lines if the output is not a terminal."""

_last = [0.0]


def say(text: str) -> None:
    """Shows the progress of the run."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _last[0] > PAUSE_SECONDS:
        _last[0] = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def done() -> None:
    """Clears the line."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
