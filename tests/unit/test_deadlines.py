from __future__ import annotations

import asyncio

from vestige_bridge.deadlines import Deadlines


async def test_what_is_not_stopped_expires_in_the_order_in_which_it_was_started() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    for thing in "abc":
        deadlines.start(thing)
    async with asyncio.timeout(5):
        assert [await expired.get() for _ in range(3)] == ["a", "b", "c"]


async def test_what_is_stopped_does_not_expire() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    deadlines.start("a")
    deadlines.start("b")
    deadlines.stop("a")
    deadlines.stop("never started")
    async with asyncio.timeout(5):
        assert await expired.get() == "b"
    assert expired.empty()


async def test_a_second_start_begins_the_time_anew() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.2, expired.put_nowait)
    loop = asyncio.get_running_loop()
    deadlines.start("a")
    await asyncio.sleep(0.1)
    restarted_at = loop.time()
    deadlines.start("a")
    async with asyncio.timeout(5):
        await expired.get()
    assert loop.time() - restarted_at >= 0.19


async def test_what_expires_may_stop_what_expires_with_it() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()

    def expire(thing: str) -> None:
        expired.put_nowait(thing)
        deadlines.stop("b")

    deadlines = Deadlines(0.01, expire)
    for thing in "abc":
        deadlines.start(thing)
    async with asyncio.timeout(5):
        assert [await expired.get() for _ in range(2)] == ["a", "c"]


async def test_after_a_pause_things_expire_again() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    async with asyncio.timeout(5):
        for thing in "ab":
            deadlines.start(thing)
            assert await expired.get() == thing
