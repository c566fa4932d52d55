"""The pass criteria of the conformance run: what fails it, and that it detects a real defect."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from conformance.suite import run_suite
from conformance.verdict import (
    Excuse,
    Outcome,
    Scenario,
    Target,
    excuse_lines,
    gain_lines,
    judge,
    parse_excuses,
    table,
)
from harness import Gateway, bridge

LEGACY = Scenario("2025-11-25", "ping")
MODERN = Scenario("2026-07-28", "tools-list")
DIRECT, SHARED = Target("memory", "direct"), Target("memory", "shared")
PASS, FAIL, NOTHING = Outcome(2, 0), Outcome(1, 1), Outcome(0, 0)


def test_what_passes_directly_has_to_pass_through_the_bridge() -> None:
    assert judge({DIRECT: {LEGACY: PASS}, SHARED: {LEGACY: PASS}}, [], "memory").failures == []
    for broken in (FAIL, NOTHING):
        verdict = judge({DIRECT: {LEGACY: PASS}, SHARED: {LEGACY: broken}}, [], "memory")
        assert verdict.failures == [f"2025-11-25 ping: {broken} on memory, shared"]


def test_a_scenario_that_was_not_run_through_the_bridge_fails() -> None:
    assert judge({DIRECT: {LEGACY: PASS}, SHARED: {}}, [], "memory").failures


def test_a_scenario_that_fails_directly_may_fail_and_is_a_gain_when_it_passes() -> None:
    assert judge({DIRECT: {LEGACY: FAIL}, SHARED: {LEGACY: FAIL}}, [], "memory").failures == []
    verdict = judge({DIRECT: {LEGACY: FAIL}, SHARED: {LEGACY: PASS}}, [], "memory")
    assert verdict.gains == {SHARED: [LEGACY]}


def test_the_modern_era_has_to_pass_on_a_legacy_server_that_has_all_features() -> None:
    results = {DIRECT: {MODERN: FAIL}, SHARED: {MODERN: FAIL}}
    assert judge(results, [], "memory").failures
    assert judge(results, [], "another").failures == []


def test_an_exception_excuses_one_mode_and_is_a_failure_when_nothing_needs_it() -> None:
    excuses = parse_excuses("# a comment\n\nshared | 2025-11-25 | ping | because\n")
    assert excuses == [Excuse("shared", LEGACY, "because")]
    assert judge({DIRECT: {LEGACY: PASS}, SHARED: {LEGACY: FAIL}}, excuses, "memory").failures == []
    assert judge({DIRECT: {LEGACY: PASS}, SHARED: {LEGACY: PASS}}, excuses, "memory").failures
    assert [it.mode for it in parse_excuses("both | 2025-11-25 | ping | because")] == ["shared", "per-client"]


@pytest.mark.parametrize("line", ["direct | 2025-11-25 | ping | because", "shared | 2025-11-25 | ping | "])
def test_an_exception_without_a_mode_or_a_reason_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not an exception"):
        parse_excuses(line)


def test_the_table_has_a_row_for_each_scenario_and_a_column_for_each_target() -> None:
    assert table({DIRECT: {LEGACY: PASS}, SHARED: {LEGACY: FAIL, MODERN: NOTHING}}).splitlines() == [
        "| version | scenario | memory, direct | memory, shared |",
        "| --- | --- | --- | --- |",
        "| 2025-11-25 | ping | ✓ | ✗ 1/2 |",
        "| 2026-07-28 | tools-list |  | no check |",
    ]


def test_gains_and_exceptions_that_both_session_modes_have_are_named_once() -> None:
    per_client = Target("memory", "per-client")
    assert gain_lines({SHARED: [MODERN, LEGACY], per_client: [LEGACY, MODERN]}) == [
        "- memory, shared and per-client: 2025-11-25: ping; 2026-07-28: tools-list."
    ]
    assert gain_lines({SHARED: [MODERN], per_client: []}) == [
        "- memory, shared: 2026-07-28: tools-list.",
        "- memory, per-client: none.",
    ]
    excuses = parse_excuses("both | 2025-11-25 | ping | because\nshared | 2026-07-28 | tools-list | because\n")
    assert excuse_lines(excuses) == [
        "- because (shared and per-client): 2025-11-25: ping.",
        "- because (shared): 2026-07-28: tools-list.",
    ]


async def test_a_bridge_that_drops_a_member_of_each_response_fails_the_run(features_gateway: Gateway) -> None:
    async def relay(request: web.Request) -> web.StreamResponse:
        """Relays like the bridge, but renames each input schema."""
        async with served.http.request(
            request.method, served.url, data=await request.read(), headers=request.headers
        ) as response:
            body = (await response.read()).replace(b'"inputSchema"', b'"lost"')
            kept = {"Content-Type": response.headers.get("Content-Type", "")}
            if "Mcp-Session-Id" in response.headers:
                kept["Mcp-Session-Id"] = response.headers["Mcp-Session-Id"]
            return web.Response(status=response.status, body=body, headers=kept)

    defect = web.Application()
    defect.router.add_post("/mcp", relay)
    async with (
        # The suite has no way to send a token.
        bridge(features_gateway.url, VESTIGE_AUTH_TOKEN="", VESTIGE_ALLOW_ANONYMOUS="true") as served,
        TestServer(defect, host="127.0.0.1") as server,
    ):
        scenario = ("2025-11-25", "tools-list")
        direct = await run_suite(features_gateway.url, *scenario)
        sound = await run_suite(served.url, *scenario)
        broken = await run_suite(str(server.make_url("/mcp")), *scenario)
    assert judge({DIRECT: direct, SHARED: sound}, [], "memory").failures == []
    assert judge({DIRECT: direct, SHARED: broken}, [], "memory").failures
