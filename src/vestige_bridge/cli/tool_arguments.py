"""The arguments of a tool on the command line: ``key=value``, with the types of the tool's schema.

Invariants: a value for which the schema gives no type is passed on as it is written. A value that the schema forbids is
rejected before the call is sent.
"""

from __future__ import annotations

import difflib
import json
import math
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

Schema = Mapping[str, Any]

STDIN: Final = "-"
"""The argument, or the value, that stands for standard input."""

_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "array": (list,),
    "boolean": (bool,),
    "integer": (int,),
    "null": (type(None),),
    "number": (int, float),
    "object": (dict,),
    "string": (str,),
}
_MAX_REFERENCES: Final = 8


class UsageError(Exception):
    """The arguments are wrong for this tool; the text is a sentence for the user."""


def parse_words(words: list[str], schema: Schema, read_stdin: Callable[[], str]) -> dict[str, Any]:
    """Parses the arguments of the command line.

    Parameters:
        words: ``key=value``, ``key=-`` for a value on standard input, or ``-`` for all arguments there as JSON.
        schema: the tool's ``inputSchema``.
        read_stdin: reads standard input to its end.

    Errors:
        UsageError: the schema does not allow them.
    """
    for word in words:
        _require_utf8(word)
    if words == [STDIN]:
        return parse_json(read_stdin(), schema)
    if sum(word.endswith(f"={STDIN}") for word in words) > 1:
        raise UsageError("Standard input can be read only once.")
    arguments: dict[str, Any] = {}
    for word in words:
        key, separator, value = word.partition("=")
        if not separator or not key:
            raise UsageError(f"{word!r} is not an argument; write key=value.")
        if value == STDIN:
            value = read_stdin().removesuffix("\n")
        _set(arguments, schema, key, value)
    _require_complete(arguments, schema)
    return arguments


def parse_json(text: str, schema: Schema) -> dict[str, Any]:
    """Parses the arguments in a JSON object.

    Errors:
        UsageError: it is not a JSON object, or the schema does not allow it.
    """
    _require_utf8(text)
    try:
        arguments = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The arguments are not valid JSON: {error}.") from error
    if not isinstance(arguments, dict):
        raise UsageError("The arguments are not a JSON object.")
    for key in arguments:
        _member(key, _Type(schema, schema))
    _require_complete(arguments, schema)
    return arguments


def required_arguments(schema: Schema) -> list[str]:
    """The names of the required arguments."""
    required = schema.get("required")
    return [name for name in required if isinstance(name, str)] if isinstance(required, list) else []


class Argument(NamedTuple):
    """One argument in a schema, with its texts for the user.

    Attributes:
        name: its name.
        type: the allowed types or values.
        required: whether it is required.
        description: its description.
    """

    name: str
    type: str
    required: bool
    description: str


def arguments_of(schema: Schema) -> list[Argument]:
    """The arguments in the schema, the required ones first."""
    required = required_arguments(schema)
    arguments = [
        Argument(name, _type_in_words(_mapping(inner), schema), name in required, _description(_mapping(inner)))
        for name, inner in _Type(schema, schema).members.items()
    ]
    return sorted(arguments, key=lambda argument: not argument.required)


def closest(name: str, names: list[str]) -> str:
    """A sentence with the most similar name, or all names; empty without names."""
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f" Did you mean {close[0]}?"
    return f" The names are: {', '.join(names)}." if names else ""


def _type_in_words(schema: Schema, root: Schema) -> str:
    leaves = _leaves(schema, root)
    words = []
    for leaf in leaves:
        if isinstance(leaf.get("enum"), list):
            words += [json.dumps(value, ensure_ascii=False) for value in leaf["enum"]]
        elif "array" in _names(leaf) and (inner := _names(_mapping(leaf.get("items")))):
            words.append(f"array of {' or '.join(sorted(inner))}")
        else:
            words += sorted(_names(leaf))
    return " or ".join(dict.fromkeys(words)) or "any"


def _description(schema: Schema) -> str:
    said = " ".join(str(schema.get("description") or schema.get("title") or "").split())
    default = f"default: {json.dumps(schema['default'], ensure_ascii=False)}" if "default" in schema else ""
    return f"{said} ({default})" if said and default else said or default


class _Type:
    """The schema of a value, with its references and alternatives resolved.

    Parameters:
        schema: the schema of the value.
        root: the schema of the tool, which contains the targets of references.

    Attributes:
        names: the names of the allowed types; empty if all are allowed.
        members: the schemas of the named members.
        others: the schema of all other members; ``None`` if none are allowed.
    """

    def __init__(self, schema: Schema, root: Schema) -> None:
        self.root = root
        leaves = _leaves(schema, root)
        each = [_names(leaf) for leaf in leaves]
        self.names: set[str] = set().union(*each) if all(each) else set()
        self.members = {name: inner for leaf in leaves for name, inner in _mapping(leaf.get("properties")).items()}
        open_ones = [leaf.get("additionalProperties", not leaf.get("properties")) for leaf in leaves]
        self.others = next((_mapping(other) for other in open_ones if other is not False), None)


def _leaves(schema: Schema, root: Schema, depth: int = 3) -> list[Schema]:
    """The schemas behind its references and alternatives (JSON Schema 2020-12, core, sections 8.2.3 and 10.2)."""
    for _ in range(_MAX_REFERENCES):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        at: object = root
        for step in reference[2:].split("/"):
            at = _mapping(at).get(step.replace("~1", "/").replace("~0", "~"))
        schema = _mapping(at)
    combined = [schema.get(name) for name in ("anyOf", "oneOf", "allOf")]
    choices = [choice for choices in combined if isinstance(choices, list) for choice in choices]
    if not choices or not depth or "type" in schema:
        return [schema]
    return [leaf for choice in choices for leaf in _leaves(_mapping(choice), root, depth - 1)]


def _names(leaf: Schema) -> set[str]:
    """The types that a schema without references and alternatives allows."""
    named = leaf.get("type")
    if isinstance(named, str):
        return {named}
    if isinstance(named, list):
        return {name for name in named if isinstance(name, str)}
    values = leaf.get("enum", [leaf["const"]] if "const" in leaf else None)
    return {name for value in values for name in _TYPES if _is_of(value, name)} if isinstance(values, list) else set()


def _set(arguments: dict[str, Any], schema: Schema, key: str, value: str) -> None:
    """Sets a value; a dot in the key means a member of an object, unless the schema has a key with that dot."""
    place, at, name = arguments, _Type(schema, schema), key
    while "." in name and name not in at.members:
        outer, _, name = name.partition(".")
        at = _member(outer, at)
        if at.names and "object" not in at.names:
            raise UsageError(f"{key}: {outer} is not an object.")
        place = place.setdefault(outer, {})
        if not isinstance(place, dict):
            raise UsageError(f"{key}: {outer} already has a value.")
    if name in place:
        raise UsageError(f"{key} is given twice; write an array as JSON: {key}='[1, 2]'.")
    place[name] = _typed(key, value, _member(name, at).names)


def _member(name: str, at: _Type) -> _Type:
    """The schema of one member.

    Errors:
        UsageError: there is no such member.
    """
    schema = at.members.get(name, at.others)
    if schema is None:
        raise UsageError(f"There is no argument {name!r}.{closest(name, list(at.members))}")
    return _Type(_mapping(schema), at.root)


def _typed(key: str, value: str, names: set[str]) -> Any:  # noqa: ANN401
    """Parses a value as one of the types; if there are none, as JSON.

    Errors:
        UsageError: it has none of these types.
    """
    if names == {"string"}:
        return value
    try:
        parsed = _parsed(value)
    except (ValueError, RecursionError):
        parsed = value
    if not names or any(_is_of(parsed, name) for name in names):
        return parsed
    if "string" in names:
        return value
    raise UsageError(f"{key}: {value!r} is not of the type {' or '.join(sorted(names))}{_example(key, value, names)}.")


def _example(key: str, value: str, names: set[str]) -> str:
    """An example for the first of the types that the user may have meant."""
    examples = {
        "array": [json.dumps([value], ensure_ascii=False)],
        "object": ['{"name": "value"}'],
        "integer": ["5"],
        "number": ["0.5"],
        "boolean": ["true", "false"],
    }
    written = next((examples[name] for name in examples if name in names), [])
    return f"; write {' or '.join(shlex.quote(f'{key}={it}') for it in written)}" if written else ""


def _parsed(text: str) -> Any:  # noqa: ANN401
    """Parses JSON (RFC 8259)."""
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    """The number, if it is one in JSON (RFC 8259, section 6)."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a JSON number")
    return number


def _is_of(value: object, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES.get(name, (object,)))


def _require_complete(arguments: Mapping[str, Any], schema: Schema) -> None:
    missing = [name for name in required_arguments(schema) if name not in arguments]
    if missing:
        raise UsageError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")


def _require_utf8(text: str) -> None:
    """Rejects arguments with bytes that are not UTF-8; Python keeps these as surrogates (PEP 383)."""
    byte = next((ord(it) - 0xDC00 for it in text if "\udc80" <= it <= "\udcff"), None)
    if byte is not None:
        raise UsageError(f"An argument is not UTF-8: it contains the byte 0x{byte:02x}.")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
