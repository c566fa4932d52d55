"""Random requests and faults of every kind, in both session modes; the result of every call is checked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from chaos.account import Figures
from chaos.callers import KINDS, Caller
from chaos.link import Link
from chaos.outages import LINK_FAULTS, kill_server
from chaos.session_callers import SessionCaller
from chaos.stack import Run, Stack, stack
from harness import until

TIMES = 120
LEAST_TIMES = 8
CALLERS = 10
ANSWERS = 10
"""The usual number of answered calls between two faults."""

GARBAGE = (
    *(b"", b"{", b"[]", b"null", b"[1]", b'{"jsonrpc":"2.0"}', b'{"jsonrpc":"2.0","id":1}', b"\xff", b"[" * 5000),
    *(
        b'{"jsonrpc":"2.0","id":{},"method":"ping"}',
        b'{"jsonrpc":"2.0","id":1,"method":7}',
        b'{"id":1,"method":"ping"}',
    ),
    b'{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}',
)
"""Bodies that are not valid messages."""


async def fuzz_shared(run: Run) -> Figures:
    """All clients use the shared session."""
    return await _fuzz(run, "shared", KINDS, Caller)


async def fuzz_per_client(run: Run) -> Figures:
    """Some clients have their own sessions, each with its own server; the others use the shared session."""
    plain = ("json_poster", "sse_poster", "watcher", "batcher", "modern_client", "leaver")
    return await _fuzz(run, "per-client", ("session_any",) * 4 + plain, SessionCaller)


async def _fuzz(run: Run, mode: str, kinds: Iterable[str], callers: type[Caller]) -> Figures:
    times = max(LEAST_TIMES, run.times(TIMES))
    done = f"{times} kills, network faults and series of invalid bodies, in {mode} mode, under {CALLERS} clients"
    link = Link()
    async with stack(
        run,
        f"Fuzz {mode}",
        done,
        link=link,
        callers=callers,
        SESSION_MODE=mode,
        REQUEST_TIMEOUT_SECONDS="8",
        CHECK_TIMEOUT_SECONDS="2",
        CLIENT_SESSION_IDLE_SECONDS="5",
    ) as it:
        async with it.load(CALLERS, kinds):
            for _ in range(times):
                await _fail(it, link)
                if it.random.random() < 0.7:
                    await _recover(it, in_session=mode == "per-client")
        # If the connection was cut while a session was opened, the bridge does not have its id, and cannot end it.
        await asyncio.to_thread(it.gateway.kill)
        await asyncio.to_thread(it.gateway.start)
        await it.good_request()
        await it.one_server()
    return it.figures


async def _fail(it: Stack, link: Link) -> None:
    kind = it.random.choice(("server", "gateway", "link", "link", "garbage"))
    if kind == "server":
        await kill_server(it)
    elif kind == "gateway":
        await asyncio.to_thread(it.gateway.kill)
        await asyncio.sleep(it.random.uniform(0, 0.2))
        await asyncio.to_thread(it.gateway.start)
    elif kind == "link":
        await it.random.choice(LINK_FAULTS)(link, it.random)
    else:
        await _send_garbage(it)


async def _recover(it: Stack, *, in_session: bool) -> None:
    """Waits until calls are answered again, on clients' own sessions as well if ``in_session`` is set."""

    def answered() -> int:
        return sum(call.got == "answer" and call.in_session == in_session for call in it.account.calls.values())

    enough = answered() + ANSWERS
    await until(lambda: answered() >= enough, 60)


async def _send_garbage(it: Stack) -> None:
    """Sends invalid messages, with or without a session: they must be rejected, and must not affect other clients."""
    for body in GARBAGE:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {it.run.token}"}
        if it.random.random() < 0.3:
            headers["Mcp-Session-Id"] = "x" * it.random.choice((1, 300))
        async with it.http.post(it.bridge.url, data=body, headers=headers) as response:
            data = await response.read()
            it.figures.calls += 1
            refused = response.status in (400, 404) or (response.status == 200 and b"-32600" in data)
            if refused and response.content_type == "application/json":
                it.figures.told += 1
            else:
                it.figures.blame("wrong", f"{body[:100]!r} was answered {response.status} {data[:100]!r}")
