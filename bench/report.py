"""Tables of results and of the targets, for the terminal and for the documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.oauth import NAME as WITH_OAUTH
from bench.targets import TARGETS, Results, number

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""The column heads, and the rows."""

TITLES = {
    "throughput": "Requests, CPU, latency and memory",
    "start": "Start to ready",
    "streams": "Idle, slow and large",
    "memory": "The real job",
    "instructions": "Instructions per request",
    "tricks": "What each optimisation saves",
    "unread": "Responses that clients do not read",
    "calls": "Python function calls of one warm tools/call",
    "crosscheck": "The load tool compared with wrk",
    "profile": "Where the CPU time goes",
}


def throughput(part: Mapping[str, Any]) -> Table:
    """Returns a row for each cell."""
    heads = (
        "proxy",
        "responses",
        "connections",
        "body bytes",
        "requests/s",
        "CPU µs per request",
        "CPU / floor",
        "p50 ms",
        "p99 ms",
        "p99.9 ms",
        "RSS MiB",
    )
    rows = []
    for cell in part["cells"]:
        figures = cell["figures"]
        against = cell.get("against", {}).get("cpu_us")
        rows.append(
            (
                cell["contender"],
                cell["form"],
                str(cell["connections"]),
                f"{cell['bytes']:,}",
                _spread(figures["requests_per_second"]),
                _spread(figures.get("cpu_us")),
                _spread(against),
                *(number(figures[name]["median"] / 1000) for name in ("p50_us", "p99_us", "p999_us")),
                _median(figures.get("rss_mib")),
            )
        )
    return heads, rows


def start(part: Mapping[str, Any]) -> Table:
    """Returns one row."""
    return ("", "seconds"), [("start to ready with a warm upstream", _spread(part["seconds"]))]


def streams(part: Mapping[str, Any]) -> Table:
    """Returns a row for each figure of a part, with the part's own names."""
    return ("", "measured"), [(row["what"], row["measured"]) for row in part["rows"]]


def memory(part: Mapping[str, Any]) -> Table:
    """Returns a row for each job."""
    heads: tuple[str, ...] = (
        "server",
        "proxy",
        "clients",
        "calls/s",
        "p50 ms",
        "MCP servers",
        "their memory, MiB",
        "processes",
        "total memory, MiB",
        "wrong",
        "no answer",
        "failed",
        "kept",
        "go on",
    )
    rows: list[tuple[str, ...]] = [
        (
            job["server"],
            job["contender"],
            str(job["clients"]),
            number(job["calls_per_second"]),
            number(job["p50_ms"]),
            str(job["servers"]),
            number(job["servers_mib"]),
            str(job["processes"]),
            number(job["memory_mib"]),
            str(job["wrong"]),
            str(job["hung"]),
            str(job["failed"]),
            f"{job['kept']} of {job['acknowledged']}",
            f"{job['went_on']} of {job['clients']}",
        )
        for job in part["jobs"]
    ]
    return heads, rows


def instructions(part: Mapping[str, Any]) -> Table:
    """Returns a row for each form."""
    counts = part["per_request"]
    rows: list[tuple[str, ...]] = [
        (
            form,
            f"{counts[f'floor, {form}']:,.0f}",
            f"{counts[f'bridge, {form}']:,.0f}",
            f"{ratio:.3f}",
        )
        for form, ratio in part["ratios"].items()
    ]
    if "with_jwt" in part:
        floor, bridge = counts["floor, json"], counts[f"{WITH_OAUTH}, json"]
        rows.append(("json, with a verified JWT", f"{floor:,.0f}", f"{bridge:,.0f}", f"{bridge / floor:.3f}"))
    return ("responses", "floor", "bridge", "bridge / floor"), rows


def tricks(part: Mapping[str, Any]) -> Table:
    """Returns a row for each optimisation, with a pair of columns for each form."""
    forms = list(dict.fromkeys(cell["form"] for cell in part["cells"]))
    cells = {(cell["contender"], cell["form"]): cell for cell in part["cells"]}
    small = worth_too_little(part)
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(cell["contender"] for cell in part["cells"]):
        pairs = [cells[name, form] for form in forms]
        figures = [_spread(it) for cell in pairs for it in (cell["figures"]["cpu_us"], cell["against"]["cpu_us"])]
        verdict = f"under {LEAST_WORTH:.0%} in this run" if name in small else "kept"
        rows.append((name, *figures, verdict))
    rows[0] = ("none", *rows[0][1:-1], "")
    heads = [head for form in forms for head in (f"{form}: CPU µs per request", f"{form}: CPU / bridge")]
    return ("disabled optimisation", *heads, "verdict"), rows


LEAST_WORTH = 0.03
"""An optimisation that saves less than this share of the CPU time with every upstream in two runs is removed."""


def worth_too_little(part: Mapping[str, Any]) -> list[str]:
    """Returns the optimisations that saved too little in this run."""
    worth: dict[str, float] = {}
    for cell in part["cells"][1:]:
        name, gain = cell["contender"], cell["against"]["cpu_us"]["median"] - 1
        worth[name] = max(gain, worth.get(name, gain))
    bridge = part["cells"][0]["contender"]
    return [name for name, gain in worth.items() if gain < LEAST_WORTH and name != bridge]


def tricks_sentence(part: Mapping[str, Any]) -> str:
    """Returns a sentence with the optimisations that save too little."""
    small = worth_too_little(part)
    if not small:
        return f"Each optimisation saves {LEAST_WORTH:.0%} or more with at least one upstream."
    return f"Saved less than {LEAST_WORTH:.0%} with every upstream in this run: {'; '.join(small)}."


def calls(part: Mapping[str, Any]) -> Table:
    """Returns a row for each form."""
    rows: list[tuple[str, ...]] = [
        (form, *(f"{it[name]:,}" for name in ("calls", "modules", "changes", "calls_with_libraries")))
        for form, it in part["forms"].items()
    ]
    return ("responses", "function calls", "modules", "changes between modules", "with libraries"), rows


def crosscheck(part: Mapping[str, Any]) -> Table:
    """Returns a row for each pair of figures."""
    rows: list[tuple[str, ...]] = [
        (cell["contender"], cell["form"], *(_spread(cell[name]) for name in ("load", "wrk", "load_to_wrk")))
        for cell in part["cells"]
    ]
    return ("proxy", "responses", "load tool: requests/s", "wrk: requests/s", "load tool / wrk"), rows


def profile(part: Mapping[str, Any]) -> Table:
    """Returns a row for each stack end."""
    return ("innermost Python frame", "share of the CPU time"), [
        (place, f"{share:.0%}") for place, share in part["shares"].items()
    ]


TABLES = {
    "throughput": throughput,
    "start": start,
    "streams": streams,
    "memory": memory,
    "instructions": instructions,
    "tricks": tricks,
    "unread": streams,
    "calls": calls,
    "crosscheck": crosscheck,
    "profile": profile,
}


def targets(results: Results) -> Table:
    """Returns the targets P1 to P8."""
    return ("", "what", "target", "stretch goal", "measured", "result"), [target.row(results) for target in TARGETS]


def terminal(table: Table) -> str:
    """Returns the table as aligned columns."""
    lines = [table[0], *table[1]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table[0]))]
    text = [_padded(line, widths) for line in lines]
    return "\n".join([text[0], "─" * (sum(widths) + 2 * len(widths)), *text[1:]])


def markdown(table: Table) -> str:
    """Returns the table as Markdown."""
    heads, rows = table
    return "\n".join(
        [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def source(part: Mapping[str, Any]) -> str:
    """Returns a sentence with the source of a table."""
    made = part["made"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"`{made['command']}`, {made['date']}, {made['machine']}; {versions}."


def run(part: Mapping[str, Any]) -> str:
    """Returns the source for a run that is already described."""
    made = part["made"]
    described = "machine and versions as in the first table of this run"
    return f"`{made['command']}`, {made['date']}, commit {made['versions']['commit']}; {described}."


def everything(results: Results, names: Sequence[str]) -> str:
    """Returns the tables of these parts for the terminal, and the targets with all results."""
    parts = [f"\n{TITLES[name]}\n\n{terminal(TABLES[name](results[name]))}" for name in names]
    return "\n".join([*parts, f"\nTargets\n\n{terminal(targets(results))}\n"])


def _padded(line: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()


def _median(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else number(figure["median"])


def _spread(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return ""
    return f"{number(figure['median'])} ({number(figure['low'])}–{number(figure['high'])})"
