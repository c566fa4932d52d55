"""Changes to JSON texts that make strict JSON parsers accept them, and the limit of nesting."""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit import json_texts
from unit.json_texts import ID, TOKEN
from vestige_bridge.jsonrpc.strict import NESTING_LIMIT, is_too_deep, replace_unpaired_surrogates, shallow

_PIECES = [
    *(r"\ud83d", r"\uD83D", r"\uDbFf", r"\ude00", r"\uDE00", r"\udfff", r"\ud7ff", r"\ue000", r"\uFFFD", r"\\"),
    *(r"\"", r"\n", "d83d", "ud83d", "u", "a", "é", "😀", r"\u0041", r"\ud83d\ude00", r"\\ud83d", r"\\\ud83d"),
]
_strings = st.lists(st.sampled_from(_PIECES), max_size=12).map("".join).map('"{}"'.format)
_texts = st.one_of(
    _strings,
    st.lists(_strings, max_size=4).map(",".join).map("[{}]".format),
    st.tuples(_strings, _strings).map(":".join).map("{{{}}}".format),
    json_texts.values,
    json_texts.requests.map(lambda text: text.replace(ID, "1").replace(TOKEN, "2")),
)


def whole(value: Any) -> Any:
    """Replaces each surrogate in the value by U+FFFD; a JSON parser has already joined each pair to one character."""
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list):
        return [whole(it) for it in value]
    if isinstance(value, tuple):
        return tuple(whole(it) for it in value)
    return value


def read(text: str) -> Any:
    return json.loads(text, parse_int=float, object_pairs_hook=tuple)


@given(_texts)
@example(r'"\ud83d"')
@example(r'"\ud83d\ud83d\ude00\ude00"')
@example(r'"\\\\ud83d\\\ud83d"')
@example(r'["\ud83d","\ude00"]')
def test_each_unpaired_surrogate_is_replaced_and_nothing_else_changes(text: str) -> None:
    replaced = replace_unpaired_surrogates(text)
    assert read(replaced) == whole(read(text))
    assert len(replaced) == len(text)
    changed = [index for index, (old, new) in enumerate(zip(text, replaced, strict=True)) if old != new]
    assert all(replaced[index] in "fFdD" for index in changed)
    assert replace_unpaired_surrogates(replaced) == replaced


@given(st.text(alphabet='\\ud8DCfF0e"\0 a', max_size=40))
def test_replacing_surrogates_keeps_valid_json_valid_and_invalid_json_invalid(text: str) -> None:
    def is_json(text: str) -> bool:
        try:
            json.loads(text)
        except ValueError:
            return False
        return True

    assert is_json(replace_unpaired_surrogates(text)) == is_json(text)


@pytest.mark.parametrize("unit", [r"\ud83d", r"\ude00\\", r"\ud83d\ude00", "\\\\", r"é\ud83d"])
def test_all_unpaired_surrogates_of_a_large_text_are_replaced(unit: str) -> None:
    text = '"' + unit * 150_000 + '"'
    assert json.loads(replace_unpaired_surrogates(text)) == whole(json.loads(text))


def depth(value: Any) -> int:
    """Returns the number of levels of a parsed value."""
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def nested(random: Random, levels: int) -> str:
    """Returns a JSON text with that number of levels."""
    text = random.choice(["1", '"]["', r'"\"[{"', r'"\\"'])
    for _ in range(levels):
        text = random.choice(["[@]", '{"a":@}', '[[],@,"\\\\"]', '{"[":1,"]":@,"c":{}}', '["{",[1],@]']).replace(
            "@", text
        )
    return text


@given(st.randoms(use_true_random=True), st.integers(NESTING_LIMIT - 3, NESTING_LIMIT + 3))
def test_a_text_is_too_deep_exactly_if_its_parsed_value_is(random: Random, levels: int) -> None:
    text = nested(random, levels)
    assert is_too_deep(text) == (depth(json.loads(text)) > NESTING_LIMIT)


@given(st.randoms(use_true_random=True), st.lists(st.integers(0, 150), max_size=4))
def test_shallow_keeps_scalar_members_and_replaces_objects_and_arrays_by_null(
    random: Random, levels: list[int]
) -> None:
    members = [(f'"{index}"', nested(random, it)) for index, it in enumerate(levels)]
    text = json_texts.Speller(random).object(members)
    expected = {key: None if isinstance(value, dict | list) else value for key, value in json.loads(text).items()}
    assert json.loads(shallow(text)) == expected
