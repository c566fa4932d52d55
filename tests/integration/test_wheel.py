"""What is installed from the wheel runs the same outside the checkout."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from harness import ROOT, BridgeProcess, ScriptedUpstream, environment, until


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment into which the built wheel was installed."""
    sources = tmp_path / "sources"
    shutil.copytree(ROOT / "src", sources / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for file in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / file, sources / file)
    pip = [sys.executable, "-m", "pip"]
    subprocess.run([*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, sources], check=True)
    (wheel,) = tmp_path.glob("vestige_bridge-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", wheel], check=True, cwd=tmp_path)
    assert list(tmp_path.glob("venv/lib/python*/site-packages/vestige_bridge/py.typed"))
    return tmp_path / "venv"


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
