"""The charts of the documents, drawn from results as SVG; the same figures give the same bytes.

Invariants: each chart is legible on a light and on a dark page, because it has its own background and a style sheet for
dark colours; a logarithmic scale is labelled as one; no line crosses a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot as plt

from bench.captions import FORMS, JOB, LATENCY, Caption, Part, bars, calls_by_clients, captions, jobs, latencies
from bench.targets import number

INK, PAPER, OURS, OTHERS, PALE = "#1f2328", "#ffffff", "#0969da", "#59636e", "#8c959f"
DARK = {INK: "#e6edf3", PAPER: "#0d1117", OURS: "#4493f8", OTHERS: "#9198a1", PALE: "#6e7681"}
LOGARITHMIC = "logarithmic scale"
PLAIN = "{x:,g}"
mpl.use("svg")
mpl.rcParams.update(
    {
        "axes.edgecolor": INK,
        "axes.facecolor": PAPER,
        "axes.labelcolor": INK,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.facecolor": PAPER,
        "font.size": 10,
        "savefig.facecolor": PAPER,
        "svg.fonttype": "none",
        "svg.hashsalt": "vestige-bridge",
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
)


def draw(results: Mapping[str, Part], folder: Path) -> None:
    """Draws every chart for which there are results."""
    charts: dict[str, Callable[[Mapping[str, Part], str], Any]] = {
        "cpu.svg": lambda found, title: _bars(found["throughput"], "cpu_us", title, "µs"),
        "requests.svg": lambda found, title: _bars(found["throughput"], "requests_per_second", title, "requests/s"),
        "latency.svg": lambda found, title: _latency(found["throughput"], title),
        "job.svg": lambda found, title: _job(found["memory"], title),
        "clients.svg": lambda found, title: _clients(found["memory"], title),
    }
    for name, caption in captions(results).items():
        figure = charts[name](results, caption.title)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(folder / name, metadata=nothing, bbox_inches="tight")
        plt.close(figure)
        (folder / name).write_text(_told((folder / name).read_text(), caption))


def _told(svg: str, caption: Caption) -> str:
    """Returns the SVG with its caption as text alternative, and with a style sheet for dark pages."""
    head, tag, rest = svg.partition("<svg ")
    attributes, _, content = rest.partition(">")
    title, description = (escape(text, quote=False) for text in caption)
    rules = "".join(
        f'[style*="{use}: {light}"]{{{use}: {dark} !important}}\n'
        for light, dark in DARK.items()
        for use in ("fill", "stroke")
    )
    return (
        f'{head}{tag}role="img" aria-labelledby="title description" {attributes}>\n'
        f' <title id="title">{title}</title>\n <desc id="description">{description}</desc>\n'
        f" <style>@media (prefers-color-scheme: dark) {{\n{rules}}}</style>{content}"
    )


def _bars(part: Part, name: str, title: str, unit: str) -> Any:
    """Draws a row for each contender and form: median (dot), range of the rounds (line), and the figure beside them."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
    figure.suptitle(f"{title}: 32 connections, 200 B", x=0.02, ha="left")
    for panel, (form, answers) in zip(panels, FORMS.items(), strict=True):
        rows = bars(part, name, form)
        for row, (contender, it) in enumerate(rows):
            colour = _colour(contender)
            panel.plot([it["low"], it["high"]], [row, row], color=colour, linewidth=2)
            panel.plot(it["median"], row, marker="o", color=colour)
            _figure_behind(panel, it["high"], row, it["median"])
        panel.set_yticks(range(len(rows)), [contender for contender, _ in rows])
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter(PLAIN)
        panel.set_xlim(min(it["low"] for _, it in rows) / 1.5, max(it["high"] for _, it in rows) * 6)
        panel.set_xlabel(f"{unit}, {LOGARITHMIC}")
        panel.set_title(answers)
        panel.margins(y=0.08)
        panel.invert_yaxis() if form == "json" else None
    figure.tight_layout()
    return figure


def _latency(part: Part, title: str) -> Any:
    """Draws the median and tail latency of three contenders, by the number of connections."""
    figure, panel = plt.subplots(figsize=(6.5, 3.4))
    for contender, colour in zip(LATENCY, (PALE, OTHERS, OURS), strict=True):
        connections, *figures = zip(*latencies(part, contender), strict=True)
        for name, style, values in zip(("p50", "p99"), ("-", ":"), figures, strict=True):
            panel.plot(connections, values, style, marker="o", color=colour, label=f"{contender}, {name}")
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(PLAIN)
    panel.set_xticks(connections, map(str, connections))
    panel.set_xlabel(f"connections, each with a request under way all the time; {LOGARITHMIC}")
    panel.set_ylabel(f"ms, {LOGARITHMIC}")
    panel.set_title(title)
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _job(part: Part, title: str) -> Any:
    """Draws the write workload with 20 clients, with a row of panels for each memory server."""
    servers = jobs(part)
    figure, rows = plt.subplots(len(servers), len(JOB), figsize=(12, 2.9 * len(servers)), sharey=True, squeeze=False)
    for (server, found), row in zip(servers.items(), rows, strict=True):
        for panel, (name, value) in zip(row, JOB.items(), strict=True):
            _bars_with_figures(panel, [job["contender"] for job in found], [value(job) for job in found])
            panel.set_title(name)
            panel.margins(x=0.3)
            if name.endswith("%"):
                panel.set_xticks([0, 50, 100])
        row[0].set_ylabel(server)
        row[0].invert_yaxis()
    figure.suptitle(title, x=0.02, ha="left")
    figure.tight_layout()
    return figure


def _clients(part: Part, title: str) -> Any:
    """Draws the calls per second by the number of clients."""
    figure, panel = plt.subplots(figsize=(6.5, 3.4))
    for (way, points), marker in zip(calls_by_clients(part).items(), "osv^D*", strict=False):
        clients, rates = zip(*points, strict=True)
        panel.plot(clients, rates, marker=marker, color=_colour(way), label=way)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(PLAIN)
    panel.set_xticks(clients)
    panel.set_xlabel("agents at once")
    panel.set_ylabel(f"calls/s, {LOGARITHMIC}")
    panel.set_title(title)
    panel.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _bars_with_figures(panel: Any, names: Sequence[str], values: Sequence[float]) -> None:
    """Draws bars from zero with their figures at the end; the bridge's bar has its own colour."""
    panel.barh(range(len(names)), values, color=[_colour(name) for name in names])
    panel.set_yticks(range(len(names)), names)
    for row, value in enumerate(values):
        _figure_behind(panel, value, row, value)


def _figure_behind(panel: Any, end: float, row: int, value: float) -> None:
    """Writes a figure to the right of a row, which ends at ``end``."""
    panel.annotate(number(value), (end, row), xytext=(6, 0), textcoords="offset points", va="center")


def _colour(contender: str) -> str:
    return OURS if contender.startswith("bridge") else PALE
