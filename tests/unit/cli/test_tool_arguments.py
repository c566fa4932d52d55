from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.cli.tool_arguments import (
    Argument,
    UsageError,
    arguments_of,
    parse_json,
    parse_words,
    required_arguments,
)

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "share": {"type": "number"},
        "deep": {"type": "boolean"},
        "tags": {"type": "array"},
        "filter": {"type": "object", "properties": {"kind": {"type": "string"}, "limit": {"type": "integer"}}},
        "maybe": {"type": ["integer", "null"]},
        "either": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
        "optional": {"anyOf": [{"$ref": "#/$defs/Filter"}, {"type": "null"}]},
        "level": {"enum": ["low", "high"]},
        "one": {"const": 1},
        "anything": {},
        "anyone": {"anyOf": [{"type": "integer"}, {}]},
        "dotted.name": {"type": "integer"},
        "referred": {"$ref": "#/$defs/Filter"},
        "composed": {"allOf": [{"$ref": "#/$defs/Filter"}]},
        "endless": {"$ref": "#/properties/endless"},
    },
    "$defs": {"Filter": {"type": "object", "properties": {"kind": {"type": "string"}}}},
}


def no_stdin() -> NoReturn:
    raise AssertionError("standard input was read")


def parsed(*words: str, **schema: Any) -> dict[str, Any]:
    return parse_words(list(words), SCHEMA | schema, no_stdin)


def refusal(*words: str, **schema: Any) -> str:
    with pytest.raises(UsageError) as refused:
        parsed(*words, **schema)
    return str(refused.value)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("text=5", "5"),
        ("text=", ""),
        ("text=a=b", "a=b"),
        ("text=true", "true"),
        ("count=5", 5),
        ("count=-5", -5),
        ("count=5.0", 5.0),
        ("share=5", 5),
        ("share=1e3", 1000.0),
        ("deep=true", True),
        ('tags=["a", 1]', ["a", 1]),
        ('filter={"kind": "x"}', {"kind": "x"}),
        ("filter.kind=5", {"kind": "5"}),
        ("maybe=5", 5),
        ("maybe=null", None),
        ("either=5", 5),
        ("either=five", "five"),
        ("either=[1]", "[1]"),
        ('optional={"kind": "x"}', {"kind": "x"}),
        ("optional=null", None),
        ("optional.kind=null", {"kind": "null"}),
        ("level=low", "low"),
        ("one=1", 1),
        ("anything=5", 5),
        ("anything=five", "five"),
        ("anything=NaN", "NaN"),
        ("anyone=five", "five"),
        ("dotted.name=5", 5),
        ("referred.kind=7", {"kind": "7"}),
        ("composed.kind=7", {"kind": "7"}),
        ("endless=5", 5),
    ],
)
def test_a_value_gets_the_type_that_the_schema_gives_it(word: str, value: object) -> None:
    [parsed_value] = parsed(word).values()
    assert parsed_value == value
    assert type(parsed_value) is type(value)


@given(st.dictionaries(st.sampled_from(["count", "share", "deep", "tags", "filter"]), st.none()).map(list), st.data())
def test_values_written_as_json_are_parsed_to_the_same_values(keys: list[str], data: st.DataObject) -> None:
    integers = st.integers(-(10**30), 10**30)
    values: dict[str, st.SearchStrategy[Any]] = {
        "count": integers,
        "share": st.floats(allow_nan=False, allow_infinity=False) | integers,
        "deep": st.booleans(),
        "tags": st.lists(st.text() | integers),
        "filter": st.dictionaries(st.text(), st.text()),
    }
    arguments = {key: data.draw(values[key]) for key in keys}
    assert parsed(*(f"{key}={json.dumps(value)}" for key, value in arguments.items())) == arguments


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("count=five", "count: 'five' is not of the type integer; write count=5."),
        ("count=5.5", "count: '5.5' is not of the type integer; write count=5."),
        ("count=true", "count: 'true' is not of the type integer; write count=5."),
        ("count=", "count: '' is not of the type integer; write count=5."),
        ("share=NaN", "share: 'NaN' is not of the type number; write share=0.5."),
        ("share=1e999", "share: '1e999' is not of the type number; write share=0.5."),
        ("deep=yes", "deep: 'yes' is not of the type boolean; write deep=true or deep=false."),
        ("deep=1", "deep: '1' is not of the type boolean; write deep=true or deep=false."),
        ("tags=a", """tags: 'a' is not of the type array; write 'tags=["a"]'."""),
        ("filter=[]", """filter: '[]' is not of the type object; write 'filter={"name": "value"}'."""),
        ("maybe=x", "maybe: 'x' is not of the type integer or null; write maybe=5."),
        ("filter.limit=x", "filter.limit: 'x' is not of the type integer; write filter.limit=5."),
        ("text.inner=x", "text.inner: text is not an object."),
        ("txt=5", "There is no argument 'txt'. Did you mean text?"),
        ("filter.kinds=5", "There is no argument 'kinds'. Did you mean kind?"),
        ("five", "'five' is not an argument; write key=value."),
        ("=five", "'=five' is not an argument; write key=value."),
    ],
)
def test_an_invalid_value_is_one_sentence(word: str, sentence: str) -> None:
    assert refusal(word) == sentence


def test_an_argument_that_is_given_twice_is_refused() -> None:
    assert refusal("count=1", "count=2").startswith("count is given twice")
    assert refusal("filter.kind=a", "filter={}").startswith("filter is given twice")
    assert refusal("anything=1", "anything.a=2") == "anything.a: anything already has a value."


def test_members_of_one_object_are_merged() -> None:
    assert parsed("filter.kind=a", "filter.limit=2") == {"filter": {"kind": "a", "limit": 2}}


def test_arguments_that_are_missing_are_named() -> None:
    assert refusal(required=["text"]) == "text is missing."
    assert refusal("text=a", required=["text", "count", "deep"]) == "count, deep are missing."
    assert required_arguments({"required": ["a", 1]}) == ["a"]
    assert required_arguments({}) == []


def test_a_tool_that_names_no_arguments_takes_any_and_one_that_forbids_them_takes_none() -> None:
    assert parse_words(["a=1", "b=x"], {"type": "object"}, no_stdin) == {"a": 1, "b": "x"}
    assert parsed("other=5", additionalProperties={"type": "string"}) == {"other": "5"}
    with pytest.raises(UsageError, match=r"^There is no argument 'a'\.$"):
        parse_words(["a=1"], {"type": "object", "additionalProperties": False}, no_stdin)


def test_a_dash_reads_standard_input() -> None:
    assert parse_words(["text=-"], SCHEMA, lambda: "a memory\n") == {"text": "a memory"}
    assert parse_words(["count=-", "text=x"], SCHEMA, lambda: "5\n") == {"count": 5, "text": "x"}
    assert parse_words(["-"], SCHEMA, lambda: '{"text": "x"}\n') == {"text": "x"}
    assert refusal("text=-", "either=-") == "Standard input can be read only once."


@pytest.mark.parametrize("text", ["", "{", "5", "[]", "null", '{"count": NaN}', "[" * 100_000, '{"txt": 1}', "{}"])
def test_json_that_does_not_hold_the_arguments_is_one_sentence(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_json(text, SCHEMA | {"required": ["text"]})
    assert len(str(refused.value).splitlines()) == 1


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_words_are_accepted_or_rejected_with_any_schema(schema: Any) -> None:
    for odd in ({"properties": {"a": schema}}, {"properties": schema, "required": schema}, {"$defs": schema}):
        with suppress(UsageError):
            parse_words(["a=1", "a.b=2"], odd, no_stdin)


def test_arguments_are_described_from_their_schema_with_required_ones_first() -> None:
    schema: dict[str, Any] = {
        "properties": {
            "limit": {"type": "integer", "description": "How many\n  at most.", "default": 10},
            "level": {"enum": ["low", 1], "title": "The level"},
            "tags": {"type": "array", "items": {"type": "string"}, "default": []},
            "maybe": {"anyOf": [{"$ref": "#/$defs/Filter"}, {"type": "null"}]},
            "open": {},
            "odd": "no schema",
            "query": {"type": "string", "description": "What to look for."},
        },
        "required": ["query"],
        "$defs": {"Filter": {"type": "object"}},
    }
    assert arguments_of(schema) == [
        Argument("query", "string", True, "What to look for."),
        Argument("limit", "integer", False, "How many at most. (default: 10)"),
        Argument("level", '"low" or 1', False, "The level"),
        Argument("tags", "array of string", False, "default: []"),
        Argument("maybe", "object or null", False, ""),
        Argument("open", "any", False, ""),
        Argument("odd", "any", False, ""),
    ]
    assert arguments_of({}) == []


def test_an_argument_of_type_null_has_no_example() -> None:
    assert refusal("nothing=x", properties={"nothing": {"type": "null"}}) == "nothing: 'x' is not of the type null."


@given(st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_arguments_are_described_from_any_schema(schema: Any) -> None:
    for odd in ({"properties": {"a": schema}}, {"properties": schema, "required": schema}, {"$defs": schema}):
        assert all(isinstance(argument.type, str) for argument in arguments_of(odd))
