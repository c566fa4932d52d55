from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from starlette.types import Message

from unit.session.test_exchange import answer, new_exchange
from vestige_bridge.endpoint.response_writer import EventStreams, ResponseWriter
from vestige_bridge.errors import BridgeError, Cancelled, UpstreamDisconnected, UpstreamTimeout
from vestige_bridge.http.headers import Accepted
from vestige_bridge.http.sse import HEARTBEAT, EventDecoder
from vestige_bridge.session.listeners import Listener

JSON = Accepted(json=True, event_stream=False)
STREAM = Accepted(json=False, event_stream=True)
BOTH = Accepted(json=True, event_stream=True)


class Client:
    """A client that records the ASGI messages sent to it."""

    def __init__(self, accepted: Accepted, heartbeat_seconds: float = 60) -> None:
        self.sent: list[Message] = []
        self.left = False
        self.wrote = asyncio.Event()
        self.streams = EventStreams(heartbeat_seconds)
        self.writer = ResponseWriter(self._send, accepted, self.streams, self._has_left)

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        self.wrote.set()

    def _has_left(self) -> bool:
        return self.left

    @property
    def content_type(self) -> bytes:
        return dict(self.sent[0]["headers"])[b"content-type"]  # type: ignore[no-any-return]

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])

    @property
    def messages(self) -> list[Any]:
        return [json.loads(event.data) for event in EventDecoder(100_000).feed(self.body)]

    @property
    def complete(self) -> bool:
        return bool(self.sent) and not self.sent[-1].get("more_body", False) and self.sent[-1]["type"].endswith("body")


@pytest.mark.parametrize(
    ("accepted", "streamed", "content_type"),
    [
        (JSON, False, b"application/json"),
        (JSON, True, b"application/json"),
        (BOTH, False, b"application/json"),
        (BOTH, True, b"text/event-stream"),
        (STREAM, False, b"text/event-stream"),
        (STREAM, True, b"text/event-stream"),
    ],
)
async def test_an_answer_is_streamed_when_upstream_streams_and_the_client_takes_it(
    accepted: Accepted, streamed: bool, content_type: bytes
) -> None:
    client, exchange = Client(accepted), new_exchange()
    exchange.streamed = streamed
    data = answer(exchange)
    async with asyncio.timeout(5):
        await client.writer.exchange(exchange)
    assert client.content_type == content_type
    assert client.complete
    assert data in client.body


async def test_progress_is_sent_on_as_it_comes_to_a_client_that_takes_a_stream() -> None:
    client, exchange = Client(BOTH), new_exchange()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(client.writer.exchange(exchange))
        exchange.take_progress(b'{"step":1}')
        while len(client.sent) < 2:
            client.wrote.clear()
            await client.wrote.wait()
        assert client.messages == [{"step": 1}]
        assert not client.complete
        assert exchange.relayed
        data = answer(exchange)
    assert client.messages == [{"step": 1}, json.loads(data)]
    assert client.complete


async def test_progress_is_not_sent_to_a_client_that_accepts_only_json() -> None:
    client, exchange = Client(JSON), new_exchange()
    exchange.take_progress(b'{"step":1}')
    data = answer(exchange)
    async with asyncio.timeout(5):
        await client.writer.exchange(exchange)
    assert client.body == data
    assert not exchange.relayed


async def test_comments_keep_a_silent_stream_open_and_a_replay_allowed() -> None:
    client, exchange = Client(BOTH, 0.001), new_exchange()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(client.writer.exchange(exchange))
        while len(client.sent) < 3:
            client.wrote.clear()
            await client.wrote.wait()
        assert not exchange.relayed
        answer(exchange)
    assert client.body.startswith(HEARTBEAT * 2)
    assert len(client.messages) == 1


@pytest.mark.parametrize("accepted", [JSON, BOTH, STREAM])
async def test_an_error_before_anything_was_sent_keeps_its_own_status(accepted: Accepted) -> None:
    client, exchange = Client(accepted), new_exchange()
    exchange.fail(UpstreamTimeout("Late."))
    with pytest.raises(UpstreamTimeout):
        await client.writer.exchange(exchange)
    assert client.sent == []


async def test_an_error_on_a_stream_that_began_is_its_last_event() -> None:
    client, exchange = Client(BOTH), new_exchange()
    exchange.take_progress(b"{}")
    exchange.fail(UpstreamDisconnected("Gone."))
    await client.writer.exchange(exchange)
    assert client.complete
    assert client.messages[-1]["id"] == 7
    assert client.messages[-1]["error"]["data"] == {"outcome": "not_sent", "retryable": True}


async def test_a_cancelled_stream_ends_without_a_message() -> None:
    client, exchange = Client(BOTH), new_exchange()
    exchange.fail(Cancelled("Cancelled."))
    await client.writer.exchange(exchange)
    assert client.content_type == b"text/event-stream"
    assert client.complete
    assert client.body == b""


async def test_a_cancelled_post_of_a_json_client_is_answered() -> None:
    client, exchange = Client(JSON), new_exchange()
    exchange.fail(Cancelled("Cancelled."))
    with pytest.raises(Cancelled):
        await client.writer.exchange(exchange)


@pytest.mark.parametrize("accepted", [JSON, BOTH])
async def test_a_client_that_left_is_sent_nothing(accepted: Accepted) -> None:
    client, exchange = Client(accepted), new_exchange()
    client.left = True
    answer(exchange)
    await client.writer.exchange(exchange)
    assert client.sent == []


async def test_the_heartbeat_detects_that_a_client_has_left_a_silent_stream() -> None:
    client, exchange = Client(BOTH, 0.001), new_exchange()
    client.left = True
    async with asyncio.timeout(5):
        await client.writer.exchange(exchange)
    assert not exchange.ended
    assert not client.complete


async def test_a_stream_of_notifications_is_counted_while_it_is_open() -> None:
    client, listener = Client(STREAM), Listener(lambda _: True)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(client.writer.notifications(listener))
        await client.wrote.wait()
        assert client.streams.open == 1
        listener.close()
    assert client.streams.open == 0


@pytest.mark.parametrize("accepted", [JSON, STREAM])
async def test_a_batch_is_answered_in_the_order_of_its_members(accepted: Accepted) -> None:
    client, first, second = Client(accepted), new_exchange(), new_exchange()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(client.writer.batch([first, b'{"refused":1}', second]))
        await asyncio.sleep(0)
        answer(second, "2")
        error: BridgeError = UpstreamTimeout("Late.")
        first.fail(error)
    answers = json.loads(client.body) if accepted is JSON else client.messages[-1]
    assert answers[0]["error"]["code"] == -32012
    assert answers[1] == {"refused": 1}
    assert answers[2]["result"] == 2


async def test_the_progress_of_a_batch_comes_before_its_answer_and_comments_while_it_is_silent() -> None:
    client, exchange = Client(BOTH, 0.001), new_exchange()
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        group.create_task(client.writer.batch([exchange]))
        exchange.take_progress(b'{"step":1}')
        while HEARTBEAT not in client.body:
            client.wrote.clear()
            await client.wrote.wait()
        data = answer(exchange)
    assert client.messages == [{"step": 1}, [json.loads(data)]]
