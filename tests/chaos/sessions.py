"""Per-client mode with an upstream that hangs: every client must get an error, and the mode must recover."""

from __future__ import annotations

import asyncio

import aiohttp

from chaos.account import Figures
from chaos.session_callers import SessionCaller
from chaos.stack import Run, Stack, stack
from harness import until

LIMIT = 4
TIMEOUT_SECONDS = 10
"""So long that a session which opens too late opens before the bridge stops waiting to end it."""

GROWTH_DESCRIPTORS = 8
GROWTH_TASKS = 8


async def hung(run: Run) -> Figures:
    """Supergateway is suspended while sessions are opened and used, again and again."""
    times = run.times(4)
    done = f"supergateway suspended {times} times while clients open {2 * LIMIT} sessions, call on others and listen"
    async with stack(
        run,
        "Hung sessions",
        done,
        callers=SessionCaller,
        SESSION_MODE="per-client",
        MAX_CLIENT_SESSIONS=str(2 * LIMIT),
        REQUEST_TIMEOUT_SECONDS=str(TIMEOUT_SECONDS),
        CLIENT_SESSION_IDLE_SECONDS="2",
    ) as it:
        before = await it.at_rest()
        for _ in range(times):
            await _hang(it)
        await it.good_request()
        await it.one_server()
        after = await it.at_rest()
        for name, index, bound in (("descriptors", 0, GROWTH_DESCRIPTORS), ("tasks", 2, GROWTH_TASKS)):
            it.figures.notes.append(f"{name} of the bridge before and after: {before[index]:.0f}, {after[index]:.0f}")
            if after[index] - before[index] > bound:
                it.figures.blame("grown", f"{name}: {before[index]:.0f} before, {after[index]:.0f} after")
    return it.figures


async def _hang(it: Stack) -> None:
    """Suspends supergateway once; afterwards, as many sessions as before must open."""
    users = [_session_caller(it) for _ in range(LIMIT)]
    for user in users:
        await until(lambda user=user: _opens(user), 60)
    it.gateway.suspend()
    try:
        openers = [_session_caller(it) for _ in range(2 * LIMIT)]
        async with asyncio.TaskGroup() as group:
            for number, opener in enumerate(openers):
                group.create_task(_gets_error_in_time(it, opener, f'"hung-{number}"'))
            for user in users:
                group.create_task(user.call_in_session("write"))
                group.create_task(user.session_listener())
    finally:
        it.gateway.resume()
    again = _session_caller(it)
    await until(lambda: _opens(again), 60)
    call = await again.call_in_session()
    if call.got != "answer":
        it.figures.blame("failed", f"a call on a new session afterwards: {call}")


def _session_caller(it: Stack) -> SessionCaller:
    caller = it.caller("session_client")
    assert isinstance(caller, SessionCaller)
    return caller


async def _opens(caller: SessionCaller) -> bool:
    status, _ = await caller.initialize()
    return status == 200


async def _gets_error_in_time(it: Stack, caller: SessionCaller, spelled_id: str) -> None:
    """Opens a session while upstream hangs; the client must get an error: a timeout, or too many sessions."""
    try:
        status, message = await caller.initialize(spelled_id)
    except (aiohttp.ClientError, TimeoutError) as failure:
        return it.figures.blame("unanswered", f"initialize while upstream hangs: {failure!r}")
    expected = {503: (-32013, "not_sent"), 504: (-32012, "unknown")}
    error = message.get("error", {})
    told = (error.get("code"), error.get("data", {}).get("outcome"))
    it.figures.calls += 1
    if expected.get(status) != told or f'"{message.get("id")}"' != spelled_id:
        it.figures.blame("wrong", f"initialize while upstream hangs: HTTP {status} {message}")
    else:
        it.figures.told += 1
