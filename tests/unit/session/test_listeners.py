"""Which listener receives which notification."""

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


async def received(listener: Listener) -> list[bytes]:
    """Returns all queued messages of the listener."""
    messages = []
    asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(listener.wake))
    while (data := await listener.next()) is not None:
        messages.append(data)
    return messages


@pytest.mark.parametrize("kind", ["tools", "prompts", "resources"])
async def test_a_list_change_is_sent_to_all_listeners(kind: str) -> None:
    it = Listeners()
    ann, bob = it.listen(ANN), it.listen(BOB)
    changed = notification(f"{kind}/list_changed")
    it.publish(changed)
    assert await received(ann) == await received(bob) == [changed.encoded()]


async def test_an_update_is_sent_only_to_subscribers() -> None:
    it = Listeners()
    ann, bob = it.listen(ANN), it.listen(BOB)
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "b")
    for uri in ("a", "b", "c"):
        it.publish(updated(uri))
    assert await received(ann) == [updated("a").encoded()]
    assert await received(bob) == [updated("b").encoded()]
    it.unsubscribe(ANN, "a")
    it.publish(updated("a"))
    assert await received(ann) == []


async def test_a_log_message_is_sent_only_to_clients_that_set_its_level() -> None:
    it = Listeners()
    ann, bob = it.listen(ANN), it.listen(BOB)
    it.set_level(ANN, "warning")
    for level in ("info", "warning", "emergency", "odd"):
        it.publish(notification("message", level=level, data="x"))
    assert [json.loads(data)["params"]["level"] for data in await received(ann)] == ["warning", "emergency"]
    assert await received(bob) == []


async def test_progress_and_task_notifications_are_sent_to_no_listener() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    it.publish(notification("progress", progressToken=1))
    it.publish(notification("tasks/status", taskId="x"))
    assert await received(ann) == []


async def test_uris_and_level_are_the_union_of_all_interests() -> None:
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
    assert await received(second) == [updated("a").encoded()]


async def test_interests_outlive_a_stream_and_end_with_the_session() -> None:
    it = Listeners()
    it.subscribe(ANN, "a")
    it.remove(ANN, it.listen(ANN))
    assert set(it.uris) == {"a"}
    listener = it.listen(ANN)
    it.forget(ANN)
    assert listener.closed
    assert set(it.uris) == set()


async def test_equal_notifications_are_queued_once_for_a_slow_reader() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    it.subscribe(ANN, "a")
    for _ in range(1000):
        it.publish(updated("a"))
        it.publish(notification("tools/list_changed"))
    assert len(await received(ann)) == 2


async def test_the_buffer_for_a_slow_listener_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "WAITING_LIMIT_BYTES", 1000)
    it = Listeners()
    ann = it.listen(ANN)
    it.set_level(ANN, "debug")
    for number in range(100):
        it.publish(notification("message", level="info", data=f"{number:050}"))
    messages = await received(ann)
    assert sum(map(len, messages)) <= 1000
    assert b"99" in messages[-1]


async def test_closing_ends_every_stream_after_its_queued_notifications() -> None:
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


async def test_the_client_that_was_inactive_longest_is_removed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_CLIENTS", 2)
    it = Listeners()
    it.subscribe(ANN, "a")
    it.subscribe(BOB, "b")
    it.listen(ANN)
    it.subscribe(Caller("team", "eve"), "e")
    assert set(it.uris) == {"a", "e"}


async def test_at_the_client_limit_a_client_of_the_principal_with_the_most_is_removed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "MAX_CLIENTS", 3)
    it = Listeners()
    it.subscribe(OTTO, "o")
    for number in range(20):
        it.subscribe(Caller("team", f"invented-{number}"), f"{number}")
    assert set(it.uris) == {"o", "18", "19"}


def subscribe_within_quota(it: Listeners, caller: Caller, *uris: str) -> bool:
    """Subscribes the client to these resources if its quota allows it, and returns whether it did."""
    if not it.free_quota(caller.principal, frozenset(uris), caller):
        return False
    for uri in uris:
        it.subscribe(caller, uri)
    return True


async def test_subscriptions_are_limited_per_client_per_principal_and_in_total(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS", 3)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 4)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_ALL", 6)
    it = Listeners()
    for caller in (ANN, BOB, OTTO):
        it.listen(caller)
    assert subscribe_within_quota(it, ANN, "a", "b", "c")
    assert [subscribe_within_quota(it, ANN, uri) for uri in ("c", "d")] == [True, False]
    assert not it.free_quota("team", frozenset({"x" * (listeners.MAX_URI_CHARACTERS + 1)}), BOB)
    assert [subscribe_within_quota(it, BOB, uri) for uri in ("a", "d")] == [True, False]
    assert subscribe_within_quota(it, OTTO, "o", "p")
    assert not subscribe_within_quota(it, OTTO, "q")
    it.forget(ANN)
    assert subscribe_within_quota(it, OTTO, "q")
    it.add(Listener(lambda _: True), "third", frozenset({"x", "y"}))
    assert not subscribe_within_quota(it, BOB, "e")
    assert set(it.uris) == {"a", "o", "p", "q", "x", "y"}


async def test_sessions_without_a_stream_lose_subscriptions_to_their_own_principal_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 4)
    monkeypatch.setattr(listeners, "MAX_URIS_OF_ALL", 6)
    it = Listeners()
    assert subscribe_within_quota(it, OTTO, "o", "p")
    for number in range(50):
        assert subscribe_within_quota(it, Caller("team", f"invented-{number}"), f"{number}a", f"{number}b")
    assert set(it.uris) == {"o", "p", "48a", "48b", "49a", "49b"}
    assert subscribe_within_quota(it, Caller("third", "c"), "c")
    assert set(it.uris) == {"o", "p", "49a", "49b", "c"}


async def test_the_end_of_a_stream_counts_as_activity_of_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "MAX_URIS_OF_PRINCIPAL", 2)
    it = Listeners()
    listener = it.listen(ANN)
    assert subscribe_within_quota(it, ANN, "a")
    assert subscribe_within_quota(it, BOB, "b")
    it.remove(ANN, listener)
    assert subscribe_within_quota(it, Caller("team", "eve"), "e")
    assert set(it.uris) == {"a", "e"}


async def test_each_change_of_the_wanted_resources_is_reported_once() -> None:
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


async def test_a_dropped_resource_is_removed_from_all_interests() -> None:
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
    ("subscribed", "update", "concerned"),
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
async def test_an_update_of_a_part_concerns_a_subscription_to_the_whole(
    subscribed: str, update: str, concerned: bool
) -> None:
    assert concerns(update, {subscribed, "other"}) == concerned
    assert not concerns(update, set())


async def test_equal_notifications_are_merged_for_each_listener() -> None:
    it = Listeners()
    it.subscribe(ANN, "a")
    ann = it.listen(ANN)
    messages = []
    for number in range(500):
        it.publish(notification("tools/list_changed", number=number))
        it.publish(updated("a"))
        messages += await received(ann)
    assert messages == [notification("tools/list_changed", number=0).encoded(), updated("a").encoded()]
    async with asyncio.timeout(10):
        later = [await ann.next(), await ann.next()]
    assert later == [notification("tools/list_changed", number=499).encoded(), updated("a").encoded()]
    it.publish(notification("prompts/list_changed"))
    assert await received(ann) == [notification("prompts/list_changed").encoded()]


async def test_merged_notifications_are_sent_before_the_stream_ends() -> None:
    it = Listeners()
    ann = it.listen(ANN)
    changed = notification("tools/list_changed")
    it.publish(changed)
    assert await ann.next() == changed.encoded()
    it.publish(changed)
    it.forget(ANN)
    it.publish(changed)
    assert await received(ann) == [changed.encoded()]


async def test_a_listener_sends_its_opening_message_before_earlier_notifications() -> None:
    listener = Listener(lambda _: True, opened=False)
    listener.put(updated("a"))
    assert await received(listener) == []
    listener.open(b"first")
    assert await received(listener) == [b"first", updated("a").encoded()]


async def test_a_waiting_listener_receives_a_notification_at_once() -> None:
    listener = Listener(lambda _: True)
    waiting = asyncio.ensure_future(listener.next())
    await asyncio.sleep(0)
    listener.put(notification("tools/list_changed"))
    async with asyncio.timeout(5):
        assert await waiting == notification("tools/list_changed").encoded()


async def test_a_client_without_subscriptions_still_receives_other_notifications() -> None:
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
    assert await received(ann) == [changed.encoded()]
    assert await received(bob) == [updated("a").encoded(), changed.encoded(), updated("b").encoded()]
