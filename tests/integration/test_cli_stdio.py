"""`vestige-bridge stdio`, as its client sees it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from harness import (
    TOKEN,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    environment,
    free_port,
    until,
)
from integration.doctor_setups import answer_html, listening

VERSION = "2025-06-18"
CLIENT = {"protocolVersion": VERSION, "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Pipe:
    """A client that has started the command."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def send(self, *messages: dict[str, Any] | list[Any] | bytes) -> None:
        """Writes messages, one per line."""
        assert self.process.stdin is not None
        for message in messages:
            line = message if isinstance(message, bytes) else json.dumps(message).encode()
            self.process.stdin.write(line + b"\n")

    async def line(self) -> bytes:
        """Returns the next line without its line feed."""
        assert self.process.stdout is not None
        async with asyncio.timeout(30):
            line = await self.process.stdout.readline()
        assert line.endswith(b"\n"), line
        return line[:-1]

    async def message(self) -> Any:
        """Returns the next message."""
        return json.loads(await self.line())

    async def heard(self, method: str) -> Any:
        """Returns the next message with that method and skips others."""
        while (message := await self.message()).get("method") != method:
            pass
        return message

    async def ask(self, method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> Any:
        """Sends a request; returns the next message."""
        self.send(request(method, params, id=id))
        return await self.message()

    async def initialize(self) -> None:
        """Opens a session."""
        answer = await self.ask("initialize", CLIENT, id="hello")
        assert (answer["id"], answer["result"]["protocolVersion"]) == ("hello", VERSION)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def end(self) -> tuple[int, str]:
        """Closes standard input, as a client does when it ends; returns the exit status and standard error."""
        async with asyncio.timeout(30):
            _, log = await self.process.communicate(b"")
        assert self.process.returncode is not None
        return self.process.returncode, log.decode()


def request(method: str, params: dict[str, Any] | None = None, *, id: Any = 1) -> dict[str, Any]:
    message = {"jsonrpc": "2.0", "id": id, "method": method}
    return message if params is None else {**message, "params": params}


def calling(tool: str, arguments: dict[str, Any] | None = None, *, id: Any = 1, **meta: Any) -> dict[str, Any]:
    params: dict[str, Any] = {"name": tool, "arguments": arguments or {}}
    return request("tools/call", params | ({"_meta": meta} if meta else {}), id=id)


@asynccontextmanager
async def started(url: str, token: str = TOKEN) -> AsyncIterator[Pipe]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vestige_bridge", "stdio", "--url", url),
        env={**environ, "VESTIGE_AUTH_TOKEN": token},
        cwd="/",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=2**25,
    )
    try:
        yield Pipe(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_session_is_opened_used_and_ended_with_its_client(everything: Bridge) -> None:
    async with started(everything.origin) as pipe:
        await pipe.initialize()
        answer = await pipe.ask("tools/call", {"name": "echo", "arguments": {"message": "hi"}}, id=7)
        assert (answer["id"], answer["result"]["content"][0]["text"]) == (7, "Echo: hi")
        assert await pipe.end() == (0, "")


async def test_requests_and_responses_are_relayed_byte_for_byte(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    spelled = b'{"jsonrpc":"2.0","id":ID, "result" : {"a":1.0,"b":"\\u00e9\xc3\xa9\\n",\r\n "c":[ 1e3 ]}}'

    async def answer(received: Received) -> Any:
        body = spelled.replace(b"ID", received.id.encode())
        return web.Response(body=body, content_type="application/json")

    upstream.on("tools/call", answer)
    await until(scripted.ready)
    arguments = b'{"n":1.50,"t":"\\u0041\xc3\xa9"}'
    async with started(scripted.origin) as pipe:
        pipe.send(
            b'{"jsonrpc":"2.0","method":"tools/call","params":{"name":"write","arguments":%b},"id":1.0}' % arguments
        )
        expected = spelled.replace(b"ID", b"1.0").replace(b"\r\n", b" ")
        assert (await pipe.line()).replace(b"  ", b" ") == expected.replace(b"  ", b" ")
    assert arguments in upstream.of("tools/call")[0].body


async def test_progress_and_answers_of_many_requests_come_as_they_happen(features: Bridge) -> None:
    async with started(features.origin) as pipe:
        await pipe.initialize()
        pipe.send(*(calling("wait", {"name": f"n{n}", "steps": 3}, id=n, progressToken=n) for n in range(20)))
        seen: dict[Any, list[Any]] = {n: [] for n in range(20)}
        open_ones = set(seen)
        while open_ones:
            message = await pipe.message()
            if message.get("method") == "notifications/progress":
                seen[message["params"]["progressToken"]].append(message["params"]["progress"])
            else:
                assert message["result"]["content"][0]["text"] == f"n{message['id']}"
                open_ones.remove(message["id"])
    assert all(steps == sorted(steps) for steps in seen.values())


async def test_notifications_of_the_server_are_relayed(features: Bridge) -> None:
    async with started(features.origin) as pipe:
        await pipe.initialize()
        await until(lambda: features.metric("streams_open") == 1)
        other = await features.call("test_trigger_tool_change")
        assert other.status == 200
        assert await pipe.heard("notifications/tools/list_changed")


async def test_a_cancelled_request_is_cancelled_and_gets_no_answer(features: Bridge) -> None:
    async with started(features.origin) as pipe:
        await pipe.initialize()
        pipe.send(calling("wait", {"name": "long", "steps": 300}, id="long", progressToken="p"))
        await pipe.heard("notifications/progress")
        pipe.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "long"}})
        await cancelled(pipe)


async def cancelled(pipe: Pipe, **meta: Any) -> None:
    """Waits until the server reports the cancellation; the cancelled request must get no response meanwhile."""
    while True:
        pipe.send(calling("waits", id="look", **meta))
        while "id" not in (message := await pipe.message()):
            pass
        assert message["id"] == "look"
        if json.loads(message["result"]["content"][0]["text"])["long"] == "cancelled":
            return
        await asyncio.sleep(0.05)


async def test_a_modern_client_is_served_and_cancels_by_a_notification(features: Bridge) -> None:
    async with started(features.origin) as pipe:
        answer = await pipe.ask("server/discover", {"_meta": META})
        assert "2026-07-28" in answer["result"]["supportedVersions"]
        answer = await pipe.ask("resources/read", {"uri": "test://template/é/data", "_meta": META})
        assert json.loads(answer["result"]["contents"][0]["text"]) == {"id": "é"}
        pipe.send(calling("wait", {"name": "long", "steps": 300}, id="long", progressToken="p", **META))
        await pipe.heard("notifications/progress")
        pipe.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "long"}})
        await cancelled(pipe, **META)


async def test_a_batch_is_passed_on_as_it_is(scripted: Bridge) -> None:
    await until(scripted.ready)
    async with started(scripted.origin) as pipe:
        pipe.send([calling("read", id=1), calling("read", id=2)])
        assert {answer["id"] for answer in await pipe.message()} == {1, 2}
        pipe.send(b"no json")
        assert (await pipe.message())["error"]["code"] == -32700


@pytest.mark.parametrize("spelled", [b"7", b'"a"', b"1.0"])
async def test_a_token_that_the_bridge_refuses_is_an_error_with_the_requests_id(
    scripted: Bridge, spelled: bytes
) -> None:
    async with started(scripted.origin, "wrong") as pipe:
        pipe.send(b'{"jsonrpc":"2.0","id":%b,"method":"tools/list"}' % spelled)
        line = await pipe.line()
        assert b'"id":' + spelled in line
        assert json.loads(line)["error"]["code"] == -32015
        status, log = await pipe.end()
    assert (status, "The token is not valid." in log) == (0, True)


async def test_an_answer_that_is_cut_is_an_error_that_says_that_it_may_have_run() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\n")
        await writer.drain()

    async with listening(cut) as authority, started(f"http://{authority}") as pipe:
        error = (await pipe.ask("tools/list", id=9))["error"]
        assert (error["code"], error["data"]) == (-32011, {"outcome": "unknown", "retryable": False})


async def test_a_server_that_is_no_bridge_is_reported_as_an_error() -> None:
    async with listening(answer_html) as authority, started(f"http://{authority}") as pipe:
        answer = await pipe.ask("tools/list", id=9)
        assert (answer["id"], answer["error"]["code"]) == (9, -32011)
        assert "the answer is not MCP: HTTP 200" in answer["error"]["message"]


async def test_a_name_that_does_not_resolve_is_an_error_and_nothing_was_sent() -> None:
    async with started("http://vestige.invalid:8000") as pipe:
        answer = await pipe.ask("tools/list", id=9)
        assert (answer["id"], answer["error"]["code"]) == (9, -32010)
        assert answer["error"]["data"] == {"outcome": "not_sent", "retryable": True}
        assert "does not resolve" in answer["error"]["message"]


async def test_a_message_waits_until_the_bridge_runs(upstream: ScriptedUpstream) -> None:
    environ = environment(upstream.url, PORT=str(free_port()))
    async with started(f"http://127.0.0.1:{environ['VESTIGE_BRIDGE_PORT']}") as pipe:
        pipe.send(calling("read", id=5))
        async with BridgeProcess(environ).serving():
            assert (await pipe.message())["id"] == 5


async def test_a_restart_of_the_bridge_is_invisible_to_the_client(features_gateway: Gateway) -> None:
    environ = environment(features_gateway.url, PORT=str(free_port()), LOG_LEVEL="error")
    async with started(f"http://127.0.0.1:{environ['VESTIGE_BRIDGE_PORT']}") as pipe:
        async with BridgeProcess(environ).serving() as served:
            await until(served.ready)
            await pipe.initialize()
            assert (await pipe.ask("tools/call", {"name": "test_simple_text"}, id=1))["id"] == 1
        async with BridgeProcess(environ).serving() as served:
            await until(served.ready)
            pipe.send(calling("test_simple_text", id=2))
            while (message := await pipe.message()).get("id") != 2:
                pass
            assert message["result"]["content"]
            # The command's own stream is open again, too.
            async with asyncio.timeout(30):
                while True:
                    await served.call("test_trigger_tool_change")
                    with suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await pipe.heard("notifications/tools/list_changed")
                            break


async def test_a_session_that_the_bridge_lost_is_opened_again(features_gateway: Gateway) -> None:
    variables = {"PORT": str(free_port()), "LOG_LEVEL": "error", "SESSION_MODE": "per-client"}
    environ = environment(features_gateway.url, **variables)
    async with started(f"http://127.0.0.1:{environ['VESTIGE_BRIDGE_PORT']}") as pipe:
        for number in (1, 2):
            async with BridgeProcess(environ).serving() as served:
                await until(served.ready)
                if number == 1:
                    await pipe.initialize()
                answer = await pipe.ask("tools/call", {"name": "test_simple_text"}, id=number)
                assert (answer["id"], "result" in answer) == (number, True)


async def test_it_exits_when_standard_output_has_no_reader(scripted: Bridge) -> None:
    await until(scripted.ready)
    ours, its = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vestige_bridge", "stdio", "--url", scripted.origin),
        env={**os.environ, "VESTIGE_AUTH_TOKEN": TOKEN},
        stdin=asyncio.subprocess.PIPE,
        stdout=its,
    )
    os.close(its)
    os.close(ours)
    assert process.stdin is not None
    process.stdin.write(json.dumps(request("tools/list")).encode() + b"\n")
    async with asyncio.timeout(30):
        assert await process.wait() == 0


async def test_settings_that_are_wrong_are_a_sentence_and_exit_status_2(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vestige_bridge", "stdio"),
        env={**os.environ, "VESTIGE_AUTH_TOKEN": "a b"},
        cwd=tmp_path,
        stderr=asyncio.subprocess.PIPE,
    )
    _, log = await process.communicate()
    assert (process.returncode, log.partition(b":")[0]) == (2, b"VESTIGE_AUTH_TOKEN")
