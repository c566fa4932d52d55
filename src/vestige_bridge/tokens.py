"""The tokens that open the door, and the file that they may come from.

The law of this room: once tokens were good they stay so until better ones are read. A file that is emptied or lost by
mistake locks nobody out and lets nobody in.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vestige_bridge.errors import SettingsError
from vestige_bridge.files import fingerprint
from vestige_bridge.settings import Settings
from vestige_bridge.tasks import Tasks

log = logging.getLogger(__name__)

LOOK_AGAIN_SECONDS: Final = 1.0
"""How often the file is looked at for a change."""

SHORT_CHARACTERS: Final = 16
"""Tokens of fewer characters are worth a warning: nothing slows down who guesses."""

READ_ONLY: Final = ":read-only"
"""What follows the name of a principal that may change nothing."""

_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_visible = re.compile(r"[\x21-\x7e]+").fullmatch


@dataclass(frozen=True, slots=True)
class Token:
    """A token, the name of who holds it, which is the principal, and whether that one may change nothing."""

    name: str
    value: bytes
    read_only: bool = False


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
        name = named.removesuffix(READ_ONLY)
        if len(words) > 2:
            raise ValueError(f"line {number} holds more than a name and a token")
        if len(words) == 1 and value.endswith(READ_ONLY):
            raise ValueError(f"line {number} holds a name that ends in {READ_ONLY} and no token after it")
        if not _name(name):
            raise ValueError(
                f"the name in line {number} may hold letters, digits, dots, dashes and underscores only, "
                f"and {READ_ONLY} at its end"
            )
        if not _visible(value):
            raise ValueError(f"the token in line {number} holds something else than visible ASCII")
        token = Token(name, value.encode(), read_only=name != named)
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
        if other.name == token.name and other.read_only != token.read_only:
            raise ValueError(f"the name in line {number} stands in the file both with and without {READ_ONLY}")


class Tokens:
    """The tokens that are valid now.

    Parameters:
        tokens: those to begin with.
        path: the file to read anew whenever it changes; ``None`` when they are fixed.
        seen: what told the file's state apart from every other when they were read from it.

    Attributes:
        file_valid: whether the file was of use when it was last read.
    """

    def __init__(
        self, tokens: tuple[Token, ...], path: Path | None = None, seen: tuple[int, ...] | None = None
    ) -> None:
        self.file_valid = True
        self._tokens = tokens
        self._path = path
        self._seen = seen
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
        # Whatever is written after this is a change, though it may be what is read here.
        seen = fingerprint(path)
        try:
            return cls(_read(path), path, seen)
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

    @asynccontextmanager
    async def watching(self, on_removal: Callable[[], None]) -> AsyncIterator[None]:
        """Watches the file in the background while the context lasts.

        Parameters:
            on_removal: called when a token is not valid any more, or not for the same.
        """
        tasks = Tasks()
        tasks.start(self._watch(on_removal))
        try:
            yield
        finally:
            await tasks.close()

    async def _watch(self, on_removal: Callable[[], None]) -> None:
        while self._path is not None:
            await asyncio.sleep(LOOK_AGAIN_SECONDS)
            before = self._tokens
            self.look_again(self._path)
            if not set(before) <= set(self._tokens):
                on_removal()

    def look_again(self, path: Path) -> None:
        """Reads the file anew if it changed, as a mounted Secret does by a swap of symlinks."""
        seen = fingerprint(path)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._tokens = _read(path)
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
