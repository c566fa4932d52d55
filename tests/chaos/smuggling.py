"""Request smuggling: requests of unauthenticated clients that hide other requests in a shared connection.

Invariant: no request here has a valid token, so each is answered at most once and runs no tool. If a hidden request is
answered, the bridge and the proxy in front of it disagree on where a request ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

HOST = b"Host: bridge\r\n"
JSON = b"Content-Type: application/json\r\n"
NOWHERE = b"POST /nothing HTTP/1.1\r\n" + HOST
ENDPOINT = b"POST /mcp HTTP/1.1\r\n" + HOST + JSON
PROBE = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED_KEY = "smuggled"

OFFER_LINE = b"\r\nupgrade:"
STRETCH_BYTES = 5
"""The bytes by which a body grows for each line whose upgrade offer is replaced with ``X-Overlooked``."""

EARLY_BYTES = 60_000
"""The size of a body whose rest the bridge may read and drop after an early answer."""

LARGE_BYTES = 180_000
"""The size of a longer body, which is short enough that the client still gets the answer."""

FILLER_LINES = 8_000
"""The empty lines before a hidden request: if only some lines are rewritten, the next request starts among these."""

UNBOUNDED_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Attack:
    """Bytes that are sent in pieces, with a short pause between them.

    Attributes:
        name: a description of the attack.
        pieces: the bytes.
        valid: whether it is one valid request that ends with the last byte (RFC 9112, section 6), so that a proxy may
                send another client's request on the same connection. Any other must be answered at most once, and the
                connection must be closed.
    """

    name: str
    pieces: tuple[bytes, ...]
    valid: bool = False


def _call() -> bytes:
    """Returns a tool call without a token; the next client on the connection may supply one."""
    params = {"name": "write", "arguments": {"key": f"{SMUGGLED_KEY}-call"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    return ENDPOINT + b"Content-Length: %d\r\n\r\n" % len(body) + body


HIDDEN = {
    "requests": PROBE * 3,
    "a call": _call(),
    "a head without an end": b"DELETE /mcp HTTP/1.1\r\n" + HOST + b"X-Rest: ",
    "a body without an end": NOWHERE + b"Content-Length: 400\r\n\r\n",
}


def attacks() -> list[Attack]:
    """Returns every attack, valid requests first."""
    return [
        *_stretched_bodies(),
        *_upgrade_offers(),
        *_chunk_tricks(),
        *_early_answers(),
        *_two_framings(),
        *_bad_lengths(),
        *_bad_lines(),
        *_bad_chunks(),
        *_pipelines(),
    ]


def _stretched_bodies() -> Iterator[Attack]:
    """Yields bodies with lines like upgrade offers: if these are rewritten, the end becomes the next request."""
    for (name, hidden), start, line in (
        (hidden, start, line)
        for hidden in HIDDEN.items()
        for start, line in ((NOWHERE, OFFER_LINE), (NOWHERE, OFFER_LINE.upper()), (ENDPOINT, OFFER_LINE))
    ):
        body = _stretched(hidden, line)
        head = _with_length(start, body)
        half = len(body) // 2
        for form, pieces in {
            "at once": (head + body,),
            "after the head": (head, body),
            "in halves": (head, body[:half], body[half:]),
            "after a head that ends across two reads": (head[:-1], head[-1:] + body),
            "after a head that lacks its last line": (head[:-2], head[-2:] + body),
        }.items():
            yield Attack(f"{name} in a stretched body, {form}", pieces, valid=True)
        # The bridge needs several reads for it, so that the answer is complete before the lines arrive.
        large = b"x" * LARGE_BYTES + _stretched(b"\r\n" * FILLER_LINES + hidden, line)
        yield Attack(f"{name} in a large stretched body", (_with_length(start, large) + large,), valid=True)
        yield Attack(
            f"{name} in a large stretched body after the head", (_with_length(start, large), large), valid=True
        )


def _stretched(hidden: bytes, line: bytes) -> bytes:
    """Returns a body that grows by about the size of the hidden request at its end if its lines are rewritten."""
    # Empty lines before a request are skipped (RFC 9112, section 2.2), so the length need not match exactly.
    return line * (len(hidden) // STRETCH_BYTES + 1) + b"\r\n" * STRETCH_BYTES + hidden


def _with_length(start: bytes, body: bytes) -> bytes:
    return start + b"Content-Length: %d\r\n\r\n" % len(body)


def _upgrade_offers() -> Iterator[Attack]:
    """Yields offers of another protocol, which may be ignored (RFC 9110, section 7.8); the body remains a body."""
    offers = {
        "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
        "upgrade without Connection": b"Upgrade: h2c\r\n",
    }
    for (offer, lines), (name, hidden) in ((offer, hidden) for offer in offers.items() for hidden in HIDDEN.items()):
        for start in (NOWHERE, ENDPOINT):
            head = start + lines + b"Content-Length: %d\r\n\r\n" % len(hidden)
            yield Attack(f"{name} behind an offer of {offer}", (head + hidden,), valid=True)
            yield Attack(f"{name} behind an offer of {offer} in two reads", (head[:60], head[60:] + hidden), valid=True)
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
        yield Attack(f"{name} in a chunk, {offer}", (NOWHERE + lines + CHUNKED + b"\r\n", chunk), valid=True)
        empty = b"\r\n\r\n" + NOWHERE + lines + b"Content-Length: %d\r\n\r\n" % len(hidden)
        yield Attack(f"{name} behind empty lines and an offer of {offer}", (empty + hidden,), valid=True)


def _chunk_tricks() -> Iterator[Attack]:
    """Yields valid chunked bodies with extensions and trailers, which have no meaning (RFC 9112, section 7.1)."""
    start = NOWHERE + CHUNKED + b"\r\n"
    for name, chunks in {
        "a chunk extension": b'5;a="GET /livez HTTP/1.1"\r\nhello\r\n0\r\n\r\n',
        "a chunk extension at the end": b"5\r\nhello\r\n0;a=b;c\r\n\r\n",
        "a long chunk extension": b"5;a=" + b"x" * 3000 + b"\r\nhello\r\n0\r\n\r\n",
        "leading zeros": b"000005\r\nhello\r\n000\r\n\r\n",
        "a trailer that gives a length": b"5\r\nhello\r\n0\r\nContent-Length: 400\r\n\r\n",
        "a trailer that gives a coding": b"5\r\nhello\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "a trailer that authenticates": b"5\r\nhello\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
        "a trailer that names a host": b"5\r\nhello\r\n0\r\nHost: other\r\nUpgrade: h2c\r\n\r\n",
    }.items():
        yield Attack(name, (start + chunks,), valid=True)
        yield Attack(f"{name}, after the head", (start, chunks[:3], chunks[3:]), valid=True)
    for name, hidden in HIDDEN.items():
        chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(hidden), hidden)
        yield Attack(f"{name} in a chunk", (start, chunk), valid=True)
        yield Attack(f"{name} in a chunk to the endpoint", (ENDPOINT + CHUNKED + b"\r\n" + chunk,), valid=True)


def _early_answers() -> Iterator[Attack]:
    """Yields requests that are rejected after their head, before a body of hidden requests arrives."""
    for name, start in {"404": NOWHERE, "401": ENDPOINT, "405": b"PUT /mcp HTTP/1.1\r\n" + HOST + JSON}.items():
        for length in (EARLY_BYTES, LARGE_BYTES):
            head = start + b"Content-Length: %d\r\n\r\n" % length
            body = PROBE * (length // len(PROBE)) + b" " * (length % len(PROBE))
            third = length // 3
            pieces = (head, body[:third], body[third : 2 * third], body[2 * third :])
            yield Attack(f"{length} bytes after {name}", pieces, valid=True)
        unfinished = start + b"Content-Length: %d\r\n\r\n" % EARLY_BYTES
        yield Attack(f"a body without an end after {name}", (unfinished, PROBE * 20))
        head = start + b"Content-Length: %d\r\n\r\n" % UNBOUNDED_BYTES
        yield Attack(f"a body over the limit after {name}", (head, PROBE * 1000))
    for name, hidden in HIDDEN.items():
        head = b"GET /livez HTTP/1.1\r\n" + HOST + b"Content-Length: %d\r\n" % len(hidden)
        yield Attack(f"{name} in the body of a GET", (head + b"\r\n" + hidden,), valid=True)
        yield Attack(f"{name} in the late body of a GET", (head + b"\r\n", hidden), valid=True)
        yield Attack(f"{name} after 100", (head + b"Expect: 100-continue\r\n\r\n", hidden), valid=True)


def _two_framings() -> Iterator[Attack]:
    """Yields bodies with two possible ends (RFC 9112, section 6.3)."""
    for name, hidden in HIDDEN.items():
        body = b"0\r\n\r\n" + hidden
        length = b"Content-Length: %d\r\n" % len(body)
        for form, lines in {
            "length and coding": length + CHUNKED,
            "coding and length": CHUNKED + length,
            "two codings": CHUNKED + CHUNKED,
            "a coding before the last": b"Transfer-Encoding: gzip, chunked\r\n",
            "chunked that is not the last": length + b"Transfer-Encoding: chunked, identity\r\n",
            "chunked twice": b"Transfer-Encoding: chunked, chunked\r\n",
            "identity": length + b"Transfer-Encoding: identity\r\n",
            "an unknown coding": length + b"Transfer-Encoding: xchunked\r\n",
            "a quoted coding": length + b'Transfer-Encoding: "chunked"\r\n',
            "a coding with a parameter": length + b"Transfer-Encoding: chunked;q=1\r\n",
            "a coding after a tab": length + b"Transfer-Encoding:\x0bchunked\r\n",
            "a space before the colon": length + b"Transfer-Encoding : chunked\r\n",
            "a folded coding": length + b"Transfer-Encoding:\r\n chunked\r\n",
            "a folded line": length + b"X-Other: a\r\n Transfer-Encoding: chunked\r\n",
            "an empty coding": length + b"Transfer-Encoding:\r\n",
        }.items():
            yield Attack(f"{name} behind {form}", (NOWHERE + lines + b"\r\n" + body,))
        yield Attack(
            f"{name} behind a coding in HTTP/1.0",
            (b"POST /nothing HTTP/1.0\r\nConnection: keep-alive\r\n" + HOST + CHUNKED + b"\r\n" + body,),
        )


def _bad_lengths() -> Iterator[Attack]:
    """Yields lengths that are repeated or are not numbers (RFC 9112, section 6.3)."""
    for name, hidden in HIDDEN.items():
        size = str(len(hidden)).encode()
        for value in (
            *(b"+" + size, b"-" + size, b"0x5", b"5 5", b"", b"5, 5", b"0, " + size, size + b";", b'"0"', b"\xd9\xa3"),
            *(b"9" * 25, size + b"\r\n 0", size + b"\r\nContent-Length: 0", b"0\r\nContent-Length: " + size),
        ):
            request = NOWHERE + b"Content-Length: " + value + b"\r\n\r\n" + hidden
            yield Attack(f"{name} behind the length {value!r}", (request,))
        twice = b"Content-Length: " + size + b"\r\n"
        yield Attack(f"{name} behind two equal lengths", (NOWHERE + twice + twice + b"\r\n" + hidden,))


def _bad_lines() -> Iterator[Attack]:
    """Yields heads with other line endings, or with lines that are not fields (RFC 9112, sections 2 to 5)."""
    end = b"Content-Length: 0\r\n\r\n"
    for name, head in {
        "bare LF": NOWHERE.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
        "one bare LF": NOWHERE + b"X-Other: a\nContent-Length: 99\r\n" + end,
        "bare CR": NOWHERE + b"X-Other: a\rContent-Length: 99\r\n" + end,
        "a bare CR at the end": NOWHERE + b"X-Other: a\r\r\n" + end,
        "LF CR": NOWHERE + b"X-Other: a\n\r\n" + end,
        "NUL": NOWHERE + b"X-Other: a\x00b\r\n" + end,
        "no Host": b"POST /nothing HTTP/1.1\r\n" + end,
        "two Hosts": NOWHERE + HOST + end,
        "a name with a space": NOWHERE + b"Content Length: 99\r\n" + end,
        "no name": NOWHERE + b": a\r\n" + end,
        "no colon": NOWHERE + b"Content-Length\r\n" + end,
        "a space before the first name": b"POST /nothing HTTP/1.1\r\n Host: bridge\r\n" + end,
        "no version": b"POST /nothing\r\n" + HOST + end,
        "version 2": b"POST /nothing HTTP/2.0\r\n" + HOST + end,
        "a version in small letters": b"POST /nothing http/1.1\r\n" + HOST + end,
        "a target with a space": b"POST /nothing /x HTTP/1.1\r\n" + HOST + end,
        "CONNECT": b"CONNECT bridge:80 HTTP/1.1\r\n" + HOST + end,
        "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40 + b"\r\n\r\n",
    }.items():
        yield Attack(f"a request behind {name}", (head + PROBE,))
        yield Attack(f"a request behind {name}, in two reads", (head[:-1], head[-1:] + PROBE))


def _bad_chunks() -> Iterator[Attack]:
    """Yields chunks with two possible ends."""
    for name, chunks in {
        "a size that begins with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "a negative size": b"-5\r\nhello\r\n0\r\n\r\n",
        "a size over 64 bits": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "no size": b"\r\nhello\r\n0\r\n\r\n",
        "a size that ends with LF": b"5\nhello\r\n0\r\n\r\n",
        "an extension that ends with LF": b"5;a\nhello\r\n0\r\n\r\n",
        "an extension with a bare CR": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "more data than the size says": b"3\r\nhello\r\n0\r\n\r\n",
        "less data than the size says": b"6\r\nhello\r\n0\r\n\r\n",
        "data that ends with LF": b"5\r\nhello\n0\r\n\r\n",
        "a folded trailer": b"5\r\nhello\r\n0\r\nX-Other: a\r\n b\r\n\r\n",
        "a trailer that ends with LF": b"5\r\nhello\r\n0\r\nX-Other: a\n\r\n\r\n",
    }.items():
        yield Attack(f"requests behind {name}", (NOWHERE + CHUNKED + b"\r\n" + chunks + PROBE * 2,))


def _pipelines() -> Iterator[Attack]:
    """Yields pipelined requests, which the bridge does not serve (RFC 9112, section 9.3.2)."""
    for name, hidden in HIDDEN.items():
        yield Attack(f"{name} behind a GET", (PROBE + hidden,))
        yield Attack(f"{name} behind a POST", (NOWHERE + b"Content-Length: 5\r\n\r\nhello" + hidden,))
        yield Attack(f"{name} behind a chunk", (NOWHERE + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n" + hidden,))
        yield Attack(f"{name} behind a refused call", (_call() + hidden,))
    yield Attack("a hundred requests", (PROBE * 100,))
