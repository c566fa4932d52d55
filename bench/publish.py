"""Writes results between markers in the documents, so that no figure there is written by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from bench import report, results
from bench.processes import BUILD, ROOT
from bench.targets import number

DOCUMENT = ROOT / "docs/performance.md"
PUBLISHED = ROOT / "docs/performance"
CHARTS = ("cpu.svg", "requests.svg", "latency.svg", "job.svg", "clients.svg")
_MARKED = re.compile(r"(<!-- bench: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish() -> None:
    """Writes the last results, the charts and the tables; parts that did not run again stay unchanged."""
    from bench import charts  # noqa: PLC0415 - the drawing library is only installed for this

    found = results.read()
    charts.draw(found, PUBLISHED)
    for part in found:
        (PUBLISHED / f"{part}.json").write_bytes((BUILD / f"{part}.json").read_bytes())
    DOCUMENT.write_text(filled(DOCUMENT.read_text(), results.read(PUBLISHED)))


def filled(document: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the document with the tables of these results between its markers; each run is described once."""
    described: set[str] = set()

    def section(match: re.Match[str]) -> str:
        before, name, after = match.groups()
        return f"{before}\n{_section(name, found, described)}\n\n{after}"

    return _MARKED.sub(section, document)


def _section(name: str, found: Mapping[str, Mapping[str, Any]], described: set[str]) -> str:
    if name == "targets":
        return report.markdown(report.targets(found))
    if name == "carries":
        return report.markdown(carries(found))
    if name not in found:
        return "Not measured yet."
    source = report.source(found[name])
    parts = [
        report.markdown(report.TABLES[name](found[name])),
        report.run(found[name]) if source in described else source,
    ]
    described.add(source)
    if name == "tricks":
        parts.insert(1, report.tricks_sentence(found[name]))
    return "\n\n".join(parts)


def carries(found: Mapping[str, Mapping[str, Any]]) -> report.Table:
    """Returns a short table of the capacity of one process."""
    rows: list[tuple[str, ...]] = []
    for cell in found.get("throughput", {}).get("cells", ()):
        if cell["contender"] == "bridge" and cell["bytes"] == 200:
            connections = cell["connections"]
            what = f"{cell['form']} responses, {connections} connection{'' if connections == 1 else 's'}"
            figures = {name: it["median"] for name, it in cell["figures"].items()}
            rate, p99_ms = number(figures["requests_per_second"]), number(figures["p99_us"] / 1000)
            rows.append((what, f"{rate} requests/s, p99 {p99_ms} ms, resident memory {number(figures['rss_mib'])} MiB"))
    return ("one process", "measured"), rows
