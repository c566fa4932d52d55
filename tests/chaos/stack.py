"""The real parts: supergateway with the journal server behind it, the bridge as a process, and the callers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import aiohttp
import psutil

from chaos.account import Account, Figures
from chaos.audit import check_audit
from chaos.callers import IDS, KINDS, Caller
from chaos.link import Link
from harness import ROOT, Gateway, free_port, until

SERVER = ROOT / "tests/chaos/server.mjs"
STARTS_WITHIN_SECONDS = 60
REST_SECONDS = 7
"""Longer than a stream lingers, and longer than an idle connection to upstream is kept."""


@dataclass(frozen=True)
class Run:
    """The parameters of a run of the driver.

    Attributes:
        seed: the seed of all random generators.
        scale: the factor for all numbers and durations; 1 for ``make chaos``.
        folder: the folder of logs and journals.
        defect: the planted defect; empty for none.
        soak_seconds: the length of the soak.
    """

    seed: int
    scale: float
    folder: Path
    defect: str = ""
    soak_seconds: float = 60

    def random(self, fault: str) -> Random:
        """Returns the random generator of one fault."""
        return Random(f"{self.seed} {fault}")

    def secret(self, name: str) -> str:
        """Returns a random text that occurs nowhere else."""
        return f"{name}{Random(f'{self.seed} {name}').getrandbits(80):020x}"

    def times(self, number: int) -> int:
        """Returns the scaled number; at least one."""
        return max(1, round(number * self.scale))

    @property
    def token(self) -> str:
        """The token that the bridge accepts."""
        return self.secret("token")


class BridgeProcess:
    """A bridge in its own process, which logs to a file.

    Parameters:
        run: the run.
        upstream: the URL of upstream.
        settings: variables of the bridge, without their prefix.
        port: its port; 0 for any.
        descriptors: its limit of descriptors; 0 for the driver's own.
        audited: whether it writes an audit log.
    """

    def __init__(
        self,
        run: Run,
        upstream: str,
        settings: Mapping[str, str],
        port: int = 0,
        descriptors: int = 0,
        *,
        audited: bool = False,
    ) -> None:
        self.port = port or free_port()
        self.metrics_port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/mcp"
        self.log = run.folder / f"bridge-{time.time_ns()}.log"
        self.audit = self.log.with_suffix(".audit")
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}
        environ |= {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "VESTIGE_MCP_URL": upstream,
            "VESTIGE_AUTH_TOKEN": run.token,
            "VESTIGE_BRIDGE_PORT": str(self.port),
            "VESTIGE_BRIDGE_METRICS_PORT": str(self.metrics_port),
        }
        defaults = {"REQUEST_TIMEOUT_SECONDS": "10", "LOG_LEVEL": "debug"}
        if audited:
            defaults["AUDIT_LOG"] = str(self.audit)
        environ |= {
            name if name.startswith("VESTIGE_") else f"VESTIGE_BRIDGE_{name}": value
            for name, value in {**defaults, **settings}.items()
        }
        limit = ["--descriptors", str(descriptors)] if descriptors else []
        command = [sys.executable, "-m", "chaos.launch", *limit, run.defect]
        with self.log.open("wb") as log:
            self.process = psutil.Popen(command, env=environ, stderr=log, stdin=subprocess.DEVNULL)

    async def ready(self, http: aiohttp.ClientSession) -> None:
        """Waits until it is ready."""

        async def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                async with http.get(self.url.replace("/mcp", "/readyz")) as response:
                    return response.status == 200
            except aiohttp.ClientConnectionError:
                return False

        await until(is_ready, STARTS_WITHIN_SECONDS)

    async def stop(self) -> int:
        """Stops it; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.process.wait, 40)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    @property
    def descriptors(self) -> int:
        """The number of its open descriptors."""
        return int(self.process.num_fds())

    @property
    def megabytes(self) -> float:
        """Its resident memory."""
        return self.process.memory_info().rss / 2**20

    async def tasks(self) -> int:
        """The number of its tasks, from the launcher."""
        told = self.log.with_suffix(".tasks")
        told.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        await until(lambda: told.exists() and told.read_text().endswith("\n"))
        return int(told.read_text())

    def check_log(self, figures: Figures) -> None:
        """Counts log lines that only a bug causes."""
        for line in self.log.read_text(errors="replace").splitlines():
            if "Traceback (most recent" in line or "never retrieved" in line or "A check failed unexpectedly" in line:
                figures.blame("failed", f"{self.log}: {line}")


@dataclass
class Stack:
    """All parts between a caller and the journal."""

    run: Run
    figures: Figures
    account: Account
    gateway: Gateway
    bridge: BridgeProcess
    http: aiohttp.ClientSession
    random: Random
    ids: tuple[str, ...]
    callers: type[Caller] = Caller

    def caller(self, kind: str = "json_poster", url: str = "") -> Caller:
        """Creates a caller of this kind."""
        random = Random(self.random.random())
        url, token = url or self.bridge.url, self.run.token
        return self.callers(kind, self.account, url=url, token=token, http=self.http, random=random, ids=self.ids)

    @asynccontextmanager
    async def load(
        self, callers: int = 32, kinds: Iterable[str] = KINDS, *, url: str = "", pause_seconds: float = 0
    ) -> AsyncIterator[None]:
        """Runs callers of mixed kinds within the context; they finish their calls at its end."""
        stopped = asyncio.Event()
        kinds = tuple(kinds)
        async with asyncio.TaskGroup() as group:
            for number in range(callers):
                caller = self.caller(kinds[number % len(kinds)], url)
                group.create_task(caller.run(stopped, pause_seconds))
            try:
                yield
            finally:
                stopped.set()

    async def good_request(self) -> None:
        """Makes one call, which must be answered."""
        call = await self.caller().call()
        if call.got != "answer" or call.complaint:
            self.figures.blame("failed", f"a good request afterwards: {call}")

    async def at_rest(self) -> tuple[float, float, float]:
        """Waits until there are no lingering streams; returns the descriptors, megabytes and tasks of the bridge."""
        await self.http.close()
        await asyncio.sleep(REST_SECONDS)
        figures = self.bridge.descriptors, self.bridge.megabytes, await self.bridge.tasks()
        self.http = _http_client()
        return figures

    async def one_server(self) -> None:
        """Waits until there is one MCP server behind the gateway, and counts each additional one."""
        try:
            await until(lambda: len(self.gateway.servers) <= 1, 15)
        except TimeoutError:
            self.figures.blame("grown", f"{len(self.gateway.servers)} MCP servers")


def _journal_behind_supergateway(journal: Path) -> Gateway:
    return Gateway(SERVER, {"JOURNAL": str(journal)})


@asynccontextmanager
async def stack(
    run: Run,
    fault: str,
    done: str,
    *,
    link: Link | None = None,
    ids: tuple[str, ...] = IDS,
    descriptors: int = 0,
    callers: type[Caller] = Caller,
    audited: bool = False,
    upstream: Callable[[Path], Gateway] = _journal_behind_supergateway,
    **settings: str,
) -> AsyncIterator[Stack]:
    """Starts the parts for one fault; at the end it checks the result of every call, and the log.

    Parameters:
        run: the run.
        fault: its name.
        done: a short description.
        link: the link between the bridge and supergateway, if any.
        ids: the ids of all requests.
        descriptors: the bridge's limit of descriptors; 0 for the driver's own.
        callers: makes the calls.
        audited: whether the bridge writes an audit log, with a line for each call.
        upstream: makes the server that answers the calls and records them in a file.
        settings: variables of the bridge, without their prefix.
    """
    journal = run.folder / f"journal-{'-'.join(fault.split())}"
    gateway = upstream(journal)
    figures = Figures(fault, done)
    async with AsyncExitStack() as exits:
        exits.callback(gateway.stop)
        await asyncio.to_thread(gateway.start)
        url = gateway.url
        if link is not None:
            link.target = gateway.port
            await exits.enter_async_context(link.open())
            url = f"http://127.0.0.1:{link.port}/mcp"
        bridge = BridgeProcess(run, url, settings, descriptors=descriptors, audited=audited)
        account = Account(run.secret("memory"), journal)
        it = Stack(run, figures, account, gateway, bridge, _http_client(), run.random(fault), ids, callers)
        exits.push_async_callback(_end, it)
        await bridge.ready(it.http)
        yield it


def _http_client() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def _end(it: Stack) -> None:
    with suppress(aiohttp.ClientConnectionError):
        async with it.http.get(f"http://127.0.0.1:{it.bridge.metrics_port}/metrics") as response:
            it.bridge.log.with_suffix(".metrics").write_bytes(await response.read())
    await it.http.close()
    if it.bridge.process.poll() is not None:
        it.figures.blame("failed", f"the bridge ended by itself: {it.bridge.log}")
    if (status := await it.bridge.stop()) != 0:
        it.figures.blame("failed", f"the bridge ended with status {status}")
    it.bridge.check_log(it.figures)
    if it.bridge.audit.exists():
        check_audit(it.bridge.audit, it.account, it.figures)
    it.account.settle(it.figures)
