from __future__ import annotations

import json
from typing import NoReturn

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unit import json_texts
from unit.json_texts import ID, TOKEN, Speller
from vestige_bridge.errors import BodyTooLarge, InvalidMessage, ParseError, UpstreamTimeout
from vestige_bridge.jsonrpc import parser
from vestige_bridge.jsonrpc.builders import (
    build_error,
    build_method_not_found,
    build_notification,
    build_request,
    build_result,
)
from vestige_bridge.jsonrpc.messages import Message, Notification, Request, Response, is_token, token_key
from vestige_bridge.jsonrpc.parser import parse_body, parse_message
from vestige_bridge.jsonrpc.spans import BATCH_LIMIT, MEMBERS_LIMIT, add_members, members_of, replace_member
from vestige_bridge.jsonrpc.strict import NESTING_LIMIT, replace_unpaired_surrogates


def parse_request(text: str) -> Request:
    message = parse_message(text)
    assert isinstance(message, Request)
    return message


def parse_notification(text: str) -> Notification:
    message = parse_message(text)
    assert isinstance(message, Notification)
    return message


def parse_response(text: str) -> Response:
    message = parse_message(text)
    assert isinstance(message, Response)
    return message


def is_strict_json(text: str) -> bool:
    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    try:
        json.loads(text, parse_int=float, parse_constant=refuse)
    except ValueError:
        return False
    return True


@given(json_texts.requests, json_texts.ids, json_texts.ids)
def test_splicing_a_request_changes_only_its_id_and_its_token(template: str, spelled_id: str, token: str) -> None:
    text = template.replace(ID, spelled_id).replace(TOKEN, token)
    request = parse_request(text)
    assert request.progress_token is not None
    assert request.spelled_id == spelled_id
    assert request.spelled(request.progress_token) == token
    assert request.spliced((request.progress_token, "8"), (request.id, "7")) == (
        template.replace(ID, "7").replace(TOKEN, "8").encode()
    )
    assert request.encoded() == request.spliced() == text.encode()


@given(json_texts.requests, json_texts.ids)
def test_a_request_is_parsed_as_pythons_json_module_parses_it(template: str, spelled_id: str) -> None:
    text = template.replace(ID, spelled_id).replace(TOKEN, "1")
    request = parse_request(text)
    read = json.loads(text, parse_int=float)
    assert request.method == read["method"]
    assert request.name == read["params"]["name"]
    assert request.id.value == read["id"]
    assert {key: request.spelled(value) for key, value in request.members.items()}.keys() == read.keys()
    for key, value in request.members.items():
        assert json.loads(request.spelled(value), parse_int=float) == read[key]


@given(json_texts.responses, json_texts.ids)
def test_splicing_a_response_changes_only_its_id(template: str, spelled_id: str) -> None:
    response = parse_response(template.replace(ID, "17"))
    assert response.id is not None
    assert response.spliced((response.id, spelled_id)) == template.replace(ID, spelled_id).encode()


_FRAGMENTS = [
    *("{", "}", "[", "]", '"', ",", ":", " ", "\n", "\x0b", "\ufeff", "\u00a0", "//", "'a'", '"a"', '"id":1'),
    *(r'"\x"', r'"\u12"', '"\t"', '"\x00"', "null", "nul", "true", "NaN", "Infinity", "-Infinity"),
    *("1", "-", "01", "1.", ".5", "1e", "+1", "9" * 5000),
]
_fragments = st.lists(st.sampled_from(_FRAGMENTS), max_size=8).map("".join)


@st.composite
def _damaged(draw: st.DrawFn) -> str:
    text = draw(json_texts.requests | json_texts.values).replace(ID, "1").replace(TOKEN, "1")
    begin, end = sorted(draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    return text[:begin] + draw(_fragments) + text[end:]


@given(_fragments | json_texts.values | _damaged())
@example("")
@example(" \n")
@example('{"a":1}{"a":1}')
@example('{"a":1,}')
@example('{"a" 1}')
@example('{"a":1 "b":2}')
@example('{"a":')
@example("{")
@example("{1:2}")
@example("[1,]")
@example("[] []")
@example("[1 2]")
@example('{"params":{"_meta":{"a":1,}}}')
def test_exactly_the_texts_that_strict_json_parsers_reject_are_parse_errors(text: str) -> None:
    parses = True
    members: object = []
    try:
        members = parse_body(text.encode())
    except ParseError:
        parses = False
    except InvalidMessage:
        pass
    assert parses == is_strict_json(text.removeprefix("\ufeff"))
    assert not any(isinstance(member, ParseError) for member in (members if isinstance(members, list) else []))


@given(st.binary(max_size=20))
@example(b'"\xff"')
@example(b'"\xed\xa0\x80"')
@example(b"\xff\xfe{\x00}\x00")
def test_bytes_that_are_no_utf_8_are_a_parse_error(body: bytes) -> None:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        with pytest.raises(ParseError, match="UTF-8"):
            parse_body(body)
    else:
        if not is_strict_json(text.removeprefix("\ufeff")):
            with pytest.raises(ParseError):
                parse_body(body)


@pytest.mark.parametrize(
    "opening", ["[", '{"a":', '{"jsonrpc":"2.0","id":1,"method":"x","params":', '{"params":{"_meta":{"a":']
)
@pytest.mark.parametrize("closed", [True, False])
def test_too_deep_nesting_is_a_parse_error(opening: str, closed: bool) -> None:
    text = opening + "[" * 100_000 + ("]" * 100_000 + "}" * opening.count("{") if closed else "")
    with pytest.raises(ParseError):
        parse_body(text.encode())


_DEEP = [
    '{"jsonrpc":"2.0","id":7,"method":"x","params":{"a":@}}',
    '{"jsonrpc":"2.0","method":"x","params":[@,{"id":8}],"id" : 7 }',
    '{"params":{"\\\\":"[[[","id":9,"a":[{}, @]},"id":7,"jsonrpc":"2.0","method":"x"}',
]


@pytest.mark.parametrize("template", _DEEP)
@pytest.mark.parametrize("pair", ["[]", '{"a":}', '[{"\\"]":[]}]'])
def test_a_message_may_have_as_many_levels_as_the_limit(template: str, pair: str) -> None:
    def nested(levels: int) -> bytes:
        opening, closing = pair[: (len(pair) + 1) // 2], pair[(len(pair) + 1) // 2 :]
        if pair == '{"a":}':
            opening, closing = '{"a":', "}"
        if pair.startswith("[{"):
            opening, closing = '{"\\"]":', "}"
        return template.replace("@", opening * (levels - 1) + "[]" + closing * (levels - 1)).encode()

    above = 3 if template is _DEEP[2] else 2
    assert isinstance(parse_body(nested(NESTING_LIMIT - above)), Request)
    for levels in (NESTING_LIMIT - above + 1, 2_000, 30_000):
        with pytest.raises(ParseError, match="nested") as refusal:
            parse_body(nested(levels))
        assert refusal.value.request_id == "7"


def test_brackets_in_strings_and_side_by_side_do_not_count_as_nesting() -> None:
    flat = ",".join(["[]", '"[[[{{{\\"[["', "{}"] * 200)
    assert isinstance(parse_body(f'{{"jsonrpc":"2.0","id":1,"method":"x","params":[{flat}]}}'.encode()), Request)


def test_each_message_of_a_batch_has_its_own_levels() -> None:
    deep = _DEEP[0].replace("@", "[" * 200 + "]" * 200)
    fine = '{"jsonrpc":"2.0","id":8,"method":"x"}'
    refused, served = parse_body(f"[{deep},{fine}]".encode())  # type: ignore[misc]
    assert isinstance(refused, ParseError)
    assert refused.request_id == "7"
    assert isinstance(served, Request)


@pytest.mark.parametrize("spelled_id", ["7 8", "null", "[]", '1,"id":2'])
def test_a_message_that_is_too_deep_and_has_no_usable_id_is_rejected_without_one(spelled_id: str) -> None:
    deep = "[" * 200 + "]" * 200
    with pytest.raises(ParseError) as refusal:
        parse_body(f'{{"jsonrpc":"2.0","id":{spelled_id},"method":"x","params":{deep}}}'.encode())
    assert refusal.value.request_id is None


@pytest.mark.parametrize("params", ['"x"', "1", "true", "false", "-1e5"])
@pytest.mark.parametrize("end", ["", ',"id":4'])
def test_params_that_are_neither_object_nor_array_are_refused(params: str, end: str) -> None:
    with pytest.raises(InvalidMessage, match="params") as refusal:
        parse_body(f'{{"jsonrpc":"2.0","method":"notifications/x","params":{params}{end}}}'.encode())
    assert refusal.value.request_id == ("4" if end else None)


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ('{"jsonrpc":"2.0","id":1,"method":"x","params":null}', '{"jsonrpc":"2.0","id":1,"method":"x"}'),
        ('{"jsonrpc":"2.0", "params" : null ,"method":"x","id":1}', '{"jsonrpc":"2.0" ,"method":"x","id":1}'),
        ('{ "params":null, "jsonrpc":"2.0","method":"n"}', '{  "jsonrpc":"2.0","method":"n"}'),
        ('{"jsonrpc":"2.0","method":"n","p\\u0061rams":null}', '{"jsonrpc":"2.0","method":"n"}'),
    ],
)
def test_params_that_are_null_count_as_absent_and_are_not_sent_upstream(text: str, without: str) -> None:
    message = parse_body(text.encode())
    assert isinstance(message, Request | Notification)
    assert message.encoded() == without.encode()
    assert message.params == {}


@given(json_texts.requests, json_texts.ids)
def test_a_byte_order_mark_is_ignored(template: str, spelled_id: str) -> None:
    body = template.replace(ID, spelled_id).replace(TOKEN, "1").encode()
    with_mark, without = parse_body(b"\xef\xbb\xbf" + body), parse_body(body)
    assert isinstance(with_mark, Request)
    assert isinstance(without, Request)
    assert with_mark.encoded() == without.encoded()


def test_an_id_of_the_initialized_notification_is_dropped() -> None:
    message = parse_body(b'{"jsonrpc":"2.0","id":5,"method":"notifications/initialized","params":{}}')
    assert isinstance(message, Notification)
    assert message.encoded() == b'{"jsonrpc":"2.0","method":"notifications/initialized","params":{}}'


@given(json_texts.requests, json_texts.ids, json_texts.ids)
def test_a_request_is_sent_upstream_unchanged_except_for_unpaired_surrogates(
    template: str, spelled_id: str, token: str
) -> None:
    text = template.replace(ID, spelled_id).replace(TOKEN, token)
    request = parse_body(text.encode())
    assert isinstance(request, Request)
    assert request.progress_token is not None
    assert request.spelled_id == spelled_id
    assert request.spelled(request.progress_token) == token
    sent = request.spliced((request.id, "7"), (request.progress_token, "8")).decode()
    assert sent == replace_unpaired_surrogates(template.replace(ID, "7").replace(TOKEN, "8"))


def test_a_cancellation_keeps_the_spelling_of_its_request_id() -> None:
    body = rb'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":"\ud83d","reason":"\ud83d"}}'
    message = parse_body(body)
    assert isinstance(message, Notification)
    assert message.spelled(message.params["requestId"]) == r'"\ud83d"'
    assert message.spliced((message.params["requestId"], "7")) == body.replace(
        rb'"requestId":"\ud83d"', b'"requestId":7'
    ).replace(rb"\ud83d", rb"\ufffd")


def test_unpaired_surrogates_are_replaced_in_each_message_of_a_batch() -> None:
    member = r'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a\udc00":"half \uD83D"}}'
    members = parse_body(f"[{member},{member}]".encode())
    assert isinstance(members, list)
    for it in members:
        assert isinstance(it, Request)
        assert it.encoded() == member.replace("udc00", "ufffd").replace("uD83D", "ufffd").encode()


_READ_LEVELS = {
    '{{"jsonrpc":"2.0","id":1,"method":"x",{member}}}': ["jsonrpc", "id", "method", "params", "result", "x-unknown"],
    '{{"jsonrpc":"2.0","id":1,"method":"x","params":{{{member}}}}}': [
        "name",
        "_meta",
        "requestId",
        "progressToken",
        "protocolVersion",
    ],
    '{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{{{member}}}}}}}': [
        "progressToken",
        "io.modelcontextprotocol/protocolVersion",
    ],
}


@pytest.mark.parametrize(("level", "key"), [(level, key) for level, keys in _READ_LEVELS.items() for key in keys])
@given(speller=json_texts.spellers)
def test_a_repeated_key_that_the_bridge_reads_is_refused_however_it_is_spelled(
    level: str, key: str, speller: Speller
) -> None:
    members = [f"{speller.spelled(key)}:{speller.value()}" for _ in range(2)]
    with pytest.raises(InvalidMessage, match="is repeated") as refusal:
        parse_message(level.format(member=",".join(members)))
    assert refusal.value.request_id == (None if key == "id" else "1")


@pytest.mark.parametrize(
    "params",
    [
        '{"a":1,"a":2}',
        '{"arguments":{"name":1,"name":2,"_meta":{},"_meta":{},"id":1,"id":2}}',
        '{"_meta":{"x":1,"x":2}}',
        '{"_meta":{"x":{"progressToken":1,"progressToken":2}}}',
        '[{"name":1,"name":2}]',
        '{"_meta":[{"progressToken":1,"progressToken":2}]}',
    ],
)
def test_a_repeated_key_that_the_bridge_does_not_read_passes_as_it_is(params: str) -> None:
    text = f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{params}}}'
    assert parse_request(text).encoded() == text.encode()


def test_keys_and_values_spelled_with_escapes_are_decoded() -> None:
    request = parse_request(
        r'{"jsonrpc":"2.0","\u0069d":7,"m\u0065thod":"tools\/call","params":{"n\u0061me":"\u0061"}}'
    )
    assert (request.spelled_id, request.method, request.name) == ("7", "tools/call", "a")


def test_an_id_with_an_escape_is_returned_as_it_was_spelled() -> None:
    assert parse_request(r'{"jsonrpc":"2.0","id":"\u0061","method":"x"}').spelled_id == r'"\u0061"'


@pytest.mark.parametrize("spelled_id", ["null", "true", "false", "{}", "[]", "[1]", '{"id":1}'])
def test_an_id_that_is_neither_string_nor_number_is_refused(spelled_id: str) -> None:
    with pytest.raises(InvalidMessage, match='"id"') as refusal:
        parse_message(f'{{"jsonrpc":"2.0","id":{spelled_id},"method":"x"}}')
    assert refusal.value.request_id is None


@pytest.mark.parametrize("token", ["null", "true", "{}", "[]"])
def test_a_progress_token_that_is_neither_string_nor_number_is_refused(token: str) -> None:
    with pytest.raises(InvalidMessage, match="progressToken") as refusal:
        parse_message(f'{{"jsonrpc":"2.0","id":"a","method":"x","params":{{"_meta":{{"progressToken":{token}}}}}}}')
    assert refusal.value.request_id == '"a"'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("null", "object"),
        ("1", "object"),
        ('"x"', "object"),
        ("{}", "jsonrpc"),
        ('{"id":5,"method":"x"}', "jsonrpc"),
        ('{"jsonrpc":2.0,"id":5,"method":"x"}', "jsonrpc"),
        ('{"jsonrpc":"1.0","id":5,"method":"x"}', "jsonrpc"),
        ('{"jsonrpc":"2.0","id":5}', "method"),
        ('{"jsonrpc":"2.0","id":5,"method":null}', "method"),
        ('{"jsonrpc":"2.0","id":5,"method":7}', "method"),
        ('{"jsonrpc":"2.0","id":5,"result":1,"error":{}}', "method"),
        ('{"jsonrpc":"2.0","id":true,"result":1}', "id"),
    ],
)
def test_json_that_is_no_message_is_refused_with_its_id_if_it_has_one(text: str, why: str) -> None:
    with pytest.raises(InvalidMessage, match=why) as refusal:
        parse_message(text)
    assert not isinstance(refusal.value, ParseError)
    assert refusal.value.request_id == ("5" if '"id":5' in text else None)


def test_a_message_with_a_method_and_no_id_is_a_notification() -> None:
    assert (
        parse_notification('{"jsonrpc":"2.0","method":"notifications/initialized"}').method
        == "notifications/initialized"
    )


@pytest.mark.parametrize("spelled_id", ["", '"id":null,'])
def test_a_response_without_an_id_belongs_to_no_request(spelled_id: str) -> None:
    response = parse_response(f'{{"jsonrpc":"2.0",{spelled_id}"error":{{"code":-32700}}}}')
    assert response.id is None
    assert response.error == {"code": -32700}
    assert response.result is None


def test_a_response_with_a_result_has_no_error() -> None:
    response = parse_response('{"jsonrpc":"2.0","id":1,"result":{"a":[1]}}')
    assert response.error is None
    assert response.result == {"a": [1]}


@pytest.mark.parametrize("error", ["null", "1", '"x"', "[]"])
def test_an_error_that_is_no_object_has_no_members(error: str) -> None:
    assert parse_response(f'{{"jsonrpc":"2.0","id":1,"error":{error}}}').error is None


@pytest.mark.parametrize("params", ["[1]", "null", '"name"', '{"name":1}', '{"_meta":1}'])
def test_params_of_another_shape_have_no_name_and_no_token(params: str) -> None:
    request = parse_request(f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{params}}}')
    assert request.name is None
    assert request.progress_token is None


def test_a_token_key_distinguishes_strings_from_numbers_but_not_spellings_of_a_string() -> None:
    def key(spelled: str) -> str:
        request = parse_request(f'{{"jsonrpc":"2.0","id":{spelled},"method":"x"}}')
        assert is_token(request.id)
        return token_key(request, request.id)

    assert key('"a"') == key(r'"\u0061"')
    assert len({key(spelled) for spelled in ("1", '"1"', "1.0", r'"\"1"')}) == 4


@given(st.lists(json_texts.requests | json_texts.responses | json_texts.values, min_size=1, max_size=4))
def test_a_batch_is_read_member_by_member_in_its_order(members: list[str]) -> None:
    texts = [member.replace(ID, str(index)).replace(TOKEN, "1") for index, member in enumerate(members)]
    batch = parse_body(f" [\n{','.join(texts)} ]\r\n".encode())
    assert isinstance(batch, list)
    assert len(batch) == len(texts)
    for text, member in zip(texts, batch, strict=True):
        alone = parser._parse_member(text.strip(" \t\r\n"))
        if isinstance(alone, InvalidMessage) and isinstance(member, InvalidMessage):
            assert (member.message, member.request_id) == (alone.message, alone.request_id)
        else:
            assert isinstance(member, Message)
            assert isinstance(alone, Message)
            assert (type(member), member.text) == (type(alone), alone.text)


@pytest.mark.parametrize("body", [b"[]", b" [ \n] "])
def test_an_empty_batch_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessage, match="empty") as refusal:
        parse_body(body)
    assert not isinstance(refusal.value, ParseError)


def test_a_request_built_by_the_bridge_has_the_fields_of_a_parsed_request() -> None:
    request = build_request("tools/list", {"cursor": "ü"})
    assert json.loads(request.encoded()) == {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "tools/list",
        "params": {"cursor": "ü"},
    }
    assert (request.method, request.spelled_id) == ("tools/list", "0")


def test_a_message_built_without_params_has_no_params_member() -> None:
    assert json.loads(build_request("ping").encoded()) == {"jsonrpc": "2.0", "id": 0, "method": "ping"}
    assert json.loads(build_notification("notifications/initialized")) == {
        "jsonrpc": "2.0",
        "method": "notifications/initialized",
    }


def test_a_notification_built_by_the_bridge_has_its_params() -> None:
    built = parse_notification(build_notification("notifications/cancelled", '{"requestId":4}').decode())
    assert built.spelled(built.params["requestId"]) == "4"


@given(json_texts.ids, json_texts.values)
def test_a_result_built_by_the_bridge_is_a_response_with_the_id_as_it_was_spelled(spelled_id: str, result: str) -> None:
    response = parse_response(build_result(spelled_id, result).decode())
    assert response.id is not None
    assert response.spelled(response.id) == spelled_id
    assert response.spelled(response.members["result"]) == result


@given(json_texts.ids, st.text())
def test_an_error_object_is_a_response_with_the_id_as_it_was_spelled(spelled_id: str, message: str) -> None:
    response = parse_response(build_error(UpstreamTimeout(message), spelled_id).decode())
    assert response.id is not None
    assert response.spelled(response.id) == spelled_id
    assert response.error == {"code": -32012, "message": message}


def test_an_error_object_has_its_data_but_not_its_detail() -> None:
    error = BodyTooLarge("Too large.", detail="a secret", data={"limit_bytes": 5})
    assert json.loads(build_error(error, None)) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {"code": -32014, "message": "Too large.", "data": {"limit_bytes": 5}},
    }


def test_method_not_found_has_its_error_code() -> None:
    assert json.loads(build_method_not_found('"a"'))["error"]["code"] == -32601


@given(json_texts.spellers)
def test_replacing_a_member_changes_only_its_value(speller: Speller) -> None:
    template, before = speller.members([("protocolVersion", ID)]), speller.value()
    replaced = replace_member(template.replace(ID, before), "protocolVersion", "2025-06-18")
    assert replaced == template.replace(ID, '"2025-06-18"')


@given(json_texts.spellers)
def test_adding_a_member_leaves_the_others_as_they_were(speller: Speller) -> None:
    text = speller.members([("id", speller.value())])
    added = add_members(text, 0, {"resultType": '"complete"', "ttlMs": "0"})
    assert added == '{"resultType":"complete","ttlMs":0,' + text[1:]
    assert members_of(added).keys() == {"resultType", "ttlMs", *members_of(text)}


@pytest.mark.parametrize("empty", ["{}", "{ }", "{\r\n\t}"])
def test_a_member_is_added_to_an_empty_object_without_a_comma(empty: str) -> None:
    assert json.loads(add_members(empty, 0, {"a": "1"})) == {"a": 1}
    assert add_members(empty, 0, {}) == empty


@given(json_texts.spellers)
def test_the_members_of_an_object_are_those_that_the_json_module_finds(speller: Speller) -> None:
    text = speller.members([("id", speller.value()), ("_meta", speller.value())])
    found = {key: text[member.start : member.end] for key, member in members_of(text).items()}
    assert {key: json.loads(value, parse_int=float) for key, value in found.items()} == json.loads(
        text, parse_int=float
    )


def test_replacing_a_member_that_is_not_there_changes_nothing() -> None:
    assert replace_member(' {"a":{"protocolVersion":1}}', "protocolVersion", 2) == ' {"a":{"protocolVersion":1}}'


@pytest.mark.parametrize("member", ["1", "{}", '{"jsonrpc":"2.0","method":"notifications/x"}'])
def test_a_batch_over_the_message_limit_is_rejected(member: str) -> None:
    batch = parse_body(f"[{','.join([member] * BATCH_LIMIT)}]".encode())
    assert isinstance(batch, list)
    assert len(batch) == BATCH_LIMIT
    with pytest.raises(InvalidMessage, match="A batch must not contain more than 1024 messages"):
        parse_body(f"[{','.join([member] * (BATCH_LIMIT + 1))},".encode())


@pytest.mark.parametrize("level", ["%s", '"params":{%s}', '"params":{"_meta":{%s}}'])
def test_an_object_with_too_many_members_is_rejected(level: str) -> None:
    members = ",".join(['"x":1'] * MEMBERS_LIMIT + [r'"\u0078":1'])
    with pytest.raises(InvalidMessage, match="more than 4096 members"):
        parse_message('{"jsonrpc":"2.0","id":{},"method":"ping",%s}' % (level % members))


@pytest.mark.parametrize("space", ["", " "], ids=["fast parser", "full parser"])
@pytest.mark.parametrize(
    "members",
    [
        '"id":1,"ID":5,"method":"ping"',
        '"id":1,"method":"ping","Method":"tools/call"',
        r'"id":1,"method":"ping","\u004dethod":"tools/call"',
        '"id":1,"method":"tools/call","params":{"name":"read"},"param\u017f":{"name":"write"}',
        '"id":1,"method":"tools/call","params":{"name":"read","NAME":"write"}',
        '"id":1,"method":"tools/call","params":{"_META":{"progressToken":5}}',
        '"id":1,"method":"tools/call","params":{"_meta":{"progressToken":1,"progresstoken":5}}',
        '"id":1,"method":"tools/call","params":{"_meta":{"progre\u017fsToken":5}}',
        '"method":"notifications/cancelled","params":{"requestId":1,"requestID":5}',
        '"id":1,"result":{},"Result":{}',
    ],
)
def test_a_key_that_differs_only_in_case_from_one_that_the_bridge_reads_is_rejected(members: str, space: str) -> None:
    with pytest.raises(InvalidMessage, match="differs only in case from a key with a meaning"):
        parse_message(f'{{{space}"jsonrpc":"2.0",{members}}}')


@pytest.mark.parametrize(
    "members",
    [
        '"id":1,"method":"x","params":{"URI":"a","Level":1,"Cursor":"b","arguments":{"ID":1,"Name":2}}',
        '"id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/ClientInfo":1}},"Extra":1',
        '"id":1,"result":{"ID":5,"Name":"a"}',
    ],
)
def test_other_keys_may_be_spelled_in_any_case(members: str) -> None:
    parse_message(f'{{"jsonrpc":"2.0",{members}}}')
