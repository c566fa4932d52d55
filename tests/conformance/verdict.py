"""Decides from the results of the conformance suite whether the bridge passes.

Requirements: a scenario that passes directly also passes through the bridge. Every scenario of the modern era passes
through the bridge, if its legacy server has all features that the suite uses. A file lists the exceptions with their
reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

DIRECT: Final = "direct"
MODES: Final = ("shared", "per-client")
MODERN: Final = "2026-07-28"


class Scenario(NamedTuple):
    """A scenario of the suite, and the version of MCP with which it was run."""

    version: str
    name: str


class Target(NamedTuple):
    """An MCP server, and how the suite reached it: ``direct``, or through the bridge in one of its session modes."""

    server: str
    way: str


class Outcome(NamedTuple):
    """The number of checks of a scenario that passed, and of those that failed."""

    passed: int
    failed: int

    @property
    def passes(self) -> bool:
        """Whether at least one check was made, and none failed."""
        return self.passed > 0 and self.failed == 0

    def __str__(self) -> str:
        """Returns the cell of the table."""
        if self.failed:
            return f"✗ {self.passed}/{self.passed + self.failed}"
        return "✓" if self.passed else "no check"


Results = Mapping[Target, Mapping[Scenario, Outcome]]


@dataclass(frozen=True)
class Excuse:
    """A scenario that need not pass in one session mode, and the reason."""

    mode: str
    scenario: Scenario
    reason: str


@dataclass(frozen=True)
class Verdict:
    """The result of the comparison.

    Attributes:
        failures: one sentence for each requirement that is not met; if there are none, the bridge passes.
        gains: scenarios that fail directly and pass through the bridge, by server and mode.
    """

    failures: list[str]
    gains: dict[Target, list[Scenario]]


def parse_excuses(text: str) -> list[Excuse]:
    """Parses the exceptions in a file with lines ``mode | version | scenario | reason``.

    ``both`` stands for both session modes; ``#`` begins a comment.
    """
    excuses = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            mode, version, name, reason = (field.strip() for field in line.split("|", 3))
            if mode not in (*MODES, "both") or not reason:
                raise ValueError(f"not an exception: {line}")
            modes = MODES if mode == "both" else (mode,)
            excuses += [Excuse(it, Scenario(version, name), reason) for it in modes]
    return excuses


def judge(results: Results, excuses: Iterable[Excuse], complete: str) -> Verdict:
    """Compares the outcomes through the bridge with the direct ones.

    Parameters:
        results: the outcomes, including the direct ones of each server.
        excuses: the scenarios that need not pass.
        complete: the legacy server that has all features that the suite uses.
    """
    excused = {(excuse.mode, excuse.scenario) for excuse in excuses}
    needed = set()
    failures: list[str] = []
    gains: dict[Target, list[Scenario]] = {}
    for target, outcomes in results.items():
        if target.way == DIRECT:
            continue
        direct = results[Target(target.server, DIRECT)]
        gains[target] = [it for it in outcomes if outcomes[it].passes and not direct[it].passes]
        for scenario in direct.keys() | outcomes.keys():
            required = direct[scenario].passes or (target.server == complete and scenario.version == MODERN)
            outcome = outcomes.get(scenario, Outcome(0, 0))
            if not required or outcome.passes:
                continue
            if (target.way, scenario) in excused:
                needed.add((target.way, scenario))
            else:
                failures.append(f"{scenario.version} {scenario.name}: {outcome} on {target.server}, {target.way}")
    failures += [
        f"{scenario.version} {scenario.name}, {mode}: passes, so its exception is not needed any more"
        for mode, scenario in sorted(excused - needed)
    ]
    return Verdict(sorted(failures), gains)


def table(results: Results) -> str:
    """Returns the results as a Markdown table with a row for each scenario and a column for each target."""
    rows = [["version", "scenario", *(f"{target.server}, {target.way}" for target in results)]]
    for scenario in sorted({scenario for outcomes in results.values() for scenario in outcomes}):
        cells = (str(outcomes.get(scenario, "")) for outcomes in results.values())
        rows.append([scenario.version, scenario.name, *cells])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def gain_lines(gains: Mapping[Target, Sequence[Scenario]]) -> list[str]:
    """Returns a line for each server, or for each of its session modes if they differ."""
    modes: dict[tuple[str, str], list[str]] = {}
    for target, scenarios in gains.items():
        modes.setdefault((target.server, _names(scenarios)), []).append(target.way)
    return [f"- {server}, {' and '.join(ways)}: {names or 'none'}." for (server, names), ways in modes.items()]


def excuse_lines(excuses: Iterable[Excuse]) -> list[str]:
    """Returns a line for each reason and the session modes to which it applies."""
    modes: dict[tuple[str, Scenario], list[str]] = {}
    for it in excuses:
        modes.setdefault((it.reason, it.scenario), []).append(it.mode)
    scenarios: dict[tuple[str, str], list[Scenario]] = {}
    for (reason, scenario), where in modes.items():
        scenarios.setdefault((reason, " and ".join(where)), []).append(scenario)
    return [f"- {reason} ({where}): {_names(those)}." for (reason, where), those in scenarios.items()]


def _names(scenarios: Iterable[Scenario]) -> str:
    """Returns the names of scenarios, grouped by their version of MCP."""
    by_version: dict[str, list[str]] = {}
    for scenario in sorted(scenarios):
        by_version.setdefault(scenario.version, []).append(scenario.name)
    return "; ".join(f"{version}: {', '.join(names)}" for version, names in by_version.items())
