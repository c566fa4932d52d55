"""The model: every call is identified by its key, and its result is compared with the calls that the server ran.

Invariant: an answer is correct only if it belongs to this call and the server recorded the call. An error is correct
only if its statements about the call are true.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ZEROS = ("wrong", "misreported", "twice", "unanswered", "failed", "grown", "leaked")
"""The columns that must be zero.

wrong: another call's answer, or one that no client may get. misreported: an error or an audit line that contradicts
the server's record. twice: a write that ran again. unanswered: no answer in time, or a truncated one. failed: a 500, a
traceback, a process that ended. grown: memory, descriptors, tasks or sessions over their limit. leaked: a secret in a
log, a metric or another client's answer.
"""

HARMLESS = frozenset({"set", "read"})
STATUSES = {-32010: 503, -32011: 502, -32012: 504, -32013: 503, -32017: 200}
"""The errors with which a fault may end a call, and the HTTP status of each."""

CANCELLED = -32017
NO_SESSION = -32600


@dataclass
class Figures:
    """The result of one fault: a description, and the counts of its outcomes."""

    fault: str
    done: str
    calls: int = 0
    answered: int = 0
    told: int = 0
    zeros: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)

    def add(self, other: Figures) -> None:
        """Adds the figures of a part."""
        self.calls += other.calls
        self.answered += other.answered
        self.told += other.told
        self.zeros += other.zeros
        self.notes += other.notes
        self.examples += other.examples

    def blame(self, column: str, example: str) -> None:
        """Counts a failure, and keeps the first few as examples."""
        assert column in ZEROS
        self.zeros[column] += 1
        if self.zeros[column] <= 3:
            self.examples.append(f"{self.fault}, {column}: {example[:400]}")


@dataclass(slots=True)
class Call:
    """One call of a tool, and its result.

    Attributes:
        key: the text that the server records when it runs the call.
        tool: the name of the tool.
        spelled_id: its JSON-RPC id, as JSON.
        request_id: the id of its HTTP request, which the calls of a batch share.
        characters: the number of additional characters in its answer.
        cancelled: whether its client cancels it.
        in_session: whether it is made on a client's own session, which may be lost.
        got: ``answer``, ``error``, ``cancelled`` (its client cancelled the stream), ``left`` (its client did not wait),
            ``refused`` (no connection), ``cut`` (the connection ended before the answer); empty while it waits.
        error: the error object.
        complaint: the fault in its result.
        steps: the last step of its progress.
    """

    key: str
    tool: str
    spelled_id: str
    request_id: str
    characters: int = 0
    cancelled: bool = False
    in_session: bool = False
    got: str = ""
    error: dict[str, Any] = field(default_factory=dict)
    complaint: str = ""
    steps: int = 0

    @property
    def text(self) -> str:
        """The text of the expected answer."""
        return f"{self.tool} {self.key}{'.' * self.characters}"

    def take_progress(self, message: dict[str, Any]) -> None:
        """Checks a progress notification, which must belong to this call and be newer than the last one."""
        params = message.get("params", {})
        step = params.get("progress", 0)
        if message.get("method") != "notifications/progress" or params.get("message") != self.key:
            self.complain(f"progress of another: {message}")
        elif json.dumps(params.get("progressToken")) != self.spelled_id:
            self.complain(f"progress under another token: {message}")
        elif step <= self.steps:
            self.complain(f"step {step} of progress after step {self.steps}")
        self.steps = step

    def complain(self, complaint: str) -> None:
        """Records a complaint, unless there is one already."""
        self.complaint = self.complaint or complaint

    def take(self, status: int | None, data: bytes) -> None:
        """Checks the answer.

        Parameters:
            status: the HTTP status; ``None`` if it came in a stream or a batch.
            data: the JSON-RPC response.
        """
        message = json.loads(data)
        if not re.search(rb'"id"\s*:\s*%s\s*[,}]' % re.escape(self.spelled_id.encode()), data):
            self.complain(f"the id of another: {data[:200]!r}")
        self.got = "answer" if "result" in message else "error"
        if self.got == "answer":
            content = message["result"].get("content", [{}])
            if [part.get("text") for part in content] != [self.text] or status not in (200, None):
                self.complain(f"the answer of another: HTTP {status} {data[:200]!r}")
            return
        self.error = message["error"]
        code = self.error.get("code", 0)
        expected = None if code == CANCELLED and not self.cancelled else STATUSES.get(code)
        if code == NO_SESSION and self.in_session:
            expected = 404
        if expected is None or status not in (expected, None, *((200,) if self.steps else ())):
            self.complain(f"an error that no fault explains: HTTP {status} {self.error}")

    def judge(self, runs: int) -> tuple[str, str]:
        """Returns its column and the reason, from the number of times that the server ran it."""
        outcome, retryable = (self.error.get("data", {}).get(name) for name in ("outcome", "retryable"))
        if self.tool not in HARMLESS and runs > 1:
            return "twice", f"{self.key} ran {runs} times"
        if self.complaint:
            return "wrong", f"{self.key}: {self.complaint}"
        if not self.got or (self.got == "cut" and runs):
            return "unanswered", f"{self.key}, {self.got or 'waited'}, ran {runs} times"
        if self.got == "answer":
            return ("answered", "") if runs else ("wrong", f"{self.key} was answered and never ran")
        if self.got == "error":
            false = (
                outcome not in ("not_sent", "unknown")
                or (outcome == "not_sent" and runs)
                or (retryable and outcome != "not_sent" and self.tool not in HARMLESS)
            )
            return ("misreported" if false else "told"), f"{self.key} ran {runs} times and got {self.error}"
        return "told", ""


class Account:
    """The calls of one fault, and the journal of the server.

    Parameters:
        secret: the prefix of each key; like a memory's text, it must appear nowhere else.
        journal: the server's file.

    Attributes:
        calls: the calls by their keys.
        answered: the number of correct answers so far.
    """

    def __init__(self, secret: str, journal: Path) -> None:
        self.calls: dict[str, Call] = {}
        self.answered = 0
        self._secret = secret
        self._journal = journal
        self._numbers = itertools.count(1)

    def open(self, tool: str, spelled_id: str, characters: int = 0) -> Call:
        """Creates and records a new call."""
        number = next(self._numbers)
        call = Call(f"{self._secret}-{number}", tool, spelled_id, f"call-{number}", characters)
        self.calls[call.key] = call
        return call

    def handshakes(self) -> int:
        """Returns the number of sessions that were opened on the server."""
        return self.runs()["handshake"]

    def runs(self) -> Counter[str]:
        """Returns how often the server ran each call."""
        return Counter(self._journal.read_text().splitlines()) if self._journal.exists() else Counter()

    def settle(self, figures: Figures) -> None:
        """Assigns every call to a column of the figures, and removes it."""
        runs, calls, self.calls = self.runs(), self.calls, {}
        for call in calls.values():
            figures.calls += 1
            column, why = call.judge(runs[call.key])
            if column == "answered":
                figures.answered += 1
            elif column == "told":
                figures.told += 1
            else:
                figures.blame(column, why)
