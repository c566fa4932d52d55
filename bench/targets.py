"""The performance targets of the bridge, and their measured values. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Results = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        name: P1 to P8.
        what: the measured quantity.
        unit: the suffix of each value.
        target: the required value.
        moonshot: the stretch goal; none if there is none.
        at_most: whether less is better.
        part: the result that contains it.
        value: reads it from that part; KeyError if the run had no such contender.
    """

    name: str
    what: str
    unit: str
    target: float
    moonshot: float | None
    at_most: bool
    part: str
    value: Callable[[Mapping[str, Any]], float]

    def row(self, results: Results) -> tuple[str, str, str, str, str, str]:
        """Returns the row: name, what, target, moonshot, measured, verdict."""
        sign = "≤" if self.at_most else "≥"
        goal = f"{sign} {self.target:g}{self.unit}"
        moonshot = "" if self.moonshot is None else f"{sign} {self.moonshot:g}{self.unit}"
        try:
            measured = self.value(results[self.part])
        except KeyError:
            return self.name, self.what, goal, moonshot, "–", "not measured"
        return self.name, self.what, goal, moonshot, f"{number(measured)}{self.unit}", self._verdict(measured)

    def _verdict(self, measured: float) -> str:
        def met(goal: float) -> bool:
            return measured <= goal if self.at_most else measured >= goal

        if self.moonshot is not None and met(self.moonshot):
            return "stretch goal met"
        return "met" if met(self.target) else "missed"


def number(value: float) -> str:
    """Formats a value with three significant digits, and a whole number as a count."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _target(name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda part: part["targets"][name]["median"]


def _job(part: Mapping[str, Any], server: str, contender: str) -> Mapping[str, Any]:
    for job in part["jobs"]:
        if (job["server"], job["contender"], job["clients"]) == (server, contender, 20):
            found: Mapping[str, Any] = job
            return found
    raise KeyError(contender)


def _job_ratio(server: str, other: str, name: str) -> Callable[[Mapping[str, Any]], float]:
    return lambda part: _job(part, server, "bridge")[name] / _job(part, server, other)[name]


def _with_vestige(what: str, target: float, at_most: bool, value: Callable[[Mapping[str, Any]], float]) -> Target:
    return Target(
        "P4",
        f"with Vestige, 20 clients: {what}",
        "",
        target,
        None,
        at_most,
        "memory",
        lambda part: value(_job(part, VESTIGE, "bridge")),
    )


def _against_floor(language: str, log: str, figure: str) -> Target:
    what = f"CPU per request / floor, upstream in {language}, {log} log"
    target, moonshot = {"C": (0.66, 0.58), "Go": (0.72, 0.62)}[language]
    return Target("P1", what, " ×", target, moonshot, True, "throughput", _target(figure))


def _unread(part: Mapping[str, Any]) -> float:
    if part["clients"] != UNREAD_CLIENTS:
        raise KeyError("clients")
    mebibytes: float = part["peak_mib"]
    return mebibytes


UNREAD_CLIENTS = 60
"""The number of clients of P8; a run with fewer does not measure it."""

MEMORY, VESTIGE = "server-memory", "Vestige"

TARGETS = (
    _against_floor("C", "JSON", "P1"),
    _against_floor("C", "text", "P1 text"),
    _against_floor("Go", "JSON", "P1 Go"),
    _against_floor("Go", "text", "P1 Go text"),
    Target("P2", "requests/s / FastMCP", " ×", 100, 250, False, "throughput", _target("P2")),
    Target("P2b", "CPU per request / ToolHive", " ×", 0.62, 0.55, True, "throughput", _target("P2b")),
    Target(
        "P3",
        "added latency (p50) at 1 connection",
        " ms",
        0.25,
        0.2,
        True,
        "throughput",
        lambda it: _target("P3")(it) / 1000,
    ),
    Target(
        "P4",
        "real job, 20 clients: MCP server processes",
        "",
        1,
        None,
        True,
        "memory",
        lambda it: _job(it, MEMORY, "bridge")["servers"],
    ),
    Target(
        "P4",
        "real job, 20 clients: memory of the MCP servers / direct",
        " ×",
        0.125,
        None,
        True,
        "memory",
        _job_ratio(MEMORY, "direct", "servers_mib"),
    ),
    Target(
        "P4",
        "real job, 20 clients: calls/s / stateless",
        " ×",
        10,
        None,
        False,
        "memory",
        _job_ratio(MEMORY, "stateless", "calls_per_second"),
    ),
    _with_vestige("clients that connect", 20, False, lambda job: job["connected"]),
    _with_vestige("acknowledged writes lost", 0, True, lambda job: job["acknowledged"] - job["kept"]),
    _with_vestige("clients that go on after a restart", 20, False, lambda job: job["went_on"]),
    _with_vestige("MCP server processes", 1, True, lambda job: job["servers"]),
    Target(
        "P4",
        "with Vestige, 20 clients: calls/s / direct, median of three",
        " ×",
        0.85,
        None,
        False,
        "memory",
        _job_ratio(VESTIGE, "direct", "calls_per_second"),
    ),
    Target("P5", "memory per idle stream", " KiB", 40, 16, True, "streams", lambda it: it["idle"]["kib_each"]),
    Target(
        "P5",
        "resident memory with 1,000 idle streams",
        " MiB",
        128,
        None,
        True,
        "streams",
        lambda it: it["idle"]["rss_mib"],
    ),
    Target(
        "P6", "start to ready with a warm upstream", " s", 1, 0.4, True, "start", lambda it: it["seconds"]["median"]
    ),
    Target(
        "P7",
        "10 MB response: peak memory increase / its size",
        " ×",
        3,
        None,
        True,
        "streams",
        lambda it: it["large"]["peak_in_sizes"],
    ),
    Target(
        "P7",
        "10 MB response: memory increase that remains / its size",
        " ×",
        1,
        None,
        True,
        "streams",
        lambda it: it["large"]["kept_in_sizes"],
    ),
    Target(
        "P7",
        "10 MB response: p99 of the others, during / before",
        " ×",
        2,
        None,
        True,
        "streams",
        lambda it: it["large"]["p99_ratio"]["median"],
    ),
    Target(
        "P8",
        f"{UNREAD_CLIENTS} clients that do not read an 8 MB response: peak memory increase",
        " MiB",
        96,
        None,
        True,
        "unread",
        _unread,
    ),
)
