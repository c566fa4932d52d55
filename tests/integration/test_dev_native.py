"""`make dev GATEWAY=none`, and the log of the MCP server with and without supergateway."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from harness import NODE, SERVER_EVERYTHING
from integration.test_dev import checkout, clean_environment, paste, ports, running

__all__ = ["checkout", "ports"]


def server(folder: Path, name: str, script: str) -> str:
    """Returns a PATH with a stub for a program of Vestige; the stub prints its arguments to standard error."""
    folder.mkdir()
    program = folder / name
    program.write_text(f'#!/bin/sh\necho "the server says: $*, token of ${{#VESTIGE_AUTH_TOKEN}}" >&2\n{script}\n')
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_natively_there_is_no_supergateway_and_a_token_of_its_own(
    checkout: Path, ports: dict[str, str], tmp_path: Path
) -> None:
    everything = f'PORT="$3" exec "{NODE}" "{SERVER_EVERYTHING}" streamableHttp'
    path = server(tmp_path / "bin", "vestige", everything)
    with running(checkout, {**ports, "GATEWAY": "none", "PATH": path}) as terminal:
        assert "Starting Vestige on 127.0.0.1" in terminal.screen
        assert paste(terminal.screen)["result"]["tools"]
        lines = [line for line in terminal.screen.splitlines() if "the server says" in line]
        assert len(lines) == 1
        assert re.search(rf"native.*: serve --port {ports['VESTIGE_MCP_PORT']}, token of 64", lines[0])
        commands = [" ".join(process.cmdline()) for process in terminal.processes()]
        assert not [command for command in commands if "supergateway" in command]


def test_natively_without_a_vestige_the_start_says_what_is_missing(checkout: Path, ports: dict[str, str]) -> None:
    environment = clean_environment({**ports, "GATEWAY": "none"})
    done = subprocess.run(["make", "dev"], cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "GATEWAY=none needs Vestige's program vestige" in done.stderr


def test_the_log_of_the_server_behind_supergateway_is_shown_with_a_prefix(
    checkout: Path, ports: dict[str, str], tmp_path: Path
) -> None:
    path = server(tmp_path / "bin", "vestige-mcp", f'exec "{NODE}" "{SERVER_EVERYTHING}" stdio')
    with running(checkout, {**ports, "PATH": path}) as terminal:
        terminal.read_until("the server says", 10)
        [line] = [line for line in terminal.screen.splitlines() if "the server says" in line]
        assert re.search(r"vestige.*the server says: , token of 0", line)
