"""`vestige-bridge tools` and `vestige-bridge call`, as people and programs use them."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import (
    TOKEN,
    Bridge,
    BridgeProcess,
    Gateway,
    Received,
    ScriptedUpstream,
    bridge,
    environment,
    free_port,
    until,
)
from integration.doctor_setups import answer_html, entry, greet, listening


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Returns the JSON on standard output."""
        return json.loads(self.out)


def surroundings(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a command without inherited settings of the bridge."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESTIGE_")}
    return {**inherited, "COLUMNS": "60", **variables}


async def start(*words: str | bytes, variables: Mapping[str, str], **streams: Any) -> asyncio.subprocess.Process:
    """Starts a command; each stream that is not given is a pipe."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE) | streams
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "vestige_bridge", *words, env=surroundings(variables), cwd="/", **pipes
    )


async def run(*words: str | bytes, stdin: str | bytes = "", **variables: str) -> Done:
    """Runs a command between pipes until it ends."""
    process = await start(*words, variables=variables)
    async with asyncio.timeout(30):
        out, err = await process.communicate(stdin.encode() if isinstance(stdin, str) else stdin)
    assert process.returncode is not None
    assert TOKEN not in (out + err).decode()
    return Done(process.returncode, out.decode(), err.decode())


async def ask(served: Bridge, *words: str | bytes, stdin: str | bytes = "", **variables: str) -> Done:
    """Runs a command with the settings of this bridge."""
    port = served.origin.rpartition(":")[2]
    return await run(*words, stdin=stdin, **{"VESTIGE_BRIDGE_PORT": port, "VESTIGE_AUTH_TOKEN": TOKEN, **variables})


async def see(served: Bridge, *words: str) -> Done:
    """Runs a command in a terminal; what it shows on standard output and standard error is its output."""
    ours, its = pty.openpty()
    variables = {"VESTIGE_BRIDGE_PORT": served.origin.rpartition(":")[2], "VESTIGE_AUTH_TOKEN": TOKEN}
    process = await start(*words, variables=variables, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""

    def read() -> None:
        nonlocal shown
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the command has ended and closed the other end
                return os.close(ours)

    async with asyncio.timeout(30):
        await asyncio.to_thread(read)
        status = await process.wait()
    return Done(status, shown.decode(), "")


async def test_a_program_gets_the_tools_as_vestige_announces_them(memory_gateway: Gateway) -> None:
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        listed = (await served.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})).json["result"]["tools"]
        for words in (["tools"], ["tools", "--json"]):
            done = await ask(served, *words)
            assert (done.status, done.json, done.err) == (0, listed, "")


async def test_a_terminal_shows_a_table_of_tools_with_arguments_and_descriptions(everything: Bridge) -> None:
    await until(everything.ready)
    done = await see(everything, "tools")
    lines = done.out.splitlines()
    assert done.status == 0
    assert lines[0].split() == ["TOOL", "REQUIRED", "DESCRIPTION"]
    assert [line.split() for line in lines if line.startswith("get-sum")] == [
        ["get-sum", "a,", "b", "Returns", "the", "su…"],
    ]
    assert max(map(len, lines)) == 60
    assert json.loads((await see(everything, "tools", "--json")).out)


async def test_one_tool_is_shown_with_its_arguments(everything: Bridge) -> None:
    await until(everything.ready)
    shown = await see(everything, "tools", "get-sum")
    helped = await ask(everything, "call", "get-sum", "--help")
    assert (shown.status, helped.status) == (0, 0)
    assert shown.out.splitlines() == helped.out.splitlines()
    assert helped.out.splitlines() == [
        "vestige-bridge call get-sum a=… b=…",
        "",
        "Returns the sum of two numbers",
        "",
        "  a  number, required",
        "      First number",
        "  b  number, required",
        "      Second number",
    ]
    [announced] = [tool for tool in (await ask(everything, "tools")).json if tool["name"] == "get-sum"]
    assert (await ask(everything, "tools", "get-sum")).json == announced
    assert json.loads((await see(everything, "tools", "get-sum", "--json")).out) == announced


async def test_a_tool_without_arguments_and_an_unknown_tool(everything: Bridge) -> None:
    assert "The schema names no arguments." in (await ask(everything, "call", "get-env", "-h")).out
    done = await ask(everything, "tools", "get-smu")
    assert (done.status, done.err.partition(".")[0]) == (2, "There is no tool 'get-smu'")


async def test_call_without_a_tool_reports_the_missing_tool() -> None:
    done = await run("call")
    assert done.status == 2
    assert done.err.splitlines()[-1] == (
        "vestige-bridge call: error: TOOL is missing; `vestige-bridge tools` lists the tools"
    )
    assert "vestige-bridge call recall --help" in (await run("call", "--help")).out


async def test_without_a_token_the_variable_for_one_is_named(everything: Bridge) -> None:
    done = await run("tools", "--url", everything.origin)
    sentence = "The bridge requires a token: set VESTIGE_AUTH_TOKEN to one that the bridge accepts."
    assert (done.status, done.err.splitlines()[0]) == (1, f"{everything.origin}: {sentence}")


async def test_all_pages_of_the_list_are_read(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    async def turn(received: Received) -> Any:
        page = int(received.message.get("params", {}).get("cursor", 0))
        more = {"nextCursor": str(page + 1)} if page < 2 else {}
        return received.result({"tools": [{"name": f"tool-{page}", "inputSchema": {}}], **more})

    upstream.on("tools/list", turn)
    done = await ask(scripted, "tools")
    assert [tool["name"] for tool in done.json] == ["tool-0", "tool-1", "tool-2"]


async def test_a_call_writes_and_another_reads_what_was_written(memory_gateway: Gateway) -> None:
    async with bridge(memory_gateway.url) as served:
        await until(served.ready)
        entities = json.dumps([{"name": "sky", "entityType": "fact", "observations": ["blue", "é"]}])
        assert (await ask(served, "call", "create_entities", f"entities={entities}")).status == 0
        done = await ask(served, "call", "search_nodes", "query=sky")
        assert done.json["structuredContent"]["entities"] == json.loads(entities)
        assert "é" in done.out
        assert json.loads(done.json["content"][0]["text"]) == done.json["structuredContent"]


async def test_values_are_typed_by_the_schema_of_the_tool(everything: Bridge) -> None:
    done = await ask(everything, "call", "get-sum", "a=2", "b=40")
    assert done.json["content"][0]["text"] == "The sum of 2 and 40 is 42."
    done = await ask(everything, "call", "echo", "message=42")
    assert done.json["content"][0]["text"] == "Echo: 42"


@pytest.mark.parametrize(
    ("words", "stdin", "said"),
    [
        ([b"message=-"], b"caf\xe9", "byte 4 is 0xe9"),
        ([b"--json", b"-"], b'{"message":"\xff"}', "byte 13 is 0xff"),
        ([b"-"], b"\xc3", "byte 1 is 0xc3"),
        ([b"message=caf\xe9"], b"", "the byte 0xe9"),
        ([b"--json", b'{"message":"\xe9"}'], b"", "the byte 0xe9"),
    ],
)
async def test_input_that_is_not_utf_8_is_one_sentence_and_nothing_is_sent(
    scripted: Bridge, upstream: ScriptedUpstream, words: list[bytes], stdin: bytes, said: str
) -> None:
    for locale in ("C.UTF-8", "POSIX"):
        done = await ask(scripted, b"call", b"read", *words, stdin=stdin, LC_ALL=locale)
        assert (done.status, done.out) == (2, "")
        assert done.err.count("\n") == 1
        assert "UTF-8" in done.err
        assert said in done.err
    assert upstream.count("tools/call") == 0


@pytest.mark.parametrize(
    ("words", "stdin"),
    [
        (["message=a b"], ""),
        (["message=-"], "a b\n"),
        (["-"], '{"message": "a b"}'),
        (["--json", '{"message": "a b"}'], ""),
        (["--json", "-"], '{"message": "a b"}\n'),
    ],
)
async def test_arguments_come_as_words_as_json_or_on_standard_input(
    everything: Bridge, words: list[str], stdin: str
) -> None:
    done = await ask(everything, "call", "echo", *words, stdin=stdin)
    assert (done.status, done.json["content"][0]["text"]) == (0, "Echo: a b")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["reed"], "There is no tool 'reed'. Did you mean read?"),
        (["read", "x"], "'x' is not an argument; write key=value."),
        (["typed"], "count is missing."),
        (["typed", "cuont=1"], "There is no argument 'cuont'. Did you mean count?"),
        (["typed", "count=many"], "count: 'many' is not of the type integer; write count=5."),
        (["typed", "--json", "[]"], "The arguments are not a JSON object."),
        (["mv"], "There is no tool 'mv'. The names are: read, typed, m\ufffd[2Jve."),
        (["typed", "count=1", "--json", "{}"], "Give the arguments either as key=value or by --json, not both."),
    ],
)
async def test_an_invalid_tool_or_argument_prints_one_error_line_and_sends_no_call(
    upstream: ScriptedUpstream, scripted: Bridge, words: list[str], sentence: str
) -> None:
    async def list_tools(received: Received) -> Any:
        schema = {"type": "object", "properties": {"count": {"type": "integer"}}, "required": ["count"]}
        return received.result(
            {
                "tools": [
                    {"name": "read", "inputSchema": {}},
                    {"name": "typed", "inputSchema": schema},
                    {"name": "m\x1b[2Jve", "inputSchema": {}},
                ]
            }
        )

    upstream.on("tools/list", list_tools)
    done = await ask(scripted, "call", *words)
    assert (done.status, done.out, done.err) == (2, "", f"{sentence}\n")
    assert upstream.count("tools/call") == 0


async def test_an_error_of_the_tool_is_printed_and_is_exit_status_1(
    upstream: ScriptedUpstream, scripted: Bridge
) -> None:
    result = {"isError": True, "content": [{"type": "text", "text": "The disk is full."}]}

    async def fail(received: Received) -> Any:
        return received.result(result)

    upstream.on("tools/call", fail)
    done = await ask(scripted, "call", "write")
    assert (done.status, done.json, done.err) == (1, result, "write returned an error.\n")
    assert "The disk is full." in (await see(scripted, "call", "write")).out


async def test_a_write_that_was_cut_is_reported_as_possibly_run(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    async def cut(received: Received) -> Any:
        return received.cut()

    upstream.on("tools/call", cut)
    done = await ask(scripted, "call", "write")
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines()[1:] == [
        "Vestige may have run the call.",
        "Run `vestige-bridge doctor` to find the cause.",
    ]
    assert upstream.count("tools/call") == 1


@pytest.mark.parametrize(("during", "may_have_run"), [("tools/call", True), ("tools/list", False)])
async def test_a_call_may_have_run_if_the_bridge_is_killed_during_it_but_not_before(
    upstream: ScriptedUpstream, during: str, may_have_run: bool
) -> None:
    process = BridgeProcess(environment(upstream.url))

    async def kill(received: Received) -> Any:
        process.kill()
        return received.result({})

    async with process.serving() as served:
        await until(served.ready)
        upstream.on(during, kill)
        done = await ask(served, "call", "write")
    assert (done.status, done.out) == (1, "")
    assert ("Vestige may have run the call." in done.err.splitlines()) == may_have_run


async def test_the_token_and_the_address_come_from_dotenv_as_for_the_bridge(everything: Bridge, tmp_path: Path) -> None:
    port = everything.origin.rpartition(":")[2]
    (tmp_path / ".env").write_text(f"VESTIGE_AUTH_TOKEN={TOKEN}\nVESTIGE_BRIDGE_PORT={port}\nVESTIGE_MCP_URL=nowhere\n")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "vestige_bridge", "call", "echo", "message=x"),
        env=surroundings({}),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert "Echo: x" in out.decode()


@pytest.mark.parametrize("end", ["", "/", "/mcp"])
async def test_a_bridge_elsewhere_is_named_by_its_address(everything: Bridge, end: str) -> None:
    variables = {"VESTIGE_AUTH_TOKEN": TOKEN, "VESTIGE_BRIDGE_PORT": "none"}
    done = await run("call", "echo", "--url", everything.origin + end, "message=x", **variables)
    assert (done.status, done.json["content"][0]["text"]) == (0, "Echo: x")


@pytest.mark.parametrize(
    "words", [["--url", "host:8000"], ["--url", "http://h/?a=b"], ["--url", ""], ["--colour"], ["a", "b"]]
)
async def test_invalid_arguments_are_exit_status_2(words: list[str]) -> None:
    done = await run("tools", *words)
    assert done.status == 2
    assert "Traceback" not in done.err


async def test_invalid_settings_that_the_command_uses_are_exit_status_2(tmp_path: Path) -> None:
    done = await run("tools", VESTIGE_BRIDGE_PORT="none", VESTIGE_AUTH_TOKEN="a b", VESTIGE_MCP_URL="nowhere")
    assert done.status == 2
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["VESTIGE_BRIDGE_PORT", "VESTIGE_AUTH_TOKEN"]
    done = await run("tools", VESTIGE_AUTH_TOKEN_FILE=str(tmp_path / "nowhere"))
    assert (done.status, done.err.partition(":")[0]) == (2, "VESTIGE_AUTH_TOKEN_FILE")


async def test_a_failed_request_names_the_address_and_is_exit_status_1(everything: Bridge) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    done = await run("tools", "--url", nowhere)
    assert (done.status, done.out) == (1, "")
    assert done.err.splitlines()[0] == f"{nowhere}: connection refused, nothing listens there"
    done = await run("tools", "--url", everything.origin, VESTIGE_AUTH_TOKEN="wrong")
    assert done.err.splitlines()[0] == f"{everything.origin}: The token is not valid."
    async with listening(answer_html) as authority:
        done = await run("tools", "--url", f"http://{authority}", VESTIGE_AUTH_TOKEN=TOKEN)
        assert "the answer is not MCP: HTTP 200, text/html" in done.err
    async with listening(greet) as authority:
        done = await run("call", "x", "--url", f"http://{authority}", VESTIGE_AUTH_TOKEN=TOKEN)
        assert (done.status, done.err.splitlines()[0]) == (1, f"http://{authority}: the server does not use HTTP")


async def test_an_invalid_list_of_tools_is_reported(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    async def list_odd(received: Received) -> Any:
        return received.result({"tools": "none"})

    await until(scripted.ready)
    upstream.on("tools/list", list_odd)
    done = await ask(scripted, "tools")
    assert done.status == 1
    assert "not a list of tools" in done.err


async def test_a_stream_that_ends_before_the_response_is_an_error(upstream: ScriptedUpstream) -> None:
    async def end_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n: hello\n\ndata: what?\n\n")
        await writer.drain()

    async with listening(end_early) as authority:
        done = await run("tools", "--url", f"http://{authority}")
    assert done.status == 1
    assert "the stream ended before the answer" in done.err


async def test_progress_is_shown_while_a_tool_runs_and_gone_when_it_ends(everything: Bridge) -> None:
    done = await see(everything, "call", "trigger-long-running-operation", "duration=1", "steps=2")
    assert done.status == 0
    shown = done.out.split("\r\x1b[K")
    name = "trigger-long-running-operation"
    assert shown[:4] == ["", f"{name} …", f"{name} 1 of 2", f"{name} 2 of 2"]
    assert shown[4].startswith("Long running operation completed.")


async def test_a_program_gets_a_result_without_progress(everything: Bridge) -> None:
    done = await ask(everything, "call", "trigger-long-running-operation", "duration=1", "steps=2")
    assert (done.status, done.err) == (0, "")
    assert done.json["content"]


async def test_all_kinds_of_content_are_shown_and_control_characters_are_replaced(
    upstream: ScriptedUpstream, scripted: Bridge
) -> None:
    content: list[Any] = [
        {"type": "text", "text": '{"a":[1]}'},
        {"type": "text", "text": "two\nlines\tand \x1b[31mred\ud800"},
        {"type": "image", "mimeType": "image/png", "data": "AAAA"},
        {"type": "resource_link", "uri": "file:///a"},
        {"type": "resource", "resource": {"uri": "file:///b", "text": "what is in b"}},
        {"type": "resource", "resource": {"uri": "file:///c", "blob": "AAAA"}},
        "not a block",
    ]
    results = [{"content": content}, {"content": [], "structuredContent": {"b": 2}}, {}]

    async def answer(received: Received) -> Any:
        return received.result(results.pop(0))

    upstream.on("tools/call", answer)
    assert (await see(scripted, "call", "read")).out.split("\r\x1b[K")[-1].splitlines() == [
        *("{", '  "a": [', "    1", "  ]", "}"),
        "two",
        "lines\tand \ufffd[31mred\ufffd",
        "[image, image/png; the data is in the JSON output]",
        "[resource_link file:///a]",
        "what is in b",
        "[resource file:///c]",
    ]
    assert '"b": 2' in (await see(scripted, "call", "read")).out
    assert (await see(scripted, "call", "read")).status == 0


async def test_control_characters_in_json_are_escaped(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    result = {"content": [{"type": "text", "text": "\x1b[2J\x9b2J\x7f é"}]}

    async def answer(received: Received) -> Any:
        return received.result(result)

    upstream.on("tools/call", answer)
    done = await ask(scripted, "call", "read")
    assert done.json == result
    assert done.out.strip().isprintable()
    assert "é" in done.out


async def test_ctrl_c_cancels_the_call_and_is_exit_status_130(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def take_long(received: Received) -> Any:
        running.set()
        await cancelled.wait()
        return received.result({})

    async def cancel(received: Received) -> Any:
        cancelled.set()
        return await upstream.answer(received)

    upstream.on("tools/call", take_long)
    upstream.on("notifications/cancelled", cancel)
    variables = {"VESTIGE_BRIDGE_PORT": scripted.origin.rpartition(":")[2], "VESTIGE_AUTH_TOKEN": TOKEN}
    process = await start("call", "write", variables=variables)
    async with asyncio.timeout(20):
        await running.wait()
        process.send_signal(signal.SIGINT)
        await cancelled.wait()
        out, err = await process.communicate()
    assert (process.returncode, out, err) == (130, b"", b"")
    [call], [notification] = upstream.of("tools/call"), upstream.of("notifications/cancelled")
    assert notification.message["params"]["requestId"] == call.message["id"]


async def test_a_pipe_that_closes_early_is_no_traceback(upstream: ScriptedUpstream, scripted: Bridge) -> None:
    async def list_many(received: Received) -> Any:
        return received.result({"tools": [{"name": f"tool-{n}" * 100, "inputSchema": {}} for n in range(1000)]})

    await until(scripted.ready)
    upstream.on("tools/list", list_many)
    ours, its = os.pipe()
    os.close(ours)
    variables = {"VESTIGE_BRIDGE_PORT": scripted.origin.rpartition(":")[2], "VESTIGE_AUTH_TOKEN": TOKEN}
    process = await start("tools", variables=variables, stdout=its)
    os.close(its)
    _, err = await process.communicate()
    assert (process.returncode, err) == (1, b"")


ONLY_HASHES = (
    "contains no valid token in plain text. For this command only, and not in .env, set VESTIGE_AUTH_TOKEN to your "
    "token and VESTIGE_AUTH_TOKEN_FILE to an empty value."
)


async def test_a_file_that_holds_only_hashes_has_no_token_to_show(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    file.write_text(entry("agents", TOKEN, 'tools = ["read"]'))
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        await until(served.ready)
        for words in (["tools"], ["tools", "read"], ["call", "read"], ["stdio"]):
            done = await ask(served, *words, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file))
            assert (done.status, done.out) == (2, "")
            assert done.err == f"VESTIGE_AUTH_TOKEN_FILE: {file} {ONLY_HASHES}\n"
        done = await ask(served, "tools", VESTIGE_AUTH_TOKEN_FILE="")
        assert [tool["name"] for tool in done.json] == ["read"]
        done = await ask(served, "call", "write", VESTIGE_AUTH_TOKEN_FILE="")
        assert done.status in (1, 2)
        assert upstream.count("tools/call") == 0
        assert (await ask(served, "call", "read", VESTIGE_AUTH_TOKEN_FILE="")).status == 0
    assert upstream.count("tools/call") == 1


async def test_the_first_unexpired_plain_token_of_a_file_is_used(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    file = tmp_path / "tokens.toml"
    plain = [f'[[token]]\nname = "{name}"\ntoken = "{token}"\n' for name, token in (("old", "old"), ("now", TOKEN))]
    file.write_text(f"{entry('hashed', 'another')}{plain[0]}expires = 2001-01-31T00:00:00Z\n{plain[1]}")
    async with bridge(upstream.url, VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file)) as served:
        await until(served.ready)
        assert (await ask(served, "call", "read", VESTIGE_AUTH_TOKEN="", VESTIGE_AUTH_TOKEN_FILE=str(file))).status == 0
    assert [it.http.headers["X-Vestige-Principal"] for it in upstream.of("tools/call")] == ["now"]
