"""The reconciliation of upstream's subscriptions and log level with those that clients want."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import until
from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import UpstreamConnectError, UpstreamTimeout
from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session import subscriptions
from vestige_bridge.session.exchange import Answered
from vestige_bridge.session.listeners import Listener, Listeners
from vestige_bridge.session.subscriptions import Interest, Subscriptions, interest_of

CALLERS = [Caller("team", "ann"), Caller("team", "bob"), Caller("other", "otto")]
URIS = ["a", "b", "c"]


class Upstream:
    """An upstream that stores its subscriptions and level, and answers at once or when a test calls ``answer``."""

    def __init__(self) -> None:
        self.sessions = 0
        self.uris: set[str] = set()
        self.level: str | None = None
        self.asked: list[tuple[str, str]] = []
        self.refused: set[str] = set()
        self.silent: set[str] = set()
        self.reachable = True
        self.waiting: list[asyncio.Future[None]] = []
        self.answers_at_once = True
        self.subscriptions: Subscriptions | None = None

    async def connect(self) -> HeldSession:
        """Opens a session without subscriptions and level."""
        if not self.reachable:
            raise UpstreamConnectError("Nobody is there.")
        self.renew()
        return HeldSession("it")

    def renew(self) -> None:
        """Begins a new session without subscriptions and level."""
        assert self.subscriptions is not None
        self.sessions += 1
        self.uris, self.level = set(), None
        self.subscriptions.begin(HeldSession(f"session-{self.sessions}"))

    async def ask(self, held: HeldSession, method: str, params: Mapping[str, object]) -> Answered:
        """Executes a request and answers it."""
        value = str(params.get("uri", params.get("level")))
        self.asked.append((method, value))
        if not self.answers_at_once:
            self.waiting.append(asyncio.get_running_loop().create_future())
            await self.waiting[-1]
        if value in self.silent:
            raise UpstreamTimeout("No answer came in time.")
        refused = value in self.refused
        if held.session_id == f"session-{self.sessions}" and not refused:
            self._do(method, value)
        content = '"error":{"code":-32002,"message":"no"}' if refused else '"result":{}'
        return Answered(f'{{"jsonrpc":"2.0","id":4711,{content}}}'.encode(), streamed=False)

    def _do(self, method: str, value: str) -> None:
        if method == "logging/setLevel":
            self.level = value
        else:
            (self.uris.add if method == "resources/subscribe" else self.uris.discard)(value)

    def answer(self, index: int = 0) -> None:
        """Answers one waiting request."""
        self.waiting.pop(index).set_result(None)


def made(upstream: Upstream) -> tuple[Listeners, Subscriptions]:
    it = Listeners()
    upstream.subscriptions = Subscriptions(it, Tasks(), upstream.connect, upstream.ask)
    return it, upstream.subscriptions


async def turns(count: int = 20) -> None:
    """Runs all tasks that are ready."""
    for _ in range(count):
        await asyncio.sleep(0)


def request(method: str, params: object = None) -> Request:
    message = parse_message(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
    assert isinstance(message, Request)
    return message


@pytest.mark.parametrize(
    ("method", "params", "interest"),
    [
        ("resources/subscribe", {"uri": "a"}, Interest("a", True)),
        ("resources/unsubscribe", {"uri": "a"}, Interest("a", False)),
        ("logging/setLevel", {"level": "debug"}, Interest(None, "debug")),
        ("logging/setLevel", {"level": "loud"}, None),
        ("logging/setLevel", {"uri": "a"}, None),
        ("logging/setLevel", {"level": ["debug"]}, None),
        ("resources/subscribe", {"uri": 1}, None),
        ("resources/subscribe", {"level": "debug"}, None),
        ("resources/read", {"uri": "a"}, None),
    ],
)
def test_subscribe_unsubscribe_and_set_level_requests_are_interests(
    method: str, params: object, interest: Interest | None
) -> None:
    assert interest_of(request(method, params)) == interest


@given(st.randoms(use_true_random=True))
def test_upstream_ends_in_the_state_that_clients_want(random: Random) -> None:
    async def change_interests() -> None:
        upstream = Upstream()
        it, _ = made(upstream)
        upstream.renew()
        upstream.answers_at_once = random.random() < 0.3
        for _ in range(random.randint(1, 40)):
            caller, uri = random.choice(CALLERS), random.choice(URIS)
            step = random.randrange(8)
            if step < 3:
                it.subscribe(caller, uri)
            elif step < 5:
                it.unsubscribe(caller, uri)
            elif step == 5:
                it.set_level(caller, random.choice(["debug", "error"]))
            elif step == 6:
                it.forget(caller)
            elif random.random() < 0.3:
                upstream.renew()
            if upstream.waiting and random.random() < 0.5:
                upstream.answer(random.randrange(len(upstream.waiting)))
            await turns(random.randrange(4))
        await turns()
        while upstream.waiting:
            upstream.answer()
            await turns()
        assert upstream.uris == set(it.uris)
        assert it.level is None or upstream.level == it.level
        assert it.level is not None or upstream.level in (None, "emergency")

    asyncio.run(change_interests())


async def test_at_most_one_request_for_a_resource_is_in_flight() -> None:
    upstream = Upstream()
    it, _ = made(upstream)
    upstream.answers_at_once = False
    upstream.renew()
    it.subscribe(CALLERS[0], "a")
    await turns()
    it.unsubscribe(CALLERS[0], "a")
    it.subscribe(CALLERS[1], "a")
    it.unsubscribe(CALLERS[1], "a")
    await turns()
    assert upstream.asked == [("resources/subscribe", "a")]
    upstream.answer()
    await turns()
    assert upstream.asked == [("resources/subscribe", "a"), ("resources/unsubscribe", "a")]
    upstream.answer()
    await turns()
    assert upstream.uris == set()


async def test_the_number_of_requests_in_flight_is_limited() -> None:
    upstream = Upstream()
    it, reconciler = made(upstream)
    upstream.answers_at_once = False
    for number in range(100):
        it.subscribe(CALLERS[number % 3], f"{number}")
    upstream.renew()
    await turns()
    assert len(upstream.asked) == subscriptions.MAX_ASKED_AT_ONCE
    # A request that a client waits for goes before restored subscriptions.
    listener = Listener(lambda _: True)
    it.add(listener, "team", frozenset({"now"}))
    waiting = asyncio.ensure_future(reconciler.confirmed(frozenset({"now"})))
    await turns()
    upstream.answer()
    await turns()
    assert upstream.asked[-1] == ("resources/subscribe", "now")
    while upstream.waiting:
        upstream.answer()
        await turns()
    assert await waiting == {"now"}
    assert len(upstream.uris) == 101


async def test_an_interest_that_upstream_rejects_is_neither_confirmed_nor_kept() -> None:
    upstream = Upstream()
    it, reconciler = made(upstream)
    upstream.refused = {"bad", "debug"}
    upstream.renew()
    it.add(Listener(lambda _: True), "team", frozenset({"good", "bad"}))
    for caller, level in zip(CALLERS, ("debug", "error"), strict=False):
        it.listen(caller)
        it.set_level(caller, level)
    assert await reconciler.confirmed(frozenset({"good", "bad"})) == {"good"}
    await turns()
    assert set(it.uris) == {"good"}
    assert (it.level, upstream.level) == ("error", "error")
    asked = len(upstream.asked)
    upstream.renew()
    await turns()
    assert sorted(upstream.asked[asked:]) == [("logging/setLevel", "error"), ("resources/subscribe", "good")]


async def test_a_rejected_emergency_level_is_not_requested_again() -> None:
    upstream = Upstream()
    it, _ = made(upstream)
    upstream.refused = {"emergency"}
    upstream.renew()
    it.listen(CALLERS[0])
    it.set_level(CALLERS[0], "debug")
    await turns()
    it.forget(CALLERS[0])
    await turns()
    assert upstream.asked == [("logging/setLevel", "debug"), ("logging/setLevel", "emergency")]


async def test_a_request_without_an_answer_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "FIRST_RETRY_SECONDS", 0.01)
    upstream = Upstream()
    it, reconciler = made(upstream)
    upstream.silent = {"a", "b"}
    upstream.renew()
    it.add(Listener(lambda _: True), "team", frozenset({"a", "b"}))
    assert await reconciler.confirmed(frozenset({"a"})) == frozenset()
    await until(lambda: len(upstream.asked) >= 6)
    upstream.silent = set()
    await until(lambda: upstream.uris == {"a", "b"})


async def test_nothing_is_confirmed_if_no_session_can_be_opened() -> None:
    upstream = Upstream()
    it, reconciler = made(upstream)
    upstream.reachable = False
    it.add(Listener(lambda _: True), "team", frozenset({"a"}))
    assert await reconciler.confirmed(frozenset({"a"})) == frozenset()
    upstream.reachable = True
    assert await reconciler.confirmed(frozenset({"a"})) == {"a"}


async def test_a_confirmation_pending_when_the_session_is_lost_comes_from_the_next_session() -> None:
    upstream = Upstream()
    it, reconciler = made(upstream)
    upstream.answers_at_once = False
    upstream.renew()
    it.add(Listener(lambda _: True), "team", frozenset({"a"}))
    waiting = asyncio.ensure_future(reconciler.confirmed(frozenset({"a"})))
    await turns()
    upstream.answers_at_once = True
    reconciler.end()
    assert await waiting == {"a"}
    upstream.answer()
    await turns()
    assert upstream.uris == {"a"}
    assert len(upstream.asked) == 2


async def test_changes_without_a_session_are_kept_only_in_the_listeners() -> None:
    upstream = Upstream()
    it, reconciler = made(upstream)
    for number in range(100):
        it.subscribe(CALLERS[0], f"{number}")
        it.unsubscribe(CALLERS[0], f"{number}")
    assert not reconciler._due
    upstream.renew()
    await turns()
    assert upstream.asked == []
