"""The valid tokens, and the file that they may come from.

Invariant: valid tokens stay in use until another valid file is read. If the file is emptied or removed by mistake,
access does not change.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Final

from vestige_bridge.access.record import OAUTH_LABEL
from vestige_bridge.access.token_file import Token, digest_of, read_tokens
from vestige_bridge.concurrency import FileWatch
from vestige_bridge.errors import SettingsError
from vestige_bridge.logs import timestamp
from vestige_bridge.settings import Settings, has_jwt_form

log = logging.getLogger(__name__)

SHORT_CHARACTERS: Final = 16
"""Shorter tokens cause a warning, because the bridge does not slow down guessing."""


class Tokens:
    """The tokens that are valid now.

    Parameters:
        tokens: the initial tokens.
        file: the file to read again when it changes; ``None`` for fixed tokens.
        read: reads that file.

    Attributes:
        file_valid: whether the file was valid when it was last read.
    """

    def __init__(
        self,
        tokens: tuple[Token, ...],
        file: FileWatch | None = None,
        read: Callable[[Path], tuple[Token, ...]] = read_tokens,
    ) -> None:
        self.file_valid = True
        self._read = read
        self._tokens = tokens
        self._by_digest = {token.digest: token for token in tokens}
        self._file = file
        self._used_at: dict[str, float] = {}
        self._checked_at = time.time()

    @classmethod
    def from_settings(cls, settings: Settings) -> Tokens:
        """The tokens in the settings, or in the file that they name.

        Errors:
            SettingsError: the file cannot be read or contains no valid tokens.
        """
        if not settings.auth_token_file:
            value = settings.auth_token.encode()
            return cls(_beside_oauth((Token.of_value("default", value),), settings) if value else ())
        path = Path(settings.auth_token_file)
        file = FileWatch(path)
        # Any later write counts as a change, even if the read below already includes it.
        file.changed()

        def read(path: Path) -> tuple[Token, ...]:
            return _beside_oauth(read_tokens(path), settings)

        try:
            return cls(read(path), file, read)
        except (OSError, ValueError) as error:
            raise SettingsError([f"VESTIGE_AUTH_TOKEN_FILE: {path} cannot be used: {_why(error)}."]) from error

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._tokens)

    @property
    def first(self) -> str:
        """A token for a client with the same settings; empty if only hashes are known."""
        now = time.time()
        return next((token.value.decode() for token in self._tokens if token.value and not token.expired(now)), "")

    @property
    def short(self) -> list[str]:
        """The names of the principals whose tokens are short enough to be guessed."""
        return sorted({token.name for token in self._tokens if 0 < len(token.value) < SHORT_CHARACTERS})

    def find(self, token: bytes) -> Token | None:
        """The token with that value, or ``None``. The caller has to check its expiry."""
        found = self._by_digest.get(digest_of(token))
        if found is not None:
            now = time.time()
            if found.expires_at is None or not found.expired(now):
                self._used_at[found.name] = now
        return found

    @property
    def last_used(self) -> dict[str, float]:
        """When each principal last authenticated, in seconds since 1970; 0 if it has not yet."""
        return {token.name: self._used_at.get(token.name, 0.0) for token in self._tokens}

    @property
    def expires_at(self) -> dict[str, float]:
        """When the last token of each principal expires, in seconds since 1970; without those that never expire."""
        latest: dict[str, float] = {}
        for token in self._tokens:
            expires_at = float("inf") if token.expires_at is None else token.expires_at
            latest[token.name] = max(latest.get(token.name, 0.0), expires_at)
        return {name: expires_at for name, expires_at in latest.items() if expires_at != float("inf")}

    def log_expired(self) -> None:
        """Logs a warning for each expired token."""
        now = time.time()
        for token in self._tokens:
            if token.expires_at is not None and token.expired(now):
                log.warning("A token of %s has expired: %s", token.name, timestamp(token.expires_at))

    def watching(self, on_removal: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Watches the file, and the expiry of tokens, in the background while the context lasts.

        Parameters:
            on_removal: called when a token became invalid or its permissions changed.
        """

        def check() -> None:
            before = self._tokens
            self.read_if_changed()
            expired = self._expire()
            if expired or not set(before) <= set(self._tokens):
                on_removal()

        return nullcontext() if self._file is None else self._file.watching(check)

    def read_if_changed(self) -> None:
        """Reads the file again if it changed; if it is invalid, the tokens stay the same."""
        if self._file is None or not self._file.changed():
            return
        try:
            self._tokens = self._read(self._file.path)
        except (OSError, ValueError) as error:
            self.file_valid = False
            log.error("The token file changed and is not valid (%s); the previous tokens stay valid", _why(error))  # noqa: TRY400
        else:
            self._by_digest = {token.digest: token for token in self._tokens}
            self.file_valid = True
            log.info("The token file changed; %d tokens are valid now", len(self._tokens))

    def _expire(self) -> bool:
        """Whether a token has expired since the last call."""
        now, before = time.time(), self._checked_at
        self._checked_at = now
        expired = [token for token in self._tokens if token.expired(now) and not token.expired(before)]
        for token in expired:
            log.warning("A token of %s has expired", token.name)
        return bool(expired)


def _beside_oauth(tokens: tuple[Token, ...], settings: Settings) -> tuple[Token, ...]:
    """Adapts the tokens to the OAuth settings.

    Errors:
        ValueError: one of them has the form of a JWT, and would never be looked up here; or the name of all OAuth users
            in the metrics.
    """
    if settings.oauth_issuer:
        for token in tokens:
            if has_jwt_form(token.value):
                raise ValueError(f"the token of {token.name} has the form of a JWT; only the OAuth issuer issues JWTs")
            if token.name == OAUTH_LABEL:
                raise ValueError(f"the name {token.name} is that of all users of the OAuth issuer in the metrics")
    if settings.maps_tools:
        return tuple(replace(it, permissions=replace(it.permissions, shares_lists=False)) for it in tokens)
    return tokens


def _why(error: Exception) -> str:
    return (error.strerror or "it cannot be read") if isinstance(error, OSError) else str(error)
