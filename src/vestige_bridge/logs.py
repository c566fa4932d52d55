"""Log lines: text, or one JSON object a line. They never contain a body, an argument, a token or a query."""

from __future__ import annotations

import abc
import asyncio
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _spell
from typing import Final, TextIO

Fields = Mapping[str, object]
Write = Callable[[logging.Logger, int, str, Fields], None]

_NUMBERS: Final = (int, float)

FIELDS: Final = "fields"
"""The attribute of a log record with its structured fields."""


class LineFormatter(logging.Formatter, abc.ABC):
    """Formats a log record as a line."""

    @abc.abstractmethod
    def line(self, created: float, level: str, logger: str, message: str, fields: Fields) -> str:
        """The line.

        Parameters:
            created: the time of the event, in seconds since 1970.
            level: the name of the level.
            logger: the name of the logger.
            message: the message.
            fields: names and values; those that are ``None`` are omitted.
        """

    def format(self, record: logging.LogRecord) -> str:
        """The line of a log record."""
        return self.line(
            record.created, record.levelname, record.name, record.getMessage(), getattr(record, FIELDS, {})
        )


class TextFormatter(LineFormatter):
    """A text line: time, level, message, then the fields as ``key=value``."""

    def line(self, created: float, level: str, logger: str, message: str, fields: Fields) -> str:
        """The line."""
        spelled = "".join(
            f" {key}={value if isinstance(value, int | float) else json.dumps(value) if _odd(str(value)) else value}"
            for key, value in fields.items()
            if value is not None
        )
        return f"{timestamp(created)} {level:7} {_in_one_line(message)}{spelled}"

    def format(self, record: logging.LogRecord) -> str:
        """The line, followed by the traceback if there is one."""
        line = super().format(record)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(LineFormatter):
    """A line of JSON: one object."""

    def line(self, created: float, level: str, logger: str, message: str, fields: Fields) -> str:
        """The object."""
        # Encoded member by member: a general encoder takes twice the time for these numbers and strings.
        spelled = "".join(
            [
                f', "{key}": {value if value.__class__ in _NUMBERS else _spell(str(value))}'
                for key, value in fields.items()
                if value is not None
            ]
        )
        head = f'"time": "{timestamp(created)}", "level": "{level.lower()}", "logger": "{logger}"'
        return f'{{{head}, "message": {_spell(message)}{spelled}}}'

    def format(self, record: logging.LogRecord) -> str:
        """The object, with a member for the traceback if there is one."""
        line = super().format(record)
        if not record.exc_info:
            return line
        return f'{line[:-1]}, "traceback": {_spell(self.formatException(record.exc_info))}}}'


class GatheringHandler(logging.Handler):
    """Writes the lines of one event loop iteration at once: many requests under load, with no added delay.

    A warning, and a line from outside an event loop, is written at once.

    Parameters:
        stream: the output stream.
        formatter: formats the lines.
    """

    def __init__(self, stream: TextIO, formatter: LineFormatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self._stream = stream
        self._line = formatter.line
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Formats and writes a log record."""
        self._take(self.format(record))
        if record.levelno >= logging.WARNING:
            self.flush()

    def write(self, logger: logging.Logger, level: int, message: str, fields: Fields) -> None:
        """Writes a message without a log record: with one a request costs 1.2 times the CPU time."""
        self._take(self._line(time.time(), logging.getLevelName(level), logger.name, message, fields))

    def flush(self) -> None:
        """Writes the buffered lines; if that fails they are lost, and the bridge continues."""
        lines, self._lines = self._lines, []
        with suppress(OSError, ValueError):
            self._stream.write("".join(lines))
            self._stream.flush()

    def _take(self, line: str) -> None:
        self._lines.append(f"{line}\n")
        if len(self._lines) > 1:
            return
        try:
            asyncio.get_running_loop().call_soon(self.flush)
        except RuntimeError:
            self.flush()


def write(logger: logging.Logger, level: int, message: str, fields: Fields) -> None:
    """Logs a message with structured fields to all handlers.

    Parameters:
        logger: the logger, enabled for the level.
        level: the level.
        message: the message.
        fields: names and values; those that are ``None`` are omitted.
    """
    logger.log(level, message, extra={FIELDS: fields})


def configure(level: int, log_format: str) -> GatheringHandler:
    """Sends all log lines of the process to stderr.

    Parameters:
        level: the lowest level that is written.
        log_format: ``text`` or ``json``.

    Returns:
        The handler that writes them.
    """
    handler = GatheringHandler(sys.stderr, JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))
    return handler


def timestamp(created: float) -> str:
    """A time in the format of log lines (RFC 3339, section 5.6), in UTC with milliseconds.

    Parameters:
        created: the time, in seconds since 1970.
    """
    seconds, milliseconds = divmod(int(created * 1000 + 0.001), 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


@lru_cache(maxsize=2)
def _second(timestamp: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp))


def _in_one_line(message: str) -> str:
    """The message with line breaks escaped; it may contain tool names that upstream chose."""
    message = message.rstrip()
    return message if message.isprintable() else json.dumps(message)[1:-1]


def _odd(value: str) -> bool:
    return not value or not value.isprintable() or any(character in value for character in ' "=')
