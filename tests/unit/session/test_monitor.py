from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import Received, ScriptedUpstream, free_port, until
from vestige_bridge.errors import (
    BridgeError,
    SessionLost,
    UpstreamConnectError,
    UpstreamDisconnected,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from vestige_bridge.session.monitor import (
    DOWN_AFTER,
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    Health,
    Monitor,
    State,
)
from vestige_bridge.session.session import Session
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.answer_budget import AnswerBudget
from vestige_bridge.upstream.client import Upstream
from vestige_bridge.upstream.token import UpstreamToken

outcomes = st.lists(st.none() | st.sampled_from(["connect", "timeout"]), max_size=30)


def fold(outcomes: list[str | None]) -> Health:
    health = Health()
    for now, outcome in enumerate(outcomes):
        health = health.after_answer(now) if outcome is None else health.after_failure(outcome)
    return health


@given(outcomes)
def test_an_answer_makes_the_health_ready_after_any_history(before: list[str | None]) -> None:
    assert fold([*before, None]) == Health(State.READY, 0, None, len(before))


@given(outcomes, st.lists(st.sampled_from(["connect", "timeout"]), min_size=1, max_size=6))
def test_a_failure_degrades_the_health_and_several_in_a_row_are_down(
    before: list[str | None], failures: list[str]
) -> None:
    health = fold([*before, None, *failures])
    assert health.state is (State.DOWN if len(failures) >= DOWN_AFTER else State.DEGRADED)
    assert (health.failures, health.reason, health.answered_at) == (len(failures), failures[-1], len(before))


@given(st.lists(st.sampled_from(["connect", "timeout"]), max_size=6))
def test_before_the_first_answer_the_state_is_connecting_until_it_is_down(failures: list[str]) -> None:
    health = fold([*failures])
    assert health.state is (State.DOWN if len(failures) >= DOWN_AFTER else State.CONNECTING)
    assert health.answered_at is None


@given(outcomes)
def test_outcomes_do_not_change_the_previous_health_object(history: list[str | None]) -> None:
    health = fold(history)
    before = repr(health)
    health.after_answer(1)
    health.after_failure("timeout")
    assert repr(health) == before


@given(outcomes)
def test_the_wait_is_the_interval_or_a_bounded_backoff(history: list[str | None]) -> None:
    monitor = Monitor(17)
    monitor.health = fold(history)
    delay_seconds = monitor.delay_seconds()
    if monitor.health.failures:
        longest = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**monitor.health.failures)
        assert FIRST_BACKOFF_SECONDS <= delay_seconds <= longest
    else:
        assert delay_seconds == 17


def test_the_backoff_is_bounded_after_any_number_of_failures() -> None:
    monitor = Monitor(10)
    monitor.health = Health(failures=10**9)
    assert monitor.delay_seconds() <= LONGEST_BACKOFF_SECONDS


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (SessionLost("x"), "session_lost"),
        (UpstreamConnectError("x"), "connect"),
        (UpstreamDisconnected("x"), "disconnected"),
        (UpstreamProtocolError("x"), "protocol"),
        (UpstreamTimeout("x"), "timeout"),
        (UpstreamUnavailable("x"), "unavailable"),
    ],
)
def test_a_failure_has_a_one_word_reason(error: BridgeError, reason: str) -> None:
    monitor = Monitor(10)
    monitor.record(error)
    assert monitor.health.reason == reason
    assert not monitor.ready


def test_the_age_of_the_last_answer_grows_until_the_next() -> None:
    now = 100.0
    monitor = Monitor(10, clock=lambda: now)
    assert monitor.answer_age_seconds is None
    monitor.record(None)
    now = 102.5
    assert monitor.answer_age_seconds == 2.5
    monitor.record(UpstreamTimeout("x"))
    assert monitor.answer_age_seconds == 2.5
    monitor.record(None)
    assert monitor.answer_age_seconds == 0


def test_each_state_change_is_logged_once_with_the_cause_of_a_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monitor = Monitor(10)
    for error in (UpstreamConnectError("Nobody."), UpstreamConnectError("Nobody."), None, None, SessionLost("Gone.")):
        monitor.record(error)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "Vestige cannot be reached yet: Nobody."),
        ("INFO", "Vestige connected"),
        ("WARNING", "Vestige connection lost: Gone."),
    ]


def test_the_log_repeats_a_loss_each_minute_and_whenever_its_cause_changes(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    monitor = Monitor(10, clock=lambda: now)
    monitor.record(None)
    gone, refused = SessionLost("Gone."), UpstreamConnectError("Away.", detail="refused")
    unresolved = UpstreamConnectError("Away.", detail="no such name")
    for at, error in (
        (10.0, gone),
        (10.2, refused),
        (11.5, refused),
        (11.6, gone),
        (11.7, refused),
        (71.4, refused),
        (71.5, refused),
        (73.0, unresolved),
        (80.0, None),
        (81.0, refused),
    ):
        now = at
        monitor.record(error)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "Vestige connection lost: Gone.",
        "Vestige connection lost, for 2 s now: Away. (refused)",
        "Vestige connection lost, for 62 s now: Away. (refused)",
        "Vestige connection lost, for 63 s now: Away. (no such name)",
        "Vestige connection lost: Away. (refused)",
    ]


async def test_a_handshake_that_hangs_is_logged_at_once_and_each_minute(
    upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    async def hang(received: Received) -> Any:
        await asyncio.sleep(30)

    upstream.on("initialize", hang)
    now = 0.0
    monitor = Monitor(10, clock=lambda: now)
    http, session = connection(upstream.url, monitor, CONNECT_TIMEOUT_SECONDS="0.1")
    async with asyncio.timeout(5), http, session:
        for at in (0.0, 10.0, 59.0, 61.0, 62.0):
            now = at
            await monitor.step(session)
    cause = "Vestige is still starting. (the handshake is not complete)"
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"Vestige cannot be reached yet: {cause}",
        f"Vestige cannot be reached yet, for 61 s now: {cause}",
    ]


def connection(url: str, monitor: Monitor, **variables: str) -> tuple[Upstream, Session]:
    more = {f"VESTIGE_BRIDGE_{name}": value for name, value in {"CHECK_TIMEOUT_SECONDS": "2", **variables}.items()}
    settings = Settings.from_environ({"VESTIGE_MCP_URL": url, **more})
    upstream = Upstream(
        url, token=UpstreamToken(), connect_timeout_seconds=2, max_answer_bytes=10_000, budget=AnswerBudget(10_000)
    )
    return upstream, Session(upstream, settings, monitor.record, SessionFile.from_settings(settings))


async def test_a_step_opens_the_session_and_the_next_ones_only_check_it(upstream: ScriptedUpstream) -> None:
    monitor = Monitor(10)
    http, session = connection(upstream.url, monitor)
    async with asyncio.timeout(5), http, session:
        for _ in range(3):
            await monitor.step(session)
    assert monitor.health.state is State.READY
    assert upstream.sessions_opened == 1
    assert upstream.count("ping") == 2


async def test_a_step_that_finds_the_session_lost_opens_another(upstream: ScriptedUpstream) -> None:
    monitor = Monitor(10)
    http, session = connection(upstream.url, monitor)
    async with asyncio.timeout(5), http, session:
        await monitor.step(session)
        upstream.sessions.clear()
        await monitor.step(session)
        assert monitor.ready
    assert upstream.sessions_opened == 2


async def test_a_step_with_an_unreachable_upstream_is_one_failure_and_no_exception() -> None:
    monitor = Monitor(10)
    http, session = connection(f"http://127.0.0.1:{free_port()}/mcp", monitor)
    async with asyncio.timeout(5), http, session:
        await monitor.step(session)
    assert (monitor.health.failures, monitor.health.reason) == (1, "connect")


async def test_a_failure_of_a_client_request_wakes_the_monitor_at_once(upstream: ScriptedUpstream) -> None:
    monitor = Monitor(3600)
    http, session = connection(upstream.url, monitor)
    async with asyncio.timeout(10), http, session, monitor.watching(session):
        await until(lambda: monitor.ready)
        upstream.sessions.clear()
        monitor.record(SessionLost("x"))
        assert not monitor.ready
        await until(lambda: monitor.ready)
    assert upstream.sessions_opened == 2


class Broken:
    """A connection whose checks raise an unexpected exception."""

    def __init__(self) -> None:
        self.held: object | None = object()
        self.checks = 0
        self.enough = asyncio.Event()

    async def connected(self) -> object:
        return self.held

    async def check(self) -> None:
        self.checks += 1
        if self.checks == 3:
            self.enough.set()
        raise KeyError("a bug")


async def test_a_bug_in_a_check_does_not_end_the_monitor(caplog: pytest.LogCaptureFixture) -> None:
    broken = Broken()
    async with asyncio.timeout(5), Monitor(0.001).watching(broken):
        await broken.enough.wait()
    assert "A check failed unexpectedly" in caplog.text
