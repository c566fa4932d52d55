"""What is installed from the wheel runs the same outside the checkout."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

from harness import ROOT, BridgeProcess, ScriptedUpstream, environment, until


async def test_the_wheel_serves_outside_the_checkout(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("vestige_bridge-*.whl")
    venv.create(tmp_path / "venv", with_pip=True)
    subprocess.run([tmp_path / "venv/bin/pip", "install", "--quiet", wheel], check=True, cwd=tmp_path)

    command = [str(tmp_path / "venv/bin/vestige-bridge")]
    process = BridgeProcess(environment(upstream.url), command, cwd=tmp_path)
    async with process.serving() as served:
        await until(served.ready)
        assert (await served.call("write", {"n": 1})).status == 200
        process.terminate()
        status, _ = await process.ended()
    assert status == 0
    package = subprocess.run(
        [tmp_path / "venv/bin/python", "-c", "import vestige_bridge; print(vestige_bridge.__path__[0])"],
        check=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert Path(package).is_relative_to(tmp_path)
    assert (Path(package) / "py.typed").exists()
