"""OAuth 2.1 for a resource server: its metadata, and the claims that an access token needs.

Invariants: this module does no I/O. A token with a missing claim, or a claim of the wrong type, is rejected. A
principal of the identity provider has a name that no entry of a token file can have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions
from vestige_bridge.access.record import OAUTH_PREFIX
from vestige_bridge.access.token_file import TOML_SUFFIX, Token, digest_of
from vestige_bridge.errors import EXPIRED
from vestige_bridge.settings import ALL, TOOLS, Settings, parse_secure_url
from vestige_bridge.settings import READ_ONLY as ONLY_READS

LEEWAY_SECONDS: Final = 60.0
"""Maximum difference between the clocks of the bridge and the provider (RFC 7519, section 4.1.4)."""

LONGEST_SECONDS: Final = 86_400.0
"""How long a verified token is accepted before it is verified again."""

RESOURCE_METADATA: Final = "/.well-known/oauth-protected-resource"

INVALID_TOKEN: Final = "invalid_token"  # noqa: S105
INSUFFICIENT_SCOPE: Final = "insufficient_scope"

ALGORITHMS: Final = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""The accepted signature algorithms; all of them verify with a public key."""

_TYPES: Final = frozenset({"at+jwt", "jwt"})
"""The accepted values of ``typ``, if there is one: an access token (RFC 9068, section 2.1), or just a JWT."""

_END_OF_TIME: Final = 1e15
_CONFIRMATION: Final = "cnf"
REALM: Final = 'Bearer realm="vestige-bridge"'


class NotFetched(Exception):
    """A document of the provider could not be fetched; the text is the reason, for the log."""


class InvalidToken(Exception):
    """An access token that is not accepted.

    Parameters:
        reason: the reason as a label of the metrics.
        message: the reason as a sentence for the client.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken(Token):
    """A verified access token.

    Attributes:
        expires_at: the end of its acceptance, in seconds since 1970.
        wider_scope: whether other scopes would permit more.
    """

    expires_at: float
    wider_scope: bool


class ResourceServer:
    """The endpoint as a protected resource, and the checks of its access tokens.

    Parameters:
        settings: the issuer, the audience, and the permissions of each scope.

    Attributes:
        issuer: the identity provider.
        metadata: the protected resource metadata of the endpoint (RFC 9728, section 2).
        metadata_paths: the paths of that document.
    """

    def __init__(self, settings: Settings) -> None:
        self.issuer = settings.oauth_issuer
        self._audience = settings.oauth_audience or settings.oauth_resource
        # A token file in TOML may contain allow-lists, now or after its next change.
        shares_lists = not (settings.maps_tools or settings.auth_token_file.endswith(TOML_SUFFIX))
        self._rights = {scope: _permissions(rights, shares_lists) for scope, rights in settings.oauth_scopes}
        self._scopes = " ".join(self._rights)
        resource = urlsplit(settings.oauth_resource)
        self.metadata_paths = (RESOURCE_METADATA, RESOURCE_METADATA + resource.path)
        self._metadata_url = f"{resource.scheme}://{resource.netloc}{self.metadata_paths[1]}"
        self.metadata: Mapping[str, object] = {
            "resource": settings.oauth_resource,
            "authorization_servers": [self.issuer],
            "scopes_supported": list(self._rights),
            "bearer_methods_supported": ["header"],
            "resource_name": "vestige-bridge",
        }

    def challenge(self, error: str) -> str:
        """The value of ``WWW-Authenticate`` (RFC 6750, section 3; RFC 9728, section 5.1).

        Parameters:
            error: the error code; empty for a request that carries no token.
        """
        spelled = f', error="{error}"' if error else ""
        return f'{REALM}{spelled}, scope="{self._scopes}", resource_metadata="{self._metadata_url}"'

    def admitted(self, token: bytes, claims: Mapping[str, Any], now: float) -> AccessToken:
        """Checks the claims of a token with a verified signature, and maps its scopes to permissions.

        Parameters:
            token: the token.
            claims: its claims.
            now: the time, in seconds since 1970.

        Errors:
            InvalidToken: it is not for this endpoint, or not valid at this time.
        """
        expires_at = check_claims(claims, self.issuer, self._audience, now)
        scopes = scopes_of(claims)
        rights = [permissions for scope, permissions in self._rights.items() if scope in scopes]
        return AccessToken(
            name=principal_of(self.issuer, claims["sub"]),
            digest=digest_of(token),
            permissions=_union(rights),
            expires_at=min(expires_at, now + LONGEST_SECONDS),
            wider_scope=len(rights) < len(self._rights) and not any(not it.limited for it in rights),
        )


NOTHING: Final = Permissions(read_only=True, tools=(), resources=False)
"""The permissions of a token without a mapped scope; they are never used, because it is rejected before."""


def check_header(header: Mapping[str, Any]) -> None:
    """Checks the type, the algorithm and the key id in the header of a token (RFC 7515, section 4.1).

    Errors:
        InvalidToken: with the first member that is not accepted.
    """
    algorithm = header.get("alg")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        raise InvalidToken("algorithm", "The token is not valid: its algorithm is not accepted.")
    kind = header.get("typ")
    if kind is not None and str(kind).lower().removeprefix("application/") not in _TYPES:
        raise InvalidToken("type", "The token is not valid: it is not an access token.")
    if not isinstance(header.get("kid"), str):
        raise InvalidToken("unknown_key", "The token is not valid: it does not name the key that signed it.")


def check_claims(claims: Mapping[str, Any], issuer: str, audience: str, now: float) -> float:
    """Checks the claims of a token (RFC 7519, section 4.1; RFC 9068, section 4).

    Returns:
        The time of its expiry, in seconds since 1970.

    Errors:
        InvalidToken: with the first claim that is not accepted.
    """
    if claims.get("iss") != issuer:
        raise InvalidToken("issuer", "The token is not valid: it is from another issuer.")
    audiences = claims.get("aud")
    if audience not in (audiences if isinstance(audiences, list) else [audiences]):
        raise InvalidToken("audience", "The token is not valid: it is for another audience.")
    expires, begins = _time(claims.get("exp")), _time(claims.get("nbf", 0))
    if expires + LEEWAY_SECONDS <= now:
        raise InvalidToken("expired_token", EXPIRED)
    if begins - LEEWAY_SECONDS > now:
        raise InvalidToken("not_yet_valid", "The token is not valid yet.")
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise InvalidToken("claims", "The token is not valid: it has no subject.")
    if _CONFIRMATION in claims:
        # As a bearer token it would lose the protection that its client has to prove possession of a key.
        raise InvalidToken("claims", "The token is not valid: it is bound to a key; only bearer tokens are accepted.")
    return expires + LEEWAY_SECONDS


def _time(value: object) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _END_OF_TIME:
        return float(value)
    raise InvalidToken("claims", "The token is not valid: its times are missing or are not numbers.")


def scopes_of(claims: Mapping[str, Any]) -> frozenset[str]:
    """The scopes of a token: ``scope`` (RFC 9068, section 2.2.3), or ``scp``, the name that some providers use."""
    value = claims.get("scope", claims.get("scp"))
    if isinstance(value, str):
        return frozenset(value.split(" "))
    return frozenset(it for it in value if isinstance(it, str)) if isinstance(value, list) else frozenset()


def principal_of(issuer: str, subject: str) -> str:
    """The name of a principal of the provider: the same for all its tokens, without personal data."""
    digest = hashlib.sha256(f"{issuer}\n{subject}".encode(errors="surrogatepass")).hexdigest()
    return f"{OAUTH_PREFIX}{digest[:32]}"


def metadata_urls(issuer: str) -> list[str]:
    """The possible URLs of an issuer's metadata: RFC 8414, section 3.1, then OpenID Connect Discovery, both forms."""
    parts = urlsplit(issuer)
    host, path = f"{parts.scheme}://{parts.netloc}", parts.path.rstrip("/")
    return list(
        dict.fromkeys(
            [
                f"{host}/.well-known/oauth-authorization-server{path}",
                f"{host}/.well-known/openid-configuration{path}",
                f"{host}{path}/.well-known/openid-configuration",
            ]
        )
    )


def keys_url(metadata: Mapping[str, Any], issuer: str) -> str:
    """The URL of the signing keys in the metadata of an issuer.

    Errors:
        ValueError: with a sentence that gives the reason.
    """
    if metadata.get("issuer") != issuer:
        raise ValueError("its metadata do not name it as the issuer")
    url = metadata.get("jwks_uri")
    try:
        found = parse_secure_url(url) if isinstance(url, str) else ""
    except ValueError:
        found = ""
    # Only an issuer on loopback may name a key URL on loopback.
    if not found or (issuer.startswith("https:") and not found.startswith("https:")):
        raise ValueError("its metadata contain no https address of its keys")
    return found


def signs(jwk: Mapping[str, Any]) -> bool:
    """Whether a key of a JWK Set is one that signs tokens, by its members (RFC 7517, sections 4.1 to 4.3)."""
    operations = jwk.get("key_ops", ["verify"])
    usable = isinstance(operations, list) and "verify" in operations
    return usable and jwk.get("use", "sig") == "sig" and jwk.get("kty") in ("RSA", "EC", "OKP")


def _permissions(rights: str, shares_lists: bool) -> Permissions:
    if rights == ALL:
        return UNRESTRICTED if shares_lists else Permissions(shares_lists=False)
    if rights == ONLY_READS:
        return READ_ONLY if shares_lists else Permissions(read_only=True, shares_lists=False)
    return Permissions(tools=tuple(sorted(set(rights.removeprefix(TOOLS).split(",")))), shares_lists=False)


def _union(rights: Iterable[Permissions]) -> Permissions:
    """The permissions of several scopes together: the tools of each, and the requests that one of them permits.

    With a read-only scope among them, messages that do not call one of those tools must be read-only.
    """
    rights = list(rights)
    tools = tuple(sorted({tool for it in rights for tool in it.tools or ()}))
    for it in rights:
        if not it.limited:
            return it
    for it in rights:
        if it.read_only:
            return Permissions(read_only=True, also_tools=tools, shares_lists=False) if tools else it
    return Permissions(tools=tools, shares_lists=False) if rights else NOTHING
