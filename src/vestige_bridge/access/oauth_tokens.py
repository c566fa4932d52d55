"""The cache of verified OAuth access tokens, and their verification.

Invariants: a token is accepted only while it is valid and the provider publishes its signing key. The cache contains
only verified tokens that permit something, at most ``MAX_TOKENS`` and ``MAX_TOKENS_BYTES``. Tokens are looked up by
Python's hash, whose key is random in each process: it costs less than a digest.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final, NamedTuple

from vestige_bridge.access.jwt import Key, Signed
from vestige_bridge.access.oauth import NOTHING, AccessToken, InvalidToken, ResourceServer
from vestige_bridge.access.provider_keys import ProviderKeys
from vestige_bridge.errors import NOT_SENT, KeysUnavailable

MAX_TOKENS: Final = 4_096
"""Maximum number of cached tokens; other tokens are verified each time."""

MAX_TOKENS_BYTES: Final = 16 * 2**20
"""Maximum length of all cached tokens together."""


class _Verified(NamedTuple):
    """A token, and the key that signed it."""

    token: AccessToken
    kid: str
    key: Key


class OAuthTokens:
    """The access tokens of an identity provider.

    Parameters:
        server: checks the claims of a token.
        keys: the provider's keys.
        on_removal: called when cached tokens become invalid because their key was removed.

    Attributes:
        last_used: the time of the last successful authentication, in seconds since 1970; 0 before the first.
    """

    def __init__(self, server: ResourceServer, keys: ProviderKeys, on_removal: Callable[[], None]) -> None:
        self.last_used = 0.0
        self.server = server
        self.keys = keys
        self._on_removal = on_removal
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()
        self._bytes = 0
        keys.on_removal = self._forget

    @property
    def kept(self) -> int:
        """The number of cached tokens."""
        return len(self._verified)

    def find(self, token: bytes) -> AccessToken | None:
        """The token, if it is in the cache and still valid."""
        verified = self._verified.get(token)
        if verified is None:
            return None
        now = time.time()
        if verified.token.expires_at <= now:
            self._drop(token)
            return None
        self.last_used = now
        return verified.token

    async def verify(self, token: bytes) -> AccessToken:
        """Verifies a token, and caches it unless it permits nothing.

        Errors:
            InvalidToken: it is not valid, or its key is not known.
            KeysUnavailable: there are no keys, or too many requests wait for them.
        """
        # While the keys are fetched, nothing is held but the token and the id of its key.
        kid = Signed(token).kid
        key = await self.keys.find(kid)
        if key is None and not self.keys.known:
            raise KeysUnavailable(
                "No token can be verified now: the signing keys of the provider cannot be fetched.",
                data=NOT_SENT,
            )
        if key is None:
            raise InvalidToken("unknown_key", "The token is not valid: no known key of the provider signed it.")
        signed = Signed(token)
        if not key.verifies(signed):
            raise InvalidToken("signature", "The token is not valid: its signature is wrong.")
        now = time.time()
        verified = self.server.admitted(token, signed.claims, now)
        if verified.permissions is NOTHING:
            return verified
        self.last_used = now
        self._bytes += len(token) * (token not in self._verified)
        self._verified[token] = _Verified(verified, kid, key)
        while len(self._verified) > MAX_TOKENS or self._bytes > MAX_TOKENS_BYTES:
            self._drop(next(iter(self._verified)))
        return verified

    def _drop(self, token: bytes) -> None:
        del self._verified[token]
        self._bytes -= len(token)

    def _forget(self) -> None:
        """Removes the tokens whose signing key was removed."""
        known = self.keys.known
        gone = [token for token, it in self._verified.items() if known.get(it.kid) is not it.key]
        for token in gone:
            self._drop(token)
        self._on_removal()
