"""Tests that real MCP clients sign in at a real identity provider, and stay connected when tokens and keys change.

usage: PYTHONPATH=tests python -m interop.oauth [--all]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from harness import NODE, ROOT, Bridge, BridgeProcess, Gateway, environment, free_port, until
from interop.clients import ALL_THAT_SIGN_IN, THAT_SIGN_IN, Connected, Kind
from interop.consent import SIGN_IN
from vestige_bridge.access.oauth import principal_of

SCOPES = "vestige.read=read-only;vestige.write=all"
STEP_SECONDS = 60
TOKEN_SECONDS = 9
"""After this time a token has expired for its client and for the bridge; see provider.mjs."""


class Provider:
    """The identity provider, which is controlled by orders on its standard input."""

    def __init__(self, process: asyncio.subprocess.Process, issuer: str) -> None:
        self._process = process
        self.issuer = issuer

    async def send(self, order: str) -> Counter[str]:
        """Sends an order; returns the provider's counts of what it has done so far."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{order}\n".encode())
        while not (line := await self._process.stdout.readline()).startswith(b"{"):
            # Its standard output also contains warnings about features for tests only.
            assert line
        return Counter(json.loads(line))


@asynccontextmanager
async def provider(resource: str) -> AsyncIterator[Provider]:
    """Starts oidc-provider; yields it once it listens."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        *(NODE, ROOT / "tests/interop/provider.mjs", str(port), resource),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"listening" not in await process.stdout.readline():
                assert process.returncode is None
        yield Provider(process, f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        await process.communicate()


class Walk:
    """The steps that all clients take, and their failures.

    Parameters:
        clients: the connected clients, by name.
    """

    def __init__(self, clients: dict[str, Connected]) -> None:
        self._clients = clients
        self.table: dict[str, dict[str, str]] = {name: {} for name in clients}
        self.failures: list[str] = []

    async def step(self, column: str, *behaviours: str) -> None:
        """Runs behaviours on all clients at the same time."""

        async def show(name: str) -> None:
            for behaviour in behaviours:
                answer = await self._clients[name].show(behaviour)
                self.table[name][column] = "✓" if answer == "ok" else "✗"
                if answer != "ok":
                    self.failures.append(f"{name}, {column}, {behaviour}: {answer}")

        async with asyncio.timeout(STEP_SECONDS):
            await asyncio.gather(*map(show, self._clients))

    def require(self, fact: str, holds: bool) -> None:
        """Records a failure if the fact does not hold."""
        if not holds:
            self.failures.append(fact)

    def __str__(self) -> str:
        columns = list(next(iter(self.table.values())))
        rows = [["client", *columns], ["---"] * (len(columns) + 1)]
        rows += [[name, *(marks.get(column, "✗") for column in columns)] for name, marks in self.table.items()]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


async def measure(kinds: tuple[Kind, ...]) -> Walk:
    """Tests the clients during sign-in, expiry of tokens, a change of keys and an outage of the provider."""
    gateway = Gateway(ROOT / "tests/server.mjs")
    await asyncio.to_thread(gateway.start)
    port = free_port()
    origin = f"http://127.0.0.1:{port}"
    try:
        async with AsyncExitStack() as stack:
            audit = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "audit"
            idp = await stack.enter_async_context(provider(f"{origin}/mcp"))
            settings = {"PUBLIC_URL": origin, "OAUTH_ISSUER": idp.issuer, "OAUTH_SCOPES": SCOPES, "LOG_LEVEL": "error"}
            settings |= {"VESTIGE_AUTH_TOKEN": "", "AUDIT_LOG": str(audit)}
            process = BridgeProcess(environment(gateway.url, PORT=str(port), **settings))
            served = await stack.enter_async_context(process.serving())
            await until(served.ready, STEP_SECONDS)
            async with asyncio.timeout(STEP_SECONDS):
                connected = await asyncio.gather(
                    *(stack.enter_async_context(kind.connect(f"{origin}/mcp", SIGN_IN)) for kind in kinds)
                )
            walk = Walk({kind.name: client for kind, client in zip(kinds, connected, strict=True)})
            await _walk(walk, idp, served, process.metrics_port, len(kinds))
            principals = {json.loads(line)["principal"] for line in audit.read_text().splitlines()}
            walk.require(f"all calls are alice's: {principals}", principals == {principal_of(idp.issuer, "alice")})
        return walk
    finally:
        await asyncio.to_thread(gateway.stop)


async def _walk(walk: Walk, idp: Provider, served: Bridge, metrics_port: int, clients: int) -> None:
    await walk.step("signs in", "connect")
    await walk.step("lists and calls", "list", "call", "progress")
    first = await idp.send("counts")
    walk.require(f"each registers once and signs in: {first}", first["registrations"] == clients <= first["codes"])
    await asyncio.sleep(TOKEN_SECONDS)
    await walk.step("token expires in the session", "call")
    # Each client makes 20 calls at once, twice. Tokens that are signed with the previous key stay valid.
    await asyncio.gather(
        walk.step("key changes under callers", "20 at once", "20 at once"), asyncio.create_task(idp.send("two keys"))
    )
    # Sent before the token expires: a client whose stream ends with the token renews it at once, and the new token must
    # stay valid until the last step.
    await idp.send("long")
    await asyncio.sleep(TOKEN_SECONDS)
    await walk.step("token of the new key", "call", "20 at once")
    last = await idp.send("away")
    known = await _sample(served, metrics_port, "oauth_keys")
    walk.require(f"the bridge knows both keys: {known}", known == 2)
    renewals = last["refreshes"] + last["codes"] - first["refreshes"] - first["codes"]
    walk.require(f"each renews its token twice: {first}, {last}", renewals >= 2 * clients)
    # A client that gets a 401 before it expects the expiry may sign its user in again; normally it refreshes the token.
    walk.require(f"tokens are refreshed: {last}", last["refreshes"] >= clients)
    await walk.step("provider away", "call", "20 at once")


async def _sample(served: Bridge, port: int, name: str) -> float:
    """Returns a sample of the bridge's metrics; 0 if there is none."""
    async with served.http.get(f"http://127.0.0.1:{port}/metrics") as response:
        lines = (await response.text()).splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"vestige_bridge_{name} ")), 0.0)


def main() -> int:
    """Runs the test, prints the table, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="make interop")
    parser.add_argument("--all", action="store_true", help="all clients, not one of each language")
    walk = asyncio.run(measure(ALL_THAT_SIGN_IN if parser.parse_args().all else THAT_SIGN_IN))
    print(walk)
    for failure in walk.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if walk.failures else 0


if __name__ == "__main__":
    sys.exit(main())
