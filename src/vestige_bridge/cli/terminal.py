"""Output for terminals.

Invariant: no text from a server contains a control character.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Final, Self

_ERASE_LINE: Final = "\r\x1b[K"


def shown(text: str) -> str:
    """The text in one line, with every character that is not printable replaced."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def shown_lines(text: str) -> str:
    """The text with its lines and tabs, and every other character that is not printable replaced."""
    return "\n".join("\t".join(shown(cell) for cell in line.split("\t")) for line in text.splitlines())


def width() -> int:
    """The number of columns of the terminal."""
    return shutil.get_terminal_size().columns


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The rows in columns, each line cut to the width of the terminal."""
    cells = [[shown(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    columns = width()
    return "\n".join(line if len(line) <= columns else f"{line[: columns - 1]}…" for line in lines)


class ProgressLine:
    """A line with the progress of a call, which is removed at its end; none if standard error is not a terminal."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stream = sys.stderr
        self._seen = self._stream.isatty()

    def __enter__(self) -> Self:
        """Shows that the call has begun."""
        self.say("…")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Removes the line."""
        if self._seen:
            self._stream.write(_ERASE_LINE)
            self._stream.flush()

    def say(self, words: str) -> None:
        """Replaces the text of the line."""
        if self._seen:
            line = shown(f"{self._name} {words}")[: width() - 1]
            self._stream.write(_ERASE_LINE + line)
            self._stream.flush()
