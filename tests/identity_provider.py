"""An identity provider for tests: its keys are real, and what it serves and signs is what a test says."""

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
    """The key of that id; all tests share it, as making one takes its time."""
    parameters: Any = {"kid": kid, "use": "sig"}
    if kind == "RSA":
        return RSAKey.generate_key(int(size), parameters)
    return OKPKey.generate_key("Ed25519", parameters) if kind == "OKP" else ECKey.generate_key(str(size), parameters)


def public(*keys: PrivateKey, **members: str) -> dict[str, Any]:
    """The JWK Set of some keys."""
    return {"keys": [{**it.as_dict(private=False), **members} for it in keys]}


def sign(header: Mapping[str, Any], claims: Mapping[str, Any] | bytes, by: PrivateKey) -> str:
    """A signed JWT, with whatever header and claims."""
    registry = JWSRegistry(algorithms=list(JWSRegistry.algorithms), strict_check_header=False)
    payload = claims if isinstance(claims, bytes) else json.dumps(claims)
    return serialize_compact(dict(header), payload, by, registry=registry)


class IdentityProvider:
    """A provider that signs what a test wants.

    Attributes:
        url: its address.
        issuer: what it calls itself.
        keys: the keys that it shows.
        signs_with: the key that it signs with.
        asked: how often each of its paths was asked for.
        metadata: what its metadata say besides, or instead; ``None`` for a member leaves it out.
        serves: at which well-known name it serves them.
        away: the HTTP status of all that it answers instead; 0 for none.
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
        self.app = web.Application()
        self.app.router.add_get("/{path:.*}", self._answer)

    @asynccontextmanager
    async def serving(self, path: str = "") -> AsyncIterator[IdentityProvider]:
        """The provider, once it listens; its issuer has that path."""
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
        return web.Response(status=404)

    def rotate(self, *kids: str) -> None:
        """Shows these keys from now on, and signs with the last."""
        self.keys = [key(kid) for kid in kids]
        self.signs_with = self.keys[-1]

    def claims(self, **claims: Any) -> dict[str, Any]:
        """The claims of a good token, with some that differ; ``None`` leaves one out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": AUDIENCE, "sub": "alice", "exp": now + 600, "iat": now}
        good |= {"scope": "vestige.write", "client_id": "tests", "jti": "1"}
        return {name: value for name, value in (good | claims).items() if value is not None}

    def token(self, header: Mapping[str, Any] | None = None, by: PrivateKey | None = None, **claims: Any) -> str:
        """A token, good but for what is said; ``None`` leaves a member of its header out."""
        signing = by or self.signs_with
        whole = {"alg": "ES256", "kid": signing.kid, "typ": "at+jwt", **(header or {})}
        return sign({name: it for name, it in whole.items() if it is not None}, self.claims(**claims), signing)

    def environment(self, upstream: str, **variables: str) -> dict[str, str]:
        """The variables of a bridge that takes its tokens and no others."""
        return environment(upstream, **self.variables(**variables))

    def variables(self, **variables: str) -> dict[str, str]:
        """The same without where upstream is."""
        own = {"VESTIGE_AUTH_TOKEN": "", "PUBLIC_URL": PUBLIC_URL, "OAUTH_ISSUER": self.issuer, "OAUTH_SCOPES": SCOPES}
        return {**own, **variables}
