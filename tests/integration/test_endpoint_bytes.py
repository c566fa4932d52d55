"""All bytes except ids, progress tokens and unpaired surrogates pass through unchanged, in both directions."""

from __future__ import annotations

import re

import pytest
from aiohttp import web

from harness import SSE, Bridge, Received, ScriptedUpstream

ODD = [
    b'{"jsonrpc":"2.0","id":@,"method":"tools/call","params":{"name":"write","arguments":{"a":1.0,"b":1e400,"c":-0}}}',
    rb'{"jsonrpc":"2.0","id":@,"method":"tools/call","params":{"name":"write","arguments":{"\u00e9":"\ud83d\ude00\\ud800"}}}',
    b'{ "params":\t{"arguments":{"k":1,"k":2},"name":"write"} ,\r\n "id" : @ ,"method":"tools/call","jsonrpc":"2.0"}\n',
    rb'{"jsonrpc":"2.0","\u0069d":@,"method":"tools/c\u0061ll","params":{"name":"write","arguments":{"deep":[[[{}]]]}}}',
    '{"jsonrpc":"2.0","id":@,"method":"tools/call","params":{"name":"write","arguments":{"x":"é😀\u2028"}}}'.encode(),
    rb'{"jsonrpc":"2.0","id":@,"method":"tools/call","unknown":null,"params":{"name":"write","arguments":{"n":0.1e-7}}}',
    rb'{"jsonrpc":"2.0","id":@,"method":"tools/call","params":{"name":"write","arguments":{"n":123456789012345.000,"s":"\/"}}}',
]
IDS = [b"1", b'"1"', b"1.0", b"1e2", b"-0", b"123456789012345678901234567890", rb'"\u0031\ud800"', b'""']
ANSWERS = [
    b'{"jsonrpc":"2.0","id":@,"result":{"a":1.0,"b":1e400,"c":-0,"k":1,"k":2}}',
    rb'{ "result" : {"\u00e9":"\ud83d\ude00\ud800", "id": 3} , "id" : @ , "jsonrpc":"2.0" }',
    '{"id":@,"jsonrpc":"2.0","error":{"code":-32000,"message":"é\u2028","data":{"id":0.10}}}'.encode(),
]


def upstream_id(body: bytes) -> bytes:
    """Returns the id that the bridge gave the request, from a body that upstream received."""
    found = re.search(rb'"(?:id|\\u0069d)"\s*:\s*("[^"]*"|[-0-9.e]+)', body)
    assert found
    return found[1]


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("spelled", [b"1", rb'"\u0031\ud800"'])
async def test_a_body_reaches_upstream_byte_for_byte_but_for_the_id(
    scripted: Bridge, upstream: ScriptedUpstream, body: bytes, spelled: bytes
) -> None:
    answer = await scripted.post(body.replace(b"@", spelled))
    assert answer.status == 200, answer.body
    (received,) = [it for it in upstream.received if it.method == "tools/call"]
    before, after = body.split(b"@")
    assert received.body.startswith(before)
    assert received.body.endswith(after)
    assert received.body == body.replace(b"@", received.body[len(before) : len(received.body) - len(after)])


@pytest.mark.parametrize("spelled", IDS)
async def test_an_id_is_returned_as_it_was_spelled(scripted: Bridge, spelled: bytes) -> None:
    answer = await scripted.post(b'{"jsonrpc":"2.0","method":"ping","id":%s}' % spelled)
    assert answer.status == 200
    assert re.search(rb'"id"\s*:\s*' + re.escape(spelled) + rb"\s*[,}]", answer.body)


@pytest.mark.parametrize("shape", ["json", "sse"])
@pytest.mark.parametrize("accept", [{}, SSE], ids=["client takes json", "client takes event streams"])
@pytest.mark.parametrize("text", ANSWERS)
async def test_an_answer_reaches_the_client_byte_for_byte_but_for_the_id(
    scripted: Bridge, upstream: ScriptedUpstream, text: bytes, accept: dict[str, str], shape: str
) -> None:
    async def reply(received: Received) -> web.StreamResponse:
        data = text.replace(b"@", upstream_id(received.body))
        if shape == "json":
            return web.Response(body=data, content_type="application/json")
        return await received.events(data.decode())

    upstream.on("tools/call", reply)
    body = ODD[0].replace(b"@", b'"mine"')
    answer = await scripted.post(body, accept)
    expected = text.replace(b"@", b'"mine"')
    if answer.headers["Content-Type"].startswith("text/event-stream"):
        assert accept
        lines = [line for line in answer.body.split(b"\n") if line.startswith(b"data:")]
        assert [line.removeprefix(b"data:").removeprefix(b" ") for line in lines] == [expected]
    else:
        assert answer.body == expected


async def test_progress_notifications_have_the_clients_own_progress_token(
    scripted: Bridge, upstream: ScriptedUpstream
) -> None:
    tokens = []

    async def progress(received: Received) -> web.StreamResponse:
        token = received.message["params"]["_meta"]["progressToken"]
        tokens.append(token)
        step = '{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":@,"progress":1.50}}'
        spelled = f'"{token}"' if isinstance(token, str) else str(token)
        return await received.events(
            step.replace("@", spelled), {"jsonrpc": "2.0", "id": received.message["id"], "result": {}}
        )

    upstream.on("tools/call", progress)
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"read","_meta":{"progressToken":1.0}}}'
    answer = await scripted.post(body, SSE)
    assert b'"params":{"progressToken":1.0,"progress":1.50}' in answer.body
    assert tokens != [1.0]
