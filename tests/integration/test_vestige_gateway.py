"""The scripts of the Vestige container, with stubs for the programs of the image."""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness import ROOT

SCRIPTS = ROOT / "docker/vestige"
RUNS_ON = "exec tail -f /dev/null"
"""The command of a Vestige that only a signal ends."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the scripts run in a Linux container")


class Image:
    """A folder with the programs and files that the scripts find in the image."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token_file = folder / "run/token"
        self.token_file.parent.mkdir()
        self.environ = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "GATEWAY_TOKEN_FILE": str(self.token_file),
            "VESTIGE_DATA_DIR": str(folder / "data"),
            "VESTIGE_LOG": str(folder / "log"),
            "HOME": str(folder / "data/home"),
            "XDG_DATA_HOME": str(folder / "data/home/.local/share"),
            "FASTEMBED_CACHE_PATH": str(folder / "data/fastembed"),
        }
        for path in (folder / "bin", folder / "data", folder / "opt"):
            path.mkdir()
        (folder / "opt/bind.js").touch()
        script = (SCRIPTS / "gateway").read_text().replace("/opt/gateway", str(folder / "opt"))
        self.add("vestige-gateway", script)
        self.add("vestige-serve", (SCRIPTS / "serve").read_text())
        self.add("vestige-mcp", "#!/bin/sh\necho vestige-mcp 3.1.0\n")

    def add(self, name: str, script: str) -> None:
        """Adds a program to PATH."""
        program = self.folder / "bin" / name
        program.write_text(script)
        program.chmod(0o755)

    def fifo(self, name: str) -> Path:
        """Returns a named pipe by which a stub and the test wait for each other."""
        path = self.folder / name
        os.mkfifo(path)
        return path

    @contextmanager
    def running(self, *command: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
        """Runs a command; kills it and all its child processes at the end."""
        environ = {**self.environ, **variables}
        with subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True) as process:
            try:
                yield process
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def image(tmp_path: Path) -> Image:
    """A new image in which nothing has run."""
    return Image(tmp_path)


def test_natively_vestige_gets_the_token_that_the_file_holds(image: Image) -> None:
    shown = image.fifo("shown")
    image.add("vestige", f'#!/bin/sh\necho "$VESTIGE_AUTH_TOKEN $VESTIGE_HTTP_BIND $*" >"{shown}"\n{RUNS_ON}\n')
    with image.running("vestige-gateway", GATEWAY="none"):
        token, *words = shown.read_text().split()
        assert words == ["127.0.0.1", "serve", "--port", "3100"]
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert image.token_file.read_text() == f"{token}\n"
        assert stat.S_IMODE(image.token_file.stat().st_mode) == 0o600


def test_natively_a_token_that_cannot_be_written_ends_the_start_with_a_sentence(image: Image) -> None:
    image.token_file.parent.rmdir()
    done = subprocess.run(
        ["vestige-gateway"],
        env={**image.environ, "GATEWAY": "none"},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 1
    assert f"{image.token_file} cannot be written: mount a volume there" in done.stderr


def test_a_signal_while_the_token_is_written_ends_the_vestige_started_afterwards(image: Image) -> None:
    asked, go = image.fifo("asked"), image.fifo("go")
    image.add("od", f'#!/bin/sh\necho >"{asked}"\nread _ <"{go}"\nexec "{shutil.which("od")}" "$@"\n')
    image.add("vestige", f"#!/bin/sh\n{RUNS_ON}\n")
    with image.running("vestige-gateway", GATEWAY="none") as gateway:
        asked.read_text()
        gateway.terminate()
        go.write_text("\n")
        assert gateway.wait(timeout=10) == 0


def test_a_signal_before_the_pid_of_vestige_is_known_ends_vestige(image: Image) -> None:
    image.add("vestige", f"#!/bin/sh\n{RUNS_ON}\n")
    # Bash runs this trap before each command; it sends the signal before the command that starts Vestige.
    before = image.folder / "before"
    before.write_text("""trap 'case $BASH_COMMAND in \\"\\$@\\"*) kill -TERM $$ ;; esac' DEBUG\n""")
    with image.running("vestige-serve", "vestige", "serve", BASH_ENV=str(before)) as serve:
        assert serve.wait(timeout=10) == 128 + signal.SIGTERM
    assert "Vestige stopped on request" in (image.folder / "log").read_text()


@pytest.mark.parametrize("mounted", [True, False], ids=["a volume", "no volume"])
def test_with_supergateway_a_token_is_written_for_the_bridge_alone(image: Image, mounted: bool) -> None:
    image.add("node", "#!/bin/sh\nif [ $1 = -p ]; then echo 4.0.0; else env; fi\n")
    if not mounted:
        image.token_file.parent.rmdir()
    done = subprocess.run(
        ["vestige-gateway"],
        env={**image.environ, "GATEWAY": "supergateway"},
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "supergateway 4.0.0" in done.stderr
    assert "VESTIGE_AUTH_TOKEN" not in done.stdout
    assert image.token_file.exists() == mounted
    if mounted:
        token = image.token_file.read_text().strip()
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert token not in done.stdout
