"""The model: every call is known by its key, and what its caller got is held against what the server ran.

Invariant: an answer counts as right only if it is this call's own and the server wrote the call down; an
error only if what it says of the call is true.
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
what the server ran. twice: a write that ran again. unanswered: no answer in time, or one cut short. failed: a 500, a
traceback, a process that ended. grown: memory, descriptors, tasks or sessions over their bound. leaked: a secret in a
log, a metric or another client's answer.
"""

HARMLESS = frozenset({"set", "read"})
STATUSES = {-32010: 503, -32011: 502, -32012: 504, -32013: 503, -32017: 200}
"""The errors that a fault may end a call with, and the HTTP status of each."""

CANCELLED = -32017
NO_SESSION = -32600


@dataclass
class Figures:
    """What one fault came to: what was done, how much of it went right, and what may not be there."""

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
        """Counts what must not be, and keeps the first few for whoever looks for the reason."""
        assert column in ZEROS
        self.zeros[column] += 1
        if self.zeros[column] <= 3:
            self.examples.append(f"{self.fault}, {column}: {example[:400]}")


@dataclass(slots=True)
class Call:
    """One call of a tool, and what its caller got.

    Attributes:
        key: what the server writes down when it runs.
        tool: the name of the tool.
        spelled_id: its JSON-RPC id.
        request_id: the id of its HTTP request, which the calls of a batch share.
        characters: how many more its answer has.
        cancelled: whether its client cancels it.
        in_session: whether it is made on a session of its client's own, which may be lost.
        got: ``answer``, ``error``, ``cancelled`` (its client cancelled the stream), ``left`` (its client did not wait),
            ``refused`` (no connection), ``cut`` (the connection ended before the answer); empty while it waits.
        error: the error object.
        complaint: what is wrong with what it got.
        steps: the progress it saw.
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
        """What the tool answers."""
        return f"{self.tool} {self.key}{'.' * self.characters}"

    def take_progress(self, message: dict[str, Any]) -> None:
        """Takes a step of progress in, which has to be its own and newer than the last one."""
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
        """Keeps the first thing that is wrong."""
        self.complaint = self.complaint or complaint

    def take(self, status: int | None, data: bytes) -> None:
        """Takes the answer in.

        Parameters:
            status: the HTTP status; ``None`` when a stream or a batch carried it.
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
        """The column that it belongs to, and why, once it is known how often the server ran it."""
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
    """Every call of one fault, and the journal that the server keeps.

    Parameters:
        secret: how each key begins: a memory text that may appear nowhere else.
        journal: the server's file.

    Attributes:
        calls: the calls by their keys.
        answered: how many right answers came so far.
    """

    def __init__(self, secret: str, journal: Path) -> None:
        self.calls: dict[str, Call] = {}
        self.answered = 0
        self._secret = secret
        self._journal = journal
        self._numbers = itertools.count(1)

    def open(self, tool: str, spelled_id: str, characters: int = 0) -> Call:
        """A new call."""
        number = next(self._numbers)
        call = Call(f"{self._secret}-{number}", tool, spelled_id, f"call-{number}", characters)
        self.calls[call.key] = call
        return call

    def handshakes(self) -> int:
        """How many sessions the server was asked to open."""
        return self.runs()["handshake"]

    def runs(self) -> Counter[str]:
        """How often the server ran each call."""
        return Counter(self._journal.read_text().splitlines()) if self._journal.exists() else Counter()

    def settle(self, figures: Figures) -> None:
        """Judges every call, and forgets it."""
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
