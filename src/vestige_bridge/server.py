"""The bridge as a process: its listening sockets, signals, and the drain between them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, Literal

import uvicorn
from starlette.applications import Starlette

from vestige_bridge import logs
from vestige_bridge.app import build_app
from vestige_bridge.connection import Connection
from vestige_bridge.metrics import build_metrics_app
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5
"""How long answers that are complete may take to reach slow clients when the bridge stops."""

LARGE_BLOCK_BYTES: Final = 2_097_152
"""The size from which a block of memory goes back to the system as soon as it is free."""

_MMAP_THRESHOLD: Final = -3
_TRIM_THRESHOLD: Final = -1

GARBAGE_THRESHOLDS: Final = (20_000, 20, 100)
"""How often the collector of cyclic garbage looks: a request makes none, so the usual 700 objects are far too few.

With those, and all that the start made looked at again and again, a request costs 1.1 times the CPU time.
"""

IDLE_CONNECTION_SECONDS: Final = 75
"""Longer than the 60 seconds of common load balancers, so that it is never us who close under a request."""


class Server(uvicorn.Server):
    """A server that drains before it stops accepting connections; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, app: Starlette) -> None:
        super().__init__(config)
        self._app = app
        self._stopping = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the drain."""
        if self._stopping:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self._stopping = True

    async def on_tick(self, counter: int) -> bool:
        """Drains when a signal has come, then stops."""
        if self._stopping:
            await self._app.state.drain()
            self.should_exit = True
        return await super().on_tick(counter)


class MetricsServer(uvicorn.Server):
    """A server beside the other, which is the one that signals are for."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures none."""
        yield


def serve(settings: Settings, warnings: Sequence[str] = ()) -> int:
    """Serves until a signal comes.

    Parameters:
        settings: the settings.
        warnings: what the log says first.

    Returns:
        The exit status: 0 after a drain, 1 when it could not listen.

    Errors:
        SettingsError: the settings point to something that is of no use.
    """
    handler = logs.configure(settings.logging_level, settings.log_format)
    for warning in warnings:
        log.warning("%s", warning)
    app = build_app(settings, handler.write)
    try:
        listener = _listen(settings.host, settings.port, "VESTIGE_BRIDGE_PORT")
        metrics_listener = _listen(settings.host, settings.metrics_port, "VESTIGE_BRIDGE_METRICS_PORT")
    except OSError as error:
        log.error("%s", error)  # noqa: TRY400 - the sentence says all
        return 1
    log.info("Listening on http://%s:%d", settings.host, listener.getsockname()[1])
    log.info("Metrics on http://%s:%d/metrics", settings.host, metrics_listener.getsockname()[1])
    server = Server(build_config(app, lifespan="on"), app)
    metrics_server = MetricsServer(build_config(build_metrics_app(app.state.metrics), lifespan="off"))

    _give_large_blocks_back()

    async def run() -> None:
        # What lives now lives as long as the process: it need not be looked through for garbage again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        scraped = asyncio.create_task(metrics_server.serve(sockets=[metrics_listener]))
        try:
            await server.serve(sockets=[listener])
        finally:
            metrics_server.should_exit = True
            await scraped

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())
    return 0


def _give_large_blocks_back() -> None:
    """Has the C library return the memory of large answers at once.

    glibc's ``malloc`` takes the first large block that is freed as a sign to keep all that come, unless its thresholds
    are fixed (mallopt(3)). Other C libraries have no such function, or do nothing in it.
    """
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for threshold in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            library.mallopt(threshold, LARGE_BLOCK_BYTES)


def _listen(host: str, port: int, variable: str) -> socket.socket:
    """A socket that listens.

    Parameters:
        host: the address.
        port: the port; 0 takes a free one.
        variable: the setting that chose the port.

    Errors:
        OSError: it cannot, in a sentence that names the setting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        # The system's own words: Python adds the address as it spells it.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(
            f"Cannot listen on {host} port {port}: {reason}. Choose another VESTIGE_BRIDGE_HOST or {variable}."
        ) from error


def build_config(app: Starlette, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    """How an app is served."""
    return uvicorn.Config(
        app,
        http=Connection,
        loop="uvloop",
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        headers=[("X-Content-Type-Options", "nosniff")],
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
