"""The command ``token new``: makes a token and its entry for a ``tokens.toml``.

Invariant: the token is printed once and stored nowhere; the entry contains its hash.
"""

from __future__ import annotations

import argparse
import json
import re
import secrets
from datetime import UTC, datetime, timedelta

from vestige_bridge.access.token_file import digest_of, parse_toml

_duration = re.compile(r"(?P<count>[1-9][0-9]{0,5})(?P<unit>[dhm])").fullmatch
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}


class Mistake(Exception):
    """An argument is not allowed in an entry; the text is a sentence for people."""


def print_new_token(options: argparse.Namespace) -> None:
    """Prints a new token and its entry.

    Parameters:
        options: the options of the command line: ``name``, ``read_only``, ``tools``, ``expires``, ``no_resources``,
            ``max_in_flight`` and ``rate``.

    Errors:
        Mistake: one of them is not allowed in an entry.
    """
    value = secrets.token_hex(32)
    entry = build_entry(options, value)
    print(
        f"The token of {options.name}. Store it now, because it is not printed again:\n\n{value}\n\n"
        f"The entry for tokens.toml:\n\n{entry}",
        end="",
    )


def build_entry(options: argparse.Namespace, value: str) -> str:
    """The entry of a token.

    Errors:
        Mistake: an option is not allowed in an entry.
    """
    members = {
        "name": _string(options.name),
        "sha256": _string(digest_of(value.encode()).hex()),
        "expires": None if options.expires is None else f"{options.expires:%Y-%m-%dT%H:%M:%SZ}",
        "read_only": "true" if options.read_only else None,
        "tools": None if options.tools is None else f"[{', '.join(map(_string, options.tools))}]",
        "resources": "false" if options.no_resources else None,
        "max_in_flight": options.max_in_flight,
        "rate": options.rate,
    }
    lines = [f"{key} = {spelled}\n" for key, spelled in members.items() if spelled is not None]
    entry = "".join(["[[token]]\n", *lines])
    try:
        entry.encode()
        parse_toml(entry)
    except UnicodeEncodeError:
        raise Mistake("The bridge would not accept this entry: an argument is not UTF-8.") from None
    except ValueError as error:
        raise Mistake(f"The bridge would not accept this entry: {error}.") from None
    return entry


def parse_expiry(text: str) -> datetime:
    """The time at which a token expires: a date or a time as in RFC 3339, or a time from now such as ``90d``.

    Errors:
        argparse.ArgumentTypeError: it is none of these, or in the past.
    """
    now = datetime.now(UTC)
    duration = _duration(text)
    try:
        if duration is not None:
            return now + timedelta(**{_UNITS[duration["unit"]]: int(duration["count"])})
        expires = datetime.fromisoformat(text)
        expires = expires.astimezone(UTC) if expires.tzinfo is not None else expires.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time such as 2027-01-31, 2027-01-31T12:00:00Z or 90d"
        ) from None
    if expires <= now:
        raise argparse.ArgumentTypeError(f"{text!r} is in the past")
    return expires


def _string(text: str) -> str:
    # A basic string of TOML has the syntax of a JSON string, except for escaped characters beyond ASCII.
    return json.dumps(text, ensure_ascii=False)
