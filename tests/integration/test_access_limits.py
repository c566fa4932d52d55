"""Limits of a principal: tool calls per minute, requests in flight, and the expiry of its token."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import aiohttp
import pytest

import vestige_bridge
from harness import SSE, Answer, Bridge, BridgeProcess, ScriptedUpstream, bridge, call_body, environment, until
from integration.test_access_rights import ERAS, headers_of, mode_of, session_of, spelled_for, token_of
from integration.test_access_rotation import listen_in_a_session, listen_without_a_session
from integration.test_session_admission import Hanging
from vestige_bridge.access.token_file import digest_of

SINGLE = [era for era in ERAS if "batch" not in era]
BATCHES = [era for era in ERAS if "batch" in era]


def entry(name: str, *lines: str, token: str = "") -> str:
    value = token or token_of(name)
    return "\n".join(["[[token]]", f'name = "{name}"', f'sha256 = "{digest_of(value.encode()).hex()}"', *lines, ""])


@asynccontextmanager
async def limited(
    upstream: ScriptedUpstream, directory: Path, *lines: str, **variables: str
) -> AsyncIterator[tuple[Bridge, Bridge]]:
    """Yields the bridge with the token of a principal with limits, and with the token of one without."""
    file = directory / "tokens.toml"
    file.write_text(entry("limited", *lines) + entry("limited", *lines, token=token_of("again")) + entry("free"))
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), **variables}
    async with bridge(upstream.url, **variables) as served:
        await until(served.ready)
        yield (
            Bridge(served.origin, served.http, token_of("limited"), metrics=served.metrics),
            Bridge(served.origin, served.http, token_of("free"), metrics=served.metrics),
        )


def too_much(answer: Answer, id: Any = 1) -> int:
    """Asserts that the response is the error of a limit; returns its ``Retry-After`` in seconds."""
    assert (answer.status, answer.json["id"]) == (429, id), answer
    is_a_limit(answer.json)
    return int(answer.headers["Retry-After"])


def is_a_limit(message: dict[str, Any]) -> None:
    assert message["error"]["code"] == -32018
    assert message["error"]["data"] == {"outcome": "not_sent", "retryable": True}


@pytest.mark.parametrize("accept", [{}, SSE], ids=["json", "sse"])
@pytest.mark.parametrize("era", SINGLE)
async def test_only_calls_over_the_rate_answer_429(
    upstream: ScriptedUpstream, tmp_path: Path, era: str, accept: dict[str, str]
) -> None:
    async with limited(upstream, tmp_path, "rate = 2", SESSION_MODE=mode_of(era)) as (served, free):
        session = await headers_of(era, served)
        body, headers = spelled_for(era, call_body("write", id="c"), session)
        for _ in range(2):
            assert (await served.post(body, headers | accept)).status == 200
        for _ in range(3):
            assert 1 <= too_much(await served.post(body, headers | accept), "c") <= 30
        # Both tokens belong to one principal.
        other = {"Authorization": f"Bearer {token_of('again')}"}
        if era not in ("legacy", "per-client"):
            too_much(await served.post(body, headers | accept | other), "c")
        listing, headers = spelled_for(era, {"jsonrpc": "2.0", "id": 3, "method": "tools/list"}, session)
        assert (await served.post(listing, headers | accept)).status == 200
        for _ in range(4):
            body, headers = spelled_for(era, call_body("write"), await headers_of(era, free))
            assert (await free.post(body, headers | accept)).status == 200
        counted = served.metric("requests_refused_total", principal="limited", reason="limit")
    assert counted == (3 if era in ("legacy", "per-client") else 4)
    assert upstream.count("tools/call") == 6


@pytest.mark.parametrize("era", BATCHES)
async def test_each_call_of_a_batch_counts_for_the_rate_and_those_over_it_get_the_error(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    async with limited(upstream, tmp_path, "rate = 2", SESSION_MODE=mode_of(era)) as (served, _):
        batch = [call_body("write", id=number) for number in range(4)]
        batch[1] = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        answer = await served.post(batch, await headers_of(era, served))
        assert answer.status == 200
        assert [("result" in it, it["id"]) for it in answer.json] == [(True, 0), (True, 1), (True, 2), (False, 3)]
        is_a_limit(answer.json[3])
        assert served.metric("requests_refused_total", principal="limited", reason="limit") == 1
    assert upstream.count("tools/call") == 2


@pytest.mark.parametrize("era", SINGLE)
async def test_requests_over_max_in_flight_answer_429_and_other_principals_are_unaffected(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    limits = {"UPSTREAM_CONCURRENCY": "1", "SESSION_MODE": mode_of(era)}
    async with limited(upstream, tmp_path, "max_in_flight = 2", **limits) as (served, free):
        session_of_free = await headers_of(era, free)
        body, headers = spelled_for(era, call_body("write"), await headers_of(era, served))
        calls = [asyncio.create_task(served.post(body, headers)) for _ in range(2)]
        await until(lambda: served.metric("requests_in_flight") == 2)
        for message in (call_body("write", id=9), {"jsonrpc": "2.0", "id": 9, "method": "resources/list"}):
            body, headers = spelled_for(era, message, headers if era != "modern" else {})
            assert too_much(await served.post(body, headers), 9) == 1
        body, headers = spelled_for(era, call_body("write"), session_of_free)
        calls += [asyncio.create_task(free.post(body, headers)) for _ in range(3)]
        await until(lambda: served.metric("requests_in_flight") == 5)
        hanging.released.set()
        assert [(await call).status for call in calls] == [200] * 5
        body, headers = spelled_for(era, call_body("write"), await headers_of(era, served))
        assert (await served.post(body, headers)).status == 200
        assert served.metric("requests_refused_total", principal="limited", reason="limit") == 2
    assert upstream.count("tools/call") == 6


@pytest.mark.parametrize("era", SINGLE)
async def test_a_call_that_is_rejected_or_never_sent_does_not_count_for_the_rate(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    limits = {"UPSTREAM_CONCURRENCY": "1", "SESSION_MODE": mode_of(era)}
    async with limited(upstream, tmp_path, "rate = 3", "max_in_flight = 2", **limits) as (served, free):
        session = await headers_of(era, served)
        body, headers = spelled_for(era, call_body("write"), await headers_of(era, free))
        first = asyncio.create_task(free.post(body, headers))
        await until(lambda: hanging.held == 1)
        body, headers = spelled_for(era, call_body("write"), session)
        waiting = [asyncio.create_task(served.post(body, headers)) for _ in range(2)]
        await until(lambda: served.metric("requests_in_flight") == 3)
        for _ in range(5):
            assert too_much(await served.post(body, headers)) == 1
        waiting.pop().cancel()
        if era == "modern":
            # A client that disconnects cancels its request, before it was sent.
            await until(lambda: served.metric("requests_in_flight") == 2)
        hanging.released.set()
        assert (await first).status == (await waiting[0]).status == 200
        await until(lambda: served.metric("requests_in_flight") == 0)
        left = 3 - upstream.count("tools/call") + 1
        for _ in range(left):
            assert (await served.post(body, headers)).status == 200
        assert too_much(await served.post(body, headers)) > 1
    assert left == (2 if era == "modern" else 1)


@pytest.mark.parametrize("era", BATCHES)
async def test_a_batch_that_would_be_too_many_in_flight_is_429_as_a_whole(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    async with limited(upstream, tmp_path, "max_in_flight = 2", SESSION_MODE=mode_of(era)) as (served, free):
        batch = [call_body("write", id=number) for number in range(2)]
        first = asyncio.create_task(served.post(call_body("write", id=9), await headers_of(era, served)))
        await until(lambda: served.metric("requests_in_flight") == 1)
        assert too_much(await served.post(batch, await headers_of(era, served)), None) == 1
        assert upstream.count("tools/call") == 1
        hanging.released.set()
        assert (await first).status == 200
        assert (await served.post(batch, await headers_of(era, served))).status == 200
        assert (await free.post(batch, await headers_of(era, free))).status == 200
    assert upstream.count("tools/call") == 5


@pytest.mark.parametrize("era", BATCHES)
async def test_a_batch_over_the_limit_by_itself_is_invalid_and_not_retryable(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    mode = {"SESSION_MODE": mode_of(era), "MAX_IN_FLIGHT": "3"}
    async with limited(upstream, tmp_path, "max_in_flight = 2", **mode) as (served, free):
        for client, most in ((served, 2), (free, 3)):
            batch = [call_body("write", id=number) for number in range(most + 1)]
            answer = await client.post(batch, await headers_of(era, client))
            assert (answer.status, answer.error["code"]) == (400, -32600)
            assert f"At most {most} requests" in answer.error["message"]
            assert "Retry-After" not in answer.headers
            assert (await client.post(batch[:-1], await headers_of(era, client))).status == 200
    assert upstream.count("tools/call") == 5


@pytest.mark.parametrize("mode", ["shared", "per-client"])
async def test_notifications_count_as_in_flight(upstream: ScriptedUpstream, tmp_path: Path, mode: str) -> None:
    hanging = Hanging(upstream)
    note = {"jsonrpc": "2.0", "method": "notifications/of-our-own"}
    upstream.on("notifications/of-our-own", hanging)
    async with limited(upstream, tmp_path, "max_in_flight = 1", SESSION_MODE=mode) as (served, free):
        headers = await session_of(served)
        taken = asyncio.create_task(served.post(note, headers))
        await until(lambda: hanging.held == 1)
        too_much(await served.post(note, headers), None)
        too_much(await served.call("write", id=2), 2)
        assert (await free.call("write")).status == 200
        hanging.released.set()
        assert (await taken).status == 202


async def test_retry_after_is_exposed_to_an_allowed_origin(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    origin = "https://app.example.com"
    async with limited(upstream, tmp_path, "rate = 1", ALLOWED_ORIGINS=origin) as (served, _):
        await served.call("write")
        answer = await served.call("write", headers={"Origin": origin})
    too_much(answer)
    assert "retry-after" in answer.headers["Access-Control-Expose-Headers"].lower()


class Clock:
    """A wall clock that a test can move forward."""

    def __init__(self) -> None:
        self._time = time.time
        self.moved_seconds = 0.0

    def __call__(self) -> float:
        return self._time() + self.moved_seconds


@pytest.mark.parametrize(
    ("mode", "listen"),
    [
        ("shared", listen_in_a_session),
        ("shared", listen_without_a_session),
        ("per-client", listen_in_a_session),
    ],
)
async def test_an_expired_token_is_rejected_and_open_streams_are_closed(
    upstream: ScriptedUpstream,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    mode: str,
    listen: Callable[[Bridge, str], Awaitable[aiohttp.ClientResponse]],
) -> None:
    async def stays_open(received: Any) -> Any:
        response = await received.events()
        await closing.wait()
        return response

    closing = asyncio.Event()
    upstream.on("GET", stays_open)
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    expires_at = int(clock()) + 3600
    spelled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires_at))
    file = tmp_path / "tokens.toml"
    file.write_text(entry("short", f"expires = {spelled}") + entry("long"))
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": mode}
    async with bridge(upstream.url, **variables) as served:
        await until(served.ready)
        assert served.metric("token_expires_timestamp_seconds", principal="short") == expires_at
        streams = [await listen(served, token_of(name)) for name in ("short", "long")]
        assert [stream.status for stream in streams] == [200, 200]
        await until(lambda: served.metric("streams_open") == 2)
        clock.moved_seconds = 3601
        async with asyncio.timeout(10):
            for stream in streams:
                await stream.read()
        answers = [
            await served.call("read", headers={"Authorization": f"Bearer {token_of(name)}"})
            for name in ("short", "long")
        ]
        assert [answer.status for answer in answers] == [401, 200]
        assert answers[0].error["code"] == -32015
        assert answers[0].error["message"] == "The token has expired."
        assert 'error="invalid_token"' in answers[0].headers["WWW-Authenticate"]
        assert served.metric("auth_failures_total", reason="expired_token") == 1
        again = await listen(served, token_of("long"))
        assert again.status == 200
        again.close()
        closing.set()
    warnings = [record.getMessage() for record in caplog.records if "expired" in record.getMessage()]
    assert warnings == ["A token of short has expired"]
    assert upstream.count("tools/call") == 1


async def test_a_call_in_flight_when_its_token_expires_is_answered(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = Hanging(upstream)
    upstream.on("tools/call", hanging)
    clock = Clock()
    monkeypatch.setattr(time, "time", clock)
    spelled = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(clock() + 3600))
    async with limited(upstream, tmp_path, f"expires = {spelled}") as (served, _):
        call = asyncio.create_task(served.call("read"))
        await until(lambda: hanging.held == 1)
        clock.moved_seconds = 3601
        assert (await served.call("read")).status == 401
        hanging.released.set()
        assert (await call).status == 200


async def test_a_token_that_has_expired_at_the_start_is_a_warning_and_is_rejected(
    upstream: ScriptedUpstream, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with limited(upstream, tmp_path, "expires = 2001-01-31T00:00:00Z") as (served, free):
        assert [(await it.call("read")).status for it in (served, free)] == [401, 200]
    warnings = {record.getMessage() for record in caplog.records if "expired" in record.getMessage()}
    assert warnings == {"A token of limited has expired: 2001-01-31T00:00:00.000Z"}


BAD_FILES: dict[str, tuple[bytes | None, str]] = {
    "missing": (None, "No such file or directory"),
    "empty": (b"", "it holds no token"),
    "no entry": (b"token = []\n", "it holds no token"),
    "no text": (b"\xff\xfe", "it is not UTF-8"),
    "no TOML": (b"limited secret-of-this-file\n", "it is not TOML (at line 1, column 9)"),
    "unknown key": (entry("limited", "color = 1").encode(), 'entry 1 (limited) holds "color"'),
    "wrong type": (entry("limited", 'rate = "1"').encode(), '"rate" of entry 1 (limited) has to be a whole number'),
    "no name": (b'[[token]]\ntoken = "secret-of-this-file"\n', 'entry 1 needs a "name"'),
    "two owners": (
        (entry("limited") + entry("other", token=token_of("limited"))).encode(),
        "the token of entry 2 (other) belongs to another name already",
    ),
    "two rights": (
        (entry("limited") + entry("limited", "rate = 1", token="another-token-0123456789")).encode(),
        "entry 2 (limited) has other rights than an entry of the same name before it",
    ),
}


async def test_a_start_with_an_invalid_file_is_a_sentence_and_exit_status_2(tmp_path: Path) -> None:
    async def starts(kind: str, content: bytes | None, why: str) -> None:
        file = tmp_path / kind / "tokens.toml"
        file.parent.mkdir()
        if content is not None:
            file.write_bytes(content)
        variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file)}
        status, log = await BridgeProcess(environment("http://127.0.0.1:9/mcp", **variables)).ended(60)
        assert status == 2, kind
        assert len(log.splitlines()) == 1, (kind, log)
        assert log.startswith(f"VESTIGE_AUTH_TOKEN_FILE: {file} cannot be used: {why}"), (kind, log)
        assert "secret" not in log
        assert token_of("limited") not in log

    async with asyncio.TaskGroup() as group:
        for kind, (content, why) in BAD_FILES.items():
            group.create_task(starts(kind, content, why))


MODULES = ("access/", "endpoint/", "session/dispatcher.py", "session/window.py", "session/exchange.py")
"""The modules whose code depends on principals."""


def instructions(kind: str) -> Callable[[FrameType, str, object], Any]:
    """Returns a trace function that counts the bytecode instructions of these modules under a name."""
    package = str(Path(vestige_bridge.__file__).parent)
    modules = tuple(f"{package}/{module}" for module in MODULES)

    def count(frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            COUNTED[kind] += 1
        return count

    def enter(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(modules):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return count

    return enter


COUNTED: dict[str, int] = {}


async def test_a_thousand_principals_cost_a_request_no_more_than_ten(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    rights = ['tools = ["read", "se*"]', "rate = 1000", "max_in_flight = 9", "expires = 2999-01-31T00:00:00Z"]
    costs: dict[int, dict[str, int]] = {}
    for number in (10, 1_000):
        file = tmp_path / "tokens.toml"
        names = [f"agent-{index}" for index in range(number)]
        file.write_text("".join(entry(name, *(rights if index % 2 else [])) for index, name in enumerate(names)))
        variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file)}
        async with bridge(upstream.url, CHECK_INTERVAL_SECONDS="600", **variables) as served:
            await until(served.ready)
            # The first request of a principal costs more than the later ones.
            for name in (*names, *names[-4:]):
                assert (await served.call("read", headers={"Authorization": f"Bearer {token_of(name)}"})).status == 200
            costs[number] = {}
            for kind, name, tool in (
                ("served", names[-2], "read"),
                ("served with rights", names[-1], "read"),
                ("refused", names[-1], "hidden"),
                ("unknown", "nobody", "read"),
            ):
                COUNTED[kind] = 0
                # The coverage tool sets a trace function too; it is restored afterwards.
                before = sys.gettrace()
                sys.settrace(instructions(kind))
                try:
                    await served.call(tool, headers={"Authorization": f"Bearer {token_of(name)}"})
                finally:
                    sys.settrace(before)
                costs[number][kind] = COUNTED[kind]
    assert costs[10] == costs[1_000]
    assert all(cost > 100 for cost in costs[10].values())
