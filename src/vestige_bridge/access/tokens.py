"""The tokens of clients, and the file that they may come from.

Invariant: once tokens were good they stay so until better ones are read. A file that is emptied or lost by
mistake locks nobody out and lets nobody in.
"""

from __future__ import annotations

import hmac
import logging
import re
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions
from vestige_bridge.concurrency import FileWatch
from vestige_bridge.errors import SettingsError
from vestige_bridge.settings import Settings

log = logging.getLogger(__name__)

SHORT_CHARACTERS: Final = 16
"""Tokens of fewer characters are worth a warning: nothing slows down who guesses."""

READ_ONLY_SUFFIX: Final = ":read-only"
"""What follows the name of a principal that may change nothing."""

_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_visible = re.compile(r"[\x21-\x7e]+").fullmatch


@dataclass(frozen=True, slots=True)
class Token:
    """A token, the name of who holds it, which is the principal, and whether that one may change nothing."""

    name: str
    value: bytes
    permissions: Permissions = UNRESTRICTED


def parse_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a file: one a line, optionally with a name before it, which may end in ``:read-only``.

    Errors:
        ValueError: a line is no token, or there is none; the line is told by its number, never by its text.
    """
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        named, value = ("default", *words) if len(words) == 1 else (words[0], words[-1])
        name = named.removesuffix(READ_ONLY_SUFFIX)
        if len(words) > 2:
            raise ValueError(f"line {number} holds more than a name and a token")
        if len(words) == 1 and value.endswith(READ_ONLY_SUFFIX):
            raise ValueError(f"line {number} holds a name that ends in {READ_ONLY_SUFFIX} and no token after it")
        if not _name(name):
            raise ValueError(
                f"the name in line {number} may hold letters, digits, dots, dashes and underscores only, "
                f"and {READ_ONLY_SUFFIX} at its end"
            )
        if not _visible(value):
            raise ValueError(f"the token in line {number} holds something else than visible ASCII")
        token = Token(name, value.encode(), UNRESTRICTED if name == named else READ_ONLY)
        _require_unambiguous(token, tokens, number)
        tokens.append(token)
    if not tokens:
        raise ValueError("it holds no token")
    return tuple(tokens)


def _require_unambiguous(token: Token, tokens: list[Token], number: int) -> None:
    """Refuses what would leave it to chance who a caller is, or what a principal may do."""
    for other in tokens:
        if other.value == token.value and other != token:
            raise ValueError(f"the token in line {number} belongs to another name already")
        if other.name == token.name and other.permissions != token.permissions:
            raise ValueError(f"the name in line {number} stands in the file both with and without {READ_ONLY_SUFFIX}")


class Tokens:
    """The tokens that are valid now.

    Parameters:
        tokens: those to begin with.
        file: the file to read again whenever it changes; ``None`` when they are fixed.

    Attributes:
        file_valid: whether the file was of use when it was last read.
    """

    def __init__(self, tokens: tuple[Token, ...], file: FileWatch | None = None) -> None:
        self.file_valid = True
        self._tokens = tokens
        self._file = file
        self._used_at: dict[str, float] = {}

    @classmethod
    def from_settings(cls, settings: Settings) -> Tokens:
        """The tokens that the settings give or point to.

        Errors:
            SettingsError: the file cannot be read or holds no tokens.
        """
        if not settings.auth_token_file:
            value = settings.auth_token.encode()
            return cls((Token("default", value),) if value else ())
        path = Path(settings.auth_token_file)
        file = FileWatch(path)
        # Whatever is written after this is a change, even if it is what is read here.
        file.changed()
        try:
            return cls(_read(path), file)
        except (OSError, ValueError) as error:
            raise SettingsError([f"VESTIGE_AUTH_TOKEN_FILE: {path} is of no use: {_why(error)}."]) from error

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._tokens)

    @property
    def first(self) -> str:
        """The token to show to a bridge that has the same settings; empty when there is none."""
        return self._tokens[0].value.decode() if self._tokens else ""

    @property
    def short(self) -> list[str]:
        """Whose tokens are so short that they can be guessed."""
        return sorted({token.name for token in self._tokens if len(token.value) < SHORT_CHARACTERS})

    def find(self, token: bytes) -> Token | None:
        """The token that is shown; ``None`` if it is not valid. Each one is compared, in constant time."""
        found = None
        for candidate in self._tokens:
            if hmac.compare_digest(candidate.value, token):
                found = candidate
        if found is not None:
            self._used_at[found.name] = time.time()
        return found

    @property
    def last_used(self) -> dict[str, float]:
        """When each principal last got in, in seconds since 1970; 0 for one that did not yet."""
        return {token.name: self._used_at.get(token.name, 0.0) for token in self._tokens}

    def watching(self, on_removal: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        """Watches the file in the background while the context lasts.

        Parameters:
            on_removal: called when a token is no longer valid, or no longer has the same permissions.
        """

        def check() -> None:
            before = self._tokens
            self.read_if_changed()
            if not set(before) <= set(self._tokens):
                on_removal()

        return nullcontext() if self._file is None else self._file.watching(check)

    def read_if_changed(self) -> None:
        """Reads the file again if it changed; a file that cannot be used changes nothing."""
        if self._file is None or not self._file.changed():
            return
        try:
            self._tokens = _read(self._file.path)
        except (OSError, ValueError) as error:
            self.file_valid = False
            log.error("The token file changed and is of no use (%s); the tokens from before stay valid", _why(error))  # noqa: TRY400
        else:
            self.file_valid = True
            log.info("The token file changed; %d tokens are valid now", len(self._tokens))


def _read(path: Path) -> tuple[Token, ...]:
    return parse_tokens(path.read_text(encoding="utf-8"))


def _why(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or "it cannot be read"
    return "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
