from __future__ import annotations

import logging
from ipaddress import ip_network
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from vestige_bridge.access.record import AccessRecord
from vestige_bridge.logs import FIELDS
from vestige_bridge.server.access_log import MOST_IN_A_MINUTE, AccessLog, LastMinute, Observe
from vestige_bridge.settings import Network


async def receive() -> Message:
    return {"type": "http.request", "body": b""}


def unobserved(*_: object) -> None:
    """Ignores the observed request."""


async def ask(
    path: str = "/mcp",
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    recorded: dict[str, Any] | None = None,
    status: int = 200,
    draining: bool = False,
    observe: Observe = unobserved,
    trusted_proxies: tuple[Network, ...] = (),
) -> list[Message]:
    """Returns the ASGI messages sent for a request to an application that responds with three bytes."""
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        record: AccessRecord = scope["state"]["access"]
        for name, value in (recorded or {}).items():
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
        "client": ("192.0.2.1", 4711),
    }
    access_log = AccessLog(app, lambda: draining, observe, trusted_proxies=trusted_proxies)
    await access_log(scope, receive, send)
    return sent


def fields(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = caplog.records
    logged: dict[str, Any] = getattr(record, FIELDS)
    return logged


async def test_a_request_is_one_log_line_with_its_recorded_fields(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    await ask(
        headers=[
            (b"x-request-id", b"abc"),
            (b"x-agent-id", b"an agent"),
            (b"authorization", b"Bearer secret"),
            (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
        ],
        recorded={"method": "tools/call", "tool": "search"},
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
    await ask(recorded={"client_left": True})
    assert fields(caplog)["status"] == 499


async def test_a_request_is_counted_even_if_its_line_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    observed: list[tuple[str, AccessRecord, int, int, float]] = []
    await ask(recorded={"method": "ping", "client_left": True}, observe=lambda *it: observed.append(it))
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
async def test_a_response_closes_its_connection_only_while_the_bridge_drains(draining: bool) -> None:
    start, _ = await ask(draining=draining)
    assert ((b"connection", b"close") in start["headers"]) is draining


async def test_an_exception_is_logged_as_500_and_raised_again(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    async def send(message: Message) -> None:
        raise AssertionError(message)

    scope: Scope = {"type": "http", "method": "GET", "path": "/livez", "headers": []}
    with pytest.raises(ZeroDivisionError):
        await AccessLog(fail, draining=lambda: False, observe=unobserved)(scope, receive, send)
    assert fields(caplog)["status"] == 500


async def test_a_lifespan_scope_passes_without_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    passed: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope)

    async def send(message: Message) -> None:
        raise AssertionError(message)

    await AccessLog(app, draining=lambda: False, observe=unobserved)({"type": "lifespan"}, receive, send)
    assert passed == [{"type": "lifespan"}]
    assert not caplog.records


@pytest.mark.parametrize(("trusted", "client"), [((), "192.0.2.1"), ((ip_network("192.0.2.0/24"),), "203.0.113.9")])
async def test_a_rejected_token_is_logged_with_the_client_address(
    caplog: pytest.LogCaptureFixture, trusted: tuple[Network, ...], client: str
) -> None:
    caplog.set_level(logging.INFO)
    forwarded = [(b"x-forwarded-for", b"6.6.6.6, 203.0.113.9")]
    await ask(headers=forwarded, status=401, trusted_proxies=trusted)
    assert fields(caplog)["client"] == client


@pytest.mark.parametrize("status", [200, 403, 404])
async def test_no_other_status_is_logged_with_the_client_address(caplog: pytest.LogCaptureFixture, status: int) -> None:
    caplog.set_level(logging.INFO)
    await ask(status=status)
    assert "client" not in fields(caplog)


async def test_a_404_is_logged_without_its_path_and_with_the_count_of_the_last_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    await ask("/.git/config", status=404)
    logged = fields(caplog)
    assert (logged["path"], logged["not_found_in_a_minute"]) == ("other", 1)


def test_only_the_last_minute_counts_up_to_a_limit() -> None:
    now = 0.0
    minute = LastMinute(lambda: now)
    assert [minute.count() for _ in range(3)] == [1, 2, 3]
    now = 30.0
    assert minute.count() == 4
    now = 60.0
    assert minute.count() == 2
    assert max(minute.count() for _ in range(MOST_IN_A_MINUTE + 5)) == MOST_IN_A_MINUTE
