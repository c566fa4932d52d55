"""Requests of 2026-07-28 on a legacy upstream: validated, converted to legacy requests, and answered in modern form."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from vestige_bridge.errors import (
    HeaderMismatch,
    InvalidMessage,
    InvalidParams,
    MethodNotFound,
    UnsupportedProtocolVersion,
)
from vestige_bridge.http.headers import Headers
from vestige_bridge.jsonrpc.messages import Notification, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.modern import (
    Subscription,
    discover,
    is_modern,
    require_valid,
    server_info,
    to_legacy,
    to_modern,
)
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION, LEGACY_VERSIONS, SUPPORTED_VERSIONS

PREFIX = "io.modelcontextprotocol/"
ENVELOPE: dict[str, Any] = {
    f"{PREFIX}protocolVersion": LATEST_MODERN_VERSION,
    f"{PREFIX}clientInfo": {"name": "test", "version": "1"},
    f"{PREFIX}clientCapabilities": {},
}
SERVER_INFO = '{"name":"vestige","version":"3.1.0"}'
INITIALIZE_RESULT = (
    '{"protocolVersion":"2025-11-25","capabilities":{"tools":{"listChanged":true},"resources":{"subscribe":true}},'
    f'"serverInfo":{SERVER_INFO},"instructions":"remember\\u0021"}}'
)


def request(text: str) -> Request:
    message = parse_message(text)
    assert isinstance(message, Request)
    return message


def modern(method: str = "tools/list", *, request_id: object = 1, **params: object) -> Request:
    body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": {"_meta": ENVELOPE} | params}
    return request(json.dumps(body))


def mirrored(method: str, name: str | None = None, version: str = LATEST_MODERN_VERSION) -> list[tuple[bytes, bytes]]:
    headers = [(b"mcp-protocol-version", version.encode()), (b"mcp-method", method.encode())]
    return headers if name is None else [*headers, (b"mcp-name", name.encode())]


@pytest.mark.parametrize("version", LEGACY_VERSIONS)
def test_a_legacy_version_in_the_header_is_legacy(version: str) -> None:
    assert not is_modern(request('{"jsonrpc":"2.0","id":1,"method":"ping"}'), version)


def test_a_request_that_declares_nothing_is_legacy() -> None:
    assert not is_modern(request('{"jsonrpc":"2.0","id":1,"method":"ping"}'), None)


def test_the_header_or_the_envelope_alone_declares_the_modern_era() -> None:
    assert is_modern(request('{"jsonrpc":"2.0","id":1,"method":"tools/list"}'), LATEST_MODERN_VERSION)
    assert is_modern(modern(), None)


def test_an_unknown_version_in_the_header_is_rejected_with_the_supported_ones() -> None:
    with pytest.raises(UnsupportedProtocolVersion) as refusal:
        is_modern(request('{"jsonrpc":"2.0","id":1.0,"method":"ping"}'), "1999-01-01")
    assert refusal.value.data == {"supported": list(SUPPORTED_VERSIONS), "requested": "1999-01-01"}
    assert refusal.value.request_id == "1.0"


def test_an_unknown_version_of_a_notification_is_refused_without_an_id() -> None:
    notification = parse_message('{"jsonrpc":"2.0","method":"notifications/initialized"}')
    with pytest.raises(UnsupportedProtocolVersion) as refusal:
        is_modern(notification, "1999-01-01")
    assert refusal.value.request_id is None


def test_an_unknown_version_in_header_and_envelope_is_unsupported() -> None:
    envelope = ENVELOPE | {f"{PREFIX}protocolVersion": "v999"}
    with pytest.raises(UnsupportedProtocolVersion):
        require_valid(modern(_meta=envelope), Headers(mirrored("tools/list", version="v999")))


@pytest.mark.parametrize("missing", ["protocolVersion", "clientCapabilities"])
def test_a_request_needs_its_version_and_capabilities_in_meta(missing: str) -> None:
    envelope = {key: value for key, value in ENVELOPE.items() if key != f"{PREFIX}{missing}"}
    with pytest.raises(InvalidParams) as refusal:
        require_valid(modern(_meta=envelope), Headers(mirrored("tools/list")))
    assert missing in refusal.value.message
    assert refusal.value.request_id == "1"


def test_the_client_info_is_optional() -> None:
    envelope = {key: value for key, value in ENVELOPE.items() if key != f"{PREFIX}clientInfo"}
    require_valid(modern(_meta=envelope), Headers(mirrored("tools/list")))


@pytest.mark.parametrize(
    "headers",
    [
        mirrored("tools/call", "echo", version="2025-11-25"),
        mirrored("tools/call", "echo")[1:],
        mirrored("tools/list", "echo"),
        mirrored("TOOLS/CALL", "echo"),
        mirrored("tools/call", "other"),
        mirrored("tools/call"),
        [*mirrored("tools/call", "echo"), (b"mcp-name", b"other")],
        [*mirrored("tools/call", "echo"), (b"mcp-protocol-version", b"2025-11-25")],
        [*mirrored("tools/call", "echo"), (b"mcp-method", b"tools/list")],
        mirrored("tools/call", "=?base64?!!?="),
        [*mirrored("tools/call"), (b"mcp-name", b"\xff")],
    ],
)
def test_headers_that_differ_from_the_body_are_rejected(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(HeaderMismatch):
        require_valid(modern("tools/call", name="echo"), Headers(headers))


@pytest.mark.parametrize("name", ["echo", " echo\t", "=?base64?" + base64.b64encode(b"echo").decode() + "?="])
def test_a_name_may_be_padded_or_encoded(name: str) -> None:
    require_valid(modern("tools/call", name="echo"), Headers(mirrored("tools/call", name)))


def test_a_repeated_equal_header_value_counts_once() -> None:
    repeated = mirrored("tools/call", "echo, echo") + mirrored("tools/call", "echo")
    require_valid(modern("tools/call", name="echo"), Headers(repeated))


def test_a_name_outside_of_ascii_comes_encoded() -> None:
    encoded = "=?base64?" + base64.b64encode("café".encode()).decode() + "?="
    require_valid(modern("resources/read", uri="café"), Headers(mirrored("resources/read", encoded)))


@pytest.mark.parametrize("method", ["initialize", "ping", "logging/setLevel", "resources/subscribe"])
def test_methods_of_the_legacy_era_are_not_found(method: str) -> None:
    with pytest.raises(MethodNotFound):
        require_valid(modern(method), Headers(mirrored(method)))


@pytest.mark.parametrize("answer", ["inputResponses", "requestState"])
def test_input_responses_and_request_state_are_rejected(answer: str) -> None:
    with pytest.raises(InvalidParams):
        require_valid(modern("tools/call", name="echo", **{answer: {}}), Headers(mirrored("tools/call", "echo")))


def test_the_modern_meta_members_are_removed_from_a_request() -> None:
    text = (
        '{ "params" : {"name":"caf\\u00e9", "_meta" : {"io.modelcontextprotocol/protocolVersion":"2026-07-28", '
        '"progressToken" : 1e0,"io.modelcontextprotocol/clientCapabilities":{"x":[]},"trace" : "a"}, "arguments":{} } ,'
        '"id":"\\u0041","method":"tools/call","jsonrpc":"2.0"}'
    )
    legacy = to_legacy(request(text))
    assert legacy.text == (
        '{ "params" : {"name":"caf\\u00e9", "_meta" : {"progressToken" : 1e0,"trace" : "a"}, "arguments":{} } ,'
        '"id":"\\u0041","method":"tools/call","jsonrpc":"2.0"}'
    )
    assert legacy.progress_token is not None


def test_a_result_gets_the_modern_members_and_keeps_its_other_bytes() -> None:
    data = b'{"result":{"content":[{"type":"text","text":"\\u00e9 1e400"}]},"jsonrpc":"2.0","id":7.0}'
    status, answer = to_modern(data, modern("tools/call", name="echo"), SERVER_INFO)
    assert status == 200
    assert answer.decode() == (
        '{"result":{"resultType":"complete",'
        f'"_meta":{{"io.modelcontextprotocol/serverInfo":{SERVER_INFO}}},'
        '"content":[{"type":"text","text":"\\u00e9 1e400"}]},"jsonrpc":"2.0","id":7.0}'
    )


@pytest.mark.parametrize(
    "method", ["tools/list", "prompts/list", "resources/list", "resources/templates/list", "resources/read"]
)
def test_lists_and_resources_get_a_hint_that_they_are_not_to_be_cached(method: str) -> None:
    _, answer = to_modern(b'{"jsonrpc":"2.0","id":1,"result":{}}', modern(method, uri="x"), SERVER_INFO)
    result = json.loads(answer)["result"]
    assert (result["ttlMs"], result["cacheScope"]) == (0, "private")


def test_modern_members_that_upstream_sets_are_kept() -> None:
    data = json.dumps(
        {
            "jsonrpc": "2.0",
            "id": 1,
            "result": {"resultType": "own", "ttlMs": 5, "cacheScope": "public", "_meta": {f"{PREFIX}serverInfo": 1}},
        }
    ).encode()
    assert to_modern(data, modern("tools/list"), SERVER_INFO)[1] == data


def test_the_server_info_is_added_to_upstreams_own_meta() -> None:
    data = b'{"jsonrpc":"2.0","id":1,"result":{"_meta":{"a":1}}}'
    result = json.loads(to_modern(data, modern("tools/call"), SERVER_INFO)[1])["result"]
    assert result["_meta"] == {f"{PREFIX}serverInfo": json.loads(SERVER_INFO), "a": 1}


def test_a_result_that_is_no_object_is_unchanged() -> None:
    data = b'{"jsonrpc":"2.0","id":1,"result":[1]}'
    assert to_modern(data, modern("tools/call"), SERVER_INFO) == (200, data)


@pytest.mark.parametrize(("code", "status"), [(-32601, 404), (-32602, 400), (-32600, 400), (-32603, 200), (5, 200)])
def test_an_error_of_upstream_gets_the_status_of_its_code(code: int, status: int) -> None:
    data = json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": code, "message": "no"}}).encode()
    assert to_modern(data, modern("tools/call"), SERVER_INFO) == (status, data)


def test_a_missing_resource_gets_the_modern_code() -> None:
    data = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32002,"message":"gone"}}'
    status, answer = to_modern(data, modern("resources/read", uri="x"), SERVER_INFO)
    assert (status, json.loads(answer)["error"]["code"]) == (400, -32602)


def test_an_error_without_a_code_passes() -> None:
    data = b'{"jsonrpc":"2.0","id":1,"error":{"message":"odd"}}'
    assert to_modern(data, modern("tools/call"), SERVER_INFO) == (200, data)


def test_discover_is_answered_from_the_initialize_result() -> None:
    answer = discover(modern("server/discover", request_id="d"), INITIALIZE_RESULT)
    message = json.loads(answer)
    assert message["id"] == "d"
    assert message["result"] == {
        "resultType": "complete",
        "ttlMs": 0,
        "cacheScope": "private",
        "_meta": {f"{PREFIX}serverInfo": json.loads(SERVER_INFO)},
        "supportedVersions": list(SUPPORTED_VERSIONS),
        "capabilities": {"tools": {"listChanged": True}, "resources": {"subscribe": True}},
        "instructions": "remember!",
    }
    assert b'"remember\\u0021"' in answer
    assert server_info(INITIALIZE_RESULT) == SERVER_INFO


def listen(**notifications: object) -> Subscription:
    capabilities = json.loads(INITIALIZE_RESULT)["capabilities"]
    return Subscription(modern("subscriptions/listen", request_id="s", notifications=notifications), capabilities)


def test_a_subscription_is_acknowledged_as_far_as_upstream_can_notify() -> None:
    subscription = listen(toolsListChanged=True, promptsListChanged=True, resourceSubscriptions=["b", "a", 1])
    assert subscription.methods == {"notifications/tools/list_changed"}
    assert subscription.uris == {"a", "b"}
    assert json.loads(subscription.tagged(subscription.acknowledgement())) == {
        "jsonrpc": "2.0",
        "method": "notifications/subscriptions/acknowledged",
        "params": {
            "_meta": {f"{PREFIX}subscriptionId": "s"},
            "notifications": {"toolsListChanged": True, "resourceSubscriptions": ["a", "b"]},
        },
    }


def test_a_subscription_to_unsupported_notifications_is_empty() -> None:
    subscription = listen(resourcesListChanged=True)
    assert (subscription.methods, subscription.uris) == (frozenset(), frozenset())


def test_a_subscription_without_notifications_is_rejected() -> None:
    with pytest.raises(InvalidParams):
        Subscription(modern("subscriptions/listen"), {})


@pytest.mark.parametrize(
    ("text", "tagged"),
    [
        ('{"method":"m","jsonrpc":"2.0"}', '{"params":{"_meta":{ID}},"method":"m","jsonrpc":"2.0"}'),
        ('{"method":"m","params":{}}', '{"method":"m","params":{"_meta":{ID}}}'),
        ('{"method":"m","params":{"uri":"x"}}', '{"method":"m","params":{"_meta":{ID},"uri":"x"}}'),
        ('{"method":"m","params":{"_meta":{"a":1}}}', '{"method":"m","params":{"_meta":{ID,"a":1}}}'),
    ],
)
def test_a_notification_carries_the_id_of_its_subscription(text: str, tagged: str) -> None:
    identified = tagged.replace("ID", f'"{PREFIX}subscriptionId":"s"')
    assert listen().tagged(text.encode()) == identified.encode()


def test_a_subscription_that_the_bridge_ends_has_a_result() -> None:
    assert json.loads(listen().result()) == {
        "jsonrpc": "2.0",
        "id": "s",
        "result": {"resultType": "complete", "_meta": {f"{PREFIX}subscriptionId": "s"}},
    }


def test_a_repeated_meta_key_is_rejected() -> None:
    key = f'"{PREFIX}protocolVersion":"2026-07-28"'
    with pytest.raises(InvalidMessage):
        parse_message(f'{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"_meta":{{{key},{key}}}}}}}')


def test_a_message_without_an_id_is_a_notification() -> None:
    assert isinstance(parse_message('{"jsonrpc":"2.0","method":"notifications/x"}'), Notification)
