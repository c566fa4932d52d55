"""Server-sent events: a decoder for chunks of any size, and an encoder.

Follows the HTML Living Standard, section 9.2.6 "Interpreting an event stream". Data stays bytes and is relayed
unchanged. An event with empty data, which the standard would dispatch, contains no message and is skipped: MCP servers
send such events to give a stream its first id.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

CONTENT_TYPE: Final = "text/event-stream"
HEARTBEAT: Final = b": still here\n\n"
"""A comment: it keeps an idle connection open, and clients ignore it."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_line_breaks = re.compile(rb"[\r\n]+")
_header_value = re.compile(rb"[\x20-\x7e\x80-\xff]{0,1024}").fullmatch
_MAX_RETRY_DIGITS: Final = 9
_FIELD: Final = b"data: "
_HEAD: Final = b"event: message\ndata: "


class EventTooLarge(ValueError):
    """An event is larger than the decoder's limit."""


class Event(NamedTuple):
    """One event of a stream.

    Attributes:
        data: its data, with lines joined by a line feed.
        type: its type, ``message`` by default.
    """

    data: bytes
    type: str = "message"


class Position(NamedTuple):
    """Where to resume a stream that ended (MCP 2025-11-25, basic/transports, resumability).

    Attributes:
        event_id: the id of the last event, for the header ``Last-Event-ID``.
        retry_seconds: how long to wait first, if the stream specified it.
    """

    event_id: str
    retry_seconds: float | None


class EventDecoder:
    """Decodes the chunks of one event stream into events.

    Parameters:
        limit_bytes: the size limit of one event, complete or not.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._at_start = True
        self._skip_line_feed = False
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._type = ""
        self._event_id = ""
        self._last_event_id = ""
        self._retry_seconds: float | None = None

    @property
    def position(self) -> Position | None:
        """Where to resume the stream; ``None`` if no event had an id."""
        return Position(self._last_event_id, self._retry_seconds) if self._last_event_id else None

    @property
    def held_bytes(self) -> int:
        """The bytes of an incomplete event."""
        return len(self._buffer) + self._data_bytes

    def feed(self, chunk: bytes) -> Iterator[Event]:
        """Yields the events that the chunk completes.

        Errors:
            EventTooLarge: an event, complete or not, is over the limit.
        """
        if not self._buffer and not self._data and not self._type and not self._skip_line_feed:
            # MCP servers nearly always send one complete event in a chunk.
            start = len(_HEAD) if chunk.startswith(_HEAD) else len(_FIELD) if chunk.startswith(_FIELD) else 0
            whole = chunk.endswith(b"\n\n") and chunk.find(b"\n", start) == len(chunk) - 2 > start > 0
            if whole and b"\r" not in chunk and len(chunk) <= self._limit_bytes:
                self._at_start = False
                yield Event(chunk[start:-2])
                return
        self._buffer += chunk
        while (line := self._next_line()) is not None:
            if line:
                self._take_field(line)
            elif (event := self._dispatch()) is not None:
                yield event
        self._require_within_limit(len(self._buffer) + self._data_bytes)

    def _next_line(self) -> bytes | None:
        buffer = self._buffer
        if self._skip_line_feed and buffer:
            # The carriage return that ended the last line was the last byte of its chunk.
            if buffer[0] == 0x0A:
                del buffer[:1]
            self._skip_line_feed = False
        # Two searches for one byte each are ten times as fast as one for either.
        end = buffer.find(b"\n", self._searched)
        carriage_return = buffer.find(b"\r", self._searched, len(buffer) if end < 0 else end)
        after = end + 1
        if carriage_return >= 0:
            end, after = carriage_return, carriage_return + 1
            self._skip_line_feed = after == len(buffer)
            after += buffer[after : after + 1] == b"\n"
        elif end < 0:
            self._searched = len(buffer)
            return None
        with memoryview(buffer) as view:
            line = bytes(view[:end])
        self._searched = 0
        del buffer[:after]
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _take_field(self, line: bytes) -> None:
        # A line may be as long as an answer, so it is copied as little as possible.
        colon = line.find(b":")
        name = line if colon < 0 else line[:colon]
        value = b"" if colon < 0 else line[colon + 1 + (line[colon + 1 : colon + 2] == b" ") :]
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._require_within_limit(self._data_bytes)
        elif name == b"event":
            self._type = value.decode(errors="replace")
        elif name == b"id" and _header_value(value):
            self._event_id = value.decode("latin-1")
        elif name == b"retry" and value.isdigit() and len(value) <= _MAX_RETRY_DIGITS:
            self._retry_seconds = int(value) / 1000

    def _require_within_limit(self, held_bytes: int) -> None:
        if held_bytes > self._limit_bytes:
            # The exception's traceback keeps this object alive until garbage collection, so its buffers are released.
            self._buffer.clear()
            self._data.clear()
            raise EventTooLarge(f"an event is over {self._limit_bytes} bytes")

    def _dispatch(self) -> Event | None:
        data, event_type = b"\n".join(self._data), self._type
        self._data.clear()
        self._data_bytes = 0
        self._type = ""
        self._last_event_id = self._event_id
        return Event(data, event_type or "message") if data else None


def encode_event(data: bytes) -> bytes:
    """The event for one JSON-RPC message.

    A line of data must not contain a line break; in JSON one can only be between two tokens, where a space is equal.
    """
    if b"\n" in data or b"\r" in data:
        data = _line_breaks.sub(b" ", data)
    return b"%b%b\n\n" % (_HEAD, data)
