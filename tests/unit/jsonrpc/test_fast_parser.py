from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit import json_texts
from unit.json_texts import ID, TOKEN
from vestige_bridge.jsonrpc import fast_parser, parser
from vestige_bridge.jsonrpc.fast_parser import read_response, scan
from vestige_bridge.jsonrpc.messages import AnyMessage, Request, Response
from vestige_bridge.jsonrpc.parser import parse_message

HAS_POSSESSIVE_BUG = sys.version_info < (3, 11, 5)
"""Whether `re` has a bug in possessive quantifiers, as on Debian 12; then the usual parser reads large answers."""


def parse_response(text: str) -> Response:
    message = parse_message(text)
    assert isinstance(message, Response)
    return message


def read_member_by_member(text: str) -> AnyMessage:
    return parser._parse(text)


def facts(message: AnyMessage) -> dict[str, object]:
    """Returns all properties of a message, with the positions of its parts."""
    found: dict[str, object] = {
        "kind": type(message),
        "members": message.members,
        "params": message.params,
        "meta": message.meta,
        "meta_keys": set(message.meta_keys),
    }
    if isinstance(message, Response):
        return found | {"id": message.id, "failed": message.failed, "result": message.result, "error": message.error}
    found["method"] = message.method
    if isinstance(message, Request):
        found |= {"id": message.id, "name": message.name, "token": message.progress_token}
    return found


_HOSTILE = [
    *(r'"id"', r'"\"id\":7}"', r'"\\"', r'"\u0069d"', r'"progressToken"', r'"\"progressToken\":1,"', r'"_meta"'),
    *(
        '"params"',
        '"name"',
        '"jsonrpc"',
        '"method"',
        '"result"',
        '"2.0"',
        '"a"',
        '""',
        "7",
        "-0",
        "1.0",
        "null",
        "true",
    ),
]
_hostile = st.sampled_from(_HOSTILE)
_keys = _hostile.filter(lambda text: text.startswith('"'))


def _objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    members = st.lists(st.tuples(_keys, values).map(":".join), max_size=3)
    return members.map(lambda them: "{" + ", ".join(them) + "}")


_values = st.recursive(
    _hostile, lambda inner: _objects(inner) | st.lists(inner, max_size=3).map(",".join).map("[{}]".format)
)
_ids = st.sampled_from(['"id":1', '"id":"a"', '"id" : -12', '"id":1.0', '"id":null'])
_contents = st.one_of(
    st.just('"method":"ping"'),
    _values.map('"method":"tools/call","params":{}'.format),
    _objects(_values).map(lambda meta: f'"params":{{"_meta":{meta},"name":"x"}},"method":"tools/call"'),
    _values.map('"result":{}'.format),
    _values.map('"error":{}'.format),
)
_bodies = st.tuples(_ids, _contents, st.lists(st.tuples(_keys, _values).map(":".join), max_size=1)).flatmap(
    lambda parts: st.permutations(['"jsonrpc":"2.0"', parts[0], parts[1], *parts[2]])
)


@given(_bodies | st.lists(_ids | _contents, max_size=3), st.sampled_from(["", "", "", " ", "\n", "\u00a0", "}"]))
def test_the_fast_parser_agrees_with_the_usual_parser_on_hostile_input(members: list[str], end: str) -> None:
    text = "{" + ",".join(members) + "}" + end
    seen = scan(text)
    if seen is not None:
        assert facts(seen) == facts(read_member_by_member(text))


@given(json_texts.requests | json_texts.responses | json_texts.progress, json_texts.ids, json_texts.ids)
def test_the_fast_parser_agrees_with_the_usual_parser_on_any_spelling(text: str, message_id: str, token: str) -> None:
    text = text.replace(ID, message_id).replace(TOKEN, token)
    seen = scan(text)
    if seen is not None:
        assert facts(seen) == facts(read_member_by_member(text))


@pytest.mark.parametrize(
    "text",
    [
        '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{"id":2,"name":"y"}}}',
        '{"jsonrpc": "2.0", "id": "a", "method": "tools/list"}',
        '{"method":"tools/call","params":{"name":"x","arguments":{"a":"\\"\\n"}},"jsonrpc":"2.0","id":7}',
        '{"method":"tools/call","params":{"name":"x","_meta":{"progressToken":3}},"jsonrpc":"2.0","id":7}\n',
        '{"result":{"content":[{"type":"text","text":"\\u00e9"}]},"jsonrpc":"2.0","id":4711}',
        '{"jsonrpc":"2.0","id":4711,"error":{"code":-32602,"message":"no"}}',
        '{"jsonrpc":"2.0","method":"notifications/initialized"}',
    ],
)
def test_the_fast_parser_reads_common_messages(text: str) -> None:
    seen = scan(text)
    assert seen is not None
    assert facts(seen) == facts(read_member_by_member(text))


@given(json_texts.responses | json_texts.requests | _bodies.map(lambda it: "{" + ",".join(it) + "}"), json_texts.ids)
def test_a_large_answer_is_read_as_any_other(text: str, message_id: str) -> None:
    text = text.replace(ID, message_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_parser, "LARGE_BYTES", 4)
        seen = read_response(text.encode(errors="surrogatepass"))
    if seen is not None:
        usual = parse_response(text)
        assert seen.id is not None
        assert usual.id is not None
        assert (seen.id.value, seen.failed, seen.members) == (usual.id.value, usual.failed, usual.members)
        assert seen.spliced((seen.id, "77")) == usual.spliced((usual.id, "77"))


@pytest.mark.parametrize("id", ["1", '"a"'])
@pytest.mark.parametrize(
    "content", ['"result":{"content":[{"type":"text","text":"%s"}]}', '"error":{"code":1,"message":"%s"}']
)
@pytest.mark.parametrize("letters", ["x" * 300_000, "\u00e9" * 200_000, r"\"\u00e9\n" * 40_000])
def test_a_large_answer_is_checked_without_being_decoded(
    monkeypatch: pytest.MonkeyPatch, id: str, content: str, letters: str
) -> None:
    monkeypatch.setattr(fast_parser, "LARGE_BYTES", 100_000)
    body = content % letters
    for text in (f'{{"jsonrpc":"2.0","id":{id},{body}}}', f'{{{body},"jsonrpc":"2.0","id":{id}}}\n'):
        seen, usual = read_response(text.encode()), parse_response(text)
        if HAS_POSSESSIVE_BUG:
            assert seen is None
            continue
        assert seen is not None
        assert seen.id is not None
        assert usual.id is not None
        assert (seen.id.value, seen.failed, seen.result) == (usual.id.value, usual.failed, usual.result)
        assert seen.spliced((seen.id, "77")) == usual.spliced((usual.id, "77"))
        assert seen.encoded() == text.encode()


@pytest.mark.parametrize(
    "data",
    [
        b'{"jsonrpc":"2.0","id":1,"result":"%s"',
        b'{"jsonrpc":"2.0","id":1,"result":"%s\n"}',
        b'{"jsonrpc":"2.0","id":1,"result":"%s\xff"}',
        b'{"jsonrpc":"2.0","id":1,"result":"%s","result":1}',
        b'{"jsonrpc":"2.0","id":null,"result":"%s"}',
        b'{"jsonrpc":"2.0","id":1,"method":"%s"}',
        b'{"jsonrpc":"1.0","id":1,"result":"%s"}',
        b'{"jsonrpc":"2.0","id":1,"result":["%s",NaN]}',
        b'{"jsonrpc":"2.0","id":1,"result":"%s"} x',
        b'[{"jsonrpc":"2.0","id":1,"result":"%s"}]',
    ],
)
def test_anything_else_than_a_large_answer_is_left_to_the_usual_parser(
    monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    monkeypatch.setattr(fast_parser, "LARGE_BYTES", 100_000)
    assert read_response(data % (b"x" * 300_000)) is None
