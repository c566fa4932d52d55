"""An identity provider for tests: its keys are real, and tests set its documents and tokens."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry, serialize_compact

from harness import environment

PrivateKey = RSAKey | ECKey | OKPKey | OctKey

PUBLIC_URL = "https://vestige.example.com"
AUDIENCE = f"{PUBLIC_URL}/mcp"
SCOPES = "vestige.read=read-only;vestige.write=all"


@cache
def key(kid: str, kind: str = "EC", size: str | int = "P-256") -> PrivateKey:
    """Returns the key with that id; all tests share it, because generating a key is slow."""
    parameters: Any = {"kid": kid, "use": "sig"}
    if kind == "RSA":
        return RSAKey.generate_key(int(size), parameters)
    return OKPKey.generate_key("Ed25519", parameters) if kind == "OKP" else ECKey.generate_key(str(size), parameters)


def public(*keys: PrivateKey, **members: str) -> dict[str, Any]:
    """Returns the JWK Set of these keys."""
    return {"keys": [{**it.as_dict(private=False), **members} for it in keys]}


def sign(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, by: PrivateKey) -> str:
    """Returns a signed JWT with any header and claims."""
    registry = JWSRegistry(algorithms=list(JWSRegistry.algorithms), strict_check_header=False)
    payload = claims if isinstance(claims, bytes) else json.dumps(claims)
    return serialize_compact(dict(header), payload, by, registry=registry)


class IdentityProvider:
    """A provider whose metadata, keys and tokens a test sets.

    Attributes:
        url: the address of the provider.
        issuer: its issuer identifier.
        keys: the keys in its JWK Set.
        signs_with: the key that signs its tokens.
        asked: the paths of all requests, in order.
        metadata: members that are added to the metadata or replace them; ``None`` removes a member.
        serves: the path of the metadata.
        away: the HTTP status of every response; 0 for normal responses.
    """

    def __init__(self) -> None:
        self.url = ""
        self.issuer = ""
        self.keys: list[PrivateKey] = [key("one")]
        self.signs_with: PrivateKey = self.keys[0]
        self.asked: list[str] = []
        self.metadata: dict[str, Any] = {}
        self.serves = "/.well-known/oauth-authorization-server"
        self.away = 0
        self.jwks: bytes | None = None
        self.page: bytes | None = None
        self.app = web.Application()
        self.app.router.add_get("/{path:.*}", self._answer)

    @asynccontextmanager
    async def serving(self, path: str = "") -> AsyncIterator[IdentityProvider]:
        """Yields the provider once it listens; its issuer has that path."""
        async with TestServer(self.app, host="127.0.0.1") as server:
            self.url = str(server.make_url("")).rstrip("/")
            self.issuer = self.url + path
            yield self

    async def _answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if self.away:
            return web.Response(status=self.away, headers={"Location": f"{self.url}/jwks"}, text="away")
        if request.path == "/jwks":
            return web.Response(body=json.dumps(public(*self.keys)).encode() if self.jwks is None else self.jwks)
        if request.path == self.serves:
            members = {"issuer": self.issuer, "jwks_uri": f"{self.url}/jwks", **self.metadata}
            return web.json_response({name: value for name, value in members.items() if value is not None})
        if self.page is not None:
            return web.Response(body=self.page, content_type="text/html")
        return web.Response(status=404)

    def rotate(self, *kids: str) -> None:
        """Replaces the keys; new tokens are signed with the last one."""
        self.keys = [key(kid) for kid in kids]
        self.signs_with = self.keys[-1]

    def claims(self, **claims: Any) -> dict[str, Any]:
        """Returns the claims of a valid token with these changes; ``None`` removes a claim."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now}
        good |= {"scope": "vestige.write", "client_id": "tests", "jti": "1"}
        return {name: value for name, value in (good | claims).items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, by: PrivateKey | None = None, **claims: Any) -> str:
        """Returns a valid token with these changes; ``None`` removes a member of the header or a claim."""
        signing = by or self.signs_with
        whole = {"alg": "ES256", "kid": signing.kid, "typ": "at+jwt", **(header or {})}
        return sign({name: it for name, it in whole.items() if it is not None}, self.claims(**claims), signing)

    def environment(self, upstream: str, **variables: str) -> dict[str, str]:
        """Returns the environment of a bridge that accepts only tokens of this provider."""
        return environment(upstream, **self.variables(**variables))

    def variables(self, **variables: str) -> dict[str, str]:
        """Returns only the variables that make a bridge accept the tokens of this provider and no others."""
        own = {"VESTIGE_AUTH_TOKEN": "", "PUBLIC_URL": PUBLIC_URL, "OAUTH_ISSUER": self.issuer, "OAUTH_SCOPES": SCOPES}
        return {**own, **variables}
