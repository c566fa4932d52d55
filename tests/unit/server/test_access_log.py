from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from vestige_bridge.access.record import AccessRecord
from vestige_bridge.logs import FIELDS
from vestige_bridge.server.access_log import AccessLog, Observe


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


def unobserved(*_: object) -> None:
    """Nobody counts these requests."""


async def ask(
    path: str = "/mcp",
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    learn: dict[str, Any] | None = None,
    status: int = 200,
    draining: bool = False,
    observe: Observe = unobserved,
) -> list[Message]:
    """What a client is sent for a request to an application that answers three bytes."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record: AccessRecord = scope["state"]["access"]
        for name, value in (learn or {}).items():
            setattr(record, name, value)
        record.principal = "alice"
        await PlainTextResponse("abc", status)(scope, receive, send)

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "query_string": b"secret=1",
        "headers": headers or [],
    }
    await AccessLog(app, draining=lambda: draining, observe=observe)(scope, receive, send)
    return sent


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = caplog.records
    logged: dict[str, Any] = getattr(record, FIELDS)
    return logged


async def test_a_request_is_one_line_with_what_was_learnt_of_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await ask(
        headers=[
            (b"x-request-id", b"abc"),
            (b"x-agent-id", b"an agent"),
            (b"authorization", b"Bearer secret"),
            (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        ],
        learn={"method": "tools/call", "tool": "search"},
    )
    logged = fields(caplog)
    assert logged.pop("duration_ms") >= 0
    assert logged == {
        "http": "POST",
        "path": "/mcp",
        "method": "tools/call",
        "tool": "search",
        "principal": "alice",
        "agent": "an agent",
        "request_id": "abc",
        "trace_id": "a" * 32,
        "status": 200,
        "bytes": 3,
    }
    assert "secret" not in caplog.text


async def test_a_path_that_a_client_invents_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await ask("/secret", status=404)
    assert fields(caplog)["path"] == "other"


async def test_a_client_that_left_is_logged_as_499(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await ask(learn={"client_left": True})
    assert fields(caplog)["status"] == 499


async def test_a_request_is_counted_although_nobody_reads_its_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    observed: list[tuple[str, AccessRecord, int, int, float]] = []
    await ask(learn={"method": "ping", "client_left": True}, observe=lambda *it: observed.append(it))
    ((path, record, status, sent_bytes, seconds),) = observed
    assert (path, record.method, status, sent_bytes) == ("/mcp", "ping", 499, 3)
    assert seconds > 0


@pytest.mark.parametrize(("status", "lines"), [(200, 0), (503, 1)])
async def test_a_probe_is_logged_only_when_it_fails(caplog: pytest.LogCaptureFixture, status: int, lines: int) -> None:
    caplog.set_level(logging.INFO)
    await ask("/readyz", status=status)
    assert len(caplog.records) == lines


async def test_the_answer_carries_the_request_id_that_the_log_names(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    start, _ = await ask(headers=[(b"x-request-id", b"not fit\n")])
    assert dict(start["headers"])[b"x-request-id"].decode() == fields(caplog)["request_id"]


@pytest.mark.parametrize("draining", [False, True])
async def test_a_client_is_told_to_close_its_connection_only_when_the_bridge_stops(draining: bool) -> None:
    start, _ = await ask(draining=draining)
    assert ((b"connection", b"close") in start["headers"]) is draining


async def test_a_failure_is_logged_as_500_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/livez", "headers": []}
    with pytest.raises(ZeroDivisionError):
        await AccessLog(fail, draining=lambda: False, observe=unobserved)(scope, receive, send)
    assert fields(caplog)["status"] == 500


async def test_what_is_no_request_passes_without_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    passed: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await AccessLog(app, draining=lambda: False, observe=unobserved)({"type": "lifespan"}, receive, send)
    assert passed == [{"type": "lifespan"}]
    assert not caplog.records
