"""The fast parser: it parses most messages with one call of the C JSON decoder and one regular expression for the id.

Invariant: it returns a result only if that is certain. It leaves every unusual message to the parser that walks through
the members one by one, and the two never disagree. Without it a request costs 1.3 times the CPU time
(`make bench-tricks`).
"""

from __future__ import annotations

import codecs
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Final

from vestige_bridge.jsonrpc.messages import AnyMessage, LargeResponse, Notification, Request, Response
from vestige_bridge.jsonrpc.spans import (
    DECIDING,
    DECIDING_IN_META,
    DECIDING_IN_PARAMS,
    MEMBERS_LIMIT,
    READ_IN_META,
    USUAL_IN_PARAMS,
    Value,
    after_space,
    decode,
    differs_only_in_case,
    refuse_constant,
)

LARGE_BYTES: Final = 4_194_304
"""Answers from this length on are parsed in a way that uses less memory; the usual one is faster."""

LARGE_DEPTH: Final = 4
"""Maximum nesting of the result of such an answer."""

_SLICE_BYTES: Final = 65_536

_CAN_READ_LARGE: Final = sys.version_info >= (3, 11, 5)
"""Python before 3.11.5 has a bug in possessive quantifiers; there, large answers are parsed like others."""

# The text between the members of a response.
_opening = re.compile(rb"[ \t\n\r]*\{").match
_response_key = re.compile(rb'[ \t\n\r]*("(?:jsonrpc|id|result|error)")[ \t\n\r]*:[ \t\n\r]*').match
_any_key = re.compile(rb'[ \t\n\r]*("[^"\\]*(?:\\.[^"\\]*)*")[ \t\n\r]*:[ \t\n\r]*', re.DOTALL).match
_space = re.compile(rb"[ \t\n\r]*").match
_structure = re.compile(rb'["\[\]{}]').search
_plain_value = re.compile(rb"[^ \t\n\r,\]}]*").match
# A string in parts, since each escape uses memory while the expression is matched.
_part_of_string = re.compile(rb'[^"\\]*(?:\\.[^"\\]*){0,1000}', re.DOTALL).match
_BACKSLASH: Final = ord("\\")
_closing = re.compile(rb"[ \t\n\r]*([,}])").match
_end = re.compile(rb"[ \t\n\r]*\Z").match
# An object becomes a tuple of its members, so that a repeated key is detected.
_decode_members = json.JSONDecoder(parse_int=float, parse_constant=refuse_constant, object_pairs_hook=tuple).raw_decode

# In a text that is known to be JSON: the id among the first members of the message, and as its last one.
_id_among_first = re.compile(
    r'\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]*"\s*,\s*)*("id")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*[,}]'
).match
_id_as_last = re.compile(r'("id")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*\}\s*\Z').match
_progress_token = re.compile(r'("progressToken")\s*:\s*(-?[0-9]+|"[^"\\]*")\s*[,}]').search


def read_response(data: bytes) -> Response | None:
    """A large response of usual structure, validated to its end without decoding; ``None`` for anything else.

    The usual parser would need three times its size in addition.

    Parameters:
        data: the bytes of one message from upstream.
    """
    if len(data) < LARGE_BYTES or not _CAN_READ_LARGE or not _is_utf8(data):
        return None
    opening = _opening(data)
    members: dict[bytes, Value] = {}
    index, closing = (0, b"") if opening is None else (opening.end(), b",")
    while closing == b",":
        key = _response_key(data, index)
        value = None if key is None else _value_grammar().match(data, key.end())
        close = None if value is None else _closing(data, value.end())
        if key is None or value is None or close is None or key[1] in members:
            return None
        members[key[1]] = Value(key.start(1), value.start(), value.end(), None)
        index, closing = close.end(), close[1]
    version, id_value, result, error = (members.get(key) for key in (b'"jsonrpc"', b'"id"', b'"result"', b'"error"'))
    if version is None or data[version.start : version.end] != b'"2.0"' or (result is None) == (error is None):
        return None
    if id_value is None or not _end(data, index):
        return None
    message_id = decode(data[id_value.start : id_value.end].decode(), 0)[0]
    if not isinstance(message_id, str | float):
        return None
    return LargeResponse(data, id=id_value._replace(value=message_id), failed=error is not None)


def walk_members(data: bytes, start: int = 0) -> Iterator[tuple[str, int]]:
    """Yields the members of an object in order, without decoding their values.

    A value is skipped only when the next member is requested.

    Parameters:
        data: bytes that are known to be JSON.
        start: the offset of the object, or of white space before it.

    Yields:
        The key, and the offset of its value.
        The key, and where its value begins.
    """
    index = _pass(_space, data, start) + 1
    while key := _any_key(data, index):
        yield decode(key[1].decode(), 0)[0], key.end()
        index = _pass(_space, data, _value_end(data, key.end())) + 1


def _value_end(data: bytes, start: int) -> int:
    """The end of a value at an offset of bytes that are known to be JSON, at any nesting depth."""
    if _CAN_READ_LARGE and (shallow := _value_grammar().match(data, start)):
        return shallow.end()
    if data[start] not in b'"[{':
        return _pass(_plain_value, data, start)
    depth, index = 0, start
    while mark := _structure(data, index):
        index = mark.end()
        if mark[0] == b'"':
            index = _string_end(data, index)
        else:
            depth += 1 if mark[0] in b"[{" else -1
        if not depth:
            break
    return index


def _string_end(data: bytes, index: int) -> int:
    """The end of a string, from an offset after its first quote."""
    while data[(index := _pass(_part_of_string, data, index))] == _BACKSLASH:
        pass
    return index + 1


def _pass(match: Callable[[bytes, int], re.Match[bytes] | None], data: bytes, index: int) -> int:
    """The offset after the match of an expression, which may be empty."""
    found = match(data, index)
    return index if found is None else found.end()


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with memoryview(data) as view:
            for start in range(0, len(view), _SLICE_BYTES):
                decoder.decode(view[start : start + _SLICE_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


@lru_cache(maxsize=1)
def _value_grammar() -> re.Pattern[bytes]:
    """A regular expression for a JSON value (RFC 8259) of limited depth, without backtracking."""
    space = rb"[ \t\n\r]*+"
    string = rb'"[^"\\\x00-\x1f]*+(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})[^"\\\x00-\x1f]*+)*+"'
    number = rb"-?+(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?+[0-9]++)?+"
    value = atom = b"|".join([string, number, b"true", b"false", b"null"])
    for _ in range(LARGE_DEPTH):
        parts = {b"s": space, b"member": b"%b%b:%b(?:%b)%b" % (string, space, space, value, space), b"value": value}
        members = rb"(?:%(member)b(?:,%(s)b(?=\")|(?=\})))*+" % parts
        elements = rb"(?:(?:%(value)b)%(s)b(?:,%(s)b(?!\])|(?=\])))*+" % parts
        value = rb"\{%b%b\}|\[%b%b\]|%b" % (space, members, space, elements, atom)
    return re.compile(value)


def scan(text: str) -> AnyMessage | None:
    """The message, if the fast parser is certain of it; ``None`` for any that is unusual or invalid."""
    try:
        pairs, end = _decode_members(text, 0)
    except (ValueError, RecursionError):
        return None
    if not isinstance(pairs, tuple) or (end != len(text) and after_space(text, end) != len(text)):
        return None
    members = _object(pairs)
    if members is None or members.get("jsonrpc") != "2.0" or not members.keys() <= DECIDING:
        return None
    message_id = members.get("id")
    id_value = None
    if message_id is not None and (id_value := _scan_id(text, message_id)) is None:
        return None
    method = members.get("method")
    if method is None:
        if ("result" in members) == ("error" in members) or not members.keys().isdisjoint({"method", "params"}):
            return None
        return Response(text, id=id_value, failed="error" in members, spans=None)
    if not isinstance(method, str) or (id_value is None and "id" in members):
        return None
    if "params" in members and not isinstance(members["params"], (tuple, list)):
        return None
    params = _object(members["params"]) if "params" in members else {}
    meta = _object(params["_meta"]) if params and "_meta" in params else {}
    if params is None or meta is None or "task" in params or _have_case_variants(params, meta):
        return None
    token = None
    if "progressToken" in meta and (token := _scan_token(text, meta["progressToken"])) is None:
        return None
    if id_value is None:
        return Notification(text, method, meta_keys=meta.keys(), spans=None)
    name = params.get("name")
    return Request(
        text,
        method,
        id=id_value,
        name=name if isinstance(name, str) else None,
        progress_token=token,
        task=None,
        meta_keys=meta.keys(),
        spans=None,
    )


def _object(members: object) -> dict[str, object] | None:
    """The members by key; empty if it is not an object, ``None`` if a key is repeated, or there are too many."""
    if not isinstance(members, tuple):
        return {}
    found = dict(members)
    return found if len(found) == len(members) <= MEMBERS_LIMIT else None


def _have_case_variants(params: Mapping[str, object], meta: Mapping[str, object]) -> bool:
    usual = params.keys() <= USUAL_IN_PARAMS and meta.keys() <= READ_IN_META
    return not usual and (
        any(differs_only_in_case(key, DECIDING_IN_PARAMS) for key in params)
        or any(differs_only_in_case(key, DECIDING_IN_META) for key in meta)
    )


def _scan_id(text: str, value: object) -> Value | None:
    """The span of the id, if it can only be that of the message itself.

    Among the first members only strings precede it. As the last member it ends at the end of the message; the quote
    before its key starts a string, because no backslash precedes it.
    """
    found = _id_among_first(text)
    if found is None:
        start = text.rfind('"id"')
        found = _id_as_last(text, start) if start > 0 and text[start - 1] != "\\" else None
    return None if found is None else Value(found.start(1), found.start(2), found.end(2), value)


def _scan_token(text: str, value: object) -> Value | None:
    """The span of the progress token, if its key occurs only once and no key contains an escape."""
    if "\\" in text or text.count('"progressToken"') != 1:
        return None
    found = _progress_token(text)
    return None if found is None else Value(found.start(1), found.start(2), found.end(2), value)
