"""Error bodies that only supergateway sends are recognized by their exact form."""

from __future__ import annotations

import json

import pytest

from vestige_bridge.upstream.quirks import refuses_session

REFUSAL = {
    "jsonrpc": "2.0",
    "error": {"code": -32000, "message": "Bad Request: No valid session ID provided"},
    "id": None,
}


@pytest.mark.parametrize("indent", [None, 2])
def test_supergateway_3_refuses_a_session_by_one_error_object(indent: int | None) -> None:
    assert refuses_session(json.dumps(REFUSAL, indent=indent).encode())


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(REFUSAL | {"id": 1}).encode(),
        json.dumps(REFUSAL | {"more": 1}).encode(),
        json.dumps(REFUSAL | {"error": {"code": -32600, "message": "No valid session ID"}}).encode(),
        json.dumps({"echo": json.dumps(REFUSAL)}).encode(),
        b" " * 2_000 + json.dumps(REFUSAL).encode(),
        b"[" * 1_000,
        b"No valid session ID",
        b"\xff",
        b"",
    ],
    ids=[
        "with an id",
        "another member",
        "another error",
        "quoted",
        "too long",
        "nested",
        "a phrase",
        "no text",
        "empty",
    ],
)
def test_any_other_body_does_not_refuse_a_session(body: bytes) -> None:
    assert not refuses_session(body)
