"""The charts of the documents, drawn from results as SVG; the same figures give the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.targets import MEMORY, VESTIGE, number

OURS, OTHERS, PALE = "#1f6feb", "#8b949e", "#d0d7de"
mpl.use("svg")
mpl.rcParams.update(
    {
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.facecolor": "white",
        "font.size": 10,
        "svg.fonttype": "none",
        "svg.hashsalt": "vestige-bridge",
    }
)


def draw(results: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Draws all charts for which there are results."""
    charts: dict[str, tuple[str, Callable[[Mapping[str, Any]], Any]]] = {
        "cpu.svg": ("throughput", _cpu),
        "requests.svg": ("throughput", _requests),
        "latency.svg": ("throughput", _latency),
        "job.svg": ("memory", _job),
        "clients.svg": ("memory", _clients),
    }
    for name, (part, chart) in charts.items():
        if part in results:
            figure = chart(results[part])
            figure.savefig(folder / name, metadata={"Date": None}, bbox_inches="tight")
            plt.close(figure)


def _cpu(part: Mapping[str, Any]) -> Any:
    return _bars(part, "cpu_us", "CPU time a request takes in the proxy (µs, less is better)")


def _requests(part: Mapping[str, Any]) -> Any:
    return _bars(part, "requests_per_second", "Requests a second through one process (more is better)")


def _bars(part: Mapping[str, Any], name: str, title: str) -> Any:
    """One bar for each contender and form at 32 connections, with its spread, on a logarithmic scale."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
    figure.suptitle(f"{title}: 32 connections, 200 B", x=0.02, ha="left")
    for panel, form in zip(panels, ("json", "sse"), strict=True):
        cells = [
            cell
            for cell in part["cells"]
            if (cell["form"], cell["connections"], cell["bytes"]) == (form, 32, 200) and name in cell["figures"]
        ]
        figures = [cell["figures"][name] for cell in cells]
        names = [cell["contender"] for cell in cells]
        _barh(panel, names, [it["median"] for it in figures])
        for row, it in enumerate(figures):
            panel.plot([it["low"], it["high"]], [row, row], color="black", linewidth=1)
        panel.set_xscale("log")
        panel.set_xlim(min(it["low"] for it in figures) / 2, max(it["high"] for it in figures) * 6)
        panel.set_title({"json": "JSON answers", "sse": "answers as one event"}[form])
        panel.invert_yaxis() if form == "json" else None
    figure.tight_layout()
    return figure


def _latency(part: Mapping[str, Any]) -> Any:
    """Median and tail latency of three contenders, by the number of connections."""
    figure, panel = plt.subplots(figsize=(6.5, 3.2))
    for contender, colour in {"none": PALE, "floor": OTHERS, "bridge": OURS}.items():
        cells = sorted(
            (
                cell
                for cell in part["cells"]
                if (cell["contender"], cell["form"], cell["bytes"]) == (contender, "json", 200)
            ),
            key=lambda cell: cell["connections"],
        )
        connections = [cell["connections"] for cell in cells]
        for name, style in {"p50_us": "-", "p99_us": ":"}.items():
            values = [cell["figures"][name]["median"] / 1000 for cell in cells]
            panel.plot(connections, values, style, marker="o", color=colour, label=f"{contender}, {name[:3]}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xticks([1, 32, 256], ["1", "32", "256"])
    panel.set_xlabel("connections, each with a request under way all the time")
    panel.set_title("Latency (ms, less is better): JSON, 200 B")
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _job(part: Mapping[str, Any]) -> Any:
    """The write workload with 20 clients, one row for each memory server."""
    servers = [server for server in (MEMORY, VESTIGE) if any(job["server"] == server for job in part["jobs"])]
    figure, rows = plt.subplots(len(servers), 4, figsize=(11, 2.9 * len(servers)), sharey=True, squeeze=False)
    panels: dict[str, Callable[[Mapping[str, Any]], float]] = {
        "calls/s": lambda job: job["calls_per_second"],
        "memory of the MCP servers, MiB": lambda job: job["servers_mib"],
        "acknowledged writes kept, %": lambda job: 100 * job["kept"] / max(1, job["acknowledged"]),
        "clients that go on after a restart, %": lambda job: 100 * job["went_on"] / job["clients"],
    }
    for server, row in zip(servers, rows, strict=True):
        jobs = [job for job in part["jobs"] if (job["server"], job["clients"]) == (server, 20)]
        for panel, (title, value) in zip(row, panels.items(), strict=True):
            _barh(panel, [job["contender"] for job in jobs], [value(job) for job in jobs])
            panel.set_title(title)
            panel.margins(x=0.3)
        row[0].set_ylabel(server)
        row[0].invert_yaxis()
    figure.suptitle(f"20 agents write {part['writes']} memories each", x=0.02, ha="left")
    figure.tight_layout()
    return figure


def _clients(part: Mapping[str, Any]) -> Any:
    """Calls a second by the number of clients."""
    figure, panel = plt.subplots(figsize=(6.5, 3.2))
    jobs = [job for job in part["jobs"] if job["server"] == MEMORY]
    ways = dict.fromkeys(job["contender"] for job in jobs)
    for way, marker in zip(ways, "osv^D*", strict=False):
        points = [(job["clients"], job["calls_per_second"]) for job in jobs if job["contender"] == way]
        colour = OURS if way == "bridge" else OTHERS
        panel.plot(*zip(*points, strict=True), marker=marker, color=colour, label=way)
    panel.set_yscale("log")
    panel.set_xticks(sorted({job["clients"] for job in jobs}))
    panel.set_xlabel("agents at once")
    panel.set_title(f"Calls a second (more is better): {MEMORY}")
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _barh(panel: Any, names: Sequence[str], values: Sequence[float]) -> None:
    """Bars with their figures at the end; the bridge's has its own colour."""
    bars = panel.barh(range(len(names)), values, color=[OURS if name.startswith("bridge") else PALE for name in names])
    panel.set_yticks(range(len(names)), names)
    panel.bar_label(bars, [f" {number(value)}" for value in values], padding=4)
