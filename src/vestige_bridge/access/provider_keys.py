"""The public keys with which the identity provider signs: fetched, refreshed in the background, and forgotten.

Invariants: keys that were good stay so for 24 hours without the provider. Whatever strangers send, the provider is
asked once at a time, and at most once in ten seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from vestige_bridge.access.jwt import Key, read_keys
from vestige_bridge.access.oauth import NotFetched, keys_url, metadata_urls
from vestige_bridge.concurrency import Tasks

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 300.0
"""How often the keys are fetched; a key that the provider took back is refused after that at the latest."""

LEAST_SECONDS: Final = 10.0
"""The time between two attempts to fetch the keys."""

ATTEMPT_SECONDS: Final = 10.0
"""How long an attempt may take, the discovery of their address included."""

KEPT_SECONDS: Final = 86_400.0
"""How long keys are used while they cannot be fetched again."""

Fetch = Callable[[str], Awaitable[bytes]]
"""GETs a document of the provider. Raises ``NotFetched``."""


class ProviderKeys:
    """The provider's keys.

    Parameters:
        issuer: the provider.
        jwks_url: where its keys are; empty if its metadata are to say it.
        fetch: GETs a document of the provider.
        clock: gives the time in seconds.

    Attributes:
        failures: how many attempts to fetch the keys failed.
        on_removal: called when a key is no longer known.
    """

    def __init__(self, issuer: str, jwks_url: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self.on_removal: Callable[[], None] = lambda: None
        self._issuer = issuer
        self._configured_url = jwks_url
        self._url = jwks_url
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at = -LEAST_SECONDS
        self._failing = False
        self._tasks = Tasks()
        self._attempt: asyncio.Task[None] | None = None

    @property
    def age_seconds(self) -> float | None:
        """The time since the keys were fetched; ``None`` while there are none."""
        return None if self._fetched_at is None else self._clock() - self._fetched_at

    @property
    def known(self) -> Mapping[str, Key]:
        """The keys by their ids."""
        return self._keys

    async def find(self, kid: str) -> Key | None:
        """The key of that id; for one that is not known the keys are fetched anew, if that is not too soon."""
        if kid not in self._keys:
            await self._refresh()
        return self._keys.get(kid)

    @asynccontextmanager
    async def refreshing(self) -> AsyncIterator[None]:
        """Fetches the keys, and refreshes them in the background while the context lasts."""
        self._tasks.start(self._keep_fresh())
        try:
            yield
        finally:
            await self._tasks.close()

    async def _keep_fresh(self) -> None:
        while True:
            await self._refresh()
            await asyncio.sleep(LEAST_SECONDS if self._failing else REFRESH_SECONDS)

    async def _refresh(self) -> None:
        if self._attempt is None or self._attempt.done():
            if self._clock() - self._tried_at < LEAST_SECONDS:
                return
            self._tried_at = self._clock()
            self._attempt = self._tasks.start(self._fetch_keys())
        # Whoever waits may leave; the others still wait for the same attempt.
        await asyncio.shield(self._attempt)

    async def _fetch_keys(self) -> None:
        before = self._keys
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                url = self._url or await self._discover()
                self._keys = read_keys(await self._fetched("its keys", url), before)
        except (NotFetched, TimeoutError, ValueError) as error:
            self._failed(str(error) or "it did not answer in time")
        else:
            self._url = url
            self._fetched_at = self._clock()
            if self._failing or not before:
                log.info("%d signing keys of %s were fetched", len(self._keys), self._issuer)
            self._failing = False
        if any(self._keys.get(kid) is not key for kid, key in before.items()):
            log.warning("A signing key of %s is no longer valid", self._issuer)
            self.on_removal()

    def _failed(self, why: str) -> None:
        self.failures += 1
        # It may have moved its keys.
        self._url = self._configured_url
        if not self._failing:
            kept = "those from before are used" if self._keys else "no OAuth token can be verified"
            log.error("The signing keys of %s could not be fetched: %s; %s", self._issuer, why, kept)
        self._failing = True
        if (age := self.age_seconds) is not None and age >= KEPT_SECONDS:
            log.error("The signing keys of %s are a day old and are not used any more", self._issuer)
            self._keys, self._fetched_at = {}, None

    async def _discover(self) -> str:
        """Where the keys are, as the provider's metadata say (RFC 8414, section 3)."""
        reasons = []
        for url in metadata_urls(self._issuer):
            try:
                return keys_url(_members(await self._fetched("its metadata", url)), self._issuer)
            except (NotFetched, ValueError) as error:
                reasons.append(str(error))
        raise NotFetched("; ".join(dict.fromkeys(reasons)))

    async def _fetched(self, what: str, url: str) -> bytes:
        try:
            return await self._fetch(url)
        except NotFetched as error:
            raise NotFetched(f"{what} at {url}: {error}") from error


def _members(document: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(document)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
