"""Checks of the identity provider that do not go through the bridge: its metadata and its signing keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from vestige_bridge.access.oauth import RESOURCE_METADATA, keys_url, metadata_urls
from vestige_bridge.cli.http_client import HttpReply, NoAnswer, fetch
from vestige_bridge.cli.upstream_probe import Fault
from vestige_bridge.settings import Settings, parse_secure_url

_ISSUER = "VESTIGE_BRIDGE_OAUTH_ISSUER"
_REACH = f"Correct {_ISSUER}, or check that the machine of the bridge can connect to the provider."


@dataclass(frozen=True, slots=True)
class Provider:
    """An identity provider that can be reached.

    Attributes:
        issuer: its issuer identifier.
        audience: the audience that its tokens must have.
        scopes: the scopes that permit something.
        kids: the ids of its keys.
    """

    issuer: str
    audience: str
    scopes: tuple[str, ...]
    kids: frozenset[str]

    @classmethod
    def of(cls, settings: Settings | None, url: str, timeout_seconds: float) -> Self:
        """Reads the metadata and the keys of a bridge's provider.

        Parameters:
            settings: the settings of the bridge; ``None`` to read the metadata of the bridge instead.
            url: the URL of the bridge.
            timeout_seconds: how long a connection, and then each answer, may take.

        Errors:
            Fault: it does not answer, or its answer is not valid.
        """
        if settings is not None and settings.oauth_issuer:
            issuer, jwks_url = settings.oauth_issuer, settings.oauth_jwks_url
            audience = settings.oauth_audience or settings.oauth_resource
            scopes = tuple(scope for scope, _ in settings.oauth_scopes)
        else:
            issuer, audience, scopes = _described(url, timeout_seconds)
            jwks_url = ""
        jwks_url = jwks_url or _keys_url(issuer, timeout_seconds)
        return cls(issuer, audience, scopes, _kids(jwks_url, timeout_seconds))


def _described(url: str, timeout_seconds: float) -> tuple[str, str, tuple[str, ...]]:
    """The issuer, the resource and the scopes in the metadata of a bridge (RFC 9728)."""
    parts = urlsplit(url)
    at = f"{parts.scheme}://{parts.netloc}{RESOURCE_METADATA}{parts.path}/mcp"
    reply = _get(at, timeout_seconds)
    if reply.status != 200:
        raise Fault(f"the bridge accepts no OAuth tokens: {at} answers {reply}", f"Set {_ISSUER} where it runs.")
    metadata = reply.json()
    try:
        issuer = parse_secure_url(_first(metadata.get("authorization_servers")))
    except ValueError:
        raise Fault(f"{at} names no issuer", "Check the proxies in front of the bridge.") from None
    scopes = metadata.get("scopes_supported")
    return issuer, str(metadata.get("resource")), tuple(map(str, scopes)) if isinstance(scopes, list) else ()


def _first(value: object) -> str:
    return str(value[0]) if isinstance(value, list) and value else ""


def _keys_url(issuer: str, timeout_seconds: float) -> str:
    """The URL of the keys, from the first metadata document that exists."""
    for at in metadata_urls(issuer):
        reply = _get(at, timeout_seconds)
        if reply.status == 200:
            break
    else:
        raise Fault(f"{issuer} has no metadata: {at} answers {reply}", _REACH)
    metadata = reply.json()
    try:
        return keys_url(metadata, issuer)
    except ValueError as error:
        named = metadata.get("issuer")
        wanted = f"Set {_ISSUER} to {named}." if isinstance(named, str) and named != issuer else _REACH
        raise Fault(f"{at}: {error}", wanted) from error


def _kids(jwks_url: str, timeout_seconds: float) -> frozenset[str]:
    reply = _get(jwks_url, timeout_seconds)
    listed: Any = reply.json().get("keys")
    keys: list[Mapping[str, Any]] = [it for it in listed if isinstance(it, dict)] if isinstance(listed, list) else []
    kids = frozenset(str(it["kid"]) for it in keys if "kid" in it)
    if reply.status != 200 or not kids:
        raise Fault(f"{jwks_url} has no keys: {reply}", "Correct VESTIGE_BRIDGE_OAUTH_JWKS_URL, or ask the provider.")
    return kids


def _get(url: str, timeout_seconds: float) -> HttpReply:
    try:
        return fetch("GET", url, timeout_seconds=timeout_seconds)
    except NoAnswer as error:
        raise Fault(f"{url}: {error}", _REACH) from error
