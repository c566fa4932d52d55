"""The tables of methods and versions: the sets derived from them, and that no other module repeats their names."""

from __future__ import annotations

import ast
import re

import pytest

from harness import ROOT
from vestige_bridge.mcp import methods
from vestige_bridge.mcp.methods import METHODS
from vestige_bridge.mcp.versions import (
    LATEST_LEGACY_VERSION,
    LATEST_MODERN_VERSION,
    LEGACY_VERSIONS,
    MODERN_VERSIONS,
    SUPPORTED_VERSIONS,
)

PACKAGE = ROOT / "src/vestige_bridge"
CHANGING = {"tools/call"}
"""The requests of clients that may change something, in either era."""


def test_repeatable_methods_are_read_only() -> None:
    assert methods.REPEATABLE_METHODS <= methods.READ_ONLY_REQUESTS
    assert not methods.REPEATABLE_METHODS & CHANGING


def test_a_read_only_principal_may_send_every_known_message_except_calls() -> None:
    known = {name for name in METHODS if name in methods.LOGGABLE_METHODS}
    assert known - CHANGING == methods.READ_ONLY_REQUESTS | methods.READ_ONLY_NOTIFICATIONS


def test_cacheable_methods_are_repeatable() -> None:
    assert methods.CACHEABLE_METHODS - {methods.DISCOVER} <= methods.REPEATABLE_METHODS


def test_notifications_that_are_merged_come_from_upstream_and_requests_from_clients() -> None:
    assert methods.MERGED_REQUESTS <= methods.LOGGABLE_METHODS
    assert not methods.MERGED_NOTIFICATIONS & methods.LOGGABLE_METHODS
    assert methods.LIST_CHANGED_NOTIFICATIONS < methods.MERGED_NOTIFICATIONS


def test_versions_are_listed_newest_first_and_each_has_one_era() -> None:
    assert list(SUPPORTED_VERSIONS) == sorted(SUPPORTED_VERSIONS, reverse=True)
    assert sorted((*MODERN_VERSIONS, *LEGACY_VERSIONS)) == sorted(SUPPORTED_VERSIONS)
    assert (max(MODERN_VERSIONS), max(LEGACY_VERSIONS)) == (LATEST_MODERN_VERSION, LATEST_LEGACY_VERSION)


@pytest.mark.parametrize("what", ["methods", "versions"])
def test_no_other_module_spells_a_method_or_a_version(what: str) -> None:
    homes = {"methods": {"mcp/methods.py", "jsonrpc/messages.py"}, "versions": {"mcp/versions.py"}}[what]
    version = re.compile(r"20\d\d-\d\d-\d\d").fullmatch
    spelled = [
        f"{path.relative_to(PACKAGE)}: {node.value}"
        for path in PACKAGE.rglob("*.py")
        if str(path.relative_to(PACKAGE)) not in homes
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if (node.value in METHODS if what == "methods" else version(node.value))
    ]
    assert spelled == []
