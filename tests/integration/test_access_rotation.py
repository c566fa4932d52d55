"""Rotates tokens under 32 callers: no valid token is rejected, and no removed one is accepted."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from harness import SSE, Bridge, Gateway, bridge, call_body, until
from vestige_bridge.access import tokens
from vestige_bridge.mcp.versions import LATEST_MODERN_VERSION

CALLERS = 32
ROTATIONS = 3
TOKENS = [f"token-of-generation-{n}" for n in range(ROTATIONS + 2)]
"""Each token is valid after the one before it; the last one never is."""


def in_place(file: Path, text: str) -> None:
    """Writes the file as an editor that truncates it first."""
    file.write_text(text)


def by_rename(file: Path, text: str) -> None:
    """Writes the file as an editor that replaces it."""
    other = file.with_suffix(".new")
    other.write_text(text)
    other.replace(file)


def by_symlink(file: Path, text: str) -> None:
    """Writes the file as kubelet writes a mounted Secret: by swapping the directory of all its files."""
    data = file.parent / f"..{time.monotonic_ns()}"
    data.mkdir()
    (data / file.name).write_text(text)
    swap = file.parent / "..data_tmp"
    swap.symlink_to(data.name)
    swap.replace(file.parent / "..data")
    if not file.is_symlink():
        file.unlink(missing_ok=True)
        file.symlink_to(Path("..data") / file.name)


INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


def as_lines(tokens: Iterable[str]) -> str:
    return "".join(f"agents {token}\n" for token in tokens)


def as_entries(tokens: Iterable[str]) -> str:
    """Returns the same tokens as TOML, some by their hash and some as they are."""
    return "".join(
        '[[token]]\nname = "agents"\ntools = ["echo", "*-*"]\n'
        + (f'token = "{token}"\n' if number % 2 else f'sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\n')
        for number, token in enumerate(tokens)
    )


class Rotation(logging.Handler):
    """A token file, and the times from which tokens were valid according to the log of the bridge.

    Parameters:
        file: the token file.
        write: the function that writes it.
        spell: the function that returns the text of the file for some tokens.
    """

    def __init__(
        self, file: Path, write: Callable[[Path, str], None], spell: Callable[[Iterable[str]], str] = as_lines
    ) -> None:
        super().__init__()
        self._spell = spell
        self.errors: list[str] = []
        self.states: list[tuple[float, frozenset[str]]] = []
        self.refused = 0
        self.written: frozenset[str] = frozenset()
        self._file = file
        self._write = write

    def begin(self, token: str) -> None:
        """Writes the file that the bridge starts with."""
        self.written = frozenset({token})
        self._write(self._file, self._spell([token]))
        self.states.append((time.perf_counter(), self.written))

    async def change(self, *tokens: str) -> None:
        """Writes the file, and waits until the bridge has read it."""
        seen = len(self.states)
        self.written = frozenset(tokens)
        await asyncio.to_thread(self._write, self._file, self._spell(tokens))
        await until(lambda: len(self.states) > seen)

    async def spoil(self, text: str) -> None:
        """Writes an invalid file, and waits until the bridge has rejected it."""
        refused = self.refused
        await asyncio.to_thread(self._write, self._file, text)
        await until(lambda: self.refused > refused)

    def emit(self, record: logging.LogRecord) -> None:
        """Records the time of each change that the bridge logs."""
        if record.levelno == logging.INFO:
            self.states.append((time.perf_counter(), self.written))
        else:
            assert record.levelno == logging.ERROR
            self.errors.append(record.getMessage())
            self.refused += 1

    def expected(self, token: str, began: float, ended: float) -> set[int]:
        """Returns the statuses that a request in flight during that time may get."""
        ends = [at for at, _ in self.states[1:]] + [float("inf")]
        in_force = [tokens for (at, tokens), end in zip(self.states, ends, strict=True) if at <= ended and began <= end]
        return {200 if token in tokens else 401 for tokens in in_force}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Reads the log of the bridge about the file."""
        logger = logging.getLogger(tokens.__name__)
        level = logger.level
        logger.addHandler(self)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(self)
            logger.setLevel(level)


async def post(served: Bridge, token: str) -> int:
    """Returns the status of a request of a sessionless client."""
    return (await served.call("echo", {"message": token}, headers={"Authorization": f"Bearer {token}"})).status


async def post_for_a_stream(served: Bridge, token: str) -> int:
    """Returns the status of a request of an MCP client."""
    headers = served.request_headers({**SSE, "Authorization": f"Bearer {token}"})
    async with served.http.post(served.url, json=call_body("echo", {"message": token}), headers=headers) as response:
        await response.read()
        return response.status


async def open_a_stream(served: Bridge, token: str) -> int:
    """Returns the status of a request for an event stream."""
    headers = {"Accept": "text/event-stream", "Authorization": f"Bearer {token}", "Mcp-Session-Id": "s"}
    async with served.http.get(served.url, headers=headers) as response:
        return response.status


BAD_FILES = {
    "tokens": ["", "agents a token\n"],
    "tokens.toml": ["", "[[token]]\nname = 'agents'\ntoken = 'a-token-that-is-not-valid'\nrole = 1\n"],
}


@pytest.mark.parametrize(("name", "spell"), [("tokens", as_lines), ("tokens.toml", as_entries)])
@pytest.mark.parametrize("write", [in_place, by_rename, by_symlink])
async def test_valid_tokens_are_accepted_and_removed_tokens_rejected_during_rotation(
    shared_gateway: Gateway,
    tmp_path: Path,
    write: Callable[[Path, str], None],
    name: str,
    spell: Callable[[Iterable[str]], str],
) -> None:
    rotation = Rotation(tmp_path / name, write, spell)
    rotation.begin(TOKENS[0])
    judged: Counter[tuple[str, int]] = Counter()
    wrong: list[tuple[str, int, set[int]]] = []
    stopping = asyncio.Event()

    async def calls(served: Bridge) -> None:
        while not stopping.is_set():
            token = random.choice([*rotation.written, *TOKENS])
            ask = random.choice((post, post_for_a_stream, open_a_stream))
            began = time.perf_counter()
            status = await ask(served, token)
            expected = rotation.expected(token, began, time.perf_counter())
            if status not in expected:
                wrong.append((token, status, expected))
            if len(expected) == 1:
                judged[token, status] += 1

    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(tmp_path / name)}
    with rotation.watching():
        async with bridge(shared_gateway.url, **variables) as served:
            async with asyncio.TaskGroup() as callers:
                for _ in range(CALLERS):
                    callers.create_task(calls(served))
                for old, new in itertools.pairwise(TOKENS[:-1]):
                    await rotation.change(old, new)
                    await rotation.spoil(BAD_FILES[name][new != TOKENS[1]])
                    assert served.metric("token_file_valid") == 0
                    await rotation.change(new)
                    assert served.metric("token_file_valid") == 1
                stopping.set()
            refused = served.metric("auth_failures_total", reason="wrong_token")
    assert wrong == []
    assert len(rotation.errors) == ROTATIONS
    assert all("is not valid" in said and "stay valid" in said and "a-token-" not in said for said in rotation.errors)
    for token in TOKENS[:ROTATIONS]:
        assert judged[token, 200], token
        assert judged[token, 401], token
    assert judged[TOKENS[-1], 401]
    assert not judged[TOKENS[-1], 200]
    assert refused >= sum(count for (_, status), count in judged.items() if status == 401)


async def listen_in_a_session(served: Bridge, token: str) -> aiohttp.ClientResponse:
    """Opens the stream of a legacy client."""
    headers = served.request_headers({**SSE, "Authorization": f"Bearer {token}"})
    opened = await served.post(INITIALIZE, headers)
    assert opened.status == 200, opened
    headers["Mcp-Session-Id"] = opened.headers["Mcp-Session-Id"]
    return await served.http.get(served.url, headers=headers)


async def listen_without_a_session(served: Bridge, token: str) -> aiohttp.ClientResponse:
    """Opens the stream of a modern client."""
    prefix = "io.modelcontextprotocol/"
    meta = {f"{prefix}protocolVersion": LATEST_MODERN_VERSION, f"{prefix}clientCapabilities": {}}
    params = {"notifications": {"toolsListChanged": True}, "_meta": meta}
    body = {"jsonrpc": "2.0", "id": 1, "method": "subscriptions/listen", "params": params}
    modern = {"MCP-Protocol-Version": LATEST_MODERN_VERSION, "Mcp-Method": "subscriptions/listen"}
    headers = served.request_headers({**SSE, **modern, "Authorization": f"Bearer {token}"})
    return await served.http.post(served.url, json=body, headers=headers)


@pytest.mark.parametrize(
    ("mode", "listen"),
    [
        ("shared", listen_in_a_session),
        ("shared", listen_without_a_session),
        ("per-client", listen_in_a_session),
    ],
)
async def test_a_stream_does_not_outlive_the_token_that_opened_it(
    shared_gateway: Gateway,
    tmp_path: Path,
    mode: str,
    listen: Callable[[Bridge, str], Awaitable[aiohttp.ClientResponse]],
) -> None:
    file, gone, kept = tmp_path / "tokens", TOKENS[0], TOKENS[1]
    file.write_text(f"alice {gone}\nbob {kept}\n")
    variables = {"VESTIGE_AUTH_TOKEN": "", "VESTIGE_AUTH_TOKEN_FILE": str(file), "SESSION_MODE": mode}
    async with bridge(shared_gateway.url, **variables) as served:
        await until(served.ready)
        streams = [await listen(served, token) for token in (gone, kept)]
        assert [stream.status for stream in streams] == [200, 200]
        await until(lambda: served.metric("streams_open") == 2)
        file.write_text(f"bob {kept}\n")
        async with asyncio.timeout(10):
            for stream in streams:
                await stream.read()
        assert (await post(served, gone)) == 401
        again = await listen(served, kept)
        assert again.status == 200
        again.close()
