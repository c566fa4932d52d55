"""The one place that knows every room: routes, the order of the middleware, and what lives as long as the app."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vestige_bridge import logs
from vestige_bridge.access import ENDPOINT_PATHS, AccessLog
from vestige_bridge.auth import REFUSALS, Authentication
from vestige_bridge.connections import Connections, Limits, connection_limit
from vestige_bridge.errors import BridgeError, InternalError, MethodNotAllowed, NotFound
from vestige_bridge.health import HealthEndpoints
from vestige_bridge.held_bytes import HeldBytes
from vestige_bridge.metrics import Metrics
from vestige_bridge.monitor import Monitor
from vestige_bridge.per_client import ClientSessions
from vestige_bridge.proxy import McpEndpoint
from vestige_bridge.responses import error_response
from vestige_bridge.session import Session
from vestige_bridge.settings import Settings
from vestige_bridge.state import SessionFile
from vestige_bridge.tokens import Tokens
from vestige_bridge.upstream import Upstream
from vestige_bridge.upstream_token import UpstreamToken

_HTTP_SSE_PATHS: Final = frozenset({"/sse", "/sse/", "/message", "/messages", "/messages/"})
"""Where clients of the transport that MCP 2025-03-26 replaced look for it."""


class App(Starlette):
    """An application with one endpoint to which the way is short: past routing and all that the rest needs.

    Parameters:
        endpoint: what answers on ``/mcp``.
        options: as for Starlette.
    """

    def __init__(self, endpoint: ASGIApp, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.router.redirect_slashes = False
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what comes."""
        if scope["type"] == "http" and scope["path"] in ENDPOINT_PATHS:
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build_app(settings: Settings, write: logs.Write = logs.write) -> App:
    """The bridge as an ASGI application, to be run with its lifespan.

    Its ``state.drain`` takes no more requests and waits for those in flight; its ``state.connections`` are for the
    server that runs it, its ``state.metrics`` for another app.

    Parameters:
        settings: what it was told.
        write: writes a line of the access log.

    Errors:
        SettingsError: the token file or the state directory that the settings name is of no use.
    """
    held = HeldBytes(settings.unsent_bytes)
    connections = Connections(_limits(settings), held)
    upstream_token = UpstreamToken.from_settings(settings)
    upstream = Upstream(
        settings.mcp_url,
        token=upstream_token,
        connect_timeout_seconds=settings.connect_timeout_seconds,
        max_answer_bytes=settings.max_answer_bytes,
        held=held,
    )
    monitor = Monitor(settings.check_interval_seconds)
    session = Session(upstream, settings, monitor.record, SessionFile.from_settings(settings))
    health = HealthEndpoints(session, monitor)
    client_sessions = ClientSessions(upstream, session, settings)
    mcp = McpEndpoint(session, settings, client_sessions if settings.session_mode == "per-client" else None)
    tokens, refusals = Tokens.from_settings(settings), Counter(dict.fromkeys(REFUSALS, 0))
    metrics = Metrics(
        settings=settings,
        session=session,
        client_sessions=client_sessions,
        monitor=monitor,
        tokens=tokens,
        refusals=refusals,
        connections=connections,
    )

    door = Authentication(mcp, settings, tokens, refusals)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with (
            upstream_token.watching(),
            upstream,
            session,
            client_sessions,
            monitor.watching(session),
            tokens.watching(end_streams),
        ):
            yield
            await health.close()

    def end_streams() -> None:
        session.hub.close()
        client_sessions.end_streams()

    async def drain() -> None:
        client_sessions.end_streams()
        await session.drain(settings.drain_seconds)

    def watched(app: ASGIApp) -> ASGIApp:
        return AccessLog(app, lambda: session.draining, metrics.observe, write)

    app = App(
        watched(door),
        routes=[
            Route("/health", door.probe(health.health)),
            Route("/readyz", door.probe(health.readyz)),
            Route("/livez", health.livez),
        ],
        middleware=[Middleware(watched)],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=lifespan,
    )
    app.state.drain = drain
    app.state.metrics = metrics
    app.state.connections = connections
    return app


def _limits(settings: Settings) -> Limits:
    """What clients' connections may take, with as many descriptors set apart for upstream as it may need."""
    # A request that was cancelled keeps its connection for a while, and a client's own session has a stream, too.
    for_upstream = 2 * settings.upstream_concurrency
    if settings.session_mode == "per-client":
        for_upstream += 2 * settings.max_client_sessions
    return Limits(
        connections=connection_limit(for_upstream),
        keep_alive_seconds=settings.keep_alive_seconds,
        send_seconds=settings.send_timeout_seconds,
    )


async def _refuse(request: Request, refusal: Exception) -> Response:
    """What the router does not know, in JSON."""
    error: BridgeError = NotFound("There is nothing here; POST a JSON-RPC message to /mcp.")
    if request.url.path in _HTTP_SSE_PATHS:
        error = NotFound("The HTTP+SSE transport is not served; use Streamable HTTP: POST JSON-RPC messages to /mcp.")
    if isinstance(refusal, HTTPException) and refusal.status_code == 405:
        error = MethodNotAllowed("This path takes GET.", headers=refusal.headers)
    return error_response(error)


async def _fail(request: Request, failure: Exception) -> Response:
    """What the client sees of a bug."""
    return error_response(InternalError("The bridge failed; its log says why."))
