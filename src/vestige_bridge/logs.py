"""Log lines: for people, or one JSON object a line. Never a body, an argument, a token or a query."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Final

FIELDS: Final = "fields"
"""The name under which a record carries its structured fields."""


class TextFormatter(logging.Formatter):
    """A line for people: time, level, message, then the fields as ``key=value``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, followed by the traceback if there is one."""
        fields = "".join(
            f" {key}={value if isinstance(value, int | float) else json.dumps(value) if _odd(str(value)) else value}"
            for key, value in getattr(record, FIELDS, {}).items()
            if value is not None
        )
        line = f"{_time(record)} {record.levelname:7} {_in_one_line(record.getMessage())}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """A line for machines: one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The object, with the traceback in one of its members if there is one."""
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        } | {key: value for key, value in getattr(record, FIELDS, {}).items() if value is not None}
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


def configure(level: int, log_format: str) -> None:
    """Sends every log line of the process to stderr.

    Parameters:
        level: the least severe level that is written.
        log_format: ``text`` or ``json``.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
    logging.getLogger("asyncio").setLevel(max(level, logging.WARNING))


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _in_one_line(message: str) -> str:
    """The message with escapes for what could look like another line; it may name what upstream calls its tools."""
    message = message.rstrip()
    return message if message.isprintable() else json.dumps(message)[1:-1]


def _odd(value: str) -> bool:
    return not value or not value.isprintable() or any(character in value for character in ' "=')
