"""Permissions: a table of principals, methods, eras and spellings, and known ways to evade them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import SSE, Answer, Bridge, Received, ScriptedUpstream, bridge, call_body, until
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION

PREFIX = "io.modelcontextprotocol/"
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


@dataclass(frozen=True)
class Rights:
    """The permissions in an entry."""

    read_only: bool = False
    tools: tuple[str, ...] | None = None
    resources: bool = True

    def entry(self, name: str) -> str:
        lines = ["[[token]]", f'name = "{name}"', f'sha256 = "{hashlib.sha256(token_of(name).encode()).hexdigest()}"']
        lines += ["read_only = true"] if self.read_only else []
        lines += [f"tools = {json.dumps(self.tools)}"] if self.tools is not None else []
        lines += ["resources = false"] if not self.resources else []
        return "\n".join(lines)

    def sees(self, tool: str) -> bool:
        return self.tools is None or any(fnmatchcase(tool, pattern) for pattern in self.tools)

    def allow(self, method: str, params: dict[str, Any]) -> bool:
        if method.lower() == "tools/call":
            named = method == "tools/call" and isinstance(params.get("name"), str) and self.sees(params["name"])
            harmless = params.get("name") == "read" if method == "tools/call" else False
            return (self.tools is None or named) and (harmless or not self.read_only)
        if method.lower().startswith("tools/") and method != "tools/list" and self.tools is not None:
            return False
        if method.lower().startswith(("resources/", "prompts/", "completion/")) and not self.resources:
            return False
        return not self.read_only or method in READS


PRINCIPALS = {
    "anybody": Rights(),
    "reader": Rights(read_only=True),
    "listed": Rights(tools=("read", "se*")),
    "both": Rights(read_only=True, tools=("read", "write")),
    "bare": Rights(resources=False),
    "closed": Rights(tools=()),
    "starred": Rights(tools=("*",)),
    "least": Rights(read_only=True, tools=("set",), resources=False),
}
TOOLS = [
    {"name": "write", "inputSchema": {"type": "object"}},
    {"name": "read", "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": True}},
    {"name": "set", "inputSchema": {"type": "object"}, "annotations": {"idempotentHint": True}},
    {"name": "hidden", "inputSchema": {"type": "object"}},
]
READS = {
    *("tools/list", "ping", "resources/list", "resources/read", "resources/templates/list", "resources/subscribe"),
    *("prompts/list", "prompts/get", "completion/complete", "logging/setLevel", "resources/unsubscribe"),
}
METHODS: list[tuple[str, dict[str, Any]]] = [
    *(("tools/call", {"name": name, "arguments": {}}) for name in ("write", "read", "set", "hidden", "unknown", "", 7)),
    ("tools/call", {}),
    ("Tools/Call", {"name": "write", "arguments": {}}),
    ("tools/call_all", {"name": "read"}),
    ("tools/list", {}),
    ("tools/List", {}),
    ("ping", {}),
    ("resources/list", {}),
    ("Resources/List", {}),
    ("resources/read", {"uri": "a:b"}),
    ("resources/templates/list", {}),
    ("resources/subscribe", {"uri": "a:b"}),
    ("resources/unsubscribe", {"uri": "a:b"}),
    ("prompts/list", {}),
    ("prompts/get", {"name": "write"}),
    ("completion/complete", {"ref": {"type": "ref/prompt", "name": "write"}}),
    ("logging/setLevel", {"level": "error"}),
    ("memory/write", {"name": "read"}),
]
MERGED = {"resources/subscribe", "resources/unsubscribe", "logging/setLevel"}
LEGACY_ONLY = {*MERGED, "ping"}
ERAS = ["plain", "legacy", "modern", "batch", "session batch", "per-client", "per-client batch"]


def token_of(name: str) -> str:
    return f"token-of-{name}-0123456789"


def escaped(text: str) -> str:
    """Returns the same JSON with every character of its strings as an escape."""
    value = json.loads(text, object_pairs_hook=lambda pairs: pairs)

    def spelled(it: Any) -> str:
        if isinstance(it, list) and it and isinstance(it[0], tuple):
            return "{" + ",".join(f"{spelled(key)} : {spelled(member)}" for key, member in it) + "}"
        if isinstance(it, str):
            return '"' + "".join(f"\\u{ord(character):04X}" for character in it) + '"'
        return "{}" if it == [] else json.dumps(it)

    return spelled(value)


SPELLINGS: list[Callable[[str], str]] = [
    lambda text: text,
    escaped,
    lambda text: "\n\t" + json.dumps(json.loads(text), separators=(" ,\r", "\t: ")) + "\r\n",
]
"""Functions that spell a message differently without changing its meaning."""

AMBIGUOUS: list[Callable[[str], str]] = [
    lambda text: text.replace('"params": {', '"params": {"Name": "read", ', 1),
    lambda text: text.replace('"params": {', '"params": {"name": "read", "name": "write", ', 1),
    lambda text: text.replace('"params": {', r'"params": {"name": "read", "n\u0061me": "write", ', 1),
    lambda text: text.replace('"method"', '"method": "ping", "method"', 1),
    lambda text: text.replace('"method"', '"method": "ping", "METHOD"', 1),
    lambda text: text.replace('"params"', '"params": {"name": "read"}, "params"', 1),
    lambda text: text.replace('"params"', '"params": {"name": "read"}, "Params"', 1),
    lambda text: text.replace('"params"', '"params": {"name": "read"}, "param\u017f"', 1),
]
"""Functions that spell a call so that two parsers may read different messages."""


@asynccontextmanager
async def guarded(
    upstream: ScriptedUpstream, directory: Path, entries: str = "", **variables: str
) -> AsyncIterator[dict[str, Bridge]]:
    """Yields the bridge with the token of each principal."""

    async def lists(received: Received) -> web.StreamResponse:
        return received.result({"tools": TOOLS})

    upstream.scripts.setdefault("tools/list", lists)
    file = directory / "tokens.toml"
    file.write_text("\n".join([rights.entry(name) for name, rights in PRINCIPALS.items()] + [entries]))
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), **variables}
    async with bridge(upstream.url, **variables) as served:
        await until(served.ready)
        yield {
            name: Bridge(served.origin, served.http, token_of(name), metrics=served.metrics)
            for name in (*PRINCIPALS, *(line.split('"')[1] for line in entries.splitlines() if "name" in line))
        }


def modern(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the request and the headers of a modern client."""
    meta = {f"{PREFIX}protocolVersion": LATEST_MODERN_VERSION, f"{PREFIX}clientCapabilities": {}}
    params = {**body.get("params", {}), "_meta": meta}
    headers = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": body["method"]}
    name = params.get({"resources/read": "uri"}.get(body["method"], "name"))
    return body | {"params": params}, headers | ({"Mcp-Name": name} if isinstance(name, str) else {})


def spelled_for(
    era: str, body: dict[str, Any], session: dict[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the request and the headers of a client of that era."""
    return modern(body) if era == "modern" else (body, session or {})


async def session_of(served: Bridge) -> dict[str, str]:
    """Opens a session of a legacy client; returns its header."""
    opened = await served.post(INITIALIZE)
    assert opened.status == 200, opened
    return {"Mcp-Session-Id": opened.headers["Mcp-Session-Id"], "MCP-Protocol-Version": "2025-11-25"}


def mode_of(era: str) -> str:
    return "per-client" if era.startswith("per-client") else "shared"


async def headers_of(era: str, served: Bridge) -> dict[str, str]:
    return {} if era in ("plain", "modern", "batch") else await session_of(served)


def cases(era: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for (method, params), name in itertools.product(METHODS, PRINCIPALS):
        # A modern request that no headers can mirror is rejected before permissions are checked.
        if era != "modern" or (method not in LEGACY_ONLY and params.get("name") != 7):
            yield name, method, params


@pytest.mark.parametrize("era", ERAS)
async def test_each_principal_has_exactly_the_permissions_of_its_entry(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    wrong: list[tuple[object, ...]] = []
    expected: dict[int, bool] = {}

    async def judge(served: Bridge, name: str, text: str, headers: dict[str, str], number: int) -> None:
        answer = await served.post(f"[{text}]".encode() if "batch" in era else text.encode(), headers)
        message = answer.json[0] if "batch" in era else answer.json
        refused = answer.status == (200 if "batch" in era else 403) and message.get("error", {}).get("code") == -32016
        if refused is expected[number] or message["id"] != number:
            wrong.append((name, text, answer))

    async with guarded(upstream, tmp_path, SESSION_MODE=mode_of(era)) as principals:
        sessions = {name: await headers_of(era, served) for name, served in principals.items()}
        for some in in_parts(enumerate(itertools.product(cases(era), SPELLINGS), start=1_000_000), 100):
            async with asyncio.TaskGroup() as group:
                for number, ((name, method, params), spell) in some:
                    # The bridge replaces the id, so the test finds its messages at upstream by another member.
                    body = {"jsonrpc": "2.0", "id": number, "method": method, "params": {**params, "marker": number}}
                    body, headers = modern(body) if era == "modern" else (body, sessions[name])
                    expected[number] = PRINCIPALS[name].allow(method, params)
                    group.create_task(judge(principals[name], name, spell(json.dumps(body)), headers, number))
        refused = {
            name: served.metric("requests_refused_total", principal=name, reason="forbidden")
            for name, served in principals.items()
            if name != "anybody"
        }
    assert wrong == []
    seen = {int(found) for received in upstream.received for found in re.findall(rb"\b1\d{6}\b", received.body)}
    merged = {
        number
        for number, ((_, method, _), _) in enumerate(itertools.product(cases(era), SPELLINGS), start=1_000_000)
        if method in MERGED
    }
    assert seen - merged == {number for number, allowed in expected.items() if allowed} - merged
    assert not any(expected[number] is False for number in seen)
    told = Counter(
        name
        for (name, method, params), _ in itertools.product(cases(era), SPELLINGS)
        if not PRINCIPALS[name].allow(method, params)
    )
    assert refused == told


def in_parts(things: Iterable[Any], count: int) -> Iterator[list[Any]]:
    iterator = iter(things)
    return iter(lambda: list(itertools.islice(iterator, count)), [])


@pytest.mark.parametrize("era", ERAS)
@pytest.mark.parametrize("name", ["anybody", "both", "listed", "least"])
async def test_a_message_that_parsers_read_differently_never_reaches_upstream(
    upstream: ScriptedUpstream, tmp_path: Path, era: str, name: str
) -> None:
    async with guarded(upstream, tmp_path, SESSION_MODE=mode_of(era)) as principals:
        served = principals[name]
        session = await headers_of(era, served)
        for spell in AMBIGUOUS:
            body, headers = call_body("write", {"marker": "ambiguous"}), session
            if era == "modern":
                body, headers = modern(body)
            text = spell(json.dumps(body))
            assert text != json.dumps(body)
            answer = await served.post(f"[{text}]".encode() if "batch" in era else text.encode(), headers)
            assert answer.status in (400, 403) or all("error" in it for it in answer.json), (text, answer)
    assert not any(b"ambiguous" in received.body for received in upstream.received)


async def test_the_body_of_a_modern_request_decides_the_permissions_and_not_its_headers(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream, tmp_path) as principals:
        body, headers = modern(call_body("hidden", id="w"))
        lies: list[dict[str, str]] = [
            *({}, {"Mcp-Name": "read"}, {"Mcp-Name": "=?base64?cmVhZA==?="}, {"Mcp-Method": "tools/list"}),
            *({"Mcp-Method": "ping"}, {"MCP-Protocol-Version": "2025-11-25"}, {"X-Vestige-Principal": "anybody"}),
        ]
        for lie in lies:
            refused(await principals["listed"].post(body, {**headers, **lie}))
        body, headers = modern(call_body("read"))
        assert (await principals["listed"].post(body, headers)).status == 200
        assert (await principals["listed"].post(body, {**headers, "Mcp-Name": "hidden"})).status == 400
    assert [received.message["params"]["name"] for received in upstream.of("tools/call")] == ["read"]


def refused(answer: Answer, id: Any = "w") -> None:
    """Asserts that the response rejects the request for lack of permission."""
    assert (answer.status, answer.error["code"], answer.json["id"]) == (403, -32016, id), answer


@pytest.mark.parametrize("mode", ["shared", "per-client"])
async def test_a_tool_call_without_an_id_is_rejected_for_every_principal(
    upstream: ScriptedUpstream, tmp_path: Path, mode: str
) -> None:
    call = {"jsonrpc": "2.0", "method": "tools/call", "params": {"name": "write", "arguments": {}}}
    async with guarded(upstream, tmp_path, SESSION_MODE=mode) as principals:
        for name, served in principals.items():
            for headers in ({}, await session_of(served)):
                answer = await served.post(call, headers)
                assert answer.status in (400, 403), (name, answer)
                (member,) = (await served.post([call], headers)).json
                assert member["error"]["code"] in (-32600, -32016), (name, member)
    assert upstream.count("tools/call") == 0


PAGES = {
    None: '{ "cacheScope" : "public","tools": [ {"name":"write","x":1.0} ,{"name":"read"},{"name":"wr\\u0069te"}],'
    '"ttlMs":60000, "nextCursor":"2"}',
    "2": '{"tools":[{"title":"read","name":"hidden"}, {"name":"set"} ],"_meta":{"a":1e0}}',
}
"""Two pages of tools, as an upstream with the cache hints of the modern era sends them."""


async def pages(received: Received) -> web.StreamResponse:
    result = PAGES[received.message.get("params", {}).get("cursor")]
    text = f'{{"jsonrpc":"2.0","id":{received.id},"result":{result}}}'
    if "text/event-stream" in received.http.headers["Accept"] and received.message.get("params", {}).get("stream"):
        return await received.events(text)
    return web.Response(text=text, content_type="application/json")


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("era", ERAS)
async def test_a_list_of_tools_contains_only_the_tools_of_the_allow_list(
    upstream: ScriptedUpstream, tmp_path: Path, era: str, streamed: bool
) -> None:
    upstream.on("tools/list", pages)
    names = {"2": ["hidden", "set"], None: ["write", "read", "write"]}
    async with guarded(upstream, tmp_path, SESSION_MODE=mode_of(era)) as principals:
        for (name, served), cursor in itertools.product(principals.items(), PAGES):
            params: dict[str, Any] = {"cursor": cursor} if cursor else {}
            params |= {"stream": True} if streamed else {}
            body: dict[str, Any] = {"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": params}
            body, headers = modern(body) if era == "modern" else (body, await headers_of(era, served))
            headers = headers | (SSE if streamed else {})
            async with served.http.post(
                served.url, json=[body] if "batch" in era else body, headers=served.request_headers(headers)
            ) as response:
                assert response.status == 200
                text = (await response.read()).decode()
            if "text/event-stream" in response.headers["Content-Type"]:
                text = text.rpartition("data: ")[2].strip()
            rights, message = PRINCIPALS[name], json.loads(text)
            result = (message[0] if "batch" in era else message)["result"]
            assert [tool["name"] for tool in result["tools"]] == [it for it in names[cursor] if rights.sees(it)], name
            assert ("hidden" in text) is (rights.sees("hidden") and cursor == "2")
            assert ("write" in text) is (rights.sees("write") and cursor is None)
            assert result.get("nextCursor") == (None if cursor else "2")
            if cursor is None:
                # The result depends on the principal, so shared caches must not keep it.
                assert result["cacheScope"] == "private"
                assert '"ttlMs":60000, "nextCursor":"2"' in text
            elif era == "modern":
                assert (result["cacheScope"], result["ttlMs"]) == ("private", 0)
            else:
                assert '"_meta":{"a":1e0}' in text
            if rights.tools is None and era == "plain" and not streamed:
                whole = PAGES[cursor].replace('"public"', '"private"')
                assert text == f'{{"jsonrpc":"2.0","id":7,"result":{whole}}}'


async def test_a_list_without_hidden_tools_is_unchanged(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    upstream.on("tools/list", pages)
    file = tmp_path / "tokens.toml"
    file.write_text(f"{Rights(resources=False).entry('bare')}\nrate = 5\n{Rights(read_only=True).entry('reader')}")
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        for name in ("bare", "reader"):
            headers = {"Authorization": f"Bearer {token_of(name)}"}
            answer = await served.post({"jsonrpc": "2.0", "id": 7, "method": "tools/list"}, headers)
            assert answer.body.decode() == f'{{"jsonrpc":"2.0","id":7,"result":{PAGES[None]}}}'


async def test_a_list_that_cannot_be_filtered_answers_502_to_a_token_with_an_allow_list(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream, tmp_path) as principals:
        members = ",".join(f'"x{number}":1' for number in range(5_000))

        async def huge(received: Received) -> web.StreamResponse:
            text = f'{{"jsonrpc":"2.0","id":{received.id},"result":{{{members},"tools":[{{"name":"hidden"}}]}}}}'
            return web.Response(text=text, content_type="application/json")

        upstream.on("tools/list", huge)
        body = {"jsonrpc": "2.0", "id": 7, "method": "tools/list"}
        answer = await principals["listed"].post(body)
        assert (answer.status, answer.error["code"], answer.json["id"]) == (502, -32011, 7)
        assert b"hidden" not in answer.body
        assert b"hidden" in (await principals["anybody"].post(body)).body


async def test_a_late_list_of_tools_does_not_answer_another_request_with_the_same_id(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    asked, called, told, late = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def hangs(received: Received) -> web.StreamResponse:
        asked.set()
        response = await received.events()
        await late.wait()
        return response

    async def is_answered_after_the_list(received: Received) -> web.StreamResponse:
        called.set()
        await told.wait()
        return await upstream.answer(received)

    async def brings_the_list(received: Received) -> web.StreamResponse:
        stream = await received.events()
        await called.wait()
        list_of_tools = json.dumps({"jsonrpc": "2.0", "id": 5, "result": {"tools": TOOLS}})
        await stream.write(f"data: {list_of_tools}\n\n".encode())
        told.set()
        await late.wait()
        return stream

    async with guarded(upstream, tmp_path, SESSION_MODE="per-client") as principals:
        served = principals["listed"]
        headers = {**SSE, **await session_of(served)}
        upstream.on("tools/list", hangs)
        upstream.on("tools/call", is_answered_after_the_list)
        upstream.on("GET", brings_the_list)
        listing = asyncio.create_task(served.post({"jsonrpc": "2.0", "id": 5, "method": "tools/list"}, headers))
        await asked.wait()
        cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 5}}
        assert (await served.post(cancelled, headers)).status == 202
        await listing
        # The bridge has upstream forget the id. A client that uses it again gets no late response.
        await until(lambda: any(received.message.get("id") == 5 for received in upstream.of("ping")))
        await until(lambda: served.metric("upstream_requests_forgetting") == 0)
        async with served.http.get(served.url, headers=served.request_headers(headers)) as stream:
            assert stream.status == 200
            answer = await served.post(call_body("read", id=5), headers)
        late.set()
    assert "tools" not in answer.json["result"]
    assert answer.json["id"] == 5
    assert answer.text


async def test_a_list_of_tools_in_the_result_of_a_task_is_filtered(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    async def result(received: Received) -> web.StreamResponse:
        return received.result({"tools": TOOLS})

    upstream.on("tasks/result", result)
    async with guarded(upstream, tmp_path, SESSION_MODE="per-client") as principals:
        served = principals["listed"]
        headers = await session_of(served)
        task = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"task": {"ttl": 60_000}}}
        assert b"hidden" not in (await served.post(task, headers)).body
        asking = {"jsonrpc": "2.0", "id": 2, "method": "tasks/result", "params": {"taskId": "1"}}
        answer = await served.post(asking, headers)
        assert [tool["name"] for tool in answer.json["result"]["tools"]] == ["read", "set"]
        assert b"hidden" not in answer.body


@pytest.mark.parametrize("era", ["plain", "modern", "batch"])
async def test_permissions_are_checked_again_after_a_renewal_with_other_tools(
    upstream: ScriptedUpstream, tmp_path: Path, era: str
) -> None:
    async with guarded(upstream, tmp_path) as principals:
        served = principals["both"]
        body, headers = spelled_for(era, call_body("read", id="w"))
        assert (await served.post([body] if era == "batch" else body, headers)).status == 200

        async def changed(received: Received) -> web.StreamResponse:
            return received.result(
                {"tools": [{"name": "read"}, {"name": "write", "annotations": {"readOnlyHint": True}}]}
            )

        upstream.on("tools/list", changed)
        upstream.sessions.clear()
        answer = await served.post([body] if era == "batch" else body, headers)
        if era == "batch":
            assert (answer.status, answer.json[0]["error"]["code"], answer.json[0]["id"]) == (200, -32016, "w")
        else:
            refused(answer)
            assert served.metric("requests_refused_total", principal="both", reason="forbidden") == 1
        body, headers = spelled_for(era, call_body("write"))
        assert (await served.post([body] if era == "batch" else body, headers)).status == 200
        refused(await principals["least"].call("write", id="w"))
    # The second call is the one that the lost session rejected.
    called = [received.message["params"]["name"] for received in upstream.of("tools/call")]
    assert called == ["read", "read", "write"]


async def test_requests_that_wait_for_a_renewal_are_checked_against_the_new_tools(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    release = asyncio.Event()

    async def changed(received: Received) -> web.StreamResponse:
        await release.wait()
        return received.result({"tools": [{"name": "read"}]})

    async with guarded(upstream, tmp_path, UPSTREAM_CONCURRENCY="1") as principals:
        upstream.on("tools/list", changed)
        upstream.sessions.clear()
        calls = [asyncio.create_task(principals["both"].call("read", id=number)) for number in range(20)]
        await until(lambda: upstream.sessions_opened == 2)
        release.set()
        for number, call in enumerate(calls):
            refused(await call, number)
    assert upstream.count("tools/call") == 1


async def test_a_principal_without_resources_cannot_listen_to_resources(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    async with guarded(upstream, tmp_path) as principals:
        listen = {"jsonrpc": "2.0", "id": "w", "method": "subscriptions/listen"}
        wanted = {"notifications": {"resourceSubscriptions": ["a:b"], "toolsListChanged": True}}
        body, headers = modern(listen | {"params": wanted})
        refused(await principals["bare"].post(body, {**headers, **SSE}))
        refused(await principals["least"].post(body, {**headers, **SSE}))
        body, headers = modern(listen | {"params": {"notifications": {"toolsListChanged": True}}})
        async with principals["least"].http.post(
            principals["least"].url, json=body, headers=principals["least"].request_headers({**headers, **SSE})
        ) as stream:
            assert stream.status == 200
            assert await stream.content.readline()


async def test_a_subscription_ends_with_the_permission_for_resources(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    told = asyncio.Event()

    async def tells(received: Received) -> web.StreamResponse:
        stream = await received.events()
        await told.wait()
        for method, params in (("resources/updated", {"uri": "a:b"}), ("tools/list_changed", {})):
            text = json.dumps({"jsonrpc": "2.0", "method": f"notifications/{method}", "params": params})
            await stream.write(f"data: {text}\n\n".encode())
        return stream

    upstream.on("GET", tells)
    async with guarded(upstream, tmp_path) as principals:
        served = principals["anybody"]
        headers = await session_of(served)
        subscribing = {"jsonrpc": "2.0", "id": 1, "method": "resources/subscribe", "params": {"uri": "a:b"}}
        assert "result" in (await served.post(subscribing, headers)).json
        (tmp_path / "tokens.toml").write_text(Rights(resources=False).entry("anybody"))

        async def refuses() -> bool:
            return (await served.post(subscribing, headers)).status == 403

        await until(refuses)
        async with served.http.get(served.url, headers=served.request_headers({**SSE, **headers})) as stream:
            assert stream.status == 200
            await until(lambda: served.metric("streams_open") == 1)
            told.set()
            async with asyncio.timeout(10):
                while not (line := await stream.content.readline()).startswith(b"data:"):
                    pass
    assert json.loads(line[5:])["method"] == "notifications/tools/list_changed"
