from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.access import rate_limits
from vestige_bridge.access.rate_limits import MINUTE_SECONDS, RateLimits


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limits(clock: Clock) -> RateLimits:
    return RateLimits(clock)


@pytest.mark.parametrize("rate", [1, 2, 3, 7, 60, 61, 120, 1_000_000])
def test_a_minutes_calls_may_be_made_at_once_and_then_one_each_interval(rate: int) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    at_once = min(rate, 1_000)
    assert [limits.take("alice", rate) for _ in range(at_once)] == [0] * at_once
    if at_once == rate:
        assert limits.take("alice", rate) >= 1
        clock.seconds += MINUTE_SECONDS / rate
        assert limits.take("alice", rate) == 0
        assert limits.take("alice", rate) >= 1


def test_the_wait_is_in_whole_seconds_and_long_enough(clock: Clock, limits: RateLimits) -> None:
    for _ in range(4):
        assert limits.take("alice", 4) == 0
    assert limits.take("alice", 4) == 15
    clock.seconds += 3.5
    assert limits.take("alice", 4) == 12
    clock.seconds += 12
    assert limits.take("alice", 4) == 0


def test_a_call_that_is_refused_costs_nothing(clock: Clock, limits: RateLimits) -> None:
    assert limits.take("alice", 1) == 0
    assert [limits.take("alice", 1) for _ in range(1_000)] == [60] * 1_000
    clock.seconds += MINUTE_SECONDS
    assert limits.take("alice", 1) == 0


def test_each_principal_has_its_own_limit(limits: RateLimits) -> None:
    assert [limits.take(name, 1) for name in ("alice", "bob", "alice", "bob")] == [0, 0, 60, 60]


def test_a_limit_that_changes_counts_from_the_next_call_on(limits: RateLimits) -> None:
    assert [limits.take("alice", 2) for _ in range(3)] == [0, 0, 30]
    assert limits.take("alice", 1) == 60
    assert limits.take("alice", 1_000_000) >= 1


def test_idle_principals_are_forgotten_and_others_are_not(
    clock: Clock, limits: RateLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_limits, "MAX_KEPT", 3)
    for name in ("a", "b", "c"):
        limits.take(name, 1)
    clock.seconds += MINUTE_SECONDS - 1
    limits.take("d", 1)
    assert [limits.take(name, 1) for name in "abcd"] == [1, 1, 1, 60]
    clock.seconds += MINUTE_SECONDS - 0.5
    assert limits.take("e", 1) == 0
    assert limits.take("d", 1) == 1


def test_a_call_that_is_given_back_can_be_made_again_and_never_more(clock: Clock, limits: RateLimits) -> None:
    assert [limits.take("a", 2) for _ in range(3)] == [0, 0, 30]
    limits.give_back("a", 2)
    assert [limits.take("a", 2) for _ in range(2)] == [0, 30]
    # What was refilled in the meantime is not refilled twice.
    clock.seconds += 2 * MINUTE_SECONDS
    limits.give_back("a", 2)
    limits.give_back("nobody", 2)
    assert [limits.take("a", 2) for _ in range(3)] == [0, 0, 30]


@given(st.integers(1, 90), st.lists(st.floats(0, 30), min_size=1, max_size=200))
def test_no_run_of_calls_exceeds_a_minutes_calls_and_what_is_refilled_since(rate: int, pauses: list[float]) -> None:
    clock = Clock()
    limits = RateLimits(clock)
    made: deque[float] = deque()
    for pause in pauses:
        clock.seconds += pause
        seconds = limits.take("alice", rate)
        if not seconds:
            made.append(clock.seconds)
            for number, since in enumerate(reversed(made)):
                assert number <= rate + (clock.seconds - since) * rate / MINUTE_SECONDS
        else:
            clock.seconds += seconds
            assert limits.take("alice", rate) == 0
            made.append(clock.seconds)
