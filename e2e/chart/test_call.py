"""Tests of the script of `helm test`, with servers that have tools which it may call, and with others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "charts/vestige/files/call.py"
NOT_FOUND = {"error": {"code": -32601, "message": "Method not found"}}
FORBIDDEN = {"error": {"code": -32016, "message": "The rights of this token are limited."}}
PLAIN: dict[str, Any] = {"name": "write", "inputSchema": {}}
READS = PLAIN | {"name": "stats", "annotations": {"readOnlyHint": True}}
ASKS = PLAIN | {"name": "search", "annotations": {"readOnlyHint": True}, "inputSchema": {"required": ["query"]}}


@contextmanager
def server(answers: dict[str, dict[str, Any]], asked: list[str]) -> Iterator[str]:
    """Runs an MCP server with a response for each method; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            allowed = self.headers["Authorization"] == "Bearer secret"
            asked.append(message["method"])
            answer = answers[message["method"]]
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"]} | answer).encode()
            self.send_response(401 if not allowed else 403 if answer is FORBIDDEN else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_port}/mcp"
        finally:
            listening.shutdown()
            thread.join()


def run(
    folder: Path, answers: dict[str, dict[str, Any]], tool: str = "", name: str = "token", text: str = "agents secret\n"
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the script with a token file; the proxy in its environment is unreachable, so it must not be used."""
    (folder / name).write_text(text)
    asked: list[str] = []
    with server(answers, asked) as url:
        environment = os.environ | {
            "URL": url,
            "TOKEN_FILE": str(folder / name),
            "TOOL": tool,
            "ARGUMENTS": "{}",
            "http_proxy": "http://127.0.0.1:9",
            "no_proxy": "",
        }
        command = [sys.executable, "-c", SCRIPT.read_text()]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done, asked


def tools(*listed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {"tools/list": {"result": {"tools": listed}}}


def test_a_tool_that_reads_and_needs_no_argument_is_called(tmp_path: Path) -> None:
    answers = tools(PLAIN, ASKS, READS) | {"tools/call": {"result": {"content": []}}}
    done, asked = run(tmp_path, answers)
    assert (done.returncode, asked) == (0, ["tools/list", "tools/call"])
    assert 'stats: {"content": []}' in done.stdout


@pytest.mark.parametrize("listed", [(PLAIN,), (ASKS,), ()], ids=["no annotations", "needs arguments", "no tools"])
def test_without_a_callable_tool_the_resources_are_listed(tmp_path: Path, listed: tuple[dict[str, Any], ...]) -> None:
    done, asked = run(tmp_path, tools(*listed) | {"resources/list": {"result": {"resources": []}}})
    assert (done.returncode, asked) == (0, ["tools/list", "resources/list"])
    assert "test.tool can name one" in done.stdout


def test_without_resources_a_ping_is_enough(tmp_path: Path) -> None:
    done, asked = run(tmp_path, tools(PLAIN) | {"resources/list": NOT_FOUND, "ping": {"result": {}}})
    assert (done.returncode, asked) == (0, ["tools/list", "resources/list", "ping"])


def test_a_ping_is_enough_if_the_token_may_not_list_resources(tmp_path: Path) -> None:
    done, asked = run(tmp_path, tools() | {"resources/list": FORBIDDEN, "ping": {"result": {}}})
    assert (done.returncode, asked) == (0, ["tools/list", "resources/list", "ping"])


@pytest.mark.parametrize("lines", ["\nagents secret\nother secret-2\n", "secret"], ids=["with names", "alone"])
def test_the_first_token_of_the_lines_is_used(tmp_path: Path, lines: str) -> None:
    done, _ = run(tmp_path, tools() | {"resources/list": {"result": {}}}, text=lines)
    assert done.returncode == 0, done.stderr


TOML = """
[[token]]
name = "known-by-its-hash"
sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
"""


def test_the_first_valid_token_of_the_toml_file_is_used(tmp_path: Path) -> None:
    text = f"""{TOML}
[[token]]
name = "agents"
token = "expired"
expires = 2020-01-01T00:00:00Z
[[token]]
name = "agents"
token = "secret"
expires = 2999-01-01T00:00:00Z
"""
    done, _ = run(tmp_path, tools() | {"resources/list": {"result": {}}}, name="tokens.toml", text=text)
    assert done.returncode == 0, done.stderr


def test_a_file_with_only_hashes_is_reported(tmp_path: Path) -> None:
    done, asked = run(tmp_path, tools(), name="tokens.toml", text=TOML)
    assert (done.returncode, asked) == (1, [])
    assert done.stderr == (
        "The tokens are known by their hashes alone: let test.existingSecret name a Secret that holds one.\n"
    )


@pytest.mark.parametrize(
    "answers",
    [
        {"tools/list": NOT_FOUND},
        tools(PLAIN) | {"resources/list": {"error": {"code": -32603, "message": "broken"}}},
        tools(READS) | {"tools/call": {"result": {"content": [], "isError": True}}},
        tools(READS) | {"tools/call": NOT_FOUND},
        tools(READS) | {"tools/call": FORBIDDEN},
    ],
    ids=["no list", "broken resources", "failing tool", "unknown tool", "forbidden tool"],
)
def test_each_failure_ends_it_with_status_1(tmp_path: Path, answers: dict[str, dict[str, Any]]) -> None:
    done, _ = run(tmp_path, answers)
    assert done.returncode == 1
    assert done.stderr
