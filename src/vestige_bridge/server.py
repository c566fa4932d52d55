"""The bridge as a process: a listening socket, signals, and the drain between them."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from types import FrameType
from typing import Final

import uvicorn
from starlette.applications import Starlette

from vestige_bridge import logs
from vestige_bridge.app import build_app
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

FLUSH_SECONDS: Final = 5
"""How long answers that are complete may take to reach slow clients when the bridge stops."""

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


def serve(settings: Settings) -> int:
    """Serves until a signal comes.

    Returns:
        The exit status: 0 after a drain, 1 when it could not listen.

    Errors:
        SettingsError: the settings point to something that is of no use.
    """
    logs.configure(settings.logging_level, settings.log_format)
    app = build_app(settings)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        print(
            f"Cannot listen on {settings.host} port {settings.port}: {error.strerror}. "
            "Choose another VESTIGE_BRIDGE_HOST or VESTIGE_BRIDGE_PORT.",
            file=sys.stderr,
        )
        return 1
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_CONNECTION_SECONDS,
        timeout_graceful_shutdown=FLUSH_SECONDS,
    )
    log.info("Listening on http://%s:%d", settings.host, listener.getsockname()[1])
    Server(config, app).run(sockets=[listener])
    return 0
