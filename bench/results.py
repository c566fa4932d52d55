"""The result files of runs, with machine, date, versions and command, so that a run can be repeated."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bench.contenders import THV
from bench.processes import BUILD, ROOT

PARTS = (
    "throughput",
    "start",
    "streams",
    "memory",
    "instructions",
    "tricks",
    "unread",
    "calls",
    "crosscheck",
    "profile",
)
PACKAGES = {
    ".venv": ("vestige-bridge", "aiohttp", "uvicorn", "starlette", "httptools", "uvloop"),
    ".venv-bench": ("fastmcp",),
    ".venv-bench-mcp-proxy": ("mcp-proxy",),
    ".venv-mcp-2": ("mcp",),
}
_VERSIONS = """
import importlib.metadata, sys
for name in sys.argv[1:]:
    print(name, importlib.metadata.version(name))
"""


def write(part: str, found: dict[str, Any], command: str) -> None:
    """Stores the result of a run; it replaces the previous one."""
    BUILD.mkdir(parents=True, exist_ok=True)
    made = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "command": command, "machine": _machine(), "versions": _versions()}
    (BUILD / f"{part}.json").write_text(json.dumps({"made": made, **found}, indent=1) + "\n")


def read(folder: Path = BUILD) -> dict[str, dict[str, Any]]:
    """Returns all stored results, by the name of their part."""
    files = {part: folder / f"{part}.json" for part in PARTS}
    return {part: json.loads(file.read_text()) for part, file in files.items() if file.exists()}


def _machine() -> str:
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), ":")
    memory = round(psutil.virtual_memory().total / 2**30)
    return f"{os.cpu_count()} × {cpu.split(':')[1].strip()}, {memory} GiB, Linux {platform.release()}"


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "commit": _said("git", "rev-parse", "--short", "HEAD")}
    for venv, names in PACKAGES.items():
        python = ROOT / venv / "bin/python"
        if python.exists():
            lines = _said(str(python), "-c", _VERSIONS, *names).splitlines()
            versions |= {name: version for name, _, version in (line.partition(" ") for line in lines)}
    versions["nginx"] = _said("/usr/sbin/nginx", "-v").rpartition("/")[2]
    if os.environ.get("PEERS") == "all":
        versions["toolhive"] = _said("go", "version", "-m", str(THV)).partition("toolhive\t")[2].split()[0]
    if vestige := shutil.which("vestige-mcp"):
        versions["vestige"] = _said(vestige, "--version")
    return versions


def _said(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip()


def command_line() -> str:
    """Returns the make command of this run."""
    peers = "PEERS=all " if os.environ.get("PEERS") == "all" else ""
    return f"{peers}make bench-{sys.argv[1]}".replace("bench-standard", "bench")
