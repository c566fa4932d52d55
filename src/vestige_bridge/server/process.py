"""The bridge as a process: its listening sockets, signals, and graceful shutdown (drain)."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from types import FrameType
from typing import Any, Final, Literal, cast

import uvicorn
from starlette.applications import Starlette
from uvicorn.server import ServerState

from vestige_bridge import logs
from vestige_bridge.access.audit import AuditLog
from vestige_bridge.server.app import build_app
from vestige_bridge.server.connections import UNAUTHENTICATED_IDLE_SECONDS, Connections, Limits
from vestige_bridge.server.http_protocol import READ_BYTES, HttpProtocol
from vestige_bridge.server.metrics import build_metrics_app
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.answer_budget import AnswerBudget

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5
"""The time limit for sending complete answers to slow clients when the bridge stops."""

LARGE_BLOCK_BYTES: Final = 2_097_152
"""The size from which freed memory is returned to the operating system at once."""

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1

BACKLOG: Final = 2048
"""The length of the queue of connections to accept."""

GARBAGE_THRESHOLDS: Final = (20_000, 20, 100)
"""Thresholds of the cyclic garbage collector: a request creates no cycles, so the default of 700 objects is too low.

With the defaults, and with the start-up objects included in each collection, a request costs 1.1 times the CPU time.
"""

METRICS_CONNECTIONS: Final = 64
"""Maximum number of connections of the metrics' listener."""


class Server(uvicorn.Server):
    """A server that drains before it stops accepting connections; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app
        self._stopping = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts the drain."""
        if self._stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._stopping = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles two more signals: SIGHUP starts the drain, and SIGUSR1 reopens the audit log's file.

        SIGHUP stays ignored if the process was started with it ignored, as nohup does.
        """
        with super().capture_signals():
            before = signal.getsignal(signal.SIGHUP)
            if before != signal.SIG_IGN:
                signal.signal(signal.SIGHUP, self.handle_exit)
            before_reopening = signal.signal(signal.SIGUSR1, self._reopen_audit)
            try:
                yield
            finally:
                signal.signal(signal.SIGHUP, before)
                signal.signal(signal.SIGUSR1, before_reopening)

    def _reopen_audit(self, sig: int, frame: FrameType | None) -> None:
        """Reopens the audit log's file after another program has moved it; does nothing without an audit log."""
        audit: AuditLog | None = self._app.state.audit
        if audit is not None:
            audit.writer.reopen()

    async def on_tick(self, counter: int) -> bool:
        """Drains after a signal, then stops."""
        if self._stopping:
            await self._app.state.drain()
            self.should_exit = True
        return await super().on_tick(counter)


class MetricsServer(uvicorn.Server):
    """The second server; signals are for the first."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handles no signals."""
        yield


def serve(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serves until a signal comes.

    Parameters:
        settings: the settings.
        warnings: warnings to log first.

    Returns:
        The exit status: 0 after a drain, 1 if it could not listen.

    Errors:
        SettingsError: a setting names something that cannot be used.
    """
    handler = logs.configure(settings.logging_level, settings.log_format)
    for warning in warnings:
        log.warning("%s", warning)
    app = build_app(settings, handler.write)
    try:
        listener = _listen(settings.host, settings.port, "VESTIGE_BRIDGE_PORT")
        metrics_listener = None
        if settings.metrics_port is not None:
            metrics_listener = _listen(settings.host, settings.metrics_port, "VESTIGE_BRIDGE_METRICS_PORT")
    except OSError as error:
        log.error("%s", error)  # noqa: TRY400 - the sentence says all
        return 1
    log.info("Listening on http://%s:%d", settings.host, listener.getsockname()[1])
    if metrics_listener is not None:
        log.info("Metrics on http://%s:%d/metrics", settings.host, metrics_listener.getsockname()[1])
    server = Server(build_config(app, app.state.connections, lifespan="on"), app)

    _give_large_blocks_back()
    # A program that rotates the audit log may send this signal before the handler is set or after it is removed; the
    # default action would end the process.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    async def run() -> None:
        # The objects that exist now live as long as the process, so collections need not include them.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        async with _metrics_served(app, settings, metrics_listener):
            await server.serve(sockets=[listener])

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())
    return 0


@asynccontextmanager
async def _metrics_served(app: Starlette, settings: Settings, listener: socket.socket | None) -> AsyncIterator[None]:
    """Serves the metrics within the context, if they have a listener."""
    if listener is None:
        yield
        return
    metrics = build_metrics_app(app.state.metrics)
    server = MetricsServer(build_config(metrics, _metrics_connections(settings), lifespan="off"))
    scraped = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield
    finally:
        server.should_exit = True
        await scraped


def _give_large_blocks_back() -> None:
    """Makes the C library return the memory of large answers at once.

    After the first large block is freed, glibc's ``malloc`` keeps later ones, unless its thresholds are fixed
    (mallopt(3)). In other C libraries the function does not exist or does nothing.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            library.mallopt(threshold, LARGE_BLOCK_BYTES)


def _listen(host: str, port: int, variable: str) -> socket.socket:
    """Opens a listening socket.

    Parameters:
        host: the address.
        port: the port; 0 takes a free one.
        variable: the setting with the port.

    Errors:
        OSError: it failed; the message names the setting.
    """
    try:
        if host == "::":
            return _listen_on_both_families(port)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # The operating system's text: Python's adds the address in another form.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(
            f"Cannot listen on {host} port {port}: {reason}. Choose another VESTIGE_BRIDGE_HOST or {variable}."
        ) from error


def _listen_on_both_families(port: int) -> socket.socket:
    """Opens a socket that listens on every address, IPv6 and IPv4; without IPv6, on every IPv4 address.

    Errors:
        OSError: it failed.
    """
    if not socket.has_dualstack_ipv6():
        return socket.create_server(("0.0.0.0", port), backlog=BACKLOG)  # noqa: S104 - `::` asks for it
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=BACKLOG)


def _metrics_connections(settings: Settings) -> Connections:
    limits = Limits(
        connections=METRICS_CONNECTIONS,
        keep_alive_seconds=UNAUTHENTICATED_IDLE_SECONDS,
        send_seconds=settings.send_timeout_seconds,
    )
    return Connections(limits, AnswerBudget(settings.unsent_bytes))


def _protocol(connections: Connections) -> type[asyncio.Protocol]:
    """The protocol factory for uvicorn; all connections read into one buffer, one after another."""
    buffer = memoryview(bytearray(READ_BYTES))

    def build(
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> HttpProtocol:
        return HttpProtocol(config, server_state, app_state, connections, buffer)

    return cast("type[asyncio.Protocol]", build)


def build_config(app: Starlette, connections: Connections, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    """The uvicorn configuration of an application.

    Parameters:
        app: the application.
        connections: the connections of its clients.
        lifespan: whether it has one.
    """
    return uvicorn.Config(
        app,
        http=_protocol(connections),
        loop="uvloop",
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
