"""The lines of the audit log: their content, and what they never contain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from harness import until
from vestige_bridge.access import audit_writer
from vestige_bridge.access.audit import AuditLog
from vestige_bridge.access.record import AccessRecord
from vestige_bridge.errors import (
    AuditFailed,
    BridgeError,
    Cancelled,
    Forbidden,
    InvalidMessage,
    LimitReached,
    Overloaded,
    SettingsError,
    UpstreamTimeout,
)
from vestige_bridge.http.headers import Headers
from vestige_bridge.jsonrpc.messages import AnyMessage, Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.settings import Settings

CANARY = "canary-7fK2"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
OTHER_TRACE_ID = "1af7651916cd43dd8448eb211c80319c"


def record(**headers: str) -> AccessRecord:
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return AccessRecord(Headers(raw), "r-1", principal="agents")


def message(method: str = "tools/call", id: Any = 1, **params: Any) -> AnyMessage:
    body = {"jsonrpc": "2.0", "method": method, "params": params}
    return parse_message(json.dumps(body if id is None else {**body, "id": id}))


def call(name: str = "write", **params: Any) -> Request:
    it = message(name=name, arguments={CANARY: CANARY}, **params)
    assert isinstance(it, Request)
    return it


@pytest.fixture
async def audit(tmp_path: Path) -> AsyncIterator[AuditLog]:
    async with AuditLog(str(tmp_path / "audit"), required=False) as log:
        yield log


async def lines(audit: AuditLog, tmp_path: Path) -> list[dict[str, Any]]:
    """Returns the lines once all are written."""
    await until(lambda: not audit.writer.queued)
    text = (tmp_path / "audit").read_text()
    assert CANARY not in text
    return [json.loads(line) for line in text.splitlines()]


async def test_a_line_has_principal_tool_time_and_outcome_of_a_call(audit: AuditLog, tmp_path: Path) -> None:
    asked = record(x_agent_id="researcher", mcp_session_id="s-1", traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01")
    audit.ended(audit.accepted(asked, call(), known=True), error=None, is_error=True, sent=True, replayed=True)
    (line,) = await lines(audit, tmp_path)
    assert line.pop("time").endswith("Z")
    assert line.pop("milliseconds") >= 0
    assert line == {
        "audit": "call",
        "principal": "agents",
        "agent": "researcher",
        "session": "s-1",
        "request_id": "r-1",
        "trace_id": TRACE_ID,
        "method": "tools/call",
        "tool": "write",
        "isError": True,
        "outcome": "answered",
        "reason": None,
        "replayed": True,
    }


@pytest.mark.parametrize(
    ("error", "sent", "told"),
    [
        (UpstreamTimeout("No."), True, ("unknown", "timeout")),
        (UpstreamTimeout("No."), False, ("not_sent", "timeout")),
        (Cancelled("No."), True, ("unknown", "cancelled")),
        (Overloaded("No."), False, ("not_sent", "overloaded")),
        (AuditFailed("No."), False, ("not_sent", "audit")),
        (InvalidMessage("No."), False, ("not_sent", "invalid")),
        (Forbidden("No."), True, ("unknown", "forbidden")),
    ],
)
async def test_outcome_and_reason_follow_from_the_error(
    audit: AuditLog, tmp_path: Path, error: BridgeError, sent: bool, told: tuple[str, str]
) -> None:
    audit.ended(audit.accepted(record(), call(), known=True), error=error, sent=sent)
    (line,) = await lines(audit, tmp_path)
    assert (line["audit"], line["isError"]) == ("call", None)
    assert (line["outcome"], line["reason"]) == told


async def test_a_call_that_is_rejected_after_waiting_is_a_refusal(audit: AuditLog, tmp_path: Path) -> None:
    audit.ended(audit.accepted(record(), call(), known=True), error=Forbidden("No."))
    (line,) = await lines(audit, tmp_path)
    assert (line["audit"], line["outcome"], line["reason"], line["status"]) == ("refusal", "refused", "forbidden", 403)
    assert line["tool"] == "write"


@pytest.mark.parametrize("error", [Forbidden("No."), LimitReached("No.", 7)])
@pytest.mark.parametrize(
    ("refused", "named"),
    [
        (call(), ("tools/call", "write")),
        (message("resources/read", uri=CANARY), ("resources/read", None)),
        (message(CANARY), ("other", None)),
        (message("notifications/cancelled", None, requestId=CANARY), ("notifications/cancelled", None)),
        (parse_message(f'{{"jsonrpc":"2.0","id":1,"result":{{"text":"{CANARY}"}}}}'), (None, None)),
    ],
)
async def test_each_refused_message_has_a_line(
    audit: AuditLog, tmp_path: Path, error: BridgeError, refused: AnyMessage, named: tuple[str | None, str | None]
) -> None:
    audit.refused(record(), refused, error, known=True)
    (line,) = await lines(audit, tmp_path)
    assert (line["audit"], line["outcome"]) == ("refusal", "refused")
    assert (line["method"], line["tool"]) == named
    assert (line["reason"], line["status"]) in (("forbidden", 403), ("limit", 429))


@pytest.mark.parametrize(
    ("refused", "error", "outcomes"),
    [
        (call(), Overloaded("No."), ["not_sent"]),
        (message("tools/list"), Overloaded("No."), []),
        (message("tools/call", None, name="write"), InvalidMessage("No."), []),
    ],
)
async def test_a_message_that_could_not_be_served_has_a_line_only_if_it_is_a_call(
    audit: AuditLog, tmp_path: Path, refused: AnyMessage, error: BridgeError, outcomes: list[str]
) -> None:
    audit.refused(record(), refused, error, known=True)
    assert [(it["audit"], it["outcome"]) for it in await lines(audit, tmp_path)] == [("call", it) for it in outcomes]


async def test_an_unknown_tool_is_logged_as_other(audit: AuditLog, tmp_path: Path) -> None:
    audit.ended(audit.accepted(record(), call(CANARY), known=False), error=None)
    audit.refused(record(), call(CANARY), Forbidden("No."), known=False)
    assert [it["tool"] for it in await lines(audit, tmp_path)] == ["other", "other"]


async def test_a_tool_that_becomes_known_during_its_call_is_logged_by_name(audit: AuditLog, tmp_path: Path) -> None:
    audit.ended(audit.accepted(record(), call(), known=False), error=None, tool="write")
    assert [it["tool"] for it in await lines(audit, tmp_path)] == ["write"]


async def test_a_line_is_short_enough_for_one_write_to_a_pipe(audit: AuditLog, tmp_path: Path) -> None:
    name = "\U0001f600" * 10_000
    longest = record(x_agent_id='"' * 256, mcp_session_id="\\" * 256)
    longest.principal, longest.request_id = "p" * 64, "r" * 128
    audit.ended(audit.accepted(longest, call(name), known=True), error=None, tool=name)
    (line,) = await lines(audit, tmp_path)
    assert line["tool"] == name[:128]
    assert (tmp_path / "audit").stat().st_size <= 4096


@pytest.mark.parametrize(
    ("header", "meta", "trace_id"),
    [
        (TRACE_ID, None, TRACE_ID),
        (None, TRACE_ID, TRACE_ID),
        (TRACE_ID, OTHER_TRACE_ID, TRACE_ID),
        (CANARY, TRACE_ID, TRACE_ID),
        (None, CANARY, None),
        (None, {"trace": CANARY}, None),
        (None, "ü", None),
        (None, None, None),
    ],
)
async def test_the_trace_id_is_from_the_header_or_else_from_meta(
    audit: AuditLog, tmp_path: Path, header: str | None, meta: Any, trace_id: str | None
) -> None:
    asked = record() if header is None else record(traceparent=f"00-{header}-b7ad6b7169203331-01")
    said = f"00-{meta}-b7ad6b7169203331-01" if isinstance(meta, str) else meta
    it = call() if meta is None else call(_meta={"traceparent": said})
    audit.ended(audit.accepted(asked, it, known=True), error=None)
    assert [line["trace_id"] for line in await lines(audit, tmp_path)] == [trace_id]


@pytest.mark.parametrize("required", [True, False])
async def test_only_a_required_audit_log_rejects_calls(monkeypatch: pytest.MonkeyPatch, required: bool) -> None:
    monkeypatch.setattr(audit_writer, "CLOSE_SECONDS", 0.1)
    async with AuditLog("/dev/full", required=required) as audit:
        audit.require()
        receipt = audit.ended(audit.accepted(record(), call(), known=True), error=None)
        assert (receipt is not None) is required
        await until(lambda: audit.writer.failing)
        if not required:
            return audit.require()
        with pytest.raises(AuditFailed) as refusal:
            audit.require("7")
    assert (refusal.value.request_id, refusal.value.data) == ("7", {"outcome": "not_sent", "retryable": True})


def test_without_a_destination_there_is_no_audit_log() -> None:
    assert AuditLog.from_settings(Settings.from_environ({})) is None


def test_a_destination_that_cannot_be_opened_is_one_mistake_in_the_settings(tmp_path: Path) -> None:
    settings = Settings.from_environ({"VESTIGE_BRIDGE_AUDIT_LOG": str(tmp_path)})
    with pytest.raises(SettingsError) as failure:
        AuditLog.from_settings(settings)
    assert failure.value.problems == [f"VESTIGE_BRIDGE_AUDIT_LOG: {tmp_path} cannot be opened: Is a directory."]
