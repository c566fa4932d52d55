"""Compares the audit log with the calls: each must have a line that agrees with the caller's result."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from chaos.account import Account, Call, Figures

MEMBERS = {
    *("time", "audit", "principal", "agent", "session", "request_id", "trace_id", "method", "tool", "isError"),
    *("outcome", "reason", "replayed", "milliseconds"),
}

Line = dict[str, Any]


def check_audit(path: Path, account: Account, figures: Figures) -> None:
    """Counts each call without a line, each wrong line, and each line that belongs to no call.

    Parameters:
        path: the audit log of a bridge that has ended.
        account: the calls, before they are settled.
        figures: the failures and the counts.
    """
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    for call in account.calls.values():
        calls[call.request_id].append(call)
    lines: defaultdict[str, list[Line]] = defaultdict(list)
    for text in path.read_text().splitlines():
        line = _parsed(text)
        if line is None or line["request_id"] not in calls:
            figures.blame("misreported", f"a line of the audit log that is no call: {text}")
        else:
            lines[line["request_id"]].append(line)
    runs = account.runs()
    for request_id, of_request in calls.items():
        for complaint in _complaints(of_request, lines[request_id], runs):
            figures.blame("misreported", f"the audit log of {request_id}: {complaint}")
    outcomes = Counter(line["outcome"] for of_request in lines.values() for line in of_request)
    writes = sum(call.got == "answer" and call.tool == "write" for call in account.calls.values())
    counts = ", ".join(f"{outcomes[it]:,} {it}" for it in ("answered", "unknown", "not_sent"))
    figures.done += (
        f"; audit log: {outcomes.total():,} lines ({counts}), one for each of {writes:,} acknowledged writes"
    )


def _parsed(text: str) -> Line | None:
    """Parses a line; returns ``None`` if it is not about a call."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    if not isinstance(line, dict) or line.keys() != MEMBERS:
        return None
    return line if (line["audit"], line["principal"], line["method"]) == ("call", "default", "tools/call") else None


def _complaints(calls: Sequence[Call], lines: Sequence[Line], runs: Counter[str]) -> Iterable[str]:
    """Yields the faults in the lines of one HTTP request, which may be a batch."""
    left = Counter((line["tool"], line["outcome"], line["isError"]) for line in lines)
    untold = []
    for call in calls:
        told = _expected_outcome(call)
        if told is None:
            untold.append(call)
        elif left[call.tool, *told]:
            left[call.tool, *told] -= 1
        else:
            yield f"{call} has no line of its own: {lines}"
    # A client that disconnected got no result; if it did so early, the bridge may not have received its request.
    for tool, outcome, _ in left.elements():
        of_tool = [call for call in untold if call.tool == tool]
        if not of_tool:
            yield f"a line too many: {lines}"
            continue
        call = of_tool[0]
        untold.remove(call)
        if (outcome == "answered" and call.got == "cancelled") or (outcome == "not_sent" and runs[call.key]):
            yield f"{call} ran {runs[call.key]} times: {lines}"
    yield from (f"{call} was cancelled and has no line" for call in untold if call.got == "cancelled")


def _expected_outcome(call: Call) -> tuple[str, bool | None] | None:
    """Returns the outcome that the audit line must have for the caller's result; ``None`` if it got no result."""
    if call.got == "answer":
        return "answered", False
    if call.got == "error":
        return call.error.get("data", {}).get("outcome", ""), None
    return None
