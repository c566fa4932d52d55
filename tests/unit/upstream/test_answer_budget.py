"""The budget for large answers: when reading from upstream pauses, and which answers are ended."""

from __future__ import annotations

import asyncio

import pytest

from vestige_bridge.upstream.answer_budget import LARGE_BYTES, AnswerBudget

LIMIT = 100


class Upstream:
    """An upstream connection on which an answer arrives."""

    def __init__(self) -> None:
        self.paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class Client:
    """A client connection for which an answer is buffered."""

    def __init__(self, *, reads: bool) -> None:
        self.reads = reads
        self.ended_by = ""

    def stalled(self, now: float) -> bool:
        return not self.reads

    def give_up(self, reason: str) -> None:
        self.ended_by = reason


@pytest.fixture
def budget() -> AnswerBudget:
    return AnswerBudget(LIMIT)


def test_reading_from_upstream_pauses_while_the_budget_is_full(budget: AnswerBudget) -> None:
    client, first, second = Client(reads=True), Upstream(), Upstream()
    budget.waiting(client, LIMIT)
    budget.arriving(first, 1)
    budget.arriving(second, 1)
    assert (first.paused, second.paused) == (True, True)
    assert budget.total_bytes == LIMIT + 2
    budget.waiting(client, 0)
    assert (first.paused, second.paused) == (False, False)


def test_if_no_answer_waits_for_a_client_the_largest_arriving_answer_is_not_paused(budget: AnswerBudget) -> None:
    small, large = Upstream(), Upstream()
    budget.arriving(small, 40)
    budget.arriving(large, 70)
    assert (small.paused, large.paused) == (True, False)
    budget.arriving(large, 500)
    assert not large.paused
    budget.arriving(large, 0)
    assert not small.paused
    assert budget.total_bytes == 40


async def test_a_complete_answer_counts_until_its_client_counts_it(budget: AnswerBudget) -> None:
    large = LARGE_BYTES + 1
    budget.limit_bytes = 2 * large
    whole, paused, client = Upstream(), Upstream(), Client(reads=True)
    budget.waiting(Client(reads=True), large)
    budget.arriving(whole, large)
    budget.arriving(paused, 1)
    assert paused.paused
    # The client that waits for the answer was woken earlier.
    asyncio.get_running_loop().call_soon(budget.waiting, client, large)
    budget.handed_over(large)
    budget.arriving(whole, 0)
    # No budget is freed between the two: reading would resume, and many answers can be complete in one turn.
    assert paused.paused
    await asyncio.sleep(0)
    assert (budget.total_bytes, paused.paused) == (2 * large + 1, True)
    budget.waiting(client, 0)
    assert (budget.total_bytes, paused.paused) == (large + 1, False)


def test_the_largest_answer_that_makes_no_progress_is_ended_first(budget: AnswerBudget) -> None:
    small, large, reading = Client(reads=False), Client(reads=False), Client(reads=True)
    for client, size in ((small, 30), (large, 60), (reading, 50)):
        budget.waiting(client, size)
    budget.balance(0.0)
    assert [client.ended_by for client in (small, large, reading)] == ["", "unsent_bytes", ""]
    assert budget.total_bytes == 80


def test_nothing_is_ended_while_all_make_progress(budget: AnswerBudget) -> None:
    clients, arriving = [Client(reads=True), Client(reads=True)], Upstream()
    for client in clients:
        budget.waiting(client, LIMIT)
    budget.arriving(arriving, 1)
    budget.balance(0.0)
    assert [client.ended_by for client in clients] == ["", ""]
    assert arriving.paused


def test_nothing_is_ended_within_the_budget(budget: AnswerBudget) -> None:
    client = Client(reads=False)
    budget.waiting(client, LIMIT)
    budget.balance(0.0)
    assert client.ended_by == ""


def test_an_answer_that_is_over_is_forgotten(budget: AnswerBudget) -> None:
    paused, client = Upstream(), Client(reads=True)
    budget.waiting(client, LIMIT)
    budget.arriving(paused, 1)
    budget.arriving(paused, 0)
    budget.waiting(client, 0)
    assert budget.total_bytes == 0
