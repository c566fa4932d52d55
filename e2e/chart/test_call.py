"""The script of `helm test` against servers with and without tools that it may call."""

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
PLAIN: dict[str, Any] = {"name": "write", "inputSchema": {}}
READS = PLAIN | {"name": "stats", "annotations": {"readOnlyHint": True}}
ASKS = PLAIN | {"name": "search", "annotations": {"readOnlyHint": True}, "inputSchema": {"required": ["query"]}}


@contextmanager
def server(answers: dict[str, dict[str, Any]], asked: list[str]) -> Iterator[str]:
    """An MCP server with these answers by method; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            allowed = self.headers["Authorization"] == "Bearer secret"
            asked.append(message["method"])
            body = json.dumps({"jsonrpc": "2.0", "id": message["id"]} | answers[message["method"]]).encode()
            self.send_response(200 if allowed else 401)
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
    folder: Path, answers: dict[str, dict[str, Any]], tool: str = ""
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs the script with the token's file in a folder, and a proxy in its environment that nobody listens on."""
    token = folder / "token"
    token.write_text("agents secret\n")
    source = SCRIPT.read_text().replace("/etc/vestige/auth/token", str(token))
    asked: list[str] = []
    with server(answers, asked) as url:
        environment = os.environ | {
            "URL": url,
            "TOOL": tool,
            "ARGUMENTS": "{}",
            "http_proxy": "http://127.0.0.1:9",
            "no_proxy": "",
        }
        command = [sys.executable, "-c", source]
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
def test_without_such_a_tool_the_resources_are_listed(tmp_path: Path, listed: tuple[dict[str, Any], ...]) -> None:
    done, asked = run(tmp_path, tools(*listed) | {"resources/list": {"result": {"resources": []}}})
    assert (done.returncode, asked) == (0, ["tools/list", "resources/list"])
    assert "test.tool can name one" in done.stdout


def test_without_resources_a_ping_is_enough(tmp_path: Path) -> None:
    done, asked = run(tmp_path, tools(PLAIN) | {"resources/list": NOT_FOUND, "ping": {"result": {}}})
    assert (done.returncode, asked) == (0, ["tools/list", "resources/list", "ping"])


@pytest.mark.parametrize(
    "answers",
    [
        {"tools/list": NOT_FOUND},
        tools(PLAIN) | {"resources/list": {"error": {"code": -32603, "message": "broken"}}},
        tools(READS) | {"tools/call": {"result": {"content": [], "isError": True}}},
        tools(READS) | {"tools/call": NOT_FOUND},
    ],
    ids=["no list", "broken resources", "failing tool", "unknown tool"],
)
def test_what_fails_ends_it_with_status_1(tmp_path: Path, answers: dict[str, dict[str, Any]]) -> None:
    done, _ = run(tmp_path, answers)
    assert done.returncode == 1
    assert done.stderr
