"""What a run says while it works: one line that changes on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import sys
import time

PAUSE_SECONDS = 5.0
"""Between two lines where a line cannot be written over."""

_last = [0.0]


def say(text: str) -> None:
    """Shows where the run is."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _last[0] > PAUSE_SECONDS:
        _last[0] = time.monotonic()
        print(text, file=sys.stderr, flush=True)


def done() -> None:
    """Takes the line away."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
