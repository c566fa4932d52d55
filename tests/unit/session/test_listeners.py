"""Who hears which notification."""

from __future__ import annotations

import asyncio
import json

import pytest

from vestige_bridge.jsonrpc.messages import Notification
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.multiplexer import Caller
from vestige_bridge.session import listeners
from vestige_bridge.session.listeners import Listener, Listeners, concerns

ANN, BOB, OTTO = Caller("team", "ann"), Caller("team", "bob"), Caller("other", "otto")


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
    it = Listeners()
    ann, bob = it.listen(ANN), it.listen(BOB)
    changed = notification(f"{kind}/list_changed")
    it.publish(changed)
    assert await heard(ann) == await heard(bob) == [changed.encoded()]


async def test_an_update_is_heard_by_those_who_subscribed() -> None:
    it = Listeners()
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
    it = Listeners()
    ann, bob = it.listen(ANN), it.listen(BOB)
    it.set_level(ANN, "warning")
    for level in ("info", "warning", "emergency", "odd"):
        it.publish(notification("message", level=level, data="x"))
    assert [json.loads(data)["params"]["level"] for data in await heard(ann)] == ["warning", "emergency"]
    assert await heard(bob) == []


async def test_what_belongs_to_nobody_is_heard_by_nobody() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    it.publish(notification("progress", progressToken=1))
    it.publish(notification("tasks/status", taskId="x"))
    assert await heard(ann) == []


async def test_upstream_is_asked_for_what_anybody_wants() -> None:
    it = Listeners()
    listener = Listener(lambda _: True)
    assert set(it.uris) == set()
    assert it.level is None
    it.subscribe(ANN, "a")
    it.add(listener, "other", frozenset({"m"}))
    for caller, level in ((ANN, "error"), (BOB, "debug")):
        it.listen(caller)
        it.set_level(caller, level)
    assert set(it.uris) == {"a", "m"}
    assert it.level == "debug"
    it.remove(None, listener)
    it.forget(BOB)
    assert set(it.uris) == {"a"}
    assert it.level == "error"


async def test_a_second_stream_of_a_client_ends_the_first() -> None:
    it = Listeners()
    first = it.listen(ANN)
    it.subscribe(ANN, "a")
    second = it.listen(ANN)
    assert first.closed
    it.remove(ANN, first)
    it.publish(updated("a"))
    assert await heard(second) == [updated("a").encoded()]


async def test_interests_outlive_a_stream_and_end_with_the_session() -> None:
    it = Listeners()
    it.subscribe(ANN, "a")
    it.remove(ANN, it.listen(ANN))
    assert set(it.uris) == {"a"}
    listener = it.listen(ANN)
    it.forget(ANN)
    assert listener.closed
    assert set(it.uris) == set()


async def test_news_of_the_same_kind_is_told_once_to_a_slow_reader() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    it.subscribe(ANN, "a")
    for _ in range(1000):
        it.publish(updated("a"))
        it.publish(notification("tools/list_changed"))
    assert len(await heard(ann)) == 2


async def test_what_waits_for_a_slow_reader_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "WAITING_LIMIT_BYTES", 1000)
    it = Listeners()
    ann = it.listen(ANN)
    it.set_level(ANN, "debug")
    for number in range(100):
        it.publish(notification("message", level="info", data=f"{number:050}"))
    messages = await heard(ann)
    assert sum(map(len, messages)) <= 1000
    assert b"99" in messages[-1]


async def test_closing_ends_every_stream_after_what_waits() -> None:
    it = Listeners()
    ann, other = it.listen(ANN), Listener(lambda _: True)
    it.add(other, "other", frozenset())
    it.publish(notification("tools/list_changed"))
    it.close()
    async with asyncio.timeout(5):
        assert await ann.next() is not None
        assert await ann.next() is None
        assert await other.next() is not None
    assert ann.closed
    assert other.closed


async def test_the_client_that_was_quiet_longest_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_CLIENTS", 2)
    it = Listeners()
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "b")
    it.listen(ANN)
    it.subscribe(Caller("team", "eve"), "e")
    assert set(it.uris) == {"a", "e"}


async def test_a_client_is_forgotten_for_another_of_the_principal_with_most_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "MAX_CLIENTS", 3)
    it = Listeners()
    it.subscribe(OTTO, "o")
    for number in range(20):
        it.subscribe(Caller("team", f"invented-{number}"), f"{number}")
    assert set(it.uris) == {"o", "18", "19"}


def room(it: Listeners, caller: Caller, *uris: str) -> bool:
    """Whether there is room for these resources; if so, the client wants them."""
    if not it.free_quota(caller.principal, frozenset(uris), caller):
        return False
    for uri in uris:
        it.subscribe(caller, uri)
    return True


async def test_what_is_watched_is_bounded_for_each_and_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS", 3)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 4)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_ALL", 6)
    it = Listeners()
    for caller in (ANN, BOB, OTTO):
        it.listen(caller)
    assert room(it, ANN, "a", "b", "c")
    assert [room(it, ANN, uri) for uri in ("c", "d")] == [True, False]
    assert not it.free_quota("team", frozenset({"x" * (listeners.MAX_URI_CHARACTERS + 1)}), BOB)
    assert [room(it, BOB, uri) for uri in ("a", "d")] == [True, False]
    assert room(it, OTTO, "o", "p")
    assert not room(it, OTTO, "q")
    it.forget(ANN)
    assert room(it, OTTO, "q")
    it.add(Listener(lambda _: True), "third", frozenset({"x", "y"}))
    assert not room(it, BOB, "e")
    assert set(it.uris) == {"a", "o", "p", "q", "x", "y"}


async def test_sessions_without_a_stream_make_room_for_those_of_their_own_principal_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 4)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_ALL", 6)
    it = Listeners()
    assert room(it, OTTO, "o", "p")
    for number in range(50):
        assert room(it, Caller("team", f"invented-{number}"), f"{number}a", f"{number}b")
    assert set(it.uris) == {"o", "p", "48a", "48b", "49a", "49b"}
    assert room(it, Caller("third", "c"), "c")
    assert set(it.uris) == {"o", "p", "49a", "49b", "c"}


async def test_who_ends_a_stream_is_not_the_one_that_was_quiet_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 2)
    it = Listeners()
    listener = it.listen(ANN)
    assert room(it, ANN, "a")
    assert room(it, BOB, "b")
    it.remove(ANN, listener)
    assert room(it, Caller("team", "eve"), "e")
    assert set(it.uris) == {"a", "e"}


async def test_what_begins_and_ceases_to_be_wanted_is_told_once() -> None:
    it = Listeners()
    told: list[str | None] = []
    it.changed = told.append
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "a")
    it.subscribe(BOB, "a")
    it.unsubscribe(ANN, "a")
    it.unsubscribe(ANN, "a")
    assert told == ["a"]
    it.forget(BOB)
    assert told == ["a", "a", None]


async def test_a_level_counts_while_its_client_listens() -> None:
    it = Listeners()
    it.set_level(ANN, "debug")
    assert it.level is None
    it.listen(BOB)
    it.set_level(BOB, "error")
    stream = it.listen(ANN)
    assert it.level == "debug"
    it.remove(ANN, stream)
    assert it.level == "error"
    it.listen(ANN)
    assert it.level == "debug"
    it.set_level(ANN, "alert")
    assert it.level == "error"
    it.drop_level("error")
    assert it.level == "alert"
    it.forget(ANN)
    assert it.level is None


async def test_a_resource_that_upstream_refused_is_wanted_by_nobody() -> None:
    it = Listeners()
    listener = Listener(lambda _: True)
    it.subscribe(ANN, "a")
    it.subscribe(ANN, "b")
    it.add(listener, "team", frozenset({"a", "c", "d"}))
    it.drop("a")
    it.drop("unknown")
    assert set(it.uris) == {"b", "c", "d"}
    it.narrow(listener, frozenset({"c"}))
    assert set(it.uris) == {"b", "c"}
    it.remove(None, listener)
    it.narrow(listener, frozenset())
    assert set(it.uris) == {"b"}


@pytest.mark.parametrize(
    ("subscribed", "update", "heard"),
    [
        ("file:///dir", "file:///dir", True),
        ("file:///dir", "file:///dir/note.txt", True),
        ("file:///dir/", "file:///dir/deep/note.txt", True),
        ("file:///note.txt", "file:///note.txt#part", True),
        ("db://table", "db://table?row=1", True),
        ("file:///dir", "file:///directory", False),
        ("file:///dir/note.txt", "file:///dir", False),
        ("", "file:///dir", False),
        ("x" * 2_048, "x" * 2_048 + "/" * 100_000, True),
        ("x" * 2_049, "x" * 2_049 + "/" * 100_000, False),
    ],
)
async def test_an_update_of_a_part_is_heard_by_who_subscribed_to_the_whole(
    subscribed: str, update: str, heard: bool
) -> None:
    assert concerns(update, {subscribed, "other"}) == heard
    assert not concerns(update, set())


async def test_equal_notifications_are_merged_for_each_listener() -> None:
    it = Listeners()
    it.subscribe(ANN, "a")
    ann = it.listen(ANN)
    messages = []
    for number in range(500):
        it.publish(notification("tools/list_changed", number=number))
        it.publish(updated("a"))
        messages += await heard(ann)
    assert messages == [notification("tools/list_changed", number=0).encoded(), updated("a").encoded()]
    async with asyncio.timeout(10):
        later = [await ann.next(), await ann.next()]
    assert later == [notification("tools/list_changed", number=499).encoded(), updated("a").encoded()]
    it.publish(notification("prompts/list_changed"))
    assert await heard(ann) == [notification("prompts/list_changed").encoded()]


async def test_what_was_merged_is_told_before_the_stream_ends() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    changed = notification("tools/list_changed")
    it.publish(changed)
    assert await ann.next() == changed.encoded()
    it.publish(changed)
    it.forget(ANN)
    it.publish(changed)
    assert await heard(ann) == [changed.encoded()]


async def test_a_listener_that_is_not_open_yet_tells_its_first_message_first() -> None:
    listener = Listener(lambda _: True, opened=False)
    listener.put(updated("a"))
    assert await heard(listener) == []
    listener.open(b"first")
    assert await heard(listener) == [b"first", updated("a").encoded()]


async def test_a_listener_that_waits_hears_at_once() -> None:
    listener = Listener(lambda _: True)
    waiting = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    listener.put(notification("tools/list_changed"))
    async with asyncio.timeout(5):
        assert await waiting == notification("tools/list_changed").encoded()


async def test_a_client_that_may_hear_of_no_resource_any_more_hears_of_the_rest() -> None:
    it = Listeners()
    it.unsubscribe_from_all(ANN)
    for uri in ("a", "b"):
        it.subscribe(ANN, uri)
        it.subscribe(BOB, uri)
    it.unsubscribe_from_all(ANN)
    ann, bob = it.listen(ANN), it.listen(BOB)
    assert set(it.uris) == {"a", "b"}
    changed = notification("tools/list_changed")
    for told in (updated("a"), changed, updated("b")):
        it.publish(told)
    assert await heard(ann) == [changed.encoded()]
    assert await heard(bob) == [updated("a").encoded(), changed.encoded(), updated("b").encoded()]
