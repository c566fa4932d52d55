"""What people see on a terminal.

Invariant: nothing that came from elsewhere moves the cursor or changes the screen.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

_ERASE_LINE: Final = "\r\x1b[K"


def shown(text: str) -> str:
    """The text in one line, with whatever is no visible character replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def shown_lines(text: str) -> str:
    """The text with its lines and tabs, and whatever else is no visible character replaced."""
    return "\n".join("\t".join(shown(cell) for cell in line.split("\t")) for line in text.splitlines())


def width() -> int:
    """How many characters fit into a line of the terminal."""
    return shutil.get_terminal_size().columns


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns, each line cut where the terminal ends."""
    cells = [[shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    columns = width()
    return "\n".join(line if len(line) <= columns else f"{line[: columns - 1]}…" for line in lines)


class ProgressLine:
    """A line that says how far a call is and is gone when it ends; none where nobody looks."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = sys.stderr
        self._seen = self._stream.isatty()

    def __enter__(self) -> Self:
        """Says that the call is under way."""
        self.say("…")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Takes the line away."""
        if self._seen:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()

    def say(self, words: str) -> None:
        """Shows these words in place of the last ones."""
        if self._seen:
            line = shown(f"{self._name} {words}")[: width() - 1]
            self._stream.write(_ERASE_LINE + line)
            self._stream.flush()
