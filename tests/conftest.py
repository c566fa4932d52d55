"""Fixtures: each test has its own upstream, unless it only reads from it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import pytest
from aiohttp.test_utils import TestServer

from harness import ROOT, SERVER_EVERYTHING, SERVER_MEMORY, Bridge, Gateway, ScriptedUpstream, bridge


@pytest.fixture(scope="session", autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Checks that all processes that the tests started have ended with them."""
    yield
    assert not psutil.Process().children(recursive=True)


@pytest.fixture
def memory_file(tmp_path: Path) -> Path:
    """The file in which server-memory stores its memories."""
    return tmp_path / "memory.jsonl"


@pytest.fixture
def memory_gateway(memory_file: Path) -> Iterator[Gateway]:
    """supergateway with server-memory behind it."""
    gateway = Gateway(SERVER_MEMORY, {"MEMORY_FILE_PATH": str(memory_file)})
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture(scope="session")
def shared_gateway() -> Iterator[Gateway]:
    """supergateway with server-everything behind it, for tests that leave both running."""
    gateway = Gateway(SERVER_EVERYTHING)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
def everything_gateway() -> Iterator[Gateway]:
    """supergateway with server-everything behind it, for tests that end one of the two."""
    gateway = Gateway(SERVER_EVERYTHING)
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """An upstream that fails where a test scripts it; ``url`` is its address."""
    scripted = ScriptedUpstream()
    async with TestServer(scripted.app, host="127.0.0.1") as server:
        scripted.url = str(server.make_url("/mcp"))
        yield scripted


@pytest.fixture
async def scripted(upstream: ScriptedUpstream) -> AsyncIterator[Bridge]:
    """A bridge in front of the scripted upstream."""
    async with bridge(upstream.url) as served:
        yield served


@pytest.fixture
async def everything(shared_gateway: Gateway) -> AsyncIterator[Bridge]:
    """A bridge in front of server-everything."""
    async with bridge(shared_gateway.url) as served:
        yield served


@pytest.fixture
def features_gateway() -> Iterator[Gateway]:
    """supergateway with a server behind it that has all features of the legacy era."""
    gateway = Gateway(ROOT / "tests/server.mjs")
    gateway.start()
    yield gateway
    gateway.stop()


@pytest.fixture
async def features(features_gateway: Gateway) -> AsyncIterator[Bridge]:
    """A bridge in front of the server with all features of the legacy era."""
    async with bridge(features_gateway.url) as served:
        yield served
