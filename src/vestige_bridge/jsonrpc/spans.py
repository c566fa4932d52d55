"""JSON text: the spans of its members, and replacement of one without changing the rest.

Invariant: a text is never serialized again. Members are found by their spans, and all other text stays in its original
form.

Offsets are those of the decoded text. Decoding and encoding UTF-8 strictly is the identity, so statements about the
characters also hold for the bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, NoReturn

from vestige_bridge.errors import InvalidMessage, ParseError

READ_IN_PARAMS: Final = frozenset(
    {
        "_meta",
        "inputResponses",
        "level",
        "name",
        "notifications",
        "progressToken",
        "protocolVersion",
        "requestId",
        "requestState",
        "task",
        "uri",
    }
)
READ_IN_META: Final = frozenset(
    {
        "progressToken",
        "traceparent",
        "io.modelcontextprotocol/clientCapabilities",
        "io.modelcontextprotocol/clientInfo",
        "io.modelcontextprotocol/logLevel",
        "io.modelcontextprotocol/protocolVersion",
    }
)

DECIDING: Final = frozenset({"error", "id", "jsonrpc", "method", "params", "result"})
DECIDING_IN_PARAMS: Final = frozenset({"_meta", "name", "progressToken", "requestId", "task"})
DECIDING_IN_META: Final = frozenset({"progressToken"})
"""The keys that determine the kind of a message and its recipient, at the three levels."""

USUAL_IN_PARAMS: Final = READ_IN_PARAMS | {"arguments", "cursor"}
_DECIDING_FOLDED: Final = frozenset(key.casefold() for key in DECIDING | DECIDING_IN_PARAMS)

BATCH_LIMIT: Final = 1_024
"""Maximum number of messages in a batch."""

MEMBERS_LIMIT: Final = 4_096
"""Maximum number of members of an object at these levels; parsing more would delay all other requests."""

_skip_space = re.compile(r"[ \t\n\r]*").match


def refuse_constant(name: str) -> NoReturn:
    """Rejects values that Python's decoder accepts but JSON does not have: NaN and Infinity."""
    raise ValueError(f"{name} is not JSON")


# `float` for integers: CPython rejects an int of more than 4,300 digits, and no number is serialized again here.
decode = json.JSONDecoder(parse_int=float, parse_constant=refuse_constant).raw_decode


class Value(NamedTuple):
    """The value of a member, and the offsets of it and its key.

    Attributes:
        key_start: the start of the key.
        start: the start of the value.
        end: the end of the value.
        value: the value itself; ``None`` for an object whose members are stored separately.
    """

    key_start: int
    start: int
    end: int
    value: object


OnMember = Callable[[str, int, int], int]
"""Called with a member's key, the start of the key and the start of the value; returns the end of the value."""


class Spans(NamedTuple):
    """The members at the three levels that the bridge reads, and the keys that are repeated there."""

    members: Mapping[str, Value]
    params: Mapping[str, Value]
    meta: Mapping[str, Value]
    repeated: frozenset[str]


def differs_only_in_case(key: str, deciding: frozenset[str]) -> bool:
    """Whether the key is not in the set, but some JSON parsers, such as Go's, would match it to one that is."""
    return (
        key not in deciding and (folded := key.casefold()) in _DECIDING_FOLDED and folded in map(str.casefold, deciding)
    )


def members_of(text: str, start: int = 0) -> dict[str, Value]:
    """The members of the object at ``start`` of a text that is known to be JSON."""
    return dict(occurrences(text, start))


def occurrences(text: str, start: int = 0) -> list[tuple[str, Value]]:
    """All members of the object at ``start`` of a text that is JSON, including repeated keys."""
    found: list[tuple[str, Value]] = []

    def on_member(key: str, key_start: int, value_start: int) -> int:
        value, end = decode(text, value_start)
        found.append((key, Value(key_start, value_start, end, value)))
        return end

    _members(text, after_space(text, start), on_member)
    return found


def items_of(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of the items of the array at ``start`` of a text that is known to be JSON."""
    spans: list[tuple[int, int]] = []
    index = after_space(text, start + 1)
    while text[index] != "]":
        end = decode(text, index)[1]
        spans.append((index, end))
        index = after_space(text, end)
        if text[index] == ",":
            index = after_space(text, index + 1)
    return spans


def replace_member(text: str, key: str, value: object) -> str:
    """The JSON object in ``text`` with the value of one member, if it exists, replaced; the rest is unchanged."""
    member = members_of(text).get(key)
    return text if member is None else text[: member.start] + dump(value) + text[member.end :]


def add_members(text: str, start: int, members: Mapping[str, str]) -> str:
    """The text with members, given as JSON, inserted at the beginning of the object at ``start``."""
    if not members:
        return text
    rest = after_space(text, start + 1)
    spelled = ",".join(f"{dump(key)}:{value}" for key, value in members.items())
    return f"{text[: start + 1]}{spelled}{'' if text[rest] == '}' else ','}{text[start + 1 :]}"


def without_member(text: str, member: Value) -> str:
    """The text without a member of one of its objects and one comma beside it; the rest is unchanged."""
    before, rest = text[: member.key_start].rstrip(" \t\n\r"), after_space(text, member.end)
    if before.endswith(","):
        return before[:-1] + text[member.end :]
    return text[: member.key_start] + text[rest + 1 if text[rest] == "," else rest :]


def dump(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def find_spans(text: str) -> Spans:
    """Finds the members of the message, of its ``params`` and of their ``_meta``."""
    members: dict[str, Value] = {}
    params: dict[str, Value] = {}
    meta: dict[str, Value] = {}
    repeated: set[str] = set()

    def visitor(
        found: dict[str, Value],
        read: frozenset[str] | None,
        deciding: frozenset[str],
        nested: str = "",
        inner: OnMember | None = None,
    ) -> OnMember:
        def on_member(key: str, key_start: int, start: int) -> int:
            if inner is not None and key == nested and text[start : start + 1] == "{":
                value, end = None, _members(text, start, inner)
            else:
                value, end = decode(text, start)
            if (key in found and (read is None or key in read)) or differs_only_in_case(key, deciding):
                repeated.add(key)
            found[key] = Value(key_start, start, end, value)
            return end

        return on_member

    visit_meta = visitor(meta, READ_IN_META, DECIDING_IN_META)
    visit_params = visitor(params, READ_IN_PARAMS, DECIDING_IN_PARAMS, "_meta", visit_meta)
    visit_message = visitor(members, None, DECIDING, "params", visit_params)
    try:
        start = after_space(text, 0)
        end = _members(text, start, visit_message) if text[start : start + 1] == "{" else decode(text, start)[1]
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError:
        raise ParseError("The body is not JSON.") from None
    if after_space(text, end) != len(text):
        raise ParseError("The body is not JSON: there is text after the message.")
    if not members and text[start] != "{":
        raise InvalidMessage("Not a JSON-RPC 2.0 message: it must be an object.")
    return Spans(members, params, meta, frozenset(repeated))


def _members(text: str, start: int, on_member: OnMember) -> int:
    """Calls ``on_member`` for each member; returns the end of the object."""
    index = after_space(text, start + 1)
    if text[index : index + 1] == "}":
        return index + 1
    for _ in range(MEMBERS_LIMIT):
        if text[index : index + 1] != '"':
            raise ValueError("a key is missing")
        key_start = index
        key, index = decode(text, index)
        index = after_space(text, index)
        if text[index : index + 1] != ":":
            raise ValueError("a colon is missing")
        index = after_space(text, on_member(key, key_start, after_space(text, index + 1)))
        if text[index : index + 1] == "}":
            return index + 1
        if text[index : index + 1] != ",":
            raise ValueError("a comma is missing")
        index = after_space(text, index + 1)
    raise InvalidMessage(f"An object of this message has more than {MEMBERS_LIMIT} members.")


def elements(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of the elements of the array that begins at ``start`` and is the whole text."""
    spans: list[tuple[int, int]] = []
    try:
        index = after_space(text, start + 1)
        if text[index : index + 1] == "]" and after_space(text, index + 1) == len(text):
            raise InvalidMessage("The batch is empty; send at least one request.")
        while True:
            if len(spans) == BATCH_LIMIT:
                raise InvalidMessage(f"A batch must not contain more than {BATCH_LIMIT} messages.")
            end = decode(text, index)[1]
            spans.append((index, end))
            index = after_space(text, end)
            closing = text[index : index + 1]
            if closing not in (",", "]"):
                raise ValueError("a comma is missing")
            index = after_space(text, index + 1)
            if closing == "]":
                break
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError:
        raise ParseError("The body is not JSON.") from None
    if index != len(text):
        raise ParseError("The body is not JSON: there is text after the batch.")
    return spans


def after_space(text: str, index: int) -> int:
    """The first offset from ``index`` on that is not white space."""
    match = _skip_space(text, index)
    return index if match is None else match.end()
