"""Who hears which notification."""

from __future__ import annotations

import asyncio
import json

import pytest

from vestige_bridge import hub
from vestige_bridge.hub import Hub, Listener
from vestige_bridge.jsonrpc import parse_message
from vestige_bridge.messages import Notification
from vestige_bridge.multiplexer import Caller

ANN, BOB = Caller("team", "ann"), Caller("team", "bob")


def notification(method: str, **params: object) -> Notification:
    message = parse_message(json.dumps({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params}))
    assert isinstance(message, Notification)
    return message


def updated(uri: str) -> Notification:
    return notification("resources/updated", uri=uri)


async def heard(listener: Listener) -> list[bytes]:
    """All that waits for the listener."""
    messages = []
    asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(listener.wake))
    while (data := await listener.next()) is not None:
        messages.append(data)
    return messages


@pytest.mark.parametrize("kind", ["tools", "prompts", "resources"])
async def test_a_changed_list_is_heard_by_all(kind: str) -> None:
    it = Hub()
    ann, bob = it.listen(ANN), it.listen(BOB)
    changed = notification(f"{kind}/list_changed")
    it.publish(changed)
    assert await heard(ann) == await heard(bob) == [changed.encoded()]


async def test_an_update_is_heard_by_those_who_subscribed() -> None:
    it = Hub()
    ann, bob = it.listen(ANN), it.listen(BOB)
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "b")
    for uri in ("a", "b", "c"):
        it.publish(updated(uri))
    assert await heard(ann) == [updated("a").encoded()]
    assert await heard(bob) == [updated("b").encoded()]
    it.unsubscribe(ANN, "a")
    it.publish(updated("a"))
    assert await heard(ann) == []


async def test_a_log_message_is_heard_by_those_who_asked_for_its_level() -> None:
    it = Hub()
    ann, bob = it.listen(ANN), it.listen(BOB)
    it.set_level(ANN, "warning")
    for level in ("info", "warning", "emergency", "odd"):
        it.publish(notification("message", level=level, data="x"))
    assert [json.loads(data)["params"]["level"] for data in await heard(ann)] == ["warning", "emergency"]
    assert await heard(bob) == []


async def test_what_belongs_to_nobody_is_heard_by_nobody() -> None:
    it = Hub()
    ann = it.listen(ANN)
    it.publish(notification("progress", progressToken=1))
    it.publish(notification("tasks/status", taskId="x"))
    assert await heard(ann) == []


async def test_upstream_is_asked_for_what_anybody_wants() -> None:
    it = Hub()
    listener = Listener(lambda _: True)
    assert it.uris == frozenset()
    assert it.level is None
    it.subscribe(ANN, "a")
    it.add(listener, frozenset({"m"}))
    it.set_level(ANN, "error")
    it.set_level(BOB, "debug")
    assert it.uris == {"a", "m"}
    assert it.level == "debug"
    it.remove(None, listener)
    it.forget(BOB)
    assert it.uris == {"a"}
    assert it.level == "error"


async def test_a_second_stream_of_a_client_ends_the_first() -> None:
    it = Hub()
    first = it.listen(ANN)
    it.subscribe(ANN, "a")
    second = it.listen(ANN)
    assert first.closed
    it.remove(ANN, first)
    it.publish(updated("a"))
    assert await heard(second) == [updated("a").encoded()]


async def test_wishes_outlive_a_stream_and_end_with_the_session() -> None:
    it = Hub()
    it.subscribe(ANN, "a")
    it.remove(ANN, it.listen(ANN))
    assert it.uris == {"a"}
    listener = it.listen(ANN)
    it.forget(ANN)
    assert listener.closed
    assert it.uris == frozenset()


async def test_news_of_the_same_kind_is_told_once_to_a_slow_reader() -> None:
    it = Hub()
    ann = it.listen(ANN)
    it.subscribe(ANN, "a")
    for _ in range(1000):
        it.publish(updated("a"))
        it.publish(notification("tools/list_changed"))
    assert len(await heard(ann)) == 2


async def test_what_waits_for_a_slow_reader_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "WAITING_LIMIT_BYTES", 1000)
    it = Hub()
    ann = it.listen(ANN)
    it.set_level(ANN, "debug")
    for number in range(100):
        it.publish(notification("message", level="info", data=f"{number:050}"))
    messages = await heard(ann)
    assert sum(map(len, messages)) <= 1000
    assert b"99" in messages[-1]


async def test_closing_ends_every_stream_after_what_waits() -> None:
    it = Hub()
    ann, other = it.listen(ANN), Listener(lambda _: True)
    it.add(other, frozenset())
    it.publish(notification("tools/list_changed"))
    it.close()
    async with asyncio.timeout(5):
        assert await ann.next() is not None
        assert await ann.next() is None
        assert await other.next() is not None
    assert ann.closed
    assert other.closed


async def test_the_client_that_was_quiet_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_CLIENTS", 2)
    it = Hub()
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "b")
    it.listen(ANN)
    it.subscribe(Caller("team", "eve"), "e")
    assert it.uris == {"a", "e"}


def test_what_is_watched_is_bounded_for_each_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_URIS", 3)
    monkeypatch.setattr(hub, "MAX_URIS_OF_ALL", 5)
    it = Hub()
    for uri in ("a", "b", "c"):
        assert it.has_room(frozenset({uri}), ANN)
        it.subscribe(ANN, uri)
    assert [it.has_room(frozenset({uri}), ANN) for uri in ("c", "d")] == [True, False]
    assert it.has_room(frozenset({"d"}), BOB)
    it.add(Listener(lambda _: True), frozenset({"x", "y"}))
    assert not it.has_room(frozenset({"d"}), BOB)
    it.forget(ANN)
    assert it.has_room(frozenset({"d", "e", "f"}))
    assert not it.has_room(frozenset({"d", "e", "f", "g"}))
    assert not it.has_room(frozenset({"x" * (hub.MAX_URI_CHARACTERS + 1)}))


async def test_a_listener_that_waits_hears_at_once() -> None:
    listener = Listener(lambda _: True)
    waiting = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    listener.put(notification("tools/list_changed"))
    async with asyncio.timeout(5):
        assert await waiting == notification("tools/list_changed").encoded()
