"""Measures the cost of unread answers: each client has a token, calls a tool that answers 8 MB, and reads nothing."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from typing import Any

from bench import progress
from bench.contenders import BRIDGE, Started, started
from bench.processes import Failed, Process, upstream
from bench.targets import UNREAD_CLIENTS, number
from bench.throughput import Scenario, call, headers

SIZE = 8_000_000
FORMS = {form: Scenario(form, 1, 200) for form in ("json", "sse")}
REST_SECONDS = 1.5
"""Memory that is stable for this long is at rest."""
LAST_SECONDS = 60
"""The time limit for all answers to arrive, and for memory to be at rest."""


def measure(clients: int = UNREAD_CLIENTS) -> dict[str, Any]:
    """Measures the peak of the bridge's resident memory above rest, with default settings, in the worse of both forms.

    Errors:
        Failed: no client got the beginning of an answer, so that nothing was measured.
    """
    rows: dict[str, str] = {}
    peaks = []
    for form, scenario in FORMS.items():
        progress.say(f"unread: {clients} clients, {form}")
        with upstream() as port, started(BRIDGE, f"http://127.0.0.1:{port}/mcp") as it:
            peak, begun = _peak(it, scenario, clients)
        peaks.append(peak / 2**20)
        what = f"{clients} clients that do not read an 8 MB response, {form}"
        rows |= {f"{what}: peak memory increase": f"{number(peaks[-1])} MiB", f"{what}: responses started": f"{begun}"}
    progress.done()
    return {
        "clients": clients,
        "peak_mib": max(peaks),
        "rows": [{"what": what, "measured": measured} for what, measured in rows.items()],
    }


def _peak(it: Started, scenario: Scenario, clients: int) -> tuple[int, int]:
    """Returns the bytes above rest at the peak, and the number of clients that got the beginning of an answer."""
    if it.process is None:
        raise Failed("The bridge has no process.")
    rest = _at_rest(it.process)
    it.process.forget_peak()
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_connection(("127.0.0.1", it.port), timeout=5)) for _ in range(clients)
        ]
        for one in sockets:
            one.sendall(_request(it, scenario))
        _at_rest(it.process)
        begun = sum(map(_begun, sockets))
        it.process.alive()
        peak = it.process.peak_rss_bytes()
    if not begun:
        raise Failed("No client got the beginning of an answer.")
    return peak - rest, begun


def _at_rest(process: Process) -> int:
    """Returns the resident memory, once memory and CPU time are stable for some time."""
    deadline = time.monotonic() + LAST_SECONDS
    before = (process.rss_bytes(), process.cpu_seconds())
    while time.monotonic() < deadline:
        time.sleep(REST_SECONDS)
        after = (process.rss_bytes(), process.cpu_seconds())
        if abs(after[0] - before[0]) < 2**20 and after[1] - before[1] < 0.1 * REST_SECONDS:
            return after[0]
        before = after
    raise Failed(f"The bridge was not at rest after {LAST_SECONDS} s.")


def _request(it: Started, scenario: Scenario) -> bytes:
    body = call(scenario, bytes=SIZE)
    head = ["POST /mcp HTTP/1.1", "Host: bench", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*head, *headers(it, scenario), "", ""]).encode() + body


def _begun(connection: socket.socket) -> bool:
    """Whether the beginning of a successful answer has arrived; does not read it."""
    connection.setblocking(False)
    with suppress(OSError):
        return connection.recv(12, socket.MSG_PEEK) == b"HTTP/1.1 200"
    return False
