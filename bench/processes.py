"""The measured processes: they are started, measured through /proc, and ended with all their children."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build/bench"
TOKEN = "a-token-for-the-benchmarks"  # noqa: S105 - only for processes that run for minutes on loopback


class Failed(Exception):
    """A process did not start, or ended too early."""


class Process:
    """A running process with its children; its figures come from /proc."""

    def __init__(self, command: Sequence[str | Path], environ: Mapping[str, str], log: Path, cwd: Path = ROOT) -> None:
        self._command, self._log = [str(word) for word in command], log
        with log.open("ab") as output:
            self._process = psutil.Popen(
                self._command,
                env={**inherited(), **environ},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    def tree(self) -> list[psutil.Process]:
        """Returns the process and all its descendants."""
        with suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """Returns user and system time of the tree, including ended children, with a resolution of one tick (10 ms)."""
        seconds = 0.0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                seconds += times.user + times.system + times.children_user + times.children_system
        return seconds

    def rss_bytes(self) -> int:
        """Returns the resident memory of the tree."""
        total = 0
        for process in self.tree():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def peak_rss_bytes(self) -> int:
        """Returns the peak memory of the process since its start or the last `forget_peak`."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024

    def forget_peak(self) -> None:
        """Resets the peak."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    @property
    def pid(self) -> int:
        """Its process id."""
        pid: int = self._process.pid
        return pid

    def alive(self) -> None:
        """Checks that it runs.

        Errors:
            Failed: it has ended; its last output is in the message.
        """
        if self._process.poll() is not None:
            words = self._log.read_text(errors="replace")[-2000:] if self._log != Path(os.devnull) else ""
            raise Failed(f"{' '.join(self._command)} ended with {self._process.returncode}.\n{words}")

    def kill(self) -> None:
        """Kills only the process, as the out-of-memory killer does, and waits until its children end."""
        children = self.tree()[1:]
        self._process.kill()
        self._process.wait()
        psutil.wait_procs(children, timeout=10)

    def stop(self) -> None:
        """Ends the tree."""
        tree = self.tree()
        for process in tree[:1]:
            process.terminate()
        _, left = psutil.wait_procs(tree, timeout=10)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=10)


@contextmanager
def running(
    command: Sequence[str | Path],
    environ: Mapping[str, str] | None = None,
    log: Path = Path(os.devnull),
    cwd: Path = ROOT,
) -> Iterator[Process]:
    """Starts a process, and stops it at the end of the context."""
    process = Process(command, environ or {}, log, cwd)
    try:
        yield process
    finally:
        process.stop()


def inherited() -> dict[str, str]:
    """Returns the environment without settings of another bridge."""
    return {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}


def free_port() -> int:
    """Returns an unused port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def until(fact: Callable[[], bool], seconds: float, process: Process | None = None, pause: float = 0.01) -> None:
    """Waits for a condition that can only be polled.

    Errors:
        Failed: it is not met in time, or the process has ended.
    """
    deadline = time.monotonic() + seconds
    while not fact():
        if process is not None:
            process.alive()
        if time.monotonic() > deadline:
            raise Failed(f"Waited {seconds} s in vain.")
        time.sleep(pause)


def listens(port: int) -> bool:
    """Whether a connection to the port is accepted."""
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False


def post(port: int, message: Mapping[str, Any], headers: Mapping[str, str], seconds: float = 5) -> tuple[int, bytes]:
    """Sends one JSON-RPC message to an upstream on this machine; status 0 means no answer."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/mcp",
        json.dumps(message).encode(),
        {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers},
    )
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:  # noqa: S310
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


UPSTREAMS = {"C": BUILD / "upstream", "Go": BUILD / "upstream-go"}
"""The trivial MCP server, by its language."""


@contextmanager
def upstream(language: str = "C") -> Iterator[int]:
    """Starts a trivial MCP server; yields its port.

    Parameters:
        language: one of `UPSTREAMS`.
    """
    port = free_port()
    with running([UPSTREAMS[language], str(port), "json"]) as process:
        until(lambda: listens(port), 5, process)
        yield port
