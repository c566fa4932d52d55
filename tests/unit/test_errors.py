from __future__ import annotations

import json

import pytest

from vestige_bridge import errors
from vestige_bridge.access.responses import error_response, json_response
from vestige_bridge.errors import (
    RENDERINGS,
    BridgeError,
    InvalidMessage,
    LimitReached,
    Rendering,
    SettingsError,
    UpstreamTimeout,
)

TABLE = {
    "ParseError": (400, -32700),
    "InvalidMessage": (400, -32600),
    "UnsupportedProtocolVersion": (400, -32022),
    "HeaderMismatch": (400, -32020),
    "InvalidParams": (400, -32602),
    "MethodNotFound": (404, -32601),
    "AuthenticationError": (401, -32015),
    "Forbidden": (403, -32016),
    "LimitReached": (429, -32018),
    "NotFound": (404, -32600),
    "MethodNotAllowed": (405, -32600),
    "BodyTimeout": (408, -32600),
    "HeadTooLarge": (431, -32600),
    "UnsupportedTransferCoding": (501, -32600),
    "BodyTooLarge": (413, -32014),
    "UnsupportedMediaType": (415, -32600),
    "AuthenticationNotConfigured": (500, -32603),
    "KeysUnavailable": (503, -32013),
    "InternalError": (500, -32603),
    "UpstreamError": (502, -32011),
    "UpstreamProtocolError": (502, -32011),
    "RequestRefused": (502, -32011),
    "NoEventStream": (502, -32011),
    "UpstreamDisconnected": (502, -32011),
    "SessionLost": (503, -32010),
    "UpstreamUnavailable": (503, -32010),
    "UpstreamConnectError": (503, -32010),
    "Overloaded": (503, -32013),
    "AuditFailed": (503, -32013),
    "UpstreamTimeout": (504, -32012),
    "Cancelled": (200, -32017),
}
NEVER_SENT = {
    "AuditFailed",
    "BodyTooLarge",
    "KeysUnavailable",
    "LimitReached",
    "Overloaded",
    "RequestRefused",
    "SessionLost",
    "UpstreamUnavailable",
    "UpstreamConnectError",
}

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, BridgeError) and kind not in (BridgeError, SettingsError)
]


def new(kind: type[BridgeError]) -> BridgeError:
    """Returns an error of that kind with a message and, if it may have one, a detail."""
    if kind is LimitReached:
        return LimitReached("A sentence.", 7)
    return kind("A sentence.", detail="secret")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_has_its_status_and_its_code(kind: type[BridgeError]) -> None:
    assert RENDERINGS[kind] == Rendering(*TABLE[kind.__name__])


@pytest.mark.parametrize("kind", KINDS)
def test_the_errors_that_prove_that_nothing_was_sent_are_marked_as_not_sent(kind: type[BridgeError]) -> None:
    assert new(kind).sent is (kind.__name__ not in NEVER_SENT)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_answered_in_json_with_its_id_and_without_its_detail(kind: type[BridgeError]) -> None:
    error = new(kind)
    error.request_id = r'"\u0061"'
    response = error_response(error)
    assert response.status_code == TABLE[kind.__name__][0]
    assert response.headers["content-type"] == "application/json"
    assert rb'"id":"\u0061"' in bytes(response.body)
    told = json.loads(bytes(response.body))["error"]
    assert (told["code"], told["message"]) == (TABLE[kind.__name__][1], "A sentence.")
    assert told.get("data", {}) == error.data
    assert b"secret" not in bytes(response.body)
    assert ("retry-after" in response.headers) is (response.status_code in (429, 503))


def test_an_error_carries_its_headers_and_data() -> None:
    response = error_response(InvalidMessage("No.", data={"a": [1]}, headers={"allow": "POST"}))
    assert response.headers["allow"] == "POST"
    body = json.loads(bytes(response.body))
    assert body["id"] is None
    assert body["error"]["data"] == {"a": [1]}


def test_a_reached_limit_answers_not_sent_with_retry_after() -> None:
    error = LimitReached("Too much.", 7, request_id="1")
    assert not error.sent
    response = error_response(error)
    assert response.headers["retry-after"] == "7"
    body = json.loads(bytes(response.body))
    assert body == {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {
            "code": -32018,
            "message": "Too much.",
            "data": {"outcome": "not_sent", "retryable": True},
        },
    }


def test_two_errors_share_no_data() -> None:
    data = {"a": 1}
    first, second = InvalidMessage("x", data=data), InvalidMessage("x", data=data)
    first.data["b"] = 2
    assert second.data == data == {"a": 1}


def test_the_text_of_an_error_for_the_log_has_its_detail() -> None:
    assert str(UpstreamTimeout("Late.", detail="after 5 s")) == "Late. (after 5 s)"
    assert str(UpstreamTimeout("Late.")) == "Late."


def test_each_mistake_in_the_settings_is_one_line() -> None:
    assert str(SettingsError(["one", "two"])) == "one\ntwo"


@pytest.mark.parametrize("body", [b'{"a": 1}', {"a": 1}])
def test_a_json_response_has_the_given_json_status_and_headers(body: bytes | dict[str, object]) -> None:
    response = json_response(body, 503, {"x-a": "b"})
    assert json.loads(bytes(response.body)) == {"a": 1}
    assert (response.status_code, response.headers["x-a"]) == (503, "b")
    assert response.headers["content-type"] == "application/json"
