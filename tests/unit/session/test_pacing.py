from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.session.pacing import LASTING_SECONDS, LEAST_SECONDS, LONGEST_SECONDS, Pacing


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(st.floats(0, 30), max_size=40))
def test_openings_are_a_second_apart_and_no_wait_is_longer_than_the_longest(lifetimes: list[float]) -> None:
    clock = Clock()
    pacing = Pacing(clock)
    assert pacing.delay_seconds() == 0
    for lifetime in lifetimes:
        opened_at = clock.now
        pacing.opened()
        clock.now += lifetime
        pacing.lost()
        clock.now += pacing.delay_seconds()
        assert clock.now - opened_at >= LEAST_SECONDS - 1e-6
        assert clock.now - opened_at <= max(lifetime, LONGEST_SECONDS) + 1e-6


def test_a_session_that_lasted_is_renewed_at_once() -> None:
    clock = Clock()
    pacing = Pacing(clock)
    for _ in range(9):
        pacing.opened()
        pacing.lost()
    pacing.opened()
    clock.now += LASTING_SECONDS
    pacing.lost()
    assert pacing.delay_seconds() == 0


def test_an_opening_that_did_not_reach_upstream_causes_no_delay() -> None:
    pacing = Pacing(Clock())
    pacing.opened()
    pacing.failed(reached=False)
    assert pacing.delay_seconds() == 0
    pacing.opened()
    pacing.failed(reached=True)
    assert pacing.delay_seconds() >= LEAST_SECONDS
