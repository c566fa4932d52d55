"""Mutated bodies, headers and HTTP requests, for each package without I/O and then for the whole server.

Invariant: invalid input is rejected with the expected error, and accepted input has the same meaning as for a plain
JSON parser.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from random import Random
from typing import Any

from chaos.account import Figures
from chaos.callers import MODERN_META
from chaos.stack import Run, Stack, stack
from vestige_bridge.access.token_file import parse_lines
from vestige_bridge.errors import BridgeError, InvalidMessage, UpstreamProtocolError
from vestige_bridge.http import headers, sse
from vestige_bridge.http.headers import Headers
from vestige_bridge.jsonrpc.builders import build_request
from vestige_bridge.jsonrpc.messages import AnyMessage, Request, Response
from vestige_bridge.jsonrpc.parser import parse_body
from vestige_bridge.mcp.lifecycle import read_initialize
from vestige_bridge.mcp.modern import is_modern, require_valid, to_legacy
from vestige_bridge.mcp.multiplexer import Answer, Call, Caller, Multiplexer, Progress
from vestige_bridge.mcp.tools import read_tool_page

PACKAGE_INPUTS = 980_000
SERVER_INPUTS = 20_000
AT_ONCE = 64
QUIET_SECONDS = 0.3
GOOD_REQUEST_EVERY = 500
GROWTH_MEGABYTES = 64

MODERN_CALL = {"name": "read", "arguments": {"key": "k"}, "_meta": {**MODERN_META, "progressToken": 1}}
MESSAGES = [
    b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","arguments":{"key":"k"}}}',
    b'{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"write","_meta":{"progressToken":"t"}}}',
    b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"reason":"enough"}}',
    b'{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":1,"progress":1,"total":2}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"t","annotations":{"readOnlyHint":true}}],"nextCursor":"c"}}',
    b'{"jsonrpc":"2.0","id":1,"result":{"protocolVersion":"2025-11-25","capabilities":{},"serverInfo":{"name":"n"}}}',
    b'{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"MCP server process failed"}}',
    b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":1,"method":"tools/list"}]',
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{}}}',
    json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": MODERN_CALL}).encode(),
]
STREAM = b'\xef\xbb\xbf: hello\r\nevent: message\rid: 1\ndata: {"a":\r\ndata: 1}\r\n\r\ndata\n\nretry: 5\n\ndata: x\n\n'
TOKENS = b"# a\nalice secret-1\nbob:read-only secret-2\nsecret-3\n"
PIECES = [
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"null",
        b"true",
        b"1e400",
        b"-0",
        b"1.0",
        b"NaN",
        b"\xff",
        b"\x00",
    ),
    *(b'"id":1', b'"\\u0069d":2', b'"jsonrpc":"2.0"', b'"params":{}', b'"_meta":{}', b'"method":"ping"', b"\\ud800"),
    *(b"\r", b"\n", b"\r\n\r\n", b"data: ", b"event: x\n", b" ", b"\t", b"[" * 3000, b"9" * 5000, "é\u2028😀".encode()),
]


def mutated(random: Random, data: bytes) -> bytes:
    """Returns the bytes with some of them changed, duplicated, moved or removed."""
    for _ in range(random.choice((1, 1, 2, 3, 8))):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.choice((1, 2, 8, 40)))
        new = random.choice(
            (
                b"",
                random.randbytes(end - start),
                random.choice(PIECES),
                data[start:end] * 2,
                data[random.randrange(len(data) + 1) :][:20],
            )
        )
        data = data[:start] + new + data[end:]
    return data


def messages_of(data: bytes) -> list[AnyMessage]:
    """Returns the valid messages of a body according to the bridge's parser; none if it rejects the body."""
    try:
        parsed = parse_body(data)
    except InvalidMessage:
        return []
    members = parsed if isinstance(parsed, list) else [parsed]
    return [member for member in members if not isinstance(member, InvalidMessage)]


def read_plainly(data: bytes | str) -> Any:
    """Returns the result of a plain JSON parser."""
    return json.loads(data, parse_int=float)


def check_jsonrpc(random: Random) -> None:
    """Checks that a request with a new id differs only in its id."""
    for message in messages_of(mutated(random, random.choice(MESSAGES))):
        if isinstance(message, Request):
            before, after = read_plainly(message.text), read_plainly(message.spliced((message.id, "77")))
            assert after == {**before, "id": 77}


def check_modern(random: Random) -> None:
    """Checks that the conversion of a modern request removes only the keys of the modern era."""
    raw = [(b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"tools/call"), (b"mcp-name", b"read")]
    for message in messages_of(mutated(random, MESSAGES[-1])):
        with suppress(BridgeError):
            if isinstance(message, Request) and is_modern(message, "2026-07-28"):
                require_valid(message, Headers(raw))
                meta = read_plainly(to_legacy(message).text)["params"]["_meta"]
                assert not meta.keys() & MODERN_META.keys()


def check_multiplexer(random: Random) -> None:
    """Checks that a call gets only messages with its own id, whatever upstream sends."""
    multiplexer: Multiplexer[Call] = Multiplexer()
    request = build_request("tools/call", {"_meta": {"progressToken": 5}})
    call = Call(request, Caller("somebody"))
    multiplexer.open(call)
    multiplexer.assign(call)
    data = mutated(random, random.choice(MESSAGES))
    with suppress(InvalidMessage):
        routed = multiplexer.route(data)
        if isinstance(routed, Answer):
            assert read_plainly(data)["id"] == call.upstream_id
            assert read_plainly(routed.data)["id"] == 0
        elif isinstance(routed, Progress):
            assert read_plainly(routed.data)["params"]["progressToken"] == 5


def check_lifecycle(random: Random) -> None:
    """Checks that upstream's InitializeResult and tools are parsed, or rejected as invalid MCP."""
    for message in messages_of(mutated(random, random.choice(MESSAGES[4:7]))):
        if isinstance(message, Response):
            with suppress(UpstreamProtocolError):
                read_initialize(message, None)
            read_tool_page(message)


def check_sse(random: Random) -> None:
    """Checks that all chunkings give the same events, and that no event breaks its encoding."""
    data = mutated(random, STREAM)
    whole = list(sse.EventDecoder(2**20).feed(data))
    events: list[sse.Event] = []
    decoder, rest = sse.EventDecoder(2**20), data
    while rest:
        length = random.choice((1, 2, 3, 50))
        events += decoder.feed(rest[:length])
        rest = rest[length:]
    assert events == whole
    for event in whole:
        assert len(list(sse.EventDecoder(2**20).feed(sse.encode_event(event.data)))) <= 1


def check_headers(random: Random) -> None:
    """Checks that no header makes the parser fail, and that no line break is forwarded."""
    values = (
        b"Bearer secret",
        b"text/event-stream;q=0.5, */*",
        b"application/json; charset=utf-8",
        b"12",
        b"http://a:1",
    )
    names = (
        *(headers.ACCEPT, headers.AUTHORIZATION, headers.CONTENT_TYPE, headers.CONTENT_LENGTH, headers.ORIGIN),
        *(headers.HOST, headers.AGENT_ID, headers.TRACEPARENT, headers.REQUEST_ID, headers.NAME, headers.SESSION_ID),
    )
    raw = [(random.choice(names), mutated(random, random.choice(values))) for _ in range(3)]
    sent = Headers(raw)
    headers.accepted(sent)
    headers.is_json(sent)
    headers.is_compressed(sent)
    headers.content_length(sent)
    headers.bearer_token(sent)
    headers.mirrors(sent, headers.NAME, "x")
    headers.origin_allowed(sent, frozenset({"http://a:1"}))
    request_id = headers.request_id(sent) or "made"
    lines = headers.upstream_lines(sent, "somebody", request_id)
    assert all(line.isprintable() for line in lines.removesuffix("\r\n").split("\r\n"))


def check_tokens(random: Random) -> None:
    """Checks that a token file is parsed or rejected, and that no token is empty."""
    with suppress(ValueError):
        assert all(token.value for token in parse_lines(mutated(random, TOKENS).decode()))


PACKAGES: tuple[Callable[[Random], None], ...] = (
    *(check_jsonrpc, check_modern, check_multiplexer, check_lifecycle, check_sse, check_headers, check_tokens),
)


def check_packages(seed: str, inputs: int) -> tuple[Counter[str], list[str]]:
    """Runs the checks in turn; returns how often each failed, and the first failures."""
    random = Random(seed)
    failed: Counter[str] = Counter()
    examples = []
    for number in range(inputs):
        state = random.getstate()
        check = PACKAGES[number % len(PACKAGES)]
        try:
            check(random)
        except (Exception, RecursionError) as error:  # noqa: BLE001
            failed[check.__name__] += 1
            if failed[check.__name__] == 1:
                random.setstate(state)
                examples.append(f"{check.__name__}: {error!r}")
                with suppress(Exception, RecursionError):
                    check(random)
    return failed, examples


def http_requests(random: Random, token: str) -> Iterator[bytes]:
    """Yields raw requests without end: mutated ones, and ambiguous ones."""
    number = 0
    while True:
        number += 1
        token_header = f"Authorization: Bearer {token}\r\n" if random.random() < 0.7 else ""
        head = f"Host: x\r\n{token_header}Content-Type: application/json\r\nX-Request-Id: fuzz\r\n"
        smuggled = "POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        call = MESSAGES[0].replace(b'"k"', b'"smuggled-%d"' % number)
        inner = (smuggled % (len(call), call.decode())).encode()
        body = mutated(random, random.choice(MESSAGES))
        whole = f"POST /mcp HTTP/1.1\r\n{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        start = f"POST /mcp HTTP/1.1\r\n{head}".encode()
        chunked = b"Transfer-Encoding: chunked\r\n"
        yield random.choice(
            (
                whole,
                mutated(random, whole),
                mutated(random, whole[: -len(body)]) + body,
                whole * random.randint(2, 20),
                whole[: random.randint(1, len(whole))],
                start + chunked + b"Content-Length: 5\r\n\r\n0\r\n\r\n" + inner,
                start + b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(inner) + inner,
                start + b"Content-Length: 0\r\nTransfer-Encoding: xchunked\r\n\r\n" + inner,
                start + b"Content-Length: 1\r\nTransfer-Encoding : chunked\r\n\r\n1" + inner,
                start + chunked + b"\r\n" + mutated(random, b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)),
                start + chunked + b"\r\nffffffffffffffffffff\r\n" + body,
                start + b"X-Large: " + b"x" * random.choice((9_000, 70_000, 300_000)) + b"\r\n\r\n",
                start + b"".join(b"X-%d: y\r\n" % n for n in range(random.choice((200, 3000)))) + b"\r\n",
                b"GET " + mutated(random, b"/mcp?a=b#c") + b" HTTP/1.1\r\nHost: x\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                random.randbytes(random.randrange(1, 400)),
            )
        )


async def mutations(run: Run) -> Figures:
    """F4: a million mutated bodies, headers and requests."""
    inputs = run.times(PACKAGE_INPUTS), run.times(SERVER_INPUTS)
    done = (
        f"{inputs[0]:,} mutated bodies and headers passed to the parsers directly, "
        f"{inputs[1]:,} raw requests sent to the bridge"
    )
    with ProcessPoolExecutor(2) as pool:
        loop, seeds = asyncio.get_running_loop(), (f"{run.seed} left", f"{run.seed} right")
        halves = [loop.run_in_executor(pool, check_packages, seed, inputs[0] // 2) for seed in seeds]
        results = await asyncio.gather(*halves)
    async with stack(run, "F4 mutations", done) as it:
        it.figures.calls = sum(inputs)
        for failed, examples in results:
            it.figures.zeros["failed"] += failed.total()
            it.figures.examples += examples
        await _attack(it, inputs[1])
    return it.figures


async def _attack(it: Stack, inputs: int) -> None:
    await it.good_request()
    before = it.bridge.descriptors, it.bridge.megabytes, await it.bridge.tasks()
    statuses: Counter[str] = Counter()
    attacks = http_requests(it.random, it.run.token)
    half_open = [await asyncio.open_connection("127.0.0.1", it.bridge.port) for _ in range(100)]
    for _, writer in half_open:
        writer.write(b"POST /mcp HTTP/1.1\r\nHost: x\r\n")
    gate = asyncio.Semaphore(AT_ONCE)
    for thrown in range(0, inputs, GOOD_REQUEST_EVERY):
        number = min(GOOD_REQUEST_EVERY, inputs - thrown)
        await asyncio.gather(*(_throw(it, next(attacks), statuses, gate) for _ in range(number)))
        await it.good_request()
    for _, writer in half_open:
        writer.close()
    if statuses["500"]:
        it.figures.blame("failed", f"{statuses['500']} answers with status 500")
    if (handshakes := it.account.handshakes()) != 1:
        it.figures.blame("failed", f"{handshakes} handshakes")
    for key, runs in it.account.runs().items():
        if key.startswith("smuggled") and runs:
            it.figures.blame("wrong", f"{key} was let in without a token")
    after = await it.at_rest()
    bounds = before[0] + 8, before[1] + GROWTH_MEGABYTES, before[2] + 8
    for name, value, bound in zip(("descriptors", "megabytes", "tasks"), after, bounds, strict=True):
        if value > bound:
            it.figures.blame("grown", f"{value} {name}, {bound} allowed")
    answers = ", ".join(f"{status}: {count:,}" for status, count in sorted(statuses.items()))
    it.figures.notes.append(f"responses of the bridge by HTTP status: {answers}")


async def _throw(it: Stack, attack: bytes, statuses: Counter[str], gate: asyncio.Semaphore) -> None:
    """Sends one raw request in a few pieces and reads until the connection is quiet."""
    async with gate:
        reader, writer = await asyncio.open_connection("127.0.0.1", it.bridge.port)
        answer = b""
        with suppress(OSError, TimeoutError):
            cut = it.random.randint(0, len(attack))
            for piece in (attack[:cut], attack[cut:]):
                writer.write(piece)
                await writer.drain()
            if it.random.random() < 0.3:
                writer.write_eof()
            while chunk := await asyncio.wait_for(reader.read(65536), QUIET_SECONDS):
                answer += chunk
        statuses.update(status.decode() for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer))
        writer.close()
