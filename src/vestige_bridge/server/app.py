"""The composition root: routes, the order of the middleware, and the objects that live as long as the application."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from vestige_bridge import logs
from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.authentication import OAUTH_REFUSALS, REFUSALS, Authentication, ResourceMetadata
from vestige_bridge.access.oauth import ResourceServer
from vestige_bridge.access.record import ENDPOINT_PATHS
from vestige_bridge.access.responses import error_response
from vestige_bridge.access.tokens import Tokens
from vestige_bridge.endpoint.endpoint import Endpoint
from vestige_bridge.endpoint.per_client_mode import ClientSessions
from vestige_bridge.errors import BridgeError, InternalError, MethodNotAllowed, NotFound, SettingsError
from vestige_bridge.server.access_log import AccessLog
from vestige_bridge.server.connections import Connections, Limits, connection_limit
from vestige_bridge.server.metrics import Metrics
from vestige_bridge.server.probes import Probes
from vestige_bridge.server.provider_client import fetch
from vestige_bridge.session.dispatcher import Dispatcher
from vestige_bridge.session.monitor import Monitor
from vestige_bridge.session.session import Session
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.answer_budget import AnswerBudget
from vestige_bridge.upstream.client import Upstream
from vestige_bridge.upstream.token import UpstreamToken

if TYPE_CHECKING:
    from vestige_bridge.access.oauth_tokens import OAuthTokens

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
    """Builds the bridge as an ASGI application, to be run with its lifespan.

    Its ``state.drain`` takes no more requests and waits for those in flight; its ``state.connections`` and the
    ``state.audit``, if there is one, are for the server that runs it, its ``state.metrics`` for another app.

    Parameters:
        settings: the settings of the bridge.
        write: writes a line of the access log.

    Errors:
        SettingsError: the token file or the state directory that the settings name cannot be used.
    """
    bridge = _Bridge(settings)

    def logged(app: ASGIApp) -> ASGIApp:
        draining, observe = (lambda: bridge.dispatcher.draining), bridge.metrics.observe
        return AccessLog(app, draining, observe, write, settings.trusted_proxies)

    probe = bridge.authentication.probe
    app = App(
        logged(bridge.authentication),
        routes=[
            Route("/health", probe(bridge.probes.health)),
            Route("/readyz", probe(bridge.probes.readyz)),
            Route("/livez", bridge.probes.livez),
            *bridge.metadata,
        ],
        middleware=[Middleware(logged)],
        exception_handlers={HTTPException: _refuse, Exception: _fail},
        lifespan=bridge.lifespan,
    )
    app.state.drain = bridge.drain
    app.state.metrics = bridge.metrics
    app.state.connections = bridge.connections
    app.state.audit = bridge.audit
    return app


class _Bridge:
    """The objects that live as long as the application.

    Parameters:
        settings: the settings of the bridge.

    Errors:
        SettingsError: the token file or the state directory that they name cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        answers = AnswerBudget(settings.unsent_bytes)
        self.connections = Connections(_limits(settings), answers)
        self._settings = settings
        self._upstream_token = UpstreamToken.from_settings(settings)
        self._upstream = Upstream(
            settings.mcp_url,
            token=self._upstream_token,
            connect_timeout_seconds=settings.connect_timeout_seconds,
            max_answer_bytes=settings.max_answer_bytes,
            budget=answers,
        )
        self._monitor = Monitor(settings.check_interval_seconds)
        self._session = Session(self._upstream, settings, self._monitor.record, SessionFile.from_settings(settings))
        self.audit = AuditLog.from_settings(settings)
        self.dispatcher = Dispatcher(self._session, settings, self.audit)
        self._client_sessions = ClientSessions(self._upstream, self._session, self.dispatcher, settings)
        self.probes = Probes(self._session, self.dispatcher, self._monitor)
        self._tokens, self._oauth = Tokens.from_settings(settings), _oauth_tokens(settings, self._end_streams)
        self.metadata: list[Route] = []
        if self._oauth is not None:
            metadata = ResourceMetadata(self._oauth.server, settings.allowed_origins)
            self.metadata = [Route(path, metadata) for path in self._oauth.server.metadata_paths]
        reasons = REFUSALS if self._oauth is None else (*REFUSALS, *OAUTH_REFUSALS)
        refusals = Counter(dict.fromkeys(reasons, 0))
        own = self._client_sessions if settings.session_mode == "per-client" else None
        endpoint = Endpoint(self._session, self.dispatcher, settings, own, self.audit)
        self.authentication = Authentication(endpoint, settings, self._tokens, self._oauth, refusals)
        self.metrics = Metrics(
            settings=settings,
            session=self._session,
            dispatcher=self.dispatcher,
            client_sessions=self._client_sessions,
            streams=endpoint.streams,
            monitor=self._monitor,
            tokens=self._tokens,
            oauth=self._oauth,
            refusals=refusals,
            connections=self.connections,
            gate=endpoint.gate,
            audit=self.audit,
        )

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Starts the objects in the order in which they need each other, and ends them in reverse."""
        async with (
            self.audit or nullcontext(),
            self._upstream_token.watching(),
            self._upstream,
            self._session,
            self.dispatcher,
            self._client_sessions,
            self._monitor.watching(self._session),
            self._tokens.watching(self._end_streams),
            nullcontext() if self._oauth is None else self._oauth.keys.refreshing(),
        ):
            yield
            await self.probes.close()

    async def drain(self) -> None:
        """Takes no more requests and waits for those in flight."""
        self._client_sessions.end_streams()
        await self.dispatcher.drain(self._settings.drain_seconds)

    def _end_streams(self) -> None:
        self._session.listeners.close()
        self._client_sessions.end_streams()


def _oauth_tokens(settings: Settings, on_removal: Callable[[], None]) -> OAuthTokens | None:
    """The access tokens of the identity provider that the settings name; ``None`` if they name none.

    Errors:
        SettingsError: they name one, and what verifies its tokens is not installed.
    """
    if not settings.oauth_issuer:
        return None
    try:
        # joserfc is an extra, and takes time and memory.
        from vestige_bridge.access.oauth_tokens import OAuthTokens  # noqa: PLC0415
        from vestige_bridge.access.provider_keys import ProviderKeys  # noqa: PLC0415
    except ModuleNotFoundError as error:
        problem = f"VESTIGE_BRIDGE_OAUTH_ISSUER: needs {error.name}; pip install 'vestige-bridge[oauth]' brings it."
        raise SettingsError([problem]) from error
    keys = ProviderKeys(settings.oauth_issuer, settings.oauth_jwks_url, fetch)
    return OAuthTokens(ResourceServer(settings), keys, on_removal)


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
