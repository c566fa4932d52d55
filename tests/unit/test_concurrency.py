from __future__ import annotations

import asyncio

import pytest

from vestige_bridge.concurrency import Deadlines, Tasks
from vestige_bridge.errors import UpstreamTimeout


async def test_deadlines_expire_in_the_order_in_which_they_were_started() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    for thing in "abc":
        deadlines.start(thing)
    async with asyncio.timeout(5):
        assert [await expired.get() for _ in range(3)] == ["a", "b", "c"]


async def test_a_stopped_deadline_does_not_expire() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    deadlines.start("a")
    deadlines.start("b")
    deadlines.stop("a")
    deadlines.stop("never started")
    async with asyncio.timeout(5):
        assert await expired.get() == "b"
    assert expired.empty()


async def test_a_second_start_restarts_the_deadline() -> None:
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


async def test_an_expiring_deadline_may_stop_another_that_expires_at_the_same_time() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()

    def expire(thing: str) -> None:
        expired.put_nowait(thing)
        deadlines.stop("b")

    deadlines = Deadlines(0.01, expire)
    for thing in "abc":
        deadlines.start(thing)
    async with asyncio.timeout(5):
        assert [await expired.get() for _ in range(2)] == ["a", "c"]


async def test_deadlines_expire_again_after_a_pause() -> None:
    expired: asyncio.Queue[str] = asyncio.Queue()
    deadlines = Deadlines(0.01, expired.put_nowait)
    async with asyncio.timeout(5):
        for thing in "ab":
            deadlines.start(thing)
            assert await expired.get() == thing


async def hang() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


async def test_running_tasks_are_cancelled_and_awaited_when_their_owner_closes() -> None:
    tasks = Tasks()
    work = [tasks.start(hang()) for _ in range(3)]
    await asyncio.wait(work, timeout=0)
    async with asyncio.timeout(5):
        await tasks.close()
    assert all(task.cancelled() for task in work)


async def test_a_finished_task_has_its_result() -> None:
    async def count() -> int:
        return 7

    tasks = Tasks()
    async with asyncio.timeout(5):
        assert await tasks.start(count()) == 7
        await tasks.close()


@pytest.mark.parametrize(("error", "lines"), [(ZeroDivisionError(), 1), (UpstreamTimeout("Late."), 0)])
async def test_an_unawaited_failure_is_logged_unless_it_is_a_bridge_error(
    caplog: pytest.LogCaptureFixture, error: Exception, lines: int
) -> None:
    tasks = Tasks()
    await asyncio.wait([tasks.start(fail(error))], timeout=5)
    await tasks.close()
    assert len(caplog.records) == lines
