"""Principals take turns in the window; at the limit, the largest one's requests give way to those of smaller ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import Answer, Bridge, Received, ScriptedUpstream, bridge, call_body, until
from integration.test_endpoint_sessions import initialize
from integration.test_server_connections import called, connected
from integration.test_session_admission import NOTE, Hanging, cancellation
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION
from vestige_bridge.server import metrics
from vestige_bridge.session import window

PRINCIPALS = ("ann", "bob", "cat")


class Calls(Hanging):
    """A script that records the order of calls and notifications, and answers none until it is released."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        super().__init__(upstream)
        self.order: list[str] = []
        for method in ("tools/call", str(NOTE["method"])):
            upstream.on(method, self)

    async def __call__(self, received: Received) -> web.StreamResponse:
        arguments = received.message.get("params", {}).get("arguments", {"name": "note"})
        self.order.append(arguments["name"])
        return await super().__call__(received)


class Sharing:
    """A bridge, the requests of each of its principals, and their responses."""

    def __init__(self, served: Bridge) -> None:
        self.served = served
        self.clients = {it: Bridge(served.origin, served.http, f"token-of-{it}-for-tests") for it in PRINCIPALS}
        self.posts: dict[str, asyncio.Task[Answer]] = {}

    def post(self, name: str, body: Any = None, **headers: str) -> asyncio.Task[Answer]:
        """Posts a call, or another body, under a name that begins with the name of its principal."""
        client = self.clients[name[:3]]
        sent = {it.replace("_", "-"): value for it, value in headers.items()}
        post = client.post(body or call_body("write", {"name": name}), sent)
        self.posts[name] = asyncio.create_task(post)
        return self.posts[name]

    async def post_each(self, *names: str, **headers: str) -> None:
        """Posts calls, each after the one before it was accepted."""
        for name in names:
            in_flight = self.in_flight
            self.post(name, **headers)
            await self.accepted(in_flight + 1)

    async def accepted(self, in_flight: float) -> None:
        """Waits until this number of messages is in flight."""
        await until(lambda: self.in_flight == in_flight)

    @property
    def in_flight(self) -> float:
        """The number of messages in flight."""
        return self.served.metric("requests_in_flight")

    def told(self, name: str, principal: str) -> float:
        """Returns a metric of one principal."""
        return self.served.metric(name, principal=principal)

    async def statuses(self) -> dict[str, int]:
        """Returns the HTTP status of each response, once no request is left in the bridge."""
        statuses = {name: (await post).status for name, post in self.posts.items()}
        await until(lambda: (self.in_flight, self.served.metric("upstream_requests_in_flight")) == (0, 0))
        return statuses


@asynccontextmanager
async def sharing(
    upstream: ScriptedUpstream, directory: Path, *, places: int = 1, **variables: str
) -> AsyncIterator[Sharing]:
    """Yields a bridge with three principals and a window of this number of slots."""
    file = directory / "tokens"
    file.write_text("".join(f"{it} token-of-{it}-for-tests\n" for it in PRINCIPALS))
    variables |= {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "CHECK_INTERVAL_SECONDS": "60"}
    async with bridge(upstream.url, UPSTREAM_CONCURRENCY=str(places), **variables) as served:
        await until(served.ready)
        yield Sharing(served)


def made_way(answer: Answer) -> None:
    """Asserts that the request was rejected at the limit and was not sent."""
    assert (answer.status, answer.error["code"], answer.headers["Retry-After"]) == (503, -32013, "1")
    assert (answer.error["data"]["outcome"], answer.error["data"]["retryable"]) == ("not_sent", True)


@pytest.mark.parametrize("as_batch", [True, False], ids=["one batch", "many posts"])
async def test_a_batch_of_one_principal_delays_the_call_of_another_by_one_call(
    upstream: ScriptedUpstream, tmp_path: Path, as_batch: bool
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path) as it:
        if as_batch:
            it.post("ann", [call_body("write", {"name": f"ann-{n}"}, id=n) for n in range(20)])
        else:
            for number in range(20):
                it.post(f"ann-{number}")
        await it.accepted(20)
        await it.post_each("bob-1")
        calls.released.set()
        assert set((await it.statuses()).values()) == {200}
    assert calls.order.index("bob-1") == 2
    assert (len(calls.order), calls.most) == (21, 1)


async def test_sessions_of_one_principal_take_turns_and_sessionless_clients_share_one(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path) as it:
        await it.post_each("ann-0", "ann-1", "ann-2", "ann-3")
        await it.post_each("ann-s1", "ann-s2", Mcp_Session_Id="s")
        await it.post_each("ann-t1", Mcp_Session_Id="t")
        calls.released.set()
        assert set((await it.statuses()).values()) == {200}
    assert calls.order == ["ann-0", "ann-1", "ann-s1", "ann-t1", "ann-2", "ann-s2", "ann-3"]


async def test_agent_ids_and_sessions_give_a_principal_no_additional_slots(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path) as it:
        for number in range(3):
            await it.post_each(f"ann-{number}", X_Agent_Id=f"agent-{number}")
        for number in range(3, 6):
            await it.post_each(f"ann-{number}", X_Agent_Id="agent-0", Mcp_Session_Id=f"session-{number}")
        await it.post_each("bob-1", "bob-2", X_Agent_Id="agent-0")
        calls.released.set()
        assert set((await it.statuses()).values()) == {200}
    # The sessionless requests keep their order whichever agent they name, and every other slot is for bob.
    assert calls.order == ["ann-0", "ann-1", "bob-1", "ann-3", "bob-2", "ann-4", "ann-5", "ann-2"]


async def test_slots_are_shared_fairly_between_principals_in_per_client_mode(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, SESSION_MODE="per-client") as it:
        ann, bob = [(await it.clients[name].post(initialize("2025-11-25"))).headers for name in ("ann", "bob")]
        await it.post_each("ann-0", "ann-1", "ann-2", "ann-3", Mcp_Session_Id=ann["Mcp-Session-Id"])
        await it.post_each("bob-1", Mcp_Session_Id=bob["Mcp-Session-Id"])
        await it.post_each("cat-1")
        calls.released.set()
        assert set((await it.statuses()).values()) == {200}
    assert calls.order == ["ann-0", "ann-1", "bob-1", "cat-1", "ann-2", "ann-3"]


async def test_a_call_cancelled_while_it_waits_takes_no_turn(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path) as it:
        await it.post_each("ann-0")
        cancelled = it.post("ann-1", call_body("write", {"name": "ann-1"}, id="cancelled"))
        await it.accepted(2)
        await it.post_each("bob-1", "ann-2")
        await it.clients["ann"].post(cancellation("cancelled"))
        assert (await cancelled).error["code"] == -32017
        assert (it.told("requests_waiting", "ann"), it.told("requests_waiting", "bob")) == (1, 1)
        calls.released.set()
        assert set((await it.statuses()).values()) == {200}
    assert calls.order == ["ann-0", "ann-2", "bob-1"]


async def test_the_principal_with_the_most_in_flight_loses_its_newest_waiting_request(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="6") as it:
        assert it.told("requests_made_way_total", "ann") == it.told("turn_wait_seconds_count", "ann") == 0
        await it.post_each("ann-0", "ann-1", "ann-2", "ann-3", "ann-4", "ann-5")
        made_way(await it.post("ann-6"))
        it.post("bob-1")
        made_way(await it.posts["ann-5"])
        assert it.in_flight == 6
        it.post("bob-2", call_body("write", {"name": "bob-2"}), Accept="text/event-stream", Mcp_Session_Id="s")
        made_way(await it.posts["ann-4"])
        assert (it.told("requests_made_way_total", "ann"), it.told("requests_made_way_total", "bob")) == (2, 0)
        assert (it.told("requests_waiting", "ann"), it.told("requests_waiting", "bob")) == (3, 2)
        calls.released.set()
        statuses = await it.statuses()
        refused = {name for name, status in statuses.items() if status != 200}
        assert refused == {"ann-4", "ann-5", "ann-6"}
        assert (it.told("requests_waiting", "ann"), it.told("requests_waiting", "bob")) == (0, 0)
        assert (it.told("turn_wait_seconds_count", "ann"), it.told("turn_wait_seconds_count", "bob")) == (3, 2)
        assert it.told("turn_wait_seconds_sum", "bob") > 0
        assert it.served.metric("requests_failed_total", reason="overloaded") == 2
    assert calls.order == ["ann-0", "ann-1", "bob-1", "ann-2", "bob-2", "ann-3"]


async def test_between_principals_with_equal_counts_the_new_request_is_rejected(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="4") as it:
        await it.post_each("ann-0", "ann-1", "bob-0", "bob-1")
        made_way(await it.post("ann-2"))
        made_way(await it.post("bob-2"))
        it.post("cat-0")
        made_way(await it.posts["ann-1"])
        assert it.in_flight == 4
        calls.released.set()
        statuses = await it.statuses()
    assert {name for name, status in statuses.items() if status == 200} == {"ann-0", "bob-0", "bob-1", "cat-0"}


async def test_a_call_that_upstream_has_is_never_displaced(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, places=8, MAX_IN_FLIGHT="3") as it:
        await it.post_each("ann-0", "ann-1", "ann-2")
        made_way(await it.post("bob-0"))
        calls.released.set()
        assert await it.statuses() == {"ann-0": 200, "ann-1": 200, "ann-2": 200, "bob-0": 503}


async def test_a_batch_is_admitted_as_a_whole_or_rejected_without_displacing_others(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    def batch(number: int) -> list[dict[str, Any]]:
        return [call_body("write", {"name": f"bob-{number}-{member}"}, id=member) for member in range(number)]

    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="8") as it:
        await it.post_each(*(f"ann-{number}" for number in range(7)))
        await it.post_each("cat-0")
        # With five, bob would have more than the rest of ann's.
        made_way(await it.post("bob-5", batch(5)))
        assert (it.in_flight, it.told("requests_made_way_total", "ann")) == (8, 0)
        it.post("bob-3", batch(3))
        for name in ("ann-4", "ann-5", "ann-6"):
            made_way(await it.posts[name])
        assert (it.in_flight, it.told("requests_made_way_total", "cat")) == (8, 0)
        calls.released.set()
        statuses = await it.statuses()
        assert {name for name, status in statuses.items() if status == 503} == {"bob-5", "ann-4", "ann-5", "ann-6"}
        assert all("result" in member for member in it.posts["bob-3"].result().json)


async def test_members_of_a_batch_are_displaced_one_by_one(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="4") as it:
        it.post("ann", [call_body("write", {"name": f"ann-{n}"}, id=n) for n in range(4)])
        await it.accepted(4)
        it.post("bob-0")
        await until(lambda: it.told("requests_made_way_total", "ann") == 1)
        calls.released.set()
        assert await it.statuses() == {"ann": 200, "bob-0": 200}
        *answered, refused = it.posts["ann"].result().json
        assert [member["id"] for member in answered if "result" in member] == [0, 1, 2]
        assert (refused["id"], refused["error"]["code"], refused["error"]["data"]) == (
            3,
            -32013,
            {"outcome": "not_sent", "retryable": True},
        )


async def test_displaced_notifications_free_their_in_flight_capacity_at_once(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="6") as it:
        for number in range(6):
            it.post(f"ann-{number}", NOTE)
            await it.accepted(number + 1)
        it.post("bob-0")
        it.post("bob-1")
        await until(lambda: it.told("requests_made_way_total", "ann") >= 2 and it.told("requests_waiting", "bob") == 2)
        # No other request is displaced while the displaced ones have not ended yet.
        assert (it.in_flight, it.told("requests_made_way_total", "ann")) == (6, 2)
        made_way(await it.posts["ann-4"])
        made_way(await it.posts["ann-5"])
        calls.released.set()
        statuses = await it.statuses()
    assert sorted(statuses.values()) == [200] * 2 + [202] * 4 + [503] * 2


@pytest.mark.parametrize("mode", ["shared", "per-client"])
async def test_a_notification_of_a_batch_makes_way_and_the_rest_goes_on(
    upstream: ScriptedUpstream, tmp_path: Path, mode: str
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="4", SESSION_MODE=mode) as it:
        opened = await it.clients["ann"].post(initialize("2025-03-26"))
        session = opened.headers["Mcp-Session-Id"]
        await it.post_each("ann-0", "ann-1", Mcp_Session_Id=session)
        it.post("ann-batch", [NOTE, call_body("write", {"name": "ann-2"})], Mcp_Session_Id=session)
        await it.accepted(4)
        it.post("bob-0")
        await until(lambda: it.told("requests_made_way_total", "ann") == 1)
        assert it.in_flight == 4
        calls.released.set()
        assert await it.statuses() == {"ann-0": 200, "ann-1": 200, "ann-batch": 200, "bob-0": 200}
        answers = it.posts["ann-batch"].result().json
        assert {answer.get("id"): answer.get("error", {}).get("code") for answer in answers} == {None: -32013, 1: None}
    assert "note" not in calls.order
    assert "ann-2" in calls.order


def subscription(number: int) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "resources/subscribe", "params": {"uri": f"memory://{number}"}}


def level(number: int) -> dict[str, Any]:
    params = {"level": ("debug", "error")[number % 2]}
    return {"jsonrpc": "2.0", "id": number, "method": "logging/setLevel", "params": params}


@pytest.mark.parametrize("body", [subscription, level], ids=["subscriptions", "log levels"])
async def test_a_request_for_notifications_that_waits_makes_way(
    upstream: ScriptedUpstream, tmp_path: Path, body: Callable[[int], dict[str, Any]]
) -> None:
    calls = Calls(upstream)
    upstream.on(body(0)["method"], calls)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="8") as it:
        for number in range(8):
            it.post(f"ann-{number}", body(number), Mcp_Session_Id=f"session-{number}")
            await it.accepted(number + 1)
        it.post("bob-0")
        made_way(await it.posts["ann-7"])
        assert (it.told("requests_waiting", "ann"), it.told("requests_waiting", "bob")) == (6, 1)
        calls.released.set()
        statuses = await it.statuses()
    assert {name for name, status in statuses.items() if status != 200} == {"ann-7"}


async def test_a_batch_of_notifications_keeps_no_call_of_another_principal_out(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="8") as it:
        it.post("ann", [NOTE] * 8)
        await it.accepted(1)
        await it.post_each("bob-0", "bob-1")
        calls.released.set()
        assert await it.statuses() == {"ann": 202, "bob-0": 200, "bob-1": 200}
    # A batch larger than the limit is accepted, since its notifications are sent one after the other.
    assert calls.order == ["note", "bob-0", "note", "bob-1", *["note"] * 6]


MODERN = {
    "io.modelcontextprotocol/protocolVersion": LATEST_MODERN_VERSION,
    "io.modelcontextprotocol/clientCapabilities": {},
}


@pytest.mark.parametrize("method", ["initialize", "server/discover", "tools/call"])
async def test_a_message_that_waits_for_the_session_makes_way(
    upstream: ScriptedUpstream, tmp_path: Path, method: str
) -> None:
    handshake = Hanging(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="8") as it:
        upstream.on("initialize", handshake)
        upstream.sessions.clear()
        it.post("cat-0")
        await until(lambda: handshake.held == 1)
        for number in range(7):
            body, headers = initialize("2025-11-25"), {}
            if method != "initialize":
                name = {"name": "write", "arguments": {}} if method == "tools/call" else {}
                body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**name, "_meta": MODERN}}
                headers = {"MCP_Protocol_Version": LATEST_MODERN_VERSION, "Mcp_Method": method}
                headers |= {"Mcp_Name": "write"} if name else {}
            it.post(f"ann-{number}", body, **headers)
            await it.accepted(number + 2)
        it.post("bob-0")
        made_way(await it.posts["ann-6"])
        handshake.released.set()
        statuses = await it.statuses()
    assert {name for name, status in statuses.items() if status != 200} == {"ann-6"}


async def test_the_metrics_combine_principals_over_the_limit(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (window, metrics):
        monkeypatch.setattr(module, "MAX_PRINCIPAL_LABELS", 1)
    calls = Calls(upstream)
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="5") as it:
        await it.post_each("ann-0", "ann-1", "bob-0", "bob-1", "bob-2")
        assert (it.told("requests_waiting", "ann"), it.told("requests_waiting", "other")) == (1, 3)
        it.post("cat-0")
        made_way(await it.posts["bob-2"])
        assert it.told("requests_made_way_total", "other") == 1
        calls.released.set()
        await it.statuses()
        assert (it.told("turn_wait_seconds_count", "ann"), it.told("turn_wait_seconds_count", "other")) == (1, 3)
        assert it.served.metrics is not None
        told = [family for family in it.served.metrics.collect() if family.name.endswith(("_waiting", "_made_way"))]
        names = {sample.labels["principal"] for family in told for sample in family.samples if sample.labels}
        assert names == {"ann", "other"}


async def test_the_principal_with_the_most_bodies_being_received_loses_one_to_another(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    async with sharing(upstream, tmp_path, MAX_IN_FLIGHT="2") as it, AsyncExitStack() as connections:
        writers: dict[asyncio.Task[bytes], asyncio.StreamWriter] = {}

        async def begin(principal: str) -> asyncio.Task[bytes]:
            """Sends a request except its last byte; returns a task that reads the first line of the response."""
            reader, writer = await connections.enter_async_context(connected(it.served))
            writer.write(called(ping, token=f"token-of-{principal}-for-tests")[:-1])
            line = asyncio.create_task(reader.readline())
            writers[line] = writer
            return line

        anns = [await begin("ann") for _ in range(3)]
        await until(lambda: sum(line.done() for line in anns) == 1)
        bob = await begin("bob")
        await until(lambda: sum(line.done() for line in anns) == 2)
        # Both have the same number now.
        assert (await (await begin("bob"))).startswith(b"HTTP/1.1 503 ")
        (kept,) = [line for line in anns if not line.done()]
        for line in (kept, bob):
            writers[line].write(ping[-1:])
        assert [(await line)[:13] for line in (kept, bob)] == [b"HTTP/1.1 200 "] * 2
        assert [line.result()[:13] for line in anns if line is not kept] == [b"HTTP/1.1 503 "] * 2
