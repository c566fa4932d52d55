"""Authentication: requests without a valid token are rejected.

Invariant: closed by default. This module reads no request body. A protected endpoint is protected for each method and
each spelling of its path, because authentication runs behind the router and not before it. With OAuth, the form of a
token decides who verifies it: a JWT is never looked up in the token file.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.oauth import INSUFFICIENT_SCOPE, INVALID_TOKEN, NOTHING, REALM, InvalidToken, ResourceServer
from vestige_bridge.access.record import CONNECTION, AccessRecord
from vestige_bridge.access.responses import error_response, json_response
from vestige_bridge.access.tokens import SHORT_CHARACTERS, Tokens
from vestige_bridge.errors import (
    EXPIRED,
    AuthenticationError,
    AuthenticationNotConfigured,
    BridgeError,
    Forbidden,
    KeysUnavailable,
    MethodNotAllowed,
)
from vestige_bridge.http import headers
from vestige_bridge.settings import Settings, has_jwt_form

if TYPE_CHECKING:
    from vestige_bridge.access.oauth_tokens import OAuthTokens

log = logging.getLogger(__name__)

REFUSALS: Final = ("no_token", "wrong_token", "expired_token", "origin", "not_configured")
"""The reasons why a request is rejected."""

OAUTH_REFUSALS: Final = (
    *("malformed", "algorithm", "type", "unknown_key", "signature", "issuer", "audience", "not_yet_valid", "claims"),
    *("scope", "no_keys"),
)
"""The additional reasons for an OAuth access token."""

_NOT_CONFIGURED: Final = (
    "Authentication not configured: set VESTIGE_AUTH_TOKEN to a token or VESTIGE_AUTH_TOKEN_FILE to a file of tokens, "
    "VESTIGE_BRIDGE_OAUTH_ISSUER to your identity provider, or VESTIGE_ALLOW_ANONYMOUS=true to let everybody in."
)

Endpoint = Callable[[Request], Awaitable[Response]]


class Authentication:
    """ASGI middleware in front of the endpoint: a request passes only with a valid bearer token (RFC 6750).

    Stores the principal, which is the name of the token, and its permissions in the request's access record.

    Parameters:
        app: the endpoint.
        settings: whether anonymous access is allowed, and the allowed origins.
        tokens: the valid tokens.
        oauth: the access tokens of an identity provider; ``None`` for none.
        refusals: counts rejected requests by reason.
        audit: the audit log; ``None`` for none.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        tokens: Tokens,
        oauth: OAuthTokens | None,
        refusals: Counter[str],
        *,
        audit: AuditLog | None,
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._oauth = oauth
        self._refusals = refusals
        self._audit = audit
        self._anonymous = settings.allow_anonymous
        self._origins = settings.allowed_origins
        if self._anonymous:
            log.warning("VESTIGE_ALLOW_ANONYMOUS is true: everybody who can reach this port may use the memory")
        elif not tokens and oauth is None:
            log.error(_NOT_CONFIGURED)
        elif tokens.short:
            log.warning(
                "A token of %s has fewer than %d characters and can be guessed; use `openssl rand -hex 32`",
                ", ".join(tokens.short),
                SHORT_CHARACTERS,
            )
        tokens.log_expired()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Calls the endpoint, or answers 401, 403, 500 or 503."""
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
            if (jwt := self._admit(record)) is not None:
                await self._admit_verified(record, jwt)
            if record.access_token is not None and record.access_token.wider_scope:
                send = self._with_wider_scope(send)
            if (connection := scope.get("extensions", {}).get(CONNECTION)) is not None and record.principal is not None:
                connection.authenticated(record.principal)
        except BridgeError as error:
            return await error_response(error)(scope, receive, send)
        await self._app(scope, receive, send)

    def probe(self, answer: Endpoint) -> Endpoint:
        """A probe that needs no token, but fails while authentication is not configured."""

        async def endpoint(request: Request) -> Response:
            try:
                self._require_configured()
            except AuthenticationNotConfigured as error:
                return error_response(error)
            return await answer(request)

        return endpoint

    def _require_configured(self) -> None:
        if not self._tokens and not self._anonymous and self._oauth is None:
            self._refusals["not_configured"] += 1
            raise AuthenticationNotConfigured(_NOT_CONFIGURED)

    def _admit(self, record: AccessRecord) -> bytes | None:
        """Sets the principal and its permissions from the request's token.

        Returns:
            The token, if it is an OAuth access token that has to be verified first; otherwise ``None``.

        Errors:
            AuthenticationError: there is no token, more than one, an invalid one, or an expired one.
        """
        if self._anonymous:
            record.principal = "anonymous"
            return None
        token = headers.bearer_token(record.headers)
        if token is None:
            self._refusals["no_token"] += 1
            raise AuthenticationError(
                "A token is needed: send one header `Authorization: Bearer <token>`.",
                headers={"www-authenticate": self._challenge()},
            )
        if self._oauth is not None and has_jwt_form(token):
            if (verified := self._oauth.find(token)) is None:
                return token
            record.principal, record.permissions = verified.name, verified.permissions
            record.access_token = verified
            return None
        found = self._tokens.find(token)
        if found is None or (found.expires_at is not None and found.expired(time.time())):
            self._refusals["wrong_token" if found is None else "expired_token"] += 1
            raise AuthenticationError(
                "The token is not valid." if found is None else EXPIRED,
                headers={"www-authenticate": self._challenge(INVALID_TOKEN)},
            )
        record.principal, record.permissions = found.name, found.permissions
        return None

    async def _admit_verified(self, record: AccessRecord, jwt: bytes) -> None:
        """Does the same with an OAuth access token that is not in the cache.

        Errors:
            AuthenticationError: it is not valid.
            Forbidden: none of its scopes permits anything.
            KeysUnavailable: it cannot be verified now.
        """
        if self._oauth is None:
            raise RuntimeError("OAuth is not configured")
        try:
            token = await self._oauth.verify(jwt)
        except InvalidToken as error:
            self._refusals[error.reason] += 1
            raise AuthenticationError(
                error.message, headers={"www-authenticate": self._challenge(INVALID_TOKEN)}
            ) from error
        except KeysUnavailable:
            self._refusals["no_keys"] += 1
            raise
        record.principal = token.name
        if token.permissions is NOTHING:
            self._refusals["scope"] += 1
            refusal = Forbidden(
                "The token has none of the scopes that permit anything here.",
                headers={"www-authenticate": self._challenge(INSUFFICIENT_SCOPE)},
            )
            if self._audit is not None:
                self._audit.refused_unread(record, refusal)
            raise refusal
        record.permissions, record.access_token = token.permissions, token

    def _challenge(self, error: str = "") -> str:
        """The challenge that names the authentication scheme (RFC 6750, section 3)."""
        if self._oauth is not None:
            return self._oauth.server.challenge(error)
        return f'{REALM}, error="{error}"' if error else REALM

    def _with_wider_scope(self, send: Send) -> Send:
        """Adds the scopes that would permit more to a 403 (MCP 2025-11-25, basic/authorization)."""
        challenge = self._challenge(INSUFFICIENT_SCOPE).encode()

        async def send_with_scope(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 403:
                message["headers"] = [*message.get("headers", []), (b"www-authenticate", challenge)]
            await send(message)

        return send_with_scope


class ResourceMetadata:
    """ASGI application with the protected resource metadata of the endpoint (RFC 9728). It needs no token.

    Parameters:
        server: the source of the metadata.
        origins: the origins whose pages may read them.
    """

    def __init__(self, server: ResourceServer, origins: frozenset[str]) -> None:
        self._server = server
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers with the document."""
        record: AccessRecord = scope["state"]["access"]
        origin = record.headers.get(headers.ORIGIN)
        if origin is not None and headers.origin_allowed(record.headers, self._origins):
            send = _with_cors(send, origin)
            if scope["method"] == "OPTIONS":
                return await _allow_preflight(send)
        answer = json_response(self._server.metadata)
        if scope["method"] not in ("GET", "HEAD"):
            answer = error_response(MethodNotAllowed("This path takes GET.", headers={"allow": "GET, HEAD"}))
        await answer(scope, receive, send)


def _with_cors(send: Send, origin: bytes) -> Send:
    async def send_with_cors(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *headers.cors_headers(origin)]
        await send(message)

    return send_with_cors


async def _allow_preflight(send: Send) -> None:
    """Answers a CORS preflight request (Fetch Standard, section 4.8)."""
    raw = [(name.encode(), value.encode()) for name, value in headers.PREFLIGHT_HEADERS.items()]
    await send({"type": "http.response.start", "status": 204, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
