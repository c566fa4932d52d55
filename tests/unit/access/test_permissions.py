from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit.json_texts import Speller, spellers
from vestige_bridge.access.permissions import READ_ONLY, UNRESTRICTED, Permissions, matches
from vestige_bridge.errors import Forbidden, InvalidMessage
from vestige_bridge.jsonrpc.parser import parse_body, parse_message
from vestige_bridge.mcp.tools import Tool, read_tool

TOOLS = {"read": Tool(read_only=True, repeatable=True), "set": Tool(repeatable=True), "write": Tool()}
KEYS = ["jsonrpc", "id", "method", "params", "result", "Method", "METHOD", "Params", "param\u017f", "ID", "__proto__"]
METHODS = ["tools/call", "tools/list", "ping", "memory/write", "notifications/cancelled", "notifications/write"]
METHODS += ["Tools/Call", "TOOLS/call", "resources/read", "Resources/Read", "prompts/get"]
NAMES = ["read", "write", "set", "unknown"]
HARMLESS = {"tools/list", "ping", "notifications/cancelled", "resources/read", "prompts/get"}

Pairs = list[tuple[str, object]]


def first_wins(pairs: Pairs) -> dict[str, object]:
    return dict(reversed(pairs))


def without_case(pairs: Pairs) -> dict[str, object]:
    return {key.casefold(): value for key, value in pairs}


def first_without_case(pairs: Pairs) -> dict[str, object]:
    return without_case(list(reversed(pairs)))


READERS: list[Callable[[Pairs], dict[str, object]]] = [dict, first_wins, without_case, first_without_case]
"""JSON parsers differ in their treatment of repeated keys and of keys in another case."""


def writes(message: object) -> bool:
    """Returns whether a parsed message is not known to be read-only."""
    if not isinstance(message, dict):
        return False
    method, params = message.get("method", "ping"), message.get("params")
    if method == "tools/call":
        return not isinstance(params, dict) or params.get("name") != "read"
    return method not in HARMLESS


def calls_another(message: object) -> bool:
    """Returns whether a parsed message could be a call of a tool other than ``read`` and ``set``."""
    if not isinstance(message, dict):
        return False
    method, params = str(message.get("method", "ping")), message.get("params")
    if method.casefold() == "tools/call":
        return method != "tools/call" or not isinstance(params, dict) or params.get("name") not in ("read", "set")
    return False


def uses_resources(message: object) -> bool:
    """Returns whether a parsed message is a request for resources or prompts."""
    return isinstance(message, dict) and str(message.get("method")).casefold().startswith(("resources/", "prompts/"))


def spell(speller: Speller, pairs: Iterable[tuple[str, str]]) -> str:
    return speller.object([(speller.spelled(key), value) for key, value in pairs])


@st.composite
def bodies(draw: st.DrawFn) -> str:
    """Draws messages and batches with relevant keys missing, repeated, in another case, or spelled with escapes."""
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


LISTED = Permissions(tools=("read", "set"))
WITHOUT_RESOURCES = Permissions(resources=False)
ALL_LIMITS = Permissions(read_only=True, tools=("set", "read"), resources=False)


@given(bodies())
@example('{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call","params":{"name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"result":{},"METHOD":"tools/call","Params":{"Name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","Name":"write"}}')
@example('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read"},"param\u017f":{"name":"write"}}')
@example(r'{"jsonrpc":"2.0","id":1,"method":"ping","\u006dethod":"tools/call","params":{"name":"write"}}')
def test_no_message_that_another_parser_reads_as_forbidden_is_allowed(text: str) -> None:
    try:
        parsed = parse_body(text.encode())
    except InvalidMessage:
        return
    for position, message in enumerate(parsed if isinstance(parsed, list) else [parsed]):
        if isinstance(message, InvalidMessage):
            continue
        for permissions, refused in (
            (READ_ONLY, (writes,)),
            (LISTED, (calls_another,)),
            (WITHOUT_RESOURCES, (uses_resources,)),
            (ALL_LIMITS, (writes, calls_another, uses_resources)),
        ):
            try:
                permissions.require(message, TOOLS)
            except Forbidden:
                continue
            for reader in READERS:
                read = json.loads(text, object_pairs_hook=reader)
                for is_refused in refused:
                    assert not is_refused(read[position] if isinstance(parsed, list) else read), (text, reader)


@given(spellers, st.sampled_from(["ping", "tools/list", "resources/read", "server/discover", "subscriptions/listen"]))
def test_a_read_only_request_passes_in_any_spelling(speller: Speller, method: str) -> None:
    READ_ONLY.require(
        parse_message(
            spell(speller, [("jsonrpc", '"2.0"'), ("id", speller.id()), ("method", speller.spelled(method))])
        ),
        TOOLS,
    )


@given(spellers)
def test_a_call_of_a_read_only_tool_passes_in_any_spelling(speller: Speller) -> None:
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


def request(method: str, **params: object) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})


@pytest.mark.parametrize(
    ("permissions", "text", "why"),
    [
        (LISTED, request("tools/call", name="write"), "limited, and it may not call this tool"),
        (LISTED, request("tools/call", name="Read"), "it may not call this tool"),
        (LISTED, request("tools/call", name="read "), "it may not call this tool"),
        (LISTED, request("tools/call", name=["read"]), "it may not call this tool"),
        (LISTED, request("tools/call", name=""), "it may not call this tool"),
        (LISTED, request("tools/call"), "it may not call this tool"),
        (LISTED, '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":["read"]}', "it may not call this tool"),
        (LISTED, '{"jsonrpc":"2.0","id":1,"method":"tools/call"}', "it may not call this tool"),
        (LISTED, '{"jsonrpc":"2.0","method":"tools/call","params":{"name":"read"}}', "this method may call tools"),
        (LISTED, request("tools/List"), "this method may call tools"),
        (LISTED, request("TOOLS/call", name="read"), "this method may call tools"),
        (LISTED, request("tools/call_many", names=["read"]), "this method may call tools"),
        (LISTED, request("tools"), "this method may call tools"),
        (LISTED, '{"jsonrpc":"2.0","id":1,"method":"ping","extra":1}', "member that JSON-RPC does not define"),
        (Permissions(tools=()), request("tools/call", name="read"), "it may not call this tool"),
        (Permissions(tools=("*",)), request("tools/call", name=7), "it may not call this tool"),
        (Permissions(tools=("*",)), request("tools/call"), "it may not call this tool"),
        (WITHOUT_RESOURCES, request("resources/read", uri="a:b"), "limited, and it may not use resources"),
        (WITHOUT_RESOURCES, request("resources/list"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("resources/templates/list"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("resources/subscribe", uri="a:b"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("RESOURCES/LIST"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("prompts/list"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("prompts/get", name="read"), "it may not use resources"),
        (WITHOUT_RESOURCES, request("completion/complete"), "it may not use resources"),
        (
            WITHOUT_RESOURCES,
            request("subscriptions/listen", notifications={"resourceSubscriptions": ["a:b"]}),
            "it may not use resources",
        ),
        (ALL_LIMITS, request("tools/call", name="write"), "read-only, and it may not call this tool"),
        (ALL_LIMITS, request("tools/call", name="set"), "read-only, and this tool does not set readOnlyHint"),
        (ALL_LIMITS, request("resources/list"), "read-only, and it may not use resources"),
        (ALL_LIMITS, request("memory/write"), "read-only, and this method is not known to be read-only"),
    ],
)
def test_a_message_that_an_entry_does_not_allow_is_rejected_with_the_reason(
    permissions: Permissions, text: str, why: str
) -> None:
    with pytest.raises(Forbidden, match=why) as refusal:
        permissions.require(parse_message(text), TOOLS)
    assert refusal.value.request_id == ("1" if '"id"' in text else None)


@pytest.mark.parametrize(
    ("permissions", "text"),
    [
        (LISTED, request("tools/call", name="read")),
        (LISTED, request("tools/call", name="set")),
        (LISTED, request("tools/list", cursor="2")),
        (LISTED, request("resources/read", uri="a:b")),
        (LISTED, request("prompts/get", name="write")),
        (LISTED, request("memory/write")),
        (LISTED, '{"jsonrpc":"2.0","id":1,"result":{}}'),
        (Permissions(tools=("*",)), request("tools/call", name="unknown")),
        (WITHOUT_RESOURCES, request("tools/call", name="write")),
        (WITHOUT_RESOURCES, request("subscriptions/listen", notifications={"toolsListChanged": True})),
        (WITHOUT_RESOURCES, request("subscriptions/listen", notifications={"resourceSubscriptions": []})),
        (ALL_LIMITS, request("tools/call", name="read")),
        (ALL_LIMITS, request("tools/list")),
        (ALL_LIMITS, request("ping")),
        (Permissions(rate=1, max_in_flight=1), request("tools/call", name="write", extra=1)),
    ],
)
def test_a_message_that_an_entry_allows_passes(permissions: Permissions, text: str) -> None:
    permissions.require(parse_message(text), TOOLS)
    assert permissions.limited is (permissions not in (UNRESTRICTED, Permissions(rate=1, max_in_flight=1)))


@given(st.text("ab*", max_size=6), st.text("ab", max_size=8))
@example("a*a", "a")
@example("*a*a*", "aa")
@example("ab*ba", "aba")
def test_a_star_matches_any_characters_and_any_other_character_matches_itself(pattern: str, name: str) -> None:
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert matches(pattern, name) is bool(re.fullmatch(expression, name, re.DOTALL))


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("memory_*", "memory_write", True),
        ("memory_*", "memory_", True),
        ("memory_*", "Memory_write", False),
        ("memory_*", "my_memory_write", False),
        ("*_read", "memory_read\n", False),
        ("[a-z]", "b", False),
        ("r?ad", "read", False),
        ("re.d", "read", False),
        ("*", "", True),
        ("", "", True),
    ],
)
def test_only_the_star_is_special_in_a_pattern(pattern: str, name: str, fits: bool) -> None:
    assert matches(pattern, name) is fits


def test_a_pattern_full_of_stars_is_matched_without_backtracking() -> None:
    assert not matches("*a" * 128 + "b", "a" * 100_000)
    assert matches("*a" * 128, "a" * 100_000)


@pytest.mark.parametrize("name", [None, 7, ["read"], {"name": "read"}, True])
def test_a_name_that_is_not_a_string_matches_no_allow_list(name: object) -> None:
    assert not Permissions(tools=("*",)).allows_tool(name)
    assert UNRESTRICTED.allows_tool(name)


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
        ('{"jsonrpc":"2.0","id":1,"result":{},"extra":1}', "member that JSON-RPC does not define"),
    ],
)
def test_a_rejection_has_its_reason_and_the_request_id(text: str, why: str) -> None:
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
def test_a_tool_has_only_the_properties_that_its_annotations_set_to_true(annotations: object, tool: Tool) -> None:
    assert read_tool({"name": "x", "annotations": annotations}) == tool
