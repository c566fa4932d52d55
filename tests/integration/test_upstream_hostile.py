"""An upstream that follows the protocol until a tool is called, and then violates HTTP as no library would."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from harness import Bridge, bridge, until
from vestige_bridge.upstream.connection import MAX_HEAD_BYTES

RESULTS: dict[str, dict[str, Any]] = {
    "initialize": {
        "protocolVersion": "2025-11-25",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "hostile", "version": "1"},
    },
    "tools/list": {"tools": [{"name": "read", "inputSchema": {}, "annotations": {"readOnlyHint": True}}]},
}
ENDLESS_BYTES = 64 * MAX_HEAD_BYTES
"""More than the bridge ever reads, but little enough that a server which nothing stops can write it."""

Reply = Callable[[bytes], bytes]


def whole(body: bytes, headers: bytes = b"") -> bytes:
    """Returns a correct reply."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMcp-Session-Id: s\r\n" + headers
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Hostile:
    """A hostile upstream: it answers ``tools/call`` with the bytes that ``reply`` makes of the response."""

    def __init__(self) -> None:
        self.reply: Reply = whole

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the requests on a connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                await self._answer(head, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not head.startswith(b"POST "):
            writer.write(b"HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
            return
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        message = json.loads(await reader.readexactly(length))
        if "id" not in message:
            writer.write(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            return
        result = RESULTS.get(message["method"], {})
        answer = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        writer.write(self.reply(answer) if message["method"] == "tools/call" else whole(answer))
        await writer.drain()


@asynccontextmanager
async def facing(reply: Reply) -> AsyncIterator[tuple[Bridge, Hostile]]:
    """Yields a bridge in front of a hostile upstream."""
    hostile = Hostile()
    server = await asyncio.start_server(hostile.serve, "127.0.0.1", 0)
    async with server, bridge(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/mcp") as served:
        await until(served.ready)
        hostile.reply = reply
        yield served, hostile


def endless_head(answer: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nX: " + b"x" * ENDLESS_BYTES


def endless_headers(answer: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * (ENDLESS_BYTES // 6)


def endless_trailers(answer: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\nX: " % (len(answer), answer) + b"x" * ENDLESS_BYTES


def another_protocol(answer: bytes) -> bytes:
    return b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + answer


def two_lengths(answer: bytes) -> bytes:
    return whole(answer, b"Content-Length: 1\r\n")


def no_http(answer: bytes) -> bytes:
    return answer


@pytest.mark.parametrize(
    "reply", [endless_head, endless_headers, endless_trailers, another_protocol, two_lengths, no_http]
)
async def test_a_reply_that_is_not_valid_http_is_502_and_the_next_call_succeeds(reply: Reply) -> None:
    async with facing(reply) as (served, hostile):
        answer = await served.call("read", id="a")
        assert (answer.status, answer.error["code"], answer.json["id"]) == (502, -32011, "a")
        hostile.reply = whole
        assert (await served.call("read", id="b")).json == {"jsonrpc": "2.0", "id": "b", "result": {}}


@pytest.mark.parametrize(
    ("content_type", "shown"), [("Text/HTML; secret=1", "text/html"), ("secret/secret", "another content type")]
)
async def test_an_invented_content_type_is_not_logged(
    content_type: str, shown: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with facing(lambda answer: whole(answer).replace(b"application/json", content_type.encode())) as (served, _):
        assert (await served.call("read")).status == 502
    assert f"(HTTP 200, {shown})" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_an_unsolicited_reply_is_never_used_for_a_later_request(times: int) -> None:
    poison = b'{"jsonrpc":"2.0","id":%d,"result":{"poison":true}}'

    def unasked(answer: bytes) -> bytes:
        number = json.loads(answer)["id"]
        return whole(answer) + b"".join(whole(poison % (number + more)) for more in range(times))

    async with facing(unasked) as (served, hostile):
        assert (await served.call("read", id="a")).json["result"] == {}
        hostile.reply = whole
        for number in range(5):
            answer = await served.call("read", id=number)
            assert answer.json == {"jsonrpc": "2.0", "id": number, "result": {}}
