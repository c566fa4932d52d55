"""Detection of failed calls in the answer, without decoding the answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestige_bridge.jsonrpc import fast_parser
from vestige_bridge.mcp.tools import reports_error

KEYS = st.sampled_from(["isError", "result", "error", "content", 'a"b', "\\", "é", ""])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text() | KEYS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
)


@pytest.fixture(params=[True, False], ids=["by the grammar", "by brackets"], scope="module", autouse=True)
def reader(request: pytest.FixtureRequest) -> Any:
    """Selects each of the two ways to skip a value; Python before 3.11.5 has only one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_parser, "_CAN_READ_LARGE", request.param)
        yield


@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.booleans())
def test_only_the_iserror_member_of_the_result_itself_counts(
    result: Any, last: bool, indent: int | None, ascii: bool
) -> None:
    first = {"jsonrpc": "2.0", "id": 1}
    message = {"result": result, **first} if last else {**first, "result": result}
    data = json.dumps(message, indent=indent, ensure_ascii=ascii).encode("utf-8", "replace")
    assert reports_error(data) is (isinstance(result, dict) and result.get("isError") is True)


@pytest.mark.parametrize(
    ("data", "failed"),
    [
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"no"}}', True),
        (rb'{"jsonrpc":"2.0","id":1,"result":{"\u0069sError":true}}', True),
        (b' {"jsonrpc" : "2.0" ,\n"id" : "1" , "result" : { "isError" : true } } \n', True),
        (b'{"id":1,"result":{"content":[],"isError":"true"}}', False),
        (b'{"id":1,"result":{"content":[{"isError":true}],"structuredContent":{"isError":true}}}', False),
        (b'{"id":1,"result":{}}', False),
        (b'{"id":1,"result":{"isError":true,"content":[]}}', True),
        (b'{"id":1,"result":{"isError":true,"structuredContent":{"isError":false}}}', True),
        (b'{"id":1,"result":{"content":[],"isError":true,"_meta":{}}}', True),
        (b'{"id":1,"result":{"isError":true,"isError":false}}', False),
        (b'{"result":{"isError":true},"id":"1","jsonrpc":"2.0"}', True),
        (rb'{"id":1,"result":{"a":"\"isError","isError":true}}', True),
        (rb'{"id":1,"result":{"isError":false,"a":"\"isError\":true}}"}}', False),
        (b'{"id":1,"result":{"content":[],"structuredContent":{"isError":true}}}', False),
        (b'{"id":1,"result":{"isError":true},"x":[{"isError":false}]}', True),
        (rb'{"id":1,"result":{"content":"\u0041","isError":true}}', True),
        (b'{"id":1,"result":[true,{"isError":true}]}', False),
        (b'{"id":1,"result":"isError"}', False),
    ],
)
def test_errors_are_recognized_in_any_form_of_answer(data: bytes, failed: bool) -> None:
    assert reports_error(data) is failed


@pytest.mark.parametrize("failed", [True, False])
def test_an_answer_may_be_nested_to_any_depth(failed: bool) -> None:
    deep = b"[" * 100_000 + b'{"isError":true}' + b"]" * 100_000
    spelled = b"true" if failed else b"false"
    assert reports_error(b'{"id":1,"result":{"structuredContent":%b,"isError":%b}}' % (deep, spelled)) is failed


def test_iserror_is_found_behind_a_large_value() -> None:
    text = json.dumps({"a": "\\" * 10}) * 100_000
    message = {"id": 1, "result": {"content": [{"type": "text", "text": text}], "isError": True}}
    assert reports_error(json.dumps(message).encode())
