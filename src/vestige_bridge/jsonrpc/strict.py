"""Client messages in the form that strict JSON parsers accept.

Vestige's parser rejects messages that many others accept: an unpaired surrogate escape, and nesting deeper than 128
levels. On stdio it answers such a line without an id, so no client gets the answer. Invariant: every message keeps its
length and its meaning, except for the surrogates that have no meaning. A text without escapes and with few brackets
costs three searches.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Final

NESTING_LIMIT: Final = 100
"""Maximum depth of objects and arrays in a message, including itself."""

_HEX: Final = "[0-9a-fA-F]"
_HIGH: Final = rf"\\u[dD][89abAB]{_HEX}{_HEX}"
_LOW: Final = rf"\\u[dD][c-fC-F]{_HEX}{_HEX}"
_surrogate = re.compile(r"\\u[dD][89a-fA-F]").search
# Both halves begin with the same characters, so one search for these skips most of a text.
_replace_unpaired = re.compile(
    rf"\\u[dD](?:[89abAB]{_HEX}{_HEX}(?!{_LOW})|(?<!{_HIGH}\\u[dD])[c-fC-F]{_HEX}{_HEX})"
).sub

_ESCAPED_BACKSLASH: Final = "\\\\"
_MASK: Final = "\0\0"

_OPENING, _CLOSING = b"[{", b"]}"
_STEPS: Final = bytes.maketrans(_OPENING + _CLOSING, b"\x01\x01\xff\xff")
_OTHERS: Final = bytes(set(range(256)) - set(_OPENING + _CLOSING))
_part = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[\[{]+|[\]}]+', re.DOTALL).finditer


def replace_unpaired_surrogates(text: str) -> str:
    r"""The JSON text with ``\ufffd`` for each surrogate escape that has no other half (RFC 8259, section 7).

    The result has the same length. A text that is not JSON may become another text that is not JSON.
    """
    # A text with NUL in it is not JSON (RFC 8259, section 7), so NUL can replace the parts that are not searched.
    if "\\" not in text or "\\u" not in text or _surrogate(text) is None or "\0" in text:
        return text
    # Replacement goes from left to right: of several backslashes in a row only the odd last one remains, an escape.
    masked = text.replace(_ESCAPED_BACKSLASH, _MASK)
    return _replace_unpaired(r"\\ufffd", masked).replace(_MASK, _ESCAPED_BACKSLASH)


def is_too_deep(text: str) -> bool:
    """Whether a JSON text has more levels than ``NESTING_LIMIT``; brackets in strings do not count."""
    if text.count("{") + text.count("[") <= NESTING_LIMIT:
        return False
    without_escapes = text.replace(_ESCAPED_BACKSLASH, "").replace('\\"', "")
    outside_strings = "".join(without_escapes.split('"')[::2])
    steps = outside_strings.encode(errors="replace").translate(_STEPS, _OTHERS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > NESTING_LIMIT


def shallow(text: str) -> str:
    """A message with ``null`` instead of each object and array in it, to find the id in one that is too deep.

    Parameters:
        text: a JSON object; a text that is not JSON becomes another text that is not JSON.
    """
    pieces: list[str] = []
    depth = kept = 0
    for part in _part(text):
        brackets = part[0]
        if brackets[0] in "[{":
            if depth == 1:
                pieces.append(text[kept : part.start()])
            depth += len(brackets)
        elif brackets[0] in "]}":
            if depth > 1 >= depth - len(brackets):
                pieces.append("null")
                kept = part.end() - (1 - depth + len(brackets))
            depth -= len(brackets)
    return "".join([*pieces, text[kept:]])
