"""Writing of responses: head and body are written in one piece."""

from __future__ import annotations

import asyncio

import pytest

from vestige_bridge.http.request_head import Framing
from vestige_bridge.server.request_cycle import RequestCycle


class Written:
    """A connection that stores the data written to it."""

    closing = False
    write_paused = False
    following = False
    default_fields: tuple[tuple[bytes, bytes], ...] = ((b"x-content-type-options", b"nosniff"),)

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.reused: bool | None = None

    def future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        self.pieces.append(data)

    def answered(self, cycle: RequestCycle, *, keep_alive: bool) -> None:
        self.reused = keep_alive


def cycle_on(connection: Written, *, chunks: bool = True) -> RequestCycle:
    """Returns the cycle of a request without a body, read to its end."""
    framing = Framing(length=0, expects_continue=False)
    cycle = RequestCycle(connection, framing, b"POST", chunks=chunks, keep_alive=True)  # type: ignore[arg-type]
    cycle.end_body()
    return cycle


@pytest.mark.parametrize("length", [b"2", None], ids=["with a length", "chunked"])
async def test_head_and_body_are_written_in_one_piece(length: bytes | None) -> None:
    connection = Written()
    cycle = cycle_on(connection)
    fields = [] if length is None else [(b"content-length", length)]
    await cycle.send({"type": "http.response.start", "status": 200, "headers": fields})
    assert connection.pieces == []
    await cycle.send({"type": "http.response.body", "body": b"{}"})
    [whole] = connection.pieces
    assert whole.startswith(b"HTTP/1.1 200 OK\r\nx-content-type-options: nosniff\r\n")
    assert whole.endswith(b"\r\n\r\n{}" if length else b"\r\n\r\n2\r\n{}\r\n0\r\n\r\n")
    assert connection.reused is True


async def test_each_event_of_a_stream_is_written_when_it_is_sent() -> None:
    connection = Written()
    cycle = cycle_on(connection)
    await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
    for event in (b"one", b"two"):
        await cycle.send({"type": "http.response.body", "body": event, "more_body": True})
        assert connection.pieces[-1].endswith(b"3\r\n" + event + b"\r\n")
    assert len(connection.pieces) == 2
    assert connection.reused is None
