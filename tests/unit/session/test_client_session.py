"""A client's own session: when it is idle, and when it has a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from harness import environment, free_port
from vestige_bridge.concurrency import Tasks
from vestige_bridge.errors import UpstreamConnectError
from vestige_bridge.jsonrpc.messages import Request
from vestige_bridge.jsonrpc.parser import parse_message
from vestige_bridge.mcp.multiplexer import Call, Caller
from vestige_bridge.session.client_session import ClientSession
from vestige_bridge.session.session import Session
from vestige_bridge.session.session_file import SessionFile
from vestige_bridge.settings import Settings
from vestige_bridge.upstream.answer_budget import AnswerBudget
from vestige_bridge.upstream.client import Upstream
from vestige_bridge.upstream.token import UpstreamToken


@pytest.fixture
async def own() -> AsyncIterator[ClientSession]:
    """A session with an unreachable upstream."""
    settings = Settings.from_environ(environment(f"http://127.0.0.1:{free_port()}/mcp"))
    upstream = Upstream(
        settings.mcp_url,
        token=UpstreamToken(),
        connect_timeout_seconds=1,
        max_answer_bytes=1000,
        budget=AnswerBudget(1000),
    )
    session = Session(upstream, settings, lambda _: None, SessionFile(None, settings.mcp_url))
    tasks = Tasks()
    async with upstream, session:
        yield ClientSession("ann", session.attempts, upstream, tasks)
        await tasks.close()


async def test_a_session_is_idle_from_the_end_of_its_last_use_on(own: ClientSession) -> None:
    now = asyncio.get_running_loop().time
    assert own.idle_since(now())
    with own.in_use():
        with own.in_use():
            pass
        assert not own.idle_since(now())
        before_the_end = now()
    assert own.used_at >= before_the_end
    assert not own.idle_since(own.used_at - 0.001)
    assert own.idle_since(own.used_at)


async def test_a_session_is_not_idle_while_a_request_is_in_flight_whose_client_has_left(own: ClientSession) -> None:
    request = parse_message('{"jsonrpc":"2.0","id":1,"method":"tools/call"}')
    assert isinstance(request, Request)
    call = Call(request, Caller("ann"))
    own.held.router.open(call)
    assert not own.idle_since(asyncio.get_running_loop().time())
    own.held.router.close(call)
    assert own.idle_since(asyncio.get_running_loop().time())


async def test_a_session_is_not_listening_after_its_stream_could_not_be_opened(own: ClientSession) -> None:
    for _ in range(2):
        with pytest.raises(UpstreamConnectError):
            await own.listen(5)
        assert not own.listening
