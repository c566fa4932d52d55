"""The bridge installed from the wheel behaves the same outside the checkout."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness import ROOT, BridgeProcess, ScriptedUpstream, environment, until
from integration.test_docs import commands


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Installs the bridge from a copy of the checkout with the commands of the README; returns its environment."""
    sources, home = tmp_path / "sources", tmp_path / "home"
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / file, sources / file)
    home.mkdir()
    begin = ("python3 -m venv", "~/.local/share/vestige-bridge/bin/pip install", 'export PATH="$HOME/.local')
    lines = [line for line in commands("README.md") if line.startswith(begin)]
    assert len(lines) == len(begin)
    environ = {
        **os.environ,
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run(
        ["bash", "-euc", "\n".join([*lines, "vestige-bridge --version"])], env=environ, cwd=sources, check=True
    )
    folder = home / ".local/share/vestige-bridge"
    assert list(folder.glob("lib/python*/site-packages/vestige_bridge/py.typed"))
    return folder


async def test_the_wheel_serves_outside_the_checkout(installed: Path, upstream: ScriptedUpstream) -> None:
    command = [str(installed / "bin/vestige-bridge")]
    process = BridgeProcess(environment(upstream.url), command, cwd=installed)
    async with process.serving() as served:
        await until(served.ready)
        assert (await served.call("write", {"n": 1})).status == 200
        process.terminate()
        status, _ = await process.ended()
    assert status == 0
    completion = [*command, "completion", "bash"]
    printed = await asyncio.to_thread(subprocess.run, completion, cwd=installed, capture_output=True, check=True)
    assert b"_shtab_vestige_bridge" in printed.stdout
