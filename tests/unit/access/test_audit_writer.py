"""The writer of the audit log, on real files, pipes and devices."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import select
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import FrameType

import psutil
import pytest

from harness import until
from vestige_bridge.access import audit_writer
from vestige_bridge.access.audit_writer import AuditWriter


@asynccontextmanager
async def writing(destination: Path | str) -> AsyncIterator[AuditWriter]:
    writer = AuditWriter(str(destination))
    writer.start()
    try:
        yield writer
    finally:
        await writer.close()


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the waits of the writer."""
    monkeypatch.setattr(audit_writer, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(audit_writer, "CLOSE_SECONDS", 1.0)


def line(number: int, width: int = 100) -> bytes:
    return f"{number:0{width}d}\n".encode()


class Pipe:
    """A named pipe with a reader that reads only on request."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(self._descriptor, fcntl.F_SETPIPE_SZ, 4096)

    def read(self) -> bytes:
        data = b""
        with suppress(BlockingIOError):
            while part := os.read(self._descriptor, 65536):
                data += part
        return data

    def close(self) -> None:
        os.close(self._descriptor)


async def test_lines_are_written_whole_once_and_in_order(tmp_path: Path) -> None:
    numbers = range(5000)
    async with writing(tmp_path / "audit") as writer:
        for number in numbers:
            writer.put(line(number))
            if number % 100 == 0:
                await asyncio.sleep(0)
    assert (tmp_path / "audit").read_bytes() == b"".join(map(line, numbers))
    await until(lambda: writer.written == len(numbers))
    assert (writer.lost, writer.queued, writer.failing) == (0, 0, False)


async def test_a_file_is_appended_to_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for number in range(2):
        async with writing(path) as writer:
            writer.put(line(number))
    assert path.read_bytes() == line(0) + line(1)
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_partial_line_of_a_killed_process_does_not_spoil_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    path.write_bytes(b'{"torn": ')
    async with writing(path) as writer:
        writer.put(line(1))
        writer.put(line(2))
    assert path.read_bytes() == b'{"torn": \n' + line(1) + line(2)


async def test_a_receipt_says_that_a_line_was_written(tmp_path: Path) -> None:
    async with writing(tmp_path / "audit") as writer:
        receipt = writer.put(line(1), receipt=True)
        assert receipt is not None
        async with asyncio.timeout(5):
            assert await receipt
        assert (tmp_path / "audit").read_bytes() == line(1)
        assert writer.put(line(2)) is None


async def test_a_cancelled_receipt_does_not_affect_the_others(tmp_path: Path) -> None:
    async with writing(tmp_path / "audit") as writer:
        receipts = [writer.put(line(number), receipt=True) for number in range(3)]
        assert receipts[0] is not None
        receipts[0].cancel()
        async with asyncio.timeout(5):
            assert await asyncio.gather(*(it for it in receipts[1:] if it is not None)) == [True, True]
    assert (tmp_path / "audit").read_bytes() == line(0) + line(1) + line(2)


async def test_a_full_device_is_logged_once_and_lost_lines_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with writing("/dev/full") as writer:
        receipt = writer.put(line(1), receipt=True)
        assert receipt is not None
        async with asyncio.timeout(5):
            assert not await receipt
        for number in range(20):
            writer.put(line(number))
        later = writer.put(line(2), receipt=True)
        assert later is not None
        async with asyncio.timeout(5):
            assert not await later
        assert writer.failing
        assert (writer.written, writer.queued, writer.lost) == (0, 22, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "The audit log cannot be written: No space left on device",
        "22 lines of the audit log were not written",
    ]
    assert (writer.written, writer.queued, writer.lost) == (0, 0, 22)


async def test_queued_lines_are_written_once_the_file_is_writable_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    async with writing(path) as writer:
        writer.put(line(0))
        await until(lambda: writer.failing)
        writer.put(line(1))
        path.unlink()
        writer.reopen()
        await until(lambda: writer.written == 2)
        assert not writer.failing
        writer.put(line(2))
    assert path.read_bytes() == line(0) + line(1) + line(2)
    assert [record.getMessage() for record in caplog.records] == [
        "The audit log cannot be written: No space left on device",
        "The audit log was opened again",
        "The audit log can be written again; 0 lines were lost since the start",
    ]


async def test_a_full_pipe_does_not_block_and_receives_whole_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(audit_writer, "SLOW_SECONDS", 0.2)
    pipe = Pipe(tmp_path / "pipe")
    async with writing(pipe.path) as writer:
        receipts = [writer.put(line(number, 700), receipt=True) for number in range(50)]
        async with asyncio.timeout(5):
            assert not all(await asyncio.gather(*(it for it in receipts if it is not None)))
        assert writer.failing
        read = b""
        while len(read) < 50 * 701:
            part = pipe.read()
            assert len(part) % 701 == 0
            read += part
            await asyncio.sleep(0)
        await until(lambda: writer.written == 50)
        assert not writer.failing
    assert read == b"".join(line(number, 700) for number in range(50))
    assert [record.getMessage() for record in caplog.records] == [
        "The audit log is written too slowly",
        "The audit log can be written again; 0 lines were lost since the start",
    ]
    pipe.close()


async def test_a_pipe_whose_reader_has_gone_fails_until_another_reads_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = Pipe(tmp_path / "pipe")
    async with writing(pipe.path) as writer:
        pipe.close()
        writer.put(line(1))
        await until(lambda: writer.failing)
        descriptor = os.open(pipe.path, os.O_RDONLY | os.O_NONBLOCK)
        await until(lambda: writer.written == 1)
        assert os.read(descriptor, 1000) == line(1)
        os.close(descriptor)
    assert "The audit log cannot be written: Broken pipe" in caplog.text


def test_a_pipe_without_a_reader_is_an_error_at_the_start(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        AuditWriter(str(tmp_path / "pipe"))


async def test_a_hanging_write_does_not_block_the_event_loop_and_counts_as_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_writer, "SLOW_SECONDS", 0.1)
    hangs = threading.Event()
    write = os.write

    def hang(descriptor: int, data: bytes) -> int:
        hangs.wait(10)
        return write(descriptor, data)

    async with writing(tmp_path / "audit") as writer:
        monkeypatch.setattr(os, "write", hang)
        receipt = writer.put(line(1), receipt=True)
        assert receipt is not None
        async with asyncio.timeout(5):
            assert not await receipt
        assert writer.failing
        hangs.set()
        await until(lambda: writer.written == 1)
        assert not writer.failing
    assert (tmp_path / "audit").read_bytes() == line(1)


@pytest.mark.parametrize(("constant", "bound"), [("MAX_QUEUED_LINES", 10), ("MAX_QUEUED_BYTES", 1010)])
async def test_the_queue_is_bounded_and_lost_lines_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, constant: str, bound: int
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(audit_writer, constant, bound)
    path = tmp_path / "audit"
    path.symlink_to("/dev/full")
    async with writing(path) as writer:
        receipts = [writer.put(line(number), receipt=True) for number in range(30)]
        assert (writer.queued, writer.lost, writer.failing) == (10, 20, True)
        assert receipts[-1] is not None
        assert receipts[-1].result() is False
        path.unlink()
        writer.reopen()
        await until(lambda: writer.written == 10 and not writer.failing)
        writer.put(line(30))
    assert path.read_bytes() == b"".join(map(line, [*range(10), 30]))
    messages = [record.getMessage() for record in caplog.records]
    assert messages.count("Lines of the audit log are lost: the queue is full") == 1
    assert "The audit log can be written again; 20 lines were lost since the start" in messages


class PartialWrites:
    """A file system with limited space: it writes ``room`` bytes and then fails until ``room`` is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 150
        self._write = os.write
        monkeypatch.setattr(os, "write", self)

    def __call__(self, descriptor: int, data: bytes) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        written = self._write(descriptor, data[: self.room])
        self.room -= written
        return written


async def test_the_rest_of_a_line_is_written_when_there_is_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = PartialWrites(monkeypatch)
    async with writing(tmp_path / "audit") as writer:
        for number in range(3):
            writer.put(line(number))
        await until(lambda: writer.failing)
        assert (tmp_path / "audit").stat().st_size == 150
        system.room = 10_000
        await until(lambda: writer.written == 3)
    assert (tmp_path / "audit").read_bytes() == b"".join(map(line, range(3)))


@pytest.mark.parametrize("full", [True, False])
async def test_a_line_is_complete_exactly_once_if_its_file_is_moved_away_in_the_middle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(audit_writer, "RETRY_SECONDS", 60)
    system = PartialWrites(monkeypatch)
    old, new = tmp_path / "audit.1", tmp_path / "audit"
    async with writing(new) as writer:
        for number in range(3):
            writer.put(line(number))
        await until(lambda: writer.failing)
        new.rename(old)
        if not full:
            system.room = 10_000
        writer.reopen()
        await until(new.exists)
        system.room = 10_000
        if full:
            monkeypatch.setattr(audit_writer, "RETRY_SECONDS", 0.01)
            writer.reopen()
        await until(lambda: writer.written == 3)
    lines = [*old.read_bytes().splitlines(keepends=True), *new.read_bytes().splitlines(keepends=True)]
    assert [it for it in lines if len(it) == 101] == [line(0), line(1), line(2)]
    assert (len(lines) == 4) is full


async def test_rotation_under_load_neither_loses_nor_splits_a_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    async with writing(path) as writer:
        for number in range(3000):
            writer.put(line(number))
            if number % 300 == 299:
                path.rename(tmp_path / f"audit.{number:04d}")
                writer.reopen()
                await until(path.exists)
    files = [*sorted(tmp_path.glob("audit.*")), path]
    assert len(files) == 11
    assert b"".join(file.read_bytes() for file in files) == b"".join(map(line, range(3000)))


async def test_if_a_path_cannot_be_opened_again_the_old_file_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    async with writing(folder / "audit") as writer:
        folder.rename(tmp_path / "moved")
        writer.reopen()
        writer.put(line(1))
        await until(lambda: "cannot be opened again (No such file or directory)" in caplog.text)
    assert (tmp_path / "moved/audit").read_bytes() == line(1)


async def test_a_signal_handler_may_reopen_at_any_moment(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    async with writing(path) as writer:

        def reopen(sig: int, frame: FrameType | None) -> None:
            writer.reopen()

        before = signal.signal(signal.SIGUSR1, reopen)
        try:
            for number in range(1000):
                writer.put(line(number))
                os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.sleep(0)
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert path.read_bytes() == b"".join(map(line, range(1000)))


def test_reopening_before_the_start_does_nothing(tmp_path: Path) -> None:
    writer = AuditWriter(str(tmp_path / "audit"))
    writer.reopen()
    assert (writer.queued, writer.failing) == (0, False)


async def test_closing_ends_the_thread_and_closes_the_file(tmp_path: Path) -> None:
    def held() -> tuple[bool, bool]:
        threads, files = threading.enumerate(), psutil.Process().open_files()
        return "audit" in [it.name for it in threads], str(tmp_path / "audit") in [it.path for it in files]

    async with writing(tmp_path / "audit") as writer:
        writer.put(line(1))
        writer.reopen()
        assert held() == (True, True)
    assert held() == (False, False)


async def test_closing_writes_what_a_slow_pipe_takes_in_time(tmp_path: Path) -> None:
    pipe = Pipe(tmp_path / "pipe")
    writer = AuditWriter(str(pipe.path))
    writer.start()
    for number in range(100):
        writer.put(line(number))
    closing = asyncio.create_task(writer.close())
    read = b""
    while not closing.done():
        read += pipe.read()
        await asyncio.sleep(0)
    assert read + pipe.read() == b"".join(map(line, range(100)))
    assert writer.lost == 0
    pipe.close()


async def test_closing_does_not_wait_for_a_full_pipe(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_writer, "CLOSE_SECONDS", 0.1)
    pipe = Pipe(tmp_path / "pipe")
    async with writing(pipe.path) as writer:
        receipts = [writer.put(line(number, select.PIPE_BUF - 1), receipt=True) for number in range(10)]
    assert "9 lines of the audit log were not written" in caplog.text
    assert (writer.lost, writer.queued) == (9, 0)
    assert [it.result() for it in receipts if it is not None] == [True] + [False] * 9
    pipe.close()
