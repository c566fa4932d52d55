"""The public signing keys of the identity provider: fetched, refreshed in the background, and removed.

Invariants: valid keys stay in use for 24 hours if the provider cannot be reached. Whatever tokens clients send, there
is one fetch at a time, at most one in ten seconds, and a bounded number of requests that wait for it.
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
from vestige_bridge.errors import NOT_SENT, KeysUnavailable

log = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 300.0
"""The interval of the fetches; a key that the provider revoked is rejected after that time at the latest."""

LEAST_SECONDS: Final = 10.0
"""The minimum time between two attempts to fetch the keys."""

ATTEMPT_SECONDS: Final = 10.0
"""The time limit of an attempt, including the discovery of the URL of the keys."""

MAX_WAITING: Final = 64
"""How many requests may wait for a fetch. Others are rejected, so that invalid tokens cannot take all connections."""

KEPT_SECONDS: Final = 86_400.0
"""How long keys stay in use while they cannot be fetched."""

Fetch = Callable[[str], Awaitable[bytes]]
"""GETs a document of the provider. Raises ``NotFetched``."""


class ProviderKeys:
    """The provider's keys.

    Parameters:
        issuer: the provider.
        jwks_url: the URL of its keys; if empty, it is read from the provider's metadata.
        fetch: GETs a document of the provider.
        clock: gives the time in seconds.

    Attributes:
        failures: the number of failed attempts to fetch the keys.
        on_removal: called when a key was removed.
    """

    def __init__(self, issuer: str, jwks_url: str, fetch: Fetch, clock: Callable[[], float] = time.monotonic) -> None:
        self.failures = 0
        self.on_removal: Callable[[], None] = lambda: None
        self._issuer = issuer
        self._configured_url = jwks_url
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at = -LEAST_SECONDS
        self._failing = False
        self._waiting = 0
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
        """The key with that id; for an unknown id the keys are fetched first, unless the last fetch is too recent.

        Errors:
            KeysUnavailable: too many requests wait for the fetch.
        """
        if kid not in self._keys and (self._fetching or self._due):
            if self._waiting >= MAX_WAITING:
                raise KeysUnavailable("Too many requests wait for the signing keys of the provider.", data=NOT_SENT)
            self._waiting += 1
            try:
                await self._refresh()
            finally:
                self._waiting -= 1
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

    @property
    def _fetching(self) -> bool:
        return self._attempt is not None and not self._attempt.done()

    @property
    def _due(self) -> bool:
        return self._clock() - self._tried_at >= LEAST_SECONDS

    async def _refresh(self) -> None:
        if self._attempt is None or self._attempt.done():
            if not self._due:
                return
            self._tried_at = self._clock()
            self._attempt = self._tasks.start(self._fetch_keys())
        # A caller may be cancelled; the others still wait for the same attempt.
        await asyncio.shield(self._attempt)

    async def _fetch_keys(self) -> None:
        before = self._keys
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                url = self._configured_url or await self._discover()
                self._keys = read_keys(await self._fetched("its keys", url), before)
        except (NotFetched, TimeoutError, ValueError) as error:
            self._failed(str(error) or "no answer in time")
        else:
            self._fetched_at = self._clock() if self._keys else None
            self.failures += not self._keys
            if not self._keys and (before or not self._failing):
                log.error("%s publishes no key that can verify a token; no OAuth token is accepted", self._issuer)
            elif self._failing or not before:
                log.info("%d signing keys of %s were fetched", len(self._keys), self._issuer)
            self._failing = not self._keys
        if any(self._keys.get(kid) is not key for kid, key in before.items()):
            log.warning("A signing key of %s is no longer valid", self._issuer)
            self.on_removal()

    def _failed(self, why: str) -> None:
        self.failures += 1
        if not self._failing:
            kept = "the previous keys stay in use" if self._keys else "no OAuth token can be verified"
            log.error("The signing keys of %s could not be fetched: %s; %s", self._issuer, why, kept)
        self._failing = True
        if (age := self.age_seconds) is not None and age >= KEPT_SECONDS:
            log.error("The signing keys of %s are a day old and are not used any more", self._issuer)
            self._keys, self._fetched_at = {}, None

    async def _discover(self) -> str:
        """The URL of the keys, from the provider's metadata (RFC 8414, section 3)."""
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
