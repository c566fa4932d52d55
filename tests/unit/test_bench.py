"""The calculations of the benchmarks, and the page with their results."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from bench import memory, publish, report, results
from bench.calls import counts
from bench.captions import captions
from bench.figures import Cell, Figure, difference, percentile, ratio, summary
from bench.instructions import TOLERANCE, fewer, too_many
from bench.processes import Failed, inherited
from bench.profile import shares
from bench.publish import DOCUMENT, PUBLISHED, filled
from bench.targets import TARGETS, UNREAD_CLIENTS, VESTIGE, number
from bench.throughput import body
from bench.tricks import TRICKS, cells, require_all

BRIDGE: Cell = ("bridge", "json", 32, 200)
FLOOR: Cell = ("floor", "json", 32, 200)
ROUNDS = [
    {FLOOR: {"cpu_us": 100.0, "p50_us": 3.0}, BRIDGE: {"cpu_us": 50.0, "p50_us": 4.0}},
    {FLOOR: {"cpu_us": 400.0, "p50_us": 3.0}, BRIDGE: {"cpu_us": 80.0, "p50_us": 9.0}},
    {FLOOR: {"cpu_us": 100.0, "p50_us": 3.0}, BRIDGE: {"cpu_us": 60.0, "p50_us": 5.0}},
]


def test_a_figure_is_the_median_with_the_least_and_the_most() -> None:
    assert Figure.of([5, 1, 2]) == Figure(2, 1, 5)
    assert Figure.of([1, 2]) == Figure(1.5, 1, 2)
    with pytest.raises(ValueError, match="needs a value"):
        Figure.of([])


def test_a_ratio_is_taken_within_each_round() -> None:
    # The ratio of the medians would be 60 to 100; the noisy round has its own base.
    assert ratio(ROUNDS, BRIDGE, FLOOR, "cpu_us") == Figure(0.5, 0.2, 0.6)
    assert difference(ROUNDS, BRIDGE, FLOOR, "p50_us") == Figure(2, 1, 6)


def test_there_is_no_ratio_or_difference_for_a_cell_that_was_not_measured() -> None:
    absent: Cell = ("ToolHive", "json", 32, 200)
    assert ratio(ROUNDS, BRIDGE, absent, "cpu_us") is None
    assert difference(ROUNDS, BRIDGE, absent, "p50_us") is None
    assert ratio([{BRIDGE: {"cpu_us": 1.0}, FLOOR: {"p50_us": 1.0}}], BRIDGE, FLOOR, "cpu_us") is None


def test_a_summary_has_each_cell_with_its_ratio_to_the_floor_of_the_same_kind() -> None:
    other: Cell = ("bridge", "sse", 32, 200)
    cells = summary([{**it, other: {"cpu_us": 7.0}} for it in ROUNDS], "floor")
    assert [cell["contender"] for cell in cells] == ["floor", "bridge", "bridge"]
    assert cells[1]["figures"]["cpu_us"] == {"median": 60, "low": 50, "high": 80}
    assert cells[1]["against"]["cpu_us"] == {"median": 0.5, "low": 0.2, "high": 0.6}
    assert "against" not in cells[2]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(value) for value in range(101)]
    assert percentile(values[::-1], 0.5) == 50
    assert percentile(values, 0.99) == 99
    assert percentile([3.0], 0.99) == 3
    assert percentile([], 0.5) == 0


def test_a_body_has_exactly_the_given_size() -> None:
    for size in (200, 10_000, 1_000_000):
        made = body(size, {"bytes": size, "sse": False})
        assert len(made) == size
        assert json.loads(made)["id"] == 1_000_000


def test_instruction_counts_outside_the_tolerance_are_found() -> None:
    found: dict[str, Any] = {"stored": {"json": 1.0}, "ratios": {"json": 1 + TOLERANCE, "sse": 9.0}}
    assert too_many(found) == []
    assert fewer(found) == []
    found["ratios"]["json"] += 0.001
    assert len(too_many(found)) == 1
    found["ratios"]["json"] = 1 - TOLERANCE - 0.001
    assert too_many(found) == []
    assert len(fewer(found)) == 1


def test_a_target_is_missed_met_or_its_stretch_goal_is_met() -> None:
    cpu = next(target for target in TARGETS if target.name == "P1")
    rate = next(target for target in TARGETS if target.name == "P2")

    def verdicts(name: str, *values: float) -> list[str]:
        target = {"P1": cpu, "P2": rate}[name]
        part = [{"throughput": {"targets": {name: {"median": value}}}} for value in values]
        return [target.row(it)[-1] for it in part]

    assert verdicts("P1", 0.67, 0.66, 0.58) == ["missed", "met", "stretch goal met"]
    assert verdicts("P2", 99, 100, 250) == ["missed", "met", "stretch goal met"]
    assert cpu.row({})[-1] == "not measured"


def test_the_floor_has_a_target_for_each_upstream_and_each_form_of_the_log() -> None:
    figures = {name: {"median": 0.68} for name in ("P1", "P1 text", "P1 Go", "P1 Go text")}
    rows = [target.row({"throughput": {"targets": figures}}) for target in TARGETS if target.name == "P1"]
    goals = [(row[2].split()[1], row[-1]) for row in rows]
    assert goals == [("0.66", "missed")] * 2 + [("0.72", "met")] * 2
    assert len({row[1] for row in rows}) == 4


def test_unread_answers_count_for_their_target_only_with_all_clients() -> None:
    target = next(target for target in TARGETS if target.name == "P8")

    def verdict(clients: int, peak_mib: float) -> str:
        return target.row({"unread": {"clients": clients, "peak_mib": peak_mib}})[-1]

    assert verdict(UNREAD_CLIENTS, 96.0) == "met"
    assert verdict(UNREAD_CLIENTS, 96.1) == "missed"
    assert verdict(6, 10.0) == "not measured"


def test_a_call_counts_its_modules_and_the_changes_between_them() -> None:
    ours = ["vestige_bridge.a", "vestige_bridge.a", "uvicorn.x", "vestige_bridge.b", "vestige_bridge.a"]
    assert counts(ours) == {"calls": 4, "modules": 2, "changes": 2, "calls_with_libraries": 5}
    assert counts([]) == {"calls": 0, "modules": 0, "changes": 0, "calls_with_libraries": 0}


def _trick(name: str, form: str, ratio: float) -> dict[str, Any]:
    figures = {"cpu_us": Figure.of([100 * ratio]).as_json()}
    return {"contender": name, "form": form, "figures": figures, "against": {"cpu_us": Figure.of([ratio]).as_json()}}


def test_a_profile_separates_packages_writes_and_libraries() -> None:
    stacks = [
        "main (vestige_bridge/cli/parser.py:1);Runner.run (asyncio/runners.py:2) 1",
        "Runner.run (asyncio/runners.py:2);HttpProtocol.write (vestige_bridge/server/http_protocol.py:3) 4",
        "Runner.run (asyncio/runners.py:2);scan (vestige_bridge/jsonrpc/fast_parser.py:4) 3",
        "scan (vestige_bridge/jsonrpc/fast_parser.py:4);raw_decode (json/decoder.py:5) 1",
        "Runner.run (asyncio/runners.py:2);flush (vestige_bridge/logs.py:6) 1",
    ]
    assert shares(stacks) == {
        "writing to sockets": 0.4,
        "`jsonrpc`": 0.3,
        "the event loop, reading from sockets included": 0.1,
        "libraries": 0.1,
        "`logs`": 0.1,
    }


def test_a_trick_is_to_be_removed_if_it_is_worth_too_little_with_every_upstream() -> None:
    worth = {"bridge": (1, 1), "good with one": (1.01, 1.03), "too little": (1.029, 1.02), "harmful": (0.9, 0.95)}
    cells = [_trick(name, form, it[at]) for at, form in enumerate(("sse", "sse, Go")) for name, it in worth.items()]
    assert report.worth_too_little({"cells": cells}) == ["too little", "harmful"]
    assert report.tricks_sentence({"cells": cells}).endswith("in this run: too little; harmful.")
    _, rows = report.tricks({"cells": cells})
    assert [row[-1] for row in rows] == ["", "kept", *["under 3% in this run"] * 2]


def test_a_turn_without_a_trick_is_compared_only_with_the_turn_before_it() -> None:
    def pairs(trick: str, turns: list[tuple[float, float]]) -> list[dict[Cell, dict[str, float]]]:
        return [{_cell("bridge"): {"cpu_us": base}, _cell(trick): {"cpu_us": without}} for base, without in turns]

    def _cell(name: str) -> Cell:
        return name, "sse", 32, 200

    turns = {"useful": [(100.0, 110.0), (200.0, 220.0)], "idle": [(100.0, 100.0), (400.0, 400.0)]}
    bridge, useful, idle = cells({_cell(name): pairs(name, them) for name, them in turns.items()})

    assert [it["contender"] for it in (bridge, useful, idle)] == ["bridge", "useful", "idle"]
    assert bridge["figures"]["cpu_us"] == {"median": 150, "low": 100, "high": 400}
    assert useful["against"]["cpu_us"]["median"] == pytest.approx(1.1)
    assert idle["against"]["cpu_us"]["median"] == 1
    assert report.worth_too_little({"cells": [bridge, useful, idle]}) == ["idle"]


def test_every_measured_trick_exists_and_a_missing_one_is_named() -> None:
    require_all(list(TRICKS.values()))
    with pytest.raises(Failed, match="no_such_trick"):
        require_all(["no_such_trick"])


def test_vestige_is_measured_with_the_same_settings_behind_supergateway_and_natively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "environment"
    program = tmp_path / "program.py"
    program.write_text(f"""
import json, os, pathlib, socket, sys
settings = {{name: value for name, value in os.environ.items() if name == "HOME" or name.startswith("VESTIGE_")}}
pathlib.Path({str(seen)!r}).write_text(json.dumps(settings))
if len(sys.argv) > 1:
    listener = socket.create_server(("127.0.0.1", int(sys.argv[3])))
    while True:
        listener.accept()
""")
    for name in ("vestige", "vestige-mcp"):
        # The path of Python may contain a space, which the first line of a script does not allow.
        (tmp_path / name).write_text(f'#!/bin/sh\nexec {shlex.join([sys.executable, str(program)])} "$@"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(memory, "BUILD", tmp_path)

    memory.Gateway(VESTIGE, memory.NATIVE, tmp_path).stop()
    natively = json.loads(seen.read_text())
    subprocess.run(["sh", "-c", memory.stdio_command(VESTIGE, tmp_path)], env=inherited(), check=True)
    behind_supergateway = json.loads(seen.read_text())

    assert natively.pop("VESTIGE_AUTH_TOKEN")
    assert natively == behind_supergateway
    assert natively["VESTIGE_AUTOPILOT_ENABLED"] == "0"


def test_a_number_has_three_significant_digits() -> None:
    assert [number(value) for value in (0, 1.0, 0.1234, 1.234, 12.34, 123.4, 12345.6)] == [
        *("0", "1.00", "0.12", "1.23", "12.3", "123", "12,346")
    ]


def test_only_the_text_between_the_markers_is_replaced() -> None:
    start = {
        "made": {"command": "c", "date": "d", "machine": "m", "versions": {}},
        "seconds": Figure.of([1.0]).as_json(),
    }
    text = "before\n<!-- bench: start -->\nold\n<!-- end -->\nafter <!-- end -->\n"
    once = filled(text, {"start": start})
    assert once.startswith("before\n<!-- bench: start -->\n")
    assert once.endswith("\n<!-- end -->\nafter <!-- end -->\n")
    assert "old" not in once
    assert "| start to ready with a warm upstream | 1.00 (" in once
    assert filled(once, {"start": start}) == once


def test_every_figure_of_the_page_comes_from_the_published_results() -> None:
    text = DOCUMENT.read_text()
    assert filled(text, results.read(PUBLISHED)) == text
    assert {chart.name for chart in PUBLISHED.glob("*.svg")} == set(publish.CHARTS)
    assert all(f"performance/{chart})" in text for chart in publish.CHARTS)


SVG = "{http://www.w3.org/2000/svg}"
CHARTS = [PUBLISHED / name for name in publish.CHARTS]


Point = tuple[float, float]


def texts(picture: ET.Element) -> list[tuple[str, Point, Point]]:
    """Returns the texts of a chart, each with the upper left and the lower right corner of its box."""
    found = []
    for text in picture.iter(f"{SVG}text"):
        said, x, y = text.text or "", float(text.get("x", "0")), float(text.get("y", "0"))
        anchor = re.search(r"text-anchor: (\w+)", text.get("style", ""))
        width = 6 * len(said)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor[1] if anchor else "start"]
        found.append((said, (left, y - 7), (left + width, y)))
    return found


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.stem)
def test_a_chart_has_its_published_figures_as_title_and_description(chart: Path) -> None:
    picture = ET.parse(chart).getroot()
    title, description = picture[0], picture[1]
    assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
    assert (title.text, description.text) == captions(results.read(PUBLISHED))[chart.name]
    assert picture.get("role") == "img"
    assert picture.get("aria-labelledby") == f"{title.get('id')} {description.get('id')}"


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.stem)
def test_every_colour_of_a_chart_has_one_for_a_dark_page(chart: Path) -> None:
    text = chart.read_text()
    drawn = set(re.findall(r'style="[^"]*?((?:fill|stroke): #\w+)', text))
    exchanged = re.search(r"@media \(prefers-color-scheme: dark\) \{(.*?)\n\}<", text, re.DOTALL)
    assert exchanged is not None
    assert drawn
    assert drawn <= set(re.findall(r'\[style\*="(.*?)"\]\{\w+: #\w+ !important\}', exchanged[1]))


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.stem)
def test_a_logarithmic_scale_says_so(chart: Path) -> None:
    said = len({at for text, at, _ in texts(ET.parse(chart).getroot()) if "logarithmic scale" in text})
    assert said == {"cpu": 2, "requests": 2, "latency": 2, "clients": 1, "job": 0}[chart.stem]


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.stem)
def test_no_line_or_bar_crosses_a_number(chart: Path) -> None:
    picture = ET.parse(chart).getroot()
    numbers = [it for it in texts(picture) if re.fullmatch(r"[\d,.]+", it[0])]
    # Ticks and marks are drawn by reference; every other path is a line, a bar or the background.
    drawn = [
        [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))]
        for group in picture.iter(f"{SVG}g")
        for path in group.findall(f"{SVG}path")
        if "fill: #ffffff" not in path.get("style", "")
    ]
    assert numbers
    assert drawn
    assert [text for text, *place in numbers for path in drawn if crosses(path, place[0], place[1])] == []


def crosses(path: list[Point], upper_left: Point, lower_right: Point) -> bool:
    """Returns whether a path crosses a box, checked at fifty points of each segment."""
    points = [
        (x + (to_x - x) * at / 50, y + (to_y - y) * at / 50)
        for (x, y), (to_x, to_y) in itertools.pairwise(path)
        for at in range(51)
    ]
    (left, top), (right, bottom) = upper_left, lower_right
    return any(left < x < right and top < y < bottom for x, y in points)


def test_every_name_in_a_chart_is_explained_beside_it() -> None:
    def beside(chart: str, table: str) -> set[str]:
        text = DOCUMENT.read_text()
        return set(re.findall(r"\*([\w-]+)\*", text[text.index(f"({chart})") : text.index(f"<!-- bench: {table} -->")]))

    published = results.read(PUBLISHED)
    proxies = {cell["contender"].partition(",")[0] for cell in published["throughput"]["cells"]}
    ways = {job["contender"].partition(",")[0] for job in published["memory"]["jobs"]}
    assert proxies <= beside("performance/latency.svg", "throughput")
    assert ways <= beside("performance/clients.svg", "memory")
