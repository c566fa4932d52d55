from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import pytest

from vestige_bridge.logs import FIELDS, JsonFormatter, TextFormatter


def record(message: str, fields: dict[str, Any] | None = None, error: BaseException | None = None) -> logging.LogRecord:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    made = logging.LogRecord("vestige_bridge.x", logging.WARNING, "x.py", 1, message, None, exc_info)
    made.created = 1_700_000_000.123
    if fields is not None:
        setattr(made, FIELDS, fields)
    return made


def test_a_text_line_has_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record("request", {"path": "/mcp", "status": 200, "tool": None, "duration_ms": 0.1}))
    assert line == "2023-11-14T22:13:20.123Z WARNING request path=/mcp status=200 duration_ms=0.1"


@pytest.mark.parametrize("value", ["", "a b", 'a"b', "a=b", "a\nb", "a\x1b[0m", "\u2028"])
def test_a_field_cannot_look_like_another_field_or_another_line(value: str) -> None:
    line = TextFormatter().format(record("request", {"agent": value}))
    assert line.isprintable()
    assert json.loads(line.partition("agent=")[2]) == value


@pytest.mark.parametrize("name", ["a\n2026-01-01T00:00:00.000Z INFO    Vestige connected", "\x1b[2J", "\u2028", "a\r"])
def test_a_message_cannot_look_like_another_line(name: str) -> None:
    line = TextFormatter().format(record(f"Vestige tools discovered (1): {name}, b"))
    assert line.isprintable()
    assert "Vestige tools discovered (1): " in line
    assert TextFormatter().format(record("erinnern_für_später\n")).endswith(" erinnern_für_später")


def test_a_json_line_is_one_json_object() -> None:
    line = JsonFormatter().format(record("request", {"agent": "a\nb", "tool": None, "status": 200}))
    assert line.isprintable()
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.123Z",
        "level": "warning",
        "logger": "vestige_bridge.x",
        "message": "request",
        "agent": "a\nb",
        "status": 200,
    }


def test_a_line_without_fields_is_its_message() -> None:
    assert TextFormatter().format(record("Vestige connected")).endswith("Z WARNING Vestige connected")


def test_a_failure_is_logged_with_its_traceback() -> None:
    failed = record("It failed", error=ZeroDivisionError("division"))
    assert TextFormatter().format(failed).endswith("\nZeroDivisionError: division")
    entry = json.loads(JsonFormatter().format(failed))
    assert entry["traceback"] == "ZeroDivisionError: division"


@pytest.mark.parametrize(
    ("level", "log_format", "lines"),
    [(logging.INFO, "text", 2), (logging.WARNING, "json", 2), (logging.ERROR, "text", 0)],
)
def test_lines_at_or_above_the_level_go_to_standard_error(level: int, log_format: str, lines: int) -> None:
    script = (
        "import logging; from vestige_bridge import logs;"
        f"logs.configure({level}, {log_format!r});"
        "logging.getLogger('vestige_bridge').warning('ours');"
        "logging.getLogger('uvicorn.error').info('of the server');"
        "logging.getLogger('uvicorn.error').warning('of the server');"
        "logging.getLogger('asyncio').info('of the loop')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    written = done.stderr.splitlines()
    assert len(written) == lines
    assert all(line.startswith("{") is (log_format == "json") for line in written)
