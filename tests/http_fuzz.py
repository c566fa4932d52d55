"""Compares the bridge's HTTP/1.1 parser with h11 on random and mutated request streams (RFC 9112).

If both accept a request, they must agree on its method, target, fields, body and end. If only one accepts it, the
case must be in ``EXPECTED`` with its section of the RFC; any other difference is a failure.
`python -m http_fuzz STREAMS [SEED]` runs it for that number of streams.
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from vestige_bridge.server.connections import Connections, Limits
from vestige_bridge.server.http_protocol import READ_BYTES, HttpProtocol
from vestige_bridge.upstream.answer_budget import AnswerBudget


class Request(NamedTuple):
    """A request as one of the two parsers read it.

    Attributes:
        method, target, fields, body: the parts of the request; field names are in lower case.
        rest: the bytes after the request; the bridge reports only whether it dropped any.
    """

    method: bytes
    target: bytes
    fields: list[tuple[bytes, bytes]]
    body: bytes
    rest: bytes


class MemoryTransport(asyncio.Transport):
    """A transport that stores the data written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.paused = self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0


class Reader:
    """The bridge's protocol with an application that only reads the request; create it in a running event loop."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)
        self._taken: list[tuple[Scope, bytes]] = []
        self._config = uvicorn.Config(
            self._app, lifespan="off", log_config=None, interface="asgi3", proxy_headers=False
        )
        self._config.load()
        limits = Limits(connections=8, keep_alive_seconds=60, send_seconds=60)
        self._connections = Connections(limits, AnswerBudget(2**20))

    async def read(self, chunks: list[bytes]) -> Request | None:
        """Returns the first request of a stream; ``None`` if it is rejected or incomplete."""
        self._taken.clear()
        state, transport = ServerState(), MemoryTransport()
        protocol = HttpProtocol(self._config, state, {}, self._connections, memoryview(self._buffer))
        protocol.connection_made(transport)
        for chunk in chunks:
            if transport.paused or transport.closed:
                break
            self._buffer[: len(chunk)] = chunk
            protocol.buffer_updated(len(chunk))
        if state.tasks:
            await asyncio.wait(list(state.tasks), timeout=0.0 if transport.closed else 0.001)
            for _ in range(3):
                await asyncio.sleep(0)
        followed = protocol.following
        protocol.connection_lost(None)
        if state.tasks:
            await asyncio.wait(list(state.tasks))
        if not self._taken:
            return None
        scope, body = self._taken[0]
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        return Request(
            scope["method"].encode(), scope["raw_path"] + query, scope["headers"], body, b"dropped" if followed else b""
        )

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self._taken.append((scope, body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


def read_by_h11(chunks: list[bytes]) -> Request | None:
    """Returns the first request of a stream, as h11 reads it; ``None`` if it is rejected or incomplete."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=65_536)
    head: h11.Request | None = None
    body, ended = b"", False
    rest = b""
    for chunk in chunks:
        if ended:
            rest += chunk
            continue
        connection.receive_data(chunk)
        while not ended:
            try:
                event = connection.next_event()
            except h11.RemoteProtocolError:
                return None
            if event in (h11.NEED_DATA, h11.PAUSED):
                break
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                ended = True
                rest = connection.trailing_data[0]
            else:
                return None
    if head is None or not ended:
        return None
    target = bytes(head.target)
    if b"://" in target:
        # The application gets only the path of a target in absolute form (RFC 9112, section 3.2.2).
        try:
            parts = urlsplit(target)
        except ValueError:
            return Request(bytes(head.method), target, list(head.headers), body, rest)
        target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
    # The application does not distinguish an empty query from a missing one.
    path, _, query = target.partition(b"?")
    target = path + (b"?" + query if query else b"")
    return Request(bytes(head.method), target, list(head.headers), body, rest)


@dataclass(frozen=True)
class Difference:
    """A case in which the two parsers are known to differ.

    Attributes:
        what: a description of the difference.
        section: the section of the RFC about it.
        bridge_accepts: whether the bridge is the parser that accepts.
        example: a stream that one parser accepts and the other one rejects.
        shows: a function that returns whether a stream, given in one piece, has the difference.
    """

    what: str
    section: str
    bridge_accepts: bool
    example: bytes
    shows: Callable[[bytes], Any]


def _head(stream: bytes) -> bytes:
    return re.split(rb"\r?\n\r?\n", stream.lstrip(b"\r\n"), maxsplit=1)[0]


def _has(pattern: bytes) -> Callable[[bytes], Any]:
    compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    return lambda stream: compiled.search(_head(stream))


def _anywhere(pattern: bytes) -> Callable[[bytes], Any]:
    compiled = re.compile(pattern, re.IGNORECASE | re.DOTALL)
    return compiled.search


KNOWN_METHODS = {it.value.encode() for it in HTTPMethod}
_target = re.compile(rb"\*|/[\x21\x22\x24-\x7e]*|[a-z]+://[\w.-]+(?::[0-9]+)?(?:/[\x21\x22\x24-\x7e]*)?").fullmatch

EXPECTED = (
    Difference(
        "h11 takes a tab behind chunked",
        "5.1",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\t\r\n\r\n0\r\n\r\n",
        _has(rb"transfer-encoding:[^\r\n]*\t[ \t]*(?:\r|$)"),
    ),
    Difference(
        "h11 takes white space behind a chunk's size",
        "7.1.1",
        False,
        b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n8\t\r\n{"id":1}\r\n0\r\n\r\n',
        _anywhere(rb"\n[0-9a-f]+[ \t]+\r\n"),
    ),
    Difference(
        "h11 takes any HTTP version", "2.3", False, b"PUT / HTTP/0.9\r\n\r\n", _has(rb"HTTP/(?!1\.[01][\r\n])\d\.\d")
    ),
    Difference(
        "h11 takes a bare LF for the end of a line",
        "2.2",
        False,
        b"GET / HTTP/1.1\r\nHost: x\r\n\n",
        _anywhere(rb"(?<!\r)\n"),
    ),
    Difference(
        "h11 unfolds fields", "5.2", False, b"GET / HTTP/1.1\r\nHost: x\r\n\tExpect: a\r\n\r\n", _anywhere(rb"\n[ \t]")
    ),
    Difference(
        "h11 takes framing fields in trailers",
        "9110, 6.5.1",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
        _anywhere(rb"0\r\n(?:[^\r\n]+\r\n)*(?:content-length|transfer-encoding):"),
    ),
    Difference(
        "the bridge takes several spaces in the request line",
        "3",
        True,
        b"GET  /  HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda stream: re.match(rb"\s*\w+(?:  +\S+ +| +\S+  +)HTTP", stream),
    ),
    Difference(
        "h11 prefers Transfer-Encoding to Content-Length",
        "6.3",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _has(rb"content-length.*transfer-enc|transfer-enc.*content-length"),
    ),
    Difference(
        "h11 takes equal lengths",
        "6.3",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\nabc",
        _has(rb"content-length:.*content-length:|content-length:[^\n]*,"),
    ),
    Difference(
        "h11 passes over trailing bytes of chunk extensions",
        "7.1.1",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\x12\r\n1}\r\n0\r\n\r\n",
        _anywhere(rb"\r\n[0-9a-f]+;"),
    ),
    Difference(
        "h11 does not look into Host",
        "9110, 7.2",
        False,
        b"GET / HTTP/1.1\r\nHost:\xfax\r\n\r\n",
        _has(rb"\nhost:[^\n]*[^\w.~!$&'()*+,;=%:\[\]\s-]|\nhost:[ \t]*[^ \t\r\n]+[ \t]+[^ \t\r\n]"),
    ),
    Difference(
        "h11 takes chunks from HTTP/1.0",
        "6.1",
        False,
        b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        _has(rb"HTTP/1\.0.*transfer-encoding"),
    ),
    Difference(
        "h11 takes any method",
        "9110, 9.1",
        False,
        b"P / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda stream: stream.lstrip(b"\r\n").split(b" ")[0] not in KNOWN_METHODS,
    ),
    Difference(
        "h11 takes any target",
        "3.2",
        False,
        b"PUT p HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda stream: not _target(_head(stream).split(b" ")[1]),
    ),
    Difference(
        "h11 takes control characters in a field",
        "9110, 5.5",
        False,
        b"GET / HTTP/1.1\r\nHost: x\r\nA: keep-\x1dlive\r\n\r\n",
        _has(rb"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    ),
    Difference(
        "h11 takes control characters in a trailer",
        "9110, 5.5",
        False,
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-T: \x0fy\r\n\r\n",
        _anywhere(rb"\n0+\r\n(?:[^\r\n]+\r\n)*?[^\r\n:]+:[^\r\n]*[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"),
    ),
    Difference(
        "the bridge passes over empty lines before a request",
        "2.2",
        True,
        b"\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n",
        lambda stream: stream[:1] in b"\r\n",
    ),
)


@dataclass
class Report:
    """The results of a run: the number of agreements, and each difference."""

    accepted: int = 0
    refused: int = 0
    expected: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[list[bytes], Request | None, Request | None]] = field(default_factory=list)


METHODS = [b"GET", b"POST", b"DELETE", b"PUT", b"OPTIONS", b"HEAD", b"PATCH"]
TARGETS = [b"/mcp", b"/", b"/a?b=c", b"/%41", b"/a/../b", b"*", b"http://x/y?z"]
VALUES = [b"", b"a", b"close", b"keep-alive", b"a, b", b"\xe9", b"x\ty", b"100-continue", b"chunked", b"gzip"]
NAMES = [b"X-A", b"Accept", b"Connection", b"Expect", b"Content-Type", b"Cookie", b"Mcp-Session-Id"]
INSERTS = [
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"0", b"\xff", b"\r\n\r\n", b"chunked", b"Host: y\r\n"),
    *(b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n", b"\r\n folded"),
    *(
        b"Content-Length: 3, 3\r\n",
        b"Upgrade: h2c\r\nConnection: upgrade\r\n",
        b"HTTP/1.1",
        b";a=b",
        b"GET / HTTP/1.1\r\n",
    ),
]


def build_stream(chance: random.Random) -> bytes:
    """Builds one stream: a valid or nearly valid request, sometimes followed by more bytes."""
    body = chance.randbytes(chance.randrange(40)) if chance.random() < 0.3 else b'{"id":1}' * chance.randrange(4)
    fields = [b"Host: x"] if chance.random() < 0.95 else []
    fields += [
        b"%b: %b" % (chance.choice(NAMES), chance.choice(VALUES)) for _ in range(chance.choice((0, 0, 1, 1, 2, 4)))
    ]
    framing = chance.random()
    if framing < 0.4:
        fields.append(b"Content-Length: %d" % len(body))
    elif framing < 0.7:
        fields.append(b"Transfer-Encoding: chunked")
        body = _in_chunks(body, chance)
    else:
        body = b""
    if chance.random() < 0.1:
        fields.append(b"Upgrade: h2c\r\nConnection: Upgrade")
    chance.shuffle(fields)
    version = (
        b"HTTP/1.1" if chance.random() < 0.9 else chance.choice((b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9"))
    )
    head = b"%b %b %b\r\n" % (chance.choice(METHODS), chance.choice(TARGETS), version)
    stream = head + b"".join(it + b"\r\n" for it in fields) + b"\r\n" + body
    if chance.random() < 0.3:
        stream += chance.choice((b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n", b"x", b"\r\n\r\nPOST"))
    while chance.random() < 0.4:
        stream = _mutated(stream, chance)
    return stream


def _in_chunks(body: bytes, chance: random.Random) -> bytes:
    stream, position = b"", 0
    while position < len(body):
        size = chance.randrange(1, 12)
        piece = body[position : position + size]
        extension = b";a=b" if chance.random() < 0.1 else b""
        stream += b"%x%b\r\n%b\r\n" % (len(piece), extension, piece)
        position += size
    trailer = chance.choice((b"", b"", b"", b"X-T: y\r\n", b"Host: z\r\n"))
    return stream + b"0\r\n" + trailer + b"\r\n"


def _mutated(stream: bytes, chance: random.Random) -> bytes:
    position = chance.randrange(len(stream) + 1)
    kind = chance.randrange(5)
    if kind == 0:
        return stream[:position] + stream[position + chance.randrange(1, 4) :]
    if kind == 1:
        return stream[:position] + bytes([chance.randrange(256)]) + stream[position + 1 :]
    if kind == 2:
        lines = stream.split(b"\r\n")
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
        return b"\r\n".join(lines)
    if kind == 3:
        line = stream.find(b"\r\n", position)
        position = line + 2 if line >= 0 else position
    return stream[:position] + chance.choice(INSERTS) + stream[position:]


def cut(stream: bytes, chance: random.Random) -> list[bytes]:
    """Splits a stream into pieces of random sizes."""
    if chance.random() < 0.3:
        return [stream] if stream else []
    chunks, position = [], 0
    largest = chance.choice((1, 3, 20, 80))
    while position < len(stream):
        size = chance.randrange(1, largest + 1)
        chunks.append(stream[position : position + size])
        position += size
    return chunks


async def run(streams: int, seed: int) -> Report:
    """Parses that number of streams with both parsers, and compares the results."""
    chance, reader, report = random.Random(seed), Reader(), Report()
    for _ in range(streams):
        stream = build_stream(chance)
        chunks = cut(stream, chance)
        ours, theirs = await reader.read(chunks), read_by_h11(chunks)
        if _agree(ours, theirs):
            report.accepted += ours is not None
            report.refused += ours is None
            continue
        known = [it.what for it in EXPECTED if _explains(it, stream, ours, theirs)]
        if known:
            report.expected[known[0]] += 1
        else:
            report.failures.append((chunks, ours, theirs))
    return report


def _agree(ours: Request | None, theirs: Request | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    # A parser may ignore empty lines after a request or count them as following bytes (section 2.2).
    same_end = bool(ours.rest) == bool(theirs.rest) or not theirs.rest.strip(b"\r\n")
    return same_end and _comparable(ours) == _comparable(theirs)


def _comparable(request: Request) -> Request:
    """Returns the request without differences in form; h11 writes the transfer coding in lower case (section 7)."""
    fields = [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in request.fields]
    return request._replace(fields=fields, rest=b"")


def _explains(difference: Difference, stream: bytes, ours: Request | None, theirs: Request | None) -> bool:
    """Returns whether a known difference explains why only one parser accepts the stream."""
    if ours is not None and theirs is not None:
        return False
    accepts = ours is not None if difference.bridge_accepts else theirs is not None
    return accepts and bool(difference.shows(stream))


def main() -> int:
    """Runs the number of streams in the command line; the exit status is 1 if a difference is not expected."""
    streams, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(2**32)
    report = asyncio.run(run(streams, seed))
    print(f"{streams} streams, seed {seed}: {report.accepted} accepted by both, {report.refused} by neither")
    for what, count in report.expected.most_common():
        print(f"{count:>9} {what}")
    for chunks, ours, theirs in report.failures[:20]:
        print(
            f"\n{b''.join(chunks)!r}\n  in pieces of {[len(it) for it in chunks]}\n  bridge: {ours}\n  h11:    {theirs}"
        )
    print(f"{len(report.failures)} differences that are not expected")
    return 1 if report.failures else 0


if __name__ == "__main__":
    sys.exit(main())
