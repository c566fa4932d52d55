"""The composition root: routes, the order of the middleware, and the objects with the lifetime of the application."""

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
"""The paths that clients of the HTTP+SSE transport request, which MCP 2025-03-26 replaced."""


class App(Starlette):
    """An application that serves one endpoint directly and routes all other requests.

    Parameters:
        endpoint: serves ``/mcp``.
        options: the options of Starlette.
    """

    def __init__(self, endpoint: ASGIApp, **options: Any) -> None:  # noqa: ANN401
        super().__init__(**options)
        self.router.redirect_slashes = False
        self._endpoint = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves the endpoint, or routes the request."""
        if scope["type"] == "http" and scope["path"] in ENDPOINT_PATHS:
            await self._endpoint(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def build_app(settings: Settings, write: logs.Write = logs.write) -> App:
    """Builds the bridge as an ASGI application; run it with its lifespan.

    ``state.drain`` stops accepting requests and waits for those in flight. ``state.connections`` and ``state.audit``,
    which may be ``None``, are for the server that runs it; ``state.metrics`` is for the metrics application.

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
    """The objects with the lifetime of the application.

    Parameters:
        settings: the settings of the bridge.

    Errors:
        SettingsError: the token file or the state directory in the settings cannot be used.
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
        self.authentication = Authentication(endpoint, settings, self._tokens, self._oauth, refusals, audit=self.audit)
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
        """Starts the objects in the order of their dependencies, and ends them in reverse."""
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
        """Stops accepting requests, and waits for those in flight."""
        self._client_sessions.end_streams()
        await self.dispatcher.drain(self._settings.drain_seconds)

    def _end_streams(self) -> None:
        self._session.listeners.close()
        self._client_sessions.end_streams()


def _oauth_tokens(settings: Settings, on_removal: Callable[[], None]) -> OAuthTokens | None:
    """The verifier of the identity provider's access tokens; ``None`` without a provider in the settings.

    Errors:
        SettingsError: there is a provider, but the package for its tokens is not installed.
    """
    if not settings.oauth_issuer:
        return None
    try:
        # joserfc is optional, and its import takes time and memory.
        from vestige_bridge.access.oauth_tokens import OAuthTokens  # noqa: PLC0415
        from vestige_bridge.access.provider_keys import ProviderKeys  # noqa: PLC0415
    except ModuleNotFoundError as error:
        how = "install the bridge with its extra oauth, as docs/sign-in.md shows"
        package = str(error.name).partition(".")[0]
        problem = f"VESTIGE_BRIDGE_OAUTH_ISSUER: {package} is missing; {how}."
        raise SettingsError([problem]) from error
    keys = ProviderKeys(settings.oauth_issuer, settings.oauth_jwks_url, fetch)
    return OAuthTokens(ResourceServer(settings), keys, on_removal)


def _limits(settings: Settings) -> Limits:
    """The limits for client connections; file descriptors for upstream connections are reserved."""
    # A cancelled request keeps its connection for a while, and a client's own session also has a stream.
    for_upstream = 2 * settings.upstream_concurrency
    if settings.session_mode == "per-client":
        for_upstream += 2 * settings.max_client_sessions
    return Limits(
        connections=connection_limit(for_upstream),
        keep_alive_seconds=settings.keep_alive_seconds,
        send_seconds=settings.send_timeout_seconds,
    )


async def _refuse(request: Request, refusal: Exception) -> Response:
    """The JSON error for a path or a method that is not served."""
    error: BridgeError = NotFound("There is nothing here; POST a JSON-RPC message to /mcp.")
    if request.url.path in _HTTP_SSE_PATHS:
        error = NotFound("The HTTP+SSE transport is not served; use Streamable HTTP: POST JSON-RPC messages to /mcp.")
    if isinstance(refusal, HTTPException) and refusal.status_code == 405:
        error = MethodNotAllowed("This path takes GET.", headers=refusal.headers)
    return error_response(error)


async def _fail(request: Request, failure: Exception) -> Response:
    """The answer to a request that failed because of a bug."""
    return error_response(InternalError("The bridge failed; see its log."))
