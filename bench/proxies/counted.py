"""The bridge under a profile hook that records every Python call: `python counted.py FILE`, settings as usual.

On SIGUSR2 it appends a line to FILE with the modules of the calls since the last signal.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import FrameType

from vestige_bridge.cli import parser


def main(path: str) -> int:
    """Runs the bridge."""
    modules: list[str] = []

    def hook(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            modules.append(frame.f_globals.get("__name__", "?"))

    def report(number: int, frame: FrameType | None) -> None:
        sys.setprofile(None)
        with Path(path).open("a") as file:
            file.write(json.dumps([name for name in modules if name != __name__]) + "\n")
        modules.clear()
        sys.setprofile(hook)

    signal.signal(signal.SIGUSR2, report)
    sys.setprofile(hook)
    return parser.main([])


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop()))
