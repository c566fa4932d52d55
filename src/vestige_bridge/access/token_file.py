"""The parser of the token file: lines of names and tokens, or TOML with the permissions of each token.

Invariant: unknown content is rejected with an error that names its line or entry, and never quotes a token.
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
"""The suffix of the name of a read-only principal."""

TOML_SUFFIX: Final = ".toml"

MAX_FILE_BYTES: Final = 1_048_576
"""Maximum size of the file: the maximum size of a Kubernetes Secret."""

_LONGEST_KEPT_BYTES: Final = 4_096
"""Maximum length of a token whose digest is cached, so that clients cannot fill the memory with long tokens."""

MAX_PATTERNS: Final = 256
"""Maximum number of names and patterns in an allow-list."""

MOST: Final = 1_000_000
"""The highest limit that an entry may set."""

_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_visible = re.compile(r"[\x21-\x7e]+").fullmatch
_digest = re.compile(r"[0-9A-Fa-f]{64}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token, with the name and the permissions of its principal.

    Attributes:
        name: the name of the principal.
        digest: the SHA-256 of the token.
        permissions: what the principal may do.
        expires_at: the time of its expiry, in seconds since 1970; ``None`` for never.
        value: the token itself, if the file contains it; empty if the file contains only the hash.
    """

    name: str
    digest: bytes
    permissions: Permissions = UNRESTRICTED
    expires_at: float | None = None
    value: bytes = field(default=b"", compare=False, repr=False)

    @classmethod
    def of_value(cls, name: str, value: bytes, permissions: Permissions = UNRESTRICTED) -> Token:
        """Builds a token from its value."""
        return cls(name=name, digest=digest_of(value), permissions=permissions, value=value)

    def expired(self, now: float) -> bool:
        """Whether it has expired.

        Parameters:
            now: the time, in seconds since 1970.
        """
        return self.expires_at is not None and self.expires_at <= now


def digest_of(token: bytes) -> bytes:
    """The SHA-256 of a token, the key for its lookup: the time of a lookup reveals nothing about other tokens."""
    return _digest_often(token) if len(token) <= _LONGEST_KEPT_BYTES else _hashed(token)


def _hashed(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


_digest_often = lru_cache(maxsize=256)(_hashed)
"""Clients send the same token with every request. The cache uses Python's hash, whose key is random in each process."""


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Reads the tokens of a file, which is TOML if its name ends in ``.toml``.

    Errors:
        OSError: it cannot be read.
        ValueError: it is invalid; the text is the reason and quotes no token.
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
    """Parses lines: one token a line, optionally with a name before it, which may end in ``:read-only``.

    Errors:
        ValueError: a line is invalid, or there is none; the text names the line by its number and does not quote it.
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
                f"the name in line {number} may contain only letters, digits, dots, dashes and underscores, "
                f"and {READ_ONLY_SUFFIX} at its end"
            )
        if not _visible(value):
            raise ValueError(f"the token in line {number} contains characters other than visible ASCII")
        token = Token.of_value(name, value.encode(), UNRESTRICTED if name == named else READ_ONLY)
        if unambiguous.has_other_owner(token):
            raise ValueError(f"the token in line {number} belongs to another name already")
        if unambiguous.has_other_rights(token):
            raise ValueError(f"the name in line {number} occurs both with and without {READ_ONLY_SUFFIX}")
        tokens.append(token)
    if not tokens:
        raise ValueError("it holds no token")
    return tuple(tokens)


def parse_toml(text: str) -> tuple[Token, ...]:
    """Parses a TOML document: an array of tables ``token``.

    Errors:
        ValueError: it is invalid; the text names an entry by its number and name, never by its token.
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
            raise ValueError(f"the token of {where} is in an earlier entry with another expiry")
        tokens.append(token)
    if any(token.permissions.tools is not None for token in tokens):
        # A list for one principal may differ from that of others, even if it contains all tools.
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
    """Detects entries that contradict each other about a token's principal or a principal's permissions."""

    def __init__(self) -> None:
        self._owners: dict[bytes, Token] = {}
        self._rights: dict[str, Permissions] = {}

    def has_other_owner(self, token: Token) -> bool:
        """Whether the file has the same token with another name, or with other permissions."""
        other = self._owners.setdefault(token.digest, token)
        return (other.name, other.permissions) != (token.name, token.permissions)

    def has_other_expiry(self, token: Token) -> bool:
        """Whether the file has the same token with another expiry."""
        return self._owners.setdefault(token.digest, token).expires_at != token.expires_at

    def has_other_rights(self, token: Token) -> bool:
        """Whether the file has the same name with other permissions."""
        return self._rights.setdefault(token.name, token.permissions) != token.permissions


class _Wrong(ValueError):
    """A value that is not valid for its key."""


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
    # Sorted, so that the order in entries of the same name does not matter.
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
    "tools": (_patterns, f"a list of up to {MAX_PATTERNS} names of tools, in which * matches any characters"),
    "resources": (_switch, _SWITCH),
    "max_in_flight": (_limit, _LIMIT),
    "rate": (_limit, f"{_LIMIT}: tool calls in a minute"),
}
"""The keys of an entry, each with its parser and a description of its values."""

_RIGHTS: Final = ("read_only", "tools", "resources", "max_in_flight", "rate")


def _place(error: Exception) -> str:
    """The position of a TOML error; the rest of the parser's message may quote the document, and so a token."""
    found = re.search(r" \(at (?:line \d+, column \d+|end of document)\)\Z", str(error))
    return found[0] if found else ""


def _shown(key: str) -> str:
    # If the key before a token is missing, the token itself is read as a key; one this short is not a token.
    return f'"{key}"' if re.fullmatch(r"[a-z_]{1,15}", key) else "an unknown key"
