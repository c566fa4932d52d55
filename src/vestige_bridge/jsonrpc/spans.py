"""JSON text: where its members stand, and how one is replaced without touching the rest.

Invariant: a text is never printed again. What is looked for is found by its span, and everything else
stays as its author wrote it.

Offsets are those of the decoded text. Decoding and encoding UTF-8 strictly is the identity, so what holds for the
characters holds for the bytes.
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
"""The keys by which a message is told from others and given to somebody, at the three levels."""

USUAL_IN_PARAMS: Final = READ_IN_PARAMS | {"arguments", "cursor"}
_DECIDING_FOLDED: Final = frozenset(key.casefold() for key in DECIDING | DECIDING_IN_PARAMS)

BATCH_LIMIT: Final = 1_024
"""How many messages a batch may hold."""

MEMBERS_LIMIT: Final = 4_096
"""How many members an object may have where the bridge reads; all others wait while it does."""

_skip_space = re.compile(r"[ \t\n\r]*").match


def refuse_constant(name: str) -> NoReturn:
    """Refuses what Python's decoder takes for a number and JSON does not know: NaN and Infinity."""
    raise ValueError(f"{name} is not JSON")


# `float` for integers: CPython refuses to read an int of more than 4,300 digits, and no number is printed again here.
decode = json.JSONDecoder(parse_int=float, parse_constant=refuse_constant).raw_decode


class Value(NamedTuple):
    """The value of a member, and the offsets where it and its key are spelled.

    Attributes:
        key_start: where the key begins.
        start: where the value begins.
        end: where the value ends.
        value: the value itself; ``None`` for an object whose members are kept apart.
    """

    key_start: int
    start: int
    end: int
    value: object


OnMember = Callable[[str, int, int], int]
"""Told of a member's key, where the key begins and where the value begins; returns where the value ends."""


class Spans(NamedTuple):
    """Where the members stand at the three levels at which the bridge reads, and which keys stand there twice."""

    members: Mapping[str, Value]
    params: Mapping[str, Value]
    meta: Mapping[str, Value]
    repeated: frozenset[str]


def differs_only_in_case(key: str, deciding: frozenset[str]) -> bool:
    """Whether the key is not one of those, and some readers of JSON, such as Go's, take it for one nevertheless."""
    return (
        key not in deciding and (folded := key.casefold()) in _DECIDING_FOLDED and folded in map(str.casefold, deciding)
    )


def members_of(text: str, start: int = 0) -> dict[str, Value]:
    """The members of the object that opens at ``start`` of a text that is known to be JSON."""
    return dict(occurrences(text, start))


def occurrences(text: str, start: int = 0) -> list[tuple[str, Value]]:
    """Every member of the object that opens at ``start`` of a text that is JSON, a key's second one included."""
    found: list[tuple[str, Value]] = []

    def on_member(key: str, key_start: int, value_start: int) -> int:
        value, end = decode(text, value_start)
        found.append((key, Value(key_start, value_start, end, value)))
        return end

    _members(text, after_space(text, start), on_member)
    return found


def items_of(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of the items of the array that opens at ``start`` of a text that is known to be JSON."""
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
    """The JSON object in ``text`` with the value of one member, if it is there, replaced; all else as it was."""
    member = members_of(text).get(key)
    return text if member is None else text[: member.start] + dump(value) + text[member.end :]


def add_members(text: str, start: int, members: Mapping[str, str]) -> str:
    """The text with members, given as JSON, put first into the object that opens at ``start``."""
    if not members:
        return text
    rest = after_space(text, start + 1)
    spelled = ",".join(f"{dump(key)}:{value}" for key, value in members.items())
    return f"{text[: start + 1]}{spelled}{'' if text[rest] == '}' else ','}{text[start + 1 :]}"


def without_member(text: str, member: Value) -> str:
    """The text without a member of one of its objects, and without one of the commas beside it; all else as it was."""
    before, rest = text[: member.key_start].rstrip(" \t\n\r"), after_space(text, member.end)
    if before.endswith(","):
        return before[:-1] + text[member.end :]
    return text[: member.key_start] + text[rest + 1 if text[rest] == "," else rest :]


def dump(value: object) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"))


def find_spans(text: str) -> Spans:
    """Walks through the members of the message, of its ``params`` and of their ``_meta``."""
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
        raise ParseError("The body is not JSON: something follows the message.")
    if not members and text[start] != "{":
        raise InvalidMessage("Not a JSON-RPC 2.0 message: an object is wanted.")
    return Spans(members, params, meta, frozenset(repeated))


def _members(text: str, start: int, on_member: OnMember) -> int:
    """Calls ``on_member(key, value_start)``, which returns the value's end, for each member; returns its end."""
    index = after_space(text, start + 1)
    if text[index : index + 1] == "}":
        return index + 1
    for _ in range(MEMBERS_LIMIT):
        if text[index : index + 1] != '"':
            raise ValueError("a key is wanted")
        key_start = index
        key, index = decode(text, index)
        index = after_space(text, index)
        if text[index : index + 1] != ":":
            raise ValueError("a colon is wanted")
        index = after_space(text, on_member(key, key_start, after_space(text, index + 1)))
        if text[index : index + 1] == "}":
            return index + 1
        if text[index : index + 1] != ",":
            raise ValueError("a comma is wanted")
        index = after_space(text, index + 1)
    raise InvalidMessage(f"An object of this message has more than {MEMBERS_LIMIT} members.")


def elements(text: str, start: int) -> list[tuple[int, int]]:
    """The spans of the elements of the array that opens at ``start`` and is the whole text."""
    spans: list[tuple[int, int]] = []
    try:
        index = after_space(text, start + 1)
        if text[index : index + 1] == "]" and after_space(text, index + 1) == len(text):
            raise InvalidMessage("The batch is empty; send at least one request.")
        while True:
            if len(spans) == BATCH_LIMIT:
                raise InvalidMessage(f"A batch may hold {BATCH_LIMIT} messages.")
            end = decode(text, index)[1]
            spans.append((index, end))
            index = after_space(text, end)
            closing = text[index : index + 1]
            if closing not in (",", "]"):
                raise ValueError("a comma is wanted")
            index = after_space(text, index + 1)
            if closing == "]":
                break
    except RecursionError:
        raise ParseError("The body is nested too deeply.") from None
    except ValueError:
        raise ParseError("The body is not JSON.") from None
    if index != len(text):
        raise ParseError("The body is not JSON: something follows the batch.")
    return spans


def after_space(text: str, index: int) -> int:
    """The first offset from ``index`` on where no white space stands."""
    match = _skip_space(text, index)
    return index if match is None else match.end()
