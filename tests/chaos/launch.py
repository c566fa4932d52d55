"""Starts the bridge as ``vestige-bridge`` does, optionally with one planted defect that the driver must find.

usage: python -m chaos.launch [--descriptors NUMBER] DEFECT|""

On SIGUSR2 it writes the number of its tasks to a file beside its log.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from vestige_bridge.access.audit_writer import AuditWriter
from vestige_bridge.access.token_file import Token
from vestige_bridge.access.tokens import Tokens
from vestige_bridge.cli.parser import main
from vestige_bridge.endpoint import endpoint, modern_clients, shared_mode
from vestige_bridge.errors import InvalidMessage
from vestige_bridge.jsonrpc import parser
from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.mcp.lifecycle import HeldSession
from vestige_bridge.mcp.multiplexer import Caller, Multiplexer
from vestige_bridge.mcp.pass_through import PassThrough
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.session import Session
from vestige_bridge.session.window import Window
from vestige_bridge.settings import Settings


def replay_always() -> None:
    """All interrupted requests are sent again."""

    def repeatable(self: Dispatcher, request: Request) -> bool:
        return True

    Dispatcher.repeatable = repeatable  # type: ignore[method-assign]


def ids_as_they_are() -> None:
    """Requests are sent with the ids of their clients."""

    def assign(self: Multiplexer[Any], call: Any) -> bytes:
        self.withdraw(call)
        call.upstream_id = int(float(str(call.request.id.value)))
        call.spelled_upstream_id = str(call.upstream_id)
        self._by_upstream_id[call.upstream_id] = call
        data: bytes = call.request.encoded()
        return data

    Multiplexer.assign = assign  # type: ignore[method-assign]


def duplicates_as_they_are() -> None:
    """Two requests of one client with one id are sent with that id in per-client mode."""

    def assign(self: PassThrough[Any], call: Any) -> bytes:
        call.upstream_id, call.spelled_upstream_id = 1, call.request.spelled_id
        self._by_id[call.request.id.value] = call
        self.hold(call)
        data: bytes = call.request.encoded()
        return data

    PassThrough.assign = assign  # type: ignore[method-assign]


def no_drain() -> None:
    """The bridge stops without waiting for the requests in flight."""

    async def drain(self: Dispatcher, timeout_seconds: float) -> None:
        self.draining = True

    Dispatcher.drain = drain  # type: ignore[method-assign]


def tokens_by_prefix() -> None:
    """A prefix of a token is accepted."""

    def find(self: Tokens, token: bytes) -> Token | None:
        return next((it for it in self._tokens if it.value.startswith(token)), None)

    Tokens.find = find  # type: ignore[method-assign]


def no_answer_limit() -> None:
    """The size of an answer is not limited."""
    from_environ = Settings.from_environ

    def from_environ_without_limit(environ: Mapping[str, str]) -> Settings:
        return dataclasses.replace(from_environ(environ), max_answer_bytes=2**40)

    Settings.from_environ = from_environ_without_limit  # type: ignore[method-assign]


def renewed_on_garbage() -> None:
    """An invalid body ends the shared session."""
    sessions: list[Session] = []
    connected = Session.connected

    async def remember(self: Session) -> HeldSession:
        sessions[:] = [self]
        return await connected(self)

    def lose(body: bytes) -> None:
        try:
            parser.parse_body(body)
        except InvalidMessage:
            sessions[0].held = None

    Session.connected = remember  # type: ignore[method-assign]
    _with_each_body(lose)


def bodies_in_the_log() -> None:
    """Bodies of clients are logged."""
    _with_each_body(lambda body: logging.getLogger().info("A body came: %r", body))


def a_task_is_left() -> None:
    """Each request leaks a task."""
    tasks: list[asyncio.Task[None]] = []
    _with_each_body(lambda _: tasks.append(asyncio.get_running_loop().create_task(asyncio.sleep(3600))))


def bodies_are_rewritten() -> None:
    """Upgrade offers are replaced in bodies, too: as the body grows, its end becomes a part of the next request.

    The bytes are changed before they reach the class that parses them, so the defect does not depend on that class.
    """
    load = uvicorn.Config.load

    def load_with_defect(self: uvicorn.Config) -> None:
        load(self)
        build = self.http_protocol_class
        self.http_protocol_class = lambda **options: Rewriting(build(**options))  # type: ignore[assignment]

    uvicorn.Config.load = load_with_defect  # type: ignore[method-assign]


class Rewriting(asyncio.Protocol):
    """A wrapper of a connection's protocol that forwards as many bytes as it receives, but rewrites them."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.surplus = b""
        for name in ("connection_made", "connection_lost", "eof_received", "pause_writing", "resume_writing"):
            setattr(self, name, getattr(protocol, name))

    def data_received(self, data: bytes) -> None:
        start = data.find(b"\r\n\r\n") + 4 if re.match(rb"[A-Z]+ /", data) else 0
        body = re.sub(rb"(?i)\r\nupgrade(?=:)", b"\r\nX-Overlooked", data[start:])
        rewritten = self.surplus + data[:start] + body
        given, self.surplus = rewritten[: len(data)], rewritten[len(data) :]
        if not hasattr(self.protocol, "get_buffer"):
            self.protocol.data_received(given)
            return
        while given:
            buffer = self.protocol.get_buffer(len(given))
            number = min(len(given), len(buffer))
            buffer[:number] = given[:number]
            self.protocol.buffer_updated(number)
            given = given[number:]


def halves_pass() -> None:
    """Unpaired surrogates are sent upstream."""
    parser.replace_unpaired_surrogates = lambda text: text  # type: ignore[attr-defined]


def tasks_pass() -> None:
    """Tasks are created and listed on the shared session."""
    for module in (shared_mode, modern_clients):
        module.is_about_tasks = lambda _: False  # type: ignore[attr-defined]
        module.without_task = lambda request: request  # type: ignore[attr-defined]


def lines_twice() -> None:
    """The audit log has two lines for a call without an answer."""
    put = AuditWriter.put

    def put_twice(self: AuditWriter, data: bytes, *, receipt: bool = False) -> asyncio.Future[bool] | None:
        if b'"outcome": "answered"' not in data:
            put(self, data)
        return put(self, data, receipt=receipt)

    AuditWriter.put = put_twice  # type: ignore[method-assign]


def no_line_for_a_replay() -> None:
    """The audit log has no line for a call that was sent again."""
    put = AuditWriter.put

    def put_unless_replayed(self: AuditWriter, data: bytes, *, receipt: bool = False) -> asyncio.Future[bool] | None:
        return None if b'"replayed": true' in data else put(self, data, receipt=receipt)

    AuditWriter.put = put_unless_replayed  # type: ignore[method-assign]


def first_come_first_served() -> None:
    """All principals wait in one queue, and no waiting request is rejected in favour of another."""
    wait = Window._wait

    def wait_in_line(self: Window[Any], thing: Any, caller: Caller) -> None:
        wait(self, thing, Caller("everybody"))

    Window._wait = wait_in_line  # type: ignore[method-assign]
    Window.waiting = property(lambda _: {})  # type: ignore[assignment, method-assign]


def _with_each_body(do: Callable[[bytes], None]) -> None:
    def parse_body(body: bytes) -> Any:
        do(body)
        return parser.parse_body(body)

    endpoint.parse_body = parse_body  # type: ignore[attr-defined]


DEFECTS: dict[str, Callable[[], None]] = {
    it.__name__: it
    for it in (
        *(replay_always, ids_as_they_are, duplicates_as_they_are, no_drain, tokens_by_prefix, no_answer_limit),
        *(renewed_on_garbage, bodies_in_the_log, a_task_is_left, bodies_are_rewritten, halves_pass, tasks_pass),
        *(lines_twice, no_line_for_a_replay),
        first_come_first_served,
    )
}


def report_tasks_on_signal() -> None:
    """Makes SIGUSR2 write the number of tasks of the running loop."""
    log = Path("/proc/self/fd/2").readlink()
    new_event_loop = uvloop.new_event_loop

    def new_event_loop_with_handler() -> uvloop.Loop:
        loop = new_event_loop()
        loop.add_signal_handler(
            signal.SIGUSR2, lambda: log.with_suffix(".tasks").write_text(f"{len(asyncio.all_tasks(loop))}\n")
        )
        return loop

    uvloop.new_event_loop = new_event_loop_with_handler


if __name__ == "__main__":
    usage = argparse.ArgumentParser(prog="python -m chaos.launch")
    usage.add_argument("--descriptors", type=int, help="how many descriptors it may open")
    usage.add_argument("defect", choices=["", *DEFECTS])
    arguments = usage.parse_args()
    if arguments.descriptors:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.descriptors, arguments.descriptors))
    report_tasks_on_signal()
    if arguments.defect:
        DEFECTS[arguments.defect]()
    sys.exit(main([]))
