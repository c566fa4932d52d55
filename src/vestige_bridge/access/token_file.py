"""What a file of tokens says: lines of names and tokens, or TOML with the rights of each.

Invariant: what is not understood is refused, with the line or the entry that it stands in, and never with a token.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions

READ_ONLY_SUFFIX: Final = ":read-only"
"""What follows the name of a principal that may change nothing."""

TOML_SUFFIX: Final = ".toml"

MAX_FILE_BYTES: Final = 1_048_576
"""How long a file may be: as long as a Secret of Kubernetes."""

_LONGEST_KEPT_BYTES: Final = 4_096
"""Longer tokens are nobody's habit, and would let strangers fill the memory."""

MAX_PATTERNS: Final = 256
"""How many names and patterns an allow-list may hold."""

MOST: Final = 1_000_000
"""The highest limit that an entry may set."""

_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_visible = re.compile(r"[\x21-\x7e]+").fullmatch
_digest = re.compile(r"[0-9A-Fa-f]{64}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token, who holds it, and what that principal may do.

    Attributes:
        name: the name of the principal.
        digest: the SHA-256 of the token.
        permissions: what the principal may do.
        expires_at: from when on the token is not valid, in seconds since 1970; ``None`` for never.
        value: the token itself, where the file says it; empty where it says only the hash.
    """

    name: str
    digest: bytes
    permissions: Permissions = UNRESTRICTED
    expires_at: float | None = None
    value: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def of_value(cls, name: str, value: bytes, permissions: Permissions = UNRESTRICTED) -> Token:
        """The token of that value."""
        return cls(name=name, digest=digest_of(value), permissions=permissions, value=value)

    def expired(self, now: float) -> bool:
        """Whether it is not valid any more.

        Parameters:
            now: the time, in seconds since 1970.
        """
        return self.expires_at is not None and self.expires_at <= now


def digest_of(token: bytes) -> bytes:
    """The SHA-256 by which a token is found: how long that takes says nothing about any token but this one."""
    return _digest_often(token) if len(token) <= _LONGEST_KEPT_BYTES else _hashed(token)


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


_digest_often = lru_cache(maxsize=256)(_hashed)
"""Each client shows the same token with every request. It is looked up by a hash whose key is this process's alone."""


def read_tokens(path: Path) -> tuple[Token, ...]:
    """The tokens of a file, which is TOML if its name ends in ``.toml``.

    Errors:
        OSError: it cannot be read.
        ValueError: it cannot be used, in words that follow "it cannot be used:" and quote no token.
    """
    with path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is longer than {MAX_FILE_BYTES} bytes")
    try:
        text = data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    return parse_toml(text) if path.name.endswith(TOML_SUFFIX) else parse_lines(text)


def parse_lines(text: str) -> tuple[Token, ...]:
    """The tokens of lines: one a line, optionally with a name before it, which may end in ``:read-only``.

    Errors:
        ValueError: a line is no token, or there is none; the line is told by its number, never by its text.
    """
    tokens: list[Token] = []
    unambiguous = _Unambiguous()
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
        token = Token.of_value(name, value.encode(), UNRESTRICTED if name == named else READ_ONLY)
        if unambiguous.has_other_owner(token):
            raise ValueError(f"the token in line {number} belongs to another name already")
        if unambiguous.has_other_rights(token):
            raise ValueError(f"the name in line {number} stands in the file both with and without {READ_ONLY_SUFFIX}")
        tokens.append(token)
    if not tokens:
        raise ValueError("it holds no token")
    return tuple(tokens)


def parse_toml(text: str) -> tuple[Token, ...]:
    """The tokens of a TOML document: an array of tables ``token``.

    Errors:
        ValueError: it is no such document; an entry is told by its number and its name, never by its token.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not TOML{_place(error)}") from None
    for key in document.keys() - {"token"}:
        raise ValueError(f"it holds {_shown(key)}, and only entries that begin with [[token]] are known")
    entries = document.get("token")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it holds no token; each is an entry that begins with [[token]]")
    tokens: list[Token] = []
    unambiguous = _Unambiguous()
    for number, entry in enumerate(entries, start=1):
        token = _parse_entry(entry, number)
        where = f"entry {number} ({token.name})"
        if unambiguous.has_other_rights(token):
            raise ValueError(f"{where} has other rights than an entry of the same name before it")
        if unambiguous.has_other_owner(token):
            raise ValueError(f"the token of {where} belongs to another name already")
        if unambiguous.has_other_expiry(token):
            raise ValueError(f"the token of {where} stands in an entry before it with another time to expire")
        tokens.append(token)
    if any(token.permissions.tools is not None for token in tokens):
        # What one principal sees is not what all may see, even if it sees all.
        return tuple(replace(it, permissions=replace(it.permissions, shares_lists=False)) for it in tokens)
    return tuple(tokens)


def _parse_entry(entry: Mapping[str, Any], number: int) -> Token:
    name = entry.get("name")
    if not isinstance(name, str) or not _name(name):
        raise ValueError(f'entry {number} needs a "name" of up to 64 letters, digits, dots, dashes and underscores')
    where = f"entry {number} ({name})"
    for key in entry:
        if key not in _KEYS:
            raise ValueError(f"{where} holds {_shown(key)}, and an entry takes only {', '.join(_KEYS)}")
    values = {}
    for key, (parse, takes) in _KEYS.items():
        if key not in entry:
            continue
        try:
            values[key] = parse(entry[key])
        except _Wrong:
            raise ValueError(f'"{key}" of {where} has to be {takes}') from None
    if ("token" in values) == ("sha256" in values):
        raise ValueError(f'{where} needs either "token" or "sha256"')
    permissions = Permissions(**{key: values[key] for key in _RIGHTS if key in values})
    return Token(
        name=name,
        digest=digest_of(values["token"]) if "token" in values else values["sha256"],
        permissions=UNRESTRICTED if permissions == UNRESTRICTED else permissions,
        expires_at=values.get("expires"),
        value=values.get("token", b""),
    )


class _Unambiguous:
    """Notices what would leave it to chance who a caller is, or what a principal may do."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Token] = {}
        self._rights: dict[str, Permissions] = {}

    def has_other_owner(self, token: Token) -> bool:
        """Whether the same token stands in the file for another name, or for the same with other rights."""
        other = self._owners.setdefault(token.digest, token)
        return (other.name, other.permissions) != (token.name, token.permissions)

    def has_other_expiry(self, token: Token) -> bool:
        """Whether the same token stands in the file with another time to expire."""
        return self._owners.setdefault(token.digest, token).expires_at != token.expires_at

    def has_other_rights(self, token: Token) -> bool:
        """Whether the same name stands in the file with other rights."""
        return self._rights.setdefault(token.name, token.permissions) != token.permissions


class _Wrong(ValueError):
    """A value that its key does not take."""


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong
    return value


def _token(value: object) -> bytes:
    token = _text(value).strip()
    if not _visible(token):
        raise _Wrong
    return token.encode()


def _sha256(value: object) -> bytes:
    if not _digest(_text(value)):
        raise _Wrong
    return bytes.fromhex(_text(value))


def _time(value: object) -> float:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise _Wrong
    return value.timestamp()


def _switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong
    return value


def _patterns(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) > MAX_PATTERNS:
        raise _Wrong
    if not all(isinstance(it, str) and 0 < len(it) <= 256 for it in value):
        raise _Wrong
    # Entries of one name agree in whatever order each lists them.
    return tuple(sorted(set(value)))


def _limit(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MOST:
        raise _Wrong
    return value


_LIMIT: Final = f"a whole number from 1 to {MOST}"
_SWITCH: Final = "true or false, without quotes"
_KEYS: Final[Mapping[str, tuple[Callable[[object], Any], str]]] = {
    "name": (_text, "a text"),
    "token": (_token, "a text of visible ASCII without spaces"),
    "sha256": (_sha256, "the 64 hexadecimal digits of the token's SHA-256"),
    "expires": (_time, "a date and time with its offset, without quotes, such as 2027-01-31T00:00:00Z"),
    "read_only": (_switch, _SWITCH),
    "tools": (_patterns, f"a list of up to {MAX_PATTERNS} names of tools, in which * stands for any characters"),
    "resources": (_switch, _SWITCH),
    "max_in_flight": (_limit, _LIMIT),
    "rate": (_limit, f"{_LIMIT}: calls of tools in a minute"),
}
"""What an entry may hold: how each value is read, and what it has to be."""

_RIGHTS: Final = ("read_only", "tools", "resources", "max_in_flight", "rate")


def _place(error: Exception) -> str:
    """Where a document ceases to be TOML; what the parser says besides may quote it, and so a token."""
    found = re.search(r" \(at (?:line \d+, column \d+|end of document)\)\Z", str(error))
    return found[0] if found else ""


def _shown(key: str) -> str:
    # Whoever forgot the key of a token would read it in the log; what is as short as this is no token.
    return f'"{key}"' if re.fullmatch(r"[a-z_]{1,15}", key) else "a key that is none"
