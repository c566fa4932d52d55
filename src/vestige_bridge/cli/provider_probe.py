"""Checks of the identity provider that do not go through the bridge: its metadata and its signing keys."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from vestige_bridge.access.oauth import RESOURCE_METADATA, keys_url, metadata_urls, signs
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
        audience: the audience that its tokens must have; empty if it is not known.
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
            # The resource in the metadata is not always the audience: see VESTIGE_BRIDGE_OAUTH_AUDIENCE.
            audience = jwks_url = ""
            issuer, scopes = _described(url, timeout_seconds)
        if jwks_url:
            _require_issuer(issuer, timeout_seconds)
        else:
            jwks_url = _keys_url(issuer, timeout_seconds)
        return cls(issuer, audience, scopes, _kids(jwks_url, timeout_seconds))


def _described(url: str, timeout_seconds: float) -> tuple[str, tuple[str, ...]]:
    """The issuer and the scopes in the metadata of a bridge (RFC 9728)."""
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
    return issuer, tuple(map(str, scopes)) if isinstance(scopes, list) else ()


def _first(value: object) -> str:
    return str(value[0]) if isinstance(value, list) and value else ""


def _keys_url(issuer: str, timeout_seconds: float) -> str:
    """The URL of the keys, from the first metadata document that fits, as the bridge finds it."""
    faults: list[Fault] = []
    missing: list[Fault] = []
    for at in metadata_urls(issuer):
        reply = _get(at, timeout_seconds)
        if not (metadata := reply.json() if reply.status == 200 else {}):
            missing.append(Fault(f"{issuer} has no metadata: {at} answers {reply}", _REACH))
            continue
        try:
            return keys_url(metadata, issuer)
        except ValueError as error:
            faults.append(Fault(f"{at}: {error}", _issuer_to_set(metadata, issuer)))
    raise [*faults, *reversed(missing)][0]


def _require_issuer(issuer: str, timeout_seconds: float) -> None:
    """Checks the issuer against its metadata, if it has any: with a URL of the keys, it needs none."""
    for at in metadata_urls(issuer):
        with suppress(Fault):
            reply = _get(at, timeout_seconds)
            named = reply.json().get("issuer") if reply.status == 200 else None
            if named == issuer:
                return
            if isinstance(named, str):
                break
    else:
        return
    raise Fault(f"{at}: its metadata do not name it as the issuer", f"Set {_ISSUER} to {named}.")


def _issuer_to_set(metadata: Mapping[str, Any], issuer: str) -> str:
    named = metadata.get("issuer")
    return f"Set {_ISSUER} to {named}." if isinstance(named, str) and named != issuer else _REACH


def _kids(jwks_url: str, timeout_seconds: float) -> frozenset[str]:
    reply = _get(jwks_url, timeout_seconds)
    listed: Any = reply.json().get("keys")
    keys: list[Mapping[str, Any]] = [it for it in listed if isinstance(it, dict)] if isinstance(listed, list) else []
    kids = frozenset(str(it["kid"]) for it in keys if "kid" in it and signs(it))
    if reply.status != 200 or not kids:
        raise Fault(
            f"{jwks_url} has no signing keys: {reply}", "Correct VESTIGE_BRIDGE_OAUTH_JWKS_URL, or ask the provider."
        )
    return kids


def _get(url: str, timeout_seconds: float) -> HttpReply:
    try:
        return fetch("GET", url, timeout_seconds=timeout_seconds)
    except NoAnswer as error:
        raise Fault(f"{url}: {error}", _REACH) from error
