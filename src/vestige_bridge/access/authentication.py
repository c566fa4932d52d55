"""Authentication: a request without a token never passes.

Invariant: closed by default. Nothing here reads a body, and what is guarded is guarded for every method and
every spelling of the path that leads to it, because authentication stands behind the router and not before it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vestige_bridge.access.record import CONNECTION, AccessRecord
from vestige_bridge.access.responses import error_response
from vestige_bridge.access.tokens import SHORT_CHARACTERS, Tokens
from vestige_bridge.errors import EXPIRED, AuthenticationError, AuthenticationNotConfigured, BridgeError, Forbidden
from vestige_bridge.http import headers
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

REFUSALS: Final = ("no_token", "wrong_token", "expired_token", "origin", "not_configured")
"""Why a request does not get in."""

_REALM: Final = 'Bearer realm="vestige-bridge"'
_NOT_CONFIGURED: Final = (
    "Authentication not configured: set VESTIGE_AUTH_TOKEN to a token or VESTIGE_AUTH_TOKEN_FILE to a file of tokens, "
    "or VESTIGE_ALLOW_ANONYMOUS=true to let everybody in."
)

Endpoint = Callable[[Request], Awaitable[Response]]


class Authentication:
    """ASGI middleware in front of the endpoint: a request passes only with a valid bearer token (RFC 6750).

    Who passes is noted in the request's access record: the name of the token, and what it may do.

    Parameters:
        app: the endpoint.
        settings: whether nobody needs a token, and the origins whose pages may call.
        tokens: the valid tokens.
        refusals: counts who does not get in, by reason.
    """

    def __init__(self, app: ASGIApp, settings: Settings, tokens: Tokens, refusals: Counter[str]) -> None:
        self._app = app
        self._tokens = tokens
        self._refusals = refusals
        self._anonymous = settings.allow_anonymous
        self._origins = settings.allowed_origins
        if self._anonymous:
            log.warning("VESTIGE_ALLOW_ANONYMOUS is true: everybody who can reach this port may use the memory")
        elif not tokens:
            log.error(_NOT_CONFIGURED)
        elif tokens.short:
            log.warning(
                "A token of %s has fewer than %d characters and can be guessed; use `openssl rand -hex 32`",
                ", ".join(tokens.short),
                SHORT_CHARACTERS,
            )
        tokens.log_expired()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or answers 401, 403 or 500."""
        record: AccessRecord = scope["state"]["access"]
        origin = record.headers.get(headers.ORIGIN)
        try:
            self._require_configured()
            if origin is not None:
                if not headers.origin_allowed(record.headers, self._origins):
                    self._refusals["origin"] += 1
                    raise Forbidden("Pages of this origin may not call the bridge; see VESTIGE_BRIDGE_ALLOWED_ORIGINS.")
                send = _with_cors(send, origin)
                if scope["method"] == "OPTIONS":
                    return await _allow_preflight(send)
            self._admit(record)
            if (connection := scope.get("extensions", {}).get(CONNECTION)) is not None and record.principal is not None:
                connection.authenticated(record.principal)
        except BridgeError as error:
            return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)

    def probe(self, answer: Endpoint) -> Endpoint:
        """A probe that needs no token and still shows that nobody said who may come in."""

        async def endpoint(request: Request) -> Response:
            try:
                self._require_configured()
            except AuthenticationNotConfigured as error:
                return error_response(error)
            return await answer(request)

        return endpoint

    def _require_configured(self) -> None:
        if not self._tokens and not self._anonymous:
            self._refusals["not_configured"] += 1
            raise AuthenticationNotConfigured(_NOT_CONFIGURED)

    def _admit(self, record: AccessRecord) -> None:
        """Notes who sends the request, by the token that it carries, and what that one may do.

        Errors:
            AuthenticationError: it carries none, more than one, a wrong one, or one that has expired.
        """
        if self._anonymous:
            record.principal = "anonymous"
            return
        token = headers.bearer_token(record.headers)
        if token is None:
            self._refusals["no_token"] += 1
            raise AuthenticationError(
                "A token is needed: send one header `Authorization: Bearer <token>`.",
                headers={"www-authenticate": _REALM},
            )
        found = self._tokens.find(token)
        if found is None or (found.expires_at is not None and found.expired(time.time())):
            self._refusals["wrong_token" if found is None else "expired_token"] += 1
            raise AuthenticationError(
                "The token is not valid." if found is None else EXPIRED,
                headers={"www-authenticate": f'{_REALM}, error="invalid_token"'},
            )
        record.principal, record.permissions = found.name, found.permissions


def _with_cors(send: Send, origin: bytes) -> Send:
    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers.cors_headers(origin)]
        await send(message)

    return send_with_cors


async def _allow_preflight(send: Send) -> None:
    """Answers the question that a browser asks before it calls (Fetch Standard, section 4.8)."""
    raw = [(name.encode(), value.encode()) for name, value in headers.PREFLIGHT_HEADERS.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
