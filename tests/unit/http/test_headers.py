from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.http import headers
from vestige_bridge.http.headers import Accepted, Headers

ALLOWED = frozenset({"https://app.example.com"})

BOTH = Accepted(json=True, event_stream=True)
JSON_ONLY = Accepted(json=True, event_stream=False)
STREAM_ONLY = Accepted(json=False, event_stream=True)


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        ([], JSON_ONLY),
        ([b""], JSON_ONLY),
        ([b"*/*"], JSON_ONLY),
        ([b"text/*"], JSON_ONLY),
        ([b"text/html"], JSON_ONLY),
        ([b"application/json"], JSON_ONLY),
        ([b"application/json, text/event-stream"], BOTH),
        ([b"application/json", b"text/event-stream"], BOTH),
        ([b"*/*, text/event-stream"], BOTH),
        ([b"application/*;q=0.1,TEXT/Event-Stream;charset=utf-8"], BOTH),
        ([b"text/event-stream"], STREAM_ONLY),
        ([b"text/event-stream, application/json;q=0"], STREAM_ONLY),
        ([b"text/event-stream, application/json;q=0, */*"], STREAM_ONLY),
        ([b"text/event-stream;q=0.001"], STREAM_ONLY),
        ([b"text/event-stream;q=0"], JSON_ONLY),
        ([b"text/event-stream; Q = 0.000, */*"], JSON_ONLY),
        ([b"text/event-stream;q=0., application/json"], JSON_ONLY),
    ],
)
def test_an_event_stream_has_to_be_named_and_json_is_the_default(accept: list[bytes], accepted: Accepted) -> None:
    assert headers.accepted(Headers([(b"accept", value) for value in accept])) == accepted


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_every_client_is_taken_to_accept_something(accept: list[bytes]) -> None:
    accepted = headers.accepted(Headers([(b"accept", value) for value in accept]))
    assert accepted.json or accepted.event_stream


@pytest.mark.parametrize(
    ("content_type", "is_json"),
    [
        (None, False),
        (b"", False),
        (b"application/json", True),
        (b"Application/JSON ; charset=UTF-8", True),
        (b'application/json;charset="utf8"', True),
        (b"application/json;charset=latin-1", False),
        (b"application/json;version=2", True),
        (b"application/jsonx", False),
        (b"application/x-ndjson", False),
        (b"text/plain", False),
        (b"text/plain, application/json", False),
    ],
)
def test_a_body_is_json_if_its_content_type_is_json_in_utf_8(content_type: bytes | None, is_json: bool) -> None:
    assert headers.is_json(Headers([] if content_type is None else [(b"content-type", content_type)])) is is_json


@pytest.mark.parametrize(
    ("encodings", "compressed"),
    [([], False), ([b""], False), ([b" Identity"], False), ([b"gzip"], True), ([b"identity", b"br"], True)],
)
def test_a_body_is_compressed_when_an_encoding_says_so(encodings: list[bytes], compressed: bool) -> None:
    assert headers.is_compressed(Headers([(b"content-encoding", value) for value in encodings])) is compressed


@pytest.mark.parametrize(("value", "length"), [(None, None), (b"17", 17), (b"-1", None), (b"1e3", None), (b"", None)])
def test_a_content_length_is_a_whole_number_or_none(value: bytes | None, length: int | None) -> None:
    assert headers.content_length(Headers([] if value is None else [(b"content-length", value)])) == length


@pytest.mark.parametrize(
    ("authorization", "token"),
    [
        ([], None),
        ([b""], None),
        ([b"Bearer"], None),
        ([b"Bearer  "], None),
        ([b"Basic abc"], None),
        ([b"Bearerabc"], None),
        ([b"abc"], None),
        ([b"Bearer abc"], b"abc"),
        ([b" bEARER   abc "], b"abc"),
        ([b"Bearer abc def"], b"abc def"),
        ([b"Bearer \xff\x00"], b"\xff\x00"),
        ([b"Bearer abc", b"Bearer abc"], None),
        ([b"", b"Bearer abc"], None),
    ],
)
def test_a_token_comes_from_exactly_one_bearer_header(authorization: list[bytes], token: bytes | None) -> None:
    assert headers.bearer_token(Headers([(b"authorization", value) for value in authorization])) == token


@pytest.mark.parametrize("value", [b"abc", b"a.b_c:d+e/f=g-1", b"x" * 128])
def test_a_request_id_that_is_safe_to_log_is_used(value: bytes) -> None:
    assert headers.request_id(Headers([(b"x-request-id", value)])) == value.decode()


@pytest.mark.parametrize("value", [None, b"", b"a b", b"a\nb", b"x" * 129, b"\xff", b'"'])
def test_any_other_request_id_is_ignored(value: bytes | None) -> None:
    assert headers.request_id(Headers([] if value is None else [(b"x-request-id", value)])) is None


@given(st.binary(max_size=300))
def test_a_header_is_read_only_if_it_is_visible_ascii(value: bytes) -> None:
    text = Headers([(b"x-agent-id", value)]).text(b"x-agent-id")
    fits = 0 < len(value) <= 256 and value.strip(b" ") == value and all(0x20 <= byte < 0x7F for byte in value)
    assert text == (value.decode("ascii") if fits else None)


@pytest.mark.parametrize(
    ("values", "mirrored"),
    [
        ([b"tools/call"], "tools/call"),
        ([b" search\t"], "search"),
        (["größe".encode()], "größe"),
        ([b"=?base64?Z3LDtsOfZQ==?="], "größe"),
        ([b"=?base64??="], ""),
        ([b"search", b"search"], "search"),
        ([b"search ,\tsearch", b"search"], "search"),
        ([b"=?base64?Z3LDtsOfZQ==?=, =?base64?Z3LDtsOfZQ==?="], "größe"),
        ([b"file:///a,b"], "file:///a,b"),
        ([b"file:///a, b,file:///a, b"], "file:///a, b"),
        ([b"file:///a, b", b"file:///a, b"], "file:///a, b"),
    ],
)
def test_a_header_that_mirrors_the_body_is_read_plain_or_in_base64(values: list[bytes], mirrored: str) -> None:
    assert headers.mirrors(Headers([(b"mcp-name", value) for value in values]), b"mcp-name", mirrored)


@pytest.mark.parametrize(
    ("values", "value"),
    [
        ([], ""),
        ([], "search"),
        ([b"other"], "search"),
        ([b"Search"], "search"),
        ([b"search", b"other"], "search"),
        ([b"search, other"], "search"),
        ([b"search", b""], "search"),
        ([b"\xff"], "\xff"),
        ([b"=?base64?Z3LDt?="], "größe"),
        ([b"=?base64?/w==?="], "\xff"),
        ([b"1"], 1.0),
        ([b"a"], "."),
    ],
)
def test_a_header_that_differs_from_the_body_does_not_mirror_it(values: list[bytes], value: object) -> None:
    assert not headers.mirrors(Headers([(b"mcp-name", it) for it in values]), b"mcp-name", value)


@given(st.text(alphabet="aZ /=?,é→𝄞\t\x00"), st.integers(1, 3))
def test_any_name_can_be_mirrored_in_base64(name: str, times: int) -> None:
    value = b"=?base64?" + base64.b64encode(name.encode()) + b"?="
    assert headers.mirrors(Headers([(b"mcp-name", b", ".join([value] * times))]), b"mcp-name", name)


@pytest.mark.parametrize(
    ("values", "single"),
    [
        ([], None),
        ([b""], None),
        ([b" 2025-11-25\t"], "2025-11-25"),
        ([b"2025-11-25, 2025-11-25"], "2025-11-25"),
        ([b"2025-11-25", b"2025-11-25"], "2025-11-25"),
        ([b"2025-11-25", b"2025-11-25,2025-11-25"], "2025-11-25"),
        ([b"2025-11-25, 2025-06-18"], "2025-11-25, 2025-06-18"),
        ([b"2025-11-25", b"2025-06-18"], "2025-11-25, 2025-06-18"),
        ([b"2025-11-25", b""], "2025-11-25, "),
        ([b"\xff"], "\xff"),
    ],
)
def test_equal_values_of_a_header_are_one(values: list[bytes], single: str | None) -> None:
    raw = [(b"host", b"x"), *((b"mcp-protocol-version", value) for value in values)]
    assert headers.single_value(Headers(raw), b"mcp-protocol-version") == single


def test_only_listed_headers_are_forwarded_upstream() -> None:
    raw = [
        (b"authorization", b"Bearer secret"),
        (b"cookie", b"secret"),
        (b"host", b"example.com"),
        (b"mcp-session-id", b"of the client"),
        (b"mcp-protocol-version", b"2025-06-18"),
        (b"x-vestige-principal", b"somebody else"),
        (b"x-agent-id", b"an agent"),
        (b"x-request-id", b"of the client"),
        (b"traceparent", b"00-1-2-01"),
        (b"x-forwarded-for", b"10.0.0.1"),
    ]
    assert headers.upstream_lines(Headers(raw), "alice", "7") == (
        "x-vestige-principal: alice\r\nx-request-id: 7\r\nx-agent-id: an agent\r\ntraceparent: 00-1-2-01\r\n"
    )


def test_an_invalid_header_value_is_not_forwarded() -> None:
    raw = [(b"x-agent-id", b"a\r\nAuthorization: Bearer x"), (b"traceparent", b"")]
    assert headers.upstream_lines(Headers(raw), "alice", "7") == "x-vestige-principal: alice\r\nx-request-id: 7\r\n"


@pytest.mark.parametrize(
    ("origins", "host", "allowed"),
    [
        ([], b"memory.example.com", True),
        ([b"https://app.example.com"], b"memory.example.com", True),
        ([b"https://app.example.com", b"https://app.example.com"], b"memory.example.com", False),
        ([b"https://app.example.com.evil.example"], b"memory.example.com", False),
        ([b"http://app.example.com"], b"memory.example.com", False),
        ([b"https://app.example.com:8443"], b"memory.example.com", False),
        ([b"null"], b"localhost:8000", False),
        ([b""], b"localhost:8000", False),
        ([b"\xff"], b"localhost", False),
        ([b"http://["], b"localhost", False),
        ([b"http://localhost:5173"], b"127.0.0.1:8000", True),
        ([b"http://[::1]:5173"], b"[::1]:8000", True),
        ([b"http://localhost:5173"], b"memory.example.com", False),
        ([b"http://evil.example"], b"localhost:8000", False),
        ([b"http://localhost.evil.example"], b"localhost:8000", False),
        ([b"http://localhost@evil.example"], b"localhost:8000", False),
        ([b"http://127.0.0.1"], None, False),
        ([b"http://127.0.0.1"], b"[", False),
    ],
)
def test_a_page_may_call_if_its_origin_is_allowed_or_both_ends_are_loopback(
    origins: list[bytes], host: bytes | None, allowed: bool
) -> None:
    raw = [(b"origin", origin) for origin in origins] + ([] if host is None else [(b"host", host)])
    assert headers.origin_allowed(Headers(raw), ALLOWED) is allowed


TRACE = b"0af7651916cd43dd8448eb211c80319c"


@pytest.mark.parametrize(
    ("value", "trace_id"),
    [
        (b"00-" + TRACE + b"-b7ad6b7169203331-01", TRACE.decode()),
        (b"cc-" + TRACE + b"-b7ad6b7169203331-00", TRACE.decode()),
        (b"ff-" + TRACE + b"-b7ad6b7169203331-01", None),
        (b"00-" + TRACE.upper() + b"-b7ad6b7169203331-01", None),
        (b"00-" + b"0" * 32 + b"-b7ad6b7169203331-01", None),
        (b"00-" + TRACE + b"-0000000000000000-01", None),
        (b"00-" + TRACE + b"-b7ad6b7169203331", None),
        (b"00-" + TRACE + b"-b7ad6b7169203331-01\n", None),
        (b"secret", None),
        (b"", None),
    ],
)
def test_a_trace_id_is_read_only_from_a_valid_traceparent(value: bytes, trace_id: str | None) -> None:
    assert headers.trace_id(value) == trace_id
    assert headers.trace_id(None) is None


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_the_origin_check_handles_any_bytes(origin: bytes, host: bytes) -> None:
    raw = [(b"origin", origin), (b"host", host)]
    assert headers.origin_allowed(Headers(raw), frozenset()) <= (b"localhost" in origin.lower() or b"1" in origin)


def test_cors_headers_name_the_one_origin_and_vary_by_it() -> None:
    cors = dict(headers.cors_headers(b"https://app.example.com"))
    assert cors[b"access-control-allow-origin"] == b"https://app.example.com"
    assert cors[b"vary"] == b"Origin"
    assert {b"mcp-session-id", b"mcp-protocol-version"} <= set(
        cors[b"access-control-expose-headers"].lower().split(b", ")
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [b"x-agent-id", b"traceparent", b"x-request-id", b"x-vestige-principal", b"mcp-session-id"]
            ),
            st.lists(
                st.sampled_from([b"\r", b"\n", b"\r\n", b"\x00", b"\x0b", b"\x85", b"\xff", b": ", b" ", b"a"])
            ).map(b"".join),
        )
    )
)
def test_no_client_header_adds_lines_to_an_upstream_request(raw: list[tuple[bytes, bytes]]) -> None:
    lines = headers.upstream_lines(Headers(raw), "ann", "id-1")
    assert re.fullmatch(
        r"x-vestige-principal: ann\r\nx-request-id: id-1\r\n(x-agent-id: [!-~ ]+\r\n)?(traceparent: [!-~ ]+\r\n)?",
        lines,
    )
    chosen = headers.request_id(Headers(raw))
    assert chosen is None or re.fullmatch(r"[!-~]+", chosen)


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\n", "\r"])
def test_a_header_value_with_a_line_break_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match="contains a line break"):
        headers.header_lines({"mcp-session-id": value})


def test_a_very_long_accept_header_is_read_up_to_a_limit() -> None:
    assert headers.accepted(Headers([(b"accept", b"text/event-stream" + b"," * 100_000)])) == STREAM_ONLY
    assert headers.accepted(Headers([(b"accept", b"," * 100_000 + b"text/event-stream")])) == JSON_ONLY
