from __future__ import annotations

import asyncio

import pytest

from vestige_bridge.errors import UpstreamTimeout
from vestige_bridge.tasks import Tasks


async def hang() -> None:
    await asyncio.Event().wait()


async def fail(error: Exception) -> None:
    raise error


async def test_work_that_still_runs_is_cancelled_and_awaited_with_its_owner() -> None:
    tasks = Tasks()
    work = [tasks.start(hang()) for _ in range(3)]
    await asyncio.wait(work, timeout=0)
    async with asyncio.timeout(5):
        await tasks.close()
    assert all(task.cancelled() for task in work)


async def test_work_that_ended_gave_its_result() -> None:
    async def count() -> int:
        return 7

    tasks = Tasks()
    async with asyncio.timeout(5):
        assert await tasks.start(count()) == 7
        await tasks.close()


@pytest.mark.parametrize(("error", "lines"), [(ZeroDivisionError(), 1), (UpstreamTimeout("Late."), 0)])
async def test_a_failure_that_nobody_awaits_is_logged_unless_it_is_one_of_ours(
    caplog: pytest.LogCaptureFixture, error: Exception, lines: int
) -> None:
    tasks = Tasks()
    await asyncio.wait([tasks.start(fail(error))], timeout=5)
    await tasks.close()
    assert len(caplog.records) == lines
