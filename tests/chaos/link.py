"""A TCP link between two parts with the faults of a network: delays, cuts, resets, and silence."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Misbehave = Callable[[bytes, asyncio.StreamWriter], Awaitable[bool]]
CHUNK_BYTES = 65536


class Link:
    """Forwards every connection to a port, with configurable faults.

    Attributes:
        port: the port on which it listens.
        target: the port to which it forwards.
        delay_seconds: the delay of each chunk.
        cut_after_bytes: the size of an answer at which the connection ends; ``None`` for no cut.
        reset: whether a cut is a reset (RST) rather than an end (FIN).
        swallows: whether all data is dropped in both directions.
        misbehave: is called with each chunk of a request, and may answer instead of the target.
    """

    def __init__(self, misbehave: Misbehave | None = None) -> None:
        self.port = 0
        self.target = 0
        self.delay_seconds = 0.0
        self.cut_after_bytes: int | None = None
        self.reset = False
        self.swallows = False
        self._misbehave = misbehave
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listens within the context."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            self.break_all()

    def break_all(self) -> None:
        """Cuts every connection."""
        for writer in list(self._writers):
            self._cut(writer)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return self._cut(writer)
        self._writers |= {writer, there_writer}
        directions = [
            asyncio.create_task(self._pass(reader, there_writer, writer)),
            asyncio.create_task(self._pass(there_reader, writer, None)),
        ]
        try:
            await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            for it in (writer, there_writer):
                self._writers.discard(it)
                it.close()

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asking: asyncio.StreamWriter | None
    ) -> None:
        """Forwards one direction; ``asking`` is the writer to the client, in the direction of requests."""
        passed = 0
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                if self.delay_seconds:
                    await asyncio.sleep(self.delay_seconds)
                if self.swallows:
                    continue
                if asking is not None and self._misbehave is not None and await self._misbehave(chunk, asking):
                    return self._cut(asking)
                if asking is None and self.cut_after_bytes is not None and passed + len(chunk) > self.cut_after_bytes:
                    writer.write(chunk[: self.cut_after_bytes - passed])
                    return self._cut(writer)
                passed += len(chunk)
                writer.write(chunk)
                await writer.drain()

    def _cut(self, writer: asyncio.StreamWriter) -> None:
        if self.reset:
            handle: socket.socket = writer.get_extra_info("socket")
            with suppress(OSError):
                handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        else:
            writer.close()
