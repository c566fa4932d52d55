"""Writes an exchange to its client, as one JSON response or as an event stream.

Invariant: events are forwarded when they arrive, and a slow client does not delay others. The status is decided as late
as possible: until something is sent, an error gets its own status.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from starlette.types import Send

from vestige_bridge.concurrency import Deadlines
from vestige_bridge.errors import BridgeError, Cancelled
from vestige_bridge.http import sse
from vestige_bridge.http.headers import Accepted
from vestige_bridge.jsonrpc.builders import build_error
from vestige_bridge.session.exchange import Answered, Exchange
from vestige_bridge.session.listeners import Listener

ClientLeft = Callable[[], bool]
Shape = Callable[[bytes], tuple[int, bytes]]
Tag = Callable[[bytes], bytes]


class Waiter(Protocol):
    """An awaited source of an event stream."""

    def wake(self) -> None:
        """Ends the wait without an event."""


class EventStreams(Deadlines[Waiter]):
    """The event streams of all clients: their heartbeats, and the number of notification streams.

    Parameters:
        heartbeat_seconds: the longest time without an event.

    Attributes:
        open: the number of open notification streams.
    """

    def __init__(self, heartbeat_seconds: float) -> None:
        super().__init__(heartbeat_seconds, lambda waiter: waiter.wake())
        self.open = 0


def _unchanged(data: bytes) -> bytes:
    return data


class ResponseWriter:
    """Writes the response to one client.

    Parameters:
        send: the ASGI callable.
        accepted: the media types that the client accepts.
        streams: the event streams of all clients.
        client_left: whether the client has disconnected.
    """

    __slots__ = ("_accepted", "_client_left", "_headers", "_send", "_streaming", "_streams")

    def __init__(self, send: Send, accepted: Accepted, streams: EventStreams, client_left: ClientLeft) -> None:
        self._send = send
        self._accepted = accepted
        self._streams = streams
        self._client_left = client_left
        self._headers: Sequence[tuple[bytes, bytes]] = ()
        self._streaming = False

    async def answer(self, data: bytes, *, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Sends the answer: as the last event if there is a stream or must be one, otherwise as JSON."""
        await self._answer([(200, data)], streamed=False, headers=headers)

    async def exchange(
        self, exchange: Exchange, shape: Shape | None = None, headers: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        """Relays an exchange to its end.

        Parameters:
            exchange: the exchange.
            shape: returns the HTTP status and the bytes of the answer; ``None`` for 200 and unchanged bytes.
            headers: header fields of the response in either form.

        Errors:
            BridgeError: the exchange failed, and nothing was sent to the client yet.
        """
        heartbeats = self._streams if self._accepted.event_stream else None
        self._headers = headers
        try:
            while True:
                if heartbeats is not None:
                    heartbeats.start(exchange)
                if isinstance(news := await exchange.next(), Answered):
                    break
                if not await self._pass_on(exchange, news):
                    return
        except BridgeError as error:
            return await self._fail(error)
        finally:
            if heartbeats is not None:
                heartbeats.stop(exchange)
        if not self._client_left():
            streamed, shaped = news.streamed, [(200, news.data) if shape is None else shape(news.data)]
            del news
            await self._answer(shaped, streamed=streamed, headers=headers)

    async def _answer(
        self, only: list[tuple[int, bytes]], *, streamed: bool, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        """Sends an answer, status and bytes; takes it out of the list so that a large one is in memory once."""
        status, data = only.pop()
        accepted = self._accepted
        if self._streaming or (status == 200 and (not accepted.json or (streamed and accepted.event_stream))):
            data = sse.encode_event(data)
            self._headers = headers or self._headers
            await self._start_stream()
            return await self._send({"type": "http.response.body", "body": data})
        raw = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(data)).encode()),
            (b"cache-control", b"no-store"),
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
        await self._send({"type": "http.response.body", "body": data})

    async def notifications(
        self, listener: Listener, *, first: bytes = sse.HEARTBEAT, tag: Tag = _unchanged, last: bytes = b""
    ) -> None:
        """Relays the notifications of a listener until it is closed or its client disconnects.

        Parameters:
            listener: the source of the notifications.
            first: the first bytes of the stream, so that the client sees that it is open.
            tag: changes each notification before it is sent.
            last: the last message, sent when the bridge closes the stream.
        """
        self._streams.open += 1
        try:
            await self._write(first)
            while True:
                self._streams.start(listener)
                data = await listener.next()
                if data is not None:
                    await self._write(sse.encode_event(tag(data)))
                elif listener.closed:
                    return await self._send({"type": "http.response.body", "body": last})
                else:
                    await self._write(sse.HEARTBEAT)
                    if self._client_left():
                        return None
        finally:
            self._streams.open -= 1
            self._streams.stop(listener)

    async def batch(self, members: Sequence[Exchange | bytes]) -> None:
        """Relays the members of a batch: progress when it arrives, the answers together and in order."""
        collecting = asyncio.gather(*(self._member(member) for member in members))
        patience = self._streams.seconds if self._accepted.event_stream else None
        while not (await asyncio.wait([collecting], timeout=patience))[0]:
            await self._write(sse.HEARTBEAT)
        await self.answer(b"[" + b",".join(collecting.result()) + b"]")

    async def _member(self, member: Exchange | bytes) -> bytes:
        if isinstance(member, bytes):
            return member
        try:
            while not isinstance(news := await member.next(), Answered):
                await self._pass_on(member, news)
        except BridgeError as error:
            return build_error(error, error.request_id)
        return news.data

    async def _pass_on(self, exchange: Exchange, step: bytes | None) -> bool:
        """Sends a step of progress, or a heartbeat without one; returns whether the client is still connected."""
        if not self._accepted.event_stream:
            return True
        if step is None:
            await self._write(sse.HEARTBEAT)
            return not self._client_left()
        exchange.relayed = True
        await self._write(sse.encode_event(step))
        return True

    async def _fail(self, error: BridgeError) -> None:
        """Ends an open stream with the error object, or with nothing if its client cancelled."""
        cancelled = isinstance(error, Cancelled) and self._accepted.event_stream
        if not self._streaming and not cancelled:
            raise error
        await self._start_stream()
        body = b"" if cancelled else sse.encode_event(build_error(error, error.request_id))
        await self._send({"type": "http.response.body", "body": body})

    async def _write(self, data: bytes) -> None:
        await self._start_stream()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def _start_stream(self) -> None:
        if self._streaming:
            return
        self._streaming = True
        raw = [
            (b"content-type", sse.CONTENT_TYPE.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            *self._headers,
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": raw})
