from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit.json_texts import Speller, spellers
from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED
from vestige_bridge.errors import Forbidden, InvalidMessage
from vestige_bridge.jsonrpc.parser import parse_body, parse_message
from vestige_bridge.mcp.tools import Tool, read_tool

TOOLS = {"read": Tool(read_only=True, repeatable=True), "set": Tool(repeatable=True), "write": Tool()}
KEYS = ["jsonrpc", "id", "method", "params", "result", "Method", "METHOD", "Params", "param\u017f", "ID", "__proto__"]
METHODS = ["tools/call", "tools/list", "ping", "memory/write", "notifications/cancelled", "notifications/write"]
NAMES = ["read", "write", "set", "unknown"]
HARMLESS = {"tools/list", "ping", "notifications/cancelled"}

Pairs = list[tuple[str, object]]


def first_wins(pairs: Pairs) -> dict[str, object]:
    return dict(reversed(pairs))


def without_case(pairs: Pairs) -> dict[str, object]:
    return {key.casefold(): value for key, value in pairs}


def first_without_case(pairs: Pairs) -> dict[str, object]:
    return without_case(list(reversed(pairs)))


READERS: list[Callable[[Pairs], dict[str, object]]] = [dict, first_wins, without_case, first_without_case]
"""What becomes of a repeated key, and of one in another case, is not the same for every reader of JSON."""


def writes(message: object) -> bool:
    """Whether a reader finds something in the message that is not known to change nothing."""
    if not isinstance(message, dict):
        return False
    method, params = message.get("method", "ping"), message.get("params")
    if method == "tools/call":
        return not isinstance(params, dict) or params.get("name") != "read"
    return method not in HARMLESS


def spell(speller: Speller, pairs: Iterable[tuple[str, str]]) -> str:
    return speller.object([(speller.spelled(key), value) for key, value in pairs])


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Messages and batches with the keys that matter missing, repeated, in another case, or spelled with escapes."""
    speller = draw(spellers)

    def message() -> str:
        members = [("jsonrpc", '"2.0"'), ("id", "1"), ("method", speller.spelled(draw(st.sampled_from(METHODS))))]
        other_keys = draw(st.lists(st.sampled_from(KEYS), max_size=2))
        members += [(key, speller.spelled(draw(st.sampled_from(METHODS)))) for key in other_keys]
        for key in draw(st.lists(st.sampled_from(["params", "Params", "param\u017f"]), max_size=2)):
            names = draw(st.lists(st.sampled_from(["name", "Name", "NAME", "arguments"]), max_size=2))
            values = [(name, speller.spelled(draw(st.sampled_from(NAMES)))) for name in names]
            members.append((key, spell(speller, values)))
        dropped = draw(st.sampled_from([None, None, None, "id", "method"]))
        return spell(speller, [member for member in members if member[0] != dropped])

    texts = [message() for _ in range(draw(st.integers(1, 3)))]
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


@given(bodies())
@example('{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"result":{},"METHOD":"tools/call","Params":{"Name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","Name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"},"param\u017f":{"name":"write"}}')
@example(r'{"jsonrpc":"2.0","id":1,"method":"ping","\u006dethod":"tools/call","params":{"name":"write"}}')
def test_no_spelling_of_a_write_passes_whoever_reads_it(text: str) -> None:
    try:
        parsed = parse_body(text.encode())
    except InvalidMessage:
        return
    for position, message in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        if isinstance(message, InvalidMessage):
            continue
        try:
            READ_ONLY.require(message, TOOLS)
        except Forbidden:
            continue
        for reader in READERS:
            read = json.loads(text, object_pairs_hook=reader)
            assert not writes(read[position] if isinstance(parsed, list) else read), (text, reader)


@given(spellers, st.sampled_from(["ping", "tools/list", "resources/read", "server/discover", "subscriptions/listen"]))
def test_what_changes_nothing_passes_in_any_spelling(speller: Speller, method: str) -> None:
    READ_ONLY.require(
        parse_message(
            spell(speller, [("jsonrpc", '"2.0"'), ("id", speller.id()), ("method", speller.spelled(method))])
        ),
        TOOLS,
    )


@given(spellers)
def test_a_tool_that_announces_that_it_only_reads_passes_in_any_spelling(speller: Speller) -> None:
    params = spell(speller, [("name", speller.spelled("read")), ("arguments", speller.value())])
    members = [
        ("jsonrpc", '"2.0"'),
        ("id", speller.id()),
        ("method", speller.spelled("tools/call")),
        ("params", params),
    ]
    READ_ONLY.require(parse_message(spell(speller, members)), TOOLS)


def test_a_principal_without_restrictions_may_send_anything() -> None:
    message = parse_message('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write"},"extra":1}')
    UNRESTRICTED.require(message, {})


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"write"}}', "readOnlyHint"),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"set"}}', "readOnlyHint"),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["read"]}', "readOnlyHint"),
        ('{"jsonrpc":"2.0","id":1,"method":"tools/call"}', "readOnlyHint"),
        ('{"jsonrpc":"2.0","method":"tools/call","params":{"name":"read"}}', "method"),
        ('{"jsonrpc":"2.0","id":1,"method":"notifications/initialized"}', "method"),
        ('{"jsonrpc":"2.0","method":"tools/list"}', "method"),
        ('{"jsonrpc":"2.0","id":1,"method":"tasks/cancel","params":{}}', "method"),
        ('{"jsonrpc":"2.0","id":1,"result":{},"extra":1}', "member that JSON-RPC does not know"),
    ],
)
def test_a_refusal_says_why_and_names_the_request(text: str, why: str) -> None:
    with pytest.raises(Forbidden, match=f"read-only, and .*{why}") as refusal:
        READ_ONLY.require(parse_message(text), TOOLS)
    assert refusal.value.request_id == ("1" if '"id":1,"method"' in text else None)


@pytest.mark.parametrize(
    ("annotations", "tool"),
    [
        ({"readOnlyHint": True}, Tool(read_only=True, repeatable=True)),
        ({"idempotentHint": True}, Tool(read_only=False, repeatable=True)),
        ({"readOnlyHint": "true", "idempotentHint": 1}, Tool()),
        ({"readOnlyHint": False, "idempotentHint": True}, Tool(repeatable=True)),
        ([], Tool()),
        (None, Tool()),
    ],
)
def test_a_tool_is_what_it_announces_and_nothing_more(annotations: object, tool: Tool) -> None:
    assert read_tool({"name": "x", "annotations": annotations}) == tool
