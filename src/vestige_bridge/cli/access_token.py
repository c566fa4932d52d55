"""The claims of an OAuth access token, and a check of them without its signature."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Container, Mapping
from typing import Any

from vestige_bridge.access.oauth import InvalidToken, check_claims, check_header, scopes_of
from vestige_bridge.logs import timestamp

_NAMES = {"algorithm": "alg", "type": "typ", "unknown_key": "kid", "issuer": "iss", "audience": "aud"}
"""The member of a token that a reason refers to, where its value helps the user."""


def first_misfit(token: str, issuer: str, audience: str, kids: Container[str]) -> str:
    """The first reason why the bridge would reject a token, with the value; empty if the claims show none.

    Parameters:
        token: the token.
        issuer: the issuer that the bridge accepts.
        audience: the audience that tokens must have; empty if it is not known.
        kids: the ids of the issuer's keys.
    """
    try:
        header, claims = (_members(part) for part in token.split(".")[:2])
    except ValueError:
        return "the token is not a signed JWT"
    values: Mapping[str, Any] = {**header, **claims}
    try:
        check_header(header)
        if header["kid"] not in kids:
            raise InvalidToken("unknown_key", "the issuer has no key of that id.")
        check_claims(claims, issuer, audience or _first(claims.get("aud")), time.time())
    except InvalidToken as error:
        if error.reason == "expired_token":
            return f"the token has expired ({timestamp(float(claims['exp']))})"
        said = error.message.removeprefix("The token is not valid: ").rstrip(".")
        name, wanted = _NAMES.get(error.reason), {"issuer": issuer, "audience": audience}.get(error.reason)
        shown = "" if name is None else f" ({name} is {json.dumps(values.get(name))}"
        return f"{said}{shown}; it must be {wanted})" if wanted else f"{said}{shown})" if shown else said
    return ""


def _first(audience: object) -> str:
    """An audience of a token; empty if it has none."""
    one = audience[0] if isinstance(audience, list) and audience else audience
    return one if isinstance(one, str) else ""


def scopes_in(token: str) -> list[str]:
    """The scopes of a token that is a JWT."""
    return sorted(scopes_of(_members(token.split(".")[1])))


def _members(part: str) -> Mapping[str, Any]:
    """A part of a JWT (RFC 7515, section 3.1).

    Errors:
        ValueError: it is not a JSON object in base64url.
    """
    value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return dict(value) if isinstance(value, dict) else {}
