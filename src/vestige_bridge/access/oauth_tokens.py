"""The OAuth access tokens that were verified, and how one is.

Invariants: a token is taken only while the key that signed it is the provider's, and while it is valid. Only verified
tokens that permit something are kept, and so many at most.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from vestige_bridge.access.jwt import Key, Signed
from vestige_bridge.access.oauth import NOTHING, AccessToken, InvalidToken, ResourceServer
from vestige_bridge.access.provider_keys import ProviderKeys
from vestige_bridge.access.token_file import digest_of
from vestige_bridge.errors import KeysUnavailable

MAX_TOKENS: Final = 4_096
"""How many verified tokens are kept; those beyond that are verified again."""


class _Verified(NamedTuple):
    """A token, and the key that signed it."""

    token: AccessToken
    kid: str
    key: Key


class OAuthTokens:
    """The access tokens of an identity provider.

    Parameters:
        server: what a token has to claim.
        keys: the provider's keys.
        on_removal: called when verified tokens are no longer taken because their key is gone.

    Attributes:
        last_used: when one of them last got in, in seconds since 1970; 0 before.
    """

    def __init__(self, server: ResourceServer, keys: ProviderKeys, on_removal: Callable[[], None]) -> None:
        self.last_used = 0.0
        self.server = server
        self.keys = keys
        self._on_removal = on_removal
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        keys.on_removal = self._forget

    @property
    def kept(self) -> int:
        """How many verified tokens are kept."""
        return len(self._verified)

    def find(self, token: bytes) -> AccessToken | None:
        """The token, if it was verified before and is still valid."""
        verified = self._verified.get(digest_of(token))
        if verified is None:
            return None
        now = time.time()
        if verified.token.expires_at <= now:
            del self._verified[verified.token.digest]
            return None
        self.last_used = now
        return verified.token

    async def verify(self, token: bytes) -> AccessToken:
        """Verifies a token, and keeps it unless it permits nothing.

        Errors:
            InvalidToken: it is not valid, or its key is not known.
            KeysUnavailable: no key is known, so nothing can be said about it.
        """
        signed = Signed(token)
        key = await self.keys.find(signed.kid)
        if key is None and not self.keys.known:
            raise KeysUnavailable(
                "No token can be verified now: the signing keys of the provider cannot be fetched.",
                data={"outcome": "not_sent", "retryable": True},
            )
        if key is None:
            raise InvalidToken("unknown_key", "The token is not valid: no known key of the provider signed it.")
        if not key.verifies(signed):
            raise InvalidToken("signature", "The token is not valid: its signature is wrong.")
        now = time.time()
        verified = self.server.admitted(token, signed.claims, now)
        if verified.permissions is NOTHING:
            return verified
        self.last_used = now
        self._verified[verified.digest] = _Verified(verified, signed.kid, key)
        if len(self._verified) > MAX_TOKENS:
            self._verified.popitem(last=False)
        return verified

    def _forget(self) -> None:
        """Forgets the tokens that were signed with a key that is gone."""
        known = self.keys.known
        gone = [digest for digest, it in self._verified.items() if known.get(it.kid) is not it.key]
        for digest in gone:
            del self._verified[digest]
        self._on_removal()
