"""Signed JWTs (RFC 7515, RFC 7519), with joserfc: the only module that imports it.

Invariants: only asymmetric algorithms are accepted, and the key decides which, not the token. A key is selected among
the provider's keys by its ``kid``; keys and key addresses in a token are ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey, import_key
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact

from vestige_bridge.access.oauth import ALGORITHMS, InvalidToken, check_header, signs

MAX_TOKEN_BYTES: Final = 16_384
"""Maximum size of a token; one with the groups of a large company has a few thousand bytes."""

MAX_KEYS: Final = 64

_MEMBERS: Final = ("kty", "kid", "alg", "use", "n", "e", "crv", "x", "y")
"""The members that are read from a key; none of them is private."""

_LEAST_MODULUS_CHARACTERS: Final = 342
"""The length of 2048 bits in base64url (RFC 7518, section 3.3)."""

_ALGORITHMS: Final[Mapping[tuple[str, str], frozenset[str]]] = {
    ("RSA", ""): frozenset({"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}),
    ("EC", "P-256"): frozenset({"ES256"}),
    ("EC", "P-384"): frozenset({"ES384"}),
    ("EC", "P-521"): frozenset({"ES512"}),
    ("OKP", "Ed25519"): frozenset({"EdDSA", "Ed25519"}),
}
"""The accepted algorithms, by the type of key and its curve."""

_segments = re.compile(rb"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_MALFORMED: Final = "The token is not valid: it is not a signed JWT."


class _Registry(JWSRegistry):
    """joserfc's rules for headers, with a higher limit for the certificates that some providers include."""

    max_header_length = MAX_TOKEN_BYTES

    def __init__(self) -> None:
        super().__init__(algorithms=sorted(ALGORITHMS), strict_check_header=False)

    def get_alg(self, name: str) -> Any:  # noqa: ANN401
        """Returns an algorithm; the key decides whether it is allowed."""
        return self.algorithms[name]


_REGISTRY: Final = _Registry()


class Key:
    """A public key of the provider.

    Parameters:
        members: the JWK (RFC 7517, section 4), without private members.

    Attributes:
        members: the same.
        algorithms: the algorithms that it may be used with.

    Errors:
        ValueError, JoseError: it is not a signing key, or it is too short.
    """

    def __init__(self, members: Mapping[str, str]) -> None:
        self.members = members
        self.algorithms = _ALGORITHMS[members["kty"], members.get("crv", "")]
        if "alg" in members:
            self.algorithms &= {members["alg"]}
        if len(members.get("n", "")) < _LEAST_MODULUS_CHARACTERS and members["kty"] == "RSA":
            raise ValueError
        self._key: RSAKey | ECKey | OKPKey = import_key(dict(members))  # type: ignore[assignment]
        # Otherwise the first use would build it, and a point that is not on its curve would fail only then.
        _ = self._key.public_key

    def verifies(self, signed: Signed) -> bool:
        """Whether this key signed the token."""
        if signed.algorithm not in self.algorithms:
            return False
        try:
            return validate_compact(signed.signature, self._key, registry=_REGISTRY)
        except (JoseError, ValueError):
            return False


class Signed:
    """A JWT whose signature is not verified yet.

    Parameters:
        token: the token.

    Attributes:
        kid: the id of the signing key, as the token names it.
        algorithm: the signature algorithm, as the token names it.
        signature: for ``Key.verifies``.

    Errors:
        InvalidToken: it is not a signed JWT, or it cannot be accepted.
    """

    def __init__(self, token: bytes) -> None:
        if len(token) > MAX_TOKEN_BYTES:
            raise InvalidToken("malformed", f"The token is not valid: it has more than {MAX_TOKEN_BYTES} bytes.")
        if not _segments(token):
            raise InvalidToken("malformed", _MALFORMED)
        try:
            self.signature: CompactSignature = extract_compact(token, registry=_REGISTRY)
            header = self.signature.headers()
            check_header(header)
            _REGISTRY.check_header(header)
        except (JoseError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidToken("malformed", _MALFORMED) from error
        self.kid: str = header["kid"]
        self.algorithm: str = header["alg"]

    @property
    def claims(self) -> Mapping[str, Any]:
        """The claims of the token.

        Errors:
            InvalidToken: they are not a JSON object.
        """
        try:
            claims = json.loads(self.signature.payload or b"")
        except (ValueError, RecursionError) as error:
            raise InvalidToken("malformed", _MALFORMED) from error
        if not isinstance(claims, dict):
            raise InvalidToken("malformed", _MALFORMED)
        return claims


def read_keys(document: bytes, before: Mapping[str, Key]) -> dict[str, Key]:
    """The signing keys of a JWK Set (RFC 7517, section 5), by id; the first key of an id counts.

    Parameters:
        document: the set.
        before: the previous keys; an unchanged key stays the same object.

    Errors:
        ValueError: it is not a JWK Set.
    """
    try:
        listed = json.loads(document)["keys"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("its keys are not a JWK Set") from error
    if not isinstance(listed, list):
        raise ValueError("its keys are not a JWK Set")  # noqa: TRY004 - a document that the provider sent
    keys: dict[str, Key] = {}
    for jwk in listed[:MAX_KEYS]:
        if not isinstance(jwk, dict) or not signs(jwk):
            continue
        members = {name: jwk[name] for name in _MEMBERS if isinstance(jwk.get(name), str)}
        kid = members.get("kid")
        if kid is None or kid in keys:
            continue
        known = before.get(kid)
        try:
            keys[kid] = known if known is not None and known.members == members else Key(members)
        except (JoseError, UnsupportedAlgorithm, ValueError, KeyError, TypeError, OverflowError):
            continue
    return keys
