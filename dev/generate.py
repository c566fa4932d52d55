"""Writes what is made from the code: docs/clients.md, and the completion for each shell.

`make generated` runs it; the tests compare.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import shtab

from vestige_bridge.cli.connect import page
from vestige_bridge.cli.parser import SHELLS, build_parser

ROOT = Path(__file__).resolve().parent.parent


def generated() -> Iterator[tuple[Path, str]]:
    """Each file and what belongs into it."""
    yield ROOT / "docs/clients.md", page()
    for shell in SHELLS:
        yield ROOT / "src/vestige_bridge/cli/completions" / shell, f"{shtab.complete(build_parser(), shell).rstrip()}\n"


if __name__ == "__main__":
    for file, text in generated():
        file.write_text(text)
