"""Removal of tools from pages of `tools/list`, and detection of failed calls, with all other bytes unchanged."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit.json_texts import ID, Speller, spellers
from vestige_bridge.errors import InvalidMessage
from vestige_bridge.jsonrpc import fast_parser
from vestige_bridge.jsonrpc.spans import MEMBERS_LIMIT
from vestige_bridge.mcp.tools import reports_error, without_tools

VISIBLE = {"read", "se\u00e9n", "a/b"}
HIDDEN = {"write", "secret", "Read", "rea"}


def visible(name: object) -> bool:
    return isinstance(name, str) and name in VISIBLE


def read(text: str) -> Any:
    return json.loads(text, parse_int=float)


def kept(page: str) -> str:
    return without_tools(page.encode(), visible).decode()


def page_of(result: str) -> str:
    return f'{{"jsonrpc":"2.0","id":1,"result":{result}}}'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[]", "[]"),
        ("[ ]", "[ ]"),
        ('[{"name":"read"}]', '[{"name":"read"}]'),
        ('[{"name":"write"}]', "[]"),
        ('[\n {"name":"write"}\n]', "[\n \n]"),
        ('[{"name":"read"},{"name":"write"}]', '[{"name":"read"}]'),
        ('[{"name":"write"},{"name":"read"}]', '[{"name":"read"}]'),
        ('[{"name":"write"} , {"name":"read"} , {"name":"write"}]', '[{"name":"read"}]'),
        ('[{"name":"read"} ,\t{"name":"write"}, {"name":"read"}]', '[{"name":"read"}, {"name":"read"}]'),
        ('[{"name":"write"},{"name":"write"}]', "[]"),
        (r'[{"n\u0061me":"wr\u0069te"},{"\u006eame":"re\u0061d"}]', r'[{"\u006eame":"re\u0061d"}]'),
        # A tool that another parser could read under another name is removed.
        ('[{"name":"read","Name":"write"}]', "[]"),
        ('[{"name":"write","name":"read"}]', "[]"),
        ('[{"name":"read","name":"write"}]', "[]"),
        ('[{"NAME":"write"}]', "[]"),
        ('[{"name":"read","name":"read"}]', '[{"name":"read","name":"read"}]'),
        # An element that is not a tool is removed.
        ('[{},{"title":"write"},"write",["write"],null,7,true,{"name":null},{"name":["read"]}]', "[]"),
        # A name at a deeper level is not the name of the tool.
        ('[{"name":"read","annotations":{"name":"write"}}]', '[{"name":"read","annotations":{"name":"write"}}]'),
        ('[{"name":"write","annotations":{"name":"read"}}]', "[]"),
        ('[{"name":"Read"},{"name":"rea"},{"name":"read "}]', "[]"),
    ],
)
def test_tools_that_the_client_may_not_see_are_removed_from_a_page(before: str, after: str) -> None:
    for rest in ("", ',"nextCursor":"write"', ',"_meta":{"tools":[{"name":"write"}]},"ttlMs":1'):
        assert kept(page_of(f'{{"tools":{before}{rest}}}')) == page_of(f'{{"tools":{after}{rest}}}')
        assert kept(page_of(f'{{"x":1{rest} , "tools" : {before} }}')) == page_of(
            f'{{"x":1{rest} , "tools" : {after} }}'
        )


@pytest.mark.parametrize("key", ["tools", "Tools", "TOOLS", r"t\u006fols", "tool\u017f"])
def test_every_list_that_a_parser_could_take_for_the_tools_is_filtered(key: str) -> None:
    text = page_of(f'{{"{key}":[{{"name":"write"}}],"tools":[{{"name":"read"}},{{"name":"secret"}}]}}')
    assert kept(text) == page_of(f'{{"{key}":[],"tools":[{{"name":"read"}}]}}')


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"cacheScope":"public"', '"cacheScope":"private"'),
        (r'"cacheS\u0063ope":"publi\u0063"', r'"cacheS\u0063ope":"private"'),
        ('"cachescope":"public"', '"cachescope":"private"'),
        ('"cacheScope":"public","cacheScope":"public"', '"cacheScope":"private","cacheScope":"private"'),
        ('"cacheScope":"private"', '"cacheScope":"private"'),
        ('"cacheScope":"session","ttlMs":60000', '"cacheScope":"session","ttlMs":60000'),
        ('"_meta":{"cacheScope":"public"}', '"_meta":{"cacheScope":"public"}'),
    ],
)
def test_a_filtered_page_has_no_public_cache_scope(before: str, after: str) -> None:
    assert kept(page_of(f'{{{before},"tools":[]}}')) == page_of(f'{{{after},"tools":[]}}')
    assert kept(page_of(f'{{"tools":[{{"name":"read"}},{{"name":"write"}}],{before}}}')) == page_of(
        f'{{"tools":[{{"name":"read"}}],{after}}}'
    )


def test_without_a_filter_all_tools_are_kept_and_the_cache_scope_is_private() -> None:
    tools = '[{"name":"write"},{},7]'
    page = page_of(f'{{"tools":{tools},"cacheScope":"public"}}').encode()
    assert without_tools(page, None).decode() == page_of(f'{{"tools":{tools},"cacheScope":"private"}}')


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"no","data":{"tools":[{"name":"write"}]}}}',
        '{"jsonrpc":"2.0","id":1,"result":null}',
        '{"jsonrpc":"2.0","id":1,"result":[1, 2]}',
        '{"jsonrpc":"2.0","id":1,"result":{}}',
        ' {"id" : 1 , "jsonrpc":"2.0","result": {"nextCursor":"a"}}\n',
    ],
)
def test_a_message_without_tools_is_unchanged(text: str) -> None:
    assert kept(text) == text


def test_a_page_that_cannot_be_parsed_is_not_passed_on() -> None:
    members = ",".join(f'"x{number}":1' for number in range(MEMBERS_LIMIT + 1))
    with pytest.raises(InvalidMessage):
        kept(page_of(f'{{{members},"tools":[{{"name":"write"}}]}}'))
    with pytest.raises(RecursionError):
        kept(page_of(f'{{"tools":{"[" * 100_000}{"]" * 100_000}}}'))


def spelled_page(speller: Speller, names: list[str | None], extra: list[str]) -> tuple[str, str]:
    """Returns a page in a random spelling with a placeholder for the list, and the list of tools."""
    tools = []
    for name in names:
        unknown = [(f'"{key}"', speller.value()) for key in extra]
        named = [] if name is None else [(speller.spelled("name"), speller.spelled(name))]
        tools.append((name, speller.object([*named, *unknown])))
    whole = "[" + ",".join(f"{speller.space()}{text}{speller.space()}" for _, text in tools) + "]"
    slot = speller.members([("tools", ID), ("nextCursor", speller.string())])
    message = speller.members([("jsonrpc", '"2.0"'), ("id", speller.id()), ("result", slot)])
    return message, whole


@given(spellers, st.lists(st.sampled_from([*sorted(VISIBLE), *sorted(HIDDEN), None]), max_size=6), st.integers(0, 2))
def test_everything_except_the_removed_tools_is_unchanged(
    speller: Speller, names: list[str | None], extra: int
) -> None:
    message, tools = spelled_page(speller, names, [f"x{number}" for number in range(extra)])
    before, _, after = message.partition(ID)
    # The tools contain unpaired surrogates only as escapes, so they can be encoded.
    text = message.replace(ID, tools)
    cut = kept(text)
    assert cut.startswith(before)
    assert cut.endswith(after)
    inner = cut[len(before) : len(cut) - len(after)]
    assert [tool["name"] for tool in read(inner)] == [name for name in names if name in VISIBLE]
    for tool in read(tools):
        assert (tool in read(inner)) is (tool.get("name") in VISIBLE)
    if all(name in VISIBLE for name in names):
        assert cut == text
    # The remaining tools keep their characters.
    position = 0
    for start, end in _items(inner):
        position = tools.index(inner[start:end], position) + end - start
    assert kept(cut) == cut


def _items(array: str) -> list[tuple[int, int]]:
    decoder = json.JSONDecoder(parse_int=float)
    spans: list[tuple[int, int]] = []
    index = 1
    while True:
        while array[index] in " \t\n\r,":
            index += 1
        if array[index] == "]":
            return spans
        end = decoder.raw_decode(array, index)[1]
        spans.append((index, end))
        index = end


@pytest.mark.parametrize(
    ("result", "failed"),
    [
        ("{}", False),
        ('{"isError":true}', True),
        ('{"isError" :\n true }', True),
        (r'{"is\u0045rror":true}', True),
        ('{"isError":false}', False),
        ('{"isError":"true"}', False),
        ('{"isError":1}', False),
        ('{"isError":null}', False),
        ('{"content":[{"type":"text","text":"\\"isError\\":true"}]}', False),
        ('{"content":[{"isError":true}],"structuredContent":{"isError":true}}', False),
        ('{"content":[],"isError":true,"structuredContent":{"isError":false}}', True),
        ('{"isError":false,"isError":true}', True),
        ('{"_meta":{"a":{"b":{"c":{"d":{"isError":true}}}}}}', False),
        ('{"_meta":{"a":{"b":{"c":{"d":{"e":{}}}}}},"isError":true}', True),
        ("[true]", False),
        ('"isError"', False),
        ("null", False),
    ],
)
def test_a_call_failed_if_its_result_has_iserror_true(result: str, failed: bool) -> None:
    assert reports_error(page_of(result).encode()) is failed
    assert reports_error(f' {{"result": {result} , "id":"\u00e9", "jsonrpc":"2.0" }}'.encode()) is failed


@pytest.mark.parametrize("error", ["{}", '{"code":-1,"message":"no"}', '{"a":{"b":{"c":{"d":{"e":1}}}}}'])
def test_a_call_failed_if_its_answer_has_an_error_object(error: str) -> None:
    assert reports_error(f'{{"jsonrpc":"2.0","id":1,"error":{error}}}'.encode())
    assert reports_error(f'{{"error":{error},"jsonrpc":"2.0","id":1}}'.encode())


@given(spellers, st.sampled_from([None, "true", "false", "null", '"true"']), st.booleans())
@example(Speller(Random(0)), "true", False)
def test_iserror_is_recognized_in_any_spelling_of_a_result(speller: Speller, value: str | None, deep: bool) -> None:
    named = [("content", speller.value()), *([] if value is None else [("isError", value)])]
    inner = f"[[[[[[{speller.value()}]]]]]]" if deep else speller.value()
    result = speller.members([*named, ("structuredContent", inner)])
    text = speller.members([("jsonrpc", '"2.0"'), ("id", speller.id()), ("result", result)])
    assert reports_error(text.encode()) is (value == "true")


@pytest.mark.parametrize("can", [True, False])
def test_errors_are_recognized_with_and_without_the_fast_parser(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    monkeypatch.setattr(fast_parser, "_CAN_READ_LARGE", can)
    assert reports_error(page_of('{"content":[],"isError":true}').encode())
    assert not reports_error(page_of('{"content":[{"isError":true}]}').encode())
    assert reports_error(b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}')
