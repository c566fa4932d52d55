from __future__ import annotations

import json
import re
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit import json_texts
from vestige_bridge.http.sse import HEARTBEAT, Event, EventDecoder, EventTooLarge, Position, encode_event

_fragments = [
    *(
        b"data",
        b"data:",
        b"data: ",
        b"event",
        b"event:",
        b"event: ping",
        b"id: 1",
        b"retry: 10",
        b"other: 1",
        b": a comment",
    ),
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b"\r\n\r\n", b" ", b":", b"x", b"{}", b"\x00", b"\x0b"),
    *("\u2028".encode(), "é".encode(), b"\xc3", b"\xef\xbb\xbf", b"\xef\xbb"),
]
streams = st.lists(st.sampled_from(_fragments) | st.binary(max_size=3), max_size=25).map(b"".join)


def read_at_once(stream: bytes) -> list[Event]:
    """Returns the events of a stream, except those without data, as section 9.2.6 of the HTML standard defines them."""
    *lines, _incomplete = re.split(rb"\r\n|\n|\r", stream.removeprefix(b"\xef\xbb\xbf"))
    events: list[Event] = []
    data, event_type = b"", b""
    for line in lines:
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            if data.removesuffix(b"\n"):
                events.append(Event(data.removesuffix(b"\n"), event_type.decode(errors="replace") or "message"))
            data, event_type = b"", b""
        elif field == b"data":
            data += value + b"\n"
        elif field == b"event":
            event_type = value
    return events


def decode(chunks: list[bytes], limit_bytes: int = 1_000_000) -> list[Event]:
    decoder = EventDecoder(limit_bytes)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


@given(streams, st.lists(st.integers(0, 100), max_size=12))
@example(b"data: a\r\n\r\ndata: b\r\n\r\n", list(range(30)))
@example(b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", [1, 2, 3])
@example(b"data: a\r\rdata: b\r\r", [8, 9])
def test_any_chunking_gives_the_events_of_the_standard(stream: bytes, cuts: list[int]) -> None:
    positions = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert decode([stream[begin:end] for begin, end in pairwise(positions)]) == read_at_once(stream)


@given(streams)
def test_a_stream_that_comes_byte_by_byte_gives_the_events_of_the_standard(stream: bytes) -> None:
    assert decode([stream[index : index + 1] for index in range(len(stream))]) == read_at_once(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [Event(b"YHOO\n+2\n10")]),
        (b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n", None),
        (b"data:test\n\ndata: test\n\n", [Event(b"test"), Event(b"test")]),
        (b"event: add\ndata: 1\n\ndata: 2\n\n", [Event(b"1", "add"), Event(b"2")]),
        (b"event: add\n\ndata: 2\n\n", [Event(b"2")]),
        (b"data: incomplete\n", []),
        (b"Data: 1\n\n data: 2\n\ndata : 3\n\n", []),
        (b"data: \xff\n\n", [Event(b"\xff")]),
    ],
    ids=["lines", "comments", "space", "type", "type without data", "incomplete", "other fields", "no UTF-8"],
)
def test_the_examples_of_the_standard_are_read_as_it_says(stream: bytes, events: list[Event] | None) -> None:
    expected = [Event(b"first event"), Event(b"second event"), Event(b" third event")] if events is None else events
    assert decode([stream]) == expected


@pytest.mark.parametrize("stream", [b"data\n\n", b"data:\n\n", b"id: 7\ndata: \n\n"])
def test_an_event_without_data_is_ignored(stream: bytes) -> None:
    assert decode([stream + b"data: {}\n\n"]) == [Event(b"{}")]


def test_an_event_is_yielded_as_soon_as_its_last_byte_arrives() -> None:
    decoder = EventDecoder(100)
    assert list(decoder.feed(b"data: 1\r\n\r")) == [Event(b"1")]
    assert list(decoder.feed(b"\ndata: 2\n")) == []
    assert list(decoder.feed(b"\n")) == [Event(b"2")]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    "event",
    [
        b"data: %s\n\n" % (b"x" * 200),
        b"data: xxxxxxxxx\n" * 30 + b"\n",
        b"data: %s" % (b"x" * 200),
        b":%s" % (b"x" * 200),
    ],
    ids=["one line", "many lines", "incomplete", "a comment"],
)
def test_an_event_over_the_limit_is_refused_in_any_chunking(event: bytes, size: int) -> None:
    if event.startswith(b":") and size == 1000:
        event += b"x" * 1000
    with pytest.raises(EventTooLarge, match="100 bytes"):
        decode([event[index : index + size] for index in range(0, len(event), size)], limit_bytes=100)


@pytest.mark.parametrize("event", [b"data: %s" % (b"x" * 200), b"data: xxxx\n" * 50], ids=["one line", "many lines"])
def test_the_buffer_is_cleared_after_an_event_over_the_limit(event: bytes) -> None:
    decoder = EventDecoder(100)
    with pytest.raises(EventTooLarge):
        list(decoder.feed(event))
    assert not decoder._buffer
    assert not decoder._data


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_the_limit_counts_for_one_event_and_not_for_the_stream(size: int) -> None:
    stream = b"data: %s\n\n: a comment\n\n" % (b"x" * 90) * 50
    chunks = [stream[index : index + size] for index in range(0, len(stream), size)]
    assert len(decode(chunks, limit_bytes=100)) == 50


def test_a_heartbeat_is_no_event() -> None:
    assert decode([HEARTBEAT, encode_event(b"{}"), HEARTBEAT]) == [Event(b"{}")]


@given(json_texts.responses, json_texts.ids)
def test_a_message_is_decoded_unchanged_except_for_line_breaks(template: str, spelled_id: str) -> None:
    data = template.replace(json_texts.ID, spelled_id).encode()
    (event,) = decode([encode_event(data)])
    assert event.type == "message"
    assert event.data == re.sub(rb"[\r\n]+", b" ", data)
    assert json.loads(event.data, parse_int=float) == json.loads(data, parse_int=float)


@pytest.mark.parametrize(
    ("stream", "position"),
    [
        (b"data: 1\n\n", None),
        (b"id: 1\ndata:\n\n", Position("1", None)),
        (b"id: 1\nretry: 1500\n\n", Position("1", 1.5)),
        (b"id: 1\n\nid: 2\ndata: cut", Position("1", None)),
        (b"id: 1\n\ndata: 2\n\n", Position("1", None)),
        (b"id: 1\n\nid\n\n", None),
        (b"id: 1\n\nid: \x00\n\n", Position("1", None)),
        (b"id: 1\nretry: soon\nretry: 99999999999\n\n", Position("1", None)),
    ],
)
def test_a_stream_with_ids_can_be_resumed_after_its_last_whole_event(stream: bytes, position: Position | None) -> None:
    decoder = EventDecoder(1000)
    list(decoder.feed(stream))
    assert decoder.position == position
