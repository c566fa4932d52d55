"""The command line: arguments and environment in, exit status out."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import textwrap
from types import FrameType

import uvicorn
from dotenv import dotenv_values
from starlette.applications import Starlette

from vestige_bridge import __version__, logs
from vestige_bridge.app import build_app
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings, describe

FLUSH_SECONDS = 5
"""How long answers that are complete may take to reach slow clients when the bridge stops."""

IDLE_CONNECTION_SECONDS = 75
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


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit status: 0, 1 when it could not serve, 2 for mistakes in the settings."""
    _parser().parse_args(arguments)
    try:
        settings = Settings.from_environ({**_dotenv(), **os.environ})
    except SettingsError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    return serve(settings)


def serve(settings: Settings) -> int:
    """Serves until a signal comes; returns the exit status."""
    logs.configure(settings.logging_level, settings.log_format)
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
    app = build_app(settings)
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
    logs.log.info("Listening on http://%s:%d", settings.host, listener.getsockname()[1])
    Server(config, app).run(sockets=[listener])
    return 0


def _dotenv() -> dict[str, str]:
    """The variables of the file ``.env`` in the working directory, if there is one."""
    return {name: value for name, value in dotenv_values(".env").items() if value is not None}


def _parser() -> argparse.ArgumentParser:
    lines = []
    for variable, default, help_text in describe():
        lines.append(f"  {variable} (default: {default or 'none'})")
        lines.append(textwrap.fill(help_text, 78, initial_indent="      ", subsequent_indent="      "))
    parser = argparse.ArgumentParser(
        prog="vestige-bridge",
        description="An authenticating reverse proxy that lets any number of MCP clients share one Vestige.",
        epilog="Settings come from the environment, then from a file .env:\n\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", choices=["serve"], default="serve", help="serve: run the bridge (default)"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
