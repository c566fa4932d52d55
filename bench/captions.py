"""The captions of the charts: their figures as text, in the title and the description of each SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from bench.targets import MEMORY, VESTIGE, number

FORMS = {"json": "JSON answers", "sse": "answers as one event"}
LATENCY = ("none", "floor", "bridge")
"""The contenders of the latency chart."""

JOB: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "calls/s": lambda job: job["calls_per_second"],
    "memory of the MCP servers, MiB": lambda job: job["servers_mib"],
    "acknowledged writes kept, %": lambda job: _percent(job["kept"], max(1, job["acknowledged"])),
    "clients that go on after a restart, %": lambda job: _percent(job["went_on"], job["clients"]),
}
"""The panels of the write workload."""

Part = Mapping[str, Any]


class Caption(NamedTuple):
    """The title and the description of a chart."""

    title: str
    description: str


def captions(results: Mapping[str, Part]) -> dict[str, Caption]:
    """Returns the caption of each chart for which there are results, by file name."""
    chart: dict[str, tuple[str, str, Callable[[Part], Iterator[str]]]] = {
        "cpu.svg": ("throughput", "CPU time per request in the proxy, µs (less is better)", _bars_of("cpu_us")),
        "requests.svg": (
            "throughput",
            "Requests per second through one process (more is better)",
            _bars_of("requests_per_second"),
        ),
        "latency.svg": ("throughput", "Latency, ms (less is better): JSON answers of 200 B", _latencies_in_words),
        "job.svg": ("memory", "The real job: 20 agents write memories", _job_in_words),
        "clients.svg": ("memory", f"Calls per second (more is better): {MEMORY}", _clients_in_words),
    }
    return {
        name: Caption(title, " ".join(words(results[part])))
        for name, (part, title, words) in chart.items()
        if part in results
    }


def bars(part: Part, name: str, form: str) -> list[tuple[str, Mapping[str, float]]]:
    """Returns a figure of each contender at 32 connections and 200 B, with its median and its spread.

    Parameters:
        part: the result ``throughput``.
        name: the name of the figure.
        form: the form of the answers.
    """
    return [
        (cell["contender"], cell["figures"][name])
        for cell in part["cells"]
        if (cell["form"], cell["connections"], cell["bytes"]) == (form, 32, 200) and name in cell["figures"]
    ]


def latencies(part: Part, contender: str) -> list[tuple[int, float, float]]:
    """Returns the numbers of connections, with p50 and p99 in milliseconds, for JSON answers of 200 B."""
    cells = [
        cell for cell in part["cells"] if (cell["contender"], cell["form"], cell["bytes"]) == (contender, "json", 200)
    ]
    return sorted(
        (cell["connections"], *(cell["figures"][name]["median"] / 1000 for name in ("p50_us", "p99_us")))
        for cell in cells
    )


def jobs(part: Part) -> dict[str, list[Part]]:
    """Returns the jobs with 20 clients, by memory server."""
    found = {server: [job for job in part["jobs"] if job["server"] == server] for server in (MEMORY, VESTIGE)}
    return {server: [job for job in them if job["clients"] == 20] for server, them in found.items() if them}


def calls_by_clients(part: Part) -> dict[str, list[tuple[int, float]]]:
    """Returns the clients and the calls per second, by contender, for the server that all contenders support."""
    found = [job for job in part["jobs"] if job["server"] == MEMORY]
    ways = dict.fromkeys(job["contender"] for job in found)
    return {
        way: [(job["clients"], job["calls_per_second"]) for job in found if job["contender"] == way] for way in ways
    }


def _percent(count: int, whole: int) -> float:
    percent = 100 * count / whole
    return int(percent) if percent.is_integer() else percent


def _bars_of(name: str) -> Callable[[Part], Iterator[str]]:
    def words(part: Part) -> Iterator[str]:
        yield "32 connections, 200 B; the median, and in brackets the least and the most of the rounds."
        for form, title in FORMS.items():
            found = (
                f"{contender} {number(it['median'])} ({number(it['low'])} to {number(it['high'])})"
                for contender, it in bars(part, name, form)
            )
            yield f"{title}: {'; '.join(found)}."

    return words


def _latencies_in_words(part: Part) -> Iterator[str]:
    yield "The median (p50) and the tail (p99)."
    for contender in LATENCY:
        found = (
            f"{number(p50)} and {number(p99)} at {connections} connections"
            for connections, p50, p99 in latencies(part, contender)
        )
        yield f"{contender}: {'; '.join(found)}."


def _job_in_words(part: Part) -> Iterator[str]:
    yield f"{part['writes']} memories each."
    for server, found in jobs(part).items():
        for panel, value in JOB.items():
            figures = (f"{job['contender']} {number(value(job))}" for job in found)
            yield f"{server}, {panel}: {'; '.join(figures)}."


def _clients_in_words(part: Part) -> Iterator[str]:
    for way, found in calls_by_clients(part).items():
        yield f"{way}: {'; '.join(f'{number(rate)} with {clients} agents' for clients, rate in found)}."
