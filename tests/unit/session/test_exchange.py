from __future__ import annotations

import asyncio

import pytest

from vestige_bridge.errors import Cancelled, UpstreamTimeout
from vestige_bridge.jsonrpc.builders import build_result
from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session.exchange import PROGRESS_LIMIT_BYTES, Answered, Exchange, Owner


class RecordingOwner:
    """An owner of exchanges that records progress and ends."""

    def __init__(self, *, repeatable: bool = False) -> None:
        self._repeatable = repeatable
        self.progressed: list[Exchange] = []
        self.ended: list[Exchange] = []

    def repeatable(self, request: Request) -> bool:
        return self._repeatable

    def progress(self, exchange: Exchange) -> None:
        self.progressed.append(exchange)

    def end(self, exchange: Exchange) -> None:
        self.ended.append(exchange)


def new_exchange(owner: RecordingOwner | None = None, *, repeatable: bool = False) -> Exchange:
    owner = owner or RecordingOwner(repeatable=repeatable)
    request = parse_message('{"jsonrpc":"2.0","id":7,"method":"tools/call"}')
    assert isinstance(request, Request)
    return Exchange(
        request,
        Caller("alice"),
        header_lines="",
        timeout_seconds=60,
        owner=Owner(owner.repeatable, owner.progress, owner.end, lambda *_: None, lambda _: None),
        loop=asyncio.get_running_loop(),
    )


def answer(exchange: Exchange, result: str = "{}") -> bytes:
    data = build_result("7", result)
    exchange.answer(data)
    return data


async def test_progress_comes_before_the_answer_in_the_order_in_which_it_came() -> None:
    exchange = new_exchange()
    exchange.take_progress(b"1")
    exchange.take_progress(b"2")
    data = answer(exchange)
    assert [await exchange.next(), await exchange.next()] == [b"1", b"2"]
    answered = await exchange.next()
    assert isinstance(answered, Answered)
    assert (answered.data, answered.streamed) == (data, False)


async def test_the_answer_says_whether_it_was_streamed() -> None:
    exchange = new_exchange()
    exchange.streamed = True
    answer(exchange)
    assert (await exchange.result()).streamed


async def test_a_waiting_reader_is_woken_by_progress_and_by_the_answer() -> None:
    exchange = new_exchange()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        step = group.create_task(exchange.next())
        await asyncio.wait([step], timeout=0)
        exchange.take_progress(b"1")
    assert step.result() == b"1"
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        result = group.create_task(exchange.result())
        await asyncio.wait([result], timeout=0)
        exchange.take_progress(b"2")
        data = answer(exchange)
    assert result.result().data == data


async def test_a_reader_that_is_woken_without_an_event_gets_none() -> None:
    exchange = new_exchange()
    exchange.wake()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        step = group.create_task(exchange.next())
        await asyncio.wait([step], timeout=0)
        exchange.wake()
        exchange.wake()
    assert step.result() is None


async def test_an_exchange_ends_once_with_the_first_answer_or_error() -> None:
    owner = RecordingOwner()
    exchange = new_exchange(owner)
    assert not exchange.ended
    data = answer(exchange)
    answer(exchange, '"another"')
    exchange.fail(UpstreamTimeout("Late."))
    assert exchange.ended
    assert owner.ended == [exchange]
    assert (await exchange.result()).data == data


@pytest.mark.parametrize(
    ("sent", "repeatable", "outcome", "retryable"),
    [
        (False, False, "not_sent", True),
        (False, True, "not_sent", True),
        (True, False, "unknown", False),
        (True, True, "unknown", True),
    ],
)
async def test_an_error_says_whether_upstream_may_have_seen_the_request(
    sent: bool, repeatable: bool, outcome: str, retryable: bool
) -> None:
    exchange = new_exchange(repeatable=repeatable)
    exchange.sent = sent
    exchange.fail(UpstreamTimeout("Late.", data={"a": 1}))
    with pytest.raises(UpstreamTimeout) as failure:
        await exchange.result()
    assert failure.value.request_id == "7"
    assert failure.value.data == {"a": 1, "outcome": outcome, "retryable": retryable}


async def test_progress_that_came_before_an_error_is_still_read() -> None:
    exchange = new_exchange()
    exchange.take_progress(b"1")
    exchange.fail(Cancelled("No more."))
    assert await exchange.next() == b"1"
    for _ in range(2):
        with pytest.raises(Cancelled):
            await exchange.next()


async def test_unread_progress_is_bounded_and_the_newest_is_kept() -> None:
    exchange = new_exchange()
    for number in range(1000):
        exchange.take_progress(b"%04d" % number + b"x" * 1020)
    answer(exchange)
    kept = []
    while isinstance(step := await exchange.next(), bytes):
        kept.append(step)
    assert sum(map(len, kept)) <= PROGRESS_LIMIT_BYTES < sum(map(len, kept)) + 1024
    assert [step[:4] for step in kept] == [b"%04d" % number for number in range(1000 - len(kept), 1000)]


async def test_progress_of_an_attempt_that_failed_is_not_read_in_the_next() -> None:
    exchange = new_exchange()
    exchange.take_progress(b"7")
    exchange.drop_progress()
    exchange.take_progress(b"1")
    answer(exchange)
    assert await exchange.next() == b"1"
    assert isinstance(await exchange.next(), Answered)


async def test_one_step_of_progress_is_kept_however_large_it_is() -> None:
    exchange = new_exchange()
    exchange.take_progress(b"small")
    exchange.take_progress(b"x" * (PROGRESS_LIMIT_BYTES + 1))
    answer(exchange)
    assert await exchange.next() == b"x" * (PROGRESS_LIMIT_BYTES + 1)
    assert isinstance(await exchange.next(), Answered)


async def test_the_owner_is_called_for_each_progress_notification() -> None:
    owner = RecordingOwner()
    exchange = new_exchange(owner)
    exchange.take_progress(b"1")
    exchange.take_progress(b"2")
    assert owner.progressed == [exchange, exchange]
